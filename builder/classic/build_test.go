package classic_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// cached tells which steps were found in the cache, in order, FROM left out:
// "+" is a hit, "-" a step that ran.
func (o *outcome) cached() string {
	var from []uint32
	marks := map[uint32]string{}
	for _, e := range o.events {
		for _, s := range e.GetPlan().GetSteps() {
			if s.Number == 1 {
				from = append(from, s.Step)
			}
		}
		if d := e.GetStepDone(); d != nil && !slices.Contains(from, d.Step) {
			marks[d.Step] = "-"
			if d.Cached {
				marks[d.Step] = "+"
			}
		}
	}
	var out strings.Builder
	for i := uint32(1); i < 100; i++ {
		out.WriteString(marks[i])
	}
	return out.String()
}

// said is all that steps printed, and what the builder said of them.
func (o *outcome) said() string {
	var out strings.Builder
	for _, e := range o.events {
		out.Write(e.GetStepLog().GetData())
	}
	return out.String()
}

func (o *outcome) warnings() []string {
	var out []string
	for _, e := range o.events {
		if w := e.GetWarning(); w != nil {
			out = append(out, w.Message)
		}
	}
	return out
}

// TestBuilds holds what a Dockerfile must make, one rule each.
func TestBuilds(t *testing.T) {
	w := newWorld(t)
	for _, tc := range []struct {
		name       string
		files      map[string]string
		dockerfile string
		args       map[string]string
		check      func(t *testing.T, o *outcome, img *image)
		err        string // part of the message
		line       uint32
	}{
		{
			name: "triggers of a stage run in its child",
			dockerfile: `FROM fid/base:1 AS one
ONBUILD ENV FROM_TRIGGER=yes
ONBUILD RUN echo triggered > /t
MAINTAINER one
FROM one
RUN cat /t && test $FROM_TRIGGER = yes`,
			check: func(t *testing.T, o *outcome, img *image) {
				if len(img.config.Config.OnBuild) > 0 || img.config.Author != "" {
					t.Errorf("child inherits ONBUILD %q and author %q", img.config.Config.OnBuild, img.config.Author)
				}
				if said := o.said(); !strings.Contains(said, "# Executing 2 build triggers\n") {
					t.Errorf("said %q", said)
				}
			},
		},
		{
			name: "a trigger needs a stage that nothing else needs",
			dockerfile: `FROM fid/base:1 AS assets
RUN echo asset > /asset
FROM fid/base:1 AS one
ONBUILD COPY --from=assets /asset /a
FROM one
RUN test -f /a`,
		},
		{
			name:       "a trigger that does not parse",
			dockerfile: "FROM fid/base:1 AS one\nONBUILD LABEL a=b\nONBUILD BOGUS x\nFROM one\nRUN true",
			err:        "unknown instruction: BOGUS", line: 4,
		},
		{
			name:  "an emptied directory hides what was below however deep",
			files: map[string]string{"f": "file"},
			dockerfile: `FROM fid/base:1
RUN mkdir -p /a/b/c && touch /a/b/c/x
RUN rm -r /a && mkdir -p /a/b
COPY f /a/b/c
RUN test -f /a/b/c`,
		},
		{
			name:  "an error has its own step's line",
			files: map[string]string{"f": "x"}, dockerfile: "FROM fid/base:1\nCOPY --chown=ghost f /f\nENV A=1\nRUN true",
			err: "can't find uid for user ghost", line: 2,
		},
		{
			name:  "wildcards match as Go's filepath.Match",
			files: map[string]string{"dir1/f": "x", "a.txt": "a", "sub/b.txt": "b", ".h.txt": "h"},
			dockerfile: `FROM scratch
COPY *.txt /one/
COPY */*.txt /two/
COPY ./sub/[ab].txt /three/`,
			check: func(t *testing.T, _ *outcome, img *image) {
				wantPaths(t, img, "/one", "/one/.h.txt", "/one/a.txt", "/three", "/three/b.txt", "/two", "/two/b.txt")
			},
		},
		{
			name:  "a pattern that ends in a slash matches nothing",
			files: map[string]string{"dir1/f": "x"}, dockerfile: "FROM scratch\nCOPY dir*/ /x/", err: "no source files were specified", line: 2,
		},
		{
			name:  "ids go unchecked",
			files: map[string]string{"f": "x"}, dockerfile: "FROM scratch\nCOPY --chown=4294967301:6 f /f\nCOPY --chown=-1 f /g",
			check: func(t *testing.T, _ *outcome, img *image) {
				if f, g := img.tree["/f"].Own, img.tree["/g"].Own; f != "5:6" || g != "0:0" {
					t.Errorf("/f is of %s, /g of %s", f, g)
				}
			},
		},
		{
			name: "RUN [] runs what the image runs",
			dockerfile: `FROM fid/base:1
CMD ["touch", "/made"]
RUN []`,
			check: func(t *testing.T, _ *outcome, img *image) {
				if _, ok := img.tree["/made"]; !ok {
					t.Error("CMD did not run")
				}
			},
		},
		{
			name: "an ARG of a stage that is not built counts as consumed",
			args: map[string]string{"A": "1", "B": "2"},
			dockerfile: `FROM fid/base:1 AS no
ARG A
FROM fid/base:1
LABEL x=y`,
			check: func(t *testing.T, o *outcome, _ *image) {
				if got := o.warnings(); len(got) != 1 || !strings.Contains(got[0], "[B]") {
					t.Errorf("warnings %q, want one of B", got)
				}
			},
		},
		{
			name: "an image is named twice",
			dockerfile: `FROM scratch
COPY --from=fid/base:1 /etc/passwd /p
COPY --from=fid/base:1 /etc/group /g`,
			check: func(t *testing.T, _ *outcome, img *image) { wantPaths(t, img, "/g", "/p") },
		},
		{
			name: "VOLUME drops what RUN writes and keeps what COPY does", files: map[string]string{"f": "x"},
			dockerfile: "FROM fid/base:1\nVOLUME /v\nRUN echo lost > /v/lost\nCOPY f /v/kept",
			check: func(t *testing.T, _ *outcome, img *image) {
				if _, lost := img.tree["/v/lost"]; lost || img.tree["/v/kept"].Type != "f" {
					t.Errorf("/v holds %v", img.tree)
				}
			},
		},
		{
			name:       "what a RUN finds around it",
			dockerfile: "FROM fid/base:1\nUSER app\nRUN case $HOSTNAME in *[!0-9a-f]*) exit 1;; ????????????) ;; *) exit 2;; esac; test \"$(hostname) $(cat /etc/hostname)\" = \"$HOSTNAME $HOSTNAME\" && test $(umask) = 0022 && test $HOME = /home/app && test -z \"$(cat)\" && test \"$(id -G)\" = \"2345 50\" && test $(readlink /etc/mtab) = /proc/mounts",
		},
		{
			name: "only FROM scratch", dockerfile: "FROM scratch", err: "No image was generated",
		},
		{
			name: "a COPY that finds nothing", dockerfile: "FROM fid/base:1\nRUN true\nCOPY --from=0 /x /y", err: "refers to current build stage", line: 3,
		},
		{
			name: "a file that a stage does not have", dockerfile: "FROM fid/base:1 AS a\nFROM scratch\nCOPY --from=a /nope /y", err: "COPY failed: stat nope: file does not exist", line: 3,
		},
		{
			name: "here-documents",
			dockerfile: `FROM fid/base:1
RUN <<EOF
echo one > /one
echo two > /two
EOF
COPY <<conf /etc/conf
a=$PATH
conf`,
			check: func(t *testing.T, _ *outcome, img *image) {
				if img.tree["/two"].Size != 4 || img.tree["/etc/conf"].Size < 20 {
					t.Errorf("/two %+v, /etc/conf %+v", img.tree["/two"], img.tree["/etc/conf"])
				}
			},
		},
		{
			name: "the exit code of RUN", dockerfile: "FROM fid/base:1\nRUN exit 7", err: "returned a non-zero code: 7", line: 2,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := w.on(t)
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			dir := t.TempDir()
			w.write(dir, tc.files)
			o := w.build(ctx, request{org: "builds", dir: dir, dockerfile: tc.dockerfile, start: &slipwayv1.Start{BuildArgs: tc.args}})
			if tc.err != "" {
				if o.Error == nil || !strings.Contains(o.Error.Message, tc.err) || tc.line != 0 && o.Error.Line != tc.line {
					t.Errorf("error %v, want %q at line %d", o.Error, tc.err, tc.line)
				}
				return
			}
			if o.Error != nil {
				t.Fatalf("line %d: %s", o.Error.Line, o.Error.Message)
			}
			if img := o.pull(); tc.check != nil {
				tc.check(t, o, img)
			}
		})
	}
}

