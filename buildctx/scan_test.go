package buildctx_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/buildctx"
)

func TestScan(t *testing.T) {
	dir := t.TempDir()
	big := strings.Repeat("0123456789abcdef", 100_000)
	writeTree(t, dir, map[string]string{"a/b/c": "one", "a-b": "", "a/d": "two", "empty/": "", "big": big, "tool": "#!"})
	if err := os.Chmod(filepath.Join(dir, "tool"), 0o755|os.ModeSetuid); err != nil {
		t.Fatal(err)
	}
	mtime := time.Unix(1_000_000_000, 123_456_700)
	if err := os.Chtimes(filepath.Join(dir, "a", "d"), mtime, mtime); err != nil {
		t.Fatal(err)
	}
	d := scan(t, dir, nil)
	if want := []string{"a", "a/b", "a/b/c", "a/d", "a-b", "big", "empty", "tool"}; !slices.Equal(paths(d.Manifest), want) {
		t.Fatalf("got %q, want %q", paths(d.Manifest), want)
	}
	if e := entry(t, d.Manifest, "big"); e.Size != int64(len(big)) || e.Digest != sha256.Sum256([]byte(big)) {
		t.Errorf("big: %d bytes, %s", e.Size, e.Content())
	}
	if e := entry(t, d.Manifest, "a-b"); e.Size != 0 || e.Digest != sha256.Sum256(nil) {
		t.Errorf("empty file: %d bytes, %s", e.Size, e.Content())
	}
	if e := entry(t, d.Manifest, "a/d"); e.ModTime != mtime.UnixNano() {
		t.Errorf("modification time %d, want %d", e.ModTime, mtime.UnixNano())
	}
	if e := entry(t, d.Manifest, "tool"); runtime.GOOS != "windows" && e.Mode != 0o4755 {
		t.Errorf("mode %o", e.Mode)
	}
	if d.Files() != 5 || d.Bytes() != int64(len(big)+8) || d.Stats.Hashed != 5 {
		t.Errorf("%d files, %d bytes, %+v", d.Files(), d.Bytes(), d.Stats)
	}
}

func TestScanNothing(t *testing.T) {
	d := scan(t, t.TempDir(), nil)
	if len(d.Entries) != 0 {
		t.Errorf("got %q", paths(d.Manifest))
	}
	if _, err := buildctx.Scan(t.Context(), filepath.Join(t.TempDir(), "nowhere"), nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing directory: error %v", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := buildctx.Scan(t.Context(), file, nil); err == nil {
		t.Error("a file is a context")
	}
}

func TestScanLinks(t *testing.T) {
	dir := t.TempDir()
	writeTree(t, dir, map[string]string{"a/file": "content", "z": "other"})
	for name, target := range map[string]string{
		"loop": "loop", "loop1": "loop2", "loop2": "loop1", "dangling": "no/where", "up": "../../..", "abs": "/etc/passwd", "self": ".", "todir": "a",
	} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for from, to := range map[string]string{"a/file": "b", "z": "c"} {
		if err := os.Link(filepath.Join(dir, from), filepath.Join(dir, to)); err != nil {
			t.Fatal(err)
		}
	}
	outside := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, outside); err != nil {
		t.Fatal(err)
	}
	d := scan(t, outside, nil)
	for name, target := range map[string]string{"loop": "loop", "dangling": "no/where", "up": "../../..", "abs": "/etc/passwd", "self": "."} {
		if e := entry(t, d.Manifest, name); e.Type != buildctx.TypeSymlink || e.Link != target || e.Mode != 0o777 {
			t.Errorf("%s: %+v", name, e)
		}
	}
	if _, found := d.Find("todir/file"); found {
		t.Error("a symbolic link was followed")
	}
	for name, target := range map[string]string{"b": "a/file", "z": "c"} {
		if e := entry(t, d.Manifest, name); e.Type != buildctx.TypeHardlink || e.Link != target || e.Size != 0 {
			t.Errorf("%s: %+v", name, e)
		}
	}
	if d.Files() != 2 || d.Bytes() != int64(len("content")+len("other")) {
		t.Errorf("%d files, %d bytes", d.Files(), d.Bytes())
	}
	if _, err := fromParts(toParts(t, d.Manifest), nil); err != nil {
		t.Errorf("the daemon refuses it: %v", err)
	}
	// A hard link whose first name is left out is a file.
	half := scan(t, dir, &buildctx.ScanOptions{IgnoreFile: ignoreFile(t, "a\nc")})
	if e := entry(t, half.Manifest, "b"); e.Type != buildctx.TypeFile || e.Digest != sha256.Sum256([]byte("content")) {
		t.Errorf("b: %+v", e)
	}
}

