package gitfetch_test

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/slipwayhq/slipway/builder/gitfetch"
	"github.com/slipwayhq/slipway/builder/gitfetch/gittest"
)

var errClosed = errors.New("closed address")

// A desk is a fetcher that may reach 127.0.0.1 and knows what it reached.
type desk struct {
	*gitfetch.Fetcher
	root string
	mu   sync.Mutex
	to   []string
}

func newDesk(t *testing.T, ca string) *desk {
	t.Helper()
	if os.Getuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root")
		}
		t.Skip("needs root: git runs in namespaces")
	}
	d := &desk{root: filepath.Join(t.TempDir(), "git")}
	var err error
	d.Fetcher, err = gitfetch.New(gitfetch.Options{Root: d.root, CA: ca, Dial: d.dial})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if left, err := os.ReadDir(d.root); err != nil || len(left) > 0 {
			t.Errorf("left: %v, %v", left, err)
		}
		if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(mounts), d.root) {
			t.Errorf("mounted below %s (%v)", d.root, err)
		}
	})
	return d
}

func (d *desk) dial(ctx context.Context, network, address string) (net.Conn, error) {
	d.mu.Lock()
	d.to = append(d.to, address)
	d.mu.Unlock()
	if !strings.HasPrefix(address, "127.0.0.1:") {
		return nil, fmt.Errorf("%s: %w", address, errClosed)
	}
	return new(net.Dialer).DialContext(ctx, network, address)
}

