package rootfs

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"golang.org/x/sys/unix"
)

// A Gauge measures what an upper directory takes as part of a root file system,
// by the rules of the limit: files and links in blocks of 4 KiB, holes as data,
// hard links once, at least a block for a directory, nothing for whiteouts. It
// does so again and again while a step writes there, and remembers what it has
// seen: a directory that did not change is not read again, and of the names
// that are known each look examines a share, the longest unseen first. When the
// disk has lost so much that it matters, a look examines all.
//
// The sum is never less than what the step adds to the image, but for blocks of
// extended attributes and for what grew in silence since it was examined; it
// may be more, for files that became shorter or got a further name. [Credit]
// says what to take off it. A Gauge is for one goroutine.
type Gauge struct {
	upper string
	share int // known names that one look examines

	dirs  map[string]*gauged // by path; the upper directory is ""
	links map[uint64]uint32  // blocks of what has many names
	fresh map[uint64]uint32  // the same, as far as this round has come
	looks uint32
	round uint32 // look before which the present round over all names began

	whole bool  // the last look examined all
	ever  bool  // one did
	free  int64 // of the disk before the last one that did
	known int64 // bytes that it found

	largest string
	size    uint32 // blocks of largest
	visits  int    // names that the last look examined
}

// A gauged directory is what is remembered of one.
type gauged struct {
	st    unix.Stat_t
	sure  bool // a change after the last reading shows in its times
	files map[uint64]gaugedFile
	subs  []string
	sum   int64  // blocks of files
	seen  uint32 // look that came by
	round uint32 // in which all names were examined
}

type gaugedFile struct {
	blocks     uint32
	seen, stat uint32 // looks at which its name was there, and was examined
	linked     bool   // it is counted with links
}

// gaugeShare is how many known names a look examines: a tenth of a second's
// worth. A tree with fewer is measured exactly at each look.
const gaugeShare = 50_000

// NewGauge returns a gauge of an upper directory.
func NewGauge(upper string) *Gauge {
	return &Gauge{upper: upper, share: gaugeShare, dirs: map[string]*gauged{}, links: map[uint64]uint32{}}
}

// Look returns what the directory takes now, and the largest file seen. More
// than stop is of interest to the caller.
func (g *Gauge) Look(ctx context.Context, stop int64) (bytes int64, largest string, err error) {
	if g.missed(stop) {
		g.round = g.looks
		return g.look(ctx, math.MaxInt, 0)
	}
	return g.look(ctx, g.share, 0)
}

// Confirm makes sure that what the last Look returned is more than stop: files
// of more than a few blocks are examined again, and links counted anew, unless
// all others are more already.
func (g *Gauge) Confirm(ctx context.Context, stop int64) (bytes int64, largest string, err error) {
	if n := g.total(); g.whole || n-g.doubtful() > stop {
		return n, g.largest, nil
	}
	g.round = g.looks
	return g.look(ctx, math.MaxInt, believed+1)
}

// believed is up to how many blocks a file is believed to be as it was seen,
// where time matters.
const believed = 4

// missed reports whether the disk has lost what, were it in the directory and
// not yet seen, would make it larger than stop.
func (g *Gauge) missed(stop int64) bool {
	if !g.ever {
		return false // the first look examines all anyway
	}
	free, ok := freeOf(g.upper)
	now := g.total()
	lost := g.free - free - max(0, now-g.known)
	return ok && now <= stop && lost > 0 && now+lost > stop
}

// doubtful sums what Confirm examines.
func (g *Gauge) doubtful() int64 {
	var n int64
	for _, d := range g.dirs {
		for _, f := range d.files {
			if f.blocks > believed {
				n += int64(f.blocks)
			}
		}
	}
	for _, b := range g.links {
		n += int64(b)
	}
	return n * blockSize
}

// Visits returns how many names the last look examined.
func (g *Gauge) Visits() int { return g.visits }

func freeOf(dir string) (int64, bool) {
	var fs unix.Statfs_t
	err := unix.Statfs(dir, &fs)
	return int64(fs.Bfree) * fs.Bsize, err == nil
}

// total sums what is remembered.
func (g *Gauge) total() int64 {
	var n int64
	for _, d := range g.dirs {
		n += d.sum*blockSize + size(&d.st)
	}
	for _, b := range g.links {
		n += int64(b) * blockSize
	}
	if root := g.dirs[""]; root != nil {
		n -= size(&root.st) // it stands for a directory of the image below
	}
	return n
}

// look goes over the tree. It examines known names of more than least blocks,
// as far as the budget goes.
func (g *Gauge) look(ctx context.Context, budget int, least uint32) (int64, string, error) {
	if g.looks == g.round {
		g.fresh = map[uint64]uint32{}
	}
	g.looks++
	g.visits = 0
	free, _ := freeOf(g.upper)
	fd, err := unix.Open(g.upper, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, "", fmt.Errorf("gauge: %w", err)
	}
	defer unix.Close(fd)
	v := &gaugeVisit{Gauge: g, ctx: ctx, budget: budget, least: least, buf: make([]byte, 64<<10)}
	if err := v.directory(fd, ""); err != nil {
		return 0, "", fmt.Errorf("gauge: %w", err)
	}
	for path, d := range g.dirs {
		if d.seen != g.looks {
			delete(g.dirs, path)
		}
	}
	if v.budget > 0 {
		g.links = g.fresh
	}
	if g.whole = v.budget > 0 && least == 0; g.whole {
		g.round = g.looks
		g.ever, g.free, g.known = true, free, g.total()
	}
	return g.total(), g.largest, nil
}

