package layer_test

import (
	"context"
	"errors"
	"io"
	"os"
	"testing"
	"testing/synctest"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/slipwayhq/slipway/builder/layer"
)

func expect(content []byte) *layer.Incoming {
	return layer.Expect(layer.Layer{Descriptor: ocispec.Descriptor{Digest: digest.FromBytes(content), Size: int64(len(content))}})
}

// An incoming blob can be read while it comes, but for its last byte, and over
// a pull that begins anew.
func TestIncomingGrows(t *testing.T) {
	s := open(t)
	content := noise(3 << 20)
	in := expect(content)
	blob := in.Pending().Blob
	r, err := blob.Open(t.Context(), 5)
	check(t, err)
	first, err := s.Create(s.ctx)
	check(t, err)
	_, err = first.Write(content[:100])
	check(t, err)
	in.From(first)
	buf := make([]byte, 95)
	_, err = io.ReadFull(r, buf)
	check(t, err)
	first.Abort(errors.New("broken"))
	second, err := s.Create(s.ctx)
	check(t, err)
	in.From(second)
	_, err = second.Write(content)
	check(t, err)
	rest := make([]byte, len(content)-101)
	_, err = io.ReadFull(r, rest)
	check(t, err)
	if string(content[5:]) != string(buf)+string(rest)+string(content[len(content)-1:]) {
		t.Error("other bytes came out")
	}
	_, err = second.Commit(s.ctx)
	check(t, err)
	impatient, cancel := context.WithCancel(t.Context())
	end, err := blob.Open(impatient, int64(len(content)-1))
	check(t, err)
	cancel()
	if n, err := end.Read(buf); n > 0 || !errors.Is(err, context.Canceled) {
		t.Errorf("the last byte was given away before the layer was verified: %d, %v", n, err)
	}
	l := &layer.Layer{}
	in.End(l, nil)
	if b, err := io.ReadAll(r); err != nil || string(b) != string(content[len(content)-1:]) {
		t.Errorf("%d bytes came last, %v", len(b), err)
	}
	check(t, r.Close())
	if got, err := in.Pending().Wait(t.Context()); got != l || err != nil {
		t.Errorf("waited for %v, %v", got, err)
	}
	path, err := in.File(t.Context())
	check(t, err)
	if b, err := os.ReadFile(path); err != nil || string(b) != string(content) {
		t.Errorf("file of %d bytes, %v", len(b), err)
	}
}

// Who waits for a blob that will not come learns why; who leaves need not wait.
func TestIncomingEnds(t *testing.T) {
	boom := errors.New("boom")
	for name, tc := range map[string]struct {
		end  func(*layer.Incoming, io.Closer)
		want error
	}{
		"failed": {func(in *layer.Incoming, _ io.Closer) { in.End(nil, boom) }, boom},
		"closed": {func(_ *layer.Incoming, r io.Closer) { r.Close() }, os.ErrClosed},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				in := expect([]byte("text"))
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				r, err := in.Open(ctx, 0)
				check(t, err)
				got := make(chan error, 1)
				go func() {
					_, err := r.Read(make([]byte, 4))
					got <- err
				}()
				synctest.Wait()
				tc.end(in, r)
				if err := <-got; !errors.Is(err, tc.want) {
					t.Errorf("read: %v, want %v", err, tc.want)
				}
			})
		})
	}
	in := expect([]byte("text"))
	in.End(nil, boom)
	if _, err := in.File(t.Context()); !errors.Is(err, boom) {
		t.Errorf("file: %v", err)
	}
	check(t, in.Begun(t.Context()))
}
