package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestRender(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"b.txt": "two\n", "a.txt": "one\n", "c.md": "not this\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	out := filepath.Join(dir, "out")
	if err := render(dir, out); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(out); string(got) != "one\ntwo\n" || err != nil {
		t.Errorf("rendered %q, %v; want both texts in order", got, err)
	}
}
