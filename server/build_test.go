package server_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/slipwayhq/slipway/buildctx"
	"github.com/slipwayhq/slipway/builder"
	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/fleet"
	"github.com/slipwayhq/slipway/layercache"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
	"github.com/slipwayhq/slipway/server"
	"github.com/slipwayhq/slipway/server/records"
)

func all(m *buildctx.Manifest) []int {
	n := make([]int, len(m.Entries))
	for i := range n {
		n[i] = i
	}
	return n
}

// needAll is a build that needs the whole context.
func needAll(ctx context.Context, job *builder.Job) (*builder.Image, error) {
	m, err := job.Session.Manifest(ctx)
	if err != nil {
		return nil, err
	}
	if err := job.Session.Need(ctx, all(m)); err != nil {
		return nil, err
	}
	return image(ctx, job, "with context")
}

func TestBuild(t *testing.T) {
	d := start(t, &script{build: needAll}, 1)
	src := scan(t, map[string]string{"a": "one", "b": "two", "c": "one", "empty": ""})
	for round, sent := range []uint64{2, 0} {
		c := d.call("acme", withContext(shop()))
		c.manifest(src)
		for sent > 0 && len(c.wants) == 0 {
			check(t, c.recv(wantMsg))
			c.serveWant(src, c.wants[0])
		}
		res := c.result()
		if res.Status != slipwayv1.ResultStatus_RESULT_STATUS_SUCCEEDED || res.Image != "reg.test/shop:deployment-"+c.id {
			t.Fatalf("result %v", res)
		}
		if res.Context.SentFiles != sent || res.Context.Files != 4 || len(c.wants) != int(min(sent, 1)) {
			t.Errorf("round %d: context %v, %d wants; want %d files sent", round, res.Context, len(c.wants), sent)
		}
		if round == 1 && !strings.HasPrefix(res.SameAs, "deployment-") {
			t.Errorf("same as %q", res.SameAs)
		}
		repo, err := d.registry.Repository("shop")
		check(t, err)
		if desc, _, err := repo.Manifest(t.Context(), "deployment-"+c.id); err != nil || desc.Digest.String() != res.Digest {
			t.Errorf("registry has %v, %v; result says %s", desc, err, res.Digest)
		}
		for i, e := range c.events {
			if e.Seq != uint64(i)+1 {
				t.Fatalf("event %d has number %d", i, e.Seq)
			}
		}
		got, err := d.client.GetBuild(as(t, "acme"), &slipwayv1.GetBuildRequest{Id: c.id})
		check(t, err)
		if !proto.Equal(got.Build.Result, res) || got.Build.Status != slipwayv1.BuildStatus_BUILD_STATUS_SUCCEEDED {
			t.Errorf("record %v", got.Build)
		}
	}
}

// Contents are asked for once, however many steps need them at a time.
func TestNeedsAtOnceAskOnce(t *testing.T) {
	d := start(t, &script{build: func(ctx context.Context, job *builder.Job) (*builder.Image, error) {
		m, err := job.Session.Manifest(ctx)
		if err != nil {
			return nil, err
		}
		var wg sync.WaitGroup
		errs := make([]error, 8)
		for i := range errs {
			wg.Go(func() {
				errs[i] = job.Session.Need(ctx, all(m)[i:])
				if errs[i] == nil {
					missing, err := buildctx.Needs(ctx, m, all(m)[i:], contentsOf(job))
					errs[i] = errors.Join(err, map[bool]error{true: fmt.Errorf("%d contents lack", len(missing))}[len(missing) > 0])
				}
			})
		}
		wg.Wait()
		if err := errors.Join(errs...); err != nil {
			return nil, err
		}
		return image(ctx, job, "x")
	}}, 1)
	files := map[string]string{}
	for i := range 20 {
		files[fmt.Sprint("f", i)] = strings.Repeat("x", i+1)
	}
	src := scan(t, files)
	c := d.call("acme", withContext(shop()))
	c.manifest(src)
	asked := map[uint32]int{}
	err := c.recv(func(m *slipwayv1.BuildResponse) bool {
		if w := m.GetWant(); w != nil {
			for _, i := range w.Entries {
				asked[i]++
			}
			c.serveWant(src, w)
		}
		return m.GetEvent().GetResult() != nil
	})
	check(t, err)
	for i, n := range asked {
		if n != 1 {
			t.Errorf("entry %d was asked for %d times", i, n)
		}
	}
	res := c.events[len(c.events)-1].GetResult()
	if len(asked) != 20 || res.Context.SentFiles != 20 || res.Status != slipwayv1.ResultStatus_RESULT_STATUS_SUCCEEDED {
		t.Errorf("%d entries asked for, result %v", len(asked), res)
	}
}

