// Package targettest holds every [pushd.Target] to its contract. A test of an
// implementation is one call of [Run].
package targettest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/slipwayhq/slipway/pushd"
)

// A Repository is an empty target, and a view of it by another way.
type Repository struct {
	Target pushd.Target

	// Blob returns the content of a blob, or false.
	Blob func(digest.Digest) ([]byte, bool)

	// Manifest returns what a tag or digest stands for, or false.
	Manifest func(ref string) ([]byte, bool)
}

// Run tests the targets that open returns.
func Run(t *testing.T, open func(*testing.T) Repository) {
	for _, tc := range []struct {
		name string
		test func(*testing.T, Repository)
	}{
		{"probe", testProbe},
		{"upload of a finished blob", testFinished},
		{"upload of a growing blob", testGrowing},
		{"upload of a blob that is no file", testPlain},
		{"upload of nothing", testEmpty},
		{"upload twice", testTwice},
		{"blob given up", testGivenUp},
		{"blob with another digest", testLie},
		{"end of context", testCancel},
		{"manifest and tags", testManifest},
		{"manifest with another digest", testManifestDigest},
	} {
		t.Run(tc.name, func(t *testing.T) { tc.test(t, open(t)) })
	}
}

func testProbe(t *testing.T, r Repository) {
	if err := r.Target.Probe(t.Context()); err != nil {
		t.Errorf("Probe: %v", err)
	}
	if r.Target.Name() == "" {
		t.Error("target has no name")
	}
}

// upload sends src and checks that the repository has want under its digest.
func upload(t *testing.T, r Repository, known ocispec.Descriptor, src pushd.Source, want []byte) {
	t.Helper()
	outcome, err := r.Target.Upload(t.Context(), known, src, pushd.Ignore())
	if err != nil {
		t.Fatalf("Upload: %v", err)
	}
	if outcome != pushd.Uploaded && outcome != pushd.Linked {
		t.Errorf("outcome %q", outcome)
	}
	check(t, r, want)
}

func describe(data []byte) ocispec.Descriptor {
	return ocispec.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))}
}

func check(t *testing.T, r Repository, want []byte) {
	t.Helper()
	d := digest.FromBytes(want)
	if got, ok := r.Blob(d); !ok || !bytes.Equal(got, want) {
		t.Errorf("blob %s: found %v, %d bytes; want %d", d, ok, len(got), len(want))
	}
	found, err := r.Target.Exists(t.Context(), ocispec.Descriptor{Digest: d, Size: int64(len(want))}, pushd.Ignore())
	if !found || err != nil {
		t.Errorf("Exists: %v, %v", found, err)
	}
}

// absent checks that the repository does not have the blob.
func absent(t *testing.T, r Repository, d digest.Digest) {
	t.Helper()
	found, err := r.Target.Exists(t.Context(), ocispec.Descriptor{Digest: d}, pushd.Ignore())
	if found || err != nil {
		t.Errorf("Exists: %v, %v; want false", found, err)
	}
	if _, ok := r.Blob(d); ok {
		t.Errorf("blob %s is there", d)
	}
}

func testFinished(t *testing.T, r Repository) {
	for _, n := range []int{1, 2, 1000, 3_000_001} {
		data := Noise(n, 1)
		absent(t, r, digest.FromBytes(data))
		upload(t, r, describe(data), Finished(t, data), data)
	}
}

func testGrowing(t *testing.T, r Repository) {
	for _, n := range []int{0, 1, 1_000_000, 2 << 20} {
		data, s := Noise(n, 2), NewSpool(t)
		done := make(chan struct{})
		go func() {
			defer close(done)
			for p := data; len(p) > 0; {
				m := min(len(p), 100_001)
				s.Write(p[:m])
				p = p[m:]
			}
			s.Commit(t)
		}()
		upload(t, r, ocispec.Descriptor{}, s, data)
		<-done
	}
}

