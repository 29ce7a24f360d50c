package web_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/metadata"

	"github.com/slipwayhq/slipway/builder"
	"github.com/slipwayhq/slipway/builder/failure"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// A script is a pipeline that does what a test says.
type script struct {
	build func(ctx context.Context, emit func(*slipwayv1.Event)) error
}

func (s script) Plan(_ context.Context, job *builder.Job) (builder.Plan, error) {
	return plan{s, job}, nil
}

type plan struct {
	script
	job *builder.Job
}

func (plan) Detail() string { return "a script" }
func (plan) Writes() int64  { return 0 }

func (p plan) Build(ctx context.Context) (*builder.Image, error) {
	if p.build != nil {
		if err := p.build(ctx, p.job.Session.Emit); err != nil {
			return nil, err
		}
	}
	img := &builder.Image{}
	img.Config.Platform = p.job.Platform
	return img, nil
}

// startBuild begins a build that goes on alone, and returns its ID.
func (d *daemon) startBuild(app string) string {
	d.t.Helper()
	ctx := metadata.AppendToOutgoingContext(d.t.Context(), "authorization", "Bearer "+d.admin)
	stream, err := slipwayv1.NewBuildServiceClient(d.conn).Build(ctx)
	check(d.t, err)
	check(d.t, stream.Send(&slipwayv1.BuildRequest{Message: &slipwayv1.BuildRequest_Start{Start: &slipwayv1.Start{App: app, Detach: true}}}))
	m, err := stream.Recv()
	check(d.t, err)
	return m.GetAccepted().GetBuildId()
}

// await waits for a build's end.
func (d *daemon) await(id string) {
	d.t.Helper()
	ctx := metadata.AppendToOutgoingContext(d.t.Context(), "authorization", "Bearer "+d.admin)
	stream, err := slipwayv1.NewBuildServiceClient(d.conn).WatchBuild(ctx, &slipwayv1.WatchBuildRequest{Id: id})
	check(d.t, err)
	for err == nil {
		_, err = stream.Recv()
	}
	if err != io.EOF {
		d.t.Fatal(err)
	}
}

// build builds an app and returns the build's ID.
func (d *daemon) build(app string) string {
	d.t.Helper()
	id := d.startBuild(app)
	d.await(id)
	return id
}

func planned(steps ...string) *slipwayv1.Event {
	p := &slipwayv1.Plan{Stages: 1}
	for i, s := range steps {
		p.Steps = append(p.Steps, &slipwayv1.PlannedStep{Step: uint32(i + 1), Number: uint32(i + 1), Total: uint32(len(steps)), Source: s})
	}
	return &slipwayv1.Event{Event: &slipwayv1.Event_Plan{Plan: p}}
}

func started(step uint32) *slipwayv1.Event {
	return &slipwayv1.Event{Event: &slipwayv1.Event_StepStarted{StepStarted: &slipwayv1.StepStarted{Step: step}}}
}

func said(step uint32, text string) *slipwayv1.Event {
	return &slipwayv1.Event{Event: &slipwayv1.Event_StepLog{StepLog: &slipwayv1.StepLog{Step: step, Stream: slipwayv1.LogStream_LOG_STREAM_STDOUT, Data: []byte(text)}}}
}

func done(d *slipwayv1.StepDone) *slipwayv1.Event {
	return &slipwayv1.Event{Event: &slipwayv1.Event_StepDone{StepDone: d}}
}

// hostile is what an app's Dockerfile, output and errors may hold.
const hostile = `<script>alert(1)</script><hx-partial hx-target="body">"'&`

