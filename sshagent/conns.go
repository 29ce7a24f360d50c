// Package sshagent carries connections to SSH agents over a build's stream.
// The daemon opens one for a process of a RUN step, the client joins it to the
// user's agent, and both let pass only what lists keys and signs. Read [Conns]
// first, then [Proxy].
package sshagent

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"sync"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

const (
	// maxConns is how many connections a build may have at a time.
	maxConns = 64
	// maxData is the most that a frame carries.
	maxData = 256 << 10
	// maxUnread is the most that waits to be read on a connection. An agent
	// hears one request at a time, so a message is all that can wait.
	maxUnread = 2 * (maxMessage + headSize)
)

// Reasons for which a connection is not opened, or ends.
var (
	ErrTooMany  = fmt.Errorf("more than %d connections to SSH agents at a time", maxConns)
	ErrOverflow = errors.New("the other side sent more than an SSH agent's messages may hold")
	ErrProtocol = errors.New("the other side broke the protocol of SSH agents")
)

// Conns are a build's connections, on one side of its stream. It is safe for
// concurrent use. Each connection must be closed; Close ends them all.
type Conns struct {
	send   func(*slipwayv1.AgentFrame) error
	accept func(*Conn)

	opening sync.Mutex // held by Open: the other side hears of connections in the order of their numbers

	mu    sync.Mutex
	open  map[uint64]*Conn
	last  uint64 // number of the newest connection
	ended error  // why there are no more
}

// NewConns returns a build's connections. Frames for the other side go to
// send. A connection that the other side opens goes to accept, which must
// return at once; nil accepts none.
func NewConns(send func(*slipwayv1.AgentFrame) error, accept func(*Conn)) *Conns {
	return &Conns{send: send, accept: accept, open: map[uint64]*Conn{}}
}

// Open opens a connection to the agent that the other side knows by id.
func (c *Conns) Open(id string) (*Conn, error) {
	c.opening.Lock()
	defer c.opening.Unlock()
	c.mu.Lock()
	conn, err := c.add(c.last+1, id)
	c.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if err := c.send(&slipwayv1.AgentFrame{Connection: conn.number, AgentId: id}); err != nil {
		conn.end(err, true)
		return nil, err
	}
	return conn, nil
}

// add makes a connection. The lock is held.
func (c *Conns) add(number uint64, id string) (*Conn, error) {
	if c.ended != nil {
		return nil, c.ended
	}
	if len(c.open) >= maxConns {
		return nil, ErrTooMany
	}
	conn := &Conn{conns: c, number: number, id: id, ended: make(chan struct{}), arrived: make(chan struct{}, 1)}
	c.open[number] = conn
	c.last = number
	return conn, nil
}

// Frame takes what the other side said. It never waits: a connection that
// nobody reads from ends when it holds too much.
func (c *Conns) Frame(f *slipwayv1.AgentFrame) {
	c.mu.Lock()
	conn := c.open[f.GetConnection()]
	fresh := conn == nil && c.accept != nil && f.GetConnection() > c.last && !f.GetClose()
	var err error
	if fresh {
		conn, err = c.add(f.GetConnection(), f.GetAgentId())
	}
	c.mu.Unlock()
	if conn == nil {
		if err != nil {
			go c.refuse(f.GetConnection(), err) // a send may wait
		}
		return // of a connection that has ended
	}
	conn.take(f.GetData())
	if f.GetClose() {
		cause := io.EOF
		if f.GetError() != "" {
			cause = errors.New(f.GetError())
		}
		conn.end(cause, true)
	}
	if fresh {
		c.accept(conn)
	}
}

func (c *Conns) refuse(number uint64, err error) {
	_ = c.send(&slipwayv1.AgentFrame{Connection: number, Close: true, Error: err.Error()}) // a stream that broke says more
}

// Close ends every connection with cause, and keeps new ones from being
// opened. It sends nothing.
func (c *Conns) Close(cause error) {
	c.mu.Lock()
	if c.ended == nil {
		c.ended = cause
	}
	var open []*Conn
	for _, conn := range c.open {
		open = append(open, conn)
	}
	c.mu.Unlock()
	for _, conn := range open {
		conn.end(cause, true)
	}
}

// A Conn is one connection. One goroutine may read while another writes.
type Conn struct {
	conns  *Conns
	number uint64
	id     string
	ended  chan struct{} // closed when cause is set

	mu      sync.Mutex
	unread  []byte
	arrived chan struct{} // has room for one signal
	cause   error
	told    bool // the other side knows of the end, or cannot be reached
}

// ID is the agent's.
func (c *Conn) ID() string { return c.id }

// Ended is closed when the connection has ended, on whichever side.
func (c *Conn) Ended() <-chan struct{} { return c.ended }

// Read implements io.Reader. What has arrived can be read after the end.
func (c *Conn) Read(p []byte) (int, error) {
	for {
		c.mu.Lock()
		n := copy(p, c.unread)
		c.unread = c.unread[n:]
		cause := c.cause
		c.mu.Unlock()
		if n > 0 || len(p) == 0 {
			return n, nil
		}
		if cause != nil {
			return 0, cause
		}
		select {
		case <-c.arrived:
		case <-c.ended:
		}
	}
}

// Write implements io.Writer.
func (c *Conn) Write(p []byte) (int, error) {
	sent := 0
	for sent < len(p) {
		if err := c.why(); err != nil {
			return sent, err
		}
		data := p[sent:min(len(p), sent+maxData)]
		if err := c.conns.send(&slipwayv1.AgentFrame{Connection: c.number, Data: data}); err != nil {
			c.end(err, true)
			return sent, err
		}
		sent += len(data)
	}
	return sent, nil
}

// Close ends the connection on both sides.
func (c *Conn) Close() error { return c.CloseWith(nil) }

// CloseWith is Close that tells the other side why; nil is no reason.
func (c *Conn) CloseWith(reason error) error {
	c.mu.Lock()
	told, was := c.told, c.cause
	c.told = true
	c.mu.Unlock()
	c.end(io.ErrClosedPipe, true)
	if told {
		return nil
	}
	f := &slipwayv1.AgentFrame{Connection: c.number, Close: true}
	if reason = cmp.Or(reason, was); reason != nil {
		f.Error = reason.Error()
	}
	return c.conns.send(f)
}

func (c *Conn) why() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cause
}

// take keeps what arrived until it is read.
func (c *Conn) take(data []byte) {
	c.mu.Lock()
	over := len(c.unread)+len(data) > maxUnread
	if c.cause == nil && !over {
		c.unread = append(c.unread, data...)
	}
	c.mu.Unlock()
	if over {
		c.end(ErrOverflow, false)
		return
	}
	select {
	case c.arrived <- struct{}{}:
	default: // whoever reads has a signal to see already
	}
}

// end ends the connection here; told, that the other side knows or cannot be
// reached. The first cause stays.
func (c *Conn) end(cause error, told bool) {
	c.mu.Lock()
	c.told = c.told || told
	if c.cause == nil {
		c.cause = cause
		close(c.ended)
	}
	c.mu.Unlock()
	c.conns.mu.Lock()
	delete(c.conns.open, c.number)
	c.conns.mu.Unlock()
}
