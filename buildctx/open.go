package buildctx

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"
)

// An opener opens files below a directory for many goroutines. Nothing that
// is swapped for a symbolic link can lead out of there. It keeps directories
// open, since files are asked for in walk order.
type opener struct {
	root *os.Root

	mu     sync.Mutex
	idle   []dirHandle
	closed bool
}

type dirHandle struct {
	path string
	root *os.Root
}

// maxIdle is how many directories an opener keeps open between calls.
const maxIdle = 32

func newOpener(root *os.Root) *opener { return &opener{root: root} }

func (o *opener) close() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, h := range o.idle {
		h.root.Close()
	}
	o.idle, o.closed = nil, true
	return o.root.Close()
}

// open opens a regular file. A path that leads to anything else, or nowhere,
// is a [ChangedError].
func (o *opener) open(path string) (*os.File, fs.FileInfo, error) {
	f, err := o.openAny(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, &ChangedError{Path: path, Reason: "it is gone"}
	}
	if err != nil {
		return nil, nil, &walkError{path, err}
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = &ChangedError{Path: path, Reason: "it is no longer a regular file"}
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, fi, nil
}

func (o *opener) openAny(path string) (*os.File, error) {
	slash := strings.LastIndexByte(path, '/')
	if slash < 0 {
		return o.root.OpenFile(path, readFlags, 0)
	}
	h, err := o.take(path[:slash])
	if err != nil {
		return nil, err
	}
	defer o.give(h)
	return h.root.OpenFile(path[slash+1:], readFlags, 0)
}

// take returns a directory for the caller alone.
func (o *opener) take(path string) (dirHandle, error) {
	o.mu.Lock()
	for i, h := range o.idle {
		if h.path == path {
			last := len(o.idle) - 1
			o.idle[i] = o.idle[last]
			o.idle = o.idle[:last]
			o.mu.Unlock()
			return h, nil
		}
	}
	o.mu.Unlock()
	root, err := o.root.OpenRoot(path)
	return dirHandle{path, root}, err
}

// give takes a directory back, dropping the one unused for longest if there
// are too many.
func (o *opener) give(h dirHandle) {
	o.mu.Lock()
	var drop *os.Root
	if o.closed {
		drop = h.root
	} else {
		if len(o.idle) == maxIdle {
			drop = o.idle[0].root
			o.idle = append(o.idle[:0], o.idle[1:]...)
		}
		o.idle = append(o.idle, h)
	}
	o.mu.Unlock()
	if drop != nil {
		drop.Close()
	}
}

// Open opens the content of a file of the directory. It makes Dir a [Source].
func (d *Dir) Open(e *Entry) (io.ReadCloser, error) {
	f, _, err := d.files.open(e.Path)
	if err != nil {
		return nil, err
	}
	return f, nil
}
