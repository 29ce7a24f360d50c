package main

import (
	"bytes"
	"crypto/rand"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// A line must be as slow as it says, and lose nothing.
func TestCarry(t *testing.T) {
	const size, delay = 5_000_000, 25 * time.Millisecond
	data := make([]byte, size)
	_, _ = rand.Read(data)
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		to := &clocked{begun: begun}
		carry(to, bytes.NewReader(data), &line{rate: 20_000_000}, delay)
		if !bytes.Equal(to.Bytes(), data) {
			t.Error("what arrived is not what was sent")
		}
		if want := 250*time.Millisecond + delay; time.Since(begun) < want-slack || time.Since(begun) > want+slack {
			t.Errorf("took %v, want %v", time.Since(begun), want)
		}
		if to.first < delay {
			t.Errorf("the first byte arrived after %v", to.first)
		}
	})
}

type clocked struct {
	bytes.Buffer
	begun time.Time
	first time.Duration
}

func (c *clocked) Write(p []byte) (int, error) {
	if c.first == 0 {
		c.first = time.Since(c.begun)
	}
	return c.Buffer.Write(p)
}

// Connections share a line.
func TestLineIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, begun := &line{rate: 1_000_000}, time.Now()
		done := make(chan struct{})
		for range 4 {
			go func() {
				carry(io.Discard, bytes.NewReader(make([]byte, 250_000)), l, 0)
				done <- struct{}{}
			}()
		}
		for range 4 {
			<-done
		}
		if took := time.Since(begun); took < time.Second-slack || took > time.Second+slack {
			t.Errorf("a million bytes took %v, want a second", took)
		}
	})
}

// A link carries both ways, says when an end has closed, and can be stopped
// while it is in use.
func TestLink(t *testing.T) {
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	go func() {
		for {
			c, err := server.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	l, err := startLink(server.Addr().String(), 100_000_000, time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", l.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "echo"); err != nil {
		t.Fatal(err)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(c); err != nil || string(got) != "echo" {
		t.Errorf("read %q, %v", got, err)
	}
	idle, err := net.Dial("tcp", l.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	l.stop()
	if _, err := idle.Read(make([]byte, 1)); err == nil {
		t.Error("a connection outlives its link")
	}
}
