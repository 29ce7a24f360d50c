package client

import (
	"sync"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// Observer hears how a build goes on, one call at a time, in order. It must
// not block for long: what it keeps waiting is the build's stream.
type Observer interface {
	// Accepted tells the build's id before its first event.
	Accepted(id string, joined bool)
	// Event is called for each event once, also across lost connections.
	Event(*slipwayv1.Event)
	// Lost says that the connection broke and that the build is looked for.
	Lost(*Error)
	// Reattached says that events go on with the one numbered from.
	Reattached(from uint64)
	// Cancelling says that the daemon is being asked to stop the build.
	Cancelling()
}

// observed serialises the calls of an observer and remembers what the
// session needs to know of them.
type observed struct {
	mu          sync.Mutex
	to          Observer
	id          string
	seq         uint64 // of the last event
	contextDone bool
	result      *slipwayv1.Result
}

func (o *observed) accepted(a *slipwayv1.Accepted) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.id = a.GetBuildId()
	o.to.Accepted(o.id, a.GetJoined())
}

// event passes ev on unless it was passed on before. Events without a number
// are of the moment: they always pass.
func (o *observed) event(ev *slipwayv1.Event) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if seq := ev.GetSeq(); seq != 0 {
		if seq <= o.seq {
			return
		}
		o.seq = seq
	}
	if p := ev.GetPhase(); p.GetDone() && p.GetName() == slipwayv1.PhaseName_PHASE_NAME_CONTEXT {
		o.contextDone = true
	}
	o.to.Event(ev)
	if r := ev.GetResult(); r != nil {
		o.result = r
	}
}

func (o *observed) do(f func(Observer)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	f(o.to)
}

func (o *observed) build() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.id
}

func (o *observed) next() uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.seq + 1
}
