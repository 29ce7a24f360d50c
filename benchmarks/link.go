package main

import (
	"io"
	"net"
	"sync"
	"time"
)

// What lies between a build machine and a registry in another data centre.
const (
	linkRate  = 20_000_000            // bytes a second, each way, for all connections together
	linkDelay = 50 * time.Millisecond // there and back
)

// A link is a slow line to a server: a TCP proxy that lets so many bytes a
// second through and delivers them later. It models a line without loss, whose
// ends have windows large enough for it.
type link struct {
	addr   string
	target string
	delay  time.Duration // one way
	up     *line
	down   *line
	lis    net.Listener
	conns  sync.WaitGroup

	mu     sync.Mutex
	open   map[net.Conn]bool
	closed bool
}

// startLink opens a link to a server. Stop closes it.
func startLink(target string, rate float64, roundTrip time.Duration) (*link, error) {
	lis, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // loopback
	if err != nil {
		return nil, err
	}
	l := &link{
		addr: lis.Addr().String(), target: target, delay: roundTrip / 2, lis: lis, open: map[net.Conn]bool{},
		up: &line{rate: rate}, down: &line{rate: rate},
	}
	l.conns.Go(l.accept)
	return l, nil
}

func (l *link) accept() {
	for {
		near, err := l.lis.Accept()
		if err != nil {
			return
		}
		l.conns.Go(func() { l.serve(near) })
	}
}

// serve joins a connection with one to the server, which takes a round trip to
// open.
func (l *link) serve(near net.Conn) {
	defer l.forget(near)
	if !l.remember(near) {
		return
	}
	time.Sleep(2 * l.delay)
	far, err := net.Dial("tcp", l.target) //nolint:noctx // loopback
	if err != nil {
		return
	}
	defer l.forget(far)
	if !l.remember(far) {
		return
	}
	var both sync.WaitGroup
	both.Go(func() { carry(far, near, l.up, l.delay) })
	both.Go(func() { carry(near, far, l.down, l.delay) })
	both.Wait()
}

func (l *link) remember(c net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.open[c] = true
	return true
}

func (l *link) forget(c net.Conn) {
	l.mu.Lock()
	delete(l.open, c)
	l.mu.Unlock()
	_ = c.Close()
}

// stop closes the link and what goes through it.
func (l *link) stop() {
	_ = l.lis.Close()
	l.mu.Lock()
	l.closed = true
	for c := range l.open {
		_ = c.Close()
	}
	l.mu.Unlock()
	l.conns.Wait()
}

// A packet is on its way until at.
type packet struct {
	data []byte
	at   time.Time
}

const packetSize = 16 << 10

// carry copies one direction of a connection over a line, and closes what it
// writes to when what it reads from ends.
func carry(to io.Writer, from io.Reader, way *line, delay time.Duration) {
	flight := make(chan packet, 256) // more than is on a line at a time
	done := make(chan struct{})
	go func() {
		defer close(done)
		deliver(to, flight)
	}()
	for {
		buf := make([]byte, packetSize)
		n, err := from.Read(buf)
		if n > 0 {
			time.Sleep(way.take(n))
			flight <- packet{buf[:n], time.Now().Add(delay)}
		}
		if err != nil {
			break
		}
	}
	close(flight)
	<-done
}

// deliver writes packets when their time has come. After an error it drops them.
func deliver(to io.Writer, flight <-chan packet) {
	var failed error
	for p := range flight {
		time.Sleep(time.Until(p.at))
		if failed == nil {
			_, failed = to.Write(p.data)
		}
	}
	if half, ok := to.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
}

// slack is how much a line that was free makes up for, so that sleepers who wake
// late do not slow it.
const slack = 5 * time.Millisecond

// A line takes one byte after the other. It is safe for concurrent use.
type line struct {
	rate float64 // bytes a second

	mu   sync.Mutex
	free time.Time // when it has sent all that it took
}

// take returns how long n bytes need until they have been sent.
func (l *line) take(n int) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if least := now.Add(-slack); l.free.Before(least) {
		l.free = least
	}
	l.free = l.free.Add(time.Duration(float64(n) / l.rate * float64(time.Second)))
	return max(0, l.free.Sub(now))
}