// get resolves and fetches. The tree is closed at the end of the test.
func (d *desk) get(t *testing.T, src gitfetch.Source) (map[string]string, gitfetch.Commit, error) {
	t.Helper()
	c, err := d.Resolve(t.Context(), src)
	if err != nil {
		return nil, c, err
	}
	tree, err := d.Fetch(t.Context(), src, c, 64<<20)
	if err != nil {
		return nil, c, err
	}
	t.Cleanup(func() {
		if err := tree.Close(); err != nil {
			t.Error(err)
		}
	})
	if tree.Time.Unix() != 1500000000 {
		t.Errorf("time of the commit: %v", tree.Time)
	}
	found := map[string]string{}
	err = filepath.WalkDir(tree.Dir, func(p string, e fs.DirEntry, err error) error {
		name := strings.TrimPrefix(p, tree.Dir+"/")
		if err != nil || p == tree.Dir || e.IsDir() && e.Name() != ".git" {
			return err
		}
		if e.Name() == ".git" {
			found[name] = "git"
			if e.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if info.Mode().Type() == fs.ModeSymlink {
			found[name], err = os.Readlink(p)
			return err
		}
		text, err := os.ReadFile(p)
		found[name] = fmt.Sprintf("%o %s", info.Mode().Perm(), text)
		return err
	})
	return found, c, err
}

func TestFetch(t *testing.T) {
	d := newDesk(t, "")
	server := gittest.Serve(t, false)
	repo := server.Repo("org/app")
	first := repo.Commit(map[string]string{"f": "one", "run.sh": "#!", "d/g": "g", "l": "->/etc/passwd"})
	repo.Git("tag", "light")
	repo.Git("tag", "-a", "-m", "m", "heavy")
	repo.Git("branch", "old")
	repo.Git("branch", "heavy")
	repo.Git("branch", "-D", "heavy")
	tag := repo.Git("rev-parse", "heavy")
	second := repo.Commit(map[string]string{"f": "two"})
	one := map[string]string{".git": "git", "f": "644 one", "run.sh": "755 #!", "d/g": "644 g", "l": "/etc/passwd"}
	for ref, want := range map[string]gitfetch.Commit{
		"": {Hash: second, Ref: "refs/heads/main"}, "main": {Hash: second, Ref: "refs/heads/main"}, "old": {Hash: first, Ref: "refs/heads/old"},
		"light": {Hash: first, Ref: "refs/tags/light"}, "heavy": {Hash: first, Tag: tag, Ref: "refs/tags/heavy"}, "refs/tags/heavy": {Hash: first, Tag: tag, Ref: "refs/tags/heavy"},
		"tags/light": {Hash: first, Ref: "refs/tags/light"}, first: {Hash: first},
	} {
		for _, keep := range []bool{false, true} {
			found, c, err := d.get(t, gitfetch.Source{Remote: repo.URL, Ref: ref, KeepGitDir: keep})
			if err != nil || c != want {
				t.Errorf("%q: %+v, %v; want %+v", ref, c, err, want)
				continue
			}
			if c.Hash == first && fmt.Sprint(found) != fmt.Sprint(one) {
				t.Errorf("%q: %v", ref, found)
			}
		}
	}
	for _, ref := range []string{"none", "-u/tmp", "m*", first[:7], strings.Repeat("0", 40)} {
		_, _, err := d.get(t, gitfetch.Source{Remote: repo.URL, Ref: ref})
		var said *gitfetch.Error
		if !errors.Is(err, gitfetch.ErrNoRef) && !errors.As(err, &said) {
			t.Errorf("%q: %v", ref, err)
		}
	}
	_, _, err := d.get(t, gitfetch.Source{Remote: server.URL + "/none.git"})
	var said *gitfetch.Error
	if !errors.As(err, &said) || !strings.Contains(said.Text, "not found") {
		t.Errorf("no repository: %v", err)
	}
}

func TestMatches(t *testing.T) {
	c := gitfetch.Commit{Hash: "abcdef", Tag: "123456"}
	for sum, want := range map[string]bool{"abc": true, "ABC": true, "1234": true, "bcd": false, "": false, "abcdefa": false, "ab*": false} {
		if got := c.Matches(sum); got != want {
			t.Errorf("%q: %t", sum, got)
		}
	}
}

// A kept .git is a repository that git reads, with the ref and without a trace
// of the proxy or of credentials.
func TestKeepGitDir(t *testing.T) {
	d := newDesk(t, "")
	repo := gittest.Serve(t, false).Repo("r")
	want := repo.Commit(map[string]string{"f": "one"})
	repo.Git("tag", "-a", "-m", "m", "v1")
	for ref, name := range map[string]string{"": "refs/heads/main", "v1": "refs/tags/v1"} {
		src := gitfetch.Source{Remote: repo.URL, Ref: ref, KeepGitDir: true, Authorization: "Basic c2VjcmV0"}
		c, err := d.Resolve(t.Context(), src)
		if err != nil {
			t.Fatal(err)
		}
		tree, err := d.Fetch(t.Context(), src, c, -1)
		if err != nil {
			t.Fatal(err)
		}
		defer tree.Close()
		git := func(args ...string) string {
			cmd := exec.CommandContext(t.Context(), "git", append([]string{"-c", "safe.directory=*"}, args...)...)
			cmd.Dir = tree.Dir
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Errorf("git %v: %v %s", args, err, out)
			}
			return strings.TrimSpace(string(out))
		}
		if got := git("rev-parse", "HEAD", name+"^{commit}"); got != want+"\n"+want {
			t.Errorf("%q: %s", ref, got)
		}
		if got := git("remote", "get-url", "origin"); got != repo.URL {
			t.Errorf("origin %s", got)
		}
		if got := git("status", "--porcelain"); got != "" {
			t.Errorf("status %s", got)
		}
		out, err := exec.CommandContext(t.Context(), "grep", "-rlE", "c2VjcmV0|proxy|127.0.0.1:[0-9]+@", tree.Dir).Output()
		if err == nil {
			t.Errorf("traces in %s", out)
		}
	}
}

