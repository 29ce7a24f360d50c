package layercache_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/opencontainers/go-digest"

	"github.com/slipwayhq/slipway/layercache"
)

func TestContents(t *testing.T) {
	root := t.TempDir()
	s := open(t, layercache.Options{Root: root})
	x := s.Org("acme").Contents()
	files := make([][]byte, 0, 200)
	for i, size := range []int{0, 1, 4095, 4096, 4097, 100_000, 4<<20 - 1, 4 << 20, 5 << 20} {
		files = append(files, append(random(t, size), bytes.Repeat([]byte{byte(i)}, min(i, size))[:0]...))
	}
	for range 100 {
		files = append(files, random(t, 400_000)) // more than one pack of them
	}
	digests := make([]digest.Digest, len(files))
	for i, f := range files {
		digests[i] = digest.FromBytes(f)
	}
	if missing := must(x.Missing(t.Context(), digests))(t); len(missing) != len(files)-1 {
		t.Errorf("%d missing at first, want all but the empty one", len(missing))
	}
	w := x.Writer(t.Context())
	var wg sync.WaitGroup
	for part := range slices.Chunk(files, 20) {
		wg.Go(func() {
			for _, f := range part {
				for range 2 { // twice: the second is dropped
					if err := w.Add(digest.FromBytes(f), int64(len(f)), iotest.OneByteReader(bytes.NewReader(f[:min(len(f), 0)]))); len(f) > 0 && !errors.Is(err, io.ErrUnexpectedEOF) {
						t.Errorf("cut short: %v", err)
					}
					if err := w.Add(digest.FromBytes(f), int64(len(f)), bytes.NewReader(f)); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	if err := w.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if missing := must(x.Missing(t.Context(), digests))(t); len(missing) != 0 {
		t.Errorf("%d missing after Flush", len(missing))
	}
	if missing := must(x.Missing(t.Context(), []digest.Digest{digests[3], "junk", digest.FromString("none"), digests[4]}))(t); !slices.Equal(missing, []int{1, 2}) {
		t.Errorf("missing %v, want [1 2]", missing)
	}
	for i, f := range files {
		o := must(x.Open(t.Context(), digests[i]))(t)
		if o.Size() != int64(len(f)) || !bytes.Equal(read(t, o), f) {
			t.Errorf("content %d of %d bytes has other bytes", i, len(f))
		}
	}
	if n := len(blobFiles(t, root)); n > 2+3+4 {
		t.Errorf("%d blobs for 2 large contents and 46 MB of small ones", n)
	}
	_, err := x.Open(t.Context(), digest.FromString("none"))
	wantMiss(t, err)
}

// What does not match is refused by name, and the rest is kept.
func TestContentsRefuse(t *testing.T) {
	x := open(t, layercache.Options{}).Org("acme").Contents()
	w := x.Writer(t.Context())
	good := "good"
	if err := w.Add(digest.FromString(good), 4, strings.NewReader(good)); err != nil {
		t.Fatal(err)
	}
	boom := errors.New("boom")
	for _, size := range []int{10, 5 << 20} {
		data := random(t, size)
		other := random(t, size)
		d, n := digest.FromBytes(data), int64(size)
		var wrong *layercache.DigestError
		if err := w.Add(d, n, bytes.NewReader(other)); !errors.As(err, &wrong) || wrong.Want != d || wrong.Got != digest.FromBytes(other) {
			t.Errorf("other bytes: %v", err)
		}
		if err := w.Add(d, n+1, bytes.NewReader(data)); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("too short: %v", err)
		}
		if err := w.Add(d, n-1, bytes.NewReader(data)); err == nil {
			t.Error("too long was taken")
		}
		if err := w.Add(d, n, io.MultiReader(bytes.NewReader(data[:5]), iotest.ErrReader(boom))); !errors.Is(err, boom) {
			t.Errorf("failing reader: %v", err)
		}
	}
	if err := w.Add("md5:123", 1, strings.NewReader("x")); err == nil {
		t.Error("a digest of another sort was taken")
	}
	if err := w.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := read(t, must(x.Open(t.Context(), digest.FromString(good)))(t)); string(got) != good {
		t.Errorf("got %q", got)
	}
}

func TestContentsFlushTwice(t *testing.T) {
	x := open(t, layercache.Options{}).Org("acme").Contents()
	w := x.Writer(t.Context())
	for i := range 3 {
		data := fmt.Sprint("file ", i)
		if err := w.Add(digest.FromString(data), int64(len(data)), strings.NewReader(data)); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := read(t, must(x.Open(t.Context(), digest.FromString(data)))(t)); string(got) != data {
			t.Errorf("got %q", got)
		}
	}
	if err := x.Writer(t.Context()).Flush(t.Context()); err != nil {
		t.Errorf("Flush of nothing: %v", err)
	}
}

// More packs than files are kept open: readers of closed ones go on.
func TestContentsManyPacks(t *testing.T) {
	x := open(t, layercache.Options{}).Org("acme").Contents()
	var opened []*layercache.Content
	for i := range 80 {
		data := fmt.Sprint("file ", i)
		w := x.Writer(t.Context())
		if err := w.Add(digest.FromString(data), int64(len(data)), strings.NewReader(data)); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		opened = append(opened, must(x.Open(t.Context(), digest.FromString(data)))(t))
	}
	for i, o := range opened {
		if got := read(t, o); string(got) != fmt.Sprint("file ", i) {
			t.Errorf("got %q", got)
		}
	}
}
