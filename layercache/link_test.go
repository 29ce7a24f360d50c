package layercache_test

import (
	"bytes"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/slipwayhq/slipway/layercache"
)

// The file of a large content is given away once at a time; its bytes stay
// when the content is evicted, and the content stays when the link is removed.
func TestContentsLink(t *testing.T) {
	s := open(t, layercache.Options{})
	x := s.Org("acme").Contents()
	large, small := random(t, 2<<20), random(t, 1000)
	w := x.Writer(t.Context())
	for _, f := range [][]byte{large, small} {
		fatal(t, w.Add(digest.FromBytes(f), int64(len(f)), bytes.NewReader(f)))
	}
	fatal(t, w.Flush(t.Context()))
	dir := t.TempDir()
	d, err := os.Open(dir)
	fatal(t, err)
	defer d.Close()

	var wg sync.WaitGroup
	var linked atomic.Int32
	for i := range 8 {
		wg.Go(func() {
			o, err := x.Open(t.Context(), digest.FromBytes(large))
			if err != nil {
				t.Error(err)
				return
			}
			defer o.Close()
			ok, err := o.Link(int(d.Fd()), string(rune('a'+i)))
			if err != nil || !o.Linkable() {
				t.Errorf("link: %v, linkable %t", err, o.Linkable())
			}
			if ok {
				linked.Add(1)
			}
		})
	}
	wg.Wait()
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	fatal(t, err)
	if linked.Load() != 1 || len(names) != 1 {
		t.Fatalf("%d links, files %v", linked.Load(), names)
	}
	got, err := os.ReadFile(names[0])
	fatal(t, err)
	if !bytes.Equal(got, large) {
		t.Error("the link has other bytes")
	}
	o := must(x.Open(t.Context(), digest.FromBytes(small)))(t)
	defer o.Close()
	if ok, err := o.Link(int(d.Fd()), "small"); ok || err != nil || o.Linkable() {
		t.Errorf("a content that shares its file was linked: %t, %v", ok, err)
	}
	fatal(t, os.Remove(names[0]))
	again := must(x.Open(t.Context(), digest.FromBytes(large)))(t)
	defer again.Close()
	if ok, err := again.Link(int(d.Fd()), "again"); !ok || err != nil {
		t.Errorf("once the link is gone: %t, %v", ok, err)
	}
}

func fatal(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
