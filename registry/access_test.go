package registry_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/slipwayhq/slipway/registry"
)

// policy knows four tokens: one for everything, one that may only pull from
// shop, one that may only push to it, and one that the database cannot be asked
// about.
func policy(s, repository string, actions ...string) error {
	switch s {
	case secret:
		return nil
	case "sr_shop":
		if repository == "" || repository == "shop" && slices.Equal(actions, []string{"pull"}) {
			return nil
		}
		return fmt.Errorf("%w: this token may pull from shop", registry.ErrDenied)
	case "sp_shop":
		if len(actions) == 0 || repository == "shop" && !slices.Contains(actions, "delete") {
			return nil
		}
		return fmt.Errorf("%w: this token may push to shop", registry.ErrDenied)
	case "sr_unknowable":
		return errors.New("dial tcp 10.0.0.7: connection refused")
	}
	return fmt.Errorf("%w: token not recognized", registry.ErrUnauthorized)
}

func TestAccess(t *testing.T) {
	s, _ := open(t, registry.Options{Access: decide(policy), Host: "registry.example:7071"})
	if err := remote.Write(s.ref(t, "shop:v1"), randomImage(t), basic); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, method, path, auth string
		status                   int
		text                     string
	}{
		{"nobody", "GET", "/v2/", "", 401, "UNAUTHORIZED"},
		{"nobody", "GET", "/v2/shop/manifests/v1", "", 401, "UNAUTHORIZED"},
		{"nobody", "POST", "/v2/shop/blobs/uploads/", "", 401, "UNAUTHORIZED"},
		{"empty password", "GET", "/v2/", basicAuth(""), 401, "UNAUTHORIZED"},
		{"empty bearer", "GET", "/v2/", "Bearer ", 401, "UNAUTHORIZED"},
		{"other scheme", "GET", "/v2/", "Digest " + secret, 401, "UNAUTHORIZED"},
		{"unknown", "GET", "/v2/", basicAuth("nope"), 401, "token not recognized"},
		{"unknown", "GET", "/v2/shop/manifests/v1", "Bearer nope", 401, "token not recognized"},
		{"reader", "GET", "/v2/", basicAuth("sr_shop"), 200, "{}"},
		{"reader", "GET", "/v2/shop/manifests/v1", basicAuth("sr_shop"), 200, "schemaVersion"},
		{"reader", "GET", "/v2/shop/manifests/v1", "bearer sr_shop", 200, "schemaVersion"},
		{"reader", "HEAD", "/v2/shop/manifests/v1", basicAuth("sr_shop"), 200, ""},
		{"reader", "GET", "/v2/shop/tags/list", basicAuth("sr_shop"), 200, "v1"},
		{"reader", "GET", "/v2/other/manifests/v1", basicAuth("sr_shop"), 403, "this token may pull from shop"},
		{"reader", "POST", "/v2/shop/blobs/uploads/", basicAuth("sr_shop"), 403, "DENIED"},
		{"reader", "PUT", "/v2/shop/manifests/v2", basicAuth("sr_shop"), 403, "DENIED"},
		{"reader", "DELETE", "/v2/shop/manifests/v1", basicAuth("sr_shop"), 403, "DENIED"},
		{"reader", "GET", "/v2/_catalog", basicAuth("sr_shop"), 200, `["shop"]`},
		{"pusher", "GET", "/v2/_catalog", basicAuth("sp_shop"), 403, "DENIED"},
		{"admin", "GET", "/v2/_catalog", basicAuth(secret), 200, "shop"},
		{"admin", "POST", "/v2/shop/blobs/uploads/", basicAuth(secret), 202, ""},
		{"outage", "GET", "/v2/shop/manifests/v1", basicAuth("sr_unknowable"), 503, "UNAVAILABLE"},
	} {
		t.Run(tc.name+" "+tc.method+" "+tc.path, func(t *testing.T) {
			resp, body := s.do(t, tc.method, tc.path, "", "Authorization", tc.auth, "Accept", manifestType)
			if resp.StatusCode != tc.status || !strings.Contains(body, tc.text) {
				t.Errorf("%s %s; want %d with %q", resp.Status, body, tc.status, tc.text)
			}
			if n := strings.Count(body, `"errors"`); resp.StatusCode >= 400 && n != 1 {
				t.Errorf("%d errors in one answer: %s", n, body)
			}
			want := ""
			if tc.status == 401 {
				want = `Bearer realm="` + s.url + `/v2/token",service="registry.example:7071"`
			}
			if got := resp.Header.Get("WWW-Authenticate"); !strings.HasPrefix(got, want) || (got == "") != (want == "") {
				t.Errorf("WWW-Authenticate: %q, want %q", got, want)
			}
			if strings.Contains(body, "10.0.0.7") {
				t.Errorf("tells strangers about our network: %s", body)
			}
		})
	}
	if tags, err := s.repository(t, "shop").Tags(t.Context()); err != nil || !slices.Equal(tags, []string{"v1"}) {
		t.Errorf("Tags = %v, %v", tags, err)
	}
}

