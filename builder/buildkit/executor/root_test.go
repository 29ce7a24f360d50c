package executor_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	bkexecutor "github.com/moby/buildkit/executor"

	"github.com/slipwayhq/slipway/builder/buildkit/executor"
)

// Each way in which BuildKit brings a root file system.
func TestRoot(t *testing.T) {
	e := newExecutor(t, executor.Options{})
	data := fill(t, t.TempDir(), file{name: "f", data: "shown\n"})
	const text = "cat /old /in/new/f; mkdir /made; echo x >/made/file; rm /old; rm -f /.dockerenv"
	lines := []string{"old", "shown"}
	for name, make := range map[string]func(t *testing.T) (src bkexecutor.Mountable, at, upper, want string){
		"overlay": func(t *testing.T) (bkexecutor.Mountable, string, string, string) {
			s := over(t, fill(t, t.TempDir(), file{name: "old", data: "old\n"}), image(t, t.TempDir()))
			return s, s.upper(), s.upper(), "made made/file old"
		},
		"first layer": func(t *testing.T) (bkexecutor.Mountable, string, string, string) {
			s := over(t)
			image(t, s.upper(), file{name: "old", data: "old\n"})
			return s, s.upper(), s.upper(), "bin bin/busybox bin/sh made made/file"
		},
		"first layer without a work directory": func(t *testing.T) (bkexecutor.Mountable, string, string, string) {
			s := over(t)
			image(t, s.upper(), file{name: "old", data: "old\n"})
			if err := os.Remove(filepath.Join(s.dir, "work")); err != nil {
				t.Fatal(err)
			}
			return s, s.dir, s.upper(), "fs fs/bin fs/bin/busybox fs/bin/sh fs/made fs/made/file"
		},
		"mounted by BuildKit": func(t *testing.T) (bkexecutor.Mountable, string, string, string) {
			s := over(t, image(t, t.TempDir(), file{name: "old", data: "old\n"}))
			src, at := s.pooled(t)
			return src, at, s.upper(), "bin bin/busybox bin/sh made made/file"
		},
	} {
		t.Run(name, func(t *testing.T) {
			src, at, upper, after := make(t)
			var seen executor.Root
			e := newExecutor(t, executor.Options{Watch: func(_ context.Context, r executor.Root) error { seen = r; return nil }})
			mounts := []bkexecutor.Mount{{Src: bindOf(data), Dest: "/in/new", Readonly: true}}
			want(t, e, root(src), mounts, text, lines...)
			got := strings.ReplaceAll(names(t, at), ".dockerenv ", "") // removed from an image: for whoever writes layers
			if got != after {
				t.Errorf("it has %q, want %q", got, after)
			}
			if seen.Upper != upper {
				t.Errorf("watched was %q, want %q", seen.Upper, upper)
			}
		})
	}
	// Two that share nothing but the layer below.
	base := image(t, t.TempDir(), file{name: "old", data: "old\n"})
	for range 6 {
		t.Run("side by side", func(t *testing.T) {
			t.Parallel()
			want(t, e, root(over(t, base)), nil, "cat /old; rm /old", "old")
		})
	}
}

func TestReadOnlyRoot(t *testing.T) {
	e := newExecutor(t, executor.Options{Watch: func(_ context.Context, r executor.Root) error {
		if r.Upper != "" {
			t.Errorf("watched is %q", r.Upper)
		}
		return nil
	}})
	base := image(t, t.TempDir(), file{name: "data/f", data: "f\n"})
	before := names(t, base)
	s := over(t, base)
	pooled, at := over(t, base).pooled(t)
	for name, tc := range map[string]struct {
		src  bkexecutor.Mountable
		root bool
		meta bool
	}{
		"overlay, by the mount":       {s, true, false},
		"overlay, by the process":     {s, false, true},
		"view of one layer":           {bindOf(base, "ro"), false, false},
		"view of two":                 {&shown{mounts: []mount.Mount{{Type: "overlay", Source: "overlay", Options: []string{"lowerdir=" + t.TempDir() + ":" + base}}}}, false, false},
		"mounted, by the mount":       {pooled, true, false},
		"snapshot's own, by the meta": {bindOf(base, "rw"), false, true},
	} {
		t.Run(name, func(t *testing.T) {
			p := script("cat /data/f /in/f; touch /data/x 2>&1; touch /tmp/x && echo memory")
			p.Meta.ReadonlyRootFS, p.Meta.Cwd = tc.meta, "/work"
			mounts := []bkexecutor.Mount{
				{Src: bindOf(fill(t, t.TempDir(), file{name: "f", data: "shown\n"})), Dest: "/in"},
				{Src: &shown{mounts: []mount.Mount{{Type: "tmpfs", Source: "tmpfs"}}}, Dest: "/tmp"},
			}
			out, err := try(t, e, bkexecutor.Mount{Src: tc.src, Readonly: tc.root}, mounts, p)
			if out != "f\nshown\ntouch: /data/x: Read-only file system\nmemory\n" || err != nil {
				t.Errorf("error %v, output %q", err, out)
			}
		})
	}
	if got := names(t, base); got != before {
		t.Errorf("the layer has %q", got)
	}
	if got := names(t, at); got != before {
		t.Errorf("what is mounted has %q", got)
	}
}

