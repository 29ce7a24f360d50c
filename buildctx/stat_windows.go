package buildctx

import (
	"io/fs"
	"os"
	"unsafe"

	"golang.org/x/sys/windows"
)

const readFlags = os.O_RDONLY

// statStamp opens the file, since Windows tells change time and index only of
// open ones.
func statStamp(dir *os.Root, name string, fi fs.FileInfo) stamp {
	f, err := dir.Open(name)
	if err != nil {
		return newStamp(fi) // reading it will tell why
	}
	defer f.Close()
	return fileStamp(f, fi)
}

// basicInfo is FILE_BASIC_INFO.
type basicInfo struct {
	creation, access, write, change int64 // in 100 ns since 1601
	attributes                      uint32
	_                               uint32
}

func fileStamp(f *os.File, fi fs.FileInfo) stamp {
	s := newStamp(fi)
	var (
		basic  basicInfo
		handle windows.ByHandleFileInformation
	)
	h := windows.Handle(f.Fd())
	if windows.GetFileInformationByHandleEx(h, windows.FileBasicInfo, (*byte)(unsafe.Pointer(&basic)), uint32(unsafe.Sizeof(basic))) != nil ||
		windows.GetFileInformationByHandle(h, &handle) != nil {
		return s
	}
	change := windows.Filetime{LowDateTime: uint32(basic.change), HighDateTime: uint32(basic.change >> 32)}
	s.ctime = change.Nanoseconds()
	s.inode = uint64(handle.FileIndexHigh)<<32 | uint64(handle.FileIndexLow)
	s.device = uint64(handle.VolumeSerialNumber)
	s.links = 1 // hard links are sent as files of their own
	s.known = true
	return s
}

// entryMode gives everything the execute bit and nobody but the owner the
// write bit, since Windows has neither.
func entryMode(fs.FileInfo) uint32 { return 0o755 }

func readXattrs(string, string) (map[string][]byte, error) { return nil, nil }
