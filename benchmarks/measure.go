package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// A sample is one deploy, measured from outside: the client's wall time, and
// the processor time and memory of everything that works for it.
type sample struct {
	Round  int                `json:"round"`
	Wall   float64            `json:"wall_s"`
	CPU    float64            `json:"cpu_s"`      // all processes: client, daemon with its RUN steps, registry
	CPUOf  map[string]float64 `json:"cpu_of_s"`   // by process
	Peak   int64              `json:"peak_bytes"` // resident memory of the daemon during the deploy
	Sent   int64              `json:"sent_bytes"` // file content that the client sent, uncompressed
	Phases map[string]float64 `json:"phases_s,omitempty"`
	Load   float64            `json:"load"` // of the machine as the deploy began
}

// settle lets what ended before have no part in what is measured next.
func settle() {
	syscall.Sync()
	time.Sleep(300 * time.Millisecond)
}

// measure runs a client beside the daemons that work for it; the first one is
// the builder. It returns what the client printed on both outputs.
func measure(ctx context.Context, cmd *exec.Cmd, daemons []*process) (sample, []byte, []byte, error) {
	s := sample{CPUOf: map[string]float64{}, Load: loadAverage()}
	before := make([]time.Duration, len(daemons))
	for i, d := range daemons {
		var err error
		if before[i], err = d.cpu(); err != nil {
			return s, nil, nil, fmt.Errorf("%s: %w", d.name, err)
		}
	}
	if err := daemons[0].resetPeak(); err != nil {
		return s, nil, nil, err
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	begun := time.Now()
	err := cmd.Run()
	s.Wall = time.Since(begun).Seconds()
	if err != nil {
		return s, nil, nil, errors.Join(fmt.Errorf("%s: %w\n%s\n%s", cmd.Args[0], err, tail(stdout.Bytes()), tail(stderr.Bytes())), context.Cause(ctx))
	}
	time.Sleep(200 * time.Millisecond) // what the daemon still does belongs to the deploy
	s.CPUOf["client"] = (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()
	s.CPU = s.CPUOf["client"]
	for i, d := range daemons {
		after, err := d.cpu()
		if err != nil {
			return s, nil, nil, fmt.Errorf("%s: %w", d.name, err)
		}
		s.CPUOf[d.name] += (after - before[i]).Seconds()
		s.CPU += (after - before[i]).Seconds()
	}
	s.Peak, err = daemons[0].peak()
	return s, stdout.Bytes(), stderr.Bytes(), err
}

func loadAverage() float64 {
	var load float64
	text, err := os.ReadFile("/proc/loadavg")
	if err == nil {
		_, _ = fmt.Sscan(string(text), &load)
	}
	return load
}
