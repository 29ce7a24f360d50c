package layercache_test

import (
	"bytes"
	"hash/crc32"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/slipwayhq/slipway/layercache"
)

// A member is found while its layer is there and its bytes are whole, by its
// own org only.
func TestMembers(t *testing.T) {
	root := t.TempDir()
	s := open(t, layercache.Options{Root: root})
	c := s.Org("acme")
	l := must(c.Lease(t.Context(), "test", 0))(t)
	ctx := l.Context(t.Context())
	w := must(c.Create(ctx))(t)
	data := random(t, 10_000)
	must(w.Write(data))(t)
	blob := must(w.Commit(ctx))(t)
	blob.MediaType = ocispec.MediaTypeImageLayerGzip
	id := digest.FromString("diff ID")
	fatal(t, c.PutLayer(ctx, layercache.Layer{DiffID: id, Blobs: []ocispec.Descriptor{blob}}, "app"))

	table := crc32.MakeTable(crc32.Castagnoli)
	member := func(n byte, from, to int) layercache.Member {
		return layercache.Member{Key: [32]byte{n}, Offset: int64(from), Size: to - from, Sum: crc32.Checksum(data[from:min(to, len(data))], table)}
	}
	fatal(t, c.PutMembers(ctx, blob.Digest, []layercache.Member{member(1, 0, 4000), member(2, 4000, 10_000), member(3, 9000, 11_000)}))
	got, ok := c.Member(ctx, [32]byte{2}, []byte("x"))
	if !ok || !bytes.Equal(got, append([]byte("x"), data[4000:]...)) {
		t.Errorf("member: %d bytes, %t", len(got), ok)
	}
	for name, look := range map[string]func() ([]byte, bool){
		"unknown":          func() ([]byte, bool) { return c.Member(ctx, [32]byte{9}, nil) },
		"beyond the end":   func() ([]byte, bool) { return c.Member(ctx, [32]byte{3}, nil) },
		"of another's org": func() ([]byte, bool) { return s.Org("other").Member(ctx, [32]byte{2}, nil) },
		"of a damaged blob": func() ([]byte, bool) {
			file := filepath.Join(root, "content", "blobs", "sha256", blob.Digest.Encoded())
			fatal(t, os.Chmod(file, 0o644))
			f := must(os.OpenFile(file, os.O_WRONLY, 0))(t)
			must(f.WriteAt([]byte{data[5000] ^ 1}, 5000))(t)
			fatal(t, f.Close())
			return c.Member(ctx, [32]byte{2}, nil)
		},
	} {
		if got, ok := look(); ok {
			t.Errorf("%s: %d bytes", name, len(got))
		}
	}
	if _, ok := c.Member(ctx, [32]byte{1}, nil); !ok {
		t.Error("a member that is whole is missing")
	}
	fatal(t, l.Release(t.Context()))
	must(s.Prune(t.Context(), layercache.PruneOptions{Org: "acme", All: true}))(t)
	if _, ok := c.Member(t.Context(), [32]byte{1}, nil); ok {
		t.Error("a member of an evicted layer is found")
	}
}
