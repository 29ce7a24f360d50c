package classic

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/bzip2"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/therootcompany/xz"

	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/builder/layer"
	"github.com/slipwayhq/slipway/builder/rootfs"
	"github.com/slipwayhq/slipway/layercache"
	"github.com/slipwayhq/slipway/limits"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
	"github.com/slipwayhq/slipway/rescue"
)

// archives finds the sources that are tar archives, by their content. What was
// downloaded is unpacked only where the instruction says so.
func (s *stage) archives(ctx context.Context, t *transfer, unpack *bool) (map[*file]bool, error) {
	if unpack != nil && !*unpack {
		return nil, nil
	}
	found := map[*file]bool{}
	for _, src := range t.sources {
		if src.url && unpack == nil || src.file.typ != tar.TypeReg || src.file.size == 0 {
			continue
		}
		is, err := s.isArchive(ctx, t, src)
		if err != nil {
			return nil, err
		}
		if is {
			found[src.file] = true
		}
	}
	return found, nil
}

// isArchive remembers its answer by content, so that an unchanged archive
// need not travel to be recognised.
func (s *stage) isArchive(ctx context.Context, t *transfer, src copySource) (bool, error) {
	cache := s.build.job.Cache
	content, err := src.from.hash(ctx, src.file)
	if err != nil {
		return false, err
	}
	key := layercache.NewKey(layercache.Part{Name: "archive/v3", Value: content})
	rec, err := cache.Step(ctx, key)
	if err == nil {
		return string(rec.Extra) == "true", nil
	}
	if !missing(err) {
		return false, err
	}
	if s.build.forecast != nil {
		return false, nil // a content that is new; it is a miss either way
	}
	if !src.url {
		if err := s.build.job.Session.Need(ctx, []int{src.file.entry}); err != nil {
			return false, err
		}
	}
	r, err := src.from.open(ctx, src.file)
	if err != nil {
		return false, err
	}
	defer r.Close()
	is, err := startsArchive(r)
	if err != nil {
		return false, t.failf(failure.NotSupported, "compress the archive with xz -9 or less, or COPY it and unpack it in a RUN step",
			"%s: %v", strings.TrimPrefix(src.file.path, "/"), err)
	}
	rec = layercache.Step{Created: time.Now().UTC(), Empty: true, App: s.build.job.App, Extra: fmt.Appendf(nil, "%t", is)}
	return is, cache.PutStep(ctx, key, rec)
}

var (
	bzip2Magic = []byte("BZh")
	xzMagic    = []byte("\xfd7zXZ\x00")
)

// xzDictionary is the largest dictionary that an xz archive may ask for, in
// bytes: that of xz -9.
const xzDictionary = 64 << 20

var errDictionary = errors.New("its xz dictionary is larger than 64 MiB")

// decompress returns what r holds, whatever its compression. The caller
// closes it; that does not close r.
func decompress(r io.Reader) (io.ReadCloser, error) {
	b := bufio.NewReader(r)
	magic, _ := b.Peek(len(xzMagic)) // a shorter file is not compressed
	switch {
	case bytes.HasPrefix(magic, bzip2Magic):
		return io.NopCloser(bzip2.NewReader(b)), nil
	case bytes.Equal(magic, xzMagic):
		plain, err := xz.NewReader(b, xzDictionary)
		return io.NopCloser(plain), err
	}
	return layer.Decompress(b)
}

// startsArchive reports whether a tar header can be read, after
// decompression by content.
func startsArchive(r io.Reader) (bool, error) {
	plain, err := decompress(r)
	if plain != nil {
		defer plain.Close()
	}
	if err == nil {
		_, err = tar.NewReader(plain).Next()
	}
	if errors.Is(err, xz.ErrMemlimit) {
		return false, errDictionary
	}
	return err == nil, nil
}

// addArchives unpacks archives, and copies what else there is, into a
// snapshot: only a real file system unpacks as one does.
func (s *stage) addArchives(ctx, steps context.Context, st *step, t *transfer, archives map[*file]bool, done *slipwayv1.StepDone) error {
	hash, err := t.hash(steps)
	if err != nil {
		return err
	}
	comment := t.comment(hash, destOf(st))
	a := &unpacking{stage: s, transfer: t, archives: archives, marks: marks{}}
	return s.apply(ctx, steps, st, &change{
		image: cloneImage(s.node.image), createdBy: nopFS(&s.node.image, comment),
		key: fixed(t.parts("unpack", comment)...), alone: s.alone(t),
		run: a.run, write: a.write,
		inputs: s.transferInputs(st, t, hash), reads: []*transfer{t},
	}, done)
}

// An unpacking is an ADD of archives under way.
type unpacking struct {
	stage    *stage
	transfer *transfer
	archives map[*file]bool
	meter    *limits.Layer // stops an archive at the limit, before it fills the disk
	upper    string
	marks    marks
}

