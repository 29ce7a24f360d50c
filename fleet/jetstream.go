package fleet

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"
)

// JetStream is an [Engine] on NATS JetStream.
//
// A job is a message of a work-queue stream until it is done; each org has a lane,
// a durable consumer of its part of the stream; a record per job, in a key-value
// bucket, says how far the job has come; logs are messages of a second stream,
// many entries in each.
type JetStream struct {
	opts    *Options
	log     *slog.Logger
	owner   string // names this engine in records
	solo    bool   // the server is ours, so no other engine is alive
	nc      *nats.Conn
	js      jetstream.JetStream
	queue   jetstream.Stream
	logs    jetstream.Stream
	records records
	board   *board
	stop    func() // stops the server, if it is ours

	turn     chan struct{}                 // holds a token while a Next looks for a job
	scanned  time.Time                     // when Next last looked for jobs of dead engines; under turn
	lanes    map[string]jetstream.Consumer // by org; under turn
	closed   chan struct{}
	shut     sync.Once
	shutErr  error
	watching sync.WaitGroup

	mu      sync.Mutex
	closing bool
	work    sync.WaitGroup // what Close waits for; grows under mu while not closing
	tasks   map[string]*lease
	writers map[string]*writer
}

var _ Engine = (*JetStream)(nil)

// Open starts an engine in this process that keeps its data in dir, which must be
// its own: the caller sees to it that no other process has it open. A nil opts
// means the defaults. Jobs that were running when the last engine of dir died
// are handed out again, first of all and with a higher [Task.Attempt].
func Open(ctx context.Context, dir string, opts *Options) (*JetStream, error) {
	srv, err := startServer(ctx, dir, opts.log())
	if err != nil {
		return nil, fmt.Errorf("open queue in %s: %w", dir, err)
	}
	e, err := connect(ctx, "", opts, nats.InProcessServer(srv))
	if err != nil {
		stopServer(srv)
		return nil, fmt.Errorf("open queue in %s: %w", dir, err)
	}
	e.stop = func() { stopServer(srv) }
	return e, nil
}

// Dial joins the engines of a NATS server or cluster, which share queue and logs.
// It should run with sync_interval always, or a power failure loses jobs.
func Dial(ctx context.Context, url string, opts *Options) (*JetStream, error) {
	e, err := connect(ctx, url, opts)
	if err != nil {
		return nil, fmt.Errorf("join queue: %w", err)
	}
	return e, nil
}

func connect(ctx context.Context, url string, opts *Options, more ...nats.Option) (*JetStream, error) {
	e := &JetStream{
		opts:  opts,
		log:   opts.log(),
		owner: rand.Text(),
		solo:  url == "",
		stop:  func() {},

		turn:    make(chan struct{}, 1),
		lanes:   map[string]jetstream.Consumer{},
		closed:  make(chan struct{}),
		tasks:   map[string]*lease{},
		writers: map[string]*writer{},
	}
	e.board = newBoard(e.owner, e.solo)
	var err error
	e.nc, err = nats.Connect(url, append(more,
		nats.Name("slipway"),
		nats.MaxReconnects(-1),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { e.log.Warn("nats client", "err", err) }),
	)...)
	if err != nil {
		return nil, err
	}
	if err := e.prepare(ctx); err != nil {
		e.nc.Close()
		return nil, err
	}
	return e, nil
}

// prepare makes the streams and learns what is in the queue.
func (e *JetStream) prepare(ctx context.Context) error {
	var err error
	if e.js, err = jetstream.New(e.nc); err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		e.queue, err = e.js.CreateOrUpdateStream(gctx, e.opts.queue())
		return err
	})
	g.Go(func() (err error) {
		e.logs, err = e.js.CreateOrUpdateStream(gctx, e.opts.logs())
		return err
	})
	g.Go(func() (err error) {
		e.records.kv, err = e.js.CreateOrUpdateKeyValue(gctx, e.opts.records())
		return err
	})
	if err := g.Wait(); err != nil {
		return fmt.Errorf("prepare the store: %w", err)
	}
	return e.learn(ctx)
}

// learn fills the board: with every change of a record from now on, then with
// what is in the queue.
func (e *JetStream) learn(ctx context.Context) error {
	changes, err := e.records.kv.WatchAll(context.WithoutCancel(ctx), jetstream.UpdatesOnly())
	if err != nil {
		return fmt.Errorf("watch records: %w", err)
	}
	e.watching.Go(func() { e.observe(changes) })
	if err := e.readQueue(ctx); err != nil {
		return errors.Join(err, changes.Stop())
	}
	return nil
}

