package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime/debug"
	"syscall"
	"time"
)

// A sample is one run of a scenario, measured from outside: the client's wall
// time, and the processor time and memory of everything that works for it.
type sample struct {
	Round  int                `json:"round"`
	Wall   float64            `json:"wall_s"`
	CPU    float64            `json:"cpu_s"`                  // all processes: client, daemon with its RUN steps, registry
	CPUOf  map[string]float64 `json:"cpu_of_s"`               // by process
	Peak   int64              `json:"peak_bytes"`             // highest resident memory of the builder, or of a client that does it all
	After  int64              `json:"after_bytes,omitempty"`  // resident memory of the builder when the client has ended
	Sent   int64              `json:"sent_bytes"`             // file content that the client sent, uncompressed; -1 if nobody knows
	Pushed int64              `json:"pushed_bytes,omitempty"` // what went to the registry
	Phases map[string]float64 `json:"phases_s,omitempty"`
	Load   float64            `json:"load"` // of the machine as the deploy began
}

// unknown stands for bytes that a tool does not tell of.
const unknown = -1

// settle lets what ended before have no part in what is measured next.
func settle() {
	syscall.Sync()
	time.Sleep(300 * time.Millisecond)
}

// A gauge is what is measured beside a client.
type gauge struct {
	daemons []*process // that work for it; the first one is the builder
	alone   bool       // the client itself does the builder's work
	sink    *process   // the registry that is pushed to; nil if the tool tells what it sent
}

// measure runs a client. It returns what the client printed on both outputs.
func (g gauge) measure(ctx context.Context, cmd *exec.Cmd) (sample, []byte, []byte, error) {
	s := sample{CPUOf: map[string]float64{}, Load: loadAverage()}
	before, err := g.begin()
	if err != nil {
		return s, nil, nil, err
	}
	stored, err := g.stored()
	if err != nil {
		return s, nil, nil, err
	}
	if g.alone {
		forget()
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	begun := time.Now()
	err = cmd.Run()
	s.Wall = time.Since(begun).Seconds()
	if err != nil {
		return s, nil, nil, errors.Join(fmt.Errorf("%s: %w\n%s\n%s", cmd.Args[0], err, tail(stdout.Bytes()), tail(stderr.Bytes())), context.Cause(ctx))
	}
	time.Sleep(200 * time.Millisecond) // what the daemon still does belongs to the deploy
	now, err := g.stored()
	if err != nil {
		return s, nil, nil, err
	}
	s.Pushed = now - stored
	s.CPUOf["client"] = (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()
	s.CPU = s.CPUOf["client"]
	if err := g.end(&s, before); err != nil {
		return s, nil, nil, err
	}
	if usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok && g.alone {
		s.Peak = usage.Maxrss * 1024
	}
	return s, stdout.Bytes(), stderr.Bytes(), nil
}

// begin reads the processor times, and makes the peak count from here.
func (g gauge) begin() ([]time.Duration, error) {
	before := make([]time.Duration, len(g.daemons))
	for i, d := range g.daemons {
		var err error
		if before[i], err = d.cpu(); err != nil {
			return nil, fmt.Errorf("%s: %w", d.name, err)
		}
	}
	if g.alone || len(g.daemons) == 0 {
		return before, nil
	}
	return before, g.daemons[0].resetPeak()
}

// end adds what the daemons took since begin.
func (g gauge) end(s *sample, before []time.Duration) error {
	for i, d := range g.daemons {
		after, err := d.cpu()
		if err != nil {
			return fmt.Errorf("%s: %w", d.name, err)
		}
		s.CPUOf[d.name] += (after - before[i]).Seconds()
		s.CPU += (after - before[i]).Seconds()
	}
	if g.alone || len(g.daemons) == 0 {
		return nil
	}
	var err error
	if s.Peak, err = g.daemons[0].memory("VmHWM"); err != nil {
		return err
	}
	s.After, err = g.daemons[0].memory("VmRSS")
	return err
}

// stored is what the registry has written to its disk, which is what it got.
func (g gauge) stored() (int64, error) {
	if g.sink == nil {
		return 0, nil
	}
	return g.sink.written()
}

// forget makes this program small. A client's peak begins with that of the
// program that starts it.
func forget() {
	debug.FreeOSMemory()
	_ = os.WriteFile("/proc/self/clear_refs", []byte("5"), 0)
}

func loadAverage() float64 {
	var load float64
	text, err := os.ReadFile("/proc/loadavg")
	if err == nil {
		_, _ = fmt.Sscan(string(text), &load)
	}
	return load
}