// A closed address stays closed, also behind a redirect and in a submodule.
func TestGuard(t *testing.T) {
	d := newDesk(t, "")
	server := gittest.Serve(t, false)
	server.Before = func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasPrefix(r.URL.Path, "/away.git") {
			http.Redirect(w, r, "http://127.0.0.2:1"+r.URL.Path+"?"+r.URL.RawQuery, http.StatusFound)
			return true
		}
		return false
	}
	holder := server.Repo("holder")
	bad := "[submodule \"s\"]\n\tpath = s\n\turl = %s\n"
	holder.Commit(map[string]string{".gitmodules": fmt.Sprintf(bad, "http://127.0.0.2:1/s.git")})
	holder.Git("update-index", "--add", "--cacheinfo", "160000,"+strings.Repeat("1", 40)+",s")
	holder.Git("commit", "-q", "-m", "s")
	local := server.Repo("local")
	local.Commit(map[string]string{".gitmodules": fmt.Sprintf(bad, "file:///etc")})
	local.Git("update-index", "--add", "--cacheinfo", "160000,"+strings.Repeat("1", 40)+",s")
	local.Git("commit", "-q", "-m", "s")
	for _, remote := range []string{"http://127.0.0.2:1/x.git", "https://[::1]:1/x.git", server.URL + "/away.git", holder.URL} {
		if _, _, err := d.get(t, gitfetch.Source{Remote: remote, Submodules: true}); !errors.Is(err, errClosed) {
			t.Errorf("%s: %v", remote, err)
		}
	}
	if _, _, err := d.get(t, gitfetch.Source{Remote: holder.URL}); err != nil {
		t.Errorf("without submodules: %v", err)
	}
	var said *gitfetch.Error
	if _, _, err := d.get(t, gitfetch.Source{Remote: local.URL, Submodules: true}); !errors.As(err, &said) || !strings.Contains(err.Error(), "'file' not allowed") {
		t.Errorf("file: %v", err)
	}
	for _, remote := range []string{"file:///etc", "ext::sh -c id", "git://127.0.0.1/x", "ssh://127.0.0.1/x"} {
		if _, _, err := d.get(t, gitfetch.Source{Remote: remote}); !errors.As(err, &said) || !strings.Contains(err.Error(), "not allowed") {
			t.Errorf("%s: %v", remote, err)
		}
	}
}

func TestSubmodules(t *testing.T) {
	d := newDesk(t, "")
	server := gittest.Serve(t, false)
	inner := server.Repo("inner")
	inner.Commit(map[string]string{"deep": "x"})
	middle := server.Repo("middle")
	middle.Commit(map[string]string{"m": "m"})
	middle.Git("submodule", "--quiet", "add", "../inner.git", "in")
	middle.Commit(nil)
	outer := server.Repo("outer")
	outer.Git("submodule", "--quiet", "add", middle.URL, "mid")
	outer.Commit(nil)
	found, _, err := d.get(t, gitfetch.Source{Remote: outer.URL, Submodules: true})
	if err != nil || found["mid/m"] != "644 m" || found["mid/in/deep"] != "644 x" {
		t.Errorf("%v, %v", found, err)
	}
	found, _, err = d.get(t, gitfetch.Source{Remote: outer.URL})
	if err != nil || found["mid/m"] != "" {
		t.Errorf("without: %v, %v", found, err)
	}
}

