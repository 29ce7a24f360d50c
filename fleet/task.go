package fleet

import "context"

// A Task is a job that has started. The engine tells the queue that the worker
// lives until Done.
type Task struct {
	Job

	// Attempt counts the workers that were given this job. Above 1 an earlier
	// one died, or went silent: the job may be half done, and a worker that
	// must not do things twice says so and calls Done.
	Attempt int

	signals <-chan []byte
	done    func(context.Context) error
}

// Signals returns what is sent to the job by [Engine.Signal]. It listens since
// before the job counted as started, so a signal to a started job is never
// lost. The channel is closed after Done.
func (t *Task) Signals() <-chan []byte { return t.signals }

// Done ends the job, however it went: it is never handed out again. It fails
// with [ErrLost] when another worker was given the job in the meantime, or when
// it was done before; the result of this attempt must then be dropped. After
// any other error Done may be called again.
func (t *Task) Done(ctx context.Context) error { return t.done(ctx) }