func wantPaths(t *testing.T, img *image, want ...string) {
	t.Helper()
	var got []string
	for p := range img.tree {
		got = append(got, p)
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("image has %q, want %q", got, want)
	}
}

// TestUnchanged builds twice: the second time nothing is asked for, nothing
// runs, and the image is the same.
func TestUnchanged(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	w.write(dir, map[string]string{"a": "1", "d/b": "2"})
	const dockerfile = `FROM fid/base:1 AS build
ARG V=1
COPY a /a
RUN date > /made
FROM build AS more
WORKDIR /w
FROM scratch
COPY d /d
COPY --from=more /made /a /
ENV A=b
HEALTHCHECK CMD true`
	first := w.build(t.Context(), request{dir: dir, dockerfile: dockerfile})
	first.pull()
	w.must(os.Chtimes(filepath.Join(dir, "a"), time.Now(), time.Now().Add(-time.Hour)))
	second := w.build(t.Context(), request{dir: dir, dockerfile: dockerfile})
	if got := second.cached(); got != "++++++++" || second.Steps != second.CachedSteps {
		t.Errorf("second build: %s, %d of %d cached", got, second.CachedSteps, second.Steps)
	}
	if second.Steps != 11 {
		t.Errorf("%d steps, want 11: FROM counts", second.Steps)
	}
	if first.Digest != second.Digest || first.Digest == "" {
		t.Errorf("digests %s and %s", first.Digest, second.Digest)
	}
	if len(second.needed) > 0 {
		t.Errorf("second build asked for %v", second.needed)
	}
}

