package limits_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/slipwayhq/slipway/limits"
)

const block = 4096

func file(name string, size int64) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size}
}

func dir(name string) *tar.Header { return &tar.Header{Typeflag: tar.TypeDir, Name: name} }

func link(name, to string) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: to}
}

func symlink(name, to string) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}
}

// entries charges a layer and returns its delta.
func entries(t *testing.T, l *limits.Ledger, src limits.Source, hs ...*tar.Header) limits.Delta {
	t.Helper()
	y := l.Begin(src)
	for _, h := range hs {
		if err := y.Entry(h); err != nil {
			t.Fatalf("%s: %v", h.Name, err)
		}
	}
	d, err := y.Close()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestEntryStopsAtTheLimit(t *testing.T) {
	src := limits.Source{Line: 3, Text: "COPY . ."}
	l := limits.NewLedger(4 * block) // the root, /d and two blocks
	y := l.Begin(src)
	if err := y.Entry(file("d/a", 2*block)); err != nil {
		t.Fatalf("up to the limit: %v", err)
	}
	err := y.Entry(file("d/b", 1))
	var over *limits.SizeError
	if !errors.As(err, &over) || !errors.Is(err, limits.ErrTooLarge) {
		t.Fatalf("one block over: %v", err)
	}
	if over.Path != "/d/b" || over.Total != 5*block || over.Max != 4*block {
		t.Errorf("report says %d of %d at %s", over.Total, over.Max, over.Path)
	}
	if len(over.Sources) != 1 || over.Sources[0] != (limits.SourceSize{Source: src, Bytes: 5 * block}) {
		t.Errorf("sources: %v", over.Sources)
	}
	if err := y.Entry(file("d/c", 0)); !errors.Is(err, limits.ErrTooLarge) {
		t.Errorf("after the limit: %v", err)
	}
	if d, err := y.Close(); !errors.Is(err, limits.ErrTooLarge) || d != nil {
		t.Errorf("Close: %v, %v", d, err)
	}
}

func TestPeakIsWhileUnpacking(t *testing.T) {
	l := limits.NewLedger(0)
	entries(t, l, limits.Source{}, file("a", 10*block))
	entries(t, l, limits.Source{Line: 2}, file("b", 5*block), file(".wh.a", 0))
	if got, want := l.Total(), int64(6*block); got != want {
		t.Errorf("total %d, want %d", got, want)
	}
	if got, want := l.Peak(), int64(16*block); got != want {
		t.Errorf("peak %d, want %d", got, want)
	}
}

func TestAllow(t *testing.T) {
	l := limits.NewLedger(10 * block)
	entries(t, l, limits.Source{}, file("a", 4*block)) // and the root
	if err := l.Allow(5*block, "/tmp/x"); err != nil {
		t.Errorf("up to the limit: %v", err)
	}
	var over *limits.SizeError
	if err := l.Allow(5*block+1, "/tmp/x"); !errors.As(err, &over) || over.Path != "/tmp/x" || over.Total != 10*block+1 {
		t.Errorf("over the limit: %v", err)
	}
	if l.Total() != 5*block {
		t.Errorf("Allow charged something: %d", l.Total())
	}
	if err := limits.NewLedger(-1).Allow(1<<60, "/"); err != nil {
		t.Errorf("no limit: %v", err)
	}
	if err := limits.NewLedger(0).Allow(limits.DefaultMax+1, "/"); !errors.Is(err, limits.ErrTooLarge) {
		t.Errorf("default limit: %v", err)
	}
}

func TestWhiteoutsSpareTheirOwnLayer(t *testing.T) {
	for _, tc := range []struct {
		name  string
		layer []*tar.Header
	}{
		{"file before", []*tar.Header{file("d/new", 9), file(".wh.d", 0)}},
		{"file after", []*tar.Header{file(".wh.d", 0), file("d/new", 9)}},
		{"opaque before", []*tar.Header{file("d/.wh..wh..opq", 0), file("d/new", 9)}},
		{"opaque after", []*tar.Header{dir("d"), file("d/new", 9), file("d/.wh..wh..opq", 0)}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := limits.NewLedger(0)
			entries(t, l, limits.Source{}, file("d/old", block), file("d/sub/older", block))
			entries(t, l, limits.Source{}, tc.layer...)
			if _, ok := l.Stat("d/new"); !ok {
				t.Error("the layer's own file is gone")
			}
			for _, gone := range []string{"d/old", "d/sub", "d/sub/older"} {
				if _, ok := l.Stat(gone); ok {
					t.Errorf("%s is still there", gone)
				}
			}
			if got, want := l.Total(), int64(3*block); got != want { // root, d, new
				t.Errorf("total %d, want %d", got, want)
			}
		})
	}
}

