package registry_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/slipwayhq/slipway/registry"
)

// sees lets tokens pull from the repositories that begin as they do, and list.
var sees = decide(func(s, repository string, _ ...string) error {
	if prefix := strings.TrimPrefix(s, "sp_"); strings.HasPrefix(repository, prefix) || repository == "" {
		return nil
	}
	return registry.ErrDenied
})

// catalog pages through the catalog, and returns the pages.
func (s served) catalog(t *testing.T, secret, query string) (pages [][]string) {
	t.Helper()
	for path := "/v2/_catalog" + query; path != ""; {
		resp, body := s.do(t, "GET", path, "", "Authorization", basicAuth(secret))
		var page struct{ Repositories []string }
		if err := json.Unmarshal([]byte(body), &page); err != nil || resp.StatusCode != 200 || page.Repositories == nil {
			t.Fatalf("%s: %s %s", path, resp.Status, body)
		}
		pages = append(pages, page.Repositories)
		next, rel, ok := strings.Cut(resp.Header.Get("Link"), ">")
		if path = strings.TrimPrefix(next, "<"); ok && rel != `; rel="next"` {
			t.Errorf("Link: %s", resp.Header.Get("Link"))
		}
		if len(pages) > 300 {
			t.Fatal("pages without end")
		}
	}
	return pages
}

func TestCatalog(t *testing.T) {
	s, _ := open(t, registry.Options{Access: sees})
	if got := s.catalog(t, "sp_", ""); fmt.Sprint(got) != "[[]]" {
		t.Errorf("empty registry: %v", got)
	}
	img := randomImage(t)
	all := []string{"a", "a/b", "a/b/c", "a-b", "ab", "b", "team1/x", "team1/y", "team2/x", "z"}
	for _, name := range all {
		link(t, s.repository(t, name), img, t.TempDir(), "v1")
	}
	for _, tc := range []struct {
		secret, query string
		want          string
	}{
		{"sp_", "", "[[a a/b a/b/c a-b ab b team1/x team1/y team2/x z]]"},
		{"sp_", "?n=4", "[[a a/b a/b/c a-b] [ab b team1/x team1/y] [team2/x z]]"},
		{"sp_", "?n=5", "[[a a/b a/b/c a-b ab] [b team1/x team1/y team2/x z]]"}, // nothing after the last: no link
		{"sp_", "?n=2000", "[[a a/b a/b/c a-b ab b team1/x team1/y team2/x z]]"},
		{"sp_", "?n=0", "[[]]"},
		{"sp_", "?last=b", "[[team1/x team1/y team2/x z]]"},
		{"sp_", "?last=zz", "[[]]"},
		{"sp_", "?last=../../x", "[[]]"},
		{"sp_team1/", "", "[[team1/x team1/y]]"},
		{"sp_team1/", "?n=1", "[[team1/x] [team1/y]]"},
		{"sp_team1/", "?n=2", "[[team1/x team1/y]]"}, // what follows is others'
		{"sp_team2/", "?last=a", "[[team2/x]]"},
		{"sp_nothing", "?n=1", "[[]]"},
	} {
		if got := fmt.Sprint(s.catalog(t, tc.secret, tc.query)); got != tc.want {
			t.Errorf("%s %s: %s, want %s", tc.secret, tc.query, got, tc.want)
		}
	}
	for _, n := range []string{"x", "-1", "1e3"} {
		if resp, body := s.do(t, "GET", "/v2/_catalog?n="+n, "", "Authorization", basicAuth("sp_")); resp.StatusCode != 400 {
			t.Errorf("n=%s: %s %s", n, resp.Status, body)
		}
	}
	for _, method := range []string{"POST", "DELETE", "PUT"} {
		if resp, body := s.do(t, method, "/v2/_catalog", "", "Authorization", basicAuth("sp_")); resp.StatusCode != 405 {
			t.Errorf("%s: %s %s", method, resp.Status, body)
		}
	}
}

// TestLargeCatalog needs several looks at the disk for one page.
func TestLargeCatalog(t *testing.T) {
	root := t.TempDir()
	s, _ := open(t, registry.Options{Root: root, Access: sees})
	var want []string
	for i := range 240 {
		name := fmt.Sprintf("%c/r%03d", "ab"[i%2], i)
		if err := os.MkdirAll(filepath.Join(root, "docker/registry/v2/repositories", name, "_manifests"), 0o755); err != nil {
			t.Fatal(err)
		}
		if i%2 == 1 {
			want = append(want, name)
		}
	}
	got := s.catalog(t, "sp_b", "?n=50")
	if len(got) != 3 || !slices.Equal(slices.Concat(got...), want) {
		t.Errorf("%d pages: %v", len(got), got)
	}
}

