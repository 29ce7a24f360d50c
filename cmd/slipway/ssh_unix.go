//go:build !windows

package main

import (
	"io"
	"net"
)

// defaultSocket is where an agent listens if the environment names none.
const defaultSocket = ""

func dialAgent(socket string) (io.ReadWriteCloser, error) {
	return net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
}
