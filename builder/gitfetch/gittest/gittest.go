// Package gittest serves Git repositories to tests, as a web server does.
package gittest

import (
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// A Server has repositories below its URL.
type Server struct {
	*httptest.Server
	tb   testing.TB
	root string

	// Before sees each request first; it answers it by returning true.
	Before func(w http.ResponseWriter, r *http.Request) bool
}

// Serve starts a server that ends with the test; with TLS if secure.
func Serve(tb testing.TB, secure bool) *Server {
	tb.Helper()
	git, err := exec.LookPath("git")
	if err != nil {
		tb.Fatal(err)
	}
	s := &Server{tb: tb, root: tb.TempDir()}
	backend := &cgi.Handler{Path: git, Args: []string{"http-backend"}, Env: append(environment,
		"GIT_PROJECT_ROOT="+s.root, "GIT_HTTP_EXPORT_ALL=1", "PATH="+os.Getenv("PATH"))}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.Before == nil || !s.Before(w, r) {
			backend.ServeHTTP(w, r)
		}
	}))
	if secure {
		s.StartTLS()
	} else {
		s.Start()
	}
	tb.Cleanup(s.Close)
	return s
}

// environment makes what git does the same everywhere.
var environment = []string{
	"GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null", "HOME=/nonexistent",
	"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@test", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@test",
	"GIT_AUTHOR_DATE=1500000000 +0000", "GIT_COMMITTER_DATE=1500000000 +0000",
	"GIT_CONFIG_COUNT=2", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*",
	"GIT_CONFIG_KEY_1=protocol.file.allow", "GIT_CONFIG_VALUE_1=always",
}

// A Repo is a repository of the server.
type Repo struct {
	URL    string
	server *Server
	dir    string
}

// Repo makes a repository, name.git, of branch main.
func (s *Server) Repo(name string) *Repo {
	s.tb.Helper()
	r := &Repo{URL: s.URL + "/" + name + ".git", server: s, dir: filepath.Join(s.root, name+".git")}
	if err := os.MkdirAll(r.dir, 0o755); err != nil {
		s.tb.Fatal(err)
	}
	r.Git("init", "-q", "-b", "main", ".")
	return r
}

// Git runs a git command in the repository and returns its output.
func (r *Repo) Git(args ...string) string {
	r.server.tb.Helper()
	cmd := exec.CommandContext(r.server.tb.Context(), "git", args...)
	cmd.Dir = r.dir
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH")}, environment...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		r.server.tb.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// Commit writes files, programs if their names end in ".sh" and links if the
// text begins with "->", and returns the hash of a commit of them.
func (r *Repo) Commit(files map[string]string) string {
	r.server.tb.Helper()
	for name, text := range files {
		at := filepath.Join(r.dir, name)
		mode := os.FileMode(0o644)
		if strings.HasSuffix(name, ".sh") {
			mode = 0o755
		}
		err := os.MkdirAll(filepath.Dir(at), 0o755)
		if target, ok := strings.CutPrefix(text, "->"); ok && err == nil {
			err = os.Symlink(target, at)
		} else if err == nil {
			err = os.WriteFile(at, []byte(text), mode)
		}
		if err != nil {
			r.server.tb.Fatal(err)
		}
	}
	r.Git("add", "-A")
	r.Git("commit", "-q", "--allow-empty", "-m", "a commit")
	return r.Git("rev-parse", "HEAD")
}
