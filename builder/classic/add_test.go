package classic_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/builder/gitfetch/gittest"
)

// What people take for a repository's address is never downloaded as a page.
func TestAddOfGitRefused(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	w.write(dir, map[string]string{"app.git": "a file", "a@b": "another"})
	for _, tc := range []struct{ source, code, said string }{
		{"https://git.test/org/repo.git/", failure.DockerfileInvalid, ".git"},
		{"https://git.test/org/repo#main", failure.DockerfileInvalid, ".git"},
		{"git://git.test/org/repo", failure.NotSupported, "https://"},
		{"ssh://git@git.test/org/repo", failure.NotSupported, "https://"},
		{"git@git.test:org/repo.git#v1", failure.NotSupported, "https://git.test/org/repo.git#v1"},
		{"http://git.test/org/repo.git?depth=1#v1", failure.DockerfileInvalid, `unexpected query "depth"`},
		{"https://git.test/org/repo.git?ref=a#b", failure.DockerfileInvalid, "ref conflicts"},
		{"--checksum=abc https://git.test/org/repo.git?checksum=def", failure.DockerfileInvalid, "differs"},
		{"--keep-git-dir=false https://git.test/org/repo.git?keep-git-dir", failure.DockerfileInvalid, "differs"},
		{"--checksum=abc app.git", failure.DockerfileInvalid, "one URL"},
		{"app.git https://[::1]:1/repo.git", failure.FetchFailed, "not a public address"},
		{"$REPO", failure.FetchFailed, "not a public address"},
		{"http://127.0.0.1:1/package.whl#sha256=0123", failure.FetchFailed, "package.whl"},
		{"http://127.0.0.1:1/repo.git.tar.gz", failure.FetchFailed, "repo.git.tar.gz"},
		{"http://127.0.0.1:1/x?repo=a.git", failure.FetchFailed, "x?repo"},
		{"http://127.0.0.1:1/repo.git", failure.FetchFailed, "connection refused"},
		{"app.git a@b", "", ""},
	} {
		o := w.build(t.Context(), request{dir: dir, dockerfile: "FROM scratch\nARG REPO=http://u:geheim@127.0.0.2/org/repo.git\nADD " + tc.source + " /src/"})
		e := o.Error
		if e.GetCode() != tc.code || !strings.Contains(e.GetMessage()+e.GetHint(), tc.said) {
			t.Errorf("ADD %s: %v, want %q", tc.source, e, tc.code)
		}
		if e != nil && (e.GetLine() != 3 || e.GetHint() == "" || strings.Contains(e.GetMessage()+e.GetHint(), "geheim")) {
			t.Errorf("ADD %s: line %d, %q, hint %q", tc.source, e.GetLine(), e.GetMessage(), e.GetHint())
		}
	}
}

