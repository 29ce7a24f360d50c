package sandbox

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// maxInits is how many init directories wait for the next container.
const maxInits = 16

// An initPool keeps init directories from one container to the next: nothing
// writes to them, and to make one takes longer than to mount it. A directory
// is in one container at a time.
type initPool struct {
	dir string

	mu     sync.Mutex
	free   []initDir
	serial int
}

type initDir struct {
	path string
	like string // what its attributes were taken from
}

// take returns a directory for a container of the image. It is to be given
// back when nothing is mounted on it any more.
func (p *initPool) take(image stack) (initDir, error) {
	d := initDir{like: p.likeness(image)}
	p.mu.Lock()
	for i, have := range p.free {
		if have.like == d.like {
			p.free = append(p.free[:i], p.free[i+1:]...)
			p.mu.Unlock()
			now := time.Now()
			return have, os.Chtimes(filepath.Join(have.path, "etc"), now, now)
		}
	}
	p.serial++
	d.path = filepath.Join(p.dir, fmt.Sprintf(".init-%d", p.serial))
	p.mu.Unlock()
	if err := os.Mkdir(d.path, 0o755); err != nil {
		return d, err
	}
	if err := makeInit(d.path, image); err != nil {
		return d, fmt.Errorf("make init layer: %w", err)
	}
	return d, nil
}

// likeness stands for all that makeInit takes from the image.
func (p *initPool) likeness(image stack) string {
	var b strings.Builder
	for _, name := range imageDirs {
		var st unix.Stat_t
		if like, ok := image.dir(name); ok && unix.Lstat(like, &st) == nil {
			fmt.Fprintf(&b, "%d:%d:%d.%d", st.Dev, st.Ino, st.Ctim.Sec, st.Ctim.Nsec)
		}
		b.WriteByte(' ')
	}
	return b.String()
}

// give takes a directory back.
func (p *initPool) give(d initDir) error {
	p.mu.Lock()
	p.free = append(p.free, d)
	var old initDir
	if len(p.free) > maxInits {
		old, p.free = p.free[0], p.free[1:]
	}
	p.mu.Unlock()
	if old.path == "" {
		return nil
	}
	return os.RemoveAll(old.path)
}

// clear removes what waits.
func (p *initPool) clear() error {
	p.mu.Lock()
	free := p.free
	p.free = nil
	p.mu.Unlock()
	for _, d := range free {
		if err := os.RemoveAll(d.path); err != nil {
			return err
		}
	}
	return nil
}
