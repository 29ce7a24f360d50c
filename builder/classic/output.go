package classic

import (
	"io"
	"sync"

	"github.com/slipwayhq/slipway/builder/failure"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// maxOutput is how much one step may print.
const maxOutput = 64 << 20

// An output turns what a process prints into events.
type output struct {
	build *build
	step  uint32
	mu    sync.Mutex
	total int64
}

func (b *build) newOutput(st *step) *output { return &output{build: b, step: st.id} }

func (o *output) stream(s slipwayv1.LogStream) io.Writer { return &stream{o, s} }

type stream struct {
	*output
	stream slipwayv1.LogStream
}

func (s *stream) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.total += int64(len(p)); s.total > maxOutput {
		return 0, failure.Userf(failure.StepFailed, "send the step's output to a file or to /dev/null",
			"the step printed more than %d MB", maxOutput>>20)
	}
	s.build.job.Session.Emit(&slipwayv1.Event{Event: &slipwayv1.Event_StepLog{StepLog: &slipwayv1.StepLog{
		Step: s.step, Stream: s.stream, Data: append([]byte(nil), p...),
	}}})
	return len(p), nil
}
