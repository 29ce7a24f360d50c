package builder

import (
	"io"
	"syscall"
)

// A Console joins a process in a sandbox with whoever has started it.
type Console struct {
	// Stdin is closed when the process has ended, which must end a Read that is
	// under way. Nil is an empty input.
	Stdin io.ReadCloser

	// Stdout and Stderr get the output as it comes, from different goroutines.
	// An error ends the process. With a Terminal, Stderr gets none.
	Stdout, Stderr io.Writer

	Terminal *Terminal             // nil means pipes
	Signals  <-chan syscall.Signal // may be nil and may be closed

	// Notice tells whoever looks on what the daemon has to say, a line at a time.
	// Nil means that nobody does.
	Notice func(string)
}

// Tell tells whoever looks on.
func (c *Console) Tell(line string) {
	if c.Notice != nil {
		c.Notice(line)
	}
}

// A Terminal is what an interactive process runs on.
type Terminal struct {
	Name   string // TERM of the client
	Size   WindowSize
	Resize <-chan WindowSize // may be nil and may be closed
}

// A WindowSize is that of a terminal, in characters. Zero is unknown.
type WindowSize struct{ Rows, Columns uint16 }

// A Command is what to run in an app's image.
type Command struct {
	Org, App string
	Image    string // reference with a tag or a digest
	Args     []string
}