func TestCatalogOutage(t *testing.T) {
	s, _ := open(t, registry.Options{Access: decide(func(_, repository string, _ ...string) error {
		if repository == "" {
			return nil
		}
		return fmt.Errorf("dial tcp 10.0.0.7: connection refused")
	})})
	link(t, s.repository(t, "a"), randomImage(t), t.TempDir(), "v1")
	if resp, body := s.do(t, "GET", "/v2/_catalog", ""); resp.StatusCode != 503 || strings.Contains(body, "10.0.0.7") {
		t.Errorf("%s %s", resp.Status, body)
	}
}

func TestDelete(t *testing.T) {
	for _, tc := range []struct {
		by     string // tag or digest
		secret string
		status int
		left   []string
	}{
		{"tag", "sr_shop", 403, []string{"v1", "v2"}},
		{"digest", "sr_shop", 403, []string{"v1", "v2"}},
		{"tag", "sp_shop", 403, []string{"v1", "v2"}},
		{"tag", secret, 202, []string{"v2"}},
		{"digest", secret, 202, nil},
		{"unknown tag", secret, 404, []string{"v1", "v2"}},
	} {
		t.Run(tc.by+" by "+tc.secret, func(t *testing.T) {
			s, _ := open(t, registry.Options{Access: decide(policy)})
			img := randomImage(t)
			link(t, s.repository(t, "shop"), img, t.TempDir(), "v1", "v2")
			ref := map[string]string{"tag": "v1", "digest": digestOf(t, img).String(), "unknown tag": "v9"}[tc.by]
			resp, body := s.do(t, "DELETE", "/v2/shop/manifests/"+ref, "", "Authorization", s.bearer(t, tc.secret, "repository:shop:*"))
			if resp.StatusCode != tc.status {
				t.Errorf("%s %s; want %d", resp.Status, body, tc.status)
			}
			if tags, err := s.repository(t, "shop").Tags(t.Context()); err != nil || !slices.Equal(tags, tc.left) {
				t.Errorf("left: %v, %v; want %v", tags, err, tc.left)
			}
			_, _, err := s.repository(t, "shop").Manifest(t.Context(), digestOf(t, img).String())
			if gone := tc.by == "digest" && tc.status == 202; (err != nil) != gone {
				t.Errorf("manifest: %v", err)
			}
		})
	}
}

// TestMountWithBearer tries what a client does that cannot read the source.
func TestMountWithBearer(t *testing.T) {
	s, _ := open(t, registry.Options{Access: decide(policy)})
	desc, path := store(t, t.TempDir(), []byte("a layer"))
	if err := s.repository(t, "private").Link(t.Context(), desc, path); err != nil {
		t.Fatal(err)
	}
	mount := "/v2/shop/blobs/uploads/?mount=" + desc.Digest.String() + "&from=private"
	for _, tc := range []struct {
		name, auth string
		status     int
	}{
		{"not allowed", s.bearer(t, "sp_shop", "repository:shop:pull,push", "repository:private:pull"), http.StatusAccepted},
		{"not asked for", s.bearer(t, secret, "repository:shop:pull,push"), http.StatusAccepted},
		{"allowed", s.bearer(t, secret, "repository:shop:pull,push", "repository:private:pull"), http.StatusCreated},
	} {
		if resp, body := s.do(t, "POST", mount, "", "Authorization", tc.auth); resp.StatusCode != tc.status {
			t.Errorf("%s: %s %s, want %d", tc.name, resp.Status, body, tc.status)
		}
	}
}

// TestGoContainerRegistry drives a client that follows challenges: crane's.
func TestGoContainerRegistry(t *testing.T) {
	s, _ := open(t, registry.Options{})
	img := randomImage(t)
	if err := remote.Write(s.ref(t, "a:v1"), img, basic); err != nil {
		t.Fatal(err)
	}
	if err := remote.Tag(s.ref(t, "a:v2").(name.Tag), img, basic); err != nil {
		t.Error(err)
	}
	reg, err := name.NewRegistry(s.host)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := remote.Catalog(t.Context(), reg, basic); err != nil || !slices.Equal(got, []string{"a"}) {
		t.Errorf("catalog: %v, %v", got, err)
	}
	if got, err := remote.List(s.ref(t, "a:v1").Context(), basic); err != nil || !slices.Equal(got, []string{"v1", "v2"}) {
		t.Errorf("tags: %v, %v", got, err)
	}
	if err := remote.Delete(s.ref(t, "a:v1"), basic); err != nil {
		t.Errorf("delete: %v", err)
	}
	if _, err := remote.Image(s.ref(t, "a:v1"), basic); err == nil {
		t.Error("the tag is still there")
	}
}
