package prebuilt_test

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/opencontainers/go-digest"

	"github.com/slipwayhq/slipway/builder/failure"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// An image of another registry goes to the daemon's own, is counted, and is
// known afterwards.
func TestCopy(t *testing.T) {
	src, d := newHub(t), newDaemon(t, 0)
	layers := []blob{
		noisy(t, "base", 300_000),
		zstded(t, tarOf(t, map[string]int{"lib": 200_000})),
		plain(tarOf(t, map[string]int{"app": 100_000, "conf": 10})),
	}
	img := src.image("team/shop", "amd64", "v1", layers...)
	res := d.deploy("shop", src.ref("team/shop:v1"))
	checkImage(t, src, "team/shop", d.own, "shop", img.Digest)
	if res.Digest != img.Digest.String() || res.Pipeline != "prebuilt" || outcomes(res) != "linked linked linked" ||
		res.Image != "own.test/shop:deployment-01ARZ3NDEKTSV4RRFFQ69G5FAV" {
		t.Errorf("result %v", res)
	}
	// Files in blocks of 4 KiB, and a block of the root directory.
	if want := uint64(4096 + 74*4096 + 49*4096 + 25*4096 + 4096); res.RootfsBytes != want {
		t.Errorf("counted %d bytes, want %d", res.RootfsBytes, want)
	}
	for i, l := range res.Layers {
		if l.Digest != digestOf(layers[i]) || l.DiffId != layers[i].diffID.String() || l.Uncompressed == 0 || l.MediaType != layers[i].mediaType || l.Cached {
			t.Errorf("layer %d: %v", i, l)
		}
		if n := len(src.requests("GET", "/blobs/"+l.Digest)); n != 1 {
			t.Errorf("layer %d was read %d times", i, n)
		}
	}
	if n := d.stored(); n > 20_000 {
		t.Errorf("the cache keeps %d bytes of an image that it only passed on", n)
	}
	src.forget()
	for _, app := range []string{"shop", "other"} {
		again := d.deploy(app, src.ref("team/shop:v1"))
		if again.Digest != res.Digest || again.RootfsBytes != res.RootfsBytes || again.UncompressedBytes != res.UncompressedBytes || !again.Layers[0].Cached {
			t.Errorf("again: %v", again)
		}
	}
	// What the other app's repository lacks must be read; the count need not.
	if n := len(src.requests("GET", "/blobs/")); n != 3 {
		t.Errorf("%d blobs were read: %q", n, src.requests("GET", "/blobs/"))
	}
}

func digestOf(b blob) string { return digest.FromBytes(b.raw).String() }

// A known image that its target has costs a question and a manifest.
func TestKnownImage(t *testing.T) {
	src, dst, d := newHub(t), newHub(t), newDaemon(t, 0)
	img := src.image("team/shop", "amd64", "v1", noisy(t, "a", 200_000), noisy(t, "b", 100_000))
	if res := d.deploy("shop", src.ref("team/shop:v1"), to(dst.ref("shop:v1"))); outcomes(res) != "uploaded uploaded" || res.WireBytes < 300_000 {
		t.Fatalf("%v", res)
	}
	checkImage(t, src, "team/shop", dst, "shop", img.Digest)
	src.forget()
	dst.forget()
	res := d.deploy("shop", src.ref("team/shop:v1"), to(dst.ref("shop:v2")))
	if outcomes(res) != "present present" || res.WireBytes > 5000 {
		t.Errorf("%v", res)
	}
	if all := src.requests("", ""); len(all) > 2 || src.bytesSent() > 0 { // ping and manifest
		t.Errorf("the source was asked %q", all)
	}
	if all := dst.requests("", "/blobs/sha256"); len(all) > 0 {
		t.Errorf("the target was asked %q", all)
	}
	// Another daemon with the same cache knows it too, but must ask what is there.
	d.restart()
	src.forget()
	if res := d.deploy("shop", src.ref("team/shop@"+img.Digest.String()), to(dst.ref("shop:v3"))); outcomes(res) != "present present" || src.bytesSent() > 0 {
		t.Errorf("%v, %q", res, src.requests("", ""))
	}
}

