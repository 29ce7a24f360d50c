package main_test

import "testing"

// checkUnchanged fails unless a deploy did nothing that an earlier deploy had
// done: sent no file, ran no step, compressed and uploaded nothing.
func checkUnchanged(t testing.TB, what string, first, again *deployed) {
	t.Helper()
	if again.Digest != first.Digest {
		t.Errorf("%s: digest %s, was %s", what, again.Digest, first.Digest)
	}
	if again.Context.SentFiles != 0 || again.Context.SentBytes != 0 {
		t.Errorf("%s: sent %d files, %d bytes; want none", what, again.Context.SentFiles, again.Context.SentBytes)
	}
	if again.Steps == 0 || again.Cached != again.Steps {
		t.Errorf("%s: %d of %d steps cached; want all\n%s", what, again.Cached, again.Steps, misses(again))
	}
	for _, l := range again.Layers {
		if !l.Cached || l.Pushed != "present" {
			t.Errorf("%s: layer %s (%s): cached %v, pushed %q; want a cached one that was present", what, l.Digest, l.CreatedBy, l.Cached, l.Pushed)
		}
	}
}

// misses tells why steps ran.
func misses(d *deployed) string {
	s := ""
	for _, e := range d.events() {
		if e.Type == "step_done" && !e.Cached {
			s += "  " + e.Miss + "\n"
		}
	}
	return s
}

var greeter = tree{
	"Dockerfile": `FROM busybox AS build
WORKDIR /src
COPY words/ words/
RUN cat words/* > all && echo built
COPY run.sh ./
FROM busybox
COPY --from=build /src/all /all
COPY --from=build /src/run.sh /run.sh
ENTRYPOINT ["/run.sh"]
`,
	"words/a": "hello\n",
	"words/b": "world\n",
	"run.sh":  "#!/bin/sh\ncat /all\n",
	"notes":   "not copied\n",
}

func TestUnchangedDoesNothingTwice(t *testing.T) {
	t.Parallel()
	d, c := startWithBusybox(t)
	dir := greeter.write(t)
	first := c.deploy("greeter", dir)
	if got := runImage(t, d.pull(first)); got != "hello\nworld\n" {
		t.Errorf("the image prints %q", got)
	}
	if first.Context.SentFiles != 3 || first.Context.Files != 5 {
		t.Errorf("sent %d of %d files; want the 3 of 5 that steps read", first.Context.SentFiles, first.Context.Files)
	}
	compressed, received, uploaded := d.metric("slipway_layers_compressed_bytes_total"), d.metric("slipway_context_received_bytes_total"), d.metric(`slipway_push_bytes_total{outcome="linked"`)
	if compressed == 0 || received == 0 || uploaded == 0 {
		t.Errorf("metrics of the first deploy: %g compressed, %g received, %g linked", compressed, received, uploaded)
	}
	disk := diskUse(t, d.root+"/cache/content")

	again := c.deploy("greeter", dir)
	checkUnchanged(t, "unchanged", first, again)
	checkUnchanged(t, "fresh copy", first, c.deploy("greeter", freshCopy(t, dir)))
	checkUnchanged(t, "fresh copy, other user", first, d.client().deploy("greeter", freshCopy(t, dir)))
	d.stop()
	d.start()
	checkUnchanged(t, "after a restart", first, d.client().deploy("greeter", freshCopy(t, dir)))

	if got := d.metric("slipway_layers_compressed_bytes_total"); got != 0 {
		t.Errorf("%g bytes were compressed after the restart", got)
	}
	if got := d.metric(`slipway_push_bytes_total{outcome="linked"`); got != 0 {
		t.Errorf("%g bytes were linked after the restart", got)
	}
	if again.SameAs == "" {
		t.Error("the result does not tell that it is the same image as before")
	}
	if got := diskUse(t, d.root+"/cache/content"); got > disk+64<<10 {
		t.Errorf("the content store grew from %d to %d bytes", disk, got)
	}
}

func TestNothingCompressedAgain(t *testing.T) {
	t.Parallel()
	d, c := startWithBusybox(t)
	dir := greeter.write(t)
	c.deploy("greeter", dir)
	before := map[string]float64{}
	for _, m := range []string{"slipway_layers_compressed_bytes_total", "slipway_context_received_bytes_total", `slipway_push_bytes_total{outcome="linked"`, `slipway_push_bytes_total{outcome="uploaded"`, `slipway_steps_total{cache="miss"`} {
		before[m] = d.metric(m)
	}
	c.deploy("greeter", freshCopy(t, dir))
	for m, was := range before {
		if got := d.metric(m); got != was {
			t.Errorf("%s went from %g to %g in an unchanged deploy", m, was, got)
		}
	}
}

func TestAnotherAppSharesTheCache(t *testing.T) {
	t.Parallel()
	d, c := startWithBusybox(t)
	dir := greeter.write(t)
	first := c.deploy("one", dir)
	second := c.deploy("two", dir)
	if second.Context.SentFiles != 0 || second.Cached != second.Steps || second.Digest != first.Digest {
		t.Errorf("sent %d files, %d of %d cached, digest %s; want none, all, %s", second.Context.SentFiles, second.Cached, second.Steps, second.Digest, first.Digest)
	}
	d.pull(second)
}

