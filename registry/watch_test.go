package registry_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/slipwayhq/slipway/registry"
)

// prompt is within what time a request must end whose token died.
const prompt = time.Second

// serve opens a registry behind a server that speaks HTTP/1.1 or 2, and
// returns a client of it.
func serve(t *testing.T, b *book, h2 bool) (served, *http.Client) {
	t.Helper()
	s, _ := open(t, registry.Options{Access: b})
	var handlers sync.WaitGroup // a server that closes does not wait for those of HTTP/2
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handlers.Add(1)
		defer handlers.Done()
		s.Handler().ServeHTTP(w, r)
	}))
	server.EnableHTTP2 = h2
	server.StartTLS()
	t.Cleanup(func() { server.Close(); handlers.Wait() })
	s.url, s.host = server.URL, strings.TrimPrefix(server.URL, "https://")
	return s, server.Client()
}

func TestRevokedUnderWay(t *testing.T) {
	for name, h2 := range map[string]bool{"HTTP/1.1": false, "HTTP/2": true} {
		t.Run(name+" upload", func(t *testing.T) { revokedUpload(t, h2) })
		t.Run(name+" download", func(t *testing.T) { revokedDownload(t, h2) })
	}
}

func revokedUpload(t *testing.T, h2 bool) {
	b := &book{}
	s, client := serve(t, b, h2)
	resp := send(t, client, "POST", s.url+"/v2/shop/blobs/uploads/", nil)
	resp.Body.Close()
	location, err := resp.Location()
	if err != nil {
		t.Fatal(resp.Status, err)
	}
	body, feed := io.Pipe()
	req, err := http.NewRequestWithContext(t.Context(), "PATCH", location.String(), body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", basicAuth(secret))
	ended := make(chan error, 1)
	go func() {
		resp, err := client.Do(req)
		if err == nil {
			resp.Body.Close()
			err = errors.New(resp.Status)
			if resp.StatusCode < 400 || resp.StatusCode == 401 {
				t.Errorf("an answer to the upload: %s", resp.Status)
			}
		}
		ended <- err
	}()
	chunk := bytes.Repeat([]byte("x"), 1<<20)
	for range 32 { // more than the sockets hold: the handler is at it
		if _, err := feed.Write(chunk); err != nil {
			t.Fatal(err)
		}
	}
	b.revoke(secret)
	go func() {
		for {
			if _, err := feed.Write(chunk); err != nil { // closed below at the latest
				return
			}
		}
	}()
	select {
	case <-ended:
	case <-time.After(prompt):
		t.Error("the upload went on")
	}
	feed.Close()
	if resp := send(t, client, "GET", s.url+"/v2/", nil); resp.StatusCode != 401 {
		t.Errorf("then: %s", resp.Status)
	}
}

func revokedDownload(t *testing.T, h2 bool) {
	b := &book{}
	s, client := serve(t, b, h2)
	desc := sparse(t, s, 1<<30)
	resp := send(t, client, "GET", s.url+"/v2/shop/blobs/"+desc.Digest.String(), nil)
	defer resp.Body.Close()
	if _, err := io.CopyN(io.Discard, resp.Body, 1<<20); err != nil {
		t.Fatal(resp.Status, err)
	}
	b.revoke(secret)
	ended := make(chan error, 1)
	var n int64
	go func() {
		// More slowly than the server could send.
		for {
			m, err := io.CopyN(io.Discard, resp.Body, 1<<20)
			if n += m; err != nil {
				ended <- err
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	select {
	case err := <-ended:
		if errors.Is(err, io.EOF) && n+1<<20 >= desc.Size {
			t.Errorf("the download ended well, after %d bytes", n)
		}
	case <-time.After(prompt):
		t.Error("the download went on")
	}
}

// sparse gives the shop a blob of zeros.
func sparse(t *testing.T, s served, size int64) ocispec.Descriptor {
	t.Helper()
	path := filepath.Join(t.TempDir(), "blob")
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, size)); err != nil {
		t.Fatal(err)
	}
	desc := ocispec.Descriptor{Digest: digest.FromString("zeros"), Size: size} // a link trusts it
	if err := s.repository(t, "shop").Link(t.Context(), desc, path); err != nil {
		t.Fatal(err)
	}
	return desc
}

// TestWatchEndsWithTheRequest holds the gate to leaving nothing behind, and to
// leaving the connection alone when all went well.
func TestWatchEndsWithTheRequest(t *testing.T) {
	w := &watched{Access: everything, seen: make(chan context.Context, 1)}
	s, _ := open(t, registry.Options{Access: w})
	for range 3 {
		if resp, body := s.do(t, "GET", "/v2/", ""); resp.StatusCode != 200 {
			t.Fatalf("%s %s", resp.Status, body)
		}
		ctx := <-w.seen
		select {
		case <-ctx.Done():
		case <-time.After(prompt):
			t.Fatal("still watched")
		}
	}
	s.do(t, "GET", "/v2/", "", "Authorization", basicAuth("nope"))
	if len(w.seen) > 0 {
		t.Error("watches a token that was refused")
	}
}

// TestCutAtTheEnd lets a token die when the answer is complete: the deadlines
// must not meet the next request on the connection.
func TestCutAtTheEnd(t *testing.T) {
	dead, cancel := context.WithCancel(t.Context())
	cancel()
	s, _ := open(t, registry.Options{Access: mortal{everything, dead}})
	defer func() {
		if p := recover(); p != http.ErrAbortHandler {
			t.Errorf("the connection is not closed: %v", p)
		}
	}()
	req := httptest.NewRequestWithContext(t.Context(), "GET", "/v2/", nil)
	req.Header.Set("Authorization", basicAuth(secret))
	s.Handler().ServeHTTP(httptest.NewRecorder(), req)
}

type mortal struct {
	registry.Access
	life context.Context
}

func (m mortal) Watch(context.Context, string) context.Context { return m.life }

type watched struct {
	registry.Access
	seen chan context.Context
}

func (w *watched) Watch(ctx context.Context, _ string) context.Context {
	w.seen <- ctx
	return ctx
}

func send(t *testing.T, client *http.Client, method, url string, body io.Reader) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", basicAuth(secret))
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	return resp
}
