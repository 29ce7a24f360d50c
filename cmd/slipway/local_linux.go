package main

import (
	"os/exec"
	"syscall"
)

// alone keeps the terminal's signals from a child, and has it end when this
// process is killed.
func alone(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}