type missing struct{ *layercache.Contents }

func (missing) Add(context.Context, digest.Digest, int64, io.Reader) error {
	return errors.ErrUnsupported
}

func contentsOf(job *builder.Job) buildctx.Store { return missing{job.Cache.Contents()} }

// What a Need leaves behind when it is cancelled, the next one asks for again.
func TestNeedTakesOverFromACancelledOne(t *testing.T) {
	first := make(chan struct{})
	d := start(t, &script{build: func(ctx context.Context, job *builder.Job) (*builder.Image, error) {
		m, err := job.Session.Manifest(ctx)
		if err != nil {
			return nil, err
		}
		cut, cancel := context.WithCancelCause(ctx)
		go func() { <-first; cancel(errors.New("not needed")) }()
		var wg sync.WaitGroup
		var failed, second error
		wg.Go(func() { failed = job.Session.Need(cut, all(m)) })
		wg.Go(func() { <-first; second = job.Session.Need(ctx, all(m)) })
		wg.Wait()
		if failed == nil || second != nil {
			return nil, fmt.Errorf("cancelled need: %v, other: %v", failed, second)
		}
		return image(ctx, job, "x")
	}}, 1)
	src := scan(t, map[string]string{"a": "content"})
	c := d.call("acme", withContext(shop()))
	c.manifest(src)
	check(t, c.recv(wantMsg))
	close(first)
	check(t, c.recv(wantMsg))
	c.serveWant(src, c.wants[0]) // late: nobody waits for it
	c.serveWant(src, c.wants[1])
	if res := c.result(); res.Error != nil {
		t.Errorf("result %v", res.Error)
	}
}

func TestCredentialsGoNowhere(t *testing.T) {
	const secret = "correct-horse-battery"
	var log *logBuffer
	d := start(t, &script{plan: func(ctx context.Context, job *builder.Job) error {
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				cfg, err := job.Session.Credentials(ctx, "registry.example")
				if err != nil || cfg.Password != secret {
					t.Errorf("credentials %v", err)
				}
			})
		}
		wg.Wait()
		return errors.New("fails, for the log to tell")
	}}, 1)
	log = d.log
	c := d.call("acme", withContext(shop()))
	check(t, c.recv(askMsg))
	check(t, c.stream.Send(answer(c.asks[0].Id+100, "wrong one")))
	check(t, c.stream.Send(answer(c.asks[0].Id, secret)))
	check(t, c.stream.Send(answer(c.asks[0].Id, "a second answer")))
	res := c.result()
	wantCode(t, res, failure.Internal)
	if len(c.asks) != 1 {
		t.Errorf("asked %d times", len(c.asks))
	}
	text := log.String()
	for _, e := range c.events {
		text += protojson.Format(e)
	}
	b, err := d.records.Get(t.Context(), "acme", c.id)
	check(t, err)
	if text += string(b.Result); strings.Contains(text, secret) {
		t.Error("the password is in a log, an event or the record")
	}
}

// Who asked may give up before the client has answered; the next one, or one
// who waits already, asks again.
func TestCredentialsAreAskedForAgain(t *testing.T) {
	asked := make(chan struct{})
	d := start(t, &script{plan: func(ctx context.Context, job *builder.Job) error {
		cut, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		var others sync.WaitGroup
		for range 2 {
			others.Go(func() {
				<-asked
				cancel(errors.New("not needed"))
				if cfg, err := job.Session.Credentials(ctx, "registry.example"); err != nil || cfg.Password != "right" {
					t.Errorf("who waits gets %q, %v", cfg.Password, err)
				}
			})
		}
		defer others.Wait()
		if _, err := job.Session.Credentials(cut, "registry.example"); err == nil {
			t.Error("nobody answered, and there is an answer")
		}
		cfg, err := job.Session.Credentials(ctx, "registry.example")
		if err == nil && cfg.Password != "right" {
			err = fmt.Errorf("password %q", cfg.Password)
		}
		return err
	}}, 1)
	c := d.call("acme", shop())
	check(t, c.recv(askMsg))
	close(asked)
	check(t, c.recv(askMsg))
	check(t, c.stream.Send(answer(c.asks[0].Id, "late")))
	check(t, c.stream.Send(answer(c.asks[1].Id, "right")))
	if res := c.result(); res.Error != nil || len(c.asks) != 2 {
		t.Errorf("asked %d times, result %v", len(c.asks), res.Error)
	}
}