func TestStat(t *testing.T) {
	l := limits.NewLedger(0)
	if n, ok := l.Stat("/"); !ok || n.Type != tar.TypeDir {
		t.Errorf("root: %v, %v", n, ok)
	}
	entries(t, l, limits.Source{},
		dir("./usr/bin/"), file("/usr/bin/sh", 77), symlink("bin", "usr/bin"), symlink("abs", "/usr"),
		symlink("loop", "loop"), symlink("up", "../../usr"), link("usr/hard", "bin/sh"), link("alias", "bin"),
		&tar.Header{Typeflag: tar.TypeChar, Name: "null"}, file("../../out", 5), file("a/../b", 6))
	for _, tc := range []struct {
		path string
		want limits.Node
	}{
		{"/usr", limits.Node{Type: tar.TypeDir, Mode: 0o755, ModTime: time.Unix(0, 0)}},
		{"usr/bin/sh", limits.Node{Type: tar.TypeReg, Size: 77}},
		{"/bin/sh", limits.Node{Type: tar.TypeReg, Size: 77}},
		{"/abs/bin/sh", limits.Node{Type: tar.TypeReg, Size: 77}},
		{"/up/bin/../bin/./sh", limits.Node{Type: tar.TypeReg, Size: 77}},
		{"/usr/hard", limits.Node{Type: tar.TypeReg, Size: 77}},
		{"/bin", limits.Node{Type: tar.TypeSymlink, Link: "usr/bin"}},
		{"/alias", limits.Node{Type: tar.TypeSymlink, Link: "usr/bin"}},
		{"/alias/sh", limits.Node{Type: tar.TypeReg, Size: 77}},
		{"/null", limits.Node{Type: tar.TypeChar}},
		{"/out", limits.Node{Type: tar.TypeReg, Size: 5}},
		{"/b", limits.Node{Type: tar.TypeReg, Size: 6}},
	} {
		if got, ok := l.Stat(tc.path); !ok || got != tc.want {
			t.Errorf("Stat(%s) = %v, %v; want %v", tc.path, got, ok, tc.want)
		}
	}
	for _, path := range []string{"/nothing", "/usr/bin/sh/x", "/loop/x", "/null/x", "/a"} {
		if got, ok := l.Stat(path); ok {
			t.Errorf("Stat(%s) = %v, want nothing", path, got)
		}
	}
}

// A layer sees the links that it wrote itself; what lower layers have in its
// way, it replaces, as an overlay does.
func TestParentsThatAreLinks(t *testing.T) {
	l := limits.NewLedger(0)
	entries(t, l, limits.Source{}, dir("real"), symlink("to", "real"), file("to/own", 1))
	if _, ok := l.Stat("real/own"); !ok {
		t.Error("the layer's own link was not followed")
	}
	entries(t, l, limits.Source{}, file("to/upper", 1))
	if n, _ := l.Stat("to"); n.Type != tar.TypeDir {
		t.Errorf("the lower layer's link became %v, want a directory", n)
	}
	if _, ok := l.Stat("real/upper"); ok {
		t.Error("the lower layer's link was followed")
	}
}