func TestScanNonUTF8Names(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "bad\xff\xfename"), []byte("x"), 0o600); err != nil {
		t.Skip("file system refuses such names: ", err)
	}
	writeTree(t, dir, map[string]string{"new\nline": "y"})
	d := scan(t, dir, nil)
	m, err := fromParts(toParts(t, d.Manifest), nil)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"bad\xff\xfename", "new\nline"}; !slices.Equal(paths(m), want) {
		t.Errorf("got %q, want %q", paths(m), want)
	}
	store := &memStore{}
	transfer(t, m, d, store, nil)
	if len(store.contents) != 2 {
		t.Errorf("%d contents arrived", len(store.contents))
	}
}

func TestScanRefusesSockets(t *testing.T) {
	dir, err := os.MkdirTemp("", "s") // names of sockets are short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	for i := range 12 {
		l, err := net.Listen("unix", filepath.Join(dir, fmt.Sprintf("s%02d", i)))
		if err != nil {
			t.Skip("no sockets here: ", err)
		}
		defer l.Close()
	}
	_, err = buildctx.Scan(t.Context(), dir, nil)
	var refused *buildctx.UnsupportedError
	if !errors.As(err, &refused) || !errors.Is(err, buildctx.ErrUnsupported) {
		t.Fatalf("error %v", err)
	}
	if len(refused.Files) != 10 || refused.More != 2 || refused.Files[0] != (buildctx.UnsupportedFile{Path: "s00", Kind: "socket"}) {
		t.Errorf("got %+v", refused)
	}
	if text := err.Error(); !strings.Contains(text, "s09 (socket)") || !strings.Contains(text, "2 more") {
		t.Errorf("text %q", text)
	}
	if d := scan(t, dir, &buildctx.ScanOptions{IgnoreFile: ignoreFile(t, "s*")}); len(d.Entries) != 0 {
		t.Errorf("left out, yet there: %q", paths(d.Manifest))
	}
}

func TestScanFileVanishes(t *testing.T) {
	for name, change := range map[string]func(path string) error{
		"gone": os.Remove,
		"replaced": func(path string) error {
			return errors.Join(os.WriteFile(path+"2", nil, 0o600), os.Rename(path+"2", path))
		},
		"symlink": func(path string) error {
			return errors.Join(os.Remove(path), os.Symlink("/etc/hostname", path))
		},
		"directory": func(path string) error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			writeTree(t, dir, map[string]string{"d/victim": "x", "other": "y"})
			var changed error
			_, err := buildctx.Scan(t.Context(), dir, &buildctx.ScanOptions{Progress: func(p buildctx.ScanProgress) {
				if p.Stale == 2 && p.Hashed == 0 && changed == nil { // the walk has ended
					changed = errors.Join(change(filepath.Join(dir, "d", "victim")))
				}
			}})
			if changed != nil {
				t.Fatal(changed)
			}
			if err == nil || !strings.Contains(err.Error(), "d/victim") {
				t.Errorf("error %v", err)
			}
			if name != "symlink" && !errors.Is(err, buildctx.ErrChanged) {
				t.Errorf("error %v does not say that the file changed", err)
			}
		})
	}
}

func TestScanFileGrowsWhileRead(t *testing.T) {
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(256 << 20); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	started, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for i := int64(0); ctx.Err() == nil; i++ {
			if _, err := f.WriteAt([]byte("line\n"), 256<<20+5*(i%1000)); err != nil {
				return
			}
			if i == 0 {
				close(started)
			}
		}
	}()
	<-started
	_, err = buildctx.Scan(ctx, dir, nil)
	stop()
	<-ended
	var changed *buildctx.ChangedError
	if !errors.As(err, &changed) || changed.Path != "log" {
		t.Errorf("error %v", err)
	}
}

func TestScanCancelled(t *testing.T) {
	dir := t.TempDir()
	writeTree(t, dir, map[string]string{"d/a": "x"})
	ctx, cancel := context.WithCancelCause(t.Context())
	reason := errors.New("enough")
	cancel(reason)
	if _, err := buildctx.Scan(ctx, dir, nil); !errors.Is(err, reason) {
		t.Errorf("error %v", err)
	}
}

// later is a clock by which every file of a test has settled.
func later() time.Time { return time.Now().Add(time.Hour) }

