package main_test

import (
	"encoding/json"
	"strings"
	"testing"
)

var shop = tree{
	"Dockerfile": `FROM busybox
WORKDIR /app
COPY . .
RUN apt-get update || true
COPY last /last
`,
	"src/a": "a\n", "last": "last\n",
}

// TestExplain deploys, changes a file, and has the client tell which.
func TestExplain(t *testing.T) {
	t.Parallel()
	d, c := startWithBusybox(t)
	dir := shop.write(t)
	first := c.slipway("deploy", dir, "-a", "shop")
	if text := first.text(); first.code() != exitDone || strings.Contains(text, "missed") || strings.Contains(text, "hint") {
		t.Errorf("the first deploy explains itself:\n%s", text)
	}
	writeFile(t, dir, "src/a", "b\n")
	again := c.slipway("deploy", dir, "-a", "shop")
	for _, want := range []string{"missed: src/a changed (was 8742…, is 0263…)", "missed: parent [3/5]", "hint: 2 of 5 steps ran because [3/5] did\n"} {
		if !strings.Contains(again.stderr.String(), want) {
			t.Errorf("the second deploy does not say %q:\n%s", want, again.text())
		}
	}

	var builds []record
	c.slipway("builds", "list", "--json").value(&builds)
	shown := c.slipway("builds", "show", builds[0].ID, "--explain")
	for _, want := range []string{"WORKDIR /app", "cached", "missed: src/a changed (was 8742…, is 0263…)", "missed: parent [3/5]", "hint: 2 of 5 steps"} {
		if !strings.Contains(shown.stdout.String(), want) {
			t.Errorf("builds show --explain does not say %q:\n%s", want, shown.text())
		}
	}
	var why struct {
		BuildID string `json:"build_id"`
		Steps   []struct {
			Cached bool   `json:"cached"`
			Miss   string `json:"miss"`
			Why    *struct {
				Reason  string `json:"reason"`
				Changes []struct{ Part, Name, Before, Now string }
			}
		}
		Hints []string
	}
	c.slipway("builds", "show", builds[0].ID, "--explain", "--json").value(&why)
	if len(why.Steps) != 5 || why.BuildID != builds[0].ID || len(why.Hints) != 1 || !why.Steps[1].Cached || why.Steps[1].Why != nil {
		t.Fatalf("explanation %+v", why)
	}
	if w := why.Steps[2].Why; w == nil || w.Reason != "changed" || len(w.Changes) != 1 || w.Changes[0].Part != "file" || w.Changes[0].Name != "src/a" || w.Changes[0].Before != "8742…" {
		t.Errorf("step 3: %+v", w)
	}
	if w := why.Steps[4].Why; w == nil || w.Reason != "parent" || !strings.HasPrefix(w.Changes[0].Name, "[3/5] COPY . .") {
		t.Errorf("step 5: %+v", w)
	}

	if call := c.slipway("cache", "prune", "--all"); call.code() != exitDone {
		t.Fatal(call.text())
	}
	pruned := c.slipway("deploy", dir, "-a", "shop")
	if text := pruned.stderr.String(); !strings.Contains(text, "missed: removed from the cache at 20") || !strings.Contains(text, "pruned by request") {
		t.Errorf("what was pruned is not told:\n%s", text)
	}
	d.stop()
	d.start()
	writeFile(t, dir, "last", "other\n")
	if text := d.client().slipway("deploy", dir, "-a", "shop").stderr.String(); !strings.Contains(text, "last changed") {
		t.Errorf("after a restart:\n%s", text)
	}
}

// TestPlan asks what a deploy would do, before and after there was one.
func TestPlan(t *testing.T) {
	t.Parallel()
	d, c := startWithBusybox(t)
	dir := shop.write(t)
	ask := func(args ...string) string {
		t.Helper()
		call := c.slipway(append([]string{"deploy", dir, "-a", "shop", "--plan"}, args...)...)
		if call.code() != exitDone || call.stderr.String() != "" {
			t.Errorf("exit code %d\n%s", call.code(), call.text())
		}
		return call.stdout.String()
	}
	says := func(text string, wants ...string) {
		t.Helper()
		for _, want := range wants {
			if !strings.Contains(text, want) {
				t.Errorf("the plan does not say %q:\n%s", want, text)
			}
		}
	}
	says(ask(), "would send 3 files", "1 cached, 4 to run", "rootfs    not known", "time      not known")
	first := c.deploy("shop", dir)
	if received := d.metric("slipway_context_received_bytes_total"); received == 0 {
		t.Error("nothing travelled in the deploy: the plan had sent it")
	}
	says(ask(), "would send nothing", "5 cached, 0 to run", " of 8 GB\n", "push      nothing")
	writeFile(t, dir, "src/a", "b\n")
	received := d.metric("slipway_context_received_bytes_total")
	says(ask(), "would send 1 file, 2 B", "2 cached, 3 to run:", "[3/5] COPY . . (src/a changed (was 8742…, is 0263…))", "(last deploy)", "push      2 layers of about")
	if got := d.metric("slipway_context_received_bytes_total"); got != received {
		t.Error("a plan had content sent")
	}

	var last struct {
		Type     string
		Forecast struct {
			SendFiles int `json:"send_files"`
			Steps     []struct {
				Cached bool
				Why    *struct{ Reason string }
			}
		}
	}
	lines := strings.Split(strings.TrimSpace(ask("--json")), "\n")
	for _, line := range lines {
		if strings.Contains(line, `"type":"forecast"`) {
			if err := json.Unmarshal([]byte(line), &last); err != nil {
				t.Fatalf("%s: %v", line, err)
			}
		}
	}
	if f := last.Forecast; f.SendFiles != 1 || len(f.Steps) != 5 || f.Steps[2].Why.Reason != "changed" {
		t.Errorf("forecast %+v", f)
	}
	if !strings.Contains(lines[len(lines)-1], `"type":"result"`) || !strings.Contains(lines[len(lines)-1], `"status":"succeeded"`) {
		t.Errorf("the last line is %s", lines[len(lines)-1])
	}

	var builds []record
	c.slipway("builds", "list", "--json").value(&builds)
	if len(builds) != 1 || builds[0].ID != first.result.BuildID {
		t.Errorf("builds list shows plans: %+v", builds)
	}
	if again := c.deploy("shop", dir); again.Context.SentFiles != 1 {
		t.Errorf("sent %d files after a plan, want 1", again.Context.SentFiles)
	}
	if call := c.slipway("deploy", dir, "-a", "shop", "--plan", "--no-cache-filter", "none"); call.code() != exitUser {
		t.Errorf("unknown stage: exit code %d\n%s", call.code(), call.text())
	}
}
