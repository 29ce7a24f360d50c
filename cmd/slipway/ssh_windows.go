package main

import (
	"io"
	"net"
	"os"
	"strings"
)

// defaultSocket is where an agent listens if the environment names none.
const defaultSocket = `\\.\pipe\openssh-ssh-agent`

func dialAgent(socket string) (io.ReadWriteCloser, error) {
	if strings.HasPrefix(socket, `\\.\pipe\`) {
		return os.OpenFile(socket, os.O_RDWR, 0)
	}
	return net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
}
