package fleet

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
)

// Memory is an [Engine] that keeps everything in memory and forgets it with the
// process: for tests of code that needs an engine. It orders jobs like [JetStream].
type Memory struct {
	opts  *Options
	board *board

	mu      sync.Mutex
	rev     uint64
	jobs    map[string]Job
	records map[string]record
	logs    map[string]*memoryLog
	ears    map[string][]chan []byte
	closed  chan struct{}
}

var _ Engine = (*Memory)(nil)

// NewMemory returns an empty engine. Of the options it heeds Backlog.
func NewMemory(opts *Options) *Memory {
	return &Memory{
		opts:    opts,
		board:   newBoard("memory", true),
		jobs:    map[string]Job{},
		records: map[string]record{},
		logs:    map[string]*memoryLog{},
		ears:    map[string][]chan []byte{},
		closed:  make(chan struct{}),
	}
}

func (m *Memory) isClosed() bool {
	select {
	case <-m.closed:
		return true
	default:
		return false
	}
}

// write stores a record and puts it on the board. It is called under mu.
func (m *Memory) write(id string, r record) {
	m.rev++
	if r.State == queued {
		r.Seq = m.rev
	}
	m.records[id] = r
	m.board.observe(id, r, m.rev)
}

// Submit implements [Engine].
func (m *Memory) Submit(_ context.Context, j Job) error {
	if err := j.check(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.isClosed() {
		return ErrClosed
	}
	if _, ok := m.records[j.ID]; ok {
		return fmt.Errorf("%w: %s", ErrExists, j.ID)
	}
	n := 0
	for _, r := range m.records {
		n += count(r.Org == j.Org && r.App == j.App && !r.ended())
	}
	if n >= m.opts.backlog() {
		return fmt.Errorf("%w: %s has %d", ErrBacklog, j.App, n)
	}
	j.Payload = slices.Clone(j.Payload)
	m.jobs[j.ID] = j
	m.write(j.ID, record{Org: j.Org, App: j.App, State: queued})
	return nil
}

// Next implements [Engine].
func (m *Memory) Next(ctx context.Context) (*Task, error) {
	for {
		if m.isClosed() {
			return nil, ErrClosed
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		t, changed := m.start()
		if t != nil {
			return t, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
		case <-m.closed:
		}
	}
}

func (m *Memory) start() (*Task, <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	orgs, changed := m.board.candidates()
	if len(orgs) == 0 {
		return nil, changed
	}
	id := m.board.head(orgs[0])
	ends, over := context.WithCancel(context.Background())
	t := &Task{Job: m.jobs[id], Attempt: 1, signals: m.listen(ends, id)}
	t.done = func(context.Context) error {
		defer over()
		return m.end(id)
	}
	m.write(id, m.records[id].started("memory"))
	return t, nil
}

func (m *Memory) end(id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.records[id]
	switch {
	case m.isClosed():
		return ErrClosed
	case r.State != running:
		return fmt.Errorf("%w: %s", ErrLost, id)
	}
	r.State = done
	m.write(id, r)
	delete(m.jobs, id)
	return nil
}

func (m *Memory) find(id string) (state, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, ok := m.records[id]
	if !ok {
		return expected, fmt.Errorf("%w: %s", ErrNotFound, id)
	}
	return r.State, nil
}

// Positions implements [Engine].
func (m *Memory) Positions(ctx context.Context, id string) iter.Seq2[int, error] {
	return func(yield func(int, error) bool) {
		if err := checkID(id); err != nil {
			yield(0, err)
			return
		}
		ctx, cancel := bind(ctx, m.closed)
		defer cancel()
		m.board.positions(ctx, id, func(context.Context) (state, error) { return m.find(id) })(yield)
	}
}

// Remove implements [Engine].
func (m *Memory) Remove(_ context.Context, id string) (bool, error) {
	if err := checkID(id); err != nil {
		return false, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	r, ok := m.records[id]
	switch {
	case m.isClosed():
		return false, ErrClosed
	case !ok:
		return false, fmt.Errorf("%w: %s", ErrNotFound, id)
	case r.State != queued:
		return false, nil
	}
	r.State = removed
	m.write(id, r)
	delete(m.jobs, id)
	return true, nil
}

// Signal implements [Engine].
func (m *Memory) Signal(ctx context.Context, id string, payload []byte) error {
	if err := errors.Join(checkID(id), checkPayload(payload)); err != nil {
		return err
	}
	m.mu.Lock()
	ears := slices.Clone(m.ears[id])
	m.mu.Unlock()
	if m.isClosed() {
		return ErrClosed
	}
	if len(ears) == 0 {
		return fmt.Errorf("%w: %s", ErrNoListener, id)
	}
	payload = slices.Clone(payload)
	for _, c := range ears {
		select {
		case c <- payload:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// Signals implements [Engine].
func (m *Memory) Signals(ctx context.Context, id string) (<-chan []byte, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.isClosed() {
		return nil, ErrClosed
	}
	return m.listen(ctx, id), nil
}

// listen is called under mu. The channel that Signal sends to is never closed; the
// one that the caller reads is.
func (m *Memory) listen(ctx context.Context, id string) <-chan []byte {
	in, out := make(chan []byte, 16), make(chan []byte, 16)
	m.ears[id] = append(m.ears[id], in)
	go func() {
		defer close(out)
		ctx, cancel := bind(ctx, m.closed)
		defer cancel()
		for {
			select {
			case p := <-in:
				select {
				case out <- p:
					continue
				case <-ctx.Done():
				}
			case <-ctx.Done():
			}
			m.mu.Lock()
			m.ears[id] = slices.DeleteFunc(m.ears[id], func(c chan []byte) bool { return c == in })
			m.mu.Unlock()
			return
		}
	}()
	return out
}

// Close implements [Engine].
func (m *Memory) Close(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.isClosed() {
		close(m.closed)
	}
	return nil
}