func TestAccessIsAskedEachTime(t *testing.T) {
	var mu sync.Mutex
	revoked := false
	s, _ := open(t, registry.Options{Access: decide(func(string, string, ...string) error {
		mu.Lock()
		defer mu.Unlock()
		if revoked {
			return registry.ErrUnauthorized
		}
		return nil
	})})
	if resp, _ := s.do(t, "GET", "/v2/", ""); resp.StatusCode != http.StatusOK {
		t.Errorf("before: %s", resp.Status)
	}
	mu.Lock()
	revoked = true
	mu.Unlock()
	if resp, _ := s.do(t, "GET", "/v2/", ""); resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("after: %s", resp.Status)
	}
}

// asked notes what an Access is asked, and denies it.
type asked struct {
	mu  sync.Mutex
	log []string
}

func (a *asked) Authenticate(ctx context.Context, user, secret string) (string, error) {
	a.note("who is %s %s at %s", user, secret, registry.RemoteAddr(ctx))
	return "tok_1", nil
}

func (a *asked) Authorize(ctx context.Context, id, repository string, actions ...string) error {
	a.note("may %s at %s %q %v", id, registry.RemoteAddr(ctx), repository, actions)
	return registry.ErrDenied
}

func (a *asked) Allowed(_ context.Context, id, repository string, actions ...string) ([]string, error) {
	a.note("could %s %q %v", id, repository, actions)
	return nil, nil
}

func (a *asked) note(format string, args ...any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.log = append(a.log, fmt.Sprintf(format, args...))
}

func (a *asked) take() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	log := a.log
	a.log = nil
	return log
}

func TestAccessActions(t *testing.T) {
	var a asked
	s, _ := open(t, registry.Options{Access: &a})
	zero := "sha256:" + strings.Repeat("0", 64)
	for _, tc := range []struct{ method, path, want string }{
		{"GET", "/v2/", `"" []`},
		{"GET", "/v2/_catalog", `"" [catalog]`},
		{"HEAD", "/v2/a/b/blobs/" + zero, `"a/b" [pull]`},
		{"PATCH", "/v2/a/b/blobs/uploads/1", `"a/b" [pull push]`},
		{"DELETE", "/v2/a/b/blobs/uploads/1", `"a/b" [push]`}, // gives it up
		{"DELETE", "/v2/a/b/blobs/" + zero, `"a/b" [delete]`},
		{"DELETE", "/v2/a/b/manifests/v1", `"a/b" [delete]`},
	} {
		s.do(t, tc.method, tc.path, "")
		want := []string{"who is x sa_secret at 127.0.0.1", "may tok_1 at 127.0.0.1 " + tc.want}
		if got := a.take(); !slices.Equal(got, want) {
			t.Errorf("%s %s asks %q, want %q", tc.method, tc.path, got, want)
		}
	}
}