func (a *unpacking) run(ctx context.Context, n *node) error {
	need, err := a.transfer.entries()
	if err != nil {
		return err
	}
	if err := a.stage.build.job.Session.Need(ctx, need); err != nil {
		return err
	}
	if err := a.transfer.fetch(ctx); err != nil {
		return err
	}
	parent, err := n.parent.rootSnapshot(ctx)
	if err != nil {
		return err
	}
	if err := n.parent.wait(ctx); err != nil {
		return err
	}
	ledger, err := a.stage.build.charged(ctx, n.parent.layers())
	if err != nil {
		return err
	}
	a.meter = ledger.Begin(limits.Source{Line: n.step.line, Text: n.step.source})
	defer a.meter.Close()
	name := snapshotName()
	err = layer.Fill(ctx, a.stage.build.job.Cache, parent, name, func(snap *layercache.Snapshot) error {
		a.upper = snap.Upper()
		return a.fill(ctx, n, snap)
	})
	if err == nil {
		n.setSnapshot(name)
	}
	return err
}

// apart returns the transfer as one for each source, in order, and one for the
// here-documents.
func (t *transfer) apart() []*transfer {
	var all []*transfer
	for _, src := range t.sources {
		one := *t
		one.sources, one.inline = []copySource{src}, nil
		all = append(all, &one)
	}
	if len(t.inline) > 0 {
		one := *t
		one.sources = nil
		all = append(all, &one)
	}
	return all
}

func (a *unpacking) fill(ctx context.Context, n *node, snap *layercache.Snapshot) error {
	// Archives have owners of their own, but --chown must make sense.
	if _, _, err := a.stage.owner(ctx, a.transfer, n); err != nil {
		return err
	}
	lowers := snap.Lowers()
	if a.transfer.link {
		lowers = nil
	}
	for _, t := range a.transfer.apart() {
		dirs := rootfs.Dirs{Upper: snap.Upper(), Parents: lowers}
		merged := layersTree(append([]string{snap.Upper()}, lowers...))
		if len(t.sources) > 0 && a.archives[t.sources[0].file] {
			if err := a.unpack(ctx, n, t.sources[0], merged, dirs); err != nil {
				return err
			}
			continue
		}
		uid, gid, err := a.stage.owner(ctx, t, n)
		if err != nil {
			return err
		}
		d := newDraft(n, merged)
		if err := t.plan(d, uid, gid); err != nil {
			return err
		}
		if err := d.unpack(ctx, dirs); err != nil {
			return err
		}
	}
	return nil
}

// unpack makes the destination and unpacks an archive below it.
func (a *unpacking) unpack(ctx context.Context, n *node, src copySource, merged tree, dirs rootfs.Dirs) error {
	d := newDraft(n, merged)
	dest, err := follow(d, a.transfer.dest, true)
	if err != nil {
		return err
	}
	relocate := relocateInto(merged, a.marks)
	var blocked *notDirError
	if err := d.mkdirAll(dest, 0, 0); errors.As(err, &blocked) {
		return a.transfer.failf(failure.DockerfileInvalid, "choose a destination below a directory", "mkdir %s: not a directory", blocked.path)
	} else if err != nil {
		return err
	}
	if err := d.unpack(ctx, dirs); err != nil {
		return err
	}
	r, err := src.from.open(ctx, src.file)
	if err != nil {
		return err
	}
	defer r.Close()
	plain, err := decompress(r)
	if err != nil {
		return err
	}
	defer plain.Close()
	err = piped(
		func(w io.Writer) error { return relocate(w, tar.NewReader(plain), strings.TrimPrefix(dest, "/")) },
		func(r io.Reader) error { return rootfs.Apply(ctx, a.meter.Reader(r), dirs) },
	)
	var large *limits.SizeError
	if errors.As(err, &large) {
		return err
	}
	if err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return a.transfer.failf(failure.DockerfileInvalid, "check the archive with tar -t", "%s: %v", strings.TrimPrefix(src.file.path, "/"), err)
	}
	return nil
}

func (a *unpacking) write(ctx context.Context, _ *node, w *layer.Writer) error {
	return rootfs.WriteUpper(ctx, w.Tar(), a.upper, a.marks.charge(w))
}

// piped runs a writer into a reader. It returns when both have ended, with the
// error of whichever failed first.
func piped(write func(io.Writer) error, read func(io.Reader) error) error {
	r, w := io.Pipe()
	var written error
	var g sync.WaitGroup
	g.Go(func() {
		written = rescue.Run(func() error { return write(w) })
		w.CloseWithError(written)
	})
	err := read(r)
	r.CloseWithError(err)
	g.Wait()
	if written != nil && !errors.Is(written, io.ErrClosedPipe) {
		return written
	}
	return err
}
