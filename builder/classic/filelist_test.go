package classic_test

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/slipwayhq/slipway/buildctx"
	"github.com/slipwayhq/slipway/builder/classic"
)

func someFiles() *buildctx.Manifest {
	return &buildctx.Manifest{Entries: []buildctx.Entry{
		{Path: "a", Type: buildctx.TypeFile, Mode: 0o644, Size: 300, Digest: [32]byte{1, 2, 3, 4, 5, 6}},
		{Path: "a b\xff", Type: buildctx.TypeSymlink, Mode: 0o777, Link: "to"},
		{Path: "d", Type: buildctx.TypeDirectory, Mode: 0o1777},
		{Path: "d/e", Type: buildctx.TypeHardlink, Mode: 0o644, Link: "a"},
		{Path: "d/f", Type: buildctx.TypeFIFO},
	}}
}

func TestFileList(t *testing.T) {
	m := someFiles()
	got, err := classic.DecodeFiles(classic.EncodeFiles(m))
	if err != nil || fmt.Sprint(got.Entries) != fmt.Sprint(m.Entries) {
		t.Errorf("%v, %v; want %v", got, err, m)
	}
	long := &buildctx.Manifest{Entries: make([]buildctx.Entry, 200_001)}
	if got := classic.EncodeFiles(long); len(got) != 0 {
		t.Errorf("a list of %d bytes for too many files", len(got))
	}
	if _, err := classic.DecodeFiles(nil); err == nil {
		t.Error("no list reads back")
	}
}

// What is on the disk may be anything.
func FuzzFileList(f *testing.F) {
	f.Add(classic.EncodeFiles(someFiles()))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := classic.DecodeFiles(data)
		if err != nil {
			return
		}
		again, err := classic.DecodeFiles(classic.EncodeFiles(m))
		if err != nil || !bytes.Equal([]byte(fmt.Sprint(m.Entries)), []byte(fmt.Sprint(again.Entries))) {
			t.Fatalf("%v is %v after a round trip (%v)", m, again, err)
		}
	})
}

// BenchmarkFileList is what a build with 12 000 files pays when they changed.
func BenchmarkFileList(b *testing.B) {
	m := &buildctx.Manifest{}
	for i := range 12_000 {
		m.Entries = append(m.Entries, buildctx.Entry{Path: fmt.Sprintf("src/dir%03d/file%05d.go", i/100, i), Type: buildctx.TypeFile, Digest: [32]byte{byte(i), byte(i >> 8), byte(i * 7)}})
	}
	b.ReportAllocs()
	for b.Loop() {
		b.ReportMetric(float64(len(classic.EncodeFiles(m))), "bytes")
	}
}
