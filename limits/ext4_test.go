package limits_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/pkg/archive"
	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/limits"
)

// need skips a test that cannot run here, and fails it in CI, where all must
// run.
func need(t testing.TB, what string, ok bool) {
	t.Helper()
	switch {
	case ok:
	case os.Getenv("CI") == "true":
		t.Fatalf("needs %s", what)
	default:
		t.Skipf("needs %s", what)
	}
}

func command(t testing.TB, name string, args ...string) {
	t.Helper()
	_, err := exec.LookPath(name)
	need(t, name, err == nil)
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

// A disk is a mounted ext4 with 4 KiB blocks.
type disk struct {
	t    *testing.T
	root string
}

func newDisk(t *testing.T, size int64) *disk {
	t.Helper()
	need(t, "root to mount", os.Getuid() == 0)
	dir := t.TempDir()
	command(t, "mount", "-t", "tmpfs", "-o", fmt.Sprintf("size=%d", size), "tmpfs", dir)
	// A container that starts at this moment, of another test, has copies of all
	// mounts for a while: the image in here is in use until it lets go of them.
	t.Cleanup(func() { command(t, "umount", "--lazy", dir) })
	image, root := filepath.Join(dir, "image"), filepath.Join(dir, "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, size); err != nil {
		t.Fatal(err)
	}
	command(t, "mkfs.ext4", "-q", "-F", "-b", "4096", "-i", "4096", "-m", "0", image)
	command(t, "mount", "-o", "loop,discard", image, root)
	t.Cleanup(func() { command(t, "umount", root) })
	return &disk{t, root}
}

// used returns what df calls used. Inode tables, bitmaps and the journal are
// no part of it: they exist from the beginning.
func (d *disk) used() int64 {
	var st syscall.Statfs_t
	if err := syscall.Statfs(d.root, &st); err != nil {
		d.t.Fatal(err)
	}
	return int64(st.Blocks-st.Bfree) * st.Bsize
}

// sync allocates what was only promised yet.
func (d *disk) sync() {
	f, err := os.Open(d.root)
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		d.t.Fatal(err)
	}
}

// usage sums the blocks of root and all below: content, names, extents and
// attributes. Blocks of equal attributes are shared, but belong to each file.
func (d *disk) usage(root string) (sum int64) {
	seen := map[uint64]bool{}
	err := filepath.WalkDir(root, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := e.Info()
		if err != nil {
			return err
		}
		if st := fi.Sys().(*syscall.Stat_t); !seen[st.Ino] {
			seen[st.Ino] = true
			sum += st.Blocks * 512
		}
		return nil
	})
	if err != nil {
		d.t.Fatal(err)
	}
	return sum
}

// An image is a directory that layers are unpacked into, in order, and the
// ledger of the same. Before each entry, it looks at what the disk has.
type image struct {
	*disk
	dir              string
	before           int64 // used when there was nothing
	ledger, replayed *limits.Ledger
	layers           int
	charged          int64 // by the entries that are on the disk
	peak             int64 // of the disk
	entries          int
}

func (d *disk) image(t *testing.T) *image {
	d.sync()
	im := &image{
		disk: &disk{t, d.root}, dir: filepath.Join(d.root, "image"), before: d.used(),
		ledger: limits.NewLedger(-1), replayed: limits.NewLedger(-1),
	}
	if err := os.Mkdir(im.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(im.dir); err != nil {
			t.Error(err)
		}
	})
	return im
}

// unpack unpacks a layer and compares.
func (im *image) unpack(layer io.Reader) {
	im.t.Helper()
	src := limits.Source{Line: im.layers, Text: fmt.Sprint("layer ", im.layers)}
	im.layers++
	y := im.ledger.Begin(src)
	im.charged = im.ledger.Total()
	r := y.Reader(layer)
	if _, err := archive.Apply(im.t.Context(), im.dir, r, archive.WithFilter(im.look)); err != nil {
		im.t.Fatalf("layer %d: %v", im.layers, err)
	}
	if _, err := io.Copy(io.Discard, r); err != nil {
		im.t.Fatal(err)
	}
	delta, err := y.Close()
	if err != nil {
		im.t.Fatal(err)
	}
	if err := im.replayed.Replay(src, delta); err != nil {
		im.t.Fatal(err)
	}
	im.compare()
}

