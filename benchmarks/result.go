package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"time"
)

// A result is a whole run, as the JSON file has it.
type result struct {
	Begun      time.Time                      `json:"begun"`
	Ended      time.Time                      `json:"ended"`
	Runs       int                            `json:"runs"`
	Machine    machine                        `json:"machine"`
	Versions   map[string]string              `json:"versions"`
	Workload   *workload                      `json:"workload"`
	Compressed map[string]int64               `json:"compressed_bytes"` // all layers of A's image, base included, by contender
	Samples    map[string]map[string][]sample `json:"samples"`          // by scenario and contender
}

type machine struct {
	CPU    string  `json:"cpu"`
	Cores  int     `json:"cores"`
	Memory int64   `json:"memory_bytes"`
	Kernel string  `json:"kernel"`
	Load   float64 `json:"load_at_begin"`
}

func newResult(o options, w *workload) *result {
	r := &result{
		Begun: time.Now().UTC(), Runs: o.runs, Machine: thisMachine(), Workload: w, Versions: versions(),
		Compressed: map[string]int64{}, Samples: map[string]map[string][]sample{},
	}
	for _, s := range scenarios {
		r.Samples[s.name] = map[string][]sample{}
	}
	return r
}

func (r *result) add(scenario, contender string, s sample) {
	r.Samples[scenario][contender] = append(r.Samples[scenario][contender], s)
}

// versions are those of the peers, by the module that this program is built from.
func versions() map[string]string {
	out := map[string]string{"go": runtime.Version()}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return out
	}
	for _, m := range info.Deps {
		if m.Path == "github.com/google/go-containerregistry" {
			out["go-containerregistry"] = m.Version
		}
	}
	return out
}

func thisMachine() machine {
	m := machine{Cores: runtime.NumCPU(), Load: loadAverage()}
	m.CPU = procField("/proc/cpuinfo", "model name")
	var kb int64
	_, _ = fmt.Sscan(procField("/proc/meminfo", "MemTotal"), &kb)
	m.Memory = kb * 1024
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	m.Kernel = strings.TrimSpace(string(kernel))
	return m
}

// procField returns the first value of a "name: value" file.
func procField(file, name string) string {
	text, _ := os.ReadFile(file)
	for line := range strings.Lines(string(text)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == name {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// save writes the JSON.
func (r *result) save(o options) error {
	r.Ended = time.Now().UTC()
	raw, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(o.results, 0o755); err != nil {
		return err
	}
	file := filepath.Join(o.results, r.Begun.Format("20060102T150405Z")+".json")
	if err := os.WriteFile(file, append(raw, '\n'), 0o644); err != nil {
		return err
	}
	logf("samples are in %s", file)
	return nil
}

func readResult(file string) (*result, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	r := &result{}
	if err := json.Unmarshal(raw, r); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if r.Workload == nil {
		return nil, fmt.Errorf("%s is no result", file)
	}
	return r, nil
}

// show prints the tables and puts them into the document.
func (r *result) show(w io.Writer, o options) error {
	text := r.markdown()
	if _, err := io.WriteString(w, text); err != nil || o.doc == "" {
		return err
	}
	return replaceSection(o.doc, text)
}

const sectionBegin, sectionEnd = "<!-- benchmarks: begin -->\n", "<!-- benchmarks: end -->\n"

// replaceSection replaces what is between the markers of a document.
func replaceSection(file, text string) error {
	old, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	before, rest, ok := strings.Cut(string(old), sectionBegin)
	_, after, ok2 := strings.Cut(rest, sectionEnd)
	if !ok || !ok2 {
		return fmt.Errorf("%s has no lines %q and %q", file, sectionBegin, sectionEnd)
	}
	return os.WriteFile(file, []byte(before+sectionBegin+text+sectionEnd+after), 0o644)
}
