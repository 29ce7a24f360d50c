package server

import (
	"context"
	"io"
	"net"
	"slices"

	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/sshagent"
)

// Agent implements builder.Session. Only what lists keys and signs gets
// through.
func (s *session) Agent(ctx context.Context, id string) (io.ReadWriteCloser, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	if !slices.Contains(s.start.AgentIds, id) {
		return nil, failure.Userf(failure.InvalidArgument, "give --ssh "+id, "the client forwards no SSH agent %s", id)
	}
	conn, err := s.agents.Open(id)
	if err != nil {
		return nil, err
	}
	outer, inner := net.Pipe()
	s.serving.Go(func() { _ = sshagent.Proxy(inner, conn) }) // either side sees its end of the connection end
	s.serving.Go(func() {
		<-conn.Ended()
		inner.Close()
	})
	return &agentConn{outer, conn}, nil
}

// An agentConn is a step's end of a connection to an agent.
type agentConn struct {
	net.Conn
	to *sshagent.Conn
}

// Close also ends a request that the agent still ponders.
func (c *agentConn) Close() error {
	err := c.Conn.Close()
	if cerr := c.to.Close(); err == nil {
		err = cerr
	}
	return err
}