// TestWhatMisses changes one thing between two deploys and looks at which
// steps run again.
func TestWhatMisses(t *testing.T) {
	t.Parallel()
	d, _ := startWithBusybox(t)
	base := func() tree {
		return tree{
			"Dockerfile": "FROM busybox\nARG WHO=one\nCOPY a /a\nRUN echo $WHO > /who\nCOPY b /b\nRUN cat /a /b > /ab\n",
			"a":          "a\n", "b": "b\n", "unused": "u\n",
		}
	}
	tests := []struct {
		name   string
		change func(dir string)
		args   []string
		ran    []string // instructions that ran again
		same   bool     // digest
		sent   int
	}{
		{name: "nothing", change: func(string) {}, same: true},
		{name: "file that no step reads", change: func(dir string) { writeFile(t, dir, "unused", "v\n") }, same: true},
		{name: "late file", change: func(dir string) { writeFile(t, dir, "b", "B\n") }, ran: []string{"COPY b /b", "RUN cat /a /b > /ab"}, sent: 1},
		{name: "early file", change: func(dir string) { writeFile(t, dir, "a", "A\n") },
			ran: []string{"COPY a /a", "RUN echo $WHO > /who", "COPY b /b", "RUN cat /a /b > /ab"}, sent: 1},
		{name: "changed arg", change: func(string) {}, args: []string{"--build-arg", "WHO=two"},
			ran: []string{"RUN echo $WHO > /who", "COPY b /b", "RUN cat /a /b > /ab"}},
		{name: "comment in the Dockerfile", change: func(dir string) {
			writeFile(t, dir, "Dockerfile", "# hello\n\n"+base()["Dockerfile"])
		}, same: true},
		{name: "changed command", change: func(dir string) {
			writeFile(t, dir, "Dockerfile", "FROM busybox\nARG WHO=one\nCOPY a /a\nRUN echo $WHO > /who\nCOPY b /b\nRUN cat /b /a > /ab\n")
		}, ran: []string{"RUN cat /b /a > /ab"}},
		{name: "no cache", change: func(string) {}, args: []string{"--no-cache"},
			ran: []string{"COPY a /a", "RUN echo $WHO > /who", "COPY b /b", "RUN cat /a /b > /ab"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := d.client()
			c.t = t
			dir := base().write(t)
			first := c.deploy("misses", dir)
			test.change(dir)
			again := c.deploy("misses", dir, test.args...)
			ran := ranSteps(again)
			if len(ran) != len(test.ran) {
				t.Fatalf("ran %q; want %q", ran, test.ran)
			}
			for i := range ran {
				if ran[i] != test.ran[i] {
					t.Errorf("ran %q; want %q", ran, test.ran)
				}
			}
			if test.same != (again.Digest == first.Digest) && test.args == nil {
				t.Errorf("digest was %s, is %s", first.Digest, again.Digest)
			}
			if again.Context.SentFiles != test.sent {
				t.Errorf("sent %d files, want %d", again.Context.SentFiles, test.sent)
			}
		})
	}
}

// ranSteps lists the file-system steps that were not cached.
func ranSteps(d *deployed) []string {
	source := map[int]string{}
	var ran []string
	for _, e := range d.events() {
		for _, s := range e.Steps {
			source[s.Step] = s.Source
		}
		if s := source[e.Step]; e.Type == "step_done" && !e.Cached && (hasWord(s, "RUN") || hasWord(s, "COPY") || hasWord(s, "ADD") || hasWord(s, "WORKDIR")) {
			ran = append(ran, s)
		}
	}
	return ran
}

func hasWord(s, word string) bool { return len(s) > len(word) && s[:len(word)+1] == word+" " }

func TestRebuiltButIdenticalStageHits(t *testing.T) {
	t.Parallel()
	_, c := startWithBusybox(t)
	dir := tree{
		"Dockerfile": "FROM busybox AS build\nCOPY src /src\nRUN head -n1 /src > /out\nFROM busybox\nCOPY --from=build /out /out\nRUN cat /out > /copy\n",
		"src":        "first line\nsecond line\n",
	}.write(t)
	first := c.deploy("identical", dir)
	writeFile(t, dir, "src", "first line\nanother line\n")
	again := c.deploy("identical", dir)
	want := []string{"COPY src /src", "RUN head -n1 /src > /out"}
	if ran := ranSteps(again); len(ran) != len(want) || ran[0] != want[0] || ran[1] != want[1] {
		t.Errorf("ran %q; want %q", ran, want)
	}
	if again.Digest != first.Digest {
		t.Errorf("digest %s, was %s", again.Digest, first.Digest)
	}
}

// A failed deploy and a lost connection keep the contents that arrived.
func TestRetryAfterFailureSendsOnlyTheRest(t *testing.T) {
	t.Parallel()
	_, c := startWithBusybox(t)
	dir := tree{
		"Dockerfile": "FROM busybox\nCOPY a b /in/\nRUN false\n",
		"a":          "content of a\n", "b": "content of b\n",
	}.write(t)
	c.deployFails(exitUser, "step_failed", "retry", dir)
	writeFile(t, dir, "Dockerfile", "FROM busybox\nCOPY a b c /in/\nRUN true\n")
	writeFile(t, dir, "c", "content of c\n")
	if d := c.deploy("retry", dir); d.Context.SentFiles != 1 {
		t.Errorf("sent %d files after a failure; want the new one only", d.Context.SentFiles)
	}
}
