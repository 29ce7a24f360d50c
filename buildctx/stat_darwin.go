package buildctx

import (
	"io/fs"
	"os"
	"syscall"
)

// readFlags open a file for reading that may have become a FIFO meanwhile.
const readFlags = os.O_RDONLY | syscall.O_NONBLOCK

func statStamp(_ *os.Root, _ string, fi fs.FileInfo) stamp { return infoStamp(fi) }

func fileStamp(_ *os.File, fi fs.FileInfo) stamp { return infoStamp(fi) }

func infoStamp(fi fs.FileInfo) stamp {
	s := newStamp(fi)
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		s.ctime, s.inode, s.device, s.links = st.Ctimespec.Nano(), st.Ino, uint64(st.Dev), uint64(st.Nlink)
		s.known = true
	}
	return s
}

func entryMode(fi fs.FileInfo) uint32 { return modeBits(fi.Mode()) }

// readXattrs finds none: the attributes of macOS mean nothing in an image.
func readXattrs(string, string) (map[string][]byte, error) { return nil, nil }
