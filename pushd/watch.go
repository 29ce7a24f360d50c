package pushd

import (
	"time"

	"github.com/opencontainers/go-digest"
)

// A Watcher is told by a target what happens to one blob. Its methods may be
// called concurrently and return at once.
type Watcher interface {
	// At says that the next byte to be sent has offset off: the start, or
	// where the registry said that it stopped.
	At(off int64)

	// Sent says that n more bytes were handed to the network.
	Sent(n int64)

	// Retry says that cause stopped an attempt, and that the next begins
	// after wait.
	Retry(cause error, wait time.Duration)
}

// Ignore returns a Watcher that does nothing.
func Ignore() Watcher { return ignore{} }

type ignore struct{}

func (ignore) At(int64)                   {}
func (ignore) Sent(int64)                 {}
func (ignore) Retry(error, time.Duration) {}

// A State is how far a blob has come.
type State string

// The states of a blob, in the order in which it takes them.
const (
	Checking  State = "checking"  // asking whether the registry has it
	Uploading State = "uploading" // bytes flow
	Retrying  State = "retrying"  // an attempt failed; Progress.Err says why
	Done      State = "done"
	Failed    State = "failed"
)

// Progress is what there is to say about one blob of a push.
type Progress struct {
	Name    string        // as in Blob
	Digest  digest.Digest // empty while the blob is being made
	State   State
	Outcome Outcome       // when Done
	Sent    int64         // offset in the blob up to which bytes were sent
	Size    int64         // 0 while the blob is being made
	Rate    float64       // bytes a second, over the last seconds
	Retries int           // so far
	Wait    time.Duration // until the next attempt, when Retrying
	Err     error         // when Retrying or Failed
}

// An Account says what a push cost.
type Account struct {
	Uploaded, Mounted, Present, Linked int   // blobs
	WireBytes                          int64 // sent over the network, repeats included
	Retries                            int
}