// Between repositories of one registry blobs are mounted. What is not known is
// still counted.
func TestMount(t *testing.T) {
	for _, refused := range []bool{false, true} {
		src, d := newHub(t), newDaemon(t, 0)
		if refused {
			src.breaks(func(_ http.ResponseWriter, r *http.Request) bool {
				if r.Method == http.MethodPost {
					r.URL.RawQuery = ""
				}
				return false
			})
		}
		img := src.image("team/shop", "amd64", "v1", noisy(t, "a", 100_000))
		res := d.deploy("shop", src.ref("team/shop:v1"), to(src.ref("copy")))
		want := map[bool]string{false: "mounted", true: "uploaded"}[refused]
		if outcomes(res) != want || res.RootfsBytes < 100_000 {
			t.Errorf("refused %v: %v", refused, res)
		}
		checkImage(t, src, "team/shop", src, "copy", img.Digest)
		if n := len(src.requests("GET", "/blobs/"+res.Layers[0].Digest)); n != 1 {
			t.Errorf("refused %v: the layer was read %d times", refused, n)
		}
		pulled := slices.ContainsFunc(d.session.events, func(e *slipwayv1.Event) bool { return e.GetPull().GetDone() })
		if pulled == refused {
			t.Errorf("refused %v: told of bytes that were only counted: %v", refused, pulled)
		}
	}
}

// On the daemon's own registry nothing is copied, and the count reads a file.
func TestLink(t *testing.T) {
	d := newDaemon(t, 0)
	img := d.own.image("library/shop", "amd64", "v1", noisy(t, "a", 100_000))
	res := d.deploy("shop", ownHost+"/library/shop:v1")
	checkImage(t, d.own, "library/shop", d.own, "shop", img.Digest)
	if outcomes(res) != "linked" || res.RootfsBytes < 100_000 || len(d.own.requests("", "")) > 0 {
		t.Errorf("%v, %q", res, d.own.requests("", ""))
	}
	// From there to another registry, counted already.
	dst := newHub(t)
	if res := d.deploy("shop", ownHost+"/shop@"+img.Digest.String(), to(dst.ref("shop"))); outcomes(res) != "uploaded" || !res.Layers[0].Cached {
		t.Errorf("%v", res)
	}
	checkImage(t, d.own, "shop", dst, "shop", img.Digest)
}

// Several targets read the source once each, and count once.
func TestTargets(t *testing.T) {
	src, a, b, d := newHub(t), newHub(t), newHub(t), newDaemon(t, 0)
	img := src.image("team/shop", "amd64", "v1", noisy(t, "a", 700_000), noisy(t, "b", 10))
	res := d.deploy("shop", src.ref("team/shop:v1"), to(a.ref("x"), b.ref("y"), ownHost+"/z"))
	for path, h := range map[string]*hub{"x": a, "y": b, "z": d.own} {
		checkImage(t, src, "team/shop", h, path, img.Digest)
	}
	if res.RootfsBytes < 700_000 {
		t.Errorf("%v", res)
	}
}

// The client's credentials open private sources.
func TestPrivateSource(t *testing.T) {
	src, d := newHub(t), newDaemon(t, 0)
	src.user = "shipper"
	src.image("team/shop", "amd64", "v1", noisy(t, "a", 100_000))
	e := d.fails(failure.BaseDenied, "registry denied access", src.ref("team/shop:v1")).Error
	if e.Blame != slipwayv1.Blame_BLAME_USER || !strings.Contains(e.Hint, "docker login") {
		t.Errorf("%v", e)
	}
	d.deploy("shop", src.ref("team/shop:v1"), func(_ *slipwayv1.Start, s *session) {
		s.auth = authn.AuthConfig{Username: "shipper", Password: password}
	})
	if len(d.session.asked) == 0 || d.session.asked[0] != src.host() {
		t.Errorf("asked for %q", d.session.asked)
	}
	// That it is known opens nothing.
	d.fails(failure.BaseDenied, "", src.ref("team/shop:v1"))
}

// cut breaks the answers to requests for blobs after n bytes each, times times.
func cut(h *hub, n int64, times int32, keepRange bool) func(w http.ResponseWriter, r *http.Request) bool {
	var left atomic.Int32
	left.Store(times)
	return func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		if !keepRange {
			r.Header.Del("Range")
		}
		if left.Add(-1) < 0 {
			return false
		}
		h.serve(&cutter{ResponseWriter: w, left: n}, r)
		panic(http.ErrAbortHandler)
	}
}

