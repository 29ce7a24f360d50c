// Package progress shows how a build goes on: as lines for a log ([Plain]), as
// a live display on a terminal ([TTY]) or as JSON lines for programs ([JSON]).
//
// All of them hear the same calls of [Display]; what they share, the plan of
// the build and the words for its end, is in plan.go and report.go.
package progress

import (
	"sync"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// Display shows one build. Its methods are called one at a time, Begin first
// and Finish last. What it cannot write it drops: a build does not fail for
// its log, except that Finish returns the first error.
type Display interface {
	// Begin says what is about to be built.
	Begin(Header)
	// Event is called for each of the build's events, its result included.
	Event(*slipwayv1.Event)
	// Note shows what the client itself has to say.
	Note(Note)
	// Finish shows how the build ended and releases what the display holds.
	// It is called also for builds that never reached the daemon.
	Finish(*slipwayv1.Result) error
}

// Header sums up what is known before the daemon is asked.
type Header struct {
	App            string
	Pipeline       string
	Dockerfile     string // name; empty for a prebuilt image
	Content        []byte // of the Dockerfile; may be nil
	Image          string // of a prebuilt image
	IgnoreFile     string // empty if none applies
	IgnorePatterns int
}

// Note is a line from the client. Type and Fields are for programs, Text and
// Lines, which may be empty, for people.
type Note struct {
	Type     string
	Text     string
	Lines    []string // below the text
	Fields   map[string]any
	Progress bool // of interest only while it lasts
}

// Multi returns a display that passes everything to each of ds, and that may be
// called concurrently. Its Finish returns the first error.
func Multi(ds ...Display) Display { return &multi{all: ds} }

type multi struct {
	mu  sync.Mutex
	all []Display
}

func (m *multi) each(f func(Display)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, d := range m.all {
		f(d)
	}
}

func (m *multi) Begin(h Header)            { m.each(func(d Display) { d.Begin(h) }) }
func (m *multi) Event(ev *slipwayv1.Event) { m.each(func(d Display) { d.Event(ev) }) }
func (m *multi) Note(n Note)               { m.each(func(d Display) { d.Note(n) }) }

func (m *multi) Finish(r *slipwayv1.Result) error {
	var first error
	m.each(func(d Display) {
		if err := d.Finish(r); first == nil {
			first = err
		}
	})
	return first
}
