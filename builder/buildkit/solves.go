package buildkit

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// solves are the builds of an org's clients under way, by the refs that clients
// give them.
type solves struct {
	mu    sync.Mutex
	all   map[string]*solve
	added chan struct{} // closed when there is one more
}

func newSolves() *solves { return &solves{all: map[string]*solve{}, added: make(chan struct{})} }

func (x *solves) add(s *solve) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.all[s.req.Ref] != nil {
		return status.Errorf(codes.AlreadyExists, "a build %s is under way: give each a ref of its own", s.req.Ref)
	}
	x.all[s.req.Ref] = s
	close(x.added)
	x.added = make(chan struct{})
	return nil
}

func (x *solves) remove(s *solve) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.all, s.req.Ref)
}

// get returns the build with a ref, nil if there is none.
func (x *solves) get(ref string) *solve {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.all[ref]
}

// wait is get, with patience for a build that is about to come.
func (x *solves) wait(ctx context.Context, ref string, patience time.Duration) *solve {
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for {
		x.mu.Lock()
		s, added := x.all[ref], x.added
		x.mu.Unlock()
		if s != nil {
			return s
		}
		select {
		case <-added:
		case <-timeout.C:
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}
