package buildctx

import (
	"context"
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// A hasher digests the files of a walk that no cache knows.
type hasher struct {
	files    *opener
	entries  []Entry
	stamps   []stamp
	stale    []int // which entries; each belongs to one worker at a time
	parallel int
	tick     *ticker

	next, done, bytes atomic.Int64
}

// hashRun is how many files in a row one worker takes: they tend to lie in
// one directory.
const hashRun = 16

const hashBuffer = 256 << 10

// run digests all stale files and reports progress from its own goroutine.
func (h *hasher) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for range min(h.parallel, (len(h.stale)+hashRun-1)/hashRun) {
		g.Go(func() error { return h.work(ctx) })
	}
	ended := make(chan error, 1)
	go func() { ended <- g.Wait() }()
	every := time.NewTicker(tickEvery)
	defer every.Stop()
	for {
		select {
		case err := <-ended:
			h.count()
			return err
		case <-every.C:
			h.count()
			h.tick.maybe()
		}
	}
}

func (h *hasher) count() {
	h.tick.now.Hashed, h.tick.now.HashedBytes = int(h.done.Load()), h.bytes.Load()
}

func (h *hasher) work(ctx context.Context) error {
	r := fileReader{ctx: ctx, sum: sha256.New(), buf: make([]byte, hashBuffer), bytes: &h.bytes}
	for {
		end := int(h.next.Add(hashRun))
		start := end - hashRun
		if start >= len(h.stale) {
			return nil
		}
		for _, i := range h.stale[start:min(end, len(h.stale))] {
			if err := h.file(&r, &h.entries[i], &h.stamps[i]); err != nil {
				return err
			}
			h.done.Add(1)
		}
	}
}

// file digests one file. Its size and times become those of the moment it was
// opened, and must still hold when it has been read.
func (h *hasher) file(r *fileReader, e *Entry, s *stamp) error {
	f, fi, err := h.files.open(e.Path)
	if err != nil {
		return err
	}
	defer f.Close()
	before := fileStamp(f, fi)
	if !before.sameFile(*s) {
		return &ChangedError{Path: e.Path, Reason: "another file took its place"}
	}
	if err := r.read(f, e, before.size); err != nil {
		return err
	}
	fi, err = f.Stat()
	if err != nil {
		return &walkError{e.Path, err}
	}
	if after := fileStamp(f, fi); !after.sameState(before) {
		return &ChangedError{Path: e.Path, Reason: "somebody writes to it"}
	}
	e.Size, e.ModTime = before.size, before.mtime
	*s = before
	return nil
}

// A fileReader digests file after file with one buffer.
type fileReader struct {
	ctx   context.Context // of the one call of run
	sum   hash.Hash
	buf   []byte
	bytes *atomic.Int64
}

// read digests size bytes of f into e.
func (r *fileReader) read(f *os.File, e *Entry, size int64) error {
	r.sum.Reset()
	for left := size; left > 0; {
		if r.ctx.Err() != nil {
			return context.Cause(r.ctx)
		}
		n, err := io.ReadFull(f, r.buf[:min(left, int64(len(r.buf)))])
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return &ChangedError{Path: e.Path, Reason: "it became shorter"}
		}
		if err != nil {
			return &walkError{e.Path, err}
		}
		r.sum.Write(r.buf[:n])
		r.bytes.Add(int64(n))
		left -= int64(n)
	}
	r.sum.Sum(e.Digest[:0])
	return nil
}
