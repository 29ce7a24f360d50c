package main_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// buildCA is what RUN steps trust when they speak TLS.
const buildCA = "/etc/ssl/certs/ca-certificates.crt"

// A daemon is a slipwayd with a root of its own.
type daemon struct {
	t     testing.TB
	root  string
	grpc  string
	http  string
	token string
	args  []string
	env   []string

	process *exec.Cmd
	ended   chan struct{}
	exit    error
	network string // name of its sandbox network
	log     *output
}

// output collects what a process prints.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

func (o *output) reset() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.b.Reset()
}

// startDaemon starts a daemon that serves as mirror of Docker Hub, so that
// "FROM busybox" finds what [daemon.push] put there. When the test ends it is
// stopped, and must leave nothing.
func startDaemon(t testing.TB, args ...string) *daemon {
	t.Helper()
	d := newDaemon(t, args...)
	d.start()
	return d
}

func newDaemon(t testing.TB, args ...string) *daemon {
	t.Helper()
	need(t, "root", os.Geteuid() == 0)
	needCommand(t, "runc")
	d := &daemon{t: t, root: rootDir(t), grpc: freeAddr(t), http: freeAddr(t), log: &output{}}
	d.args = append([]string{"--root", d.root, "--grpc", d.grpc, "--http", d.http, "--registry-mirror", "docker.io=http://" + d.http}, args...)
	t.Cleanup(func() {
		d.stop()
		if t.Failed() && testing.Verbose() {
			t.Logf("log of the daemon:\n%s", d.log)
		}
	})
	return d
}

// rootDir is a directory whose path is short: sockets live there.
func rootDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp(bin, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("remove the daemon's root: %v", err)
		}
	})
	return dir
}

func freeAddr(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// launch runs slipwayd without waiting for it.
func (d *daemon) launch() {
	d.t.Helper()
	d.process = exec.Command(filepath.Join(bin, "slipwayd"), d.args...)
	d.process.Env = append(os.Environ(), d.env...)
	d.process.Stdout, d.process.Stderr = d.log, d.log
	// Ends with a test that dies; not in its process group, so that Ctrl-C lets
	// it end in order.
	d.process.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := d.process.Start(); err != nil {
		d.t.Fatal(err)
	}
	d.ended = make(chan struct{})
	go func() {
		d.exit = d.process.Wait()
		close(d.ended)
	}()
}

func (d *daemon) start() {
	d.t.Helper()
	before := strings.Count(d.log.String(), "slipwayd is ready")
	d.launch()
	poll(d.t, 30*time.Second, "the daemon to be ready", func() bool {
		select {
		case <-d.ended:
			d.t.Fatalf("slipwayd ended: %v\n%s", d.exit, d.log)
		default:
		}
		return strings.Count(d.log.String(), "slipwayd is ready") > before
	})
	token, err := os.ReadFile(filepath.Join(d.root, "admin.token"))
	if err != nil {
		d.t.Fatal(err)
	}
	d.token = strings.TrimSpace(string(token))
	d.network = sandboxNetwork(d.process.Process.Pid)
}

func (d *daemon) running() bool {
	if d.process == nil {
		return false
	}
	select {
	case <-d.ended:
		return false
	default:
		return true
	}
}

// signal sends sig and waits for the end.
func (d *daemon) signal(sig syscall.Signal) {
	d.t.Helper()
	if err := d.process.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		d.t.Fatal(err)
	}
	select {
	case <-d.ended:
	case <-time.After(60 * time.Second):
		_ = d.process.Process.Kill()
		d.t.Fatalf("the daemon did not end within a minute of %v\n%s", sig, d.log)
	}
}

// dump ends a daemon that hangs and makes it log what its goroutines do.
func (d *daemon) dump() {
	if d.running() {
		_ = d.process.Process.Signal(syscall.SIGQUIT)
		<-d.ended
	}
}

// stop ends the daemon and checks that nothing is left of it.
func (d *daemon) stop() {
	d.t.Helper()
	if !d.running() {
		return
	}
	d.signal(syscall.SIGTERM)
	if d.exit != nil {
		d.t.Errorf("slipwayd: %v\n%s", d.exit, d.log)
	}
	d.checkNothingLeft()
}