func TestHashCache(t *testing.T) {
	dir := t.TempDir()
	writeTree(t, dir, map[string]string{"a/1": "one", "a/2": "two", "b": "three", "b-": "four"})
	cache := &buildctx.HashCache{File: filepath.Join(t.TempDir(), "sub", "hashes"), Now: later}
	o := &buildctx.ScanOptions{HashCache: cache, Warn: func(err error) { t.Error(err) }}
	rescan := func(hashed int) *buildctx.Dir {
		t.Helper()
		d := scan(t, dir, o)
		if d.Stats.Hashed != hashed {
			t.Errorf("read %d files, want %d", d.Stats.Hashed, hashed)
		}
		if want := scan(t, dir, nil); d.Digest() != want.Digest() {
			t.Error("the cache changes the result")
		}
		return d
	}
	rescan(4)
	rescan(0)

	// Same size, and the old modification time is put back.
	path := filepath.Join(dir, "a", "2")
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	writeTree(t, dir, map[string]string{"a/2": "TWO"})
	if err := os.Chtimes(path, before.ModTime(), before.ModTime()); err != nil {
		t.Fatal(err)
	}
	rescan(1)

	writeTree(t, dir, map[string]string{"a/0": "new", "a/3/x": "new", "c": "new"})
	rescan(3)
	if err := os.Remove(filepath.Join(dir, "b")); err != nil {
		t.Fatal(err)
	}
	rescan(0)
	rescan(0)

	// A name that moves to another file.
	if err := os.Rename(filepath.Join(dir, "a", "1"), filepath.Join(dir, "a", "2")); err != nil {
		t.Fatal(err)
	}
	rescan(1)
}

func TestHashCacheDistrustsRecentChanges(t *testing.T) {
	dir := t.TempDir()
	writeTree(t, dir, map[string]string{"a": "x"})
	for _, tc := range []struct {
		age  time.Duration
		want int
	}{{0, 1}, {time.Second, 1}, {time.Minute, 0}} {
		now := time.Now().Add(tc.age)
		cache := &buildctx.HashCache{File: filepath.Join(t.TempDir(), "hashes"), Now: func() time.Time { return now }}
		scan(t, dir, &buildctx.ScanOptions{HashCache: cache})
		if got := scan(t, dir, &buildctx.ScanOptions{HashCache: cache}).Stats.Hashed; got != tc.want {
			t.Errorf("a file %v old: read %d times again, want %d", tc.age, got, tc.want)
		}
	}
}

func TestHashCacheDamaged(t *testing.T) {
	dir := t.TempDir()
	writeTree(t, dir, map[string]string{"a": "x", "b/c": "y"})
	file := filepath.Join(t.TempDir(), "hashes")
	cache := &buildctx.HashCache{File: file, Now: later}
	want := scan(t, dir, &buildctx.ScanOptions{HashCache: cache}).Digest()
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, good, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := scan(t, dir, &buildctx.ScanOptions{HashCache: cache}).Stats.Hashed; got != 0 {
		t.Fatalf("the cache does not work at all: %d files read", got)
	}
	for i := range good {
		bad := slices.Clone(good)
		bad[i] ^= 0x41
		for _, damage := range [][]byte{bad, good[:i]} {
			if err := os.WriteFile(file, damage, 0o600); err != nil {
				t.Fatal(err)
			}
			d := scan(t, dir, &buildctx.ScanOptions{HashCache: cache})
			if d.Digest() != want || d.Stats.Hashed != 2 {
				t.Fatalf("damage at %d: read %d files", i, d.Stats.Hashed)
			}
		}
	}
}

func TestHashCacheCannotBeWritten(t *testing.T) {
	dir := t.TempDir()
	writeTree(t, dir, map[string]string{"a": "x"})
	var warned error
	scan(t, dir, &buildctx.ScanOptions{
		HashCache: &buildctx.HashCache{File: filepath.Join(dir, "a", "hashes")},
		Warn:      func(err error) { warned = err },
	})
	if warned == nil {
		t.Error("no warning")
	}
}

// FuzzHashCache gives the cache records with a good checksum: they may be
// wrong, but must not upset a scan.
func FuzzHashCache(f *testing.F) {
	dir := f.TempDir()
	writeTree(f, dir, map[string]string{"a": "x", "b/c": "y"})
	file := filepath.Join(f.TempDir(), "hashes")
	cache := &buildctx.HashCache{File: file, Now: later}
	scan(f, dir, &buildctx.ScanOptions{HashCache: cache})
	good, err := os.ReadFile(file)
	if err != nil {
		f.Fatal(err)
	}
	const magic = "slipway hashes 1\n"
	f.Add(good[len(magic) : len(good)-sha256.Size])
	f.Fuzz(func(t *testing.T, records []byte) {
		data := append([]byte(magic), records...)
		sum := sha256.Sum256(data)
		name := filepath.Join(t.TempDir(), "hashes")
		if err := os.WriteFile(name, append(data, sum[:]...), 0o600); err != nil {
			t.Fatal(err)
		}
		d, err := buildctx.Scan(t.Context(), dir, &buildctx.ScanOptions{HashCache: &buildctx.HashCache{File: name, Now: later}})
		if err != nil {
			t.Fatal(err)
		}
		d.Close()
	})
}
