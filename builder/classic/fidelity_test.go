package classic_test

import (
	"archive/tar"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// TestLayers holds steps to the entries of the layers that the classic builder
// makes of them, beyond what the recorded cases have.
func TestLayers(t *testing.T) {
	w := newWorld(t)
	for _, tc := range []struct {
		name, prepare, dockerfile string
		layers                    []string // of the steps after FROM fid/base:1: "mode owner time path", "," between entries
	}{
		{
			name: "VOLUME", prepare: "echo f > f",
			dockerfile: `RUN mkdir /v /ex && echo a > /v/old && chmod 750 /v && touch /ex/keep
VOLUME /v /new/deep /srv/link /ex
RUN echo b > /v/old; echo c > /v/new; rm /ex/keep; echo l > /srv/data/lost
COPY f /v/f
COPY f /new/deep/f
RUN test -f /v/f && test -f /new/deep/f && test $(cat /v/old) = a && test -f /ex/keep && ! test -e /srv/data/lost && rm /v/f
WORKDIR /v/w
RUN touch here && test $(pwd) = /v/w`,
			layers: []string{
				"d 0755 0:0 now /ex,f 0644 0:0 now /ex/keep,d 0750 0:0 now /v,f 0644 0:0 now /v/old",
				"d 0755 0:0 now /new,d 0755 0:0 now /new/deep",
				"d 0750 0:0 now /v,f 0644 0:0 17 /v/f",
				"d 0755 0:0 now /new,d 0755 0:0 now /new/deep,f 0644 0:0 17 /new/deep/f",
				"d 0750 0:0 now /v,d 0755 0:0 now /v/w",
			},
		},
		{
			name: "links on the way to the destination", prepare: "echo f > f; mkdir -p d/s; echo g > d/s/g",
			dockerfile: `RUN ln -s /nowhere/deep /dl; ln -s ../../../nowhere2 /srv/dl2; ln -s /srv/link /l1; ln -s l1 /l2
COPY f /dl
COPY f /srv/dl2/
COPY d /l2/x
COPY f /opt/abs/
COPY f /opt/escape
COPY f /l2/../up`,
			layers: []string{
				"l 0777 0:0 now /dl,l 0777 0:0 now /l1,l 0777 0:0 now /l2,d 0755 0:0 now /srv,l 0777 0:0 now /srv/dl2",
				"d 0755 0:0 now /nowhere,f 0644 0:0 17 /nowhere/deep",
				"d 0755 0:0 now /nowhere2,f 0644 0:0 17 /nowhere2/f",
				"d 0755 0:0 now /srv,d 0755 0:0 now /srv/data,d 0755 0:0 now /srv/data/x,d 0755 0:0 17 /srv/data/x/s,f 0644 0:0 17 /srv/data/x/s/g",
				"d 0755 0:0 now /srv,d 0755 0:0 now /srv/data,f 0644 0:0 17 /srv/data/f",
				"d 0755 0:0 now /etc,f 0644 0:0 17 /etc/passwd",
				"f 0644 0:0 17 /up",
			},
		},
		{
			name: "wildcards", prepare: "mkdir -p dir1/sub dir2 .hid; touch a.txt b.txt .c.txt dir1/x.txt dir1/sub/y.txt dir2/z.txt .hid/h.txt 'a[b'",
			dockerfile: `COPY *.txt /w1/
COPY dir* /w2/
COPY */*.txt /w3/
COPY dir?/*.txt a[[]b /w4/
COPY [^.a]*.txt /w5
COPY ./d*1/s* /w6/`,
			layers: []string{
				"d 0755 0:0 now /w1,f 0644 0:0 17 /w1/.c.txt,f 0644 0:0 17 /w1/a.txt,f 0644 0:0 17 /w1/b.txt",
				"d 0755 0:0 now /w2,d 0755 0:0 17 /w2/sub,f 0644 0:0 17 /w2/sub/y.txt,f 0644 0:0 17 /w2/x.txt,f 0644 0:0 17 /w2/z.txt",
				"d 0755 0:0 now /w3,f 0644 0:0 17 /w3/h.txt,f 0644 0:0 17 /w3/x.txt,f 0644 0:0 17 /w3/z.txt",
				"d 0755 0:0 now /w4,f 0644 0:0 17 /w4/a[b,f 0644 0:0 17 /w4/x.txt,f 0644 0:0 17 /w4/z.txt",
				"f 0644 0:0 17 /w5",
				"d 0755 0:0 now /w6,f 0644 0:0 17 /w6/y.txt",
			},
		},
		{
			name: "odd files", prepare: `mkdir d; mkfifo d/p; ln -s loop d/loop; touch "d/ü ñ" d/-x 'd/a\b' d/"$(printf 'a\nb')"; ln d/-x d/zz; chmod 0000 d/zz; mkdir -m 1777 d/em; mkdir -m 2775 d/sg; touch d/su; chmod 6755 d/su; chmod 2700 d`,
			dockerfile: "COPY d /d\nCOPY d/em /em",
			layers: []string{
				"d 0755 0:0 now /d,f 0000 0:0 17 /d/-x,f 0644 0:0 17 /d/a\nb,f 0644 0:0 17 /d/a\\b,d 1777 0:0 17 /d/em,l 0777 0:0 17 /d/loop,p 0644 0:0 17 /d/p,d 2775 0:0 17 /d/sg,f 0755 0:0 17 /d/su,h 0000 0:0 17 /d/zz,f 0644 0:0 17 /d/ü ñ",
				"d 0755 0:0 now /em",
			},
		},
		{
			name: "the engine's own files", prepare: "echo f > f; mkdir d; echo r > d/resolv.conf",
			dockerfile: `RUN echo 1.2.3.4 a >> /etc/hosts; echo x:x:9: >> /etc/group
COPY f /etc/hosts
COPY d /etc/
RUN test "$(cat /etc/hosts)" != f && test $(readlink /etc/mtab) = /proc/mounts && test -x /.dockerenv
COPY f /.dockerenv
COPY f /dev/console
RUN touch /dev/x /dev/shm/y && chmod 700 /etc
RUN rm /srv/data/keep.txt && rm -r /opt && mkdir -m 750 /opt`,
			layers: []string{
				"d 0755 0:0 now /etc,f 0644 0:0 now /etc/group",
				"d 0755 0:0 now /etc,f 0644 0:0 17 /etc/hosts",
				"d 0755 0:0 now /etc,f 0644 0:0 17 /etc/resolv.conf",
				"f 0644 0:0 17 /.dockerenv",
				"d 0755 0:0 now /dev,f 0644 0:0 17 /dev/console",
				"d 0700 0:0 now /etc",
				"d 0750 0:0 now /opt,f 0750 0:0 0 /opt/.wh..wh..opq,d 0755 0:0 16 /srv,d 0755 0:0 now /srv/data,f 0600 0:0 now /srv/data/.wh.keep.txt",
			},
		},
		{
			name: "a working directory that is gone", prepare: ":", dockerfile: "WORKDIR /a/w\nRUN cd / && rm -r /a\nRUN true\nRUN test $(pwd) = /a/w",
			layers: []string{"d 0755 0:0 now /a,d 0755 0:0 now /a/w", "f 0600 0:0 now /.wh.a", "d 0755 0:0 now /a,d 0755 0:0 now /a/w"},
		},
		{
			name: "nothing into the root", prepare: "mkdir e", dockerfile: "COPY e /\nWORKDIR /\nRUN true",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := w.on(t)
			dir := t.TempDir()
			cmd := exec.CommandContext(t.Context(), "bash", "-ec", "umask 022; "+tc.prepare+"; find . -exec touch -h -d @1700000000 {} +")
			cmd.Dir, cmd.Env = dir, append(os.Environ(), "LC_ALL=C.UTF-8")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			img := w.build(t.Context(), request{org: "layers", dir: dir, dockerfile: "FROM fid/base:1\n" + tc.dockerfile, start: &slipwayv1.Start{}}).pull()
			var got []string
			for _, l := range img.layers[1:] {
				got = append(got, entries(l))
			}
			if !slices.Equal(got, tc.layers) {
				t.Errorf("layers\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(tc.layers, "\n"))
			}
		})
	}
}

// TestCapabilities follows a file with capabilities and setuid through copies.
func TestCapabilities(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "a.tar"))
	w.must(err)
	tw := tar.NewWriter(f)
	netRaw := "\x01\x00\x00\x02\x00\x20\x00\x00" + strings.Repeat("\x00", 12)
	w.must(tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "ping", Mode: 0o4755, Uid: 7, Gid: 8, PAXRecords: map[string]string{"SCHILY.xattr.security.capability": netRaw}}))
	w.must(errors.Join(tw.Close(), f.Close()))
	img := w.build(t.Context(), request{dir: dir, dockerfile: `FROM fid/base:1 AS a
ADD --chown=app a.tar /s/
FROM fid/base:1
ADD a.tar /added/
COPY --from=a /s /dir
COPY --from=a /s/ping /file
COPY --from=a --chown=app /s /owned
COPY --from=a --chown=7:8 /s/ping /same`}).pull()
	for p, want := range map[string]string{
		"/added/ping": "4755 7:8 cap", "/dir/ping": "4755 7:8 cap", "/file": "4755 7:8", "/owned/ping": "0755 1234:2345", "/same": "0755 7:8",
	} {
		n := img.tree[p]
		got := n.Mode + " " + n.Own
		if x := n.Xattrs["security.capability"]; x == hex.EncodeToString([]byte(netRaw)) {
			got += " cap"
		} else if len(n.Xattrs) > 0 {
			got += fmt.Sprint(" ", n.Xattrs)
		}
		if got != want {
			t.Errorf("%s is %s, want %s", p, got, want)
		}
	}
	o := w.build(t.Context(), request{dir: dir, dockerfile: "FROM fid/base:1\nADD --chown=ghost a.tar /x"})
	if o.Error == nil || !strings.Contains(o.Error.Message, "no such user: ghost") {
		t.Errorf("a --chown that an archive does not need: %v", o.Error)
	}
}

// entries shows a layer. Times of the context are 17, of the base 16.
func entries(layer []node) string {
	var out []string
	for _, n := range layer {
		at := strings.TrimSuffix(n.MTime, "00000000")
		out = append(out, fmt.Sprint(n.Type, " ", n.Mode, " ", n.Own, " ", at, " ", n.Path))
	}
	return strings.Join(out, ",")
}

// TestOldTimes copies a file from before 1970, which no layer has.
func TestOldTimes(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	w.write(dir, map[string]string{"f": "x"})
	w.must(os.Chtimes(filepath.Join(dir, "f"), time.Unix(-100, 0), time.Unix(-100, 0)))
	img := w.build(t.Context(), request{dir: dir, dockerfile: "FROM scratch\nCOPY f /f"}).pull()
	if n := img.tree["/f"]; n.MTime != "0" {
		t.Errorf("%+v", n)
	}
}
