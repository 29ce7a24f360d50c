package main_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"time"
)

// A tarFile is a path and its content.
type tarFile struct{ name, content string }

// tarOf makes an archive. Writing to memory cannot fail.
func tarOf(files ...tarFile) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: f.name, Mode: 0o640, Size: int64(len(f.content)), ModTime: time.Unix(1500000000, 0), Uid: 7, Gid: 8}
		if err := w.WriteHeader(h); err != nil {
			panic(err)
		}
		if _, err := w.Write([]byte(f.content)); err != nil {
			panic(err)
		}
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return b.Bytes()
}

func tarGz(files ...tarFile) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(tarOf(files...)); err != nil {
		panic(err)
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return b.Bytes()
}