// look is called for an entry that was charged and is not on the disk yet; the
// one before is.
func (im *image) look(h *tar.Header) (bool, error) {
	used := im.used() - im.before
	im.entries++
	im.peak = max(im.peak, used)
	if used > im.charged {
		return false, fmt.Errorf("before %s, the disk uses %d, the ledger says %d", h.Name, used, im.charged)
	}
	im.charged = im.ledger.Total()
	return true, nil
}

// compare holds the ledger to what the disk says now.
func (im *image) compare() {
	im.t.Helper()
	im.sync()
	total, files, used := im.ledger.Total(), im.usage(im.dir), im.used()-im.before
	im.t.Logf("layer %d: %d entries; ledger %d, files %d (%+.2f %%), df %+d", im.layers, im.entries, total, files, 100*float64(total-files)/float64(files), used-files)
	// Beside 1 %, a tree of a few files has room for one large directory.
	if most := files + files/100 + 64<<10; total < files || total > most {
		im.t.Errorf("the ledger says %d, the files have %d; want between that and %d", total, files, most)
	}
	if used > files {
		im.t.Errorf("df says %d, the files have %d: something is neither file nor directory", used, files)
	}
	im.peak = max(im.peak, used)
	shared := files - used // which the ledger does not know of
	peak := im.ledger.Peak()
	if most := im.peak + shared + im.peak/100 + 64<<10; peak < im.peak || peak > most {
		im.t.Errorf("the ledger's peak is %d, the disk's %d; want between that and %d", peak, im.peak, most)
	}
	if a, b := im.ledger.Report(), im.replayed.Report(); !reflect.DeepEqual(a, b) {
		im.t.Errorf("replayed:\n%v\nwant\n%v", b, a)
	}
	if peak != im.replayed.Peak() {
		im.t.Errorf("replayed peak %d, want %d", im.replayed.Peak(), peak)
	}
}

// A script writes layers.
type script struct {
	tb     testing.TB
	layers []*bytes.Buffer
	tw     *tar.Writer
}

func (s *script) layer() {
	if s.tw != nil {
		if err := s.tw.Close(); err != nil {
			s.tb.Fatal(err)
		}
	}
	s.layers = append(s.layers, new(bytes.Buffer))
	s.tw = tar.NewWriter(s.layers[len(s.layers)-1])
}

func (s *script) put(h tar.Header) {
	if h.Mode == 0 {
		h.Mode = 0o755
	}
	if err := s.tw.WriteHeader(&h); err != nil {
		s.tb.Fatal(err)
	}
	if _, err := io.CopyN(s.tw, noise{}, h.Size); err != nil {
		s.tb.Fatal(err)
	}
}

func (s *script) dir(name string) { s.put(tar.Header{Typeflag: tar.TypeDir, Name: name + "/"}) }
func (s *script) file(name string, n int64) {
	s.put(tar.Header{Typeflag: tar.TypeReg, Name: name, Size: n})
}
func (s *script) link(name, target string) {
	s.put(tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target})
}
func (s *script) symlink(name, target string) {
	s.put(tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target})
}
func (s *script) gone(name string) {
	s.file(filepath.Join(filepath.Dir(name), ".wh."+filepath.Base(name)), 0)
}
func (s *script) opaque(name string) { s.file(filepath.Join(name, ".wh..wh..opq"), 0) }

func (s *script) done() [][]byte {
	if err := s.tw.Close(); err != nil {
		s.tb.Fatal(err)
	}
	var out [][]byte
	for _, b := range s.layers {
		out = append(out, b.Bytes())
	}
	return out
}

// noise is data that is not zero: a file system may not make holes of it.
type noise struct{}

var static = bytes.Repeat([]byte("slipway."), 8<<10)

func (noise) Read(p []byte) (int, error) { return copy(p, static), nil }

