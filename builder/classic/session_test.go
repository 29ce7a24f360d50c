package classic_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/slipwayhq/slipway/buildctx"
	"github.com/slipwayhq/slipway/layercache"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// A session is a client in this process: contents go from its directory
// straight into the store.
type session struct {
	world *world
	dir   *buildctx.Dir
	store *layercache.Contents

	mu     sync.Mutex
	events []*slipwayv1.Event
	needed map[string]bool // paths whose content was asked for
}

func newSession(w *world, org, dir string) *session {
	w.tb.Helper()
	d, err := buildctx.Scan(w.tb.Context(), dir, nil)
	w.must(err)
	return &session{world: w, dir: d, store: w.cache.Org(org).Contents(), needed: map[string]bool{}}
}

func (s *session) close() { s.world.must(s.dir.Close()) }

func (s *session) Manifest(context.Context) (*buildctx.Manifest, error) { return s.dir.Manifest, nil }

func (s *session) Need(ctx context.Context, groups ...[]int) error {
	w := s.store.Writer(ctx)
	for _, i := range slices.Concat(groups...) {
		e := &s.dir.Entries[i]
		s.mu.Lock()
		s.needed[e.Path] = true
		s.mu.Unlock()
		if s.world.onNeed != nil {
			s.world.onNeed(e.Path)
		}
		r, err := s.dir.Open(e)
		if err != nil {
			return err
		}
		err = w.Add(e.Content(), e.Size, r)
		r.Close()
		if err != nil {
			return err
		}
	}
	return w.Flush(ctx)
}

func (s *session) Credentials(context.Context, string) (authn.AuthConfig, error) {
	return authn.AuthConfig{}, nil
}

func (s *session) Context() *slipwayv1.ContextProgress { return &slipwayv1.ContextProgress{} }

func (s *session) Emit(e *slipwayv1.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, e)
	if s.world.onEmit != nil {
		s.world.onEmit(e)
	}
}

// write makes files below dir: a directory if the name ends in a slash, a
// symbolic link if the text begins with "->".
func (w *world) write(dir string, files map[string]string) {
	w.tb.Helper()
	for name, text := range files {
		at := filepath.Join(dir, name)
		w.must(os.MkdirAll(filepath.Dir(at), 0o755))
		target, link := strings.CutPrefix(text, "->")
		switch {
		case strings.HasSuffix(name, "/"):
			w.must(os.MkdirAll(at, 0o755))
		case link:
			w.must(os.Symlink(target, at))
		default:
			w.must(os.WriteFile(at, []byte(text), 0o644))
		}
	}
}