func TestRootRefused(t *testing.T) {
	e := newExecutor(t, executor.Options{})
	lost := errors.New("lost")
	base := image(t, t.TempDir())
	for text, r := range map[string]bkexecutor.Mount{
		"root file system: it has no source":                                           {},
		"root file system: lost":                                                       root(&shown{err: lost}),
		"root file system: made of 0 mounts, want one":                                 root(&shown{}),
		"root file system: a mount of type tmpfs, want overlay or bind":                root(&shown{mounts: []mount.Mount{{Type: "tmpfs"}}}),
		"root file system: overlay option metacopy=on is not supported":                root(&shown{mounts: []mount.Mount{{Type: "overlay", Options: []string{"metacopy=on"}}}}),
		"root file system: a part of a file system cannot be a root":                   {Src: bindOf(base), Selector: "bin"},
		"root file system: user namespaces are not supported on this daemon: configur": root(mapped{bindOf(base)}),
	} {
		_, err := try(t, e, r, nil, script("true"))
		if err == nil || !strings.HasPrefix(err.Error(), text) {
			t.Errorf("error %v, want %s", err, text)
		}
	}
	s := over(t, base)
	for text, m := range map[string]bkexecutor.Mount{
		"mount at /x: it has no source":       {Dest: "/x"},
		"mount at /x: lost":                   {Dest: "/x", Src: &shown{err: lost}},
		"mount at /x: it has nothing to show": {Dest: "/x", Src: &shown{}},
		"mount at /x: size \"much\": ":        {Dest: "/x", Src: &shown{mounts: []mount.Mount{{Type: "tmpfs", Options: []string{"size=much"}}}}},
		"cannot mount at /x: /none in what":   {Dest: "/x", Src: bindOf(base), Selector: "none"},
		"invalid mount target \"..\"":         {Dest: "..", Src: bindOf(base)},
	} {
		_, err := try(t, e, root(s), []bkexecutor.Mount{{Src: bindOf(base), Dest: "/first"}, m}, script("true"))
		if err == nil || !strings.HasPrefix(err.Error(), text) {
			t.Errorf("error %v, want %s", err, text)
		}
	}
	if s.open != 0 {
		t.Errorf("the root file system is in use %d times", s.open)
	}
	if got := names(t, s.upper()); got != "" {
		t.Errorf("the upper directory has %q", got)
	}
}

// Targets stay inside, however they are written, and inner mounts are in outer
// ones.
func TestMountTargets(t *testing.T) {
	e := newExecutor(t, executor.Options{})
	base := image(t, t.TempDir(), file{name: "out", link: "../../../../data/far"}, file{name: "data/"})
	outer := fill(t, t.TempDir(), file{name: "sub/"}, file{name: "escape", link: "/etc"}, file{name: "etc/passwd", data: "mine\n"})
	inner := fill(t, t.TempDir(), file{name: "f", data: "inner\n"})
	s := over(t, base)
	want(t, e, root(s), []bkexecutor.Mount{
		{Src: bindOf(outer), Dest: "/a"},
		{Src: bindOf(inner), Dest: "/a/sub", Readonly: true},
		{Src: bindOf(inner), Dest: "relative/place"},
		{Src: bindOf(inner), Dest: "/../../x/../dots"},
		{Src: bindOf(inner), Dest: "/out"},
		{Src: bindOf(outer), Dest: "/chosen", Selector: "escape/../../../escape"},
		{Src: bindOf(inner, "ro"), Dest: "/option"},
	}, "cat /a/sub/f /relative/place/f /dots/f /data/far/f /chosen/passwd; touch /option/x 2>/dev/null || echo closed; touch /dots/x",
		"inner", "inner", "inner", "inner", "mine", "closed")
	if got := names(t, s.upper()); got != "" {
		t.Errorf("the upper directory has %q", got)
	}
	if got := names(t, inner); got != "f x" {
		t.Errorf("the source has %q", got)
	}
}