// TestAddGit builds of a repository that a server in this test has.
func TestAddGit(t *testing.T) {
	w := newWorld(t)
	server := gittest.Serve(t, false)
	inner := server.Repo("inner")
	inner.Commit(map[string]string{"deep": "x"})
	repo := server.Repo("org/app")
	first := repo.Commit(map[string]string{"f": "one", "run.sh": "#!", "docs/g": "g", "docs/sub/h": "h", "l": "->../../etc", "docs/to": "->/etc"})
	repo.Git("tag", "-a", "-m", "m", "v1")
	repo.Git("submodule", "--quiet", "add", "../../inner.git", "mod")
	second := repo.Commit(map[string]string{"f": "two"})
	dir := t.TempDir()
	w.write(dir, map[string]string{"local": "local", "a.tgz": string(gzipped(w, w.smallTar()))})
	text := "FROM scratch\nARG U=" + repo.URL + "\nADD $U /main\nADD $U#v1 /v1/\nADD $U#v1:docs /docs/\nADD $U?tag=v1&subdir=docs/sub /sub/\n" +
		"ADD --keep-git-dir $U#main /kept/\nADD --checksum=" + first[:9] + " $U#v1 /sum/\nADD --chown=3:4 --chmod=u=rwX,go= --exclude=docs $U#" + first + " /own/\n" +
		"ADD local $U#v1 a.tgz /mixed/\nADD $U?submodules=0 /flat/\nADD --link $U#v1:docs /link/\n"
	o := w.build(t.Context(), request{dir: dir, dockerfile: text})
	img := o.pull()
	for dir, want := range map[string]string{
		"/main": ".gitmodules docs docs/g docs/sub docs/sub/h docs/to f l mod mod/deep run.sh", "/v1": "docs docs/g docs/sub docs/sub/h docs/to f l run.sh",
		"/docs": "g sub sub/h to", "/sub": "h", "/sum": "docs docs/g docs/sub docs/sub/h docs/to f l run.sh", "/own": "f l run.sh",
		"/mixed": "d d/f docs docs/g docs/sub docs/sub/h docs/to f l local run.sh", "/flat": ".gitmodules docs docs/g docs/sub docs/sub/h docs/to f l mod run.sh",
		"/link": "g sub sub/h to",
	} {
		if got := img.below(dir); got != want {
			t.Errorf("%s has %q, want %q", dir, got, want)
		}
	}
	for p, want := range map[string]node{
		"/v1/f": {Type: "f", Mode: "0644", Own: "0:0", MTime: "1500000000", Size: 3}, "/v1/run.sh": {Type: "f", Mode: "0755", Own: "0:0", MTime: "1500000000", Size: 2},
		"/v1/docs": {Type: "d", Mode: "0755", Own: "0:0", MTime: "1500000000"}, "/v1/l": {Type: "l", Mode: "0777", Own: "0:0", MTime: "1500000000", Link: "../../etc"},
		"/own/f": {Type: "f", Mode: "0600", Own: "3:4", MTime: "1500000000", Size: 3}, "/own/run.sh": {Type: "f", Mode: "0700", Own: "3:4", MTime: "1500000000", Size: 2},
	} {
		if n := img.tree[p]; n.Type != want.Type || n.Mode != want.Mode || n.Own != want.Own || n.MTime != want.MTime || n.Link != want.Link {
			t.Errorf("%s is %+v, want %+v", p, n, want)
		}
	}
	for _, p := range []string{"/kept/.git/HEAD", "/kept/.git/refs/heads/main", "/kept/mod/.git"} {
		if img.tree[p].Type != "f" {
			t.Errorf("%s is %+v", p, img.tree[p])
		}
	}
	again := w.build(t.Context(), request{dir: dir, dockerfile: text})
	if again.pull(); again.cached() != "+++++++++++" {
		t.Errorf("again: %s", again.cached())
	}
	if text, _ := json.Marshal(o.events); !strings.Contains(string(text), base64Of(repo.URL+" is at commit "+second)) {
		t.Error("no word of the commit")
	}
	other := w.build(t.Context(), request{org: "other", dir: dir, dockerfile: "FROM scratch\nADD " + repo.URL + "#v1 /v1/"})
	if a, b := other.pull().layers[0], w.build(t.Context(), request{org: "third", dir: dir, dockerfile: "FROM scratch\nADD --checksum=" + first + " " + repo.URL + "?ref=v1 /v1/"}).pull().layers[0]; len(a) == 0 || len(a) != len(b) {
		t.Errorf("the same commit made %d and %d entries", len(a), len(b))
	}
}

// An unchanged ref is a hit without a clone; a moved one is a miss.
func TestAddGitCache(t *testing.T) {
	w := newWorld(t)
	server := gittest.Serve(t, false)
	repo := server.Repo("r")
	repo.Commit(map[string]string{"f": "one"})
	var asked atomic.Int32
	server.Before = func(http.ResponseWriter, *http.Request) bool { asked.Add(1); return false }
	text := "FROM scratch\nENV a=b\nADD " + repo.URL + " /r/\n"
	build := func(want string) int32 {
		asked.Store(0)
		o := w.build(t.Context(), request{dockerfile: text})
		if o.pull(); o.cached() != want {
			t.Errorf("%s, want %s", o.cached(), want)
		}
		return asked.Load()
	}
	first, unchanged := build("--"), build("++")
	repo.Commit(map[string]string{"f": "two"})
	if moved := build("+-"); unchanged >= first || moved != first {
		t.Errorf("%d requests, %d when unchanged, %d when moved", first, unchanged, moved)
	}
}

