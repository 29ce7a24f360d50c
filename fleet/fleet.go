// Package fleet hands builds to workers and keeps what they report.
//
// An [Engine] is a durable queue of jobs, fair between organisations, and a
// log of numbered entries for each job that can be replayed from any entry and
// followed live. [Open] gives the one to run with: NATS JetStream inside this
// process, without a network port, or a cluster behind a URL. [NewMemory] keeps
// everything in memory, for tests of code that needs an Engine.
//
// What a job is and what an entry says is the caller's business: both are
// bytes here. The queue decides which job starts next, never whether a build
// may run; the record of a build is kept elsewhere.
//
// Read board.go for the order in which jobs start, record.go for what makes a
// job start once, and writer.go for how entries are batched.
package fleet

import (
	"context"
	"fmt"
	"iter"
	"strings"
	"unicode/utf8"
)

// MaxPayload is the largest payload of a job, an entry or a signal, in bytes.
const MaxPayload = 512 << 10

// An Engine queues jobs and keeps their logs. All methods may be called
// concurrently; after Close they fail with [ErrClosed].
type Engine interface {
	// Submit queues a job. When it returns nil the job is on disk and will be
	// handed to a worker, whatever crashes. It fails with [ErrExists] when a
	// job with this ID was submitted before, with [ErrBacklog] when the app
	// has as many unfinished jobs as it may, and with [ErrInvalid]. After any
	// other error the job may be queued or not: submit it again to find out.
	Submit(context.Context, Job) error

	// Next waits for a job and starts it. Orgs take turns: an org with fewer
	// jobs running goes first, then the one served longest ago; within an org
	// jobs start in the order of Submit. The caller must call [Task.Done].
	Next(context.Context) (*Task, error)

	// Positions yields the job's place in the queue and then every change of
	// it: 1 starts next, 0 has started or ended, after which it stops. It
	// ends with [ErrRemoved] when the job was taken out of the queue, and
	// with [ErrNotFound] when there is no such job.
	Positions(ctx context.Context, id string) iter.Seq2[int, error]

	// Remove takes a job out of the queue. It reports false when the job has
	// started: Remove and Next never both win. It fails with [ErrNotFound].
	Remove(ctx context.Context, id string) (bool, error)

	// Log opens the log of a job for appending and continues its numbering;
	// there need not be such a job in the queue. Within an engine all open
	// Logs of one id are the same log and may be used concurrently. Between
	// engines the last to append wins: the others fail with [ErrFenced]. It
	// fails with [ErrEnded] when the log has ended.
	Log(ctx context.Context, id string) (Log, error)

	// Watch yields the entries of a log from number from on (0 and 1 mean the
	// first), those already there and then each as it comes, and stops after
	// the end of the log. It waits for a log that has no entry yet, so ask
	// Tail first about a log that may be older than the engine keeps them. An
	// error is the last thing it yields. Entries are valid after the
	// iteration; entries that are no longer kept are left out.
	Watch(ctx context.Context, id string, from uint64) iter.Seq2[Entry, error]

	// Tail reports how far a log has come. It fails with [ErrNotFound] when
	// nothing of it is kept.
	Tail(ctx context.Context, id string) (Tail, error)

	// Signal hands a payload to whoever listens to a job's signals, and
	// returns when one of them has it. Nothing is kept: without a listener it
	// fails with [ErrNoListener].
	Signal(ctx context.Context, id string, payload []byte) error

	// Signals listens to a job's signals until ctx ends; then the channel is
	// closed. A Task comes with a channel of its own.
	Signals(ctx context.Context, id string) (<-chan []byte, error)

	// Close writes out every open log without ending it, and stops. Tasks that
	// are not done are handed out again by the next engine. When ctx ends
	// first, entries that were not flushed may be lost.
	Close(context.Context) error
}

// A Log appends to the log of one job. Its methods may be called concurrently.
type Log interface {
	// Append numbers a copy of payload with the next number, the first one
	// being 1, and writes it in the background: at once when the log is idle,
	// in batches when it is not. Watchers see it when it is on disk. It waits
	// when writing falls far behind. An error is final: [ErrEnded],
	// [ErrFenced], [ErrInvalid] (this payload only) or what went wrong with
	// an earlier entry.
	Append(payload []byte) (seq uint64, err error)

	// Flush returns when all entries appended so far are on disk.
	Flush(context.Context) error

	// End appends the end of the log, which lets watchers finish, and flushes.
	// Only the first End counts; others fail with [ErrEnded]. The Log must
	// still be closed.
	End(context.Context) error

	// Close flushes and lets go of the log, which can be opened again unless
	// End was called.
	Close(context.Context) error
}

// An Entry is one entry of a log.
type Entry struct {
	Seq     uint64 // from 1, without gaps
	Payload []byte
}

// Tail says how far a log has come.
type Tail struct {
	Seq   uint64 // number of the last entry, 0 when it ended without any
	Ended bool
}

// A Job is something to do once.
type Job struct {
	// ID names the job for ever: 1 to 64 letters, digits, "-" or "_". An
	// engine knows an ID again for as long as it keeps logs.
	ID string

	// Org and App say whose job it is. Orgs share the workers fairly; an app
	// has a bounded number of unfinished jobs. At most 128 bytes of UTF-8.
	Org, App string

	Payload []byte // at most MaxPayload; written to disk as it is
}

func (j Job) check() error {
	switch {
	case !validID(j.ID):
		return fmt.Errorf("%w: job ID %q", ErrInvalid, j.ID)
	case len(j.Org) > 128 || !utf8.ValidString(j.Org):
		return fmt.Errorf("%w: org %q of job %s", ErrInvalid, j.Org, j.ID)
	case len(j.App) > 128 || !utf8.ValidString(j.App):
		return fmt.Errorf("%w: app %q of job %s", ErrInvalid, j.App, j.ID)
	}
	return checkPayload(j.Payload)
}

func checkPayload(p []byte) error {
	if len(p) > MaxPayload {
		return fmt.Errorf("%w: payload of %d bytes, at most %d", ErrInvalid, len(p), MaxPayload)
	}
	return nil
}

func validID(id string) bool {
	return id != "" && len(id) <= 64 && !strings.ContainsFunc(id, func(r rune) bool { return !plain(r) })
}

// plain reports whether r can be part of a subject and of a key as it is.
func plain(r rune) bool {
	return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '-' || r == '_'
}

func checkID(id string) error {
	if !validID(id) {
		return fmt.Errorf("%w: job ID %q", ErrInvalid, id)
	}
	return nil
}
