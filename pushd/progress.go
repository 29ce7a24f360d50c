package pushd

import (
	"context"
	"sync"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/slipwayhq/slipway/rescue"
)

// An Upload is one blob of a push. It is the [Watcher] of its own transfer.
type Upload struct {
	push   *Push
	blob   Blob
	before Outcome       // when it was brought the first time; then asked for again
	done   chan struct{} // closed when outcome and err are set

	mu      sync.Mutex
	desc    ocispec.Descriptor
	state   State
	outcome Outcome
	err     error
	sent    int64
	retries int

	told  time.Time // of the last report
	meter meter
}

var _ Watcher = (*Upload)(nil)

// Wait waits until the blob is in the repository and returns its descriptor
// and how it came there, or why it did not. If ctx ends first it returns the
// cause; the upload goes on.
func (u *Upload) Wait(ctx context.Context) (ocispec.Descriptor, Outcome, error) {
	select {
	case <-u.done:
		return u.result()
	case <-ctx.Done():
		return ocispec.Descriptor{}, "", context.Cause(ctx)
	}
}

func (u *Upload) result() (ocispec.Descriptor, Outcome, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.desc, u.outcome, u.err
}

// Descriptor returns what is known of the blob by now.
func (u *Upload) Descriptor() ocispec.Descriptor {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.desc
}

func (u *Upload) name() string {
	d := u.Descriptor()
	switch {
	case d.Digest != "":
		return d.Digest.String()
	case u.blob.Name != "":
		return u.blob.Name
	}
	return "blob"
}

func (u *Upload) position() int64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.sent
}

// learn fills in digest and size when they become known.
func (u *Upload) learn(d ocispec.Descriptor) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.desc.Digest, u.desc.Size = d.Digest, d.Size
	if u.desc.MediaType == "" {
		u.desc.MediaType = d.MediaType
	}
}

// At implements [Watcher].
func (u *Upload) At(off int64) {
	u.mu.Lock()
	u.sent = off
	u.state = Uploading
	u.mu.Unlock()
	u.tell(false)
}

// Sent implements [Watcher].
func (u *Upload) Sent(n int64) {
	u.push.addBytes(n)
	u.mu.Lock()
	u.sent += n
	u.meter.add(time.Now(), n)
	u.mu.Unlock()
	u.tell(false)
}

// Retry implements [Watcher].
func (u *Upload) Retry(cause error, wait time.Duration) {
	u.push.addRetry()
	u.mu.Lock()
	u.retries++
	u.state = Retrying
	u.mu.Unlock()
	u.push.engine.opts.Log.Warn("push retries", "target", u.push.target.Name(), "what", u.name(), "cause", cause, "wait", wait)
	u.send(Progress{Wait: wait, Err: cause})
}

func (u *Upload) enter(s State) {
	u.mu.Lock()
	u.state = s
	u.mu.Unlock()
	u.tell(true)
}

func (u *Upload) end(o Outcome, err error) {
	u.mu.Lock()
	u.outcome, u.err, u.state = o, err, Done
	if err != nil {
		u.outcome, u.state = "", Failed
	}
	u.mu.Unlock()
	u.send(Progress{Err: err})
	close(u.done)
}

// tell reports the state, at once or if the last report is old enough.
func (u *Upload) tell(now bool) {
	if u.push.progress == nil {
		return
	}
	u.mu.Lock()
	due := now || time.Since(u.told) >= u.push.engine.opts.Interval
	if due {
		u.told = time.Now()
	}
	u.mu.Unlock()
	if due {
		u.send(Progress{})
	}
}

// send completes a report and delivers it.
func (u *Upload) send(pr Progress) {
	if u.push.progress == nil {
		return
	}
	u.push.report.Lock()
	defer u.push.report.Unlock()
	u.mu.Lock()
	pr.Name, pr.Digest, pr.Size = u.blob.Name, u.desc.Digest, u.desc.Size
	pr.State, pr.Outcome, pr.Sent, pr.Retries = u.state, u.outcome, u.sent, u.retries
	pr.Rate = u.meter.rate(time.Now())
	u.mu.Unlock()
	err := rescue.Run(func() error { u.push.progress(pr); return nil })
	if err != nil {
		u.push.cancel(err)
	}
}

// A meter measures a rate over windows of a second or two.
type meter struct {
	since time.Time // start of the current window
	n     int64     // bytes in it
	last  float64   // rate of the one before
}

const window = 2 * time.Second

func (m *meter) add(now time.Time, n int64) {
	if m.since.IsZero() {
		m.since = now
	}
	if d := now.Sub(m.since); d >= window {
		m.last = float64(m.n) / d.Seconds()
		m.since, m.n = now, 0
	}
	m.n += n
}

func (m *meter) rate(now time.Time) float64 {
	d := now.Sub(m.since)
	switch {
	case m.since.IsZero() || d <= 0:
		return m.last
	case m.last == 0 || d >= window:
		return float64(m.n) / d.Seconds()
	}
	// Mix in the window before for as long as this one is short.
	f := float64(d) / float64(window)
	return m.last*(1-f) + float64(m.n)/d.Seconds()*f
}