func testPlain(t *testing.T, r Repository) {
	data := Noise(5000, 3)
	upload(t, r, ocispec.Descriptor{}, pushd.Bytes(data), data)
	data = Noise(1_500_000, 3)
	upload(t, r, describe(data), Plain(Finished(t, data)), data)
}

func testEmpty(t *testing.T, r Repository) { upload(t, r, describe(nil), Finished(t, nil), nil) }

func testTwice(t *testing.T, r Repository) {
	data := Noise(70_000, 4)
	for range 2 {
		upload(t, r, describe(data), Finished(t, data), data)
	}
}

func testGivenUp(t *testing.T, r Repository) {
	boom := errors.New("step failed")
	s := NewSpool(t)
	s.Write(Noise(1<<20, 5))
	s.Abort(boom)
	if _, err := r.Target.Upload(t.Context(), ocispec.Descriptor{}, s, pushd.Ignore()); !errors.Is(err, boom) {
		t.Errorf("Upload: %v, want %v", err, boom)
	}
	absent(t, r, digest.FromBytes(Noise(1<<20, 5)))
}

func testLie(t *testing.T, r Repository) {
	data := Noise(300_000, 6)
	s, other := Finished(t, data), digest.FromString("other")
	s.Lie(other)
	if _, err := r.Target.Upload(t.Context(), ocispec.Descriptor{}, Plain(s), pushd.Ignore()); !errors.Is(err, pushd.ErrDigest) {
		t.Errorf("Upload: %v, want %v", err, pushd.ErrDigest)
	}
	absent(t, r, other)
}

func testCancel(t *testing.T, r Repository) {
	boom := errors.New("build cancelled")
	ctx, cancel := context.WithCancelCause(t.Context())
	s := NewSpool(t)
	s.Write(Noise(1<<20, 7))
	result := make(chan error)
	go func() {
		_, err := r.Target.Upload(ctx, ocispec.Descriptor{}, s, pushd.Ignore())
		result <- err
	}()
	cancel(boom)
	if err := <-result; !errors.Is(err, boom) && !errors.Is(err, context.Canceled) {
		t.Errorf("Upload: %v, want %v", err, boom)
	}
}

// Image uploads a config and one layer and returns a manifest of them.
func Image(t *testing.T, target pushd.Target, layer []byte) (ocispec.Descriptor, []byte) {
	t.Helper()
	config := []byte(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}`)
	for _, b := range [][]byte{config, layer} {
		if _, err := target.Upload(t.Context(), describe(b), pushd.Bytes(b), pushd.Ignore()); err != nil {
			t.Fatal(err)
		}
	}
	return Manifest(t, config, layer)
}

// Manifest returns a manifest of a config and one layer.
func Manifest(t testing.TB, config, layer []byte) (ocispec.Descriptor, []byte) {
	t.Helper()
	raw, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(config), Size: int64(len(config))},
		Layers: []ocispec.Descriptor{{
			MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromBytes(layer), Size: int64(len(layer)),
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(raw), Size: int64(len(raw))}, raw
}

func testManifest(t *testing.T, r Repository) {
	desc, raw := Image(t, r.Target, Noise(1000, 8))
	if err := r.Target.PutManifest(t.Context(), desc, raw, []string{"v1", "latest"}, pushd.Ignore()); err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{desc.Digest.String(), "v1", "latest"} {
		if got, ok := r.Manifest(ref); !ok || !bytes.Equal(got, raw) {
			t.Errorf("manifest %s: found %v, %d bytes; want %d", ref, ok, len(got), len(raw))
		}
	}
}

func testManifestDigest(t *testing.T, r Repository) {
	desc, raw := Image(t, r.Target, Noise(1000, 9))
	desc.Digest = digest.FromString("other")
	err := r.Target.PutManifest(t.Context(), desc, raw, []string{"v1"}, pushd.Ignore())
	if !errors.Is(err, pushd.ErrDigest) {
		t.Errorf("PutManifest: %v, want %v", err, pushd.ErrDigest)
	}
	if _, ok := r.Manifest("v1"); ok {
		t.Error("the tag is there")
	}
}
