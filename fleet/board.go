package fleet

import (
	"cmp"
	"context"
	"iter"
	"slices"
	"sync"
)

// A state is how far a job has come.
type state string

const (
	expected state = ""        // not known yet
	queued   state = "queued"  // waits
	running  state = "running" // a worker has it
	done     state = "done"
	removed  state = "removed" // taken out before it started
)

// A board is what an engine knows of the queue: which jobs wait and run, in
// lanes, one an org. It decides who is next; whether a job may start is decided
// by its record alone, so a board may lag behind.
//
// Records change by compare-and-set, so each has a revision, and what the board
// hears may be late. Two rules keep it right: who reads or changes a record calls
// expect first and update afterwards, and only observe, which is fed with every
// change in order, makes a job known or forgotten.
type board struct {
	owner string // this engine
	solo  bool   // no other engine is alive: jobs of others are orphans

	mu      sync.Mutex
	jobs    map[string]*job
	lanes   map[string]*lane
	changed chan struct{} // closed at the next change
}

// A job is on the board from before its record is written until its end.
type job struct {
	id, org string
	seq     uint64 // its place among all jobs
	rev     uint64 // of the record; 0 while expected
	state   state
	orphan  bool // waits because the process that ran it is gone
	foreign bool // runs in another engine
}

// A lane holds the jobs of an org. It stays when it has none, so that an org
// which submits one job at a time takes turns like the others.
type lane struct {
	org     string
	waiting []*job // by seq
	running int
	foreign int    // those of running that another engine runs
	orphans int    // those of waiting
	served  uint64 // revision at which a job started last
}

func newBoard(owner string, solo bool) *board {
	return &board{
		owner: owner, solo: solo,
		jobs:    map[string]*job{},
		lanes:   map[string]*lane{},
		changed: make(chan struct{}),
	}
}

// expect makes room for a job whose record is about to be read or written.
func (b *board) expect(id, org string, seq uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.jobs[id] == nil {
		b.jobs[id] = &job{id: id, org: org, seq: seq}
	}
}

// forget takes back expect.
func (b *board) forget(id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if j := b.jobs[id]; j != nil && j.rev == 0 {
		delete(b.jobs, id)
	}
}

// update tells of a record that the caller read or wrote at revision rev.
func (b *board) update(id string, r record, rev uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if j := b.jobs[id]; j != nil {
		b.move(j, r, rev)
	}
}

// observe tells of a change; every change comes by here once, in order.
func (b *board) observe(id string, r record, rev uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	j := b.jobs[id]
	if j == nil {
		if r.ended() {
			return
		}
		j = &job{id: id}
		b.jobs[id] = j
	}
	b.move(j, r, rev)
	if r.ended() {
		delete(b.jobs, id)
	}
}

func (b *board) move(j *job, r record, rev uint64) {
	if rev <= j.rev {
		return
	}
	b.lift(j)
	j.org, j.seq, j.rev, j.state = r.Org, r.Seq, rev, r.State
	other := r.State == running && r.Owner != b.owner
	j.orphan, j.foreign = other && b.solo, other && !b.solo
	if j.orphan {
		j.state = queued
	}
	b.put(j)
	close(b.changed)
	b.changed = make(chan struct{})
}

// lift takes a job from its lane.
func (b *board) lift(j *job) {
	l := b.lanes[j.org]
	switch {
	case l == nil:
		return
	case j.state == queued:
		if i, ok := l.find(j); ok {
			l.waiting = slices.Delete(l.waiting, i, i+1)
		}
		l.orphans -= count(j.orphan)
	case j.state == running:
		l.running--
		l.foreign -= count(j.foreign)
	}
}

// put adds a job to its lane.
func (b *board) put(j *job) {
	if j.state != queued && j.state != running {
		return
	}
	l := b.lanes[j.org]
	if l == nil {
		l = &lane{org: j.org}
		b.lanes[j.org] = l
	}
	if j.state == running {
		l.running++
		l.foreign += count(j.foreign)
		l.served = max(l.served, j.rev)
		return
	}
	i, _ := l.find(j)
	l.waiting = slices.Insert(l.waiting, i, j)
	l.orphans += count(j.orphan)
}

func (l *lane) find(j *job) (int, bool) {
	return slices.BinarySearchFunc(l.waiting, j.seq, func(j *job, seq uint64) int { return cmp.Compare(j.seq, seq) })
}

func count(b bool) int {
	if b {
		return 1
	}
	return 0
}

// candidates returns the orgs that have a job waiting, whose turn it is first,
// and a channel that closes at the next change.
func (b *board) candidates() ([]string, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var lanes []*lane
	for _, l := range b.lanes {
		if len(l.waiting) > 0 {
			lanes = append(lanes, l)
		}
	}
	slices.SortFunc(lanes, func(x, y *lane) int {
		return cmp.Or(
			cmp.Compare(count(y.orphans > 0), count(x.orphans > 0)), // somebody waits to hear how they ended
			cmp.Compare(x.running, y.running),
			cmp.Compare(x.served, y.served),
			cmp.Compare(x.waiting[0].seq, y.waiting[0].seq),
		)
	})
	orgs := make([]string, len(lanes))
	for i, l := range lanes {
		orgs[i] = l.org
	}
	return orgs, b.changed
}

// foreign returns the orgs that have a job running in another engine.
func (b *board) foreign() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var orgs []string
	for _, l := range b.lanes {
		if l.foreign > 0 {
			orgs = append(orgs, l.org)
		}
	}
	return orgs
}

// head returns the ID of the org's next job.
func (b *board) head(org string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.lanes[org].waiting[0].id
}

// place returns a job's state, its place in the queue, and a channel that closes
// when they may have changed.
func (b *board) place(id string) (state, int, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	j := b.jobs[id]
	if j == nil {
		return expected, 0, b.changed
	}
	if j.state != queued {
		return j.state, 0, b.changed
	}
	return queued, b.ahead(j) + 1, b.changed
}

// ahead counts the jobs that start before j if nothing ends or comes. Each start
// adds to what an org has running, so the k-th job of an org starts when every
// other org has running+k jobs too, or one more where it goes first.
func (b *board) ahead(j *job) int {
	l := b.lanes[j.org]
	k, _ := l.find(j)
	n := k
	for _, o := range b.lanes {
		if o == l || len(o.waiting) == 0 {
			continue
		}
		first := cmp.Or( // who has come that far earlier
			cmp.Compare(l.running, o.running),
			cmp.Compare(o.served, l.served),
			cmp.Compare(o.waiting[0].seq, l.waiting[0].seq),
		) < 0
		n += min(max(l.running+k-o.running+count(first), 0), len(o.waiting))
	}
	return n
}

// positions implements [Engine.Positions]. It asks find for a job that is not on
// the board; find tells the board what it learns.
func (b *board) positions(ctx context.Context, id string, find func(context.Context) (state, error)) iter.Seq2[int, error] {
	return func(yield func(int, error) bool) {
		for last := -1; ; {
			st, pos, changed := b.place(id)
			if st == expected {
				var err error
				if st, err = find(ctx); err != nil {
					yield(0, err)
					return
				}
				if st == queued {
					continue
				}
			}
			switch {
			case st == removed:
				yield(0, ErrRemoved)
				return
			case st != queued:
				yield(0, nil)
				return
			case pos != last && !yield(pos, nil):
				return
			}
			last = pos
			select {
			case <-changed:
			case <-ctx.Done():
				yield(0, context.Cause(ctx))
				return
			}
		}
	}
}
