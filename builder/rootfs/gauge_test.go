package rootfs_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/builder/rootfs"
)

// gauged makes a thousand files in twenty directories and a gauge of them that
// examines ten known names at a look.
func gauged(t *testing.T, upper string) *rootfs.Gauge {
	t.Helper()
	for i := range 1000 {
		dir := filepath.Join(upper, fmt.Sprint("d", i/50))
		if i%50 == 0 {
			must(t, os.Mkdir(dir, 0o755))
		}
		must(t, os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), []byte("x"), 0o644))
	}
	g := rootfs.NewGauge(upper)
	g.SetShare(10)
	return g
}

// looks checks a look: what is found, and that it examined no more than a few
// names.
func looks(t *testing.T, g *rootfs.Gauge, blocks, visits int) {
	t.Helper()
	n, _, err := g.Look(t.Context(), 1<<40)
	if must(t, err); n != int64(blocks)*blockSize || g.Visits() > visits {
		t.Errorf("%d blocks, %d names examined; want %d, at most %d", n/blockSize, g.Visits(), blocks, visits)
	}
}

// exact compares a gauge that is sure with one that has just come.
func exact(t *testing.T, g *rootfs.Gauge, upper string) {
	t.Helper()
	want, _, err := rootfs.NewGauge(upper).Look(t.Context(), 0)
	must(t, err)
	if n, _, err := g.Confirm(t.Context(), 1<<40); err != nil || n != want {
		t.Errorf("confirmed %d blocks, %v; there are %d", n/blockSize, err, want/blockSize)
	}
}

// A look examines what is new and a share of what is known, whatever there is.
func TestGaugeExaminesWhatIsNew(t *testing.T) {
	upper := t.TempDir()
	at := func(name string) string { return filepath.Join(upper, name) }
	g := gauged(t, upper)
	looks(t, g, 1020, 1000)
	looks(t, g, 1020, 10)
	must(t, os.WriteFile(at("d3/new"), make([]byte, 3*blockSize), 0o644))
	looks(t, g, 1023, 11)
	must(t, os.Remove(at("d4/200")))
	looks(t, g, 1022, 10)
	must(t, os.Rename(at("d5"), at("d6/d5")))
	looks(t, g, 1022, 60) // it has another path
	must(t, os.RemoveAll(at("d7")))
	looks(t, g, 971, 10)
	must(t, os.Symlink(fmt.Sprintf("%0100d", 0), at("d8/link")))
	looks(t, g, 972, 11)
	exact(t, g, upper)

	// What grows in silence is seen when its turn comes.
	must(t, os.Truncate(at("d9/450"), 1000*blockSize))
	seen := false
	for range 1000/10 + 2 {
		n, largest, err := g.Look(t.Context(), 1<<40)
		must(t, err)
		if seen = n == (972+999)*blockSize && largest == "/d9/450"; seen {
			break
		}
	}
	if !seen {
		t.Error("a file that grew was not seen in a whole round")
	}
}

// What is too much is looked at again before anybody is stopped for it.
func TestGaugeConfirms(t *testing.T) {
	upper := t.TempDir()
	at := func(name string) string { return filepath.Join(upper, name) }
	g := gauged(t, upper)
	must(t, os.Truncate(at("d0/1"), 1000*blockSize))
	must(t, os.Truncate(at("d0/2"), 100*blockSize))
	looks(t, g, 1020+999+99, 1000)
	must(t, os.Truncate(at("d0/1"), 0))
	must(t, os.Link(at("d0/2"), at("d1/twice")))
	must(t, os.Link(at("d0/2"), at("d1/thrice")))
	must(t, os.Link(at("d0/3"), at("d1/small")))
	_, _, err := g.Look(t.Context(), 1<<40)
	must(t, err)
	n, _, err := g.Confirm(t.Context(), 1<<40)
	must(t, err)
	// Small files are believed: the one that is linked may count twice.
	if n < (1020-1+99)*blockSize || n > (1020-1+99+1)*blockSize {
		t.Errorf("confirmed %d blocks", n/blockSize)
	}
	must(t, os.Truncate(at("d0/2"), 500*blockSize))
	if same, _, err := g.Confirm(t.Context(), 900*blockSize); err != nil || same != n {
		t.Errorf("small files alone are too much, and the others were examined: %d blocks, %v", same/blockSize, err)
	}
	if more, _, err := g.Confirm(t.Context(), 1<<40); err != nil || more != n+400*blockSize {
		t.Errorf("a linked file grew by 400 blocks: %d blocks, %v; were %d", more/blockSize, err, n/blockSize)
	}
	must(t, os.Remove(at("d0/2")))
	must(t, os.Remove(at("d1/twice")))
	must(t, os.Remove(at("d1/thrice")))
	must(t, os.Remove(at("d1/small")))
	if n, _, err = g.Confirm(t.Context(), 1<<40); err != nil || n > (1020-2+1)*blockSize {
		t.Errorf("without the links %d blocks, %v", n/blockSize, err)
	}
}

// A disk that loses what is not accounted for makes a look examine all, if it
// would be too much.
func TestGaugeHearsOfTheDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to mount a disk of its own")
	}
	upper := t.TempDir()
	must(t, unix.Mount("tmpfs", upper, "tmpfs", 0, "size=64m"))
	t.Cleanup(func() { must(t, unix.Unmount(upper, 0)) })
	g := gauged(t, upper)
	looks(t, g, 1020, 1000)
	looks(t, g, 1020, 10)
	must(t, os.WriteFile(filepath.Join(upper, "d19/999"), make([]byte, 1000*blockSize), 0o644))
	looks(t, g, 1020, 10) // far from the limit
	n, _, err := g.Look(t.Context(), 2000*blockSize)
	if must(t, err); n != 2019*blockSize {
		t.Errorf("%d blocks near the limit, want 2019", n/blockSize)
	}
	looks(t, g, 2019, 10)
}

// Trees of the usual size are measured exactly, again and again.
func TestGaugeOfASmallTree(t *testing.T) {
	upper := t.TempDir()
	g := rootfs.NewGauge(upper)
	for _, script := range []string{
		"mkdir d; truncate -s 1M d/large; truncate -s 1K d/small; ln d/large d/zz; truncate -s 9M e",
		"truncate -s 20K d/large", "ln d/zz zzz; rm d/large", "rm d/zz zzz", "truncate -s 0 e", "rm -r d", "mkdir e2; mv e e2/f; mv e2 e",
	} {
		sh(t, upper, script)
		want, _, err := rootfs.NewGauge(upper).Look(t.Context(), 0)
		must(t, err)
		n, _, err := g.Look(t.Context(), 0)
		if must(t, err); n != want {
			t.Errorf("after %s: %d blocks, there are %d", script, n/blockSize, want/blockSize)
		}
		exact(t, g, upper)
	}
}