func TestEntryRefuses(t *testing.T) {
	for _, tc := range []struct {
		name   string
		before []*tar.Header
		h      *tar.Header
	}{
		{"long name", nil, file(strings.Repeat("x", 256), 0)},
		{"long parent", nil, file(strings.Repeat("x", 256)+"/x", 0)},
		{"long path", nil, file(strings.Repeat("x/", 2049), 0)},
		{"long link", nil, symlink("x", strings.Repeat("x", 4096))},
		{"below a file", []*tar.Header{file("x", 1)}, file("x/y", 1)},
		{"below a loop", []*tar.Header{symlink("x", "x")}, file("x/y", 1)},
		{"whiteout of nothing", nil, file("d/.wh.", 0)},
		{"whiteout of the directory", nil, file("d/.wh..", 0)},
		{"whiteout of the parent", nil, file("d/.wh...", 0)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			y := limits.NewLedger(0).Begin(limits.Source{})
			for _, h := range tc.before {
				if err := y.Entry(h); err != nil {
					t.Fatal(err)
				}
			}
			if err := y.Entry(tc.h); !errors.Is(err, limits.ErrEntry) {
				t.Errorf("got %v, want %v", err, limits.ErrEntry)
			}
		})
	}
}

func TestReport(t *testing.T) {
	l := limits.NewLedger(0)
	base, run := limits.Source{Text: "FROM debian"}, limits.Source{Line: 2, Text: "RUN make"}
	entries(t, l, base, file("usr/lib/big", 100*block), file("usr/lib/small", block))
	var hs []*tar.Header
	for i := range 20 {
		hs = append(hs, file(fmt.Sprintf("app/data/%02d", i), int64(i)*block))
	}
	entries(t, l, run, append(hs, link("app/data/again", "app/data/19"), file("usr/lib/.wh.small", 0))...)
	entries(t, l, base, file("etc/passwd", 1))

	r := l.Report()
	if r.Total != l.Total() || r.Max != limits.DefaultMax || r.Path != "" {
		t.Errorf("report of %d of %d at %q", r.Total, r.Max, r.Path)
	}
	wantSources := []limits.SourceSize{
		{Source: base, Bytes: (1 + 2 + 101 + 2) * block}, // root, usr, lib, files, etc and passwd
		{Source: run, Bytes: (2 + 190 - 1) * block},
	}
	if fmt.Sprint(r.Sources) != fmt.Sprint(wantSources) {
		t.Errorf("sources %v, want %v", r.Sources, wantSources)
	}
	if len(r.Paths) != 10 || r.Paths[0] != (limits.PathSize{Path: "/usr/lib/big", Bytes: 100 * block}) ||
		r.Paths[9].Bytes != 11*block {
		t.Errorf("paths: %v", r.Paths)
	}
	named := 0
	for _, p := range r.Paths {
		if p.Path == "/app/data/again" || p.Path == "/app/data/19" {
			named++
		}
	}
	if named != 1 {
		t.Errorf("a file with two names is listed %d times: %v", named, r.Paths)
	}
	// /usr and /app are nothing but /usr/lib and /app/data.
	if len(r.Dirs) != 3 || r.Dirs[0].Path != "/app/data" || r.Dirs[1] != (limits.PathSize{Path: "/usr/lib", Bytes: 101 * block}) ||
		r.Dirs[2] != (limits.PathSize{Path: "/etc", Bytes: 2 * block}) {
		t.Errorf("directories: %v", r.Dirs)
	}
}

func TestHeld(t *testing.T) {
	l := limits.NewLedger(0)
	entries(t, l, limits.Source{}, file("d/a", block), file("d/e/b", 2*block), file("one", block), link("two", "one"))
	for _, tc := range []struct {
		path      string
		own, tree int64
	}{
		{"/d", block, 5 * block},
		{"/d/e/b", 2 * block, 2 * block},
		{"/one", 0, 0},
		{"/missing", 0, 0},
		{"/d/a/b", 0, 0},
	} {
		if own, tree := l.Held(tc.path); own != tc.own || tree != tc.tree {
			t.Errorf("Held(%s) = %d, %d; want %d, %d", tc.path, own, tree, tc.own, tc.tree)
		}
	}
	entries(t, l, limits.Source{}, file(".wh.two", 0))
	if own, _ := l.Held("/one"); own != block {
		t.Errorf("last name of a file holds %d, want %d", own, block)
	}
}

