package shell

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/slipwayhq/slipway/builder"
	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/builder/sandbox"
	"github.com/slipwayhq/slipway/layercache"
)

// A Runner is what shells need of a [sandbox.Runner].
type Runner interface {
	// Run runs a process in a container of its own.
	Run(context.Context, sandbox.Process) (int, error)

	// Exec runs one more process in a container.
	Exec(context.Context, sandbox.Command) (int, error)
}

// Options tunes a [Keeper].
type Options struct {
	Runner Runner
	Cache  *layercache.Store

	For     time.Duration // how long a step is kept; 0 keeps none
	Longest time.Duration // of one shell; 0 means 4 hours
	Shells  int           // open at a time; 0 means 64

	Most      int   // steps at a time; 0 means 32
	MostBytes int64 // that they take together; 0 means no more than the cache allows

	MaxSize int64 // what shells may write to a step's file system, in bytes; less than 1 means no limit
	Log     *slog.Logger
}

func (o *Options) longest() time.Duration { return cmp.Or(o.Longest, 4*time.Hour) }
func (o *Options) most() int              { return cmp.Or(o.Most, 32) }

// A Step is a RUN step that failed, with all that it takes to run something in
// its place.
type Step struct {
	Org, App, Build string

	Name    string // of the step, for people
	Shell   string // program of its SHELL, if the Dockerfile or a base image has one
	Secrets bool   // it had secrets or agents, which are not kept

	// Bytes are those on the disk that nothing else counts.
	Bytes int64

	// Weigh finds Bytes out anew after somebody was inside. It may be nil.
	Weigh func(context.Context) int64

	// Enter returns the process that the step was, without its secrets, agents
	// and output, with its cache mounts held until leave. It may wait for those
	// and tells so.
	Enter func(ctx context.Context, tell func(string)) (p *sandbox.Process, leave func(), err error)

	// Drop gives back all that is held. Nobody is inside. It must not wait for
	// anybody who asks the cache for room.
	Drop func(context.Context)
}

// A Keeper keeps failed steps, one of a build: for a while, and as long as there
// is room. It is safe for concurrent use. A nil Keeper keeps nothing.
type Keeper struct {
	opts Options
	log  *slog.Logger

	mu     sync.Mutex
	kept   map[stepID]*kept
	order  []*kept // oldest first
	closed bool

	inside  sync.WaitGroup // shells
	seats   chan struct{}  // one for each
	stopped context.Context
	stop    context.CancelCauseFunc
}

// A stepID names a kept step. Orgs do not see each other's.
type stepID struct{ org, build string }

// errClosed ends shells when the daemon stops.
var errClosed = &failure.Error{
	Code: failure.DaemonStopped, Phase: failure.Build, Blame: failure.Builder, Retryable: true,
	Message: "the daemon is stopping", Hint: "what failed steps leave is not kept across that: deploy again",
}

// NewKeeper returns a Keeper. The caller closes it before the cache and the
// runner.
func NewKeeper(o Options) *Keeper {
	k := &Keeper{opts: o, log: o.Log, kept: map[stepID]*kept{}, seats: make(chan struct{}, cmp.Or(o.Shells, 64))}
	if k.log == nil {
		k.log = slog.New(slog.DiscardHandler)
	}
	k.stopped, k.stop = context.WithCancelCause(context.Background())
	return k
}

// Keeps reports whether steps are kept at all.
func (k *Keeper) Keeps() bool { return k != nil && k.opts.For > 0 }

// Keep takes a step over and reports whether it did: of a build, only the first.
// It then calls s.Drop in the end.
func (k *Keeper) Keep(ctx context.Context, s Step) bool {
	if !k.Keeps() || k.opts.MostBytes > 0 && s.Bytes > k.opts.MostBytes {
		return false
	}
	x := newKept(k, s)
	k.mu.Lock()
	if k.closed || k.kept[x.id()] != nil {
		k.mu.Unlock()
		return false
	}
	x.spare = k.opts.Cache.Org(s.Org).Spare(layercache.SpareOptions{
		App: s.App, What: fmt.Sprintf("what the failed step of build %s left", s.Build), Bytes: s.Bytes, Drop: x.drop,
	})
	k.kept[x.id()] = x
	k.order = append(k.order, x)
	x.timer = time.AfterFunc(k.opts.For, func() { x.spare.Drop(context.Background()) })
	surplus := k.surplus()
	k.mu.Unlock()
	for _, old := range surplus {
		old.spare.Drop(ctx)
	}
	return true
}