// TestKeys changes one thing of a build at a time and says what must run
// again: whatever a step depends on is in its key.
func TestKeys(t *testing.T) {
	w := newWorld(t)
	const common = "FROM fid/base:1\n"
	for _, tc := range []struct {
		name, before, after string
		args                map[string]string // of the second build
		want                string
	}{
		{"same", "LABEL a=b\nRUN echo x > /x", "LABEL a=b\nRUN echo x > /x", nil, "++"},
		{"parent's HEALTHCHECK", "HEALTHCHECK CMD a\nRUN echo 1 > /x", "HEALTHCHECK CMD b\nRUN echo 1 > /x", nil, "--"},
		{"parent's ONBUILD", "ONBUILD RUN a\nRUN echo 2 > /x", "ONBUILD RUN b\nRUN echo 2 > /x", nil, "--"},
		{"two ENVs that read alike", "ENV a=\"b c=d\"\nRUN echo 3$c > /x", "ENV a=b c=d\nRUN echo 3$c > /x", nil, "+-"},
		{"USER", "USER 1\nRUN id > /tmp/x", "USER 2\nRUN id > /tmp/x", nil, "--"},
		{"VOLUME", "VOLUME /a\nRUN echo > /x", "VOLUME /b\nRUN echo > /x", nil, "--"},
		{"declared arg", "ARG A=1\nRUN echo 4 > /x", "ARG A=1\nRUN echo 4 > /x", map[string]string{"A": "2"}, "+-"},
		{"undeclared arg", "RUN echo 5 > /x", "RUN echo 5 > /x", map[string]string{"B": "2"}, "+"},
		{"a proxy is there", "RUN echo 6 > /x", "RUN echo 6 > /x", map[string]string{"HTTP_PROXY": "p"}, "-"},
		{"destination", "COPY f /one", "COPY f /two", nil, "-"},
		{"mode", "COPY --chmod=600 f /m", "COPY --chmod=644 f /m", nil, "-"},
		{"exclude", "COPY --exclude=g d /e", "COPY d /e", nil, "-"},
		{"ADD unpacks, COPY does not", "COPY a.tar /u/", "ADD a.tar /u/", nil, "-"},
		{"ADD told not to unpack", "ADD a.tar /v/", "ADD --unpack=false a.tar /v/", nil, "-"},
		{"args of ONBUILD and labels", "LABEL x=1", "LABEL x=1 y=2", nil, "-"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := w.on(t)
			dir := t.TempDir()
			w.write(dir, map[string]string{"f": "f", "d/g": "g", "d/h": "h", "x": "in"})
			w.must(exec.CommandContext(t.Context(), "tar", "-C", dir, "-cf", filepath.Join(dir, "a.tar"), "x").Run())
			org := strings.Map(func(r rune) rune {
				if r < 'a' || r > 'z' {
					return '-'
				}
				return r
			}, strings.ToLower(tc.name))
			org = "k-" + strings.Trim(org, "-")
			first := w.build(t.Context(), request{org: org, dir: dir, dockerfile: common + tc.before})
			first.pull()
			second := w.build(t.Context(), request{org: org, dir: dir, dockerfile: common + tc.after, start: &slipwayv1.Start{BuildArgs: tc.args}})
			second.pull()
			if got := second.cached(); got != tc.want {
				t.Errorf("%s, want %s", got, tc.want)
			}
			if fresh := w.build(t.Context(), request{org: org + "-2", dir: dir, dockerfile: common + tc.after, start: &slipwayv1.Start{BuildArgs: tc.args}}); !sameButTimes(fresh.pull(), second.pull()) {
				t.Error("the cache changes what is built")
			}
		})
	}
}

