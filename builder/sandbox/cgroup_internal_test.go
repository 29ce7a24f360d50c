package sandbox

import (
	"os"
	"path/filepath"
	"testing"
)

func TestLimitsSwap(t *testing.T) {
	for _, tc := range []struct {
		name  string
		files []string
		want  bool
	}{
		{"with swap", []string{"memory.max", "memory.swap.max"}, true},
		{"a kernel without swap", []string{"memory.max"}, false},
		{"nothing is known", nil, true},
	} {
		dir := t.TempDir()
		for _, name := range tc.files {
			if err := os.WriteFile(filepath.Join(dir, name), []byte("max"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got := limitsSwap(dir); got != tc.want {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
}
