package buildkit

import (
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"

	"github.com/slipwayhq/slipway/layercache"
)

// A receipt that BuildKit writes stands for the blob that is there; all else is
// what it is, however alike it looks and however it comes.
func TestAdopt(t *testing.T) {
	s, err := layercache.Open(t.Context(), layercache.Options{Root: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	c := s.Org("acme")
	lease, err := c.Lease(t.Context(), "test", 0)
	if err != nil {
		t.Fatal(err)
	}
	ctx := lease.Context(t.Context())
	made, err := c.PutBytes(ctx, []byte("a layer"))
	if err != nil {
		t.Fatal(err)
	}
	store := c.Containerd()
	ctx = namespaces.WithNamespace(ctx, store.Namespace)
	a := adopter{Store: store.Content, tenant: &tenant{cache: c, builds: newBuilds()}}
	r := a.tenant.builds.receipts
	stranger := newReceipts()
	for name, tc := range map[string]struct {
		text string
		want digest.Digest
	}{
		"receipt":               {r.receipt(made), made},
		"nothing":               {"", digest.FromString("")},
		"begin of a receipt":    {r.prefix[:20], digest.FromString(r.prefix[:20])},
		"prefix alone":          {r.prefix, digest.FromString(r.prefix)},
		"receipt and more":      {r.receipt(made) + "x", digest.FromString(r.receipt(made) + "x")},
		"no digest":             {r.prefix + strings.Repeat("x", 71), digest.FromString(r.prefix + strings.Repeat("x", 71))},
		"another daemon's":      {stranger.receipt(made), digest.FromString(stranger.receipt(made))},
		"something else, large": {strings.Repeat("tar", 100_000), digest.FromString(strings.Repeat("tar", 100_000))},
	} {
		for _, piece := range []int{1, 7, 1 << 20} {
			if piece == 1 && len(tc.text) > 1000 {
				continue
			}
			w, err := a.Writer(ctx, content.WithRef(name))
			if err != nil {
				t.Fatal(err)
			}
			if err := w.Truncate(0); err != nil {
				t.Fatal(err)
			}
			for rest := tc.text; rest != ""; rest = rest[min(piece, len(rest)):] {
				if n, err := w.Write([]byte(rest[:min(piece, len(rest))])); err != nil || n != min(piece, len(rest)) {
					t.Fatalf("%s: wrote %d, %v", name, n, err)
				}
			}
			if got := w.Digest(); got != tc.want {
				t.Errorf("%s in pieces of %d: digest %s, want %s", name, piece, got, tc.want)
			}
			err = w.Commit(ctx, 0, w.Digest(), content.WithLabels(map[string]string{labels.LabelUncompressed: "sha256:1"}))
			if err != nil && !strings.Contains(err.Error(), "already exists") {
				t.Errorf("%s: commit: %v", name, err)
			}
			w.Close()
			_ = a.Abort(ctx, name)
			info, err := a.Info(ctx, tc.want)
			if err != nil || info.Labels[labels.LabelUncompressed] != "sha256:1" {
				t.Errorf("%s: %+v, %v", name, info, err)
			}
		}
	}
	// A receipt for what is not there is no blob.
	w, err := a.Writer(ctx, content.WithRef("lost"))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if _, err := w.Write([]byte(r.receipt(digest.FromString("lost")))); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(ctx, 0, ""); err == nil {
		t.Error("a receipt for a lost blob was taken")
	}
}
