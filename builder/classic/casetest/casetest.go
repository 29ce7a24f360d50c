// Package casetest holds whatever builds Dockerfiles step by step to what
// Docker's classic builder made of recorded cases: exit codes, output,
// configs, histories, the entries of layers and the trees that they make.
//
// The cases are in builder/classic/testdata/cases; its README says what is in
// them. A test is one call of [Run]. Begin with [Builder]; case.go is how a
// case goes, transcript.go and compare.go hold what was built to what was
// recorded, and differences.go lists where Slipway differs on purpose.
package casetest

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
)

// BaseRef is the image that the cases begin with, made by [Base].
const BaseRef = "fid/base:1"

// A Builder builds one case, and reads back what it pushed. It has [BaseRef]
// in its registry, and nothing cached of what it builds.
type Builder interface {
	// Build builds and pushes. A build that fails is an outcome; what keeps a
	// build from taking place fails the test.
	Build(t *testing.T, b Build) *Outcome

	// Pull reads an image: [BaseRef], or what an outcome names.
	Pull(t *testing.T, image string) *Image
}

// A Build is one build of a case.
type Build struct {
	Case string   // its name
	Dir  string   // the context
	File string   // the Dockerfile's name in Dir
	Ref  string   // name:tag that a later FROM may use; "" for any
	Args []string // as docker build takes them: --build-arg, --label, --no-cache
}

// An Outcome is what became of a build.
type Outcome struct {
	ExitCode int    // a RUN step's own, 1 for other failures
	Message  string // of the failure, "" for none
	Image    string // for Pull; "" after a failure
	Steps    []Step // as planned, those of labels included
	Warnings []string
}

// A Step is one of an outcome's.
type Step struct {
	Source  string
	Started bool
	Cached  bool
	Output  string
}

// Run builds the cases below dir, each by the Builder that open returns.
func Run(t *testing.T, dir string, open func(*testing.T) Builder) {
	dirs, err := filepath.Glob(filepath.Join(dir, "[0-9]*"))
	if err != nil || len(dirs) < 23 {
		t.Fatalf("%d cases in %s (%v), want 23", len(dirs), dir, err)
	}
	for _, dir := range dirs {
		t.Run(filepath.Base(dir), func(t *testing.T) { newCaseRun(t, open(t), dir).run() })
	}
}

// Base makes the base image of the cases below dir, as docker import does: its
// config, but for the layer, and the layer as a tar.
func Base(t testing.TB, dir string) (config, layer []byte) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "base.tar")
	if out, err := exec.CommandContext(t.Context(), "bash", filepath.Join(dir, "_base", "mkbase.sh"), file).CombinedOutput(); err != nil {
		t.Fatalf("mkbase.sh: %v\n%s", err, out)
	}
	layer, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	config, err = json.Marshal(map[string]any{
		"os": "linux", "architecture": runtime.GOARCH,
		"config":  map[string]any{"Cmd": []string{"/bin/sh"}},
		"history": []any{map[string]any{"comment": "Imported from -"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return config, layer
}
