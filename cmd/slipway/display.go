package main

import (
	"fmt"
	"io"
	"time"

	"github.com/containerd/console"
	"golang.org/x/term"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"

	"github.com/slipwayhq/slipway/cmd/slipway/client"
	"github.com/slipwayhq/slipway/cmd/slipway/progress"
)

// display returns what shows a build: on standard error for people, in the way
// that mode names, and on standard output for programs with --json.
func (p *program) display(mode string) (progress.Display, error) {
	people, err := p.peopleDisplay(mode)
	if err != nil {
		return nil, err
	}
	if p.flags.json {
		return progress.Multi(progress.NewJSON(p.stdout), people), nil
	}
	return progress.Multi(people), nil
}

func (p *program) peopleDisplay(mode string) (progress.Display, error) {
	f, terminal := asTerminal(p.stderr)
	color := terminal && p.color()
	switch mode {
	case "auto":
		if p.flags.json {
			return progress.NewPlain(p.stderr, &progress.PlainOptions{Quiet: true, Color: color}), nil
		}
		if terminal && p.getenv("TERM") != "dumb" {
			return progress.NewTTY(f, color)
		}
		return progress.NewPlain(p.stderr, &progress.PlainOptions{Color: color}), nil
	case "plain":
		return progress.NewPlain(p.stderr, &progress.PlainOptions{Color: color}), nil
	case "none":
		return progress.NewPlain(p.stderr, &progress.PlainOptions{Quiet: true, Color: color}), nil
	case "tty":
		if !terminal {
			return nil, client.UserError("--progress tty: standard error is not a terminal", "Use --progress plain.")
		}
		return progress.NewTTY(f, color)
	}
	return nil, client.UserError(fmt.Sprintf("--progress %q is none of auto, plain, tty, none", mode), "")
}

// color reports whether terminals may be sent colours (see no-color.org).
func (p *program) color() bool {
	return p.getenv("NO_COLOR") == "" && p.getenv("TERM") != "dumb"
}

func asTerminal(w io.Writer) (console.File, bool) {
	f, ok := w.(console.File)
	return f, ok && term.IsTerminal(int(f.Fd()))
}

// buildLog passes what the client hears of a build on to a display.
type buildLog struct {
	show     progress.Display
	id       string
	reattach time.Duration
}

// Accepted implements [client.Observer].
func (b *buildLog) Accepted(id string, joined bool) {
	b.id = id
	n := progress.Note{Type: "accepted", Fields: map[string]any{"build_id": id, "joined": joined}}
	if joined {
		n.Text = "joined build " + id + ", which was started with the same key"
	}
	b.show.Note(n)
}

// Event implements [client.Observer].
func (b *buildLog) Event(ev *slipwayv1.Event) { b.show.Event(ev) }

// Lost implements [client.Observer].
func (b *buildLog) Lost(e *client.Error) {
	b.show.Note(progress.Note{
		Type: "connection_lost", Text: fmt.Sprintf("connection lost; the build goes on for %.0fs …", b.reattach.Seconds()),
		Fields: map[string]any{"error": progress.NewError(e.Proto())},
	})
}

// Reattached implements [client.Observer].
func (b *buildLog) Reattached(from uint64) {
	b.show.Note(progress.Note{
		Type: "reconnected", Text: fmt.Sprintf("reconnected, replaying from event %d", from),
		Fields: map[string]any{"from_seq": from},
	})
}

// Cancelling implements [client.Observer].
func (b *buildLog) Cancelling() {
	b.show.Note(progress.Note{Type: "cancelling", Text: "cancelling on the daemon … (again to leave at once)"})
}
