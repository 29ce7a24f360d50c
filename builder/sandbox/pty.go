package sandbox

import (
	"errors"
	"os"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// A Terminal is what an interactive process runs on.
type Terminal struct {
	Size   Size        // at first
	Resize <-chan Size // from then on; may be nil and may be closed
}

// A Size is that of a terminal, in characters. Zero is unknown.
type Size struct{ Rows, Cols uint16 }

// box is the size in the runtime's configuration: the process shall see it from
// the beginning, and not only when the runtime gets to it.
func (t *Terminal) box() *specs.Box {
	if t == nil || t.Size == (Size{}) {
		return nil
	}
	return &specs.Box{Height: uint(t.Size.Rows), Width: uint(t.Size.Cols)}
}

// openPTY opens both ends of a terminal that passes everything on as it is: the
// process has one of its own behind it, which the runtime makes.
func openPTY(size Size) (ours, theirs *os.File, err error) {
	// Not blocking, so that reads and writes can be stopped.
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, &os.PathError{Op: "open", Path: "/dev/ptmx", Err: err}
	}
	ours = os.NewFile(uintptr(fd), "/dev/ptmx")
	if err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return nil, nil, errors.Join(os.NewSyscallError("unlock terminal", err), ours.Close())
	}
	peer, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return nil, nil, errors.Join(os.NewSyscallError("open terminal", errno), ours.Close())
	}
	theirs = os.NewFile(peer, "terminal")
	if _, err = term.MakeRaw(int(peer)); err == nil {
		err = setSize(ours, size)
	}
	if err != nil {
		return nil, nil, errors.Join(err, ours.Close(), theirs.Close())
	}
	return ours, theirs, nil
}

func setSize(pty *os.File, s Size) error {
	conn, err := pty.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = conn.Control(func(fd uintptr) {
		failed = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: s.Rows, Col: s.Cols})
	})
	return errors.Join(err, os.NewSyscallError("set size of terminal", failed))
}
