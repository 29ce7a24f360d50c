package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"unicode/utf8"

	"golang.org/x/term"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"

	"github.com/slipwayhq/slipway/cmd/slipway/client"
	"github.com/slipwayhq/slipway/cmd/slipway/progress"
)

// processLines annotates commands whose JSON is what a process prints.
const processLines = "process"

// An attendance runs one process on the daemon for this program.
type attendance struct {
	p        *program
	input    bool // the process gets this program's input
	terminal bool // it has a terminal
}

// run runs what start begins, and ends with its exit code. start gets the
// terminal that the process is to have, nil for none.
func (s *attendance) run(ctx context.Context, start func(context.Context, *slipwayv1.Terminal, client.Process) (int, error)) error {
	out := client.Process{Stdout: s.p.stdout, Stderr: s.p.stderr, Notice: s.notice}
	if s.input {
		out.Stdin = s.p.stdin
	}
	var lines *processJSON
	if s.p.flags.json {
		lines = newProcessJSON(s.p.stdout)
		out.Stdout, out.Stderr, out.Notice = lines.stream("stdout"), lines.stream("stderr"), lines.notice
	}
	var t *slipwayv1.Terminal
	if s.terminal {
		t = &slipwayv1.Terminal{Term: s.p.getenv("TERM")}
		restore, err := s.raw(ctx, t, &out)
		if err != nil {
			return err
		}
		defer restore()
	}
	code, err := start(ctx, t, out)
	if err != nil {
		return err
	}
	if lines != nil {
		if err := lines.finish(&code, nil); err != nil {
			return err
		}
	}
	if code != 0 {
		return &shownError{code & 0xff}
	}
	return nil
}

// notice shows what the daemon has to say, apart from what the process does.
func (s *attendance) notice(line string) {
	end := "\n"
	if s.terminal {
		end = "\r\n" // it may be raw
	}
	fmt.Fprint(s.p.stderr, "• "+line+end)
}

// raw has this program's terminal pass every key on, and tells the size of it. A
// program without one has nothing to change.
func (s *attendance) raw(ctx context.Context, t *slipwayv1.Terminal, out *client.Process) (restore func(), err error) {
	in, ok := s.p.stdin.(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		return func() {}, nil
	}
	screen := in
	if f, ok := s.p.stdout.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		screen = f
	}
	t.Size = windowSize(screen)
	cooked := func() {}
	if s.input {
		state, err := term.MakeRaw(int(in.Fd()))
		if err != nil {
			return nil, fmt.Errorf("make the terminal raw: %w", err)
		}
		cooked = func() { _ = term.Restore(int(in.Fd()), state) }
	}
	sizes := make(chan *slipwayv1.WindowSize)
	out.Resize = sizes
	ctx, stop := context.WithCancel(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		watchSize(ctx, func() {
			select {
			case sizes <- windowSize(screen):
			case <-ctx.Done():
			}
		})
	}()
	return func() { stop(); <-watched; cooked() }, nil
}

func windowSize(f *os.File) *slipwayv1.WindowSize {
	columns, rows, err := term.GetSize(int(f.Fd()))
	if err != nil || columns < 0 || rows < 0 {
		return nil
	}
	return &slipwayv1.WindowSize{Rows: uint32(rows), Columns: uint32(columns)}
}

// isTerminal reports whether this program is used at a terminal.
func (p *program) isTerminal() bool {
	in, ok := p.stdin.(*os.File)
	_, out := asTerminal(p.stdout)
	return ok && out && term.IsTerminal(int(in.Fd()))
}

// A processJSON writes what a process does as JSON lines:
//
//	output     stream ("stdout", "stderr"), data; data_base64 in place of data for what is no text
//	notice     message
//	result     exit_code, error: one of them is null
type processJSON struct {
	mu   sync.Mutex
	enc  *json.Encoder
	part map[string][]byte // the begin of a character, by stream
}

func newProcessJSON(w io.Writer) *processJSON {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return &processJSON{enc: enc, part: map[string][]byte{}}
}

type outputLine struct {
	Type   string `json:"type"`
	Stream string `json:"stream"`
	Data   string `json:"data,omitempty"`
	Base64 []byte `json:"data_base64,omitempty"`
}

// output writes a piece of the output. A character is never in two lines.
func (j *processJSON) output(stream string, data []byte, last bool) error {
	data = append(j.part[stream], data...)
	whole := len(data)
	if !last {
		whole -= halfRune(data)
	}
	j.part[stream] = append([]byte(nil), data[whole:]...)
	if data = data[:whole]; len(data) == 0 {
		return nil
	}
	line := outputLine{Type: "output", Stream: stream}
	if utf8.Valid(data) {
		line.Data = string(data)
	} else {
		line.Base64 = data
	}
	return j.enc.Encode(line)
}

// halfRune is how many bytes at the end are the begin of a character.
func halfRune(data []byte) int {
	for n := 1; n < utf8.UTFMax && n <= len(data); n++ {
		tail := data[len(data)-n:]
		if utf8.RuneStart(tail[0]) {
			if utf8.FullRune(tail) {
				return 0
			}
			return n
		}
	}
	return 0
}

func (j *processJSON) stream(name string) io.Writer {
	return writerFunc(func(p []byte) (int, error) {
		j.mu.Lock()
		defer j.mu.Unlock()
		return len(p), j.output(name, p, false)
	})
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func (j *processJSON) notice(line string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	_ = j.enc.Encode(struct { // whoever cannot be written to learns so by the output
		Type    string `json:"type"`
		Message string `json:"message"`
	}{"notice", line})
}

// finish writes the last line.
func (j *processJSON) finish(code *int, e *client.Error) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, stream := range []string{"stdout", "stderr"} {
		if err := j.output(stream, nil, true); err != nil {
			return err
		}
	}
	var shown *progress.Error
	if e != nil {
		shown = progress.NewError(e.Proto())
	}
	return j.enc.Encode(struct {
		Type     string          `json:"type"`
		ExitCode *int            `json:"exit_code"`
		Error    *progress.Error `json:"error"`
	}{"result", code, shown})
}

// command splits arguments at --, and checks what comes before.
func command(args []string, dash int, names ...string) (before, command []string, err error) {
	if dash < 0 {
		dash = len(args)
	}
	before, command = args[:dash], args[dash:]
	if len(before) != len(names) {
		what := strings.Join(append(names, "a command after --"), " and ")
		return nil, nil, fmt.Errorf("want %s, and no other arguments", what)
	}
	return before, command, nil
}
