package pushd_test

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/slipwayhq/slipway/pushd"
)

// A paced registry takes a megabyte in a tenth of a second.
type paced struct{}

func (paced) RoundTrip(r *http.Request) (*http.Response, error) {
	resp := &http.Response{StatusCode: http.StatusAccepted, Header: http.Header{"Location": {"/session"}}, Body: http.NoBody, Request: r}
	if r.Body != nil {
		n, err := io.Copy(io.Discard, r.Body)
		if err != nil {
			return nil, err
		}
		time.Sleep(time.Duration(n) * time.Second / 10 / (1 << 20))
	}
	if r.Method == http.MethodPut {
		resp.StatusCode = http.StatusCreated
		resp.Header.Set("Docker-Content-Digest", r.URL.Query().Get("digest"))
	}
	return resp, nil
}

// A lazy source thinks for a second before each read.
type lazy struct{ text string }

func (l lazy) Descriptor(context.Context) (ocispec.Descriptor, error) {
	return ocispec.Descriptor{Digest: digest.FromString(l.text), Size: int64(len(l.text))}, nil
}

func (l lazy) Open(_ context.Context, off int64) (io.ReadCloser, error) {
	return io.NopCloser(slow{strings.NewReader(l.text[off:])}), nil
}

type slow struct{ io.Reader }

func (s slow) Read(p []byte) (int, error) {
	time.Sleep(time.Second)
	return s.Reader.Read(p)
}

// What a source takes does not make a registry slow.
func TestUplinkIsTheRegistrys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		target, err := pushd.NewHTTP("http://reg.test/shop", &pushd.HTTPOptions{Transport: paced{}})
		if err != nil {
			t.Fatal(err)
		}
		src := lazy{strings.Repeat("x", 4<<20)}
		desc, _ := src.Descriptor(t.Context())
		if _, err := target.Upload(t.Context(), desc, src, pushd.Ignore()); err != nil {
			t.Fatal(err)
		}
		if got := target.Uplink(); got < 10<<20 || got > 11<<20 {
			t.Errorf("uplink of %.1f MB/s, want 10.5", got/1e6)
		}
	})
}
