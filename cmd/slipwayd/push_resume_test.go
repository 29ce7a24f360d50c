package main_test

import (
	"io"
	"io/fs"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A slowLine stands before a registry: it passes so many bytes of blobs on and
// then none, until it breaks. Requests after that pass freely.
type slowLine struct {
	broken chan struct{}
	cut    func() // closes broken, once

	mu       sync.Mutex
	left     int64
	received int64 // bytes of blobs
}

func newSlowLine(passes int64) *slowLine {
	l := &slowLine{broken: make(chan struct{}), left: passes}
	l.cut = sync.OnceFunc(func() { close(l.broken) })
	return l
}

// pass is a foreign registry's refuse. It refuses nothing.
func (l *slowLine) pass(_ http.ResponseWriter, r *http.Request) bool {
	select {
	case <-l.broken:
	default:
		if strings.Contains(r.URL.Path, "/blobs/uploads/") {
			r.Body = &slowBody{r.Body, l}
		}
	}
	return false
}

type slowBody struct {
	io.ReadCloser
	line *slowLine
}

func (b *slowBody) Read(p []byte) (int, error) {
	l := b.line
	l.mu.Lock()
	p = p[:min(int64(len(p)), l.left)]
	l.mu.Unlock()
	if len(p) == 0 {
		<-l.broken
		return 0, io.ErrUnexpectedEOF
	}
	n, err := b.ReadCloser.Read(p)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.left -= int64(n)
	l.received += int64(n)
	return n, err
}

// stuck reports whether nothing more comes through.
func (l *slowLine) stuck() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.left == 0
}

func (l *slowLine) count() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.received
}

// A daemon that is killed in the middle of a push has its successor send only
// the rest.
func TestKilledInTheMiddleOfAPush(t *testing.T) {
	t.Parallel()
	const size = 40 << 20
	for _, tc := range []struct {
		name string
		at   int64 // bytes that came through before
	}{
		{"in the first chunk", 7 << 20},
		{"in a later chunk", 29 << 20},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := startForeign(t, false)
			line := newSlowLine(tc.at)
			f.refuse = line.pass
			d, c := startWithBusybox(t, "--insecure-registry", f.host)
			t.Cleanup(line.cut) // the daemon could not end before
			c.login(f.host, foreignUser, foreignPassword)
			dir := dockerfile("FROM scratch", "COPY data /data").and("data", noise(size)).write(t)
			r := c.startDeploy("resumed", dir, "--push-to", f.host+"/team/resumed:v1")
			poll(t, time.Minute, "the push to be in the middle", func() bool {
				return line.stuck() && d.knowsDigest()
			})
			d.signal(syscall.SIGKILL)
			line.cut()
			d.start()
			r.wait(patience)
			checkJournal(t, filepath.Join(d.root, "push"))
			if got := f.manifests(); len(got) != 0 {
				t.Errorf("manifests %q arrived of a push that was killed", got)
			}

			fast := newSlowLine(math.MaxInt64)
			f.mu.Lock()
			f.refuse = fast.pass
			f.mu.Unlock()
			again := c.deploy("resumed", dir, "--push-to", f.host+"/team/resumed:v1")
			image := f.image("team/resumed:v1")
			if digest, _ := image.Digest(); digest.String() != again.Digest {
				t.Errorf("the registry has %s, the result says %s", digest, again.Digest)
			}
			if got := fileOf(t, unpack(t, image), "data"); got != noise(size) {
				t.Error("the image has another content")
			}
			layers, err := image.Layers()
			if err != nil {
				t.Fatal(err)
			}
			blob, err := layers[len(layers)-1].Size()
			if err != nil {
				t.Fatal(err)
			}
			// The config travels too.
			received := fast.count()
			if rest := blob - tc.at; received < rest || received > rest+64<<10 {
				t.Errorf("%d bytes of blobs travelled after %d of %d, want the other %d", received, tc.at, blob, rest)
			}
			if left, _ := os.ReadDir(filepath.Join(d.root, "push")); len(left) != 0 {
				t.Errorf("the journal still has %v", left)
			}
		})
	}
}

// knowsDigest reports whether the journal has the digest of what is sent.
func (d *daemon) knowsDigest() bool {
	files, _ := filepath.Glob(filepath.Join(d.root, "push", "*.json"))
	for _, f := range files {
		if data, err := os.ReadFile(f); err == nil && strings.Contains(string(data), `"sha256:`) {
			return true
		}
	}
	return false
}

// checkJournal fails the test if others may read the journal or it tells who
// pushes.
func checkJournal(t *testing.T, dir string) {
	t.Helper()
	found := 0
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil || e.IsDir() {
			return err
		}
		found++
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		data, err := os.ReadFile(path)
		for _, secret := range []string{foreignUser, foreignPassword, "Basic", "Bearer"} {
			if strings.Contains(string(data), secret) {
				t.Errorf("%s has %q", path, secret)
			}
		}
		return err
	})
	if err != nil || found == 0 {
		t.Errorf("%d sessions in the journal, %v", found, err)
	}
}