var trees = []struct {
	name  string
	write func(*script)
}{
	{"empty", func(*script) {}},
	{"files around a block", func(s *script) {
		for i, n := range []int64{0, 1, 59, 60, 160, 4095, 4096, 4097, 8191, 8192, 1 << 20, 1<<20 + 1} {
			s.file(fmt.Sprintf("f%d", i), n)
		}
	}},
	{"huge file", func(s *script) { s.file("huge", 90<<20) }},
	{"large files", func(s *script) {
		for i := range 8 {
			s.file(fmt.Sprint(i), int64(i)<<20+7)
		}
	}},
	{"many small files in one directory", func(s *script) {
		for i := range 8_000 {
			s.file(fmt.Sprintf("dir/module-%07d.py", i), int64(i%900)+1)
		}
	}},
	{"many directories", func(s *script) {
		for i := range 60 {
			for j := range 20 {
				s.dir(fmt.Sprintf("lib/%d/%d", i, j))
				s.file(fmt.Sprintf("lib/%d/%d/index.js", i, j), 700)
			}
		}
	}},
	{"parents that have no entry", func(s *script) {
		s.file("a/b/c/d/e", 1)
		s.symlink("x/y/z", "nowhere")
		s.gone("p/q/r")
	}},
	{"symbolic links", func(s *script) {
		for _, n := range []int{1, 58, 59, 60, 61, 255, 1000, 4000} {
			s.symlink(fmt.Sprint(n), strings.Repeat("x", n))
		}
		s.dir("real")
		s.symlink("to", "/real")
		s.file("to/f", 5000)
		s.symlink("up", "../../real")
		s.file("up/g", 5000)
	}},
	{"long names", func(s *script) {
		for i := range 2000 {
			s.file(fmt.Sprintf("d/%0255d", i), 5000)
		}
		s.file(strings.Repeat("deep/", 150)+"leaf", 1)
	}},
	{"overwrites", func(s *script) {
		s.file("a", 1<<20)
		s.file("a", 10)
		s.dir("d/e")
		s.file("d/e/f", 1<<20)
		s.file("g", 1<<20)
		s.layer()
		s.file("d", 5)
		s.dir("g")
		s.file("g/h", 1<<16)
		s.symlink("a", "g")
		s.layer()
		s.dir("g")
		s.file("d", 1<<20)
		s.file("a", 1<<20)
	}},
	{"whiteouts", func(s *script) {
		for i := range 100 {
			s.file(fmt.Sprintf("d/%d/f", i), 10_000)
		}
		s.file("e/f/g", 1<<20)
		s.file("k", 1<<20)
		s.layer()
		for i := range 50 {
			s.gone(fmt.Sprintf("d/%d", i))
		}
		s.gone("k")
		s.gone("missing")
		s.opaque("e")
		s.file("e/new/file", 20_000)
		s.layer()
		s.opaque("d")
		s.file("d/1/f", 1)
	}},
	{"opaque root", func(s *script) {
		s.file("a/b", 1<<20)
		s.layer()
		s.opaque("")
		s.file("c", 9)
	}},
	{"hard links", func(s *script) {
		s.file("a", 1<<20)
		s.link("b", "a")
		s.link("d/c", "/b")
		s.file("once", 1<<20)
		s.symlink("s", strings.Repeat("y", 200))
		s.link("s2", "s")
		s.layer()
		s.gone("a")
		s.link("e", "b")
		s.link("once2", "once")
		s.layer()
		s.gone("b")
		s.gone("d")
		s.file("once", 3)
		s.gone("s")
		s.layer()
		s.gone("e")
		s.file("once2", 3)
	}},
	{"attributes", func(s *script) {
		for i, n := range []int{1, 20, 40, 60, 70, 80, 100, 500, 3000} {
			s.put(tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprint("f", i), Size: 10,
				PAXRecords: map[string]string{"SCHILY.xattr.user.key": strings.Repeat("v", n)}})
			s.put(tar.Header{Typeflag: tar.TypeDir, Name: fmt.Sprint("d", i),
				PAXRecords: map[string]string{"SCHILY.xattr.user.key": fmt.Sprint(strings.Repeat("v", n), i)}})
		}
		s.put(tar.Header{Typeflag: tar.TypeReg, Name: "ping", Size: 10, PAXRecords: map[string]string{
			"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}})
	}},
	{"attributes of links", func(s *script) {
		s.file("f", 5000)
		s.put(tar.Header{Typeflag: tar.TypeReg, Name: "g", Size: 5000, PAXRecords: map[string]string{"SCHILY.xattr.user.key": strings.Repeat("v", 900)}})
		s.link("h", "g")
		s.layer()
		s.gone("g")
		s.link("i", "h")
		s.layer()
		s.gone("h")
		s.gone("i")
	}},
	{"equal attributes", func(s *script) {
		for i := range 100 {
			s.put(tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprint("f", i), Size: 10,
				PAXRecords: map[string]string{"SCHILY.xattr.user.key": strings.Repeat("v", 500)}})
		}
	}},
	{"hard links to overwritten files", func(s *script) {
		s.file("a", 100_000)
		s.link("b", "a")
		s.file("a", 50_000)
		s.layer()
		s.file("b", 10)
		s.dir("d")
		s.link("d/x", "a")
		s.link("d/y", "d/x")
		s.layer()
		s.opaque("d")
		s.link("d/z", "a")
		s.file("a", 1)
		s.layer()
		s.gone("d")
	}},
	{"huge directory", func(s *script) {
		for i := range 30_000 {
			s.file(fmt.Sprintf("d/%x-%s", i*i, strings.Repeat("long", i%40)), 1)
		}
	}},
	{"devices", func(s *script) {
		s.put(tar.Header{Typeflag: tar.TypeChar, Name: "dev/null", Devmajor: 1, Devminor: 3})
		s.put(tar.Header{Typeflag: tar.TypeBlock, Name: "dev/loop0", Devmajor: 7})
		s.put(tar.Header{Typeflag: tar.TypeFifo, Name: "dev/fifo"})
	}},
	{"directory that grows and shrinks", func(s *script) {
		for i := range 1500 {
			s.file(fmt.Sprintf("d/some-name-%d", i), 1)
		}
		s.layer()
		for i := range 1400 {
			s.gone(fmt.Sprintf("d/some-name-%d", i))
		}
		s.layer()
		for i := range 1400 {
			s.file(fmt.Sprintf("d/another-name-%d", i), 1)
		}
	}},
	{"directory that changes often", func(s *script) {
		for layer := range 8 {
			if layer > 0 {
				s.layer()
				for i := range 1000 {
					s.gone(fmt.Sprintf("d/name-%d-%d", layer-1, i))
				}
			}
			for i := range 1000 {
				s.file(fmt.Sprintf("d/name-%d-%d", layer, i), 0)
			}
		}
	}},
	{"random", writeRandom},
}

// writeRandom writes layers of a package manager that has gone mad.
func writeRandom(s *script) {
	rnd := rand.New(rand.NewPCG(1, 2))
	var old []string
	for i := range 12 {
		if i > 0 {
			s.layer()
		}
		old = writeRandomLayer(s, rnd, old)
	}
}

// writeRandomLayer writes a layer and returns its files. Each entry comes after
// those of its parents, and no name twice.
func writeRandomLayer(s *script, rnd *rand.Rand, old []string) (files []string) {
	written := map[string]bool{}
	claim := func(n string) bool {
		if written[n] || below(written, n) {
			return false
		}
		written[n] = true
		for i := range n {
			if n[i] == '/' && !written[n[:i]] {
				written[n[:i]] = true
				s.dir(n[:i])
			}
		}
		return true
	}
	for range 400 {
		if len(old) > 0 && rnd.IntN(10) == 0 {
			if n := old[rnd.IntN(len(old))]; claim(n) {
				written["file "+n] = true
				s.gone(n)
			}
			continue
		}
		parts := make([]string, 1+rnd.IntN(4))
		for i := range parts {
			parts[i] = fmt.Sprintf("n%d", rnd.IntN(9))
		}
		n := strings.Join(parts, "/")
		if !claim(n) {
			continue
		}
		switch r := rnd.IntN(10); {
		case r == 1:
			s.dir(n)
		case r == 2 && len(files) > 0:
			written["file "+n] = true
			s.link(n, files[rnd.IntN(len(files))])
		default:
			written["file "+n] = true
			files = append(files, n)
			s.file(n, int64(rnd.IntN(20_000)))
		}
	}
	return files
}

// below reports whether a parent of n was written as something other than a
// directory.
func below(written map[string]bool, n string) bool {
	for d := filepath.Dir(n); d != "."; d = filepath.Dir(d) {
		if written["file "+d] {
			return true
		}
	}
	return false
}

// TestLedgerAgainstExt4 unpacks trees layer by layer and compares.
func TestLedgerAgainstExt4(t *testing.T) {
	d := newDisk(t, 2<<30)
	for _, tc := range trees {
		t.Run(tc.name, func(t *testing.T) {
			s := &script{tb: t}
			s.layer()
			tc.write(s)
			im := d.image(t)
			for _, layer := range s.done() {
				im.unpack(bytes.NewReader(layer))
			}
		})
	}
}

// charge charges a layer through the reader and returns its delta.
func charge(t testing.TB, l *limits.Ledger, src limits.Source, layer []byte) limits.Delta {
	t.Helper()
	y := l.Begin(src)
	if _, err := io.Copy(io.Discard, y.Reader(bytes.NewReader(layer))); err != nil {
		t.Fatal(err)
	}
	d, err := y.Close()
	if err != nil {
		t.Fatal(err)
	}
	return d
}