func TestAccessIsNotAskedAboutNothing(t *testing.T) {
	s, _ := open(t, registry.Options{Access: decide(func(string, string, ...string) error {
		return nil
	})})
	for _, auth := range []string{"", "Basic eDo=", "Basic !", "Bearer", "Bearer  ", "Negotiate abc"} {
		if resp, _ := s.do(t, "GET", "/v2/", "", "Authorization", auth); resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("Authorization %q: %s", auth, resp.Status)
		}
	}
}

func TestMount(t *testing.T) {
	s, _ := open(t, registry.Options{Access: decide(func(_, repository string, _ ...string) error {
		if repository == "private" {
			return registry.ErrDenied
		}
		return nil
	})})
	desc, path := store(t, t.TempDir(), []byte("a layer"))
	for _, tc := range []struct {
		from   string
		status int
		has    bool
	}{
		{"private", http.StatusAccepted, false}, // an upload, as if nobody had the blob
		{"public", http.StatusCreated, true},
	} {
		if err := s.repository(t, tc.from).Link(t.Context(), desc, path); err != nil {
			t.Fatal(err)
		}
		resp, body := s.do(t, "POST", "/v2/mine/blobs/uploads/?mount="+desc.Digest.String()+"&from="+tc.from, "")
		if resp.StatusCode != tc.status {
			t.Errorf("mount from %s: %s %s, want %d", tc.from, resp.Status, body, tc.status)
		}
		if ok, err := s.repository(t, "mine").Exists(t.Context(), desc); ok != tc.has || err != nil {
			t.Errorf("mount from %s: Exists = %v, %v", tc.from, ok, err)
		}
	}
}

func TestEvents(t *testing.T) {
	var (
		mu     sync.Mutex
		events []registry.Event
	)
	s, _ := open(t, registry.Options{OnManifest: func(ctx context.Context, e registry.Event) {
		if ctx.Value(http.LocalAddrContextKey) == nil {
			t.Error("not the request's context")
		}
		mu.Lock()
		defer mu.Unlock()
		events = append(events, e)
	}})
	img := randomImage(t)
	want := digestOf(t, img)
	if err := remote.Write(s.ref(t, "manifests/shop:v1"), img, basic); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	events = slices.DeleteFunc(events, func(e registry.Event) bool { return e.Method != http.MethodPut })
	mu.Unlock()
	if _, err := remote.Head(s.ref(t, "manifests/shop:v1"), basic); err != nil {
		t.Fatal(err)
	}
	if _, err := remote.Get(s.ref(t, "manifests/shop@"+want.String()), basic); err != nil {
		t.Fatal(err)
	}
	s.do(t, "GET", "/v2/manifests/shop/manifests/absent", "")
	s.do(t, "GET", "/v2/manifests/shop/tags/list", "")
	s.do(t, "GET", "/v2/manifests/shop/manifests/v1", "", "Authorization", "Basic bm86")
	mu.Lock()
	defer mu.Unlock()
	got := make([]string, len(events))
	for i, e := range events {
		if e.Digest != want || e.Repository != "manifests/shop" || e.Time.IsZero() || !strings.Contains(e.UserAgent, "go-containerregistry") || e.Remote != "127.0.0.1" || e.Token != "id of "+secret {
			t.Errorf("event %+v", e)
		}
		got[i] = e.Method + " " + e.Reference
	}
	if all := []string{"PUT v1", "HEAD v1", "GET " + want.String()}; !slices.Equal(got, all) {
		t.Errorf("events %q, want %q", got, all)
	}
}

func TestManifestOverHTTPIsBounded(t *testing.T) {
	s, _ := open(t, registry.Options{})
	big := strings.Repeat(" ", registry.MaxManifest+1)
	resp, body := s.do(t, "PUT", "/v2/shop/manifests/v1", big, "Content-Type", "application/vnd.oci.image.manifest.v1+json")
	if resp.StatusCode != http.StatusBadRequest {
		t.Errorf("%s %s", resp.Status, body)
	}
	if _, _, err := s.repository(t, "shop").Manifest(t.Context(), "v1"); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("then Manifest: %v, want %v", err, registry.ErrNotFound)
	}
}
