package main_test

import (
	"bytes"
	"io"
	"path/filepath"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/slipwayhq/slipway/builder/classic/casetest"
)

// casesDir has what Docker's classic builder made of Dockerfiles.
const casesDir = "../../builder/classic/testdata/cases"

// TestCases deploys every recorded case. They take turns on one daemon, which
// forgets what it has cached before each: what one case made would be a hit for
// another.
func TestCases(t *testing.T) {
	t.Parallel()
	d := startDaemon(t, "--allow-egress", "127.0.0.0/8")
	d.push(casesBase(t), casetest.BaseRef)
	casetest.Run(t, casesDir, func(t *testing.T) casetest.Builder {
		c := d.client()
		c.t = t
		if pruned := c.slipway("cache", "prune", "--all"); pruned.code() != exitDone {
			t.Fatalf("prune: %s", pruned.text())
		}
		return &caseClient{c}
	})
}

// casesBase is the base image of the cases.
func casesBase(t *testing.T) v1.Image {
	t.Helper()
	raw, plain := casetest.Base(t, casesDir)
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(plain)), nil })
	if err != nil {
		t.Fatal(err)
	}
	image, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		t.Fatal(err)
	}
	config, err := v1.ParseConfigFile(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	own, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config.RootFS = own.RootFS
	if image, err = mutate.ConfigFile(image, config); err != nil {
		t.Fatal(err)
	}
	return image
}

// A caseClient deploys the cases, each as an app of its own.
type caseClient struct{ *client }

func (c *caseClient) Build(t *testing.T, b casetest.Build) *casetest.Outcome {
	t.Helper()
	args := append([]string{"-f", filepath.Join(b.Dir, b.File)}, b.Args...)
	if b.Ref != "" {
		args = append(args, "--push-to", c.daemon.http+"/"+b.Ref)
	}
	r := c.tryDeploy("case-"+b.Case, b.Dir, args...)
	out := &casetest.Outcome{Image: r.Image, Steps: r.steps()}
	want := exitDone
	if r.Error != nil {
		out.Message, out.ExitCode, want = r.Error.Message, max(r.Error.ExitCode, 1), exitUser
		if r.Error.Code == "fetch_failed" && r.Error.Blame == "network" {
			want = exitNetwork
		}
	}
	if r.code() != want {
		t.Errorf("exit code %d, want %d\n%s", r.code(), want, r.text())
	}
	for _, e := range r.events() {
		if e.Type == "warning" && e.Line == 0 {
			out.Warnings = append(out.Warnings, e.Message)
		}
	}
	return out
}

// steps joins what the build's events say of each step.
func (r *call) steps() []casetest.Step {
	var out []casetest.Step
	at := map[int]int{}
	for _, e := range r.events() {
		switch e.Type {
		case "plan":
			for _, s := range e.Steps {
				at[s.Step] = len(out)
				out = append(out, casetest.Step{Source: s.Source})
			}
		case "step_started":
			out[at[e.Step]].Started = true
		case "step_log":
			out[at[e.Step]].Output += e.Data
		case "step_done":
			out[at[e.Step]].Cached = e.Cached
		}
	}
	return out
}

func (c *caseClient) Pull(t *testing.T, image string) *casetest.Image {
	t.Helper()
	pulled, err := remote.Image(c.daemon.reference(image), c.daemon.auth())
	if err != nil {
		t.Fatalf("pull %s: %v", image, err)
	}
	if err := validate.Image(pulled); err != nil {
		t.Errorf("%s is not valid: %v", image, err)
	}
	raw, err := pulled.RawConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	layers, err := pulled.Layers()
	if err != nil {
		t.Fatal(err)
	}
	out := casetest.NewImage(raw)
	for _, l := range layers {
		r, err := l.Compressed()
		if err != nil {
			t.Fatal(err)
		}
		if err := out.Add(r); err != nil {
			t.Fatalf("%s: %v", image, err)
		}
		r.Close()
	}
	return out
}
