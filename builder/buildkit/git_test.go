package buildkit

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	"github.com/moby/buildkit/solver/pb"
	"github.com/tonistiigi/fsutil/types"

	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/builder/gitfetch"
	"github.com/slipwayhq/slipway/builder/gitfetch/gittest"
	"github.com/slipwayhq/slipway/layercache"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// A desk is an org's BuildKit that fetches from 127.0.0.1 only.
type desk struct {
	*tenant
	root string // of the fetcher
}

func newDesk(t *testing.T, most int64) *desk {
	t.Helper()
	if os.Getuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root")
		}
		t.Skip("needs root: git runs in namespaces")
	}
	d := &desk{root: filepath.Join(t.TempDir(), "git")}
	fetcher, err := gitfetch.New(gitfetch.Options{Root: d.root, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		if !strings.HasPrefix(address, "127.0.0.1:") {
			return nil, fmt.Errorf("%s: %w", address, gitfetch.ErrClosed)
		}
		return new(net.Dialer).DialContext(ctx, network, address)
	}})
	fatal(t, err)
	e, err := New(Options{
		Cache: openStore(t, layercache.Options{}), Root: t.TempDir(), Git: fetcher, MaxSize: most,
		Hosts: func(string) docker.RegistryHosts {
			return func(string) ([]docker.RegistryHost, error) { return nil, nil }
		},
	})
	fatal(t, err)
	t.Cleanup(func() { fatal(t, e.Close()) })
	d.tenant, err = e.tenant(t.Context(), "acme")
	fatal(t, err)
	t.Cleanup(func() {
		if left, err := os.ReadDir(d.root); err != nil || len(left) > 0 {
			t.Errorf("left: %v, %v", left, err)
		}
	})
	return d
}

// build runs a build of a client that has secrets.
func (d *desk) build(t *testing.T, secrets map[string][]byte, use func(context.Context, gateway.Client) error) error {
	t.Helper()
	_, err := d.client.Build(t.Context(), client.SolveOpt{Session: []session.Attachable{secretsprovider.FromMap(secrets)}}, "",
		func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
			return gateway.NewResult(), use(ctx, c)
		}, nil)
	return err
}

// get returns the files of a source, with their modes.
func (d *desk) get(t *testing.T, st llb.State, secrets map[string][]byte) (files map[string]string, err error) {
	t.Helper()
	files = map[string]string{}
	err = d.build(t, secrets, func(ctx context.Context, c gateway.Client) error {
		def, err := st.Marshal(ctx)
		if err != nil {
			return err
		}
		r, err := c.Solve(ctx, gateway.SolveRequest{Definition: def.ToPB(), Evaluate: true})
		if err != nil {
			return err
		}
		ref, err := r.SingleRef()
		if err != nil {
			return err
		}
		return read(ctx, ref, "", files)
	})
	return files, err
}