func TestBuildPage(t *testing.T) {
	d := start(t, script{func(_ context.Context, emit func(*slipwayv1.Event)) error {
		emit(planned("COPY "+hostile+" /", "RUN make"))
		emit(done(&slipwayv1.StepDone{Step: 1, Cached: true, DurationMs: 40}))
		emit(started(2))
		emit(said(2, "\x1b[31m"+hostile+"\x1b[0m\r\n10%\r50%\r100%\n"))
		emit(done(&slipwayv1.StepDone{Step: 2, DurationMs: 8400, Error: "exit code 2", Miss: "parent"}))
		return &failure.Error{Code: failure.TooLarge, Phase: failure.Build, Blame: failure.User, Message: "too large " + hostile, Hint: "build " + hostile}
	}})
	id := d.build("shop")
	b := d.signedIn(d.admin)
	a := b.get("/builds/" + id)
	a.want(t, 200, "Failed", "too_large", "(user)", "8.4s", ">Cached<", "100%", "&lt;script&gt;", "[2/2]")
	for _, bad := range []string{"<script>alert", "<hx-partial", "\x1b", "10%", "hx-sse:connect"} {
		if strings.Contains(a.text, bad) {
			t.Errorf("the page has %q", bad)
		}
	}
	b.get("/builds").want(t, 200, id, "too_large", "Failed")
	log := b.get("/builds/" + id + "/log")
	log.want(t, 200, "== [2/2] RUN make", hostile+"\n100%\n", "error: too_large")
	if typ := log.Header.Get("Content-Type"); typ != "text/plain; charset=utf-8" {
		t.Errorf("the log is %s", typ)
	}
}

func TestNoSuchBuild(t *testing.T) {
	d := start(t, succeed)
	b := d.signedIn(d.admin)
	for _, id := range []string{"01J", "..%2f..%2fetc%2fpasswd", "'%20OR%201=1--", "%3Cscript%3E"} {
		for _, path := range []string{"", "/events", "/log", "/cancel"} {
			a := b.get("/builds/" + id + path)
			if a.StatusCode != 404 || strings.Contains(a.text, "<script>") && strings.Contains(id, "script") {
				t.Errorf("%s%s: status %d:\n%s", id, path, a.StatusCode, a.text)
			}
		}
	}
}

func TestBuildListPages(t *testing.T) {
	d := start(t, succeed)
	for range 31 {
		d.build("shop")
	}
	other := d.build("billing")
	b := d.signedIn(d.admin)
	first := b.get("/builds?app=shop")
	if n := strings.Count(first.text, `data-label="Build"`); n != 30 || strings.Contains(first.text, other) {
		t.Errorf("the first page has %d builds", n)
	}
	_, rest, ok := strings.Cut(first.text, `href="/builds?app=shop&amp;before=`)
	if !ok {
		t.Fatalf("no way to older builds:\n%s", first.text)
	}
	last, _, _ := strings.Cut(rest, `"`)
	if n := strings.Count(b.get("/builds?app=shop&before="+last).text, `data-label="Build"`); n != 1 {
		t.Errorf("the second page has %d builds", n)
	}
	b.get("/builds?app=nothing").want(t, 200, "slipway deploy -a nothing")
}

// A sse is one message of a stream.
type sse struct{ id, event, data string }

// stream reads messages of a build until one has text, or the stream ends.
func (b *browser) stream(path, lastID, text string) (all []sse) {
	b.t.Helper()
	ctx, cancel := context.WithCancel(b.t.Context())
	defer cancel()
	r := b.request("GET", path, nil).WithContext(ctx)
	if lastID != "" {
		r.Header.Set("Last-Event-ID", lastID)
	}
	resp, err := b.http.Do(r)
	check(b.t, err)
	defer resp.Body.Close()
	if typ := resp.Header.Get("Content-Type"); resp.StatusCode != 200 || typ != "text/event-stream" {
		b.t.Fatalf("%s: status %d, %s", path, resp.StatusCode, typ)
	}
	var m sse
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		field, value, _ := strings.Cut(lines.Text(), ": ")
		switch field {
		case "id":
			m.id = value
		case "event":
			m.event = value
		case "data":
			m.data += value + "\n"
		case "":
			if lines.Text() == "" && m != (sse{}) {
				all = append(all, m)
				if text != "" && strings.Contains(m.data, text) {
					return all
				}
				m = sse{}
			}
		}
	}
	return all
}