func sameButTimes(a, b *image) bool {
	if len(a.tree) != len(b.tree) {
		return false
	}
	for p, n := range a.tree {
		m := b.tree[p]
		n.MTime, m.MTime = "", ""
		if n.Type != m.Type || n.SHA256 != m.SHA256 || n.Own != m.Own || n.Mode != m.Mode {
			return false
		}
	}
	return slices.EqualFunc(a.config.History, b.config.History, func(x, y ocispec.History) bool { return x.CreatedBy == y.CreatedBy })
}

// TestCopyFromRebuilt copies the same file out of a stage that was rebuilt.
func TestCopyFromRebuilt(t *testing.T) {
	w := newWorld(t)
	const dockerfile = "FROM fid/base:1 AS b\nARG V\nRUN echo $V > /v\nFROM scratch\nCOPY --from=b /etc/passwd /p\nCOPY --from=b /v /v"
	build := func(v string) *outcome {
		o := w.build(t.Context(), request{dockerfile: dockerfile, start: &slipwayv1.Start{BuildArgs: map[string]string{"V": v}}})
		o.pull()
		return o
	}
	build("1")
	if got := build("2").cached(); got != "+-+-" {
		t.Errorf("after a change in the stage: %s, want +-+-", got)
	}
	if got := build("1").cached(); got != "++++" {
		t.Errorf("back again: %s, want ++++", got)
	}
}

// TestHardLinks copies a directory with links, and then over one of them.
func TestHardLinks(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	w.write(dir, map[string]string{"one/x": "linked", "two/x": "other"})
	for _, name := range []string{"one/y", "one/a"} {
		w.must(os.Link(filepath.Join(dir, "one/x"), filepath.Join(dir, name)))
	}
	o := w.build(t.Context(), request{dir: dir, dockerfile: "FROM fid/base:1\nCOPY one two /d/\nRUN test \"$(cat /d/a /d/x /d/y)\" = linkedotherlinked && test $(stat -c %h /d/a) = 2\nCOPY one/x one/a /e/"})
	img := o.pull()
	if n := img.tree["/d/y"]; n.Type != "h" || n.Link != "d/a" {
		t.Errorf("/d/y is %+v, want a link to d/a", n)
	}
	if n := img.tree["/e/x"]; n.Type != "f" {
		t.Errorf("/e/x is %+v, want a file: sources of their own are not linked", n)
	}
}

