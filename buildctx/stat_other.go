//go:build !linux && !darwin && !windows

package buildctx

import (
	"io/fs"
	"os"
)

const readFlags = os.O_RDONLY

func statStamp(_ *os.Root, _ string, fi fs.FileInfo) stamp { return newStamp(fi) }

func fileStamp(_ *os.File, fi fs.FileInfo) stamp { return newStamp(fi) }

func entryMode(fi fs.FileInfo) uint32 { return modeBits(fi.Mode()) }

func readXattrs(string, string) (map[string][]byte, error) { return nil, nil }
