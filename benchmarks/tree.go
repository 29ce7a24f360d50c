package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Workload A: what a medium application with its runtime looks like.
const (
	contextFiles = 12_000
	runtimeBytes = 566_000_000 // the layer below, which does not change
	runtimeFiles = 560
	appBytes     = 150_000_000 // the layer on top
	appFiles     = contextFiles - runtimeFiles - 1
)

const dockerfileA = `FROM debian:bookworm
RUN mkdir -p /srv && echo slipway > /srv/name
COPY runtime /opt/runtime
RUN find /opt/runtime -type f | wc -l > /srv/runtime.count
COPY app /srv/app
CMD ["cat", "/srv/runtime.count"]
`

// A workload is what is deployed.
type workload struct {
	A      string `json:"-"` // directory of workload A
	R      string `json:"-"` // directory of workload R
	Files  int    `json:"files"`
	Bytes  int64  `json:"bytes"`
	Source string `json:"source"` // where the contents are from
	first  string // A as it was generated; A itself is a copy
}

// prepare generates the workloads.
func prepare(ctx context.Context, o options) (*workload, error) {
	w := &workload{A: filepath.Join(o.work, "a"), R: filepath.Join(o.work, "r"), first: filepath.Join(o.work, "a.first")}
	if err := os.MkdirAll(w.R, 0o755); err != nil {
		return nil, err
	}
	out, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return nil, fmt.Errorf("go env GOROOT: %w", err)
	}
	goroot := strings.TrimSpace(string(out))
	jdk := newestJDK()
	w.Source = runtime.Version() + " src"
	trees := []string{filepath.Join(goroot, "pkg"), filepath.Join(goroot, "bin")}
	if jdk != "" {
		trees = append([]string{jdk}, trees...)
		w.Source = filepath.Base(jdk) + ", " + w.Source
	}
	if err := os.RemoveAll(w.first); err != nil {
		return nil, err
	}
	logf("generate the context: %d files, %d MB, of %s", contextFiles, (runtimeBytes+appBytes)/1_000_000, w.Source)
	if err := fill(filepath.Join(w.first, "runtime"), trees, runtimeFiles, runtimeBytes); err != nil {
		return nil, err
	}
	if err := fill(filepath.Join(w.first, "app"), []string{filepath.Join(goroot, "src")}, appFiles, appBytes); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(w.first, "Dockerfile"), []byte(dockerfileA), 0o644); err != nil {
		return nil, err
	}
	if err := filepath.WalkDir(w.first, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		w.Files++
		w.Bytes += info.Size()
		return err
	}); err != nil {
		return nil, err
	}
	return w, w.fresh()
}

// fresh replaces workload A by a copy of what was generated, as a new
// checkout would be: same contents, new times, new inodes. It returns when the
// times are old enough for caches that distrust what has just changed.
func (w *workload) fresh() error {
	if err := os.RemoveAll(w.A); err != nil {
		return err
	}
	if err := os.CopyFS(w.A, os.DirFS(w.first)); err != nil {
		return fmt.Errorf("copy the context: %w", err)
	}
	syscall.Sync()
	time.Sleep(2 * time.Second)
	return nil
}

// change edits one file of the upper layer. The edit is another for each n.
func (w *workload) change(n int) error {
	file := filepath.Join(w.A, "app", "src", "net", "http", "server.go")
	f, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "\n// Change %d.\n", n)
	if e := f.Close(); err == nil {
		err = e
	}
	return err
}

// steps writes workload R: 20 short RUN steps that no cache knows.
func (w *workload) steps(round int) error {
	var b strings.Builder
	b.WriteString("FROM debian:bookworm\n")
	for i := range 20 {
		fmt.Fprintf(&b, "RUN echo round %d step %d\n", round, i)
	}
	return os.WriteFile(filepath.Join(w.R, "Dockerfile"), []byte(b.String()), 0o644)
}

// newestJDK returns the last JDK of Debian on this machine, "" if there is none.
func newestJDK() string {
	found, _ := filepath.Glob("/usr/lib/jvm/java-*-openjdk-*")
	var real []string
	for _, dir := range found {
		if info, err := os.Lstat(dir); err == nil && info.IsDir() {
			real = append(real, dir)
		}
	}
	if len(real) == 0 {
		return ""
	}
	return slices.Max(real)
}

// fill makes a tree of exactly so many files and bytes: files of the given
// trees while both last, then files of their contents' blocks in another
// order, which compress as the rest does but are equal to none of it.
func fill(dir string, trees []string, files int, size int64) error {
	var blocks [][]byte
	const block, spare = 64 << 10, 40 // spare: files left for what makes up the size
	for _, tree := range trees {
		to := filepath.Join(dir, filepath.Base(tree))
		err := filepath.WalkDir(tree, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			data, err := os.ReadFile(path)
			if err != nil || files <= spare || int64(len(data)) > size {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			for rest := data; len(rest) >= block && len(blocks) < 4096; rest = rest[block:] {
				blocks = append(blocks, rest[:block])
			}
			rel, err := filepath.Rel(tree, path)
			if err != nil {
				return err
			}
			files--
			size -= int64(len(data))
			return write(filepath.Join(to, rel), bytes.NewReader(data), info.Mode().Perm())
		})
		if err != nil {
			return fmt.Errorf("copy %s: %w", tree, err)
		}
	}
	if len(blocks) == 0 {
		return fmt.Errorf("%v have nothing to fill %s with", trees, dir)
	}
	random := rand.New(rand.NewPCG(1, uint64(size))) //nolint:gosec // the same each time is the point
	for ; files > 0; files-- {
		n := size / int64(files)
		size -= n
		var parts []io.Reader
		for have := int64(0); have < n; have += block {
			parts = append(parts, bytes.NewReader(blocks[random.IntN(len(blocks))]))
		}
		file := filepath.Join(dir, "data", fmt.Sprintf("%05d.bin", files))
		if err := write(file, io.LimitReader(io.MultiReader(parts...), n), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func write(file string, r io.Reader, mode fs.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode|0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	if e := f.Close(); err == nil {
		err = e
	}
	return err
}