// TestEnvWithoutPath gets the default PATH beside what the base image has.
func TestEnvWithoutPath(t *testing.T) {
	w := newWorld(t)
	w.push("fid/env", "1", dockerspec.DockerOCIImage{
		Image:  ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: goarch}},
		Config: dockerspec.DockerOCIImageConfig{ImageConfig: ocispec.ImageConfig{Env: []string{"A=1"}}},
	})
	img := w.build(t.Context(), request{dockerfile: "FROM fid/env:1\nLABEL x=y"}).pull()
	if env := img.config.Config.Env; len(env) != 2 || env[0] != "A=1" || !strings.HasPrefix(env[1], "PATH=") {
		t.Errorf("Env %q", env)
	}
}

// TestURLNames adds files by URLs that end in no name.
func TestURLNames(t *testing.T) {
	w := newWorld(t)
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Disposition", r.URL.Query().Get("d"))
		_, _ = rw.Write([]byte("x"))
	}))
	t.Cleanup(server.Close)
	for _, tc := range []struct{ query, dest, want string }{
		{"?d=attachment%3B+filename=%22a/b.txt%22", "/x/", "/x/b.txt"},
		{"?d=attachment%3B+filename=%22a/%22", "/x/", ""},
		{"?d=nonsense%3B%3B", "/x/", ""},
		{"", "/srv/data", "/srv/data/__unnamed__"},
		{"", "/x", "/x"},
	} {
		o := w.build(t.Context(), request{dockerfile: "FROM fid/base:1\nADD " + server.URL + "/" + tc.query + " " + tc.dest})
		if tc.want == "" {
			if e := o.Error; e == nil || !strings.HasPrefix(e.Message, "ADD failed: cannot determine filename for source http://127.0.0.1:") {
				t.Errorf("%s in %s: %v", tc.query, tc.dest, e)
			}
			continue
		}
		n := o.pull().tree[tc.want]
		if n.Type != "f" || n.Mode != "0600" || n.Own != "0:0" || n.MTime != "0" {
			t.Errorf("%s in %s: %+v at %s", tc.query, tc.dest, n, tc.want)
		}
	}
}

// TestFromAlone is the base image as it is.
func TestFromAlone(t *testing.T) {
	w := newWorld(t)
	made := time.Unix(1234567890, 0).UTC()
	w.push("fid/whole", "1", dockerspec.DockerOCIImage{
		Image: ocispec.Image{
			Created: &made, Author: "someone", Platform: ocispec.Platform{OS: "linux", Architecture: goarch},
			RootFS: ocispec.RootFS{DiffIDs: []digest.Digest{}},
		},
		Config: dockerspec.DockerOCIImageConfig{ImageConfig: ocispec.ImageConfig{Env: []string{"A=1"}, User: "u"}},
	})
	base := w.pull("fid/whole", "1")
	for _, dockerfile := range []string{"FROM fid/whole:1", "FROM fid/whole:1 AS a\nFROM a"} {
		img := w.build(t.Context(), request{dockerfile: dockerfile}).pull()
		if string(img.raw) != string(base.raw) {
			t.Errorf("%s:\n%s\nwant\n%s", dockerfile, img.raw, base.raw)
		}
	}
	img := w.build(t.Context(), request{dockerfile: "FROM fid/whole:1 AS a\nMAINTAINER me\nFROM a"}).pull()
	if img.config.Author != "me" {
		t.Errorf("author %q of a stage that is another, want me", img.config.Author)
	}
}

