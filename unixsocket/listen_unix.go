//go:build !windows

package unixsocket

import (
	"io/fs"
	"net"
	"syscall"
)

func listen(addr *net.UnixAddr, mode fs.FileMode) (*net.UnixListener, error) {
	old := syscall.Umask(int(^mode & fs.ModePerm))
	defer syscall.Umask(old)
	return net.ListenUnix("unix", addr)
}