func answer(ask uint64, password string) *slipwayv1.BuildRequest {
	return &slipwayv1.BuildRequest{Message: &slipwayv1.BuildRequest_Answer{Answer: &slipwayv1.Answer{
		AskId: ask, Answer: &slipwayv1.Answer_Credentials{Credentials: &slipwayv1.Credentials{Username: "u", Password: password}},
	}}}
}

// Each compressor has levels of its own.
func TestCompressionLevels(t *testing.T) {
	const none, gzip, zstd, auto = slipwayv1.CompressionType_COMPRESSION_TYPE_NONE, slipwayv1.CompressionType_COMPRESSION_TYPE_GZIP,
		slipwayv1.CompressionType_COMPRESSION_TYPE_ZSTD, slipwayv1.CompressionType_COMPRESSION_TYPE_AUTO
	d := start(t, &script{}, 1)
	for _, tc := range []struct {
		kind  slipwayv1.CompressionType
		level int32
		says  string // "" if there is such a level
	}{
		{gzip, 0, ""}, {gzip, 9, ""}, {zstd, 0, ""}, {zstd, 10, ""}, {zstd, 22, ""}, {none, 22, ""}, {auto, 0, ""},
		{gzip, 10, "gzip has no compression level 10"}, {gzip, -1, "gzip has no compression level -1"},
		{0, 10, "gzip has no compression level 10"}, {zstd, 23, "zstd has no compression level 23"}, {auto, 1, "compression auto chooses the level itself"},
	} {
		s := shop()
		s.Compression = &slipwayv1.Compression{Type: tc.kind, Level: &tc.level}
		if got := d.call("acme", s).result().Error.GetMessage(); got != tc.says {
			t.Errorf("%v %d: %q, want %q", tc.kind, tc.level, got, tc.says)
		}
	}
}

func TestUnforeseenErrorsStayInside(t *testing.T) {
	d := start(t, &script{build: func(context.Context, *builder.Job) (*builder.Image, error) {
		return nil, errors.New("open /var/lib/slipway/cache/meta.db: input/output error")
	}}, 1)
	c := d.call("acme", shop())
	res := c.result()
	wantCode(t, res, failure.Internal)
	if text := protojson.Format(res); strings.Contains(text, "/var/lib") {
		t.Errorf("the client gets %s", text)
	}
	if !strings.Contains(d.log.String(), "/var/lib/slipway/cache/meta.db") {
		t.Error("the log does not tell")
	}
}

// Whatever a client does instead of what it should, its build ends and says so.
func TestClientsThatMisbehave(t *testing.T) {
	part := &slipwayv1.BuildRequest{Message: &slipwayv1.BuildRequest_Manifest{Manifest: &slipwayv1.ManifestPart{Last: true}}}
	for _, tc := range []struct {
		name string
		do   func(*call)
		code string
	}{
		{"says no more before the manifest", func(c *call) { check(t, c.stream.CloseSend()) }, failure.ClientLost},
		{"sends the manifest twice", func(c *call) { check(t, c.stream.Send(part)); check(t, c.stream.Send(part)) }, failure.InvalidArgument},
		{"starts twice", func(c *call) { c.start(shop()) }, failure.InvalidArgument},
		{"sends a manifest of garbage", func(c *call) {
			check(t, c.stream.Send(&slipwayv1.BuildRequest{Message: &slipwayv1.BuildRequest_Manifest{Manifest: &slipwayv1.ManifestPart{Entries: []byte("garbage")}}}))
		}, failure.ContextInvalid},
		{"serves no want and ends", func(c *call) {
			c.manifest(scan(t, map[string]string{"a": c.id}))
			check(t, c.recv(wantMsg))
			check(t, c.stream.CloseSend())
		}, failure.ClientLost},
		{"reports a file that has changed", func(c *call) {
			c.manifest(scan(t, map[string]string{"a": c.id}))
			check(t, c.recv(wantMsg))
			check(t, c.stream.Send(frame(&slipwayv1.ContentFrame{WantId: c.wants[0].Id, Last: true, Error: &slipwayv1.ContentError{Message: "gone"}})))
		}, failure.ContextChanged},
		{"sends other bytes", func(c *call) {
			c.manifest(scan(t, map[string]string{"a": "12345678901234567890123456"}))
			check(t, c.recv(wantMsg))
			check(t, c.stream.Send(frame(&slipwayv1.ContentFrame{WantId: c.wants[0].Id, Codec: slipwayv1.Codec_CODEC_NONE, Size: 26, Data: []byte("abcdefghijklmnopqrstuvwxyz"), Last: true})))
		}, failure.ContextChanged},
		{"says nothing in a message, answers what nobody asked, frames for no want, then cancels", func(c *call) {
			check(t, c.stream.Send(&slipwayv1.BuildRequest{}))
			check(t, c.stream.Send(answer(7, "x")))
			check(t, c.stream.Send(frame(&slipwayv1.ContentFrame{WantId: 99, Last: true})))
			check(t, c.stream.Send(frame(&slipwayv1.ContentFrame{})))
			check(t, c.stream.Send(&slipwayv1.BuildRequest{Message: &slipwayv1.BuildRequest_Cancel{Cancel: &slipwayv1.Cancel{}}}))
		}, failure.Cancelled},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := start(t, &script{build: needAll}, 1)
			c := d.call("acme", withContext(shop()))
			tc.do(c)
			wantCode(t, c.result(), tc.code)
			if b, err := d.records.Get(t.Context(), "acme", c.id); err != nil || !b.Done() {
				t.Errorf("record %v, %v", b, err)
			}
		})
	}
}