// observe ends with the connection.
func (e *JetStream) observe(changes jetstream.KeyWatcher) {
	for c := range changes.Updates() {
		if c == nil { // everything older has been seen
			continue
		}
		var r record
		if err := json.Unmarshal(c.Value(), &r); err != nil {
			e.log.Warn("skip a job's record that cannot be read", "job", c.Key(), "err", err)
			continue
		}
		e.board.observe(c.Key(), r, c.Revision())
	}
}

// readQueue puts the unfinished jobs on the board. A job whose process died
// between the two writes of Submit has no record yet and gets it here.
func (e *JetStream) readQueue(ctx context.Context) error {
	for seq := uint64(1); ; {
		m, err := e.queue.GetMsg(ctx, seq, jetstream.WithGetMsgSubject(queuePrefix+">"))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read queue: %w", err)
		}
		seq = m.Sequence + 1
		j, err := parseJob(m.Header, m.Data)
		if err != nil {
			e.log.Warn("skip a job that cannot be read", "seq", m.Sequence, "err", err)
			continue
		}
		if err := e.enter(ctx, j, m.Sequence); err != nil {
			return err
		}
	}
}

// enter puts a job of the queue on the board.
func (e *JetStream) enter(ctx context.Context, j Job, seq uint64) error {
	st, err := e.find(ctx, j.ID)
	switch {
	case errors.Is(err, ErrNotFound):
		return e.record(ctx, j, seq)
	case err != nil:
		return err
	case st == done || st == removed: // its end was recorded, the message stayed
		return e.drop(ctx, seq)
	}
	return nil
}

// find reads a job's record and tells the board.
func (e *JetStream) find(ctx context.Context, id string) (state, error) {
	e.board.expect(id, "", 0)
	r, rev, err := e.records.get(ctx, id)
	if err != nil || r.ended() {
		e.board.forget(id)
		return r.State, err
	}
	e.board.update(id, r, rev)
	return r.State, nil
}

// drop deletes a message of the queue.
func (e *JetStream) drop(ctx context.Context, seq uint64) error {
	if err := e.queue.DeleteMsg(ctx, seq); err != nil && !errors.Is(err, jetstream.ErrMsgNotFound) {
		return fmt.Errorf("delete from queue: %w", err)
	}
	return nil
}

// patience is how long to wait for the store: a server in this process answers at
// once or never, a cluster may have to elect a leader first.
func (e *JetStream) patience() time.Duration {
	if e.solo {
		return 5 * time.Second
	}
	return 30 * time.Second
}

// wait is what a method calls that writes: it counts the caller like begin, and
// returns a context that ends with [ErrUnavailable] when the store does not answer.
func (e *JetStream) wait(ctx context.Context) (context.Context, func(), error) {
	if err := e.begin(); err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, e.patience(), ErrUnavailable)
	return ctx, func() { cancel(); e.work.Done() }, nil
}

// Close implements [Engine].
func (e *JetStream) Close(ctx context.Context) error {
	e.shut.Do(func() { e.shutErr = e.close(ctx) })
	return e.shutErr
}

func (e *JetStream) close(ctx context.Context) error {
	e.mu.Lock()
	e.closing = true
	open := slices.Collect(maps.Values(e.writers))
	e.mu.Unlock()
	var errs []error
	for _, w := range open {
		w.leave()
	}
	for _, w := range open {
		errs = append(errs, w.wait(ctx))
	}
	close(e.closed)
	e.work.Wait()
	e.nc.Close()
	e.watching.Wait()
	e.stop()
	return errors.Join(errs...)
}

// begin counts the caller as something that Close waits for, until it calls
// e.work.Done.
func (e *JetStream) begin() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closing {
		return ErrClosed
	}
	e.work.Add(1)
	return nil
}

// bind returns a context that also ends, with [ErrClosed], when closed is.
func bind(ctx context.Context, closed <-chan struct{}) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	select {
	case <-closed:
		cancel(ErrClosed)
		return ctx, func() {}
	default:
	}
	go func() {
		select {
		case <-closed:
			cancel(ErrClosed)
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil) }
}
