package sshagent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

const (
	// maxMessage is the longest message, as OpenSSH's agent has it.
	maxMessage = 256 << 10
	headSize   = 4 // a message's length
)

var errReadOnly = errors.New("a build may list keys and sign, and nothing else")

// Proxy serves front from the agent at back until front ends, and closes both.
// It passes on only what lists keys and signs.
func Proxy(front, back io.ReadWriteCloser) error {
	err := Serve(front, agent.NewClient(&messages{ReadWriter: back}))
	return errors.Join(err, back.Close())
}

// Serve serves front from a until front ends, and closes it. It passes on only
// what lists keys and signs.
func Serve(front io.ReadWriteCloser, a agent.ExtendedAgent) error {
	err := agent.ServeAgent(readOnly{a}, &messages{ReadWriter: front})
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrClosedPipe) {
		err = nil
	}
	return errors.Join(err, front.Close())
}

// readOnly is an agent that keeps its keys. It does not embed the agent: what
// agents will learn to do must not get through.
type readOnly struct{ a agent.ExtendedAgent }

func (r readOnly) List() ([]*agent.Key, error) { return r.a.List() }

func (r readOnly) Sign(key ssh.PublicKey, data []byte) (*ssh.Signature, error) {
	return r.a.Sign(key, data)
}

func (r readOnly) SignWithFlags(key ssh.PublicKey, data []byte, flags agent.SignatureFlags) (*ssh.Signature, error) {
	return r.a.SignWithFlags(key, data, flags)
}

func (readOnly) Add(agent.AddedKey) error                 { return errReadOnly }
func (readOnly) Remove(ssh.PublicKey) error               { return errReadOnly }
func (readOnly) RemoveAll() error                         { return errReadOnly }
func (readOnly) Lock([]byte) error                        { return errReadOnly }
func (readOnly) Unlock([]byte) error                      { return errReadOnly }
func (readOnly) Signers() ([]ssh.Signer, error)           { return nil, errReadOnly }
func (readOnly) Extension(string, []byte) ([]byte, error) { return nil, agent.ErrExtensionUnsupported }

// messages reads an agent's messages and ends where one is too long, before
// anybody makes room for it.
type messages struct {
	io.ReadWriter
	head [headSize]byte
	at   int // of head, what has been read of it
	left int // of the message
}

func (m *messages) Read(p []byte) (int, error) {
	if m.left == 0 && m.at == 0 {
		if _, err := io.ReadFull(m.ReadWriter, m.head[:]); err != nil {
			return 0, err
		}
		n := binary.BigEndian.Uint32(m.head[:])
		if n > maxMessage {
			return 0, fmt.Errorf("%w: a message of %d bytes", ErrProtocol, n)
		}
		m.left = int(n)
	}
	if m.at < headSize {
		n := copy(p, m.head[m.at:])
		if m.at += n; m.at == headSize && m.left == 0 {
			m.at = 0
		}
		return n, nil
	}
	n, err := m.ReadWriter.Read(p[:min(len(p), m.left)])
	if m.left -= n; m.left == 0 {
		m.at = 0
	}
	return n, err
}