// checkNothingLeft fails the test when mounts, containers, links or cgroups of
// the daemon exist although no build runs.
func (d *daemon) checkNothingLeft() {
	d.t.Helper()
	for _, left := range d.leftovers() {
		d.t.Errorf("left behind: %s", left)
	}
}

// spareLinks are what an idle daemon keeps ready for the next steps.
const spareLinks = 2

func (d *daemon) leftovers() []string {
	var left []string
	for _, m := range mountsBelow(d.root) {
		left = append(left, "mount "+m)
	}
	left = append(left, d.containers()...)
	if d.network == "" {
		return left
	}
	links, _ := net.Interfaces()
	spare := 0
	for _, l := range links {
		if strings.HasPrefix(l.Name, "sw"+d.network) || !d.running() && l.Name == "slipway-"+d.network {
			if spare++; !d.running() || spare > spareLinks {
				left = append(left, "network interface "+l.Name)
			}
		}
	}
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} { // version 2 and 1
		groups, _ := filepath.Glob(root + "/slipway-" + d.network + "/*/cgroup.procs")
		for _, g := range groups {
			left = append(left, "cgroup "+g)
		}
	}
	return left
}

// containers are the states that runc keeps.
func (d *daemon) containers() []string {
	var left []string
	states, _ := os.ReadDir(filepath.Join(d.root, "sandbox", "runc"))
	for _, s := range states {
		left = append(left, "container "+s.Name())
	}
	return left
}

func mountsBelow(dir string) []string {
	var below []string
	mounts, _ := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], dir+"/") {
			below = append(below, f[1])
		}
	}
	return below
}

// sandboxNetwork returns the name that a process's sandbox network has, which
// is part of the names of its links; "" if it has none.
func sandboxNetwork(pid int) string {
	owned := map[string]bool{}
	fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil && strings.HasPrefix(to, "socket:[") {
			owned[strings.Trim(to, "socket:[]")] = true
		}
	}
	sockets, _ := os.ReadFile("/proc/net/unix")
	for line := range strings.Lines(string(sockets)) {
		f := strings.Fields(line)
		if len(f) == 8 && owned[f[6]] {
			if name, ok := strings.CutPrefix(f[7], "@slipway-sandbox-"); ok {
				return strings.TrimRight(name, "@")
			}
		}
	}
	return ""
}

// metric returns the sum of the samples whose name begins as given, labels
// included.
func (d *daemon) metric(prefix string) float64 {
	d.t.Helper()
	resp, err := http.Get("http://" + d.http + "/metrics")
	if err != nil {
		d.t.Fatal(err)
	}
	defer resp.Body.Close()
	sum := 0.0
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), " ")
		if strings.HasPrefix(name, prefix) {
			v, err := strconv.ParseFloat(value, 64)
			if err != nil {
				d.t.Fatalf("metric %s: %v", name, err)
			}
			sum += v
		}
	}
	return sum
}

// peakMemory is the most that the daemon has had resident.
func (d *daemon) peakMemory() int64 {
	d.t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.process.Process.Pid))
	if err != nil {
		d.t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if kb, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, err := strconv.ParseInt(strings.Fields(kb)[0], 10, 64)
			if err != nil {
				d.t.Fatal(err)
			}
			return n << 10
		}
	}
	d.t.Fatal("the kernel does not tell VmHWM")
	return 0
}

// poll waits until done, and fails the test after the limit.
func poll(t testing.TB, limit time.Duration, what string, done func() bool) {
	t.Helper()
	deadline := time.Now().Add(limit)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v in vain for %s", limit, what)
		}
		<-tick.C
	}
}

// diskUse sums the files below dir, hard links once.
func diskUse(t testing.TB, dir string) int64 {
	t.Helper()
	var sum int64
	seen := map[uint64]bool{}
	err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if st := info.Sys().(*syscall.Stat_t); !seen[st.Ino] {
			seen[st.Ino] = true
			sum += info.Size()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return sum
}
