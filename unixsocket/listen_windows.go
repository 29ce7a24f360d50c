package unixsocket

import (
	"io/fs"
	"net"
)

func listen(addr *net.UnixAddr, _ fs.FileMode) (*net.UnixListener, error) {
	return net.ListenUnix("unix", addr)
}