type cutter struct {
	http.ResponseWriter
	left int64
}

func (c *cutter) Write(p []byte) (int, error) {
	if c.left <= 0 {
		panic(http.ErrAbortHandler)
	}
	n, err := c.ResponseWriter.Write(p[:min(int64(len(p)), c.left)])
	c.left -= int64(n)
	if f, ok := c.ResponseWriter.(http.Flusher); ok {
		f.Flush()
	}
	return n, err
}

// A source that breaks is asked for the rest.
func TestSourceBreaks(t *testing.T) {
	const size = 1_000_000
	for _, ranges := range []bool{true, false} {
		for _, target := range []string{"", "http"} {
			src, d := newHub(t), newDaemon(t, 0)
			img := src.image("team/shop", "amd64", "v1", noisy(t, "a", size))
			src.breaks(onlyLayers(cut(src, 300_000, 3, ranges)))
			dst := newHub(t)
			res := d.deploy("shop", src.ref("team/shop:v1"), func(s *slipwayv1.Start, _ *session) {
				if target != "" {
					s.Targets = []string{dst.ref("shop")}
				}
			})
			at := d.own
			if target != "" {
				at = dst
			}
			checkImage(t, src, "team/shop", at, "shop", img.Digest)
			if res.RootfsBytes != 4096+245*4096 {
				t.Errorf("ranges %v: counted %d bytes", ranges, res.RootfsBytes)
			}
			if n := src.bytesSent(); ranges && n > int64(res.Layers[0].Size)+20_000 { // and the config
				t.Errorf("%d bytes were read of %d", n, res.Layers[0].Size)
			}
			asked := src.requests("GET", "/blobs/"+res.Layers[0].Digest)
			if len(asked) != 4 || !strings.HasSuffix(asked[1], "bytes=300000-") {
				t.Errorf("asked %q", asked)
			}
		}
	}
}

// onlyLayers lets requests for small blobs pass: the config's is read first.
func onlyLayers(wrap func(http.ResponseWriter, *http.Request) bool) func(http.ResponseWriter, *http.Request) bool {
	var blobs atomic.Int32
	return func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") && blobs.Add(1) == 1 {
			return false
		}
		return wrap(w, r)
	}
}

// A source that breaks for ever is given up, and is the registry's fault.
func TestSourceBreaksForEver(t *testing.T) {
	src, dst, d := newHub(t), newHub(t), newDaemon(t, 0)
	src.image("team/shop", "amd64", "v1", noisy(t, "a", 1_000_000))
	src.breaks(onlyLayers(cut(src, 0, 1000, true)))
	e := d.fails(failure.BaseUnavailable, "registry unavailable", src.ref("team/shop:v1"), to(dst.ref("shop"))).Error
	if !e.Retryable || e.Blame != slipwayv1.Blame_BLAME_REGISTRY || len(dst.requests("PUT", "/manifests/")) > 0 {
		t.Errorf("%v, %q", e, dst.requests("PUT", ""))
	}
}

// A target that breaks gets the rest; the count does not see bytes twice.
func TestTargetBreaks(t *testing.T) {
	src, dst, d := newHub(t), newHub(t), newDaemon(t, 0)
	img := src.image("team/shop", "amd64", "v1", noisy(t, "a", 1_000_000))
	var patches atomic.Int32
	dst.breaks(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPatch || patches.Add(1) != 5 {
			return false
		}
		_, _ = r.Body.Read(make([]byte, 1000))
		panic(http.ErrAbortHandler)
	})
	res := d.deploy("shop", src.ref("team/shop:v1"), to(dst.ref("shop")))
	checkImage(t, src, "team/shop", dst, "shop", img.Digest)
	if res.RootfsBytes != 4096+245*4096 || patches.Load() < 6 {
		t.Errorf("%v after %d patches", res, patches.Load())
	}
	asked := src.requests("GET", "/blobs/"+res.Layers[0].Digest)
	if len(asked) != 2 || !strings.HasSuffix(asked[1], "bytes="+strconv.Itoa(4*(64<<10))+"-") {
		t.Errorf("the source was asked %q", asked)
	}
}