func frame(f *slipwayv1.ContentFrame) *slipwayv1.BuildRequest {
	return &slipwayv1.BuildRequest{Message: &slipwayv1.BuildRequest_Content{Content: f}}
}

// names are n ids.
func names(n int) []string {
	var ids []string
	for i := range n {
		ids = append(ids, fmt.Sprint("n", i))
	}
	return ids
}

func TestStartsThatAreRefused(t *testing.T) {
	d := start(t, &script{}, 0)
	long := strings.Repeat("x", 600<<10)
	for name, s := range map[string]*slipwayv1.Start{
		"no app": {}, "upper case": {App: "Shop"}, "path": {App: "a/b"}, "dots": {App: "a..b"}, "long": {App: strings.Repeat("a", 101)},
		"tag": {App: "shop", Tag: "-x"}, "Dockerfile": {App: "shop", Dockerfile: &slipwayv1.Dockerfile{Content: []byte(long)}},
		"key": {App: "shop", IdempotencyKey: strings.Repeat("k", 201)}, "args": {App: "shop", BuildArgs: map[string]string{"A": long}},
		"secret without id": {App: "shop", SecretIds: []string{""}}, "secret twice": {App: "shop", SecretIds: []string{"a", "b", "a"}},
		"secret with a space": {App: "shop", SecretIds: []string{"a b"}}, "many secrets": {App: "shop", SecretIds: names(101)},
		"agent twice": {App: "shop", AgentIds: []string{"default", "default"}}, "agent's id": {App: "shop", AgentIds: []string{"=x"}},
		"many agents": {App: "shop", AgentIds: names(101)}, "agent, detached": {App: "shop", AgentIds: []string{"default"}, Detach: true},
	} {
		c := d.open("acme")
		c.start(s)
		if _, err := c.stream.Recv(); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
	c := d.open("acme")
	check(t, c.stream.CloseSend())
	if _, err := c.stream.Recv(); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a call without a start: %v", err)
	}
	d.srv.Drain()
	c = d.open("acme")
	c.start(shop())
	if _, err := c.stream.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("while draining: %v", err)
	}
	left, err := d.records.List(t.Context(), records.Query{Org: "acme", Limit: 10})
	if err != nil || len(left) != 0 {
		t.Errorf("%d records, %v", len(left), err)
	}
}

// A detached build checks all it can while its client is there, and needs
// nothing of it once the context is.
func TestDetach(t *testing.T) {
	left := make(chan struct{})
	d := start(t, &script{
		plan: func(ctx context.Context, job *builder.Job) error {
			_, err := job.Session.Credentials(ctx, "registry.example")
			return err
		},
		build: func(ctx context.Context, job *builder.Job) (*builder.Image, error) {
			<-left
			if _, err := job.Session.Credentials(ctx, "registry.example"); err != nil {
				return nil, err
			}
			return needAll(ctx, job)
		},
	}, 1, func(o *server.Options, _ *fleet.Options) { o.Grace = time.Nanosecond })
	s := withContext(shop())
	s.Detach = true
	src := scan(t, map[string]string{"a": "one"})
	c := d.call("acme", s)
	c.manifest(src)
	check(t, c.recv(func(m *slipwayv1.BuildResponse) bool { return askMsg(m) || wantMsg(m) }))
	if len(c.asks) != 1 {
		t.Fatal("contents travel before the preflight")
	}
	check(t, c.stream.Send(answer(c.asks[0].Id, "x")))
	check(t, c.recv(wantMsg))
	c.serveWant(src, c.wants[0])
	check(t, c.recv(func(m *slipwayv1.BuildResponse) bool {
		p := m.GetEvent().GetPhase()
		return p.GetDone() && p.GetName() == slipwayv1.PhaseName_PHASE_NAME_CONTEXT
	}))
	c.cancel()
	for c.recv(func(*slipwayv1.BuildResponse) bool { return false }) == nil {
	}
	close(left)
	if res := d.watch(c.id); res.Error != nil {
		t.Errorf("result %v", res.Error)
	}
}

