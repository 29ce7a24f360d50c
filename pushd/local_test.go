package pushd_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/slipwayhq/slipway/pushd"
	"github.com/slipwayhq/slipway/pushd/targettest"
)

// A folder is a Linker that keeps blobs and manifests as files.
type folder string

func (f folder) blob(d digest.Digest) string { return filepath.Join(string(f), "blob-"+d.Encoded()) }

func (f folder) manifest(ref string) string {
	return filepath.Join(string(f), "manifest-"+strings.ReplaceAll(ref, ":", "+"))
}

func (f folder) Exists(_ context.Context, desc ocispec.Descriptor) (bool, error) {
	_, err := os.Stat(f.blob(desc.Digest))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

func (f folder) Link(ctx context.Context, desc ocispec.Descriptor, path string) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if err := os.Link(path, f.blob(desc.Digest)); !errors.Is(err, os.ErrExist) {
		return err
	}
	return nil
}

func (f folder) PutManifest(_ context.Context, desc ocispec.Descriptor, raw []byte, tags ...string) error {
	for _, ref := range append([]string{desc.Digest.String()}, tags...) {
		if err := os.WriteFile(f.manifest(ref), raw, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (f folder) Manifest(_ context.Context, ref string) (ocispec.Descriptor, []byte, error) {
	raw, err := os.ReadFile(f.manifest(ref))
	return ocispec.Descriptor{Digest: digest.FromBytes(raw)}, raw, err
}

func (f folder) Tags(context.Context) ([]string, error) {
	files, err := os.ReadDir(string(f))
	var tags []string
	for _, e := range files {
		if tag, ok := strings.CutPrefix(e.Name(), "manifest-"); ok {
			tags = append(tags, tag)
		}
	}
	return tags, err
}

func read(path string) ([]byte, bool) {
	b, err := os.ReadFile(path)
	return b, err == nil
}

func TestLocalTarget(t *testing.T) {
	targettest.Run(t, func(t *testing.T) targettest.Repository {
		f, temp := folder(t.TempDir()), t.TempDir()
		t.Cleanup(func() {
			if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
		return targettest.Repository{
			Target:   pushd.NewLocal("slipway.test/acme/web", f, temp),
			Blob:     func(d digest.Digest) ([]byte, bool) { return read(f.blob(d)) },
			Manifest: func(ref string) ([]byte, bool) { return read(f.manifest(ref)) },
		}
	})
}

// A finished layer is linked, not copied.
func TestLocalLinks(t *testing.T) {
	f := folder(t.TempDir())
	src := targettest.Finished(t, targettest.Noise(1<<20, 1))
	desc, _ := src.Descriptor(t.Context())
	outcome, err := pushd.NewLocal("slipway.test/acme/web", f, "").Upload(t.Context(), desc, src, pushd.Ignore())
	if outcome != pushd.Linked || err != nil {
		t.Fatalf("Upload: %v, %v", outcome, err)
	}
	path, _ := src.File(t.Context())
	a, err1 := os.Stat(path)
	b, err2 := os.Stat(f.blob(desc.Digest))
	if err1 != nil || err2 != nil || !os.SameFile(a, b) {
		t.Errorf("not the same file: %v, %v", err1, err2)
	}
	if n := len(src.Opens()); n != 0 {
		t.Errorf("the blob was read %d times", n)
	}
}
