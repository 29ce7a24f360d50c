package buildctx

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// readFlags open a file for reading that may have become a FIFO meanwhile.
const readFlags = os.O_RDONLY | syscall.O_NONBLOCK

func statStamp(_ *os.Root, _ string, fi fs.FileInfo) stamp { return infoStamp(fi) }

func fileStamp(_ *os.File, fi fs.FileInfo) stamp { return infoStamp(fi) }

func infoStamp(fi fs.FileInfo) stamp {
	s := newStamp(fi)
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		s.ctime, s.inode, s.device, s.links = st.Ctim.Nano(), st.Ino, uint64(st.Dev), uint64(st.Nlink) //nolint:unconvert // types differ by architecture
		s.known = true
	}
	return s
}

func entryMode(fi fs.FileInfo) uint32 { return modeBits(fi.Mode()) }

// capability is the one attribute that contexts carry, as with Docker's
// client. Others are the user's desktop's affair and would make the same tree
// look different on every machine.
const capability = "security.capability"

func readXattrs(dir, path string) (map[string][]byte, error) {
	var buf [64]byte // no version of the attribute is longer than 24
	n, err := unix.Lgetxattr(filepath.Join(dir, path), capability, buf[:])
	switch {
	case errors.Is(err, unix.ENODATA), errors.Is(err, unix.ENOTSUP), errors.Is(err, unix.EPERM):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("read %s of %s: %w", capability, Quote(path), err)
	}
	return map[string][]byte{capability: append([]byte(nil), buf[:n]...)}, nil
}