// Credentials come from the client's secrets and are in nothing that is kept.
func TestAddGitSecret(t *testing.T) {
	w := newWorld(t)
	server := gittest.Serve(t, false)
	var sent []string
	server.Before = func(rw http.ResponseWriter, r *http.Request) bool {
		auth := r.Header.Get("Authorization")
		sent = append(sent, auth)
		if !strings.Contains(auth, "Y2FuYXJ5") && auth != "Bearer canary" {
			rw.Header().Set("WWW-Authenticate", "Basic")
			rw.WriteHeader(http.StatusUnauthorized)
			return true
		}
		return false
	}
	repo := server.Repo("r")
	repo.Commit(map[string]string{"f": "one"})
	host := strings.TrimPrefix(server.URL, "http://")
	text := "FROM scratch\nENV a=b\nADD --keep-git-dir=true " + repo.URL + " /r/\n"
	for _, tc := range []struct {
		name    string
		secrets map[string]string
		want    string // of the header; "" is a refusal
	}{
		{"none", nil, ""},
		{"wrong", map[string]string{"GIT_AUTH_TOKEN": "geheim"}, ""},
		{"token", map[string]string{"GIT_AUTH_TOKEN": "canary\n"}, "Basic eC1hY2Nlc3MtdG9rZW46Y2FuYXJ5"},
		{"of the host", map[string]string{"GIT_AUTH_TOKEN": "geheim", "GIT_AUTH_HEADER." + host: "Bearer canary"}, "Bearer canary"},
		{"header first", map[string]string{"GIT_AUTH_TOKEN": "geheim", "GIT_AUTH_HEADER": "Bearer canary"}, "Bearer canary"},
	} {
		w.secrets, sent = tc.secrets, nil
		o := w.build(t.Context(), request{org: "s-" + strings.ReplaceAll(tc.name, " ", "-"), dockerfile: text})
		all, err := json.Marshal(o.events)
		w.must(err)
		for _, secret := range []string{"geheim", "canary", "Y2FuYXJ5", base64Of("geheim"), base64Of("canary")} {
			if strings.Contains(string(all)+o.Error.GetMessage()+o.Error.GetHint()+w.log.String(), secret) {
				t.Errorf("%s: %q was told", tc.name, secret)
			}
		}
		if tc.want == "" {
			if e := o.Error; e.GetCode() != failure.FetchFailed || !strings.Contains(e.GetHint(), "GIT_AUTH_TOKEN") || e.GetLine() != 3 {
				t.Errorf("%s: %v", tc.name, e)
			}
			continue
		}
		img := o.pull()
		if len(sent) == 0 || sent[0] != tc.want {
			t.Errorf("%s: sent %q", tc.name, sent)
		}
		if img.tree["/r/f"].Type != "f" || strings.Contains(string(img.raw), "canary") {
			t.Errorf("%s: %+v", tc.name, img.tree["/r/f"])
		}
	}
}

// What the daemon fetches obeys the rules for addresses wherever it is led.
func TestAddGitGuard(t *testing.T) {
	w := newWorld(t)
	server := gittest.Serve(t, false)
	server.Before = func(rw http.ResponseWriter, r *http.Request) bool {
		if strings.HasPrefix(r.URL.Path, "/away.git") {
			http.Redirect(rw, r, "http://10.0.0.1"+r.URL.Path+"?"+r.URL.RawQuery, http.StatusFound)
			return true
		}
		return false
	}
	repo := server.Repo("holder")
	repo.Commit(map[string]string{".gitmodules": "[submodule \"s\"]\n\tpath = s\n\turl = http://169.254.169.254/s.git\n"})
	repo.Git("update-index", "--add", "--cacheinfo", "160000,"+strings.Repeat("1", 40)+",s")
	repo.Git("commit", "-q", "-m", "s")
	for address, ip := range map[string]string{
		"http://10.0.0.1/x.git": "10.0.0.1", "https://[::1]:1/x.git#" + strings.Repeat("1", 40): "::1", server.URL + "/away.git": "10.0.0.1", repo.URL: "169.254.169.254",
	} {
		o := w.build(t.Context(), request{dockerfile: "FROM scratch\nADD " + address + " /x/"})
		if e := o.Error; e.GetCode() != failure.FetchFailed || e.GetLine() != 2 || !strings.Contains(e.GetMessage(), ip+" is not a public address") || !strings.Contains(e.GetHint(), "--allow-egress") {
			t.Errorf("%s: %v", address, e)
		}
	}
}

