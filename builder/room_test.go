package builder_test

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/buildctx"
	"github.com/slipwayhq/slipway/builder"
	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/builder/layer"
	"github.com/slipwayhq/slipway/layercache"
	"github.com/slipwayhq/slipway/limits"
)

// A sizedSession has a context of one file, of which nothing ever comes.
type sizedSession struct {
	session
	size  int64
	asked int
	need  func() // may be nil
}

func (s *sizedSession) Manifest(context.Context) (*buildctx.Manifest, error) {
	return &buildctx.Manifest{Entries: []buildctx.Entry{{Path: "f", Type: buildctx.TypeFile, Size: s.size, Digest: [32]byte{1}}}}, nil
}

func (s *sizedSession) Need(context.Context, ...[]int) error {
	s.asked++
	if s.need != nil {
		s.need()
	}
	return nil
}

const mb = 1 << 20

// smallCache opens a store on a disk of 400 MB.
func smallCache(t *testing.T) *layercache.Store {
	t.Helper()
	if os.Getuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root: mounts a small disk")
		}
		t.Skip("needs root: mounts a small disk")
	}
	disk := t.TempDir()
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=400m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// containerd leaves a file of it open until the next collection.
		if err := unix.Unmount(disk, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return openCache(t, disk)
}

// A context for which the disk has no room is refused before any of it has
// travelled, however often it is asked for.
func TestNoRoomForTheContext(t *testing.T) {
	client := &sizedSession{size: 200 * mb} // twice that, with its layer
	need := func(ctx context.Context, job *builder.Job) error {
		return errors.Join(job.Session.Need(ctx), job.Session.Need(ctx, []int{0}), job.Session.Need(ctx, nil, []int{0}))
	}
	res := runOn(t, smallCache(t), &script{first: need}, client)
	e := res.GetError()
	if e.GetCode() != failure.DiskFull || e.GetPhase() != failure.Context || !strings.Contains(e.GetMessage(), "context") || client.asked != 1 {
		t.Errorf("error %v, asked %d times", e, client.asked)
	}
}

// Room for contents is held while they come, that for layers until they are
// made, each once; 64 MB are anybody's.
func TestRoomForTheContext(t *testing.T) {
	store := smallCache(t)
	between := func(when string, least, most int64) {
		t.Helper()
		for _, n := range []int64{least, most} {
			held, err := store.Reserve(t.Context(), n*mb)
			if err == nil {
				held.Release()
			}
			if fits := err == nil; fits != (n == least) {
				t.Errorf("%s: %d MB fit: %t", when, n, fits)
			}
		}
	}
	client := &sizedSession{size: 100 * mb}
	client.need = func() {
		if client.asked == 1 {
			between("while it comes", 100, 200)
		}
	}
	res := runOn(t, store, &script{first: func(ctx context.Context, job *builder.Job) error {
		for range 3 {
			if err := job.Session.Need(ctx, []int{0}); err != nil {
				return err
			}
		}
		between("when it has come", 200, 300)
		_, err := job.Maker.Make(ctx, layer.Spec{Ledger: limits.NewLedger(0), Write: func(_ context.Context, w *layer.Writer) error {
			return w.Entry(&tar.Header{Name: "f", Mode: 0o644, Size: 90 * mb}, io.LimitReader(zeros{}, 90*mb))
		}})
		between("with its layer", 300, 390)
		return err
	}}, client)
	if res.Error != nil || client.asked != 3 {
		t.Errorf("error %v, asked %d times", res.Error, client.asked)
	}
	between("after the build", 370, 410)
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
