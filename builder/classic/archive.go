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
	"path"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive/compression"

	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/builder/layer"
	"github.com/slipwayhq/slipway/builder/rootfs"
	"github.com/slipwayhq/slipway/layercache"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// archives finds the sources that are tar archives, by their content.
func (s *stage) archives(ctx context.Context, t *transfer, unpack *bool) (map[*file]bool, error) {
	if unpack != nil && !*unpack {
		return nil, nil
	}
	found := map[*file]bool{}
	for _, src := range t.sources {
		if src.url || src.file.typ != tar.TypeReg || src.file.size == 0 {
			continue
		}
		is, err := s.isArchive(ctx, t, src.file)
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
func (s *stage) isArchive(ctx context.Context, t *transfer, f *file) (bool, error) {
	cache := s.build.job.Cache
	content, err := t.from.hash(ctx, f)
	if err != nil {
		return false, err
	}
	key := layercache.NewKey(layercache.Part{Name: "archive/v2", Value: content})
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
	if err := s.build.job.Session.Need(ctx, []int{f.entry}); err != nil {
		return false, err
	}
	r, err := t.from.open(ctx, f)
	if err != nil {
		return false, err
	}
	defer r.Close()
	is, err := startsArchive(r)
	if err != nil {
		return false, t.failf(failure.NotSupported, "compress the archive with gzip, bzip2 or zstd, or COPY it and unpack it in a RUN step", "%s: %v", strings.TrimPrefix(f.path, "/"), err)
	}
	rec = layercache.Step{Created: time.Now().UTC(), Empty: true, App: s.build.job.App, Extra: fmt.Appendf(nil, "%t", is)}
	return is, cache.PutStep(ctx, key, rec)
}

var (
	bzip2Magic = []byte("BZh")
	xzMagic    = []byte("\xfd7zXZ\x00")
)

var errXZ = errors.New("xz compression is not supported yet")

// decompress returns what r holds, whatever its compression.
func decompress(r io.Reader) (io.ReadCloser, error) {
	b := bufio.NewReader(r)
	magic, _ := b.Peek(len(xzMagic)) // a shorter file is not compressed
	switch {
	case bytes.HasPrefix(magic, bzip2Magic):
		return io.NopCloser(bzip2.NewReader(b)), nil
	case bytes.Equal(magic, xzMagic):
		return nil, errXZ
	}
	return compression.DecompressStream(b)
}

// startsArchive reports whether a tar header can be read, after
// decompression by content.
func startsArchive(r io.Reader) (bool, error) {
	plain, err := decompress(r)
	if errors.Is(err, errXZ) {
		return false, err
	}
	if err != nil {
		return false, nil
	}
	defer plain.Close()
	_, err = tar.NewReader(plain).Next()
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
	a := &unpacking{stage: s, transfer: t, archives: archives}
	return s.apply(ctx, steps, st, &change{
		image: cloneImage(s.node.image), createdBy: nopFS(&s.node.image, comment),
		key: fixed(layercache.Part{Name: "unpack", Value: comment}),
		run: a.run, write: a.write,
		inputs: s.transferInputs(st, t, hash), reads: t,
	}, done)
}

// An unpacking is an ADD of archives under way.
type unpacking struct {
	stage    *stage
	transfer *transfer
	archives map[*file]bool
	upper    string
}

func (a *unpacking) run(ctx context.Context, n *node) error {
	need, err := a.transfer.entries()
	if err != nil {
		return err
	}
	if err := a.stage.build.job.Session.Need(ctx, need); err != nil {
		return err
	}
	parent, err := n.parent.rootSnapshot(ctx)
	if err != nil {
		return err
	}
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

func (a *unpacking) fill(ctx context.Context, n *node, snap *layercache.Snapshot) error {
	lowers := snap.Lowers()
	t := *a.transfer
	for _, src := range a.transfer.sources {
		t.sources = []copySource{src}
		dirs := rootfs.Dirs{Upper: snap.Upper(), Parents: lowers}
		merged := layersTree(append([]string{snap.Upper()}, lowers...))
		if a.archives[src.file] {
			if err := a.unpack(ctx, n, src.file, merged, dirs); err != nil {
				return err
			}
			continue
		}
		uid, gid, err := a.stage.owner(ctx, &t, n)
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
func (a *unpacking) unpack(ctx context.Context, n *node, f *file, merged tree, dirs rootfs.Dirs) error {
	d := newDraft(n, merged)
	dest, err := follow(d, a.transfer.dest, true)
	if err != nil {
		return err
	}
	var blocked *notDirError
	if err := d.mkdirAll(dest, 0, 0); errors.As(err, &blocked) {
		return a.transfer.failf(failure.DockerfileInvalid, "choose a destination below a directory", "mkdir %s: not a directory", blocked.path)
	} else if err != nil {
		return err
	}
	if err := d.unpack(ctx, dirs); err != nil {
		return err
	}
	r, err := a.transfer.from.open(ctx, f)
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
		func(r io.Reader) error { return rootfs.Apply(ctx, r, dirs) },
	)
	if err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return a.transfer.failf(failure.DockerfileInvalid, "check the archive with tar -t", "%s: %v", strings.TrimPrefix(f.path, "/"), err)
	}
	return nil
}

// relocate writes an archive's entries below a directory.
func relocate(w io.Writer, r *tar.Reader, dest string) error {
	tw := tar.NewWriter(w)
	for {
		h, err := r.Next()
		if err == io.EOF {
			return tw.Close()
		}
		if err != nil {
			return err
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if h.Name = below(dest, h.Name); h.Name == "" {
			continue // the root of the image stays as it is
		}
		if h.Typeflag == tar.TypeLink {
			h.Linkname = below(dest, h.Linkname)
		}
		if h.Typeflag == tar.TypeDir {
			h.Name += "/"
		}
		h.Format = tar.FormatPAX
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.Copy(tw, r); err != nil {
			return err
		}
	}
}

func (a *unpacking) write(ctx context.Context, _ *node, w *layer.Writer) error {
	return rootfs.WriteUpper(ctx, w.Tar(), a.upper, w.Charge)
}

// below returns where a name of an archive is, which is never outside dest.
func below(dest, name string) string {
	return strings.TrimPrefix(path.Join("/", dest, path.Clean("/"+name)), "/")
}

// piped runs a writer into a reader. It returns when both have ended, with the
// error of whichever failed first.
func piped(write func(io.Writer) error, read func(io.Reader) error) error {
	r, w := io.Pipe()
	var written error
	var g sync.WaitGroup
	g.Go(func() {
		written = write(w)
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
