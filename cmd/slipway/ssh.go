package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/slipwayhq/slipway/cmd/slipway/client"
	"github.com/slipwayhq/slipway/sshagent"
)

// maxKeyFile is the most that a file with a private key may hold.
const maxKeyFile = 100 << 10

// agents are the SSH agents that a build may use, by id.
type agents map[string]*sshAgent

// An sshAgent is one of the user's, or one of this process with keys of files.
type sshAgent struct {
	socket string
	keys   agent.ExtendedAgent // nil: at socket
}

// parseSSH reads --ssh: ID, ID=SOCKET or ID=KEYFILE[,KEYFILE…].
func parseSSH(specs []string, getenv func(string) string) (agents, error) {
	all := agents{}
	for _, spec := range specs {
		id, where, given := strings.Cut(spec, "=")
		if id == "" || given && where == "" {
			return nil, client.UserError(fmt.Sprintf("--ssh %q: want default, ID=SOCKET or ID=KEYFILE", spec), "")
		}
		if all[id] != nil {
			return nil, client.UserError(fmt.Sprintf("--ssh: %s comes twice", id), "Give further keys after a comma.")
		}
		if !given {
			if where = cmp.Or(getenv("SSH_AUTH_SOCK"), defaultSocket); where == "" {
				return nil, client.UserError("--ssh "+id+": no SSH agent runs: SSH_AUTH_SOCK is not set",
					"Start one with eval $(ssh-agent) and ssh-add, or name a key file: --ssh "+id+"=FILE.")
			}
		}
		a, err := newAgent(id, strings.Split(where, ","))
		if err != nil {
			return nil, err
		}
		all[id] = a
	}
	return all, nil
}

// newAgent is the agent at a socket, or one with the keys of files.
func newAgent(id string, paths []string) (*sshAgent, error) {
	if len(paths) == 1 && !isFile(paths[0]) {
		conn, err := dialAgent(paths[0])
		if err != nil {
			return nil, client.UserError(fmt.Sprintf("--ssh %s: no SSH agent at %s: %v", id, paths[0], err),
				"Name the socket of an agent that runs, or a file with a private key.")
		}
		conn.Close()
		return &sshAgent{socket: paths[0]}, nil
	}
	keys := agent.NewKeyring().(agent.ExtendedAgent)
	for _, path := range paths {
		key, err := readKey(path)
		if err != nil {
			return nil, keyError(id, path, err)
		}
		if err := keys.Add(agent.AddedKey{PrivateKey: key, Comment: path}); err != nil {
			return nil, keyError(id, path, err)
		}
	}
	return &sshAgent{keys: keys}, nil
}

func keyError(id, path string, err error) error {
	hint := "Name files with private keys, as ssh-keygen writes them."
	if passphrase := (*ssh.PassphraseMissingError)(nil); errors.As(err, &passphrase) {
		err, hint = errors.New("it has a passphrase"), "Add it to an agent with ssh-add "+path+", and give --ssh "+id+" alone."
	}
	return client.UserError(fmt.Sprintf("--ssh %s: key %s: %v", id, path, err), hint)
}

func readKey(path string) (any, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxKeyFile))
	if err != nil {
		return nil, err
	}
	return ssh.ParseRawPrivateKey(text)
}

func (a agents) ids() []string { return slices.Sorted(maps.Keys(a)) }

// serve serves one connection of the build until it ends. warn tells the user
// why it cannot.
func (a agents) serve(conn *sshagent.Conn, warn func(string)) {
	err := a.join(conn)
	if err != nil {
		warn(fmt.Sprintf("SSH agent %s: %v", conn.ID(), err))
	}
	_ = conn.CloseWith(err) // the build learns of a broken stream elsewhere
}

func (a agents) join(conn *sshagent.Conn) error {
	to := a[conn.ID()]
	if to == nil {
		return errors.New("it is not forwarded")
	}
	// What breaks from here on, the step sees as its agent's failure.
	if to.keys != nil {
		_ = sshagent.Serve(conn, to.keys)
		return nil
	}
	back, err := dialAgent(to.socket)
	if err != nil {
		return err
	}
	over := make(chan struct{})
	go func() { // an agent may wait for the user long after the build has ended
		defer close(over)
		<-conn.Ended()
		back.Close()
	}()
	_ = sshagent.Proxy(conn, back)
	<-over
	return nil
}
