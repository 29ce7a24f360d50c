package sshagent_test

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"io"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/crypto/ssh/agent"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
	"github.com/slipwayhq/slipway/sshagent"
)

// pair joins two sides; serve gets what the first one opens.
func pair(t *testing.T, serve func(*sshagent.Conn)) *sshagent.Conns {
	t.Helper()
	var near, far *sshagent.Conns
	var serving sync.WaitGroup
	near = sshagent.NewConns(func(f *slipwayv1.AgentFrame) error {
		if len(f.Data) > 256<<10 {
			t.Errorf("a frame of %d bytes", len(f.Data))
		}
		far.Frame(f)
		return nil
	}, nil)
	far = sshagent.NewConns(func(f *slipwayv1.AgentFrame) error { near.Frame(f); return nil },
		func(c *sshagent.Conn) { serving.Go(func() { serve(c) }) })
	t.Cleanup(func() {
		near.Close(io.EOF)
		far.Close(io.EOF)
		serving.Wait()
	})
	return near
}

func open(t *testing.T, c *sshagent.Conns, id string) *sshagent.Conn {
	t.Helper()
	conn, err := c.Open(id)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func keyring(t *testing.T) agent.ExtendedAgent {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	keys := agent.NewKeyring()
	if err := keys.Add(agent.AddedKey{PrivateKey: key}); err != nil {
		t.Fatal(err)
	}
	return keys.(agent.ExtendedAgent)
}

// all is an agent that can do whatever it is asked.
type all struct{ agent.ExtendedAgent }

func (all) Extension(string, []byte) ([]byte, error) { return []byte("done"), nil }

// A proxy passes on what reads, and keeps the rest from the agent.
func TestOnlyListAndSign(t *testing.T) {
	keys := all{keyring(t)}
	conns := pair(t, func(c *sshagent.Conn) {
		ours, theirs := net.Pipe() // the agent itself refuses nothing
		go func() { agent.ServeAgent(keys, theirs); theirs.Close() }()
		if err := sshagent.Proxy(c, ours); err != nil {
			t.Error(err)
		}
	})
	a := agent.NewClient(open(t, conns, "default"))
	have, err := a.List()
	if err != nil || len(have) != 1 {
		t.Fatalf("keys %v, %v", have, err)
	}
	if sig, err := a.Sign(have[0], []byte("x")); err != nil || have[0].Verify([]byte("x"), sig) != nil {
		t.Errorf("sign: %v", err)
	}
	_, other, _ := ed25519.GenerateKey(nil)
	for what, err := range map[string]error{
		"add": a.Add(agent.AddedKey{PrivateKey: other}), "remove": a.Remove(have[0]), "remove all": a.RemoveAll(),
		"lock": a.Lock([]byte("x")), "unlock": a.Unlock([]byte("x")), "extension": second(a.Extension("x@y", nil)),
	} {
		if err == nil {
			t.Errorf("%s gets through", what)
		}
	}
	if left, err := keys.List(); err != nil || len(left) != 1 || !bytes.Equal(left[0].Blob, have[0].Blob) {
		t.Errorf("the agent has %v, %v", left, err)
	}
}

func second(_ []byte, err error) error { return err }

// A process that only writes is cut off; others go on.
func TestFlood(t *testing.T) {
	held := make(chan struct{})
	keys := keyring(t)
	conns := pair(t, func(c *sshagent.Conn) {
		if c.ID() == "held" {
			<-held
			c.Close()
			return
		}
		sshagent.Serve(c, keys)
	})
	flood := open(t, conns, "held")
	for range 3 {
		flood.Write(make([]byte, 256<<10))
	}
	if have, err := agent.NewClient(open(t, conns, "good")).List(); err != nil || len(have) != 1 {
		t.Errorf("beside a flood: %v, %v", have, err)
	}
	close(held)
	if _, err := flood.Read(make([]byte, 1)); err == nil || err.Error() != sshagent.ErrOverflow.Error() {
		t.Errorf("the flood ends with %v", err)
	}
}

// A message that says it is long is not waited for, nor made room for.
func TestLongMessage(t *testing.T) {
	failed := make(chan error, 1)
	conns := pair(t, func(c *sshagent.Conn) { failed <- sshagent.Serve(c, keyring(t)) })
	c := open(t, conns, "default")
	c.Write([]byte{0, 4, 0, 1})
	if err := <-failed; !errors.Is(err, sshagent.ErrProtocol) {
		t.Errorf("a message of 256 KiB and one byte: %v", err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the other side sees %v", err)
	}
}

// Empty messages are refused by the agent, and end the connection.
func TestEmptyMessage(t *testing.T) {
	conns := pair(t, func(c *sshagent.Conn) { sshagent.Serve(c, keyring(t)) })
	c := open(t, conns, "default")
	c.Write([]byte{0, 0, 0, 0})
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the other side sees %v", err)
	}
}

func TestEnds(t *testing.T) {
	refusal := errors.New("no such agent")
	got := make(chan error, 1)
	conns := pair(t, func(c *sshagent.Conn) {
		switch c.ID() {
		case "refused":
			c.CloseWith(refusal)
		case "last words":
			c.Write([]byte("bye"))
			c.Close()
		default:
			_, err := c.Read(make([]byte, 1))
			got <- err
		}
	})
	if _, err := open(t, conns, "refused").Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "no such agent") {
		t.Errorf("refused: %v", err)
	}
	if b, err := io.ReadAll(open(t, conns, "last words")); err != nil || string(b) != "bye" {
		t.Errorf("last words %q, %v", b, err)
	}
	open(t, conns, "x").Close()
	if err := <-got; !errors.Is(err, io.EOF) {
		t.Errorf("closed: %v", err)
	}
	c := open(t, conns, "x")
	conns.Close(refusal)
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, refusal) {
		t.Errorf("of connections that are closed: %v", err)
	}
	if _, err := conns.Open("x"); !errors.Is(err, refusal) {
		t.Errorf("afterwards: %v", err)
	}
}

