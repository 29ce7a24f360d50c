package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A process is a daemon under test.
type process struct {
	name string
	cmd  *exec.Cmd
	log  *os.File
	done chan struct{} // closed when it has ended
}

// start runs a daemon, its output in the file log.
func start(name, log, bin string, args ...string) (*process, error) {
	out, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(bin, args...) //nolint:noctx // stop ends it, in its own way
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for us; we tell it
	if err := cmd.Start(); err != nil {
		_ = out.Close()
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &process{name: name, cmd: cmd, log: out, done: make(chan struct{})}
	go func() {
		_ = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// ready waits until probe succeeds.
func (p *process) ready(ctx context.Context, probe func() error) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		err := probe()
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("%s ended:\n%s", p.name, p.tail())
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w\n%s", p.name, err, p.tail())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (p *process) tail() []byte {
	text, _ := os.ReadFile(p.log.Name())
	return tail(text)
}

// stop ends the daemon: asked first, then killed.
func (p *process) stop() {
	if p == nil {
		return
	}
	defer func() { _ = p.log.Close() }()
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(20 * time.Second):
		logf("%s does not stop, killed", p.name)
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// cpu is what the daemon and the children it has waited for have used.
func (p *process) cpu() (time.Duration, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	// The name is in parentheses and may hold anything; fields count from after it.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	const utime, cstime = 14 - 3, 17 - 3
	if len(fields) <= cstime {
		return 0, errors.New("short /proc/PID/stat")
	}
	var ticks int64
	for _, f := range fields[utime : cstime+1] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / 100, nil // USER_HZ
}

// resetPeak makes VmHWM count from here.
func (p *process) resetPeak() error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", p.cmd.Process.Pid), []byte("5"), 0)
}

// memory is a field of the process's status, in bytes: VmHWM is the highest
// resident memory since resetPeak, VmRSS that of now.
func (p *process) memory(field string) (int64, error) {
	kb, ok := strings.CutSuffix(procField(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid), field), " kB")
	if !ok {
		return 0, errors.New("no " + field)
	}
	n, err := strconv.ParseInt(kb, 10, 64)
	return n * 1024, err
}

// written is how many bytes the process has written to disks.
func (p *process) written() (int64, error) {
	var n int64
	_, err := fmt.Sscan(procField(fmt.Sprintf("/proc/%d/io", p.cmd.Process.Pid), "write_bytes"), &n)
	return n, err
}

// freePort finds a loopback address that nobody listens on.
func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // loopback
	if err != nil {
		return "", err
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String(), nil
}

func tail(text []byte) []byte {
	const most = 4000
	if len(text) > most {
		return text[len(text)-most:]
	}
	return text
}
