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
	never map[string]*refused // refs of builds that BuildKit will not hear of
	news  chan struct{}       // closed when there is one more of either
}

// A refused build is one that is over, or never began.
type refused struct {
	caller string
	err    error // for that caller
}

func newSolves() *solves {
	return &solves{all: map[string]*solve{}, never: map[string]*refused{}, news: make(chan struct{})}
}

// tell wakes who waits. The caller holds the lock.
func (x *solves) tell() {
	close(x.news)
	x.news = make(chan struct{})
}

// refusal is how long it is known that a build is over that BuildKit has no
// record of: clients ask for it while they ask to build it.
const refusal = 10 * time.Second

// refuse notes that there will be no build with a ref any more, and why.
func (x *solves) refuse(ref, caller string, err error) {
	if len(ref) > maxID {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	r := &refused{caller, err}
	x.never[ref] = r
	x.tell()
	time.AfterFunc(refusal, func() {
		x.mu.Lock()
		defer x.mu.Unlock()
		if x.never[ref] == r {
			delete(x.never, ref)
		}
	})
}

func (x *solves) add(s *solve) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.all[s.req.Ref] != nil {
		return status.Errorf(codes.AlreadyExists, "a build %s is under way: give each a ref of its own", s.req.Ref)
	}
	x.all[s.req.Ref] = s
	delete(x.never, s.req.Ref)
	x.tell()
	return nil
}

func (x *solves) remove(s *solve) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.all, s.req.Ref)
}

// wait returns the build with a ref, with patience for one that is about to
// come; nil if there is none. One that was refused it returns as such, else nil.
func (x *solves) wait(ctx context.Context, ref string, patience time.Duration) (*solve, *refused) {
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for {
		x.mu.Lock()
		s, never, news := x.all[ref], x.never[ref], x.news
		x.mu.Unlock()
		switch {
		case s != nil:
			return s, nil // what was refused had its ref, too
		case never != nil:
			return nil, never
		}
		select {
		case <-news:
		case <-timeout.C:
			return nil, nil
		case <-ctx.Done():
			return nil, nil
		}
	}
}
