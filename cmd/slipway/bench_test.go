package main

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// benchDaemon is a daemon that takes what bench deploys. Manifests are by path,
// as what tells contents apart.
func benchDaemon(t *testing.T, manifests *[]map[string]string, end func(*session) error) *daemon {
	return startDaemon(t, func(s *session) error {
		entries, err := s.manifest()
		if err != nil {
			return err
		}
		m := map[string]string{}
		for _, e := range entries {
			if digest := e.GetSha256(); len(digest) > 0 {
				m[string(e.GetPath())] = string(digest)
			}
		}
		*manifests = append(*manifests, m)
		if err := s.accept(); err != nil {
			return err
		}
		return end(s)
	})
}

func benched(s *session) error {
	r := succeeded()
	r.WireBytes, r.Timings = 2_000_000, &slipwayv1.Timings{Queue: 1, Preflight: 2, Context: 3, Build: 4, Push: 5, Total: 15}
	r.Context = &slipwayv1.ContextProgress{SentFiles: 7, SentBytes: 1_000_000, WireBytes: 500_000}
	push := func(n uint64) *slipwayv1.Event {
		return &slipwayv1.Event{Event: &slipwayv1.Event_Push{Push: &slipwayv1.PushProgress{Digest: "sha256:aa", Bytes: n, Total: 10}}}
	}
	return s.say(push(1), push(10), end(r))
}

// differing are the paths of contents that are not the same in both.
func differing(a, b map[string]string) []string {
	var out []string
	for path := range maps.Keys(a) {
		if a[path] != b[path] {
			out = append(out, path)
		}
	}
	return out
}

func TestBenchDeploys(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	var got []map[string]string
	d := benchDaemon(t, &got, benched)
	c := newCLI(t, d)
	c.want(0, "bench", "--size", "1MB", "--files", "100", "--rounds", "2", "--json")
	const perRound = 6
	if len(got) != 2*perRound {
		t.Fatalf("%d deploys, want %d", len(got), 2*perRound)
	}
	cold, changed, fresh := got[0], got[4], got[5]
	if len(cold) != 101 {
		t.Errorf("the context has %d files, want 100 and the Dockerfile", len(cold))
	}
	for i := 1; i <= 3; i++ {
		if diff := differing(cold, got[i]); len(diff) > 0 {
			t.Errorf("unchanged deploy %d differs in %q", i, diff)
		}
	}
	if diff := differing(cold, changed); len(diff) != 1 || !strings.HasPrefix(diff[0], "upper/") {
		t.Errorf("a changed file changed %q", diff)
	}
	if diff := differing(cold, fresh); len(diff) > 0 || len(fresh) != len(cold) {
		t.Errorf("the fresh copy differs in %q", diff)
	}
	if diff := differing(cold, got[perRound]); len(diff) != len(cold)-1 { // all but the Dockerfile
		t.Errorf("%d of %d contents are new in the second round", len(diff), len(cold))
	}
	if s := d.started; s.GetRelease() || !s.GetPush() || s.GetApp() != "slipway-bench" || s.GetTag() != "bench" {
		t.Errorf("start %v", s)
	}
	if d.prune.GetApp() != "slipway-bench" || !d.prune.GetAll() {
		t.Errorf("pruned %v", d.prune)
	}
	if left, _ := filepath.Glob(filepath.Join(os.Getenv("TMPDIR"), "*")); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	if left, _ := filepath.Glob(filepath.Join(os.Getenv("XDG_CACHE_HOME"), "slipway", "hashes", "*")); len(left) > 0 {
		t.Errorf("hashes left behind: %q", left)
	}
	var r benchReport
	if err := json.Unmarshal(c.stdout.Bytes(), &r); err != nil {
		t.Fatal(err)
	}
	counts := map[string]int{}
	for _, sc := range r.Scenarios {
		counts[sc.Name] = len(sc.Samples)
		for _, s := range sc.Samples {
			if s.MS <= 0 || s.PushMS < 0 || s.Timings.Build != 4 || s.SentBytes != 1_000_000 || s.WireBytes != 500_000 || s.PushedBytes != 2_000_000 || len(s.Layers) != 1 {
				t.Errorf("%s: sample %+v", sc.Name, s)
			}
		}
	}
	if want := map[string]int{"cold": 2, "unchanged": 6, "one file": 2, "fresh copy": 2}; !maps.Equal(counts, want) {
		t.Errorf("samples: %v, want %v", counts, want)
	}
	if r.Freed != 5_000_000 || r.Files != 101 || r.Bytes != 1_000_000 || r.Seed == 0 {
		t.Errorf("report %+v", r)
	}
}

func TestBenchSeed(t *testing.T) {
	var got []map[string]string
	c := newCLI(t, benchDaemon(t, &got, benched))
	for _, seed := range []string{"7", "7", "8"} {
		c.want(0, "bench", "--size", "100kB", "--files", "20", "--seed", seed)
	}
	if diff := differing(got[0], got[6]); len(diff) > 0 {
		t.Errorf("the same seed differs in %q", diff)
	}
	if diff := differing(got[0], got[12]); len(diff) != 20 {
		t.Errorf("another seed differs in %d files of 20", len(diff))
	}
	c.sees(&c.stdout, "100 kB in 21 files, seed 8", "cold", "unchanged", "one file", "fresh copy", "slipway-bench:bench")
}

func TestBenchBase(t *testing.T) {
	var got []map[string]string
	d := benchDaemon(t, &got, benched)
	c := newCLI(t, d)
	c.want(0, "bench", "--size", "1kB", "--files", "10", "--base", "debian:bookworm", "--compression", "zstd", "--push-to", "registry.example.com/bench")
	text := string(d.started.GetDockerfile().GetContent())
	if !strings.HasPrefix(text, "FROM debian:bookworm\n") || !strings.Contains(text, "\nRUN ") {
		t.Errorf("Dockerfile:\n%s", text)
	}
	if s := d.started; s.GetCompression().GetType() != slipwayv1.CompressionType_COMPRESSION_TYPE_ZSTD || len(s.GetTargets()) != 1 {
		t.Errorf("start %v", s)
	}
}

// What an app had cached before is not bench's to remove.
func TestBenchLeavesWhatWasThere(t *testing.T) {
	for _, args := range [][]string{{"-a", "shop"}, {"--keep"}} {
		var got []map[string]string
		d := benchDaemon(t, &got, benched) // its cache holds records of shop
		c := newCLI(t, d)
		c.want(0, append([]string{"bench", "--size", "1kB", "--files", "10"}, args...)...)
		if d.prune != nil {
			t.Errorf("%v: pruned %v", args, d.prune)
		}
	}
}

func TestBenchFails(t *testing.T) {
	var got []map[string]string
	d := benchDaemon(t, &got, func(s *session) error {
		if len(got) == 2 {
			return s.say(end(failed(stepFailed)))
		}
		return benched(s)
	})
	c := newCLI(t, d)
	c.want(2, "bench", "--size", "1kB", "--files", "10")
	c.sees(&c.stderr, "RUN false returned exit code 7")
	if d.prune.GetApp() != "slipway-bench" {
		t.Errorf("a failed run pruned %v", d.prune)
	}
	if c.stdout.Len() > 0 {
		t.Errorf("standard output %q", c.stdout.String())
	}
	for _, args := range [][]string{{"--files", "9"}, {"--size", "5", "--files", "10"}, {"--size", "much"}, {"--rounds", "0"}, {"--compression", "lzma"}} {
		c.want(2, append([]string{"bench"}, args...)...)
	}
}