// surplus returns the oldest steps that make too many, or too much. The caller
// has mu.
func (k *Keeper) surplus() []*kept {
	var total int64
	for _, x := range k.order {
		total += x.Bytes
	}
	var out []*kept
	for n := len(k.order); n > 1; n-- {
		x := k.order[len(out)]
		if n <= k.opts.most() && (k.opts.MostBytes <= 0 || total <= k.opts.MostBytes) {
			break
		}
		total -= x.Bytes
		out = append(out, x)
	}
	return out
}

// forget takes a step out that is gone.
func (k *Keeper) forget(x *kept) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.kept, x.id())
	for i, o := range k.order {
		if o == x {
			k.order = append(k.order[:i:i], k.order[i+1:]...)
			break
		}
	}
}

// Hint says how to get into a step that is kept, "" if it is not.
func (k *Keeper) Hint(org, build string) string {
	if !k.Keeps() || k.find(org, build) == nil {
		return ""
	}
	return fmt.Sprintf("slipway builds shell %s   opens a shell where it failed (kept %s)", build, span(k.opts.For))
}

// span writes a length of time for people.
func span(d time.Duration) string {
	for _, u := range []struct {
		of   time.Duration
		name string
	}{{time.Hour, "hour"}, {time.Minute, "minute"}, {time.Second, "second"}} {
		n := d / u.of
		switch {
		case n == 1 && d%u.of == 0:
			return "1 " + u.name
		case n >= 1 && d%u.of == 0:
			return fmt.Sprintf("%d %ss", n, u.name)
		}
	}
	return d.String()
}

func (k *Keeper) find(org, build string) *kept {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.kept[stepID{org, build}]
}

// Shell runs a command, or a shell if args has none, where a build of the org
// failed, and returns its exit code. The caller has made sure that there is such
// a build, and that it may be looked at.
func (k *Keeper) Shell(ctx context.Context, org, build string, args []string, c builder.Console) (int, error) {
	if c.Stdin != nil {
		defer c.Stdin.Close()
	}
	if !k.Keeps() {
		return 0, failure.Userf(failure.NotFound, "the operator has failed steps kept with --keep-failed 15m", "this daemon does not keep failed steps")
	}
	x := k.find(org, build)
	if x == nil {
		return 0, k.notKept(build)
	}
	k.mu.Lock()
	if k.closed {
		k.mu.Unlock()
		return 0, errClosed
	}
	k.inside.Add(1)
	k.mu.Unlock()
	defer k.inside.Done()
	leave, err := sit(k.seats, "shells are open")
	if err != nil {
		return 0, err
	}
	defer leave()
	hold, ok := x.spare.Hold()
	if !ok {
		return 0, k.notKept(build)
	}
	defer hold(ctx)

	ctx, cancel := context.WithTimeoutCause(ctx, k.opts.longest(), failure.Userf(failure.Timeout, "", "a shell may be open for %s at most", span(k.opts.longest())))
	defer cancel()
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	defer context.AfterFunc(k.stopped, func() { end(context.Cause(k.stopped)) })()
	code, err := x.shell(ctx, args, c)
	if cause := context.Cause(ctx); err != nil && cause != nil && !errors.Is(err, cause) {
		err = cause
	}
	return code, err
}

// sit takes a seat if there is one.
func sit(seats chan struct{}, what string) (leave func(), err error) {
	select {
	case seats <- struct{}{}:
		return func() { <-seats }, nil
	default:
		return nil, &failure.Error{Code: failure.Busy, Blame: failure.Builder, Retryable: true,
			Message: fmt.Sprintf("%d %s already, as many as may be", cap(seats), what), Hint: "try again when one has ended"}
	}
}

func (k *Keeper) notKept(build string) error {
	return failure.Userf(failure.NotFound,
		fmt.Sprintf("a shell can be opened where a RUN step failed, for %s after that and while there is room; deploy again to get there", span(k.opts.For)),
		"nothing is kept of build %s", build)
}

// Close ends all shells and gives up what is kept.
func (k *Keeper) Close(ctx context.Context) {
	if k == nil {
		return
	}
	k.mu.Lock()
	k.closed = true
	all := append([]*kept(nil), k.order...)
	k.mu.Unlock()
	k.stop(errClosed)
	k.inside.Wait()
	for _, x := range all {
		x.spare.Drop(ctx)
	}
}
