package main_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
)

// TestCopyIsWrittenOnce deploys files that nothing runs on: they are written to
// the disk as contents and as the blob of their layer, which does not compress,
// and neither unpacked nor as a tar.
func TestCopyIsWrittenOnce(t *testing.T) {
	t.Parallel()
	d := startDaemon(t)
	dir := dockerfile("FROM scratch", "COPY few /few", "COPY many /many").write(t)
	writeRandom(t, dir+"/few", 3, 3<<20)
	writeRandom(t, dir+"/many", 400, 20<<10)
	before := d.written()
	r := d.client().deploy("written", dir)
	written := d.written() - before
	if r.Context.SentBytes < 16<<20 || r.CompressedBytes < r.Context.SentBytes {
		t.Fatalf("%d bytes sent, layers of %d bytes: not what this test is about", r.Context.SentBytes, r.CompressedBytes)
	}
	need(t, "a temporary directory on a disk: SQL and logs are not counted elsewhere", written > 0)
	once := r.Context.SentBytes + r.CompressedBytes
	if slack := r.Context.SentBytes / 4; written < once || written > once+slack {
		t.Errorf("%d bytes written; the contents have %d and the layers %d, %d together and at most %d more", written, r.Context.SentBytes, r.CompressedBytes, once, slack)
	}
}

// writeRandom makes files that do not compress.
func writeRandom(t testing.TB, dir string, files, size int) {
	t.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	random := rand.NewChaCha8([32]byte{})
	data := make([]byte, size)
	for i := range files {
		_, _ = random.Read(data)
		writeFile(t, dir, strconv.Itoa(i), string(data))
	}
}

// written is what the daemon has written to disks, as the kernel counts it: by
// pages, once they are dirty.
func (d *daemon) written() int64 {
	d.t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", d.process.Process.Pid))
	if err != nil {
		d.t.Fatal(err)
	}
	for line := range strings.Lines(string(stat)) {
		if text, ok := strings.CutPrefix(line, "write_bytes: "); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
			if err != nil {
				d.t.Fatal(err)
			}
			return n
		}
	}
	d.t.Fatal("the kernel does not tell write_bytes")
	return 0
}