func TestLayersFollowEachOther(t *testing.T) {
	l := limits.NewLedger(0)
	first := l.Begin(limits.Source{})
	second := l.Begin(limits.Source{Line: 1})
	if err := first.Entry(file("a", 1)); !errors.Is(err, limits.ErrClosed) {
		t.Errorf("layer that was overtaken: %v", err)
	}
	if err := second.Entry(file("a", 1)); err != nil {
		t.Error(err)
	}
	if _, err := second.Close(); err != nil {
		t.Error(err)
	}
	if err := second.Entry(file("b", 1)); !errors.Is(err, limits.ErrClosed) {
		t.Errorf("closed layer: %v", err)
	}
}

func TestDelta(t *testing.T) {
	layer := []*tar.Header{
		dir("usr/lib"), file("usr/lib/libc.so.6", 1<<21), file("usr/lib/libm.so", 1<<20), symlink("lib", "usr/lib"),
		link("usr/lib/libc.so", "usr/lib/libc.so.6"), file("etc/.wh.motd", 0), file("opt/.wh..wh..opq", 0),
	}
	d := entries(t, limits.NewLedger(0), limits.Source{}, layer...)
	if again := entries(t, limits.NewLedger(0), limits.Source{Line: 7}, layer...); !bytes.Equal(d, again) {
		t.Error("the same layer has two deltas")
	}
	if len(d) > 130 {
		t.Errorf("delta has %d bytes", len(d))
	}
	for i := range d {
		l := limits.NewLedger(0)
		bad := bytes.Clone(d)
		bad[i] ^= 0x20
		if err := l.Replay(limits.Source{}, bad); !errors.Is(err, limits.ErrDelta) || l.Total() != 0 {
			t.Fatalf("byte %d changed: %v, %d charged", i, err, l.Total())
		}
		if err := l.Replay(limits.Source{}, d[:i]); !errors.Is(err, limits.ErrDelta) || l.Total() != 0 {
			t.Fatalf("cut at %d: %v, %d charged", i, err, l.Total())
		}
	}
	if err := limits.NewLedger(1<<20).Replay(limits.Source{}, d); !errors.Is(err, limits.ErrTooLarge) {
		t.Errorf("replay over the limit: %v", err)
	}
}

// TestReaderReadsWhatTarReads gives the meter streams of all formats in small
// and large pieces.
func TestReaderReadsWhatTarReads(t *testing.T) {
	long := strings.Repeat("long-name/", 30)
	for _, format := range []tar.Format{tar.FormatUnknown, tar.FormatPAX, tar.FormatGNU} {
		var b bytes.Buffer
		tw := tar.NewWriter(&b)
		hs := []*tar.Header{
			dir("d/"), file("d/"+long+"f", 10_000), symlink("s", long), file("empty", 0), file("e", 512), file("odd", 513),
			link("h", "d/"+long+"f"),
		}
		if format == tar.FormatPAX {
			global := &tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "g", PAXRecords: map[string]string{"path": "nope", "size": "77"}}
			hs = append([]*tar.Header{global}, hs...)
			f := file("x", 5)
			f.PAXRecords = map[string]string{"SCHILY.xattr.user.v": strings.Repeat("v", 3000)}
			hs = append(hs, f)
		}
		want := limits.NewLedger(0)
		y := want.Begin(limits.Source{})
		for _, h := range hs {
			h.Format = format
			if err := tw.WriteHeader(h); err != nil {
				t.Fatal(err)
			}
			if _, err := io.CopyN(tw, noise{}, h.Size); err != nil {
				t.Fatal(err)
			}
			if err := y.Entry(h); err != nil {
				t.Fatal(err)
			}
		}
		if err := tw.Close(); err != nil {
			t.Fatal(err)
		}
		wantDelta, err := y.Close()
		if err != nil {
			t.Fatal(err)
		}
		for name, r := range map[string]io.Reader{
			"whole": bytes.NewReader(b.Bytes()), "one byte": iotest.OneByteReader(bytes.NewReader(b.Bytes())),
			"half": iotest.HalfReader(bytes.NewReader(b.Bytes())), "data with EOF": iotest.DataErrReader(bytes.NewReader(b.Bytes())),
			"what follows": io.MultiReader(bytes.NewReader(b.Bytes()), strings.NewReader("garbage")),
			"no trailer":   bytes.NewReader(b.Bytes()[:b.Len()-1024]),
		} {
			l := limits.NewLedger(0)
			y := l.Begin(limits.Source{})
			got, err := io.ReadAll(y.Reader(r))
			if err != nil {
				t.Fatalf("%v, %s: %v", format, name, err)
			}
			if n := min(len(got), b.Len()); !bytes.Equal(got[:n], b.Bytes()[:n]) {
				t.Errorf("%v, %s: bytes were changed", format, name)
			}
			if d, err := y.Close(); err != nil || !bytes.Equal(d, wantDelta) {
				t.Errorf("%v, %s: %v, total %d, want %d", format, name, err, l.Total(), want.Total())
			}
		}
	}
}