func texts(all []sse) string {
	var b strings.Builder
	for _, m := range all {
		b.WriteString(m.data)
	}
	return b.String()
}

// TestLiveLog follows a build, loses the connection, and goes on where it was.
func TestLiveLog(t *testing.T) {
	next := make(chan string)
	d := start(t, script{func(ctx context.Context, emit func(*slipwayv1.Event)) error {
		emit(planned("RUN make"))
		emit(started(1))
		for line := range next {
			emit(said(1, line+"\n"))
		}
		emit(done(&slipwayv1.StepDone{Step: 1, DurationMs: 1200}))
		return nil
	}})
	id := d.startBuild("shop")
	b := d.signedIn(d.admin)
	events := "/builds/" + id + "/events"
	next <- "line-0 " + hostile
	seen := b.stream(events, "", "line-0")
	if text := texts(seen); !strings.Contains(text, `id="log-1"`) || !strings.Contains(text, "&lt;script&gt;") || strings.Contains(text, "<script>") {
		t.Errorf("the stream says:\n%s", text)
	}
	for i := 1; i < 50; i++ {
		next <- fmt.Sprintf("line-%d.", i)
		if i%10 == 0 {
			seen = append(seen, b.stream(events, seen[len(seen)-1].id, fmt.Sprintf("line-%d.", i))...)
		}
	}
	page := b.get("/builds/" + id)
	page.want(t, 200, "Running", "hx-sse:connect", "line-40.", "Cancel build")
	close(next)
	seen = append(seen, b.stream(events, seen[len(seen)-1].id, "")...)
	if last := seen[len(seen)-1]; last.event != "end" {
		t.Errorf("the last message is %+v", last)
	}
	for i := 1; i < 50; i++ {
		if n := strings.Count(texts(seen), fmt.Sprintf("line-%d.", i)); n != 1 {
			t.Errorf("line %d came %d times", i, n)
		}
	}
	after := b.get("/builds/" + id)
	after.want(t, 200, "Succeeded", "line-49.", "1.2s")
	if strings.Contains(after.text, "hx-sse:connect") {
		t.Error("the page of a build that has ended goes on")
	}
}

// TestStreamEndsWithSession ends the stream within a second of a revocation.
func TestStreamEndsWithSession(t *testing.T) {
	stop := make(chan struct{})
	d := start(t, script{func(ctx context.Context, emit func(*slipwayv1.Event)) error {
		emit(planned("RUN make"))
		<-stop
		return nil
	}})
	t.Cleanup(func() { close(stop) })
	id := d.startBuild("shop")
	b := d.signedIn(d.admin)
	session := d.principal(b.session()).ID
	b.stream("/builds/"+id+"/events", "", "RUN make")
	var revoked time.Time
	time.AfterFunc(50*time.Millisecond, func() {
		revoked = time.Now()
		if _, err := d.authority.Revoke(context.Background(), d.principal(d.admin), session); err != nil {
			t.Error(err)
		}
	})
	all := b.stream("/builds/"+id+"/events", "", "")
	if took := time.Since(revoked); took > time.Second {
		t.Errorf("the stream ended %v after", took)
	}
	if len(all) == 0 || all[len(all)-1].event != "end" {
		t.Errorf("the stream says %+v", all)
	}
	b.get("/builds/"+id+"/events").want(t, http.StatusUnauthorized)
}

func TestCancel(t *testing.T) {
	begun := make(chan struct{})
	d := start(t, script{func(ctx context.Context, emit func(*slipwayv1.Event)) error {
		close(begun)
		<-ctx.Done()
		return context.Cause(ctx)
	}})
	id := d.startBuild("shop")
	<-begun
	b := d.signedIn(d.admin)
	b.get("/builds/"+id+"/cancel").want(t, 200, "Cancel this build of shop?", `method="post"`)
	b.follow(b.post("/builds/"+id+"/cancel")).want(t, 200, "The build")
	d.await(id)
	b.get("/builds/"+id).want(t, 200, "Cancelled")
}
