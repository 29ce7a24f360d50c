package sandbox

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// maxConnections is how many connections to one socket are served at once.
const maxConnections = 16

// listen makes the socket of m in dir and serves it until the bundle is closed.
func (s *bundle) listen(ctx context.Context, dir string, m *Mount) (string, error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	l, err := listenIn(dir, "sock")
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithCancel(ctx)
	r := &relay{dial: m.Dial, slots: make(chan struct{}, maxConnections)}
	r.running.Go(func() { r.serve(ctx, l) })
	s.undo = append(s.undo, func(context.Context) error {
		cancel()
		err := l.Close()
		r.running.Wait()
		return err
	})
	file := filepath.Join(dir, "sock")
	return file, own(file, m)
}

// listenIn listens on a socket whose path may be longer than a socket's address.
func listenIn(dir, name string) (*net.UnixListener, error) {
	f, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: fmt.Sprintf("/proc/self/fd/%d/%s", f.Fd(), name)})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // by then the number is another file's
	return l, nil
}

// A relay passes on what comes over a socket.
type relay struct {
	dial    func(context.Context) (io.ReadWriteCloser, error)
	slots   chan struct{}
	running sync.WaitGroup
}

func (r *relay) serve(ctx context.Context, l *net.UnixListener) {
	for {
		select {
		case r.slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		c, err := l.Accept()
		if err != nil {
			return // closed
		}
		r.running.Go(func() {
			defer func() { <-r.slots }()
			r.connect(ctx, c)
		})
	}
}

// connect passes bytes both ways until one end is done.
func (r *relay) connect(ctx context.Context, near net.Conn) {
	defer near.Close()
	far, err := r.dial(ctx)
	if err != nil {
		return // the process sees the connection closed
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var copies sync.WaitGroup
	for _, pair := range [][2]io.ReadWriter{{far, near}, {near, far}} {
		copies.Go(func() {
			defer cancel()
			_, _ = io.Copy(pair[0], pair[1])
		})
	}
	<-ctx.Done()
	near.Close()
	far.Close()
	copies.Wait()
}
