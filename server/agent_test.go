package server_test

import (
	"context"
	"crypto/ed25519"
	"errors"
	"io"
	"sync"
	"testing"

	"golang.org/x/crypto/ssh/agent"

	"github.com/slipwayhq/slipway/builder"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
	"github.com/slipwayhq/slipway/sshagent"
)

// agents answers for a client's agents on a call until it ends.
func (c *call) agents(serve func(*sshagent.Conn)) *slipwayv1.Result {
	var sending sync.Mutex
	var serving sync.WaitGroup
	defer serving.Wait()
	conns := sshagent.NewConns(func(f *slipwayv1.AgentFrame) error {
		sending.Lock()
		defer sending.Unlock()
		return c.stream.Send(&slipwayv1.BuildRequest{Message: &slipwayv1.BuildRequest_Agent{Agent: f}})
	}, func(conn *sshagent.Conn) { serving.Go(func() { serve(conn) }) })
	defer conns.Close(io.EOF)
	var res *slipwayv1.Result
	err := c.recv(func(m *slipwayv1.BuildResponse) bool {
		if f := m.GetAgent(); f != nil {
			conns.Frame(f)
		}
		res = m.GetEvent().GetResult()
		return res != nil
	})
	check(c.t, err)
	return res
}

func keyring(t *testing.T) agent.ExtendedAgent {
	_, key, err := ed25519.GenerateKey(nil)
	check(t, err)
	keys := agent.NewKeyring()
	check(t, keys.Add(agent.AddedKey{PrivateKey: key, Comment: "a key of the test"}))
	return keys.(agent.ExtendedAgent)
}

func withAgents(s *slipwayv1.Start, ids ...string) *slipwayv1.Start {
	s.AgentIds = ids
	return s
}

// Steps sign with the client's keys, several at once, and change nothing.
func TestAgent(t *testing.T) {
	keys := keyring(t)
	d := start(t, &script{build: func(ctx context.Context, job *builder.Job) (*builder.Image, error) {
		var steps sync.WaitGroup
		for range 8 {
			steps.Go(func() {
				conn, err := job.Session.Agent(ctx, "default")
				if err != nil {
					t.Error(err)
					return
				}
				defer conn.Close()
				a := agent.NewClient(conn)
				have, err := a.List()
				if err != nil || len(have) != 1 || have[0].Comment != "a key of the test" {
					t.Errorf("keys %v, %v", have, err)
					return
				}
				sig, err := a.Sign(have[0], []byte("data"))
				if err != nil || have[0].Verify([]byte("data"), sig) != nil {
					t.Errorf("signature: %v", err)
				}
				if a.RemoveAll() == nil {
					t.Error("a step may remove keys")
				}
			})
		}
		steps.Wait()
		if _, err := job.Session.Agent(ctx, "other"); err == nil {
			t.Error("an agent that nobody forwards answers")
		}
		return image(ctx, job, "hello")
	}}, 1)
	c := d.call("acme", withAgents(shop(), "default"))
	res := c.agents(func(conn *sshagent.Conn) {
		if conn.ID() != "default" {
			t.Errorf("agent %q", conn.ID())
		}
		check(t, sshagent.Serve(conn, keys))
	})
	if res.Error != nil {
		t.Error(res.Error)
	}
	if left, err := keys.List(); err != nil || len(left) != 1 {
		t.Errorf("the agent has %d keys left, %v", len(left), err)
	}
}

// An agent that does not answer holds up nobody else, and the end of the
// build ends the request.
func TestAgentThatPonders(t *testing.T) {
	asked := make(chan struct{})
	d := start(t, &script{build: func(ctx context.Context, job *builder.Job) (*builder.Image, error) {
		slow, err := job.Session.Agent(ctx, "slow")
		if err != nil {
			return nil, err
		}
		// Nobody reads the answer, nor closes the connection.
		if _, err := slow.Write([]byte{0, 0, 0, 1, 11}); err != nil {
			return nil, err
		}
		<-asked
		quick, err := job.Session.Agent(ctx, "quick")
		if err != nil {
			return nil, err
		}
		defer quick.Close()
		if have, err := agent.NewClient(quick).List(); err != nil || len(have) != 1 {
			t.Errorf("keys %v, %v", have, err)
		}
		if err := job.Session.Need(ctx, []int{0}); err != nil {
			return nil, err
		}
		return image(ctx, job, "hello")
	}}, 1)
	src := scan(t, map[string]string{"a": "one"})
	c := d.call("acme", withAgents(withContext(shop()), "slow", "quick"))
	c.manifest(src)
	keys := keyring(t)
	ended := make(chan struct{})
	conns := sshagent.NewConns(func(f *slipwayv1.AgentFrame) error {
		return c.stream.Send(&slipwayv1.BuildRequest{Message: &slipwayv1.BuildRequest_Agent{Agent: f}})
	}, func(conn *sshagent.Conn) {
		go func() {
			if conn.ID() == "quick" {
				sshagent.Serve(conn, keys)
				return
			}
			io.ReadFull(conn, make([]byte, 5))
			close(asked)
			<-conn.Ended()
			close(ended)
		}()
	})
	check(t, c.recv(func(m *slipwayv1.BuildResponse) bool {
		if m.GetAgent() != nil {
			conns.Frame(m.GetAgent())
		}
		return wantMsg(m)
	}))
	c.serveWant(src, c.wants[0])
	check(t, c.recv(func(m *slipwayv1.BuildResponse) bool {
		if m.GetAgent() != nil {
			conns.Frame(m.GetAgent())
		}
		return m.GetEvent().GetResult() != nil
	}))
	if res := c.events[len(c.events)-1].GetResult(); res.Error != nil {
		t.Error(res.Error)
	}
	conns.Close(io.EOF)
	<-ended
	d.drain() // the build's own goroutines end
}

// When the client goes, so do the connections to its agents.
func TestAgentOfAClientThatGoes(t *testing.T) {
	open, closed := make(chan struct{}), make(chan error, 1)
	d := start(t, &script{build: func(ctx context.Context, job *builder.Job) (*builder.Image, error) {
		conn, err := job.Session.Agent(ctx, "default")
		if err != nil {
			return nil, err
		}
		close(open)
		_, err = conn.Read(make([]byte, 1))
		closed <- err
		if _, err := job.Session.Agent(ctx, "default"); err == nil {
			t.Error("a client that has gone forwards its agent")
		}
		return image(ctx, job, "hello")
	}}, 1)
	c := d.call("acme", withAgents(shop(), "default"))
	<-open
	c.cancel()
	if err := <-closed; !errors.Is(err, io.EOF) {
		t.Errorf("the step sees %v", err)
	}
	d.watch(c.id)
}
