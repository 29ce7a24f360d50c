package prebuilt_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/slipwayhq/slipway/builder/failure"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// The layer that crosses the limit is stopped where it does: its upload is
// cancelled, and no manifest goes out.
func TestLimit(t *testing.T) {
	const max = 20_000_000
	src, dst, d := newHub(t), newHub(t), newDaemon(t, max)
	base := noisy(t, "usr/base", 13_000_000)
	// Each alone is within the limit.
	big := gzipped(t, tarOf(t, map[string]int{"app/1": 3_000_000, "app/2": 6_000_000, "app/3": 9_000_000}))
	src.image("team/shop", "amd64", "v1", base, big)
	// The base is there when the big one begins, which then stands on it.
	src.image("team/base", "amd64", "v1", base)
	d.deploy("base", src.ref("team/base:v1"), to(dst.ref("shop:base")))
	dst.forget()
	src.forget()

	e := d.fails(failure.TooLarge, "of 20.0 MB at /app/2", src.ref("team/shop:v1"), to(dst.ref("shop:v1"))).Error
	if s := e.Size; s.GetTotal() <= max || s.GetLimit() != max || s.Path != "/app/2" || len(s.LargestPaths) == 0 || s.LargestPaths[0].Path != "/usr/base" ||
		len(s.Lines) != 2 || s.Lines[1].Source != "layer 2: COPY 1" {
		t.Errorf("%v", s)
	}
	if e.Blame != slipwayv1.Blame_BLAME_USER || e.Retryable || !strings.Contains(e.Hint, "smaller image") {
		t.Errorf("%v", e)
	}
	if puts := dst.requests("PUT", ""); len(puts) > 0 || dst.has("shop", digest.FromBytes(big.raw)) {
		t.Errorf("the upload was finished: %q", puts)
	}
	if gone := dst.requests("DELETE", "/blobs/uploads/"); len(gone) < 2 { // the probe's, too
		t.Errorf("the upload was not cancelled: %q", dst.requests("", ""))
	}
	if n := src.bytesSent(); n > 13_000_000 {
		t.Errorf("%d bytes were read of a layer that crosses the limit after 3000000", n)
	}
}

// A layer that came before those below it is charged when they have come.
func TestLimitAcrossStreams(t *testing.T) {
	const max = 1_000_000
	src, dst, d := newHub(t), newHub(t), newDaemon(t, max)
	first, second := noisy(t, "first", 600_000), gzipped(t, tarOf(t, map[string]int{"second": 600_000, "third": 100_000}))
	src.image("team/shop", "amd64", "v1", first, second)
	// The first layer waits until the second one is up.
	src.breaks(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, digest.FromBytes(first.raw).String()) {
			for !dst.has("shop", digest.FromBytes(second.raw)) && r.Context().Err() == nil {
				waitFor(dst)
			}
		}
		return false
	})
	e := d.fails(failure.TooLarge, "", src.ref("team/shop:v1"), to(dst.ref("shop:v1"))).Error
	if e.Size.GetPath() != "/second" || len(dst.requests("PUT", "/manifests/")) > 0 {
		t.Errorf("%v, %q", e, dst.requests("PUT", ""))
	}
	// Nothing wrong was learnt: with more room the image is what it is.
	d.max = 0
	d.restart()
	if res := d.deploy("shop", src.ref("team/shop:v1")); res.RootfsBytes != 4096*(1+147+147+25) {
		t.Errorf("%d bytes", res.RootfsBytes)
	}
}

// waitFor yields to the registry's own work.
func waitFor(h *hub) { _, _ = h.http.Client().Get(h.http.URL + "/v2/") }

// What is known to be too large fails before anything is asked of the target's
// blobs.
func TestKnownToBeTooLarge(t *testing.T) {
	src, dst, d := newHub(t), newHub(t), newDaemon(t, 0)
	src.image("team/shop", "amd64", "v1", noisy(t, "a", 400_000), noisy(t, "b", 400_000))
	d.deploy("shop", src.ref("team/shop:v1"), to(dst.ref("shop:v1")))
	d.max = 500_000
	d.restart()
	src.forget()
	dst.forget()
	e := d.fails(failure.TooLarge, "at /b", src.ref("team/shop:v1"), to(dst.ref("shop:v2"))).Error
	if e.Phase != failure.Preflight || len(e.Size.GetLargestPaths()) != 2 || src.bytesSent() > 0 || len(dst.requests("PUT", "")) > 0 || len(dst.requests("HEAD", "")) > 0 {
		t.Errorf("%v, read %d bytes, target %q", e, src.bytesSent(), dst.requests("", ""))
	}
	// No limit is no limit.
	d.max = -1
	d.restart()
	d.deploy("shop", src.ref("team/shop:v1"))
}
