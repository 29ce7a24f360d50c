package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestMedian(t *testing.T) {
	for _, tc := range []struct {
		of   []float64
		want float64
	}{
		{[]float64{3}, 3},
		{[]float64{9, 1, 2}, 2},
		{[]float64{4, 1, 2, 9}, 3},
	} {
		if got := median(tc.of); got != tc.want {
			t.Errorf("median(%v) = %v, want %v", tc.of, got, tc.want)
		}
	}
}

func TestRatioPairsTurns(t *testing.T) {
	theirs := []sample{{Wall: 10}, {Wall: 40}, {Wall: 9}}
	ours := []sample{{Wall: 5}, {Wall: 10}, {Wall: 3}}
	if got, want := ratio(theirs, ours, wall), "3.0 × (2.0–4.0)"; got != want {
		t.Errorf("ratio = %q, want %q", got, want)
	}
}

func TestReadStatus(t *testing.T) {
	const progress = `{"vertexes":[{"name":"[1/2] FROM x","started":"2026-01-01T00:00:00Z","completed":"2026-01-01T00:00:02.5Z"}]}
{"statuses":[{"id":"transferring context:","current":10}]}
{"statuses":[{"id":"transferring context:","current":1000},{"id":"transferring dockerfile:","current":7}]}
`
	var s sample
	if err := readStatus(&s, []byte(progress)); err != nil {
		t.Fatal(err)
	}
	if s.Sent != 1007 || s.Phases["[1/2] FROM x"] != 2.5 {
		t.Errorf("sent %d, phases %v", s.Sent, s.Phases)
	}
	if err := readStatus(&s, []byte("not JSON\n")); err == nil {
		t.Error("no error for a line that is not JSON")
	}
}

// A workload must have the size that is said, and be the same each time.
func TestFill(t *testing.T) {
	src := filepath.Join(t.TempDir(), "src")
	if err := os.MkdirAll(src, 0o755); err != nil {
		t.Fatal(err)
	}
	block := make([]byte, 100<<10)
	for i := range block {
		block[i] = byte(i * i >> 8)
	}
	if err := os.WriteFile(filepath.Join(src, "f"), block, 0o644); err != nil {
		t.Fatal(err)
	}
	var trees [2]map[string]string
	for i := range trees {
		dir := filepath.Join(t.TempDir(), "out")
		if err := fill(dir, []string{src}, 50, 1_000_003); err != nil {
			t.Fatal(err)
		}
		trees[i] = contents(t, dir)
	}
	var size int
	for name, text := range trees[0] {
		size += len(text)
		if trees[1][name] != text {
			t.Errorf("%s differs between two runs", name)
		}
	}
	if len(trees[0]) != 50 || size != 1_000_003 {
		t.Errorf("%d files of %d bytes, want 50 of 1000003", len(trees[0]), size)
	}
}

func contents(t *testing.T, dir string) map[string]string {
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		rel, _ := filepath.Rel(dir, path)
		out[rel] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestReplaceSection(t *testing.T) {
	file := filepath.Join(t.TempDir(), "doc.md")
	if err := os.WriteFile(file, []byte("a\n"+sectionBegin+"old\n"+sectionEnd+"b\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := replaceSection(file, "new\n"); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if want := "a\n" + sectionBegin + "new\n" + sectionEnd + "b\n"; string(got) != want {
		t.Errorf("document is %q, want %q", got, want)
	}
	if err := os.WriteFile(file, []byte("no markers\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if replaceSection(file, "new\n") == nil {
		t.Error("no error for a document without markers")
	}
}

// A process that has worked shows that it has.
func TestProcess(t *testing.T) {
	p, err := start("burner", filepath.Join(t.TempDir(), "log"), "sh", "-c", "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; echo done; exec sleep 60")
	if err != nil {
		t.Fatal(err)
	}
	defer p.stop()
	err = p.ready(t.Context(), func() error {
		text, err := os.ReadFile(p.log.Name())
		if err == nil && string(text) != "done\n" {
			err = fs.ErrNotExist
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	used, err := p.cpu()
	if err != nil || used <= 0 {
		t.Errorf("cpu = %v, %v; want more than none", used, err)
	}
	if err := p.resetPeak(); err != nil {
		t.Fatal(err)
	}
	if n, err := p.memory("VmHWM"); err != nil || n < 100<<10 || n > 100<<20 {
		t.Errorf("peak = %d, %v", n, err)
	}
}