// Credentials reach the remote and nobody else, and nothing that people see.
func TestAuthorization(t *testing.T) {
	const secret = "Basic c2VjcmV0OnNlY3JldA=="
	d := newDesk(t, "")
	var stolen sync.Map
	thief := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { stolen.Store(r.URL.Path, r.Header.Get("Authorization")) }))
	defer thief.Close()
	server := gittest.Serve(t, false)
	var argv sync.Map
	server.Before = func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasPrefix(r.URL.Path, "/away.git") || strings.HasPrefix(r.URL.Path, "/closed.git/away") {
			http.Redirect(w, r, thief.URL+r.URL.Path+"?"+r.URL.RawQuery, http.StatusFound)
			return true
		}
		all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, file := range all {
			if text, err := os.ReadFile(file); err == nil && strings.Contains(string(text), "git") {
				argv.Store(string(text), true)
			}
		}
		if r.Header.Get("Authorization") != secret {
			w.Header().Set("WWW-Authenticate", "Basic")
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		return false
	}
	repo := server.Repo("closed")
	repo.Commit(map[string]string{"f": "f"})
	var said *gitfetch.Error
	if _, _, err := d.get(t, gitfetch.Source{Remote: repo.URL}); !errors.As(err, &said) || !said.Auth {
		t.Errorf("without credentials: %v", err)
	}
	if _, _, err := d.get(t, gitfetch.Source{Remote: repo.URL, Authorization: "Basic wrong"}); !errors.As(err, &said) || !said.Auth || strings.Contains(err.Error(), "wrong") {
		t.Errorf("wrong credentials: %v", err)
	}
	if found, _, err := d.get(t, gitfetch.Source{Remote: repo.URL, Authorization: secret}); err != nil || found["f"] != "644 f" {
		t.Errorf("%v, %v", found, err)
	}
	if _, _, err := d.get(t, gitfetch.Source{Remote: server.URL + "/away.git", Authorization: secret}); !errors.Is(err, gitfetch.ErrRedirect) {
		t.Errorf("redirect: %v", err)
	}
	repo.Commit(map[string]string{".gitmodules": "[submodule \"s\"]\n\tpath = s\n\turl = ./away\n"})
	repo.Git("update-index", "--add", "--cacheinfo", "160000,"+strings.Repeat("1", 40)+",s")
	repo.Git("commit", "-q", "-m", "s")
	if _, _, err := d.get(t, gitfetch.Source{Remote: repo.URL, Authorization: secret, Submodules: true}); err == nil {
		t.Error("a submodule was fetched where it redirects to")
	}
	stolen.Range(func(k, v any) bool { t.Errorf("the other server got %v with %q", k, v); return true })
	if slices.ContainsFunc(d.to, func(a string) bool { return strings.HasSuffix(thief.URL, a) }) {
		t.Error("the other server was reached")
	}
	argv.Range(func(k, _ any) bool {
		if strings.Contains(k.(string), "c2VjcmV0") {
			t.Errorf("in the arguments: %q", k)
		}
		return true
	})
}

func TestCA(t *testing.T) {
	server := gittest.Serve(t, true)
	repo := server.Repo("r")
	repo.Commit(map[string]string{"f": "f"})
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	if found, _, err := newDesk(t, file).get(t, gitfetch.Source{Remote: repo.URL}); err != nil || found["f"] != "644 f" {
		t.Errorf("%v, %v", found, err)
	}
	if _, _, err := newDesk(t, "").get(t, gitfetch.Source{Remote: repo.URL}); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("unknown CA: %v", err)
	}
}

// A repository that unpacks to much is stopped, and so is a server that does
// not answer when the build ends.
func TestBounds(t *testing.T) {
	d := newDesk(t, "")
	server := gittest.Serve(t, false)
	repo := server.Repo("r")
	repo.Commit(map[string]string{"zeros": string(make([]byte, 48<<20)), "more": string(make([]byte, 64<<20))})
	src := gitfetch.Source{Remote: repo.URL}
	c, err := d.Resolve(t.Context(), src)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Fetch(t.Context(), src, c, 1<<10); !errors.Is(err, gitfetch.ErrTooLarge) {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	hung := errors.New("the client went")
	server.Before = func(_ http.ResponseWriter, r *http.Request) bool {
		cancel(hung)
		<-r.Context().Done()
		return true
	}
	if _, err := d.Fetch(ctx, src, c, -1); !errors.Is(err, hung) {
		t.Errorf("%v", err)
	}
}

// Objects are those that a ref, a tag's hash included, stands for.
func TestObjects(t *testing.T) {
	d := newDesk(t, "")
	repo := gittest.Serve(t, false).Repo("r")
	commit := repo.Commit(map[string]string{"f": "one"})
	repo.Git("tag", "-a", "-m", "m", "v1")
	tag := repo.Git("rev-parse", "v1")
	for _, filters := range []string{"false", "true"} {
		repo.Git("config", "uploadpack.allowFilter", filters)
		for ref, want := range map[string]string{"": "", commit: "", "v1": tag, tag: tag} {
			src := gitfetch.Source{Remote: repo.URL, Ref: ref}
			c, err := d.Resolve(t.Context(), src)
			if err != nil {
				t.Fatal(err)
			}
			o, err := d.Objects(t.Context(), src, c)
			if err != nil || o.Hash != commit || o.Tag != want || !strings.HasPrefix(string(o.RawCommit), "tree ") || (want != "") != strings.HasPrefix(string(o.RawTag), "object "+commit) {
				t.Errorf("%q: %+v, %v", ref, o, err)
			}
		}
	}
}
