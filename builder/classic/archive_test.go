package classic_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/slipwayhq/slipway/builder/failure"
)

// compressed returns what a program makes of data.
func (w *world) compressed(data []byte, program string, args ...string) string {
	w.tb.Helper()
	cmd := exec.CommandContext(w.tb.Context(), program, args...)
	cmd.Stdin, cmd.Stderr = bytes.NewReader(data), os.Stderr
	out, err := cmd.Output()
	w.must(err)
	return string(out)
}

// smallTar is an archive of one file with a mode, owner and time of its own.
func (w *world) smallTar() []byte {
	w.tb.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	w.must(tw.WriteHeader(&tar.Header{Name: "d/f", Mode: 0o751, Uid: 12, Gid: 34, Size: 5, ModTime: time.Unix(1500000000, 0)}))
	_, err := io.WriteString(tw, "hello")
	w.must(errors.Join(err, tw.Close()))
	return b.Bytes()
}

func gzipped(w *world, data []byte) []byte {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, err := z.Write(data)
	w.must(errors.Join(err, z.Close()))
	return b.Bytes()
}

// Archives are unpacked whatever compressed them, with what their headers say.
func TestAddCompressed(t *testing.T) {
	w := newWorld(t)
	dir, plain := t.TempDir(), w.smallTar()
	z, err := zstd.NewWriter(nil)
	w.must(err)
	w.write(dir, map[string]string{
		"xz": w.compressed(plain, "xz", "-c"), "xz9": w.compressed(plain, "xz", "-9ec", "--check=sha256"),
		"two-streams": w.compressed(plain[:700], "xz", "-c") + w.compressed(plain[700:], "xz", "-c", "--check=crc32"),
		"bz":          w.compressed(plain, "bzip2", "-c"), "zst": string(z.EncodeAll(plain, nil)), "gz": string(gzipped(w, plain)),
		"text.xz": w.compressed([]byte("no archive"), "xz", "-c"), "cut.xz": "\xfd7zXZ\x00rest", "after": "no archive either",
	})
	var file strings.Builder
	file.WriteString("FROM fid/base:1\n")
	unpacked := []string{"xz", "xz9", "two-streams", "bz", "zst", "gz"}
	for _, name := range unpacked {
		file.WriteString("ADD " + name + " /" + name + "/\n")
	}
	file.WriteString("ADD text.xz cut.xz /c/\nADD xz after <<EOF /mixed/\ntext\nEOF\n")
	img := w.build(t.Context(), request{dir: dir, dockerfile: file.String()}).pull()
	for _, name := range unpacked {
		n := img.tree["/"+name+"/d/f"]
		if n.Type != "f" || n.Mode != "0751" || n.Own != "12:34" || n.Size != 5 || n.MTime != "1500000000" {
			t.Errorf("of %s: %+v", name, n)
		}
	}
	for _, p := range []string{"/c/text.xz", "/c/cut.xz", "/mixed/d/f", "/mixed/after", "/mixed/EOF"} {
		if img.tree[p].Type != "f" {
			t.Errorf("%s is %+v", p, img.tree[p])
		}
	}
}

// A dictionary is allocated before a byte is read: what is not sized like one
// of xz -9 is refused.
func TestAddLargeDictionary(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	w.write(dir, map[string]string{"a.txz": w.compressed(w.smallTar(), "xz", "-c", "--lzma2=dict=128MiB")})
	o := w.build(t.Context(), request{dir: dir, dockerfile: "FROM scratch\nENV a=b\nADD a.txz /"})
	e := o.Error
	if e.GetCode() != failure.NotSupported || e.GetLine() != 3 || e.GetHint() == "" || !strings.Contains(e.GetMessage(), "a.txz: its xz dictionary") {
		t.Errorf("%v", e)
	}
}

// An archive that unpacks to more than the limit is stopped before its content
// is on the disk.
func TestAddBomb(t *testing.T) {
	w := newWorld(t)
	w.max = 16 << 20
	pr, pw := io.Pipe()
	go func() {
		tw := tar.NewWriter(pw)
		size := int64(3 << 30)
		err := tw.WriteHeader(&tar.Header{Name: "zeros", Mode: 0o644, Size: size})
		if err == nil {
			_, err = io.CopyN(tw, zeros{}, 32<<20) // the rest is never read
		}
		pw.CloseWithError(err)
	}()
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "xz", "-1c")
	out, err := os.Create(filepath.Join(dir, "bomb"))
	w.must(err)
	cmd.Stdin, cmd.Stdout = pr, out
	w.must(errors.Join(cmd.Run(), out.Close()))
	largest := int64(0)
	o := w.build(t.Context(), request{dir: dir, dockerfile: "FROM fid/base:1\nRUN true\nADD bomb /x/"})
	w.must(filepath.Walk(w.root, func(_ string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() {
			largest = max(largest, info.Size())
		}
		return nil
	}))
	if e := o.Error; e.GetCode() != failure.TooLarge || e.GetLine() != 3 || !strings.Contains(e.GetMessage(), "/x/zeros") {
		t.Errorf("%v", e)
	}
	if largest > 24<<20 { // the database has 16 MiB
		t.Errorf("a file of %d bytes was written", largest)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// A downloaded archive stays one unless the instruction says otherwise.
func TestAddUnpack(t *testing.T) {
	w := newWorld(t)
	dir, packed := t.TempDir(), gzipped(w, w.smallTar())
	w.write(dir, map[string]string{"local.tgz": string(packed)})
	web := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/note" {
			io.WriteString(rw, "text")
			return
		}
		_, _ = rw.Write(packed)
	}))
	defer web.Close()
	text := "FROM fid/base:1\nARG U=" + web.URL + "\nADD $U/a.tgz /plain/\nADD --unpack=true $U/a.tgz /unpacked/\nADD --unpack=false local.tgz $U/a.tgz /kept/\n" +
		"ADD --unpack $U/note $U/a.tgz local.tgz /both/\n"
	first := w.build(t.Context(), request{dir: dir, dockerfile: text})
	img := first.pull()
	for _, p := range []string{"/plain/a.tgz", "/unpacked/d/f", "/kept/local.tgz", "/kept/a.tgz", "/both/note", "/both/d/f"} {
		if img.tree[p].Type != "f" {
			t.Errorf("%s is %+v", p, img.tree[p])
		}
	}
	if n := img.tree["/unpacked/d/f"]; n.Own != "12:34" || n.Mode != "0751" {
		t.Errorf("unpacked: %+v", n)
	}
	again := w.build(t.Context(), request{dir: dir, dockerfile: text})
	again.pull()
	if got := again.cached(); got != "+++++" {
		t.Errorf("again: %s", got)
	}
}

// base64Of is how text begins in events that are printed as JSON.
func base64Of(text string) string {
	return base64.StdEncoding.EncodeToString([]byte(text))[:len(text)/3*4]
}