func read(ctx context.Context, ref gateway.Reference, dir string, into map[string]string) error {
	all, err := ref.ReadDir(ctx, gateway.ReadDirRequest{Path: "/" + dir})
	if err != nil {
		return err
	}
	for _, s := range all {
		p := filepath.Join(dir, s.Path)
		into[p], err = shown(ctx, ref, p, s)
		if err == nil && os.FileMode(s.Mode).IsDir() && s.Path != ".git" {
			err = read(ctx, ref, p, into)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func shown(ctx context.Context, ref gateway.Reference, p string, s *types.Stat) (string, error) {
	mode := os.FileMode(s.Mode)
	out := fmt.Sprintf("%o %d:%d", mode.Perm(), s.Uid, s.Gid)
	if s.ModTime != 1500000000e9 {
		out += " not as old as the commit"
	}
	switch {
	case mode.IsDir():
		return out + " dir", nil
	case mode.Type() == os.ModeSymlink:
		return out + " -> " + s.Linkname, nil
	}
	data, err := ref.ReadFile(ctx, gateway.ReadRequest{Filename: "/" + p})
	return out + " " + string(data), err
}

// resolve asks what frontends ask.
func (d *desk) resolve(t *testing.T, st llb.State, objects bool) (md *sourceresolver.ResolveGitResponse, err error) {
	t.Helper()
	err = d.build(t, nil, func(ctx context.Context, c gateway.Client) error {
		def, err := st.Marshal(ctx)
		if err != nil {
			return err
		}
		op := new(pb.Op)
		if err := op.UnmarshalVT(def.Def[0]); err != nil {
			return err
		}
		r, err := c.ResolveSourceMetadata(ctx, op.GetSource(), sourceresolver.Opt{GitOpt: &sourceresolver.ResolveGitOpt{ReturnObject: objects}})
		if err == nil {
			md = r.Git
		}
		return err
	})
	return md, err
}

// counted counts the fetches of a server.
func counted(s *gittest.Server) *atomic.Int32 {
	n := new(atomic.Int32)
	s.Before = func(_ http.ResponseWriter, r *http.Request) bool {
		body, err := io.ReadAll(r.Body)
		if r.Body = io.NopCloser(bytes.NewReader(body)); err == nil && bytes.Contains(body, []byte("command=fetch")) {
			n.Add(1)
		}
		return false
	}
	return n
}

func TestGitSource(t *testing.T) {
	d := newDesk(t, 0)
	server := gittest.Serve(t, false)
	repo := server.Repo("org/app")
	first := repo.Commit(map[string]string{"f": "one", "run.sh": "#!", "d/e/g": "g", "l": "->/etc/passwd"})
	repo.Git("tag", "-a", "-m", "m", "v1")
	second := repo.Commit(map[string]string{"f": "two"})
	one := map[string]string{"f": "644 0:0 one", "run.sh": "755 0:0 #!", "d": "755 0:0 dir", "d/e": "755 0:0 dir", "d/e/g": "644 0:0 g", "l": "777 0:0 -> /etc/passwd"}
	two := maps.Clone(one)
	two["f"] = "644 0:0 two"
	kept := maps.Clone(one)
	kept[".git"] = "755 0:0 dir"
	part := map[string]string{"e": "755 0:0 dir", "e/g": "644 0:0 g"}
	for _, c := range []struct {
		name string
		st   llb.State
		want map[string]string
		says string // of an error
	}{
		{name: "branch", st: llb.Git(repo.URL, "main"), want: two},
		{name: "default branch", st: llb.Git(repo.URL, ""), want: two},
		{name: "annotated tag", st: llb.Git(repo.URL, "v1"), want: one},
		{name: "commit", st: llb.Git(repo.URL, first), want: one},
		{name: "directory", st: llb.Git(repo.URL, "v1:d"), want: part},
		{name: "directory, .git asked for", st: llb.Git(repo.URL, "v1:d", llb.KeepGitDir()), want: part},
		{name: ".git", st: llb.Git(repo.URL, "v1", llb.KeepGitDir()), want: kept},
		{name: "right checksum", st: llb.Git(repo.URL, "main", llb.GitChecksum(second[:12])), want: two},
		{name: "wrong checksum", st: llb.Git(repo.URL, "main", llb.GitChecksum(first[:12])), says: "is at commit " + second},
		{name: "no checksum", st: llb.Git(repo.URL, "main", llb.GitChecksum("xyz")), says: "not hexadecimal"},
		{name: "commit behind a branch", st: llb.Git(repo.URL, "main", llb.GitChecksum(first), llb.GitFetchByCommit()), want: one},
		{name: "no commit behind a branch", st: llb.Git(repo.URL, "main", llb.GitFetchByCommit()), says: "full hash"},
		{name: "no directory", st: llb.Git(repo.URL, "v1:f"), says: "no directory f"},
		{name: "a link as directory", st: llb.Git(repo.URL, "v1:l"), says: "no directory l"},
		{name: "no ref", st: llb.Git(repo.URL, "gone"), says: "name a branch"},
		{name: "no repository", st: llb.Git(server.URL+"/none.git", ""), says: "check the address"},
		{name: "closed address", st: llb.Git("http://user:hunter2@127.0.0.2:1/x.git", ""), says: "ask the operator for --allow-egress"},
		{name: "git protocol", st: llb.Git("git://127.0.0.1/x.git", ""), says: "write the repository's https:// address"},
		{name: "ssh", st: llb.Git("ssh://git@127.0.0.1:1/x.git", "", llb.KnownSSHHosts("none")), says: "write the repository's https:// address"},
		{name: "bundle", st: llb.Git(repo.URL, first, llb.GitCheckoutBundle()), says: "keep-git-dir"},
	} {
		got, err := d.get(t, c.st, nil)
		if c.says != "" {
			if err == nil || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("%s: %v; want %q", c.name, err, c.says)
			}
			continue
		}
		if err != nil || !maps.Equal(got, c.want) {
			t.Errorf("%s: %v, %v; want %v", c.name, got, err, c.want)
		}
	}
}

// A commit is fetched once, by whatever name, and a branch again when it has
// moved.
func TestGitSourceCached(t *testing.T) {
	d := newDesk(t, 0)
	server := gittest.Serve(t, false)
	repo := server.Repo("r")
	first := repo.Commit(map[string]string{"f": "one"})
	repo.Git("tag", "-a", "-m", "m", "v1")
	fetches := counted(server)
	for i, st := range []llb.State{llb.Git(repo.URL, "main"), llb.Git(repo.URL, "v1"), llb.Git(repo.URL, first), llb.Git(repo.URL, "")} {
		if got, err := d.get(t, st, nil); err != nil || got["f"] != "644 0:0 one" {
			t.Errorf("%d: %v, %v", i, got, err)
		}
	}
	once := fetches.Load()
	if _, err := d.get(t, llb.Git(repo.URL, "v1", llb.KeepGitDir()), nil); err != nil || fetches.Load() == once {
		t.Errorf("with .git it is the same (%v)", err)
	}
	repo.Commit(map[string]string{"f": "two"})
	if got, err := d.get(t, llb.Git(repo.URL, "main"), nil); err != nil || got["f"] != "644 0:0 two" {
		t.Errorf("the branch has moved: %v, %v", got, err)
	}
	if once != 1 {
		t.Errorf("%d fetches, want one", once)
	}
}

// Credentials come from the client's secrets, the most special first.
func TestGitSourceSecrets(t *testing.T) {
	const right = "Basic eC1hY2Nlc3MtdG9rZW46cmlnaHQ=" // x-access-token:right
	d := newDesk(t, 0)
	server := gittest.Serve(t, false)
	repo := server.Repo("closed")
	repo.Commit(map[string]string{"f": "f"})
	server.Before = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") == right {
			return false
		}
		w.Header().Set("WWW-Authenticate", "Basic")
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
	host := strings.TrimPrefix(server.URL, "http://")
	for i, secrets := range []map[string][]byte{
		{"GIT_AUTH_TOKEN": []byte("right")}, {"GIT_AUTH_HEADER": []byte(right)}, {"GIT_AUTH_TOKEN." + host: []byte("right"), "GIT_AUTH_HEADER": []byte("wrong")},
	} {
		repo.Commit(map[string]string{"f": fmt.Sprint(i)})
		if got, err := d.get(t, llb.Git(repo.URL, ""), secrets); err != nil || got["f"] != fmt.Sprint("644 0:0 ", i) {
			t.Errorf("%d: %v, %v", i, got, err)
		}
	}
	repo.Commit(map[string]string{"f": "private"})
	for _, secrets := range []map[string][]byte{nil, {"GIT_AUTH_TOKEN": []byte("a wrong one")}} {
		got, err := d.get(t, llb.Git(repo.URL, ""), secrets)
		if err == nil || !strings.Contains(err.Error(), "build secret GIT_AUTH_TOKEN") || strings.Contains(err.Error(), "wrong") {
			t.Errorf("%v: %v, %v", secrets, got, err)
		}
	}
	usage, err := d.client.DiskUsage(t.Context())
	fatal(t, err)
	said := ""
	for _, u := range usage {
		said += u.Description + "\n"
	}
	if strings.Contains(said, "right") || !strings.Contains(said, host) {
		t.Errorf("records: %s", said)
	}
}

func TestGitSourceBounds(t *testing.T) {
	d := newDesk(t, 1<<20)
	repo := gittest.Serve(t, false).Repo("r")
	repo.Commit(map[string]string{"zeros": string(make([]byte, 64<<20)), "more": string(make([]byte, 64<<20))})
	if _, err := d.get(t, llb.Git(repo.URL, ""), nil); err == nil || !strings.Contains(err.Error(), "twice the limit") {
		t.Errorf("%v", err)
	}
	d.engine.opts.Git = nil
	if _, err := d.get(t, llb.Git(repo.URL, ""), nil); err == nil || !strings.Contains(err.Error(), "RUN step") {
		t.Errorf("without a fetcher: %v", err)
	}
}

// What frontends learn is what BuildKit's own source tells.
func TestGitSourceMetadata(t *testing.T) {
	d := newDesk(t, 0)
	repo := gittest.Serve(t, false).Repo("r")
	commit := repo.Commit(map[string]string{"f": "one"})
	repo.Git("tag", "-a", "-m", "message", "v1")
	tag := repo.Git("rev-parse", "v1")
	for _, c := range []struct {
		st   llb.State
		want string
	}{
		{llb.Git(repo.URL, ""), commit + " refs/heads/main "},
		{llb.Git(repo.URL, "main"), commit + " refs/heads/main "},
		{llb.Git(repo.URL, commit), commit + " " + commit + " "},
		{llb.Git(repo.URL, "v1"), tag + " refs/tags/v1 " + commit},
		{llb.Git(repo.URL, "v1", llb.KeepGitDir()), tag + " refs/tags/v1 "},
	} {
		md, err := d.resolve(t, c.st, false)
		if err != nil || md.Checksum+" "+md.Ref+" "+md.CommitChecksum != c.want || md.CommitObject != nil {
			t.Errorf("%+v, %v; want %s", md, err, c.want)
		}
	}
	for ref, wantTag := range map[string]bool{"main": false, commit: false, "v1": true, tag: true} {
		md, err := d.resolve(t, llb.Git(repo.URL, ref), true)
		if err != nil || !strings.HasPrefix(string(md.CommitObject), "tree ") || wantTag != strings.HasPrefix(string(md.TagObject), "object "+commit) {
			t.Errorf("%s: %+v, %v", ref, md, err)
			continue
		}
		if got := md.CommitChecksum; wantTag && got != commit || !wantTag && got != "" {
			t.Errorf("%s: commit %q", ref, got)
		}
	}
	if _, err := d.resolve(t, llb.Git("http://127.0.0.2:1/x.git", ""), false); err == nil || !strings.Contains(err.Error(), "--allow-egress") {
		t.Errorf("closed address: %v", err)
	}
}

// An unsigned commit is not taken where a signed one is asked for.
func TestGitSourceSignature(t *testing.T) {
	d := newDesk(t, 0)
	repo := gittest.Serve(t, false).Repo("r")
	repo.Commit(map[string]string{"f": "one"})
	st := llb.NewState(llb.NewSource("git://"+strings.TrimPrefix(repo.URL, "http://"),
		map[string]string{pb.AttrFullRemoteURL: repo.URL, pb.AttrGitSignatureVerifyPubKey: "ssh-ed25519 AAAA"}, llb.Constraints{}).Output())
	if _, err := d.get(t, st, nil); err == nil || !strings.Contains(err.Error(), "not signed") {
		t.Errorf("%v", err)
	}
}

// A repository may be a build's context, and one of those with names. The
// provenance has their commits, and no password.
func TestGitContext(t *testing.T) {
	d := newDesk(t, 0)
	server := gittest.Serve(t, false)
	repo, other := server.Repo("r"), server.Repo("other")
	first := repo.Commit(map[string]string{"sub/Dockerfile": "FROM scratch\nCOPY f /\nCOPY --from=more g /\n", "sub/f": "f"})
	second := other.Commit(map[string]string{"g": "g"})
	out := t.TempDir()
	_, err := d.client.Solve(t.Context(), nil, client.SolveOpt{
		Frontend: "dockerfile.v0", FrontendAttrs: map[string]string{
			"context":      strings.Replace(repo.URL, "://", "://user:hunter2@", 1) + "#main:sub",
			"context:more": other.URL + "?branch=main", "attest:provenance": "mode=min",
		},
		Exports: []client.ExportEntry{{Type: client.ExporterLocal, OutputDir: out}},
	}, nil)
	for _, name := range []string{"f", "g"} {
		if got, readErr := os.ReadFile(filepath.Join(out, name)); err != nil || readErr != nil || string(got) != name {
			t.Errorf("%q, %v", got, errors.Join(err, readErr))
		}
	}
	said, err := os.ReadFile(filepath.Join(out, "provenance.json"))
	if err != nil || !bytes.Contains(said, []byte(first)) || !bytes.Contains(said, []byte(second)) || bytes.Contains(said, []byte("hunter2")) {
		t.Errorf("provenance: %v %s", err, said)
	}
}

// Of the passwords in addresses the provenance of all steps says none: not in
// their sources, not in the Dockerfile, in no form and for no output.
func TestProvenanceHidesPasswords(t *testing.T) {
	d := newDesk(t, 0)
	server := gittest.Serve(t, false)
	repo := server.Repo("repo")
	commit := repo.Commit(map[string]string{"f": "f"})
	address := strings.Replace(repo.URL, "://", "://user:hunter2@", 1)
	context := server.Repo("context")
	context.Commit(map[string]string{"Dockerfile": "FROM scratch\nADD " + address + " /\n"})
	for _, mode := range []string{"mode=max", "mode=max,version=v0.2", "mode=max,version=v1"} {
		out := t.TempDir()
		_, err := d.client.Solve(t.Context(), nil, client.SolveOpt{
			Frontend: "dockerfile.v0", FrontendAttrs: map[string]string{"attest:provenance": mode,
				"context": strings.Replace(context.URL, "://", "://user:hunter2@", 1) + "#main"},
			Exports: []client.ExportEntry{{Type: client.ExporterLocal, OutputDir: out}},
		}, nil)
		fatal(t, err)
		said, err := os.ReadFile(filepath.Join(out, "provenance.json"))
		fatal(t, err)
		for _, m := range regexp.MustCompile(`[A-Za-z0-9+/=]{16,}`).FindAll(said, -1) {
			if text, err := base64.StdEncoding.DecodeString(string(m)); err == nil {
				said = append(said, text...)
			}
		}
		if bytes.Contains(said, []byte("hunter2")) || !bytes.Contains(said, []byte(commit)) || !bytes.Contains(said, []byte("ADD http://xxxxx:xxxxx@")) {
			t.Errorf("%s: %s", mode, said)
		}
	}
}

func TestRedact(t *testing.T) {
	for text, want := range map[string]string{
		"https://u:p@h/x.git":             "https://xxxxx:xxxxx@h/x.git",
		`{"a":"https://token@h/x"}`:       `{"a":"https://xxxxx@h/x"}`,
		"https://u:p@ss@h":                "https://xxxxx:xxxxx@h",
		`"https://u:p\u0026q@h" "a@b"`:    `"https://xxxxx:xxxxx@h" "a@b"`,
		"git+ssh://git@h/x":               "git+ssh://xxxxx@h/x",
		"https://h/a@b:c":                 "https://h/a@b:c",
		"https://h?q=a@b":                 "https://h?q=a@b",
		"see https://h and mail me@h":     "see https://h and mail me@h",
		"a@b https://u:p@h c https://v@i": "a@b https://xxxxx:xxxxx@h c https://xxxxx@i",
		"":                                "",
	} {
		if got := string(redactJSON([]byte(text))); got != want {
			t.Errorf("%s: %s", text, got)
		}
	}
}

// Nobody looks for the keys of an SSH server on the way to the refusal.
func TestGitOtherProtocol(t *testing.T) {
	d := newDesk(t, 0)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	fatal(t, err)
	defer l.Close()
	reached := make(chan struct{})
	go func() {
		if c, err := l.Accept(); err == nil {
			c.Close()
			close(reached)
		}
	}()
	address := "ssh://git@" + l.Addr().String() + "/x.git"
	for _, attrs := range []map[string]string{{"context": address}, {"contextkey": "other", "other": address}} {
		_, err := d.client.Solve(t.Context(), nil, client.SolveOpt{Frontend: "dockerfile.v0", FrontendAttrs: attrs}, nil)
		if err == nil || !strings.Contains(err.Error(), "https and http only") {
			t.Errorf("%v: %v", attrs, err)
		}
	}
	_, err = check(&slipwayv1.Dockerfile{Name: "Dockerfile", Content: []byte("FROM scratch\nADD " + address + " /x\n")})
	if e := failure.As(err); e.Code != failure.NotSupported || e.Line != 2 || e.Hint == "" {
		t.Errorf("ADD: %v", err)
	}
	select {
	case <-reached:
		t.Error("the daemon has connected")
	default:
	}
}

func TestGitSubmodules(t *testing.T) {
	d := newDesk(t, 0)
	server := gittest.Serve(t, false)
	inner, outer := server.Repo("inner"), server.Repo("outer")
	inner.Commit(map[string]string{"deep": "x"})
	outer.Git("submodule", "--quiet", "add", inner.URL, "in")
	outer.Commit(nil)
	with, err := d.get(t, llb.Git(outer.URL, ""), nil)
	if err != nil || with["in/deep"] != "644 0:0 x" || with["in/.git"] != "" {
		t.Errorf("%v, %v", with, err)
	}
	without, err := d.get(t, llb.Git(outer.URL, "", llb.GitSkipSubmodules()), nil)
	if err != nil || without["in"] == "" || without["in/deep"] != "" {
		t.Errorf("without: %v, %v", without, err)
	}
}
