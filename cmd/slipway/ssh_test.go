package main

import (
	"crypto/ed25519"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
	"github.com/slipwayhq/slipway/sshagent"
)

// keyFile writes a private key.
func keyFile(t *testing.T, name, passphrase string) (file string, public ssh.PublicKey) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	var block *pem.Block
	if passphrase == "" {
		block, err = ssh.MarshalPrivateKey(key, "")
	} else {
		block, err = ssh.MarshalPrivateKeyWithPassphrase(key, "", []byte(passphrase))
	}
	if err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	if public, err = ssh.NewPublicKey(key.Public()); err != nil {
		t.Fatal(err)
	}
	return file, public
}

// userAgent is an agent of the user's at a socket; it refuses nothing.
func userAgent(t *testing.T) (socket string, keys agent.Agent) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	keys = agent.NewKeyring()
	if err := keys.Add(agent.AddedKey{PrivateKey: key, Comment: "the user's"}); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "agent") // a socket's name must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket = filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { agent.ServeAgent(keys, c); c.Close() }()
		}
	}()
	return socket, keys
}

// agents opens connections to the client's agents, and takes what it says
// until the stream ends.
func (s *session) agents() *sshagent.Conns {
	conns := sshagent.NewConns(func(f *slipwayv1.AgentFrame) error {
		return s.stream.Send(&slipwayv1.BuildResponse{Message: &slipwayv1.BuildResponse_Agent{Agent: f}})
	}, nil)
	go func() {
		for {
			m, err := s.stream.Recv()
			if err != nil {
				conns.Close(err)
				return
			}
			if m.GetAgent() != nil {
				conns.Frame(m.GetAgent())
			}
		}
	}()
	return conns
}

func TestDeployForwardsAgents(t *testing.T) {
	dir := tree(t, map[string]string{"Dockerfile": "FROM scratch\n"})
	first, firstKey := keyFile(t, "id_first", "")
	second, secondKey := keyFile(t, "id_second", "")
	socket, users := userAgent(t)
	d := startDaemon(t, func(s *session) error {
		if err := s.accept(); err != nil {
			return err
		}
		conns := s.agents()
		for id, want := range map[string]int{"default": 1, "deploy": 2} {
			conn, err := conns.Open(id)
			if err != nil {
				return err
			}
			a := agent.NewClient(conn)
			have, err := a.List()
			if err != nil || len(have) != want {
				t.Errorf("agent %s has %v, %v", id, have, err)
				continue
			}
			sig, err := a.Sign(have[0], []byte("x"))
			if err != nil || have[0].Verify([]byte("x"), sig) != nil {
				t.Errorf("agent %s does not sign: %v", id, err)
			}
			if id == "deploy" && (string(have[0].Blob) != string(firstKey.Marshal()) || string(have[1].Blob) != string(secondKey.Marshal())) {
				t.Error("the keys are not those of the files")
			}
			if a.RemoveAll() == nil || a.Lock([]byte("x")) == nil {
				t.Errorf("agent %s can be changed", id)
			}
			conn.Close()
		}
		conn, err := conns.Open("other")
		if err != nil {
			return err
		}
		if _, err := conn.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "not forwarded") {
			t.Errorf("an agent that was not named: %v", err)
		}
		// One that is left open must not keep the client from ending.
		if _, err := conns.Open("default"); err != nil {
			return err
		}
		return s.say(plan("FROM scratch"), end(succeeded()))
	})
	c := newCLI(t, d)
	c.vars["SSH_AUTH_SOCK"] = socket
	c.want(0, "deploy", dir, "--ssh", "default", "--ssh", "deploy="+first+","+second)
	if ids := d.started.GetAgentIds(); strings.Join(ids, " ") != "default deploy" {
		t.Errorf("agents %v", ids)
	}
	if left, err := users.List(); err != nil || len(left) != 1 {
		t.Errorf("the user's agent has %v, %v", left, err)
	}
}

// A request that the user's agent ponders ends with the build.
func TestAgentThatPonders(t *testing.T) {
	dir := tree(t, map[string]string{"Dockerfile": "FROM scratch\n"})
	sock := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	asked, dropped := make(chan struct{}), make(chan error, 1)
	go func() {
		if c, err := l.Accept(); err == nil { // whether there is an agent at all
			c.Close()
		}
		c, err := l.Accept()
		if err == nil {
			_, err = io.ReadFull(c, make([]byte, 5))
			close(asked)
		}
		if err == nil {
			_, err = c.Read(make([]byte, 1))
		}
		dropped <- err
	}()
	c := newCLI(t, startDaemon(t, func(s *session) error {
		if err := s.accept(); err != nil {
			return err
		}
		conn, err := s.agents().Open("default")
		if err != nil {
			return err
		}
		if _, err := conn.Write([]byte{0, 0, 0, 1, 11}); err != nil {
			return err
		}
		<-asked
		return s.say(plan("FROM scratch"), end(succeeded()))
	}))
	c.want(0, "deploy", dir, "--ssh", "default="+sock)
	if err := <-dropped; !errors.Is(err, io.EOF) {
		t.Errorf("the agent sees %v", err)
	}
}

func TestSSHFlagsThatAreRefused(t *testing.T) {
	dir := tree(t, map[string]string{"Dockerfile": "FROM scratch\n", "text": "no key\n"})
	locked, _ := keyFile(t, "id_locked", "hush")
	good, _ := keyFile(t, "id_good", "")
	for _, tc := range []struct {
		args []string
		says []string
	}{
		{[]string{"--ssh", "default"}, []string{"SSH_AUTH_SOCK is not set", "ssh-add"}},
		{[]string{"--ssh", "=x"}, []string{"want default"}},
		{[]string{"--ssh", "x="}, []string{"want default"}},
		{[]string{"--ssh", "default=" + filepath.Join(dir, "nowhere")}, []string{"no SSH agent at", "nowhere"}},
		{[]string{"--ssh", "default=" + filepath.Join(dir, "text")}, []string{"text: ssh: no key found"}},
		{[]string{"--ssh", "default=" + locked}, []string{"id_locked: it has a passphrase", "ssh-add"}},
		{[]string{"--ssh", "a=" + good, "--ssh", "a=" + good}, []string{"a comes twice"}},
		{[]string{"--ssh", "a=" + good, "--detach"}, []string{"--ssh does not go with --detach"}},
	} {
		c := newCLI(t, nil)
		c.want(2, append([]string{"deploy", dir}, tc.args...)...)
		c.sees(&c.stderr, tc.says...)
	}
}
