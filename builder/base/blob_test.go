package base_test

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/builder/base"
)

// A blob is read from any offset, also where the registry knows no ranges, and
// never from another one than was asked for.
func TestOpenAtOffset(t *testing.T) {
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			t.Error("credentials went to another host")
		}
		http.ServeContent(w, r, "", noTime, bytes.NewReader(layerBytes(t)))
	}))
	defer elsewhere.Close()
	for name, tc := range map[string]struct {
		answer func(w http.ResponseWriter, r *http.Request)
		text   string // of the error
	}{
		"ranges": {func(w http.ResponseWriter, r *http.Request) {
			http.ServeContent(w, r, "", noTime, bytes.NewReader(layerBytes(t)))
		}, ""},
		"no ranges": {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(layerBytes(t)) }, ""},
		"redirect": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.URL+"/blob", http.StatusTemporaryRedirect)
		}, ""},
		"another range": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Range", "bytes 0-99/100")
			w.WriteHeader(http.StatusPartialContent)
		}, "instead of the bytes from 1000 on"},
		"inner address": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://169.254.169.254/latest", http.StatusFound)
		}, "private address 169.254.169.254"},
		"inner address in disguise": {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "http://10.1/x", http.StatusFound) }, "private address 10.1"},
		"gone":                      {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) }, "image not found"},
	} {
		t.Run(name, func(t *testing.T) {
			f := serve(t)
			_, m := f.image(t, "amd64", layerTar(t, 6000))
			f.wrap = func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.HasSuffix(r.URL.Path, m.Layers[0].Digest.String()) {
					return false
				}
				tc.answer(w, r)
				return true
			}
			img, err := resolver(base.Options{}).Resolve(t.Context(), f.ref(), amd64, nil)
			check(t, err)
			r, err := img.Open(t.Context(), m.Layers[0], 1000)
			if tc.text != "" {
				if err == nil || !strings.Contains(err.Error(), tc.text) {
					t.Fatalf("error %v, want %q", err, tc.text)
				}
				return
			}
			check(t, err)
			defer r.Close()
			got, err := io.ReadAll(r)
			if err != nil || !bytes.Equal(got, layerBytes(t)[1000:]) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
}

// noTime keeps answers from having a date.
var noTime time.Time

// layerBytes are what the registry has under the layer's digest, as far as this
// test cares.
func layerBytes(t *testing.T) []byte { return layerTar(t, 6000) }
