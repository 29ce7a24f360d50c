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
	"slices"
	"strings"
)

// scaled is n at a scale, but not less than least.
func scaled(n int, scale float64, least int) int { return max(least, int(float64(n)*scale)) }

// goroot is the Go tree of this machine.
func goroot(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return "", fmt.Errorf("go env GOROOT: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
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

// writeFiles writes a small tree, by path.
func writeFiles(dir string, files map[string]string) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	for path, text := range files {
		if err := write(filepath.Join(dir, path), strings.NewReader(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// rewrite replaces a text in a file, once. It fails if the text is not there.
func rewrite(file, from, to string) error {
	old, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if !bytes.Contains(old, []byte(from)) {
		return fmt.Errorf("%s has no %q", file, from)
	}
	return os.WriteFile(file, bytes.Replace(old, []byte(from), []byte(to), 1), 0o644)
}

// randomBytes are the same for the same seed.
func randomBytes(seed uint64, size int64) io.Reader {
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	return io.LimitReader(rand.NewChaCha8(key), size)
}

// blockSize is what contents are mixed from.
const blockSize = 64 << 10

// fill makes a tree of exactly so many files and bytes: files of the given
// trees while both last, then files of their contents' blocks in another
// order, which compress as the rest does but are equal to none of it.
func fill(dir string, trees []string, files int, size int64) error {
	var blocks [][]byte
	spare := min(40, files/2) // files left for what makes up the size
	for _, tree := range trees {
		to := filepath.Join(dir, filepath.Base(tree))
		err := filepath.WalkDir(tree, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fits := files > spare && int64(len(data)) <= size
			for rest := data; (fits || len(blocks) == 0) && len(rest) >= blockSize && len(blocks) < 4096; rest = rest[blockSize:] {
				blocks = append(blocks, rest[:blockSize])
			}
			if !fits {
				return nil
			}
			info, err := d.Info()
			if err != nil {
				return err
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
		for have := int64(0); have < n; have += blockSize {
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
