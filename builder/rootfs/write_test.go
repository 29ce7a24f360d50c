package rootfs_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/builder/rootfs"
	"github.com/slipwayhq/slipway/limits"
)

func TestWriteUpperEntries(t *testing.T) {
	o := newOverlay(t)
	sh(t, o.lowers[0], base)
	o.within(func(root string) {
		sh(t, root, "rm -r etc; mkdir etc; echo z >etc/A; touch -d @1234567890.75 etc/A; chown 70000:3000000 etc/A; rm fifo; ln etc/A etc/B; chown 7:8 etc; chmod 3750 etc")
	})
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(o.upper, "socket")})
	must(t, err)
	defer l.Close()

	layer := write(t, o.upper)
	want := `5 "etc/"
0 "etc/.wh..wh..opq"
0 "etc/A"
1 "etc/B" -> "etc/A"
0 ".wh.fifo"
`
	if got := list(t, layer); got != want {
		t.Fatalf("layer has\n%s\nwant\n%s", got, want)
	}
	hs := headers(t, layer)
	if h := hs[2]; !h.ModTime.Equal(time.Unix(1234567890, 0)) || h.Uid != 70000 || h.Gid != 3000000 || h.Uname+h.Gname != "" ||
		!h.AccessTime.IsZero() || !h.ChangeTime.IsZero() || h.Mode != 0o644 {
		t.Errorf("file: %+v", h)
	}
	// As Docker writes them.
	if h := hs[1]; h.Size != 0 || h.ModTime.Unix() != 0 || h.Mode != 0o750 || h.Uid != 7 || h.Gid != 8 {
		t.Errorf("mark of an opaque directory: %+v", h)
	}
	if h := hs[4]; h.Size != 0 || time.Since(h.ModTime) > time.Hour || h.Mode != 0o600 || h.Uid != 0 {
		t.Errorf("whiteout: %+v", h)
	}
}

func TestWriteUpperAsks(t *testing.T) {
	upper := t.TempDir()
	sh(t, upper, "echo a >a; echo b >b")
	boom := errors.New("boom")
	var out bytes.Buffer
	err := rootfs.WriteUpper(t.Context(), tar.NewWriter(&out), upper, func(h *tar.Header) error {
		if h.Name == "b" {
			return boom
		}
		return nil
	})
	if !errors.Is(err, boom) || strings.Contains(out.String(), "b\n") || !strings.Contains(out.String(), "a\n") {
		t.Errorf("error %v after %d bytes", err, out.Len())
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(boom)
	if err := rootfs.WriteUpper(ctx, tar.NewWriter(io.Discard), upper, nil); !errors.Is(err, boom) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestWriteUpperRefuses(t *testing.T) {
	o := newOverlay(t)
	for _, tc := range []struct{ name, xattr string }{{"redirect", "trusted.overlay.redirect"}, {"metacopy", "trusted.overlay.metacopy"}} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(o.upper, "x")
			if tc.name == "redirect" {
				must(t, os.Mkdir(path, 0o755))
			} else {
				must(t, os.WriteFile(path, nil, 0o644))
			}
			defer os.Remove(path)
			must(t, unix.Setxattr(path, tc.xattr, []byte("/y"), 0))
			if err := rootfs.WriteUpper(t.Context(), tar.NewWriter(io.Discard), o.upper, nil); !errors.Is(err, rootfs.ErrUpper) {
				t.Errorf("got %v, want %v", err, rootfs.ErrUpper)
			}
		})
	}
	t.Run("deep", func(t *testing.T) {
		sh(t, o.upper, "n="+strings.Repeat("d", 200)+"; for i in $(seq 30); do mkdir $n; cd -P $n; done")
		if err := rootfs.WriteUpper(t.Context(), tar.NewWriter(io.Discard), o.upper, nil); !errors.Is(err, rootfs.ErrUpper) {
			t.Errorf("got %v, want %v", err, rootfs.ErrUpper)
		}
		if _, _, err := rootfs.NewGauge(o.upper).Look(t.Context(), 0); err != nil {
			t.Errorf("gauge: %v", err)
		}
	})
}

// TestGaugeAndCreditAgreeWithTheLedger charges what a change writes and sees
// what the watchers of the same directory say.
func TestGaugeAndCreditAgreeWithTheLedger(t *testing.T) {
	for _, tc := range changes {
		t.Run(tc.name, func(t *testing.T) {
			o := newOverlay(t)
			sh(t, o.lowers[0], base)
			ledger := limits.NewLedger(-1)
			charge(t, ledger, write(t, o.lowers[0]))
			before := ledger.Total()
			o.within(func(root string) { sh(t, root, tc.script) })
			usage, _, err := rootfs.NewGauge(o.upper).Look(t.Context(), 0)
			must(t, err)
			credit, err := rootfs.Credit(t.Context(), o.upper, ledger.Held)
			must(t, err)
			growth := usage - credit
			charge(t, ledger, write(t, o.upper))
			added := ledger.Total() - before
			if usage < added {
				t.Errorf("usage %d, but the layer adds %d", usage, added)
			}
			// Names of one file that go together are credited one by one.
			if growth < added || growth > added+2*blockSize {
				t.Errorf("growth %d, but the layer adds %d", growth, added)
			}
		})
	}
}