// TestArchives adds what is an archive and what is none.
func TestArchives(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	var plain bytes.Buffer
	tw := tar.NewWriter(&plain)
	for _, h := range []tar.Header{
		{Typeflag: tar.TypeDir, Name: "./", Mode: 0o700},
		{Typeflag: tar.TypeReg, Name: "../../out", Mode: 0o4755, Uid: 5, Gid: 6, Size: 1},
		{Typeflag: tar.TypeLink, Name: "ward", Linkname: "out", Mode: 0o4755, Uid: 5, Gid: 6},
		{Typeflag: tar.TypeSymlink, Name: "etc", Linkname: "/etc"},
	} {
		h.ModTime = time.Unix(1500000000, 0)
		w.must(tw.WriteHeader(&h))
		if h.Size > 0 {
			_, err := tw.Write([]byte("x"))
			w.must(err)
		}
	}
	w.must(tw.Close())
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	_, err := z.Write(plain.Bytes())
	w.must(errors.Join(err, z.Close()))
	w.write(dir, map[string]string{
		"a.tar": plain.String(), "misnamed.txt": zipped.String(), "empty.tar": "", "zero.tar": string(make([]byte, 1024)), "note.tar.gz": "\x1f\x8bno",
	})
	bz := exec.CommandContext(t.Context(), "bzip2", "-c")
	bz.Stdin = &plain
	if out, err := bz.Output(); err == nil {
		w.write(dir, map[string]string{"b.tbz": string(out)})
	} else {
		w.must(os.WriteFile(filepath.Join(dir, "b.tbz"), zipped.Bytes(), 0o644))
	}
	o := w.build(t.Context(), request{dir: dir, dockerfile: "FROM fid/base:1\nADD a.tar /a/\nADD misnamed.txt b.tbz /b/\nADD empty.tar zero.tar note.tar.gz /c/\nADD a.tar /"})
	img := o.pull()
	for p, want := range map[string]node{
		"/a": {Type: "d", Mode: "0755", Own: "0:0"}, "/a/out": {Type: "f", Mode: "4755", Own: "5:6"},
		"/a/ward": {Type: "h", Mode: "4755", Own: "5:6"}, "/a/etc": {Type: "l", Mode: "0777", Own: "0:0"},
		"/b/out": {Type: "f", Mode: "4755", Own: "5:6"}, "/out": {Type: "f", Mode: "4755", Own: "5:6"},
		"/c/empty.tar": {Type: "f", Mode: "0644", Own: "0:0"}, "/c/zero.tar": {Type: "f", Mode: "0644", Own: "0:0"},
		"/c/note.tar.gz": {Type: "f", Mode: "0644", Own: "0:0"},
	} {
		if n := img.tree[p]; n.Type != want.Type || n.Mode != want.Mode || n.Own != want.Own {
			t.Errorf("%s is %+v, want %+v", p, n, want)
		}
	}
}