func TestAddGitErrors(t *testing.T) {
	w := newWorld(t)
	w.max = 8 << 20
	server := gittest.Serve(t, false)
	repo := server.Repo("r")
	first := repo.Commit(map[string]string{"f": "one", "to": "->d", "d/x": "x"})
	repo.Git("checkout", "-q", "-b", "big")
	repo.Commit(map[string]string{"zeros": string(make([]byte, 20<<20))})
	for _, tc := range []struct{ add, code, said string }{
		{repo.URL + "#none /x/", failure.FetchFailed, `"none": no such branch`},
		{repo.URL + "#" + first[:8] + " /x/", failure.FetchFailed, "full hash"},
		{repo.URL + "#main:none /x/", failure.FileNotFound, "no directory none"},
		{repo.URL + "#main:to /x/", failure.FileNotFound, "no directory to"},
		{repo.URL + "#main:f /x/", failure.FileNotFound, "no directory f"},
		{server.URL + "/none.git /x/", failure.FetchFailed, "not found"},
		{"--checksum=123 " + repo.URL + "#main /x/", failure.FetchFailed, "is at commit " + first + ", not 123"},
		{"--checksum=sha256:123 " + repo.URL + "#main /x/", failure.FetchFailed, "not sha256:123"},
		{repo.URL + "#big /x/", failure.TooLarge, ""},
		{repo.URL + "#main:../../.. /f", "", ""},
	} {
		o := w.build(t.Context(), request{dockerfile: "FROM scratch\nENV a=b\nADD " + tc.add})
		if e := o.Error; e.GetCode() != tc.code || !strings.Contains(e.GetMessage()+e.GetHint(), tc.said) || e != nil && (e.Line != 3 || e.Hint == "") {
			t.Errorf("%s: %v", tc.add, e)
		}
	}
}

// Checksums of files are SHA-256, checked before the step's layer is made.
func TestAddChecksum(t *testing.T) {
	w := newWorld(t)
	web := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { _, _ = rw.Write([]byte("hello")) }))
	defer web.Close()
	const sum = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
	for _, tc := range []struct{ add, code, said string }{
		{"--checksum=" + sum + " $U/a /d/", "", ""},
		{"--checksum=$S $U/a /d/", "", ""},
		{"$U/a $U/b /d/", "", ""},
		{"$U/a $U/b /d", failure.DockerfileInvalid, "end with a /"},
		{"--checksum=" + strings.Replace(sum, "2cf", "3cf", 1) + " $U/a /d/", failure.FetchFailed, "has digest " + sum + ", not sha256:3cf"},
		{"--checksum=" + sum + " $U/a $U/b /d/", failure.DockerfileInvalid, "one URL"},
		{"--checksum=2cf24d $U/a /d/", failure.DockerfileInvalid, "sha256:"},
		{"--checksum=md5:5d41402abc4b2a76b9719d911017c592 $U/a /d/", failure.DockerfileInvalid, "sha256:"},
	} {
		o := w.build(t.Context(), request{dockerfile: "FROM scratch\nARG S=" + sum + "\nARG U=" + web.URL + "\nADD " + tc.add})
		if e := o.Error; e.GetCode() != tc.code || !strings.Contains(e.GetMessage()+e.GetHint(), tc.said) || e != nil && (e.Line != 4 || e.Hint == "") {
			t.Errorf("%s: %v", tc.add, e)
		}
		if o.Error == nil && o.pull().tree["/d/a"].Size != 5 {
			t.Errorf("%s: %v", tc.add, o.pull().tree)
		}
	}
}
