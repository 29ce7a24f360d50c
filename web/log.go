package web

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

const (
	heartbeat = 15 * time.Second // a proxy takes a silent stream for a dead one
	slowest   = 30 * time.Second // that a browser may take to read
	ahead     = 256              // events read before the browser has taken them
	batch     = 64 << 10         // of a message, before another one begins
	liveStep  = 1 << 20          // bytes of a step's output that a page is told of
)

// streamBuild sends what changes of a build's page, as it happens. The ID of
// a message is the sequence number of the last event in it: who says it in
// Last-Event-ID gets what comes after. The stream ends with the build, and with
// the session.
func (v *visit) streamBuild() error {
	after, err := strconv.ParseUint(v.r.URL.Query().Get("after"), 10, 64)
	if err != nil && v.r.URL.Query().Has("after") {
		return status.Error(codes.InvalidArgument, "after is the number of an event.")
	}
	if last := v.r.Header.Get("Last-Event-ID"); last != "" {
		if after, err = strconv.ParseUint(last, 10, 64); err != nil {
			return status.Error(codes.InvalidArgument, "Last-Event-ID is the number of an event.")
		}
	}
	id := v.r.PathValue("id")
	ctx, cancel := context.WithCancel(v.r.Context())
	defer cancel()
	if _, err := v.builds.GetBuild(ctx, &slipwayv1.GetBuildRequest{Id: id}); err != nil {
		return err
	}
	stream, err := v.builds.WatchBuild(ctx, &slipwayv1.WatchBuildRequest{Id: id})
	if err != nil {
		return err
	}
	f := &feed{visit: v, after: after, progress: newProgress(false), out: http.NewResponseController(v.w)}
	events, wait := receive(ctx, stream)
	defer func() { cancel(); wait() }()
	f.begin()
	if err := f.follow(ctx, events); err != nil {
		v.log.DebugContext(ctx, "stream of a build", "build", id, "err", err)
	}
	return nil
}

// received is an event, or why there are no more.
type received struct {
	event *slipwayv1.Event
	err   error
}

// receive reads a stream into a channel until it or ctx ends; the caller ends
// one of them and waits.
func receive(ctx context.Context, stream grpc.ServerStreamingClient[slipwayv1.WatchBuildResponse]) (_ <-chan received, wait func()) {
	events, done := make(chan received, ahead), make(chan struct{})
	go func() {
		defer close(done)
		for {
			m, err := stream.Recv()
			select {
			case events <- received{m.GetEvent(), err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	return events, func() { <-done }
}

// A feed writes one stream to a browser.
type feed struct {
	*visit
	*progress
	told  int    // how many steps the browser has heard of
	after uint64 // the browser has what is up to here
	out   *http.ResponseController
	text  bytes.Buffer // of the message that is being made
}

func (f *feed) begin() {
	h := f.w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("X-Accel-Buffering", "no")
	f.w.WriteHeader(http.StatusOK)
}

// follow writes events until there are no more.
func (f *feed) follow(ctx context.Context, events <-chan received) error {
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	if err := f.write(": here\n\n"); err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-beat.C:
			if err := f.write(": still here\n\n"); err != nil {
				return err
			}
		case got := <-events:
			if over, err := f.take(got, events); over || err != nil {
				return err
			}
		}
	}
}

// take writes an event and those that are there already, and says whether it
// was the last.
func (f *feed) take(got received, events <-chan received) (over bool, err error) {
	for {
		if got.err != nil {
			return true, f.end(got.err)
		}
		if err := f.add(got.event); err != nil {
			return true, err
		}
		if f.text.Len() > batch {
			break
		}
		if len(events) == 0 {
			break
		}
		got = <-events
	}
	return false, f.flush()
}

// add notes an event and, if the browser lacks it, renders what it changes.
func (f *feed) add(e *slipwayv1.Event) error {
	part := f.apply(e)
	if e.Seq <= f.after {
		f.told = len(f.Steps)
		return nil
	}
	if err := f.newSteps(); err != nil {
		return err
	}
	switch part {
	case "", partEnd, partSteps:
		return nil
	case partState:
		return f.stepState(e)
	case partChunk:
		return f.chunk(e.GetStepLog())
	}
	return f.partial("live-"+part, f.progress)
}

// newSteps renders the steps that the browser has not heard of.
func (f *feed) newSteps() error {
	for ; f.told < len(f.Steps); f.told++ {
		if err := f.partial("live-step", f.Steps[f.told]); err != nil {
			return err
		}
	}
	return nil
}

func (f *feed) stepState(e *slipwayv1.Event) error {
	id := e.GetStepStarted().GetStep()
	if d := e.GetStepDone(); d != nil {
		id = d.Step
	}
	return f.partial("live-step-state", f.step(id))
}

// chunk renders output, up to what a page can hold.
func (f *feed) chunk(m *slipwayv1.StepLog) error {
	s := f.step(m.Step)
	if s.sent > liveStep {
		return nil
	}
	c := newChunk(m)
	if s.sent += len(c.Text); s.sent > liveStep {
		c = chunk{Text: "\nThere is more in the whole log.\n", Note: true}
	}
	return f.partial("live-chunk", struct {
		ID    uint32
		Chunk chunk
	}{m.Step, c})
}

func (f *feed) partial(name string, data any) error { return f.part(&f.text, name, data) }

// flush sends what has been rendered, and that the browser has it then.
func (f *feed) flush() error {
	if f.Seq <= f.after {
		return nil
	}
	f.after = f.Seq
	if f.text.Len() == 0 {
		return f.write(fmt.Sprintf("id: %d\n\n", f.Seq))
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "id: %d\n", f.Seq)
	for line := range bytes.Lines(f.text.Bytes()) {
		b.WriteString("data: ")
		b.Write(bytes.TrimRight(line, "\r\n"))
		b.WriteByte('\n')
	}
	b.WriteByte('\n')
	f.text.Reset()
	return f.write(b.String())
}

// end tells the browser that nothing will follow: then it asks for the whole
// page, which says how the build ended, or leads to a new sign-in. If only the
// daemon is going, it says nothing, and the browser comes back.
func (f *feed) end(err error) error {
	if err := f.flush(); err != nil {
		return err
	}
	if !errors.Is(err, io.EOF) && status.Code(err) != codes.Unauthenticated && status.Code(err) != codes.PermissionDenied {
		return err
	}
	return f.write("event: end\ndata: end\n\n")
}

func (f *feed) write(s string) error {
	if err := f.out.SetWriteDeadline(time.Now().Add(slowest)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	if _, err := io.WriteString(f.w, s); err != nil {
		return err
	}
	return f.out.Flush()
}