func TestTooMany(t *testing.T) {
	conns := pair(t, func(c *sshagent.Conn) { <-c.Ended() })
	var first *sshagent.Conn
	for range 64 {
		first = open(t, conns, "x")
	}
	if _, err := conns.Open("x"); !errors.Is(err, sshagent.ErrTooMany) {
		t.Errorf("one more: %v", err)
	}
	first.Close()
	open(t, conns, "x")
}

// The side that accepts has the same limit, whatever the other side says.
func TestTooManyFromAfar(t *testing.T) {
	refused := make(chan *slipwayv1.AgentFrame, 1)
	conns := sshagent.NewConns(func(f *slipwayv1.AgentFrame) error { refused <- f; return nil }, func(*sshagent.Conn) {})
	for i := range 65 {
		conns.Frame(&slipwayv1.AgentFrame{Connection: uint64(i + 1), AgentId: "x"})
	}
	if f := <-refused; f.Connection != 65 || !f.Close || f.Error == "" {
		t.Errorf("answer %v", f)
	}
	conns.Close(io.EOF)
}

// Connections that are opened side by side are heard of in the order of their
// numbers: the other side takes a lower one for one that has ended.
func TestOpensAreInOrder(t *testing.T) {
	var mu sync.Mutex
	var heard []uint64
	conns := sshagent.NewConns(func(f *slipwayv1.AgentFrame) error {
		runtime.Gosched() // others get their turn between the number and the frame
		mu.Lock()
		defer mu.Unlock()
		heard = append(heard, f.Connection)
		return nil
	}, nil)
	defer conns.Close(io.EOF)
	var opening sync.WaitGroup
	for range 60 {
		opening.Go(func() { open(t, conns, "default") })
	}
	opening.Wait()
	if len(heard) != 60 || !slices.IsSorted(heard) {
		t.Errorf("heard of %v", heard)
	}
}