const blockSize = 4096

func charge(t testing.TB, l *limits.Ledger, layer []byte) {
	t.Helper()
	y := l.Begin(limits.Source{})
	_, err := io.Copy(io.Discard, y.Reader(bytes.NewReader(layer)))
	must(t, err)
	_, err = y.Close()
	must(t, err)
}

// TestGaugeWhileOthersWrite walks directories that are exchanged with links to
// one outside.
func TestGaugeWhileOthersWrite(t *testing.T) {
	upper, outside := t.TempDir(), t.TempDir()
	sh(t, outside, "truncate -s 1T large")
	sh(t, upper, "for i in 1 2 3 4 5 6 7 8; do mkdir -p d$i/e; ln -s "+outside+" l$i; done")
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			d, l := filepath.Join(upper, "d"+strconv.Itoa(i%8+1)), filepath.Join(upper, "l"+strconv.Itoa(i%8+1))
			if err := unix.Renameat2(unix.AT_FDCWD, d, unix.AT_FDCWD, l, unix.RENAME_EXCHANGE); err != nil {
				done <- err
				return
			}
		}
	}()
	g := rootfs.NewGauge(upper)
	for range 4000 {
		if n, path, err := g.Look(t.Context(), 0); err != nil || n > 1<<20 {
			t.Errorf("gauge %d, %s, %v", n, path, err)
			break
		}
	}
	close(stop)
	must(t, <-done)
}

// TestCreditWhileOthersWrite measures a directory that changes all the time, as
// under a step that is running: files, whiteouts and opaque directories come
// and go. What stays is counted in the end.
func TestCreditWhileOthersWrite(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to make whiteouts")
	}
	upper := t.TempDir()
	ledger := limits.NewLedger(-1)
	y := ledger.Begin(limits.Source{})
	for i := range 64 {
		must(t, y.Entry(&tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("d%d/f%d", i%8, i), Size: 3 * blockSize}))
	}
	_, err := y.Close()
	must(t, err)
	stop := make(chan struct{})
	var others sync.WaitGroup
	for w := range 2 {
		others.Go(func() {
			for i := w; ; i += 2 {
				select {
				case <-stop:
					return
				default:
				}
				churn(t, upper, i)
			}
		})
	}
	g := rootfs.NewGauge(upper)
	for range 1500 {
		n, err := growth(t, g, upper, ledger)
		if err != nil || n > 8*65*blockSize || n < -ledger.Total() {
			t.Errorf("growth %d, %v", n, err)
			break
		}
	}
	close(stop)
	others.Wait()
	must(t, os.RemoveAll(upper))
	must(t, os.Mkdir(upper, 0o755))
	sh(t, upper, "mkdir d0; mknod d0/f0 c 0 0; mkdir d1; truncate -s 9000 d1/new")
	must(t, unix.Lsetxattr(filepath.Join(upper, "d1"), "trusted.overlay.opaque", []byte("y"), 0))
	before := ledger.Total()
	n, err := growth(t, g, upper, ledger)
	must(t, err)
	charge(t, ledger, write(t, upper))
	if want := ledger.Total() - before; n != want {
		t.Errorf("growth %d, the layer adds %d", n, want)
	}
}

// growth is what an upper directory adds to the image below it.
func growth(t *testing.T, g *rootfs.Gauge, upper string, below *limits.Ledger) (int64, error) {
	n, _, err := g.Look(t.Context(), 0)
	credit, creditErr := rootfs.Credit(t.Context(), upper, below.Held)
	return n - credit, errors.Join(err, creditErr)
}

// churn changes one of eight directories. Some of it fails where another one
// was faster.
func churn(t *testing.T, upper string, i int) {
	d := filepath.Join(upper, fmt.Sprint("d", i%8))
	f := filepath.Join(d, fmt.Sprint("f", i%64))
	switch i / 8 % 6 {
	case 0, 1:
		_ = os.Mkdir(d, 0o755)
		_ = os.WriteFile(f, make([]byte, 5000), 0o644)
	case 2:
		_ = os.Remove(f)
		_ = unix.Mknod(f, unix.S_IFCHR, 0)
	case 3:
		_ = unix.Lsetxattr(d, "trusted.overlay.opaque", []byte("y"), 0)
	case 4:
		_ = os.RemoveAll(d)
	case 5:
		_ = os.Rename(d, filepath.Join(upper, fmt.Sprint("d", (i+3)%8)))
	}
}
