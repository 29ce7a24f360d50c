package main

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
)

// benchTree is a build context that bench generates. The same seed makes the
// same tree, another seed one that has no content in common with it.
type benchTree struct {
	Files int   // at least benchFiles
	Bytes int64 // in all of them
	Seed  uint64
	Base  string // image to begin with and to run a step in; "" for an empty one
}

// A tree has two layers: lower has most of the bytes in few files, as a runtime
// has, upper the rest in many, as an application has.
const (
	benchFiles = 10 // the fewest
	lowerShare = 20 // of so many files one is in lower
	lowerBytes = 0.8
)

const (
	scratchDockerfile = `FROM scratch
COPY lower /bench/lower
COPY upper /bench/upper
`
	baseDockerfile = `FROM %s
COPY lower /bench/lower
RUN find /bench/lower -type f >/bench/list
COPY upper /bench/upper
`
)

// write makes the tree in dir, which is empty.
func (t *benchTree) write(dir string) error {
	dockerfile := scratchDockerfile
	if t.Base != "" {
		dockerfile = fmt.Sprintf(baseDockerfile, t.Base)
	}
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o644); err != nil {
		return err
	}
	words := newWords(t.Seed)
	lower, bytes := max(1, t.Files/lowerShare), int64(float64(t.Bytes)*lowerBytes)
	if err := words.fill(filepath.Join(dir, "lower"), lower, bytes); err != nil {
		return err
	}
	return words.fill(filepath.Join(dir, "upper"), t.Files-lower, t.Bytes-bytes)
}

// change edits a file of the upper layer. Each n makes another edit.
func (t *benchTree) change(dir string, n int) error {
	f, err := os.OpenFile(benchFile(filepath.Join(dir, "upper"), 0), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "change %d of %d\n", n, t.Seed)
	if e := f.Close(); err == nil {
		err = e
	}
	return err
}

func benchFile(dir string, i int) string {
	return filepath.Join(dir, fmt.Sprintf("%02d", i%50), fmt.Sprintf("%06d.txt", i))
}

// words are text that compresses about as programs do, and never repeats.
type words struct {
	random *rand.ChaCha8
	list   [1024]string
	bits   uint64 // random ones that are left
	left   int
}

func newWords(seed uint64) *words {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	w := &words{random: rand.NewChaCha8(key)}
	for i := range w.list {
		word := make([]byte, 3+w.random.Uint64()%9)
		for j := range word {
			word[j] = byte('a' + w.random.Uint64()%26)
		}
		w.list[i] = string(word) + " "
	}
	return w
}

func (w *words) next() string {
	if w.left == 0 {
		w.bits, w.left = w.random.Uint64(), 6
	}
	word := w.list[w.bits%1024]
	w.bits >>= 10
	w.left--
	return word
}

// fill writes so many bytes into so many files, each twice as large as the
// middle one or smaller.
func (w *words) fill(dir string, files int, bytes int64) error {
	for i := range files {
		left := int64(files - i)
		n := bytes / left
		if left > 1 {
			n = min(bytes, n*int64(50+w.random.Uint64()%101)/100)
		}
		bytes -= n
		if err := w.file(benchFile(dir, i), n); err != nil {
			return err
		}
	}
	return nil
}

func (w *words) file(name string, size int64) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	out := bufio.NewWriterSize(f, 64<<10)
	for size > 0 && err == nil {
		word := w.next()
		word = word[:min(int64(len(word)), size)]
		size -= int64(len(word))
		_, err = io.WriteString(out, word)
	}
	if e := out.Flush(); err == nil {
		err = e
	}
	if e := f.Close(); err == nil {
		err = e
	}
	return err
}
