package server

import (
	"context"
	"sync"
	"time"

	"github.com/slipwayhq/slipway/builder/failure"
)

// grace is how long a build goes on without anybody who watches it.
const grace = 60 * time.Second

// A hub knows the sessions of this process: the front leaves them there, the
// worker that gets the job picks them up. It also ends builds that nobody
// watches any more.
type hub struct {
	grace    time.Duration
	abandon  func(id string, cause *failure.Error) // ends a build that nobody watches
	mu       sync.Mutex
	sessions map[string]*session
	watchers map[string]int
	timers   map[string]*time.Timer
	ends     map[string]func() // called when a session is removed
}

func newHub(wait time.Duration) *hub {
	if wait == 0 {
		wait = grace
	}
	return &hub{grace: wait, sessions: map[string]*session{}, watchers: map[string]int{}, timers: map[string]*time.Timer{}, ends: map[string]func(){}}
}

func (h *hub) add(s *session) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sessions[s.id] = s
}

func (h *hub) get(id string) *session {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.sessions[id]
}

// atEnd has f called when the session is removed.
func (h *hub) atEnd(id string, f func()) {
	h.mu.Lock()
	_, there := h.sessions[id]
	if there {
		h.ends[id] = f
	}
	h.mu.Unlock()
	if !there {
		f()
	}
}

// remove forgets a session whose build has ended, and tells who waits for that.
func (h *hub) remove(id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if end := h.ends[id]; end != nil {
		delete(h.ends, id)
		defer end()
	}
	if s := h.sessions[id]; s != nil {
		close(s.over)
	}
	delete(h.sessions, id)
	delete(h.watchers, id)
	if t := h.timers[id]; t != nil {
		t.Stop()
		delete(h.timers, id)
	}
}

// all returns the sessions there are.
func (h *hub) all() []*session {
	h.mu.Lock()
	defer h.mu.Unlock()
	var all []*session
	for _, s := range h.sessions {
		all = append(all, s)
	}
	return all
}

// watch counts somebody who follows the build. The returned function ends
// that; when the last one has gone, the build is cancelled after the grace
// period, unless it is detached.
func (h *hub) watch(id string) (leave func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.watchers[id]++
	if t := h.timers[id]; t != nil {
		t.Stop()
		delete(h.timers, id)
	}
	return sync.OnceFunc(func() { h.unwatch(id) })
}

func (h *hub) unwatch(id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.watchers[id]--; h.watchers[id] > 0 {
		return
	}
	delete(h.watchers, id)
	s := h.sessions[id]
	if s == nil || s.start.Detach {
		return
	}
	var timer *time.Timer
	timer = time.AfterFunc(h.grace, func() {
		if h.expire(id, &timer) {
			h.abandon(id, errAbandoned)
		}
	})
	h.timers[id] = timer
}

var errAbandoned = &failure.Error{
	Code: failure.Cancelled, Blame: failure.Net, Retryable: true, Err: context.Canceled,
	Message: "the client has gone and did not come back",
	Hint:    "deploy with --detach to let builds go on alone",
}

// expire reports whether a timer that has fired still counts: somebody may
// have come back in the meantime. The timer itself is set under the lock.
func (h *hub) expire(id string, timer **time.Timer) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.timers[id] != *timer {
		return false
	}
	delete(h.timers, id)
	return true
}
