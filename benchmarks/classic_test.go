package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// BenchmarkClassic deploys to a daemon of its own, with its registry, on images
// that begin with busybox: what is measured is Slipway, from the client's
// start to its exit. Needs root, runc and a static busybox; make build comes
// first.
//
//	go test -run '^$' -bench Classic -benchtime 2x -count 6 . > new.txt; benchstat new.txt
func BenchmarkClassic(b *testing.B) {
	if os.Getuid() != 0 {
		b.Skip("needs root")
	}
	for _, bc := range []struct {
		name   string
		steps  []string
		make   func(b *testing.B, dir string) // what more the context has; may be nil
		change bool                           // the context changes before each deploy
		flags  []string
	}{
		{name: "run20", steps: repeat("RUN echo %d", 20), flags: []string{"--no-cache"}},
		{name: "metadata20", steps: repeat("ENV N%d=x", 20), flags: []string{"--no-cache"}},
		{name: "copy12000", steps: []string{"COPY tree /tree"}, make: tree12000, flags: []string{"--no-cache"}},
		{name: "copy12000-run", steps: []string{"COPY tree /tree", "RUN true"}, make: tree12000, flags: []string{"--no-cache"}},
		{name: "copy12000-one-changed", steps: []string{"COPY tree /tree"}, make: tree12000, change: true},
		{name: "run-layer-5000", steps: []string{"RUN mkdir /out && cd /out && for i in $(seq 5000); do echo $i > $i; done"}, flags: []string{"--no-cache"}},
		{name: "run-layer-100MB", steps: []string{"RUN dd if=/dev/urandom of=/out bs=1M count=100 2>/dev/null"}, flags: []string{"--no-cache"}},
		{name: "hit20", steps: repeat("RUN echo %d", 20)},
		{name: "hit-copy12000", steps: []string{"COPY tree /tree"}, make: tree12000},
	} {
		b.Run(bc.name, func(b *testing.B) {
			dir := b.TempDir()
			dockerfile := append([]string{"FROM scratch", "COPY busybox /bin/busybox", `RUN ["/bin/busybox", "--install", "/bin"]`}, bc.steps...)
			put(b, filepath.Join(dir, "Dockerfile"), strings.Join(dockerfile, "\n"))
			busybox(b, filepath.Join(dir, "busybox"))
			if bc.make != nil {
				bc.make(b, dir)
			}
			t, err := startSlipway(b.Context(), setup{bin: binaries{"../bin"}, dir: b.TempDir(), compression: "gzip"}, false, false)
			if err != nil {
				b.Fatal(err)
			}
			defer t.stop()
			n := 0
			deploy := func() float64 {
				if n++; bc.change {
					put(b, filepath.Join(dir, "tree", "changing"), fmt.Sprint(n))
				}
				s, err := t.run(b.Context(), append([]string{dir, "-a", "bench"}, bc.flags...)...)
				if err != nil {
					b.Fatal(err)
				}
				return s.Wall
			}
			deploy()
			var wall float64
			for b.Loop() {
				wall += deploy()
			}
			// Without the rest after each deploy, in which memory is measured.
			b.ReportMetric(wall*1e9/float64(b.N), "ns/op")
		})
	}
}

func repeat(format string, n int) (out []string) {
	for i := range n {
		out = append(out, fmt.Sprintf(format, i))
	}
	return out
}

func put(b *testing.B, file, text string) {
	b.Helper()
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		b.Fatal(err)
	}
}

func busybox(b *testing.B, to string) {
	b.Helper()
	from, err := exec.LookPath("busybox")
	if err == nil {
		err = copyProgram(from, to)
	}
	if err != nil {
		b.Fatal(err)
	}
}

// tree12000 makes 12 000 files of source-like text, 70 MB.
func tree12000(b *testing.B, dir string) {
	b.Helper()
	text := strings.Repeat("func main() { fmt.Println(\"hello\") } // the same line, over and over\n", 80)
	for i := range 12_000 {
		sub := filepath.Join(dir, "tree", fmt.Sprint(i/100))
		if i%100 == 0 {
			if err := os.MkdirAll(sub, 0o755); err != nil {
				b.Fatal(err)
			}
		}
		put(b, filepath.Join(sub, fmt.Sprint(i)), fmt.Sprintf("%d %s", i*7919, text))
	}
}
