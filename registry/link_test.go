package registry_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/slipwayhq/slipway/registry"
)

// store writes b to a file as a content store would, and describes it.
func store(t *testing.T, dir string, b []byte) (ocispec.Descriptor, string) {
	t.Helper()
	desc := ocispec.Descriptor{MediaType: "application/octet-stream", Digest: digest.FromBytes(b), Size: int64(len(b))}
	path := filepath.Join(dir, desc.Digest.Encoded())
	if err := os.WriteFile(path, b, 0o444); err != nil {
		t.Fatal(err)
	}
	return desc, path
}

// link gives an image to a repository the way a build does, and returns its
// digest.
func link(t *testing.T, repo *registry.Repository, img v1.Image, dir string, tags ...string) digest.Digest {
	t.Helper()
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.RawConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	contents := [][]byte{config}
	for _, l := range layers {
		r, err := l.Compressed()
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		contents = append(contents, b)
	}
	for _, b := range contents {
		desc, path := store(t, dir, b)
		if err := repo.Link(t.Context(), desc, path); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := img.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	mediaType, err := img.MediaType()
	if err != nil {
		t.Fatal(err)
	}
	desc := describe(string(mediaType), raw)
	if err := repo.PutManifest(t.Context(), desc, raw, tags...); err != nil {
		t.Fatal(err)
	}
	return desc.Digest
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return fi.Sys().(*syscall.Stat_t).Ino
}

func TestLinkedImageIsPulled(t *testing.T) {
	s, _ := open(t, registry.Options{})
	img := randomImage(t)
	want := link(t, s.repository(t, "acme/shop"), img, t.TempDir(), "v1", "latest")
	for _, ref := range []string{"acme/shop:v1", "acme/shop:latest", "acme/shop@" + want.String()} {
		if got := digestOf(t, pulled(t, s, ref)); got != want {
			t.Errorf("%s is %s, want %s", ref, got, want)
		}
	}
}

func TestLinkIntoTwoRepositories(t *testing.T) {
	s, _ := open(t, registry.Options{})
	desc, path := store(t, t.TempDir(), []byte("a layer"))
	for _, name := range []string{"one", "two"} {
		repo := s.repository(t, name)
		if err := repo.Link(t.Context(), desc, path); err != nil {
			t.Fatal(err)
		}
		got, size, err := repo.Blob(t.Context(), desc.Digest)
		if err != nil || size != desc.Size {
			t.Fatalf("Blob: %d bytes, %v", size, err)
		}
		if inode(t, got) != inode(t, path) {
			t.Errorf("%s has a copy, not a link", name)
		}
		if ok, err := repo.Exists(t.Context(), desc); !ok || err != nil {
			t.Errorf("Exists = %v, %v", ok, err)
		}
		if _, body := s.do(t, "GET", "/v2/"+name+"/blobs/"+desc.Digest.String(), ""); body != "a layer" {
			t.Errorf("%s serves %q", name, body)
		}
	}
	if ok, err := s.repository(t, "three").Exists(t.Context(), desc); ok || err != nil {
		t.Errorf("a repository that got nothing: Exists = %v, %v", ok, err)
	}
	if resp, _ := s.do(t, "GET", "/v2/three/blobs/"+desc.Digest.String(), ""); resp.StatusCode != http.StatusNotFound {
		t.Errorf("a repository that got nothing serves the blob: %s", resp.Status)
	}
}

func TestLinkedBlobSurvivesItsSource(t *testing.T) {
	s, _ := open(t, registry.Options{})
	repo := s.repository(t, "shop")
	desc, path := store(t, t.TempDir(), []byte("a layer"))
	if err := repo.Link(t.Context(), desc, path); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := repo.Link(t.Context(), desc, path); err != nil {
		t.Errorf("linking what is there already: %v", err)
	}
	if _, body := s.do(t, "GET", "/v2/shop/blobs/"+desc.Digest.String(), ""); body != "a layer" {
		t.Errorf("served %q", body)
	}
}

func TestLinkMismatch(t *testing.T) {
	s, _ := open(t, registry.Options{})
	repo := s.repository(t, "shop")
	dir := t.TempDir()
	desc, path := store(t, dir, []byte("a layer"))
	desc.Size++
	if err := repo.Link(t.Context(), desc, path); !errors.Is(err, registry.ErrMismatch) {
		t.Errorf("Link: %v, want %v", err, registry.ErrMismatch)
	}
	desc.Size--
	if ok, err := repo.Exists(t.Context(), desc); ok || err != nil {
		t.Errorf("a refused blob: Exists = %v, %v", ok, err)
	}
	if err := repo.Link(t.Context(), desc, dir); err == nil {
		t.Error("linked a directory")
	}
	alias := filepath.Join(dir, "alias")
	if err := os.Symlink(path, alias); err != nil {
		t.Fatal(err)
	}
	if err := repo.Link(t.Context(), desc, alias); err == nil {
		t.Error("linked a symbolic link")
	}
	if err := repo.Link(t.Context(), desc, filepath.Join(dir, "absent")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("linked what is not there: %v", err)
	}
	if err := repo.Link(t.Context(), ocispec.Descriptor{Digest: "sha512:00", Size: 7}, path); !errors.Is(err, registry.ErrInvalid) {
		t.Errorf("Link: %v, want %v", err, registry.ErrInvalid)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	boom := errors.New("boom")
	cancel(boom)
	if err := repo.Link(ctx, desc, path); !errors.Is(err, boom) {
		t.Errorf("Link: %v, want %v", err, boom)
	}
}

func TestLinkNeverOverwrites(t *testing.T) {
	s, _ := open(t, registry.Options{})
	repo := s.repository(t, "shop")
	desc, path := store(t, t.TempDir(), []byte("a layer"))
	if err := repo.Link(t.Context(), desc, path); err != nil {
		t.Fatal(err)
	}
	_, liar := store(t, t.TempDir(), []byte("A LAYER"))
	if err := repo.Link(t.Context(), desc, liar); err != nil {
		t.Fatal(err)
	}
	_, longer := store(t, t.TempDir(), []byte("a longer layer"))
	if err := repo.Link(t.Context(), ocispec.Descriptor{Digest: desc.Digest, Size: 14}, longer); !errors.Is(err, registry.ErrMismatch) {
		t.Errorf("Link: %v, want %v", err, registry.ErrMismatch)
	}
	got, _, err := repo.Blob(t.Context(), desc.Digest)
	if err != nil {
		t.Fatal(err)
	}
	if inode(t, got) != inode(t, path) {
		t.Error("the blob was replaced")
	}
}

func TestLinkRepairs(t *testing.T) {
	s, _ := open(t, registry.Options{})
	repo := s.repository(t, "shop")
	desc, path := store(t, t.TempDir(), []byte("a layer"))
	if err := repo.Link(t.Context(), desc, path); err != nil {
		t.Fatal(err)
	}
	blob, _, err := repo.Blob(t.Context(), desc.Digest)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(blob), os.WriteFile(blob, []byte("a la"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if ok, err := repo.Exists(t.Context(), desc); ok || err != nil {
		t.Errorf("a truncated blob: Exists = %v, %v", ok, err)
	}
	if err := repo.Link(t.Context(), desc, path); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(blob); err != nil || string(b) != "a layer" {
		t.Errorf("repaired to %q, %v", b, err)
	}
}

func TestLinkCopiesAcrossFileSystems(t *testing.T) {
	shm, err := os.MkdirTemp("/dev/shm", "slipway")
	if err != nil {
		t.Skip("no second file system:", err)
	}
	t.Cleanup(func() { os.RemoveAll(shm) })
	root := t.TempDir()
	if device(t, shm) == device(t, root) {
		t.Skip("no second file system")
	}
	s, _ := open(t, registry.Options{Root: root})
	repo := s.repository(t, "shop")
	content := bytes.Repeat([]byte("layer "), 100_000)
	desc, path := store(t, shm, content)
	if err := repo.Link(t.Context(), desc, path); err != nil {
		t.Fatal(err)
	}
	if _, body := s.do(t, "GET", "/v2/shop/blobs/"+desc.Digest.String(), ""); body != string(content) {
		t.Error("the copy differs")
	}

	bad, path := store(t, shm, []byte("a layer"))
	if err := errors.Join(os.Remove(path), os.WriteFile(path, []byte("A LAYER"), 0o444)); err != nil {
		t.Fatal(err)
	}
	if err := repo.Link(t.Context(), bad, path); !errors.Is(err, registry.ErrMismatch) {
		t.Errorf("copied other content: %v, want %v", err, registry.ErrMismatch)
	}
	if ok, err := repo.Exists(t.Context(), bad); ok || err != nil {
		t.Errorf("other content: Exists = %v, %v", ok, err)
	}
	if left, err := os.ReadDir(filepath.Join(root, "tmp")); err != nil || len(left) > 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
}

func device(t *testing.T, path string) uint64 {
	t.Helper()
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return uint64(fi.Sys().(*syscall.Stat_t).Dev)
}

func TestLinkConcurrently(t *testing.T) {
	s, _ := open(t, registry.Options{})
	img, dir := randomImage(t), t.TempDir()
	desc, path := store(t, dir, []byte("a layer"))
	var wg sync.WaitGroup
	for i := range 32 {
		repo := s.repository(t, string(rune('a'+i%4)))
		wg.Go(func() {
			if err := repo.Link(t.Context(), desc, path); err != nil {
				t.Error(err)
			}
			if ok, err := repo.Exists(t.Context(), desc); !ok || err != nil {
				t.Errorf("Exists = %v, %v", ok, err)
			}
		})
	}
	for i := range 4 {
		repo, dir := s.repository(t, string(rune('a'+i))), t.TempDir()
		wg.Go(func() { link(t, repo, img, dir, "v1") })
	}
	wg.Wait()
	for _, name := range []string{"a", "b", "c", "d"} {
		pulled(t, s, name+":v1")
	}
}

func BenchmarkLink(b *testing.B) {
	root := b.TempDir()
	r, err := registry.Open(b.Context(), registry.Options{Root: root, Access: everything})
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	path := filepath.Join(root, "layer")
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	const size = 1 << 30
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		b.Fatal(err)
	}
	repo, err := r.Repository("shop")
	if err != nil {
		b.Fatal(err)
	}
	var n int
	for b.Loop() {
		n++
		desc := ocispec.Descriptor{Digest: digest.FromString(strconv.Itoa(n)), Size: size}
		if err := repo.Link(b.Context(), desc, path); err != nil {
			b.Fatal(err)
		}
	}
}