// watch follows a build to its result.
func (d *daemon) watch(id string) *slipwayv1.Result {
	d.t.Helper()
	s, err := d.client.WatchBuild(as(d.t, "acme"), &slipwayv1.WatchBuildRequest{Id: id})
	check(d.t, err)
	var res *slipwayv1.Result
	for {
		m, err := s.Recv()
		if err == io.EOF {
			break
		}
		check(d.t, err)
		if r := m.Event.GetResult(); r != nil {
			res = r
		}
	}
	if res == nil {
		d.t.Fatal("no result")
	}
	return res
}

// What has arrived stays when a build fails, also for a prune.
func TestContentsOfAFailedBuildStay(t *testing.T) {
	fail := true
	d := start(t, &script{build: func(ctx context.Context, job *builder.Job) (*builder.Image, error) {
		img, err := needAll(ctx, job)
		if fail {
			return nil, failure.Userf(failure.StepFailed, "", "no")
		}
		return img, err
	}}, 1)
	src := scan(t, map[string]string{"a": "one", "b": "two"})
	c := d.call("acme", withContext(shop()))
	c.manifest(src)
	check(t, c.recv(wantMsg))
	c.serveWant(src, c.wants[0])
	wantCode(t, c.result(), failure.StepFailed)
	_, err := slipwayv1.NewCacheServiceClient(d.cc).Prune(as(t, "acme"), &slipwayv1.PruneRequest{All: true})
	check(t, err)
	fail = false
	c = d.call("acme", withContext(shop()))
	c.manifest(src)
	if res := c.result(); res.Error != nil || len(c.wants) != 0 {
		t.Errorf("result %v after %d wants", res, len(c.wants))
	}
	// After a success nothing is held: a prune empties the cache.
	_, err = d.cache.Prune(t.Context(), layercache.PruneOptions{Org: "acme", All: true})
	check(t, err)
}

// A large context travels in several wants: what came with the first is there
// while the others are on their way. A file that has changed ends it all, and
// nothing more is asked for.
func TestContentsComeInParts(t *testing.T) {
	early := make(chan error, 1)
	d := start(t, &script{build: func(ctx context.Context, job *builder.Job) (*builder.Image, error) {
		m, err := job.Session.Manifest(ctx)
		if err != nil {
			return nil, err
		}
		go func() { early <- job.Session.Need(ctx, []int{0}) }()
		err = job.Session.Need(ctx, all(m))
		if err == nil {
			return nil, errors.New("a context without its last file is complete")
		}
		if again := job.Session.Need(ctx, all(m)); again == nil || again.Error() != err.Error() {
			return nil, fmt.Errorf("asked again: %v", again)
		}
		return nil, err
	}}, 1)
	files := map[string]string{}
	for i := range 5 {
		files[fmt.Sprint("f", i)] = strings.Repeat(string(rune('a'+i)), 20<<20)
	}
	src := scan(t, files)
	c := d.call("acme", withContext(shop()))
	c.manifest(src)
	served := 0
	check(t, c.recv(func(m *slipwayv1.BuildResponse) bool {
		w := m.GetWant()
		if w == nil {
			return m.GetEvent().GetResult() != nil
		}
		if served++; served == 1 {
			c.serveWant(src, w)
			check(t, <-early) // while nothing else has come
			return false
		}
		check(t, c.stream.Send(&slipwayv1.BuildRequest{Message: &slipwayv1.BuildRequest_Content{Content: &slipwayv1.ContentFrame{
			WantId: w.Id, Error: &slipwayv1.ContentError{Entry: w.Entries[0], Message: "it has changed"},
		}}}))
		return false
	}))
	if served > 3 {
		t.Errorf("%d wants, some after the fault", served)
	}
	wantCode(t, d.watch(c.id), failure.ContextChanged)
}
