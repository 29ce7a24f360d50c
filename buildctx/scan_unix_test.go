//go:build linux || darwin

package buildctx_test

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/slipwayhq/slipway/buildctx"
)

func TestScanKeepsFIFOs(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o640); err != nil {
		t.Fatal(err)
	}
	if e := entry(t, scan(t, dir, nil).Manifest, "pipe"); e.Type != buildctx.TypeFIFO || e.Mode != 0o640 {
		t.Errorf("got %+v", e)
	}
}

// TestScanFileBecomesFIFO must not wait for a writer.
func TestScanFileBecomesFIFO(t *testing.T) {
	dir := t.TempDir()
	writeTree(t, dir, map[string]string{"victim": "x"})
	path := filepath.Join(dir, "victim")
	_, err := buildctx.Scan(t.Context(), dir, &buildctx.ScanOptions{Progress: func(p buildctx.ScanProgress) {
		if p.Stale == 1 && p.Hashed == 0 {
			if err := errors.Join(os.Remove(path), syscall.Mkfifo(path, 0o600)); err != nil {
				t.Error(err)
			}
		}
	}})
	if !errors.Is(err, buildctx.ErrChanged) {
		t.Errorf("error %v", err)
	}
}