// TestArchiveInPlace adds an archive over what the image has: links lead to
// where they lead below the destination, and marks hide what is there.
func TestArchiveInPlace(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "a.tar"))
	w.must(err)
	tw := tar.NewWriter(f)
	for _, h := range []tar.Header{
		{Typeflag: tar.TypeDir, Name: "./", Mode: 0o700, Uid: 9},
		{Typeflag: tar.TypeReg, Name: "link/one", Mode: 0o600},
		{Typeflag: tar.TypeReg, Name: "data/.wh.keep.txt", Mode: 0o640, Uid: 3, Gid: 4},
		{Typeflag: tar.TypeReg, Name: "new/deep/two", Mode: 0o600, Uid: 7, Gid: 8},
		{Typeflag: tar.TypeDir, Name: "link/", Mode: 0o1750, Uid: 7, Gid: 8},
	} {
		h.ModTime = time.Unix(1500000000, 0)
		w.must(tw.WriteHeader(&h))
	}
	w.must(errors.Join(tw.Close(), f.Close()))
	img := w.build(t.Context(), request{dir: dir, dockerfile: "FROM fid/base:1\nADD --chown=app a.tar /srv\nRUN test -d /srv/link && test -f /srv/data/one && test ! -e /srv/data/keep.txt"}).pull()
	var got []string
	for _, n := range img.layers[1] {
		got = append(got, fmt.Sprint(n.Type, " ", n.Mode, " ", n.Own, " ", n.MTime, " ", n.Path))
	}
	want := []string{
		"d 0755 0:0 now /srv", "d 0755 0:0 now /srv/data", "f 0640 3:4 1500000000 /srv/data/.wh.keep.txt", "f 0600 0:0 1500000000 /srv/data/one",
		"d 1750 7:8 1500000000 /srv/link", "f 0750 7:8 0 /srv/link/.wh..wh..opq", "d 0755 0:0 now /srv/new", "d 0755 0:0 now /srv/new/deep", "f 0600 7:8 1500000000 /srv/new/deep/two",
	}
	if !slices.Equal(got, want) {
		t.Errorf("layer\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestLimit fails at the line that crosses the limit, whatever makes the
// layer.
func TestLimit(t *testing.T) {
	w := newWorld(t)
	w.max = 6 << 20
	dir := t.TempDir()
	w.must(os.WriteFile(filepath.Join(dir, "big"), make([]byte, 5<<20), 0o644))
	for dockerfile, line := range map[string]uint32{
		"FROM fid/base:1\nRUN true\nRUN head -c 9000000 /dev/zero > /x":   3,
		"FROM fid/base:1\nENV A=1\nCOPY big /x\nRUN true":                 3,
		"FROM fid/base:1\nCOPY big /x\nENV A=1\nCOPY big /y":              2,
		"FROM scratch\nCOPY big /x\nCOPY big /y":                          3,
		"FROM fid/base:1 AS a\nFROM scratch\nCOPY big /x\nCOPY big /y":    4,
		"FROM scratch AS a\nCOPY big /x\nFROM a\nCOPY --from=a /x /other": 4,
	} {
		o := w.build(t.Context(), request{dir: dir, dockerfile: dockerfile})
		if o.Error == nil || o.Error.Code != "too_large" || o.Error.Line != line {
			t.Errorf("%q: %v, want too_large at line %d", dockerfile, o.Error, line)
		}
	}
	w.max = 0
	if o := w.build(t.Context(), request{dir: dir, dockerfile: "FROM scratch\nCOPY big /x\nCOPY big /y"}); o.Error != nil {
		t.Errorf("default limit: %v", o.Error)
	}
}

// TestCancel stops a build in the middle of a step; what was done stays.
func TestCancel(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	w.write(dir, map[string]string{"f": "x"})
	const dockerfile = "FROM fid/base:1 AS other\nRUN echo started; sleep 60\nFROM fid/base:1\nCOPY f /f\nCOPY --from=other /x /x"
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	w.onEmit = func(e *slipwayv1.Event) {
		if bytes.Contains(e.GetStepLog().GetData(), []byte("started")) {
			cancel()
		}
	}
	begun := time.Now()
	o := w.build(ctx, request{dir: dir, dockerfile: dockerfile})
	w.onEmit = nil
	if o.Error == nil || o.Error.Code != "cancelled" || time.Since(begun) > 20*time.Second {
		t.Errorf("%v after %s", o.Error, time.Since(begun))
	}
}

// TestFailureKeepsSteps finds the steps before the one that failed cached.
func TestFailureKeepsSteps(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	w.write(dir, map[string]string{"f": "x"})
	o := w.build(t.Context(), request{dir: dir, dockerfile: "FROM fid/base:1\nCOPY f /f\nRUN echo a > /a\nRUN exit 3"})
	if o.exitCode() != 3 {
		t.Fatalf("%v", o.Error)
	}
	again := w.build(t.Context(), request{dir: dir, dockerfile: "FROM fid/base:1\nCOPY f /f\nRUN echo a > /a\nRUN true"})
	again.pull()
	if got := again.cached(); got != "++-" {
		t.Errorf("%s, want ++-", got)
	}
}

// TestPrefetch asks for contents while steps expand their words.
func TestPrefetch(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	w.write(dir, map[string]string{"a": "1", "b": "2", "c": "3", "skipped": "4"})
	o := w.build(t.Context(), request{dir: dir, dockerfile: "FROM scratch\nCOPY a /a\nCOPY a b /d/\nCOPY b c /e/"})
	o.pull()
	if o.needed["skipped"] {
		t.Error("a file that nothing copies was asked for")
	}
	for _, p := range []string{"a", "b", "c"} {
		if !o.needed[p] {
			t.Errorf("%s was not asked for", p)
		}
	}
}
