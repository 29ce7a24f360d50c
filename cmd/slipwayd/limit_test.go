package main_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// sparse makes a file that only looks large.
func sparse(t testing.TB, dir, name string, size int64) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
}

const megabyte = 1_000_000

func TestTooLarge(t *testing.T) {
	t.Parallel()
	d, _ := startWithBusybox(t, "--max-rootfs", "50MB")
	tests := []struct {
		name   string
		files  tree
		sparse map[string]int64
		line   int
		path   string // where the limit was crossed, or below
		within time.Duration
	}{
		{name: "COPY", files: dockerfile("FROM busybox", "COPY data /data").and("data/small", "s"), sparse: map[string]int64{"data/big": 60 * megabyte}, line: 2, path: "/data/big"},
		{name: "two COPYs", files: dockerfile("FROM busybox", "COPY a /a", "COPY b /b"), sparse: map[string]int64{"a": 30 * megabyte, "b": 30 * megabyte}, line: 3, path: "/b"},
		{name: "RUN", files: dockerfile("FROM busybox", "RUN mkdir /out && head -c 60000000 /dev/zero > /out/zeros"), line: 2, path: "/out"},
		{name: "RUN without end", files: dockerfile("FROM busybox", "RUN echo fine > /f", "RUN dd if=/dev/zero of=/endless bs=65536"), line: 3, path: "/endless", within: 20 * time.Second},
		{name: "RUN that makes files without end", files: dockerfile("FROM busybox", "RUN mkdir /many; while true; do i=$((i+1)); head -c 1000000 /dev/zero > /many/$i; done"),
			line: 2, path: "/many", within: 20 * time.Second},
		{name: "ADD of an archive", files: dockerfile("FROM busybox", "ADD bomb.tar.gz /in").and("bomb.tar.gz", string(tarGz(tarFile{"zeros", strings.Repeat("\x00", 60*megabyte)}))),
			line: 2, path: "/in/zeros"},
		{name: "COPY --from", files: dockerfile("FROM busybox AS one", "RUN head -c 30000000 /dev/zero > /zeros", "FROM busybox", "COPY --from=one /zeros /a", "COPY --from=one /zeros /b"), line: 5, path: "/b"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := d.client()
			c.t = t
			dir := test.files.write(t)
			for name, size := range test.sparse {
				sparse(t, dir, name, size)
			}
			began := time.Now()
			r := c.deployFails(exitTooLarge, "too_large", "large", dir)
			if took := time.Since(began); test.within > 0 && took > test.within {
				t.Errorf("it took %v to stop", took)
			}
			if r.Error.Line != test.line || r.Error.Blame != "user" {
				t.Errorf("line %d, blame %s; want line %d, user", r.Error.Line, r.Error.Blame, test.line)
			}
			size := r.Error.Size
			if size == nil {
				t.Fatal("the error has no report")
			}
			if size.Limit != 50*megabyte || size.Total <= 50*megabyte || !strings.HasPrefix(size.Path, test.path) {
				t.Errorf("report: %d of %d at %s; want it at %s", size.Total, size.Limit, size.Path, test.path)
			}
			if len(size.Paths) == 0 || size.Paths[0].Bytes < megabyte {
				t.Errorf("largest paths: %+v", size.Paths)
			}
			lines := map[int]int64{}
			for _, l := range size.Lines {
				lines[l.Line] += l.Bytes
			}
			if lines[test.line] < megabyte {
				t.Errorf("bytes by line: %+v; line %d crossed the limit", size.Lines, test.line)
			}
			plain := c.slipway("deploy", dir, "-a", "large")
			if plain.code() != exitTooLarge {
				t.Errorf("exit code %d without --json", plain.code())
			}
			for _, s := range []string{"too_large", "50.0 MB", test.path, "Nothing was pushed"} {
				if !strings.Contains(plain.stderr.String(), s) {
					t.Errorf("the message lacks %q:\n%s", s, plain.stderr.String())
				}
			}
			if tags := d.tags("large"); len(tags) != 0 {
				t.Errorf("an image that is too large was pushed: %q", tags)
			}
			d.quiet(10 * time.Second)
		})
	}
}

// What a later step removes counts no more, but what it hid of a lower layer
// is there until the layers above are unpacked.
func TestLimitCreditsWhatIsRemoved(t *testing.T) {
	t.Parallel()
	d, c := startWithBusybox(t, "--max-rootfs", "50MB")
	done := c.deploy("credit", dockerfile("FROM busybox",
		"RUN head -c 30000000 /dev/zero > /zeros", "RUN rm /zeros", "RUN head -c 30000000 /dev/zero > /more").write(t))
	d.pull(done)
	if done.RootFS < 30*megabyte || done.RootFS > 50*megabyte {
		t.Errorf("rootfs is told as %d bytes", done.RootFS)
	}
}

func TestBaseTooLarge(t *testing.T) {
	t.Parallel()
	d, c := startWithBusybox(t)
	c.deploy("wide", dockerfile("FROM busybox", "RUN head -c 60000000 /dev/zero > /zeros").write(t), "--image-label", "v1")
	d.stop()
	d.args = append(d.args, "--max-rootfs", "50MB")
	d.start()
	dir := dockerfile("FROM "+d.http+"/wide:v1", "COPY unused /").and("unused", "u").write(t)
	r := d.client().deployFails(exitTooLarge, "too_large", "narrow", dir)
	if r.Error.Line != 1 || r.Error.Phase != "preflight" || r.Error.Size == nil || !strings.Contains(r.Error.Size.Path, "zeros") {
		t.Errorf("error %+v", r.Error)
	}
	if r.Context.SentFiles != 0 {
		t.Errorf("sent %d files of a build whose base is too large", r.Context.SentFiles)
	}
	if tags := d.tags("narrow"); len(tags) != 0 {
		t.Errorf("pushed %q", tags)
	}
}

// A cached layer counts as if it were made now.
func TestCachedLayersCount(t *testing.T) {
	t.Parallel()
	d, c := startWithBusybox(t)
	dir := dockerfile("FROM busybox", "RUN head -c 60000000 /dev/zero > /zeros", "RUN true").write(t)
	c.deploy("once", dir)
	d.stop()
	d.args = append(d.args, "--max-rootfs", "50MB")
	d.start()
	r := d.client().deployFails(exitTooLarge, "too_large", "once", dir)
	if r.Error.Line != 2 {
		t.Errorf("line %d, want 2", r.Error.Line)
	}
}