// A gaugeVisit is one look.
type gaugeVisit struct {
	*Gauge
	ctx    context.Context
	budget int
	least  uint32
	there  int // names found in the directory that is being read, each file once
	buf    []byte
}

// directory measures the directory that fd is, and what is below it.
func (v *gaugeVisit) directory(fd int, path string) error {
	if err := context.Cause(v.ctx); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	d := v.dirs[path]
	if d == nil || d.st.Ino != st.Ino || d.st.Dev != st.Dev {
		d = &gauged{files: map[uint64]gaugedFile{}}
		v.dirs[path] = d
	}
	same := d.sure && d.st.Ctim == st.Ctim && d.st.Mtim == st.Mtim
	d.st, d.seen = st, v.looks
	if !same || d.round <= v.round && v.budget > 0 {
		d.sure = time.Since(time.Unix(st.Ctim.Unix())) > tick
		if err := v.read(fd, path, d); err != nil {
			return err
		}
	}
	for _, name := range d.subs {
		if err := v.below(fd, path, name); err != nil {
			return err
		}
	}
	return nil
}

// tick is longer than the time between two changes that a directory's times do
// not tell apart.
const tick = 50 * time.Millisecond

func (v *gaugeVisit) below(fd int, path, name string) error {
	sub, err := openSub(fd, name)
	if err != nil || len(path)+len(name) >= maxPath {
		return nil // it has gone, or is something else by now, or no layer can have it
	}
	defer unix.Close(sub)
	return v.directory(sub, join(path, name))
}

// read goes over the names in a directory.
func (v *gaugeVisit) read(fd int, path string, d *gauged) error {
	d.subs, v.there = d.subs[:0], 0
	all := true
	err := eachName(fd, v.buf, func(ino uint64, typ byte, name []byte) {
		if typ == unix.DT_DIR {
			d.subs = append(d.subs, string(name))
		} else {
			all = v.name(fd, path, d, ino, typ, name) && all
		}
	})
	if err != nil {
		return err
	}
	if v.there < len(d.files) {
		for ino, f := range d.files {
			if f.seen != v.looks {
				d.sum -= int64(f.blocks)
				delete(d.files, ino)
			}
		}
	}
	if all {
		d.round = v.looks
	}
	return nil
}

// name takes a name in, examined or as it is remembered. It reports whether it
// was examined in this round.
func (v *gaugeVisit) name(fd int, path string, d *gauged, ino uint64, typ byte, name []byte) bool {
	f, known := d.files[ino]
	if f.seen != v.looks {
		f.seen = v.looks
		v.there++
	}
	examined := known && f.stat > v.round
	due := !examined && v.budget > 0 && (f.blocks >= v.least || f.linked)
	if !known || due || typ == unix.DT_UNKNOWN {
		if known {
			v.budget--
		}
		d.sum -= int64(f.blocks)
		v.examine(fd, path, d, ino, string(name), &f)
		d.sum += int64(f.blocks)
		examined = true
	}
	d.files[ino] = f
	return examined
}

// examine finds out what a name adds to its directory.
func (v *gaugeVisit) examine(fd int, path string, d *gauged, ino uint64, name string, f *gaugedFile) {
	v.visits++
	f.stat, f.blocks, f.linked = v.looks, 0, false
	var st unix.Stat_t
	if unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return // it has gone
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		d.subs = append(d.subs, name) // of a file system that does not tell types
		return
	}
	blocks := uint32(min(size(&st)/blockSize, math.MaxUint32))
	if blocks > v.size {
		v.largest, v.size = "/"+join(path, name), blocks
	}
	if st.Nlink > 1 {
		v.links[ino], v.fresh[ino], f.linked = blocks, blocks, true
		return
	}
	f.blocks = blocks
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "/" + name
}

// eachName calls f with what a directory holds, in no order; name is valid
// during the call.
func eachName(fd int, buf []byte, f func(ino uint64, typ byte, name []byte)) error {
	for {
		n, err := unix.Getdents(fd, buf)
		if errors.Is(err, unix.ENOENT) {
			return nil // it was removed
		}
		if n <= 0 || err != nil {
			return err
		}
		for rest := buf[:n]; len(rest) > 0; {
			// struct linux_dirent64: ino, offset, length, type, name
			length := binary.NativeEndian.Uint16(rest[16:])
			ino, typ, name := binary.NativeEndian.Uint64(rest), rest[18], rest[19:length]
			name = name[:bytes.IndexByte(name, 0)]
			if rest = rest[length:]; string(name) != "." && string(name) != ".." {
				f(ino, typ, name)
			}
		}
	}
}

// openSub opens a directory in another, and nothing that it may have become.
func openSub(fd int, name string) (int, error) {
	return unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}
