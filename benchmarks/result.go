package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"
)

// A result is a whole run, as the JSON file has it.
type result struct {
	Begun    time.Time                      `json:"begun"`
	Ended    time.Time                      `json:"ended"`
	Runs     int                            `json:"runs"`
	Scale    float64                        `json:"scale"`
	Machine  machine                        `json:"machine"`
	Versions map[string]string              `json:"versions"`
	Workload *application                   `json:"workload"`               // A
	Sizes    map[string]map[string]int64    `json:"sizes_bytes"`            // all layers of an image, base included, by scenario and tool
	Samples  map[string]map[string][]sample `json:"samples"`                // by scenario and tool
	Notes    []string                       `json:"notes,omitempty"`        // what is missing, and why
	Others   []time.Time                    `json:"others_begun,omitempty"` // runs that were merged into this one
}

type machine struct {
	CPU    string  `json:"cpu"`
	Cores  int     `json:"cores"`
	Memory int64   `json:"memory_bytes"`
	Kernel string  `json:"kernel"`
	Load   float64 `json:"load_at_begin"`
}

func newResult(o options) *result {
	return &result{
		Begun: time.Now().UTC(), Runs: o.runs, Scale: o.scale, Machine: thisMachine(), Versions: versions(),
		Sizes: map[string]map[string]int64{}, Samples: map[string]map[string][]sample{},
	}
}

func (r *result) add(scenario, tool string, s sample) {
	if r.Samples[scenario] == nil {
		r.Samples[scenario] = map[string][]sample{}
	}
	r.Samples[scenario][tool] = append(r.Samples[scenario][tool], s)
}

// size records how large an image is.
func (r *result) size(scenario, tool string, n int64) {
	if r.Sizes[scenario] == nil {
		r.Sizes[scenario] = map[string]int64{}
	}
	r.Sizes[scenario][tool] = n
}

// note records what is missing.
func (r *result) note(text string) {
	logf("%s", text)
	if !slices.Contains(r.Notes, text) {
		r.Notes = append(r.Notes, text)
	}
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

// readResults reads earlier runs as one: of each scenario, what the last file
// has that knows it.
func readResults(files []string) (*result, error) {
	var all *result
	for _, file := range files {
		r, err := readResult(file)
		if err != nil {
			return nil, err
		}
		if all == nil {
			all = r
			continue
		}
		all.merge(r)
	}
	return all, nil
}

func readResult(file string) (*result, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	r := newResult(options{scale: 1})
	if err := json.Unmarshal(raw, r); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if len(r.Samples) == 0 {
		return nil, fmt.Errorf("%s is no result", file)
	}
	return r, nil
}

// merge takes over the scenarios of a later run.
func (r *result) merge(later *result) {
	r.Others = append(r.Others, later.Begun)
	r.Runs = max(r.Runs, later.Runs)
	maps.Copy(r.Samples, later.Samples)
	maps.Copy(r.Sizes, later.Sizes)
	if later.Workload != nil {
		r.Workload = later.Workload
	}
	for _, n := range later.Notes {
		if !slices.Contains(r.Notes, n) {
			r.Notes = append(r.Notes, n)
		}
	}
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
