package rootfs

import (
	"context"
	"errors"
	"fmt"
	"math"

	"golang.org/x/sys/unix"
)

const blockSize = 4096

// Usage returns what an upper directory takes as part of a root file system,
// by the rules of the limit: files and links in blocks of 4 KiB, holes as
// data, hard links once, at least a block for a directory, nothing for
// whiteouts. It may be used while a step writes there. It stops as soon as the
// sum is more than stop, and names the largest file seen so far. A negative
// stop means never.
//
// The sum is never less than what the step adds to the image, but for blocks of
// extended attributes. Where it is too much, [Growth] says more.
func Usage(ctx context.Context, upper string, stop int64) (bytes int64, largest string, err error) {
	u := &usage{stop: stop, links: map[inode]bool{}}
	if stop < 0 {
		u.stop = math.MaxInt64
	}
	err = (&walker{ctx: ctx, live: true, visit: u.entry}).walk(upper)
	if err != nil && !errors.Is(err, errStop) {
		return 0, "", fmt.Errorf("usage: %w", err)
	}
	return u.bytes, u.largest, nil
}

var errStop = errors.New("stop")

type usage struct {
	bytes, stop int64
	links       map[inode]bool
	largest     string
	size        int64 // of largest
}

func (u *usage) entry(e *entry) error {
	n := u.take(e)
	if u.bytes += n; n > u.size && !e.isDir() {
		u.largest, u.size = "/"+e.path, n
	}
	if u.bytes > u.stop {
		return errStop
	}
	return nil
}

// take returns what e takes, and nothing for another name of the same.
func (u *usage) take(e *entry) int64 {
	if !e.isDir() && e.st.Nlink > 1 {
		i := inode{e.st.Dev, e.st.Ino}
		if u.links[i] {
			return 0
		}
		u.links[i] = true
	}
	return size(&e.st)
}

// size returns what an inode takes. A large file has index blocks, too.
func size(st *unix.Stat_t) int64 {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		n := blocks(st.Size)
		if extents := (st.Size + 16<<20 - 1) / (16 << 20); extents > 4 {
			n += (extents + 339) / 340 * blockSize
		}
		return n
	case unix.S_IFDIR:
		return max(blocks(st.Size), blockSize)
	case unix.S_IFLNK:
		if st.Size > 59 {
			return blockSize
		}
	}
	return 0
}

func blocks(n int64) int64 { return (n + blockSize - 1) &^ (blockSize - 1) }

// Growth returns by how much an upper directory makes the root file system
// larger, which is negative if it removes more than it adds. Held says what
// the image below has at a path: bytes of the path itself, and of all at or
// below it. It names the largest file that the step wrote.
func Growth(ctx context.Context, upper string, held func(path string) (own, tree int64)) (bytes int64, largest string, err error) {
	g := &growth{held: held, usage: usage{stop: math.MaxInt64, links: map[inode]bool{}}}
	err = (&walker{ctx: ctx, live: true, visit: g.entry, leave: g.leave}).walk(upper)
	if err != nil {
		return 0, "", fmt.Errorf("growth: %w", err)
	}
	return g.bytes, g.largest, nil
}

// A growth credits what an entry hides. Below a directory that hides all, there
// is nothing left to credit.
type growth struct {
	usage
	held    func(string) (own, tree int64)
	covered int // directories on the way that hide all below
	covers  []bool
}

func (g *growth) entry(e *entry) error {
	if e.isDir() {
		return g.directory(e)
	}
	if g.covered == 0 {
		_, tree := g.held("/" + e.path)
		g.bytes -= tree
	}
	return g.usage.entry(e)
}

func (g *growth) directory(e *entry) error {
	covers := false
	if g.covered == 0 {
		own, tree := g.held("/" + e.path)
		opaque, err := getXattr(int(e.dir.Fd()), xattrOpaque)
		if err != nil && !errors.Is(err, unix.ENODATA) {
			return e.fail("getxattr", err)
		}
		if covers = opaque == "y"; covers {
			g.bytes -= tree
		} else {
			g.bytes -= min(own, size(&e.st)) // the larger of both stays
		}
	}
	if covers {
		g.covered++
	}
	g.covers = append(g.covers, covers)
	return g.usage.entry(e)
}

func (g *growth) leave(*entry) error {
	last := len(g.covers) - 1
	if g.covers[last] {
		g.covered--
	}
	g.covers = g.covers[:last]
	return nil
}
