package registry

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sync/errgroup"
)

// A pending holds the files and directories that a power loss could still
// undo. Links are only worth keeping with the manifest that needs them: so each
// link notes here what it changed, and all is synced together, just before a
// manifest is stored.
type pending struct {
	mu    sync.Mutex
	last  uint64
	paths map[string]uint64 // path → number of its last change
}

// note remembers that a file, or the list of names in a directory, is new.
func (p *pending) note(paths ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.paths == nil {
		p.paths = make(map[string]uint64)
	}
	for _, path := range paths {
		p.last++
		p.paths[path] = p.last
	}
}

// mkdirAll makes a directory and its parents, and notes those that changed.
func (p *pending) mkdirAll(dir string) error {
	err := os.Mkdir(dir, 0o755)
	if errors.Is(err, fs.ErrNotExist) {
		if err = p.mkdirAll(filepath.Dir(dir)); err == nil {
			err = os.Mkdir(dir, 0o755)
		}
	}
	switch {
	case errors.Is(err, fs.ErrExist):
		return nil
	case err == nil:
		p.note(filepath.Dir(dir))
	}
	return err
}

// sync makes every change noted so far durable. A path stays noted until a
// sync that began after its last change has succeeded, so that whoever returns
// from sync need not care who did the work.
func (p *pending) sync() error {
	var g errgroup.Group
	g.SetLimit(16) // side by side, they share commits of the file system's journal
	for path, n := range p.snapshot() {
		g.Go(func() error {
			err := syncPath(path)
			if err == nil {
				p.done(path, n)
			}
			return err
		})
	}
	return g.Wait()
}

func (p *pending) snapshot() map[string]uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.paths)
}

func (p *pending) done(path string, n uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.paths[path] == n {
		delete(p.paths, path)
	}
}

// syncPath syncs a file or a directory. What is gone has nothing to lose.
func syncPath(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
