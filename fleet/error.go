package fleet

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

var (
	// ErrBacklog: the app has as many unfinished jobs as it may have.
	ErrBacklog = errors.New("too many builds of this app are queued")

	// ErrExists: a job with this ID was submitted before.
	ErrExists = errors.New("job exists")

	// ErrNotFound: there is no such job, or it is no longer kept.
	ErrNotFound = errors.New("job not found")

	// ErrRemoved: the job was taken out of the queue before it started.
	ErrRemoved = errors.New("job was removed from the queue")

	// ErrLost: the job is no longer this worker's; another one has it.
	ErrLost = errors.New("job was handed to another worker")

	// ErrEnded: the log has ended.
	ErrEnded = errors.New("log has ended")

	// ErrFenced: another engine appends to the log.
	ErrFenced = errors.New("log has another writer")

	// ErrNoListener: nobody listens to the job's signals.
	ErrNoListener = errors.New("nobody listens to the job")

	// ErrInvalid: a name or a payload is not acceptable.
	ErrInvalid = errors.New("invalid argument")

	// ErrUnavailable: the store does not answer. It stops for good when it
	// cannot write, on a full disk for example; an engine opened anew goes on
	// with all that was acknowledged.
	ErrUnavailable = errors.New("the store of queue and logs does not answer")

	// ErrClosed: the engine, or the log, has been closed.
	ErrClosed = errors.New("closed")
)

// isFull recognises the server's answer to one message too many of a subject.
func isFull(err error) bool {
	const storeFailed = 10077
	var api *jetstream.APIError
	return errors.As(err, &api) && api.ErrorCode == storeFailed &&
		api.Description == "maximum messages per subject exceeded"
}

// isStale recognises the server's answer to a message that expects another one
// before it.
func isStale(err error) bool {
	var api *jetstream.APIError
	return errors.As(err, &api) &&
		(api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence || api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant)
}

// isSilence reports whether there was no answer, as while a cluster elects a leader.
func isSilence(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, nats.ErrTimeout) ||
		errors.Is(err, nats.ErrNoResponders) || errors.Is(err, jetstream.ErrNoStreamResponse)
}

// answer says why a request failed: ctx ended, for the reason it has, or there was
// no answer, or the answer was err.
func answer(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case isSilence(err):
		return fmt.Errorf("%w: %v", ErrUnavailable, err)
	}
	return err
}