func TestDirectoryAttributes(t *testing.T) {
	tmp := &tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777, Uid: 3, Gid: 4, ModTime: time.Unix(1600000000, 0)}
	first := limits.NewLedger(0)
	y := first.Begin(limits.Source{})
	for _, h := range []*tar.Header{tmp, file("implied/f", 1), dir("gone"), file("gone", 1), dir("gone")} {
		if err := y.Entry(h); err != nil {
			t.Fatal(err)
		}
	}
	delta, err := y.Close()
	if err != nil {
		t.Fatal(err)
	}
	replayed := limits.NewLedger(0)
	if err := replayed.Replay(limits.Source{}, delta); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]limits.Node{
		"/tmp":     {Type: tar.TypeDir, Mode: 0o1777, UID: 3, GID: 4, ModTime: time.Unix(1600000000, 0)},
		"/implied": {Type: tar.TypeDir, Mode: 0o755, ModTime: time.Unix(0, 0)},
		"/gone":    {Type: tar.TypeDir, ModTime: time.Unix(0, 0)},
	} {
		for _, l := range []*limits.Ledger{first, replayed} {
			if got, ok := l.Stat(name); !ok || got != want {
				t.Errorf("Stat(%s) = %v, %v; want %v", name, got, ok, want)
			}
		}
	}
}

func TestReaderFails(t *testing.T) {
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, h := range []*tar.Header{file("a", 5000), file("b", 5000)} {
		if err := tw.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(tw, noise{}, h.Size); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	boom := errors.New("boom")
	second := 512 + 5120 // offset of b
	for _, tc := range []struct {
		name string
		r    io.Reader
		max  int64
		want error
		most int // bytes that may pass
	}{
		{"limit", iotest.OneByteReader(bytes.NewReader(b.Bytes())), 4 * block, limits.ErrTooLarge, second + 512},
		{"truncated content", bytes.NewReader(b.Bytes()[:second+600]), 0, io.ErrUnexpectedEOF, b.Len()},
		{"truncated header", bytes.NewReader(b.Bytes()[:second+9]), 0, io.ErrUnexpectedEOF, b.Len()},
		{"not a tar", strings.NewReader(strings.Repeat("x", 1024)), 0, tar.ErrHeader, 0},
		{"source", io.MultiReader(bytes.NewReader(b.Bytes()[:700]), iotest.ErrReader(boom)), 0, boom, 700},
	} {
		t.Run(tc.name, func(t *testing.T) {
			y := limits.NewLedger(tc.max).Begin(limits.Source{})
			r := y.Reader(tc.r)
			n, err := io.Copy(io.Discard, r)
			if !errors.Is(err, tc.want) || n > int64(tc.most) {
				t.Errorf("read %d bytes, error %v; want at most %d, %v", n, err, tc.most, tc.want)
			}
			if _, err := r.Read(make([]byte, 10)); !errors.Is(err, tc.want) {
				t.Errorf("next read: %v", err)
			}
			if _, err := y.Close(); err == nil {
				t.Error("Close gave a delta of half a layer")
			}
		})
	}
	t.Run("not read to its end", func(t *testing.T) {
		y := limits.NewLedger(0).Begin(limits.Source{})
		if _, err := io.CopyN(io.Discard, y.Reader(bytes.NewReader(b.Bytes())), 6000); err != nil {
			t.Fatal(err)
		}
		if _, err := y.Close(); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("Close: %v", err)
		}
	})
}
