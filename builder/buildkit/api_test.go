package buildkit

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/test/bufconn"

	"github.com/slipwayhq/slipway/builder"
	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/layercache"
	"github.com/slipwayhq/slipway/pushd"
	"github.com/slipwayhq/slipway/registry"
)

// A house is a daemon's part that BuildKit's clients see: the API, a builder
// that pushes, a registry. Who calls is what the call says: "org/app/id".
type house struct {
	t        *testing.T
	root     string
	engine   *Engine
	api      *API
	registry *registry.Registry
	pipe     *bufconn.Listener

	mu      sync.Mutex
	blocked chan struct{} // while not nil, manifests wait for it
	reached chan struct{} // closed when one waits
	puts    int           // manifests that came
	denied  map[string]bool
}

const ownHost = "own.test"

// open builds a house that checks that nothing of builds is left in it.
func openHouse(t *testing.T, max int64) *house {
	t.Helper()
	h := &house{t: t, root: t.TempDir(), denied: map[string]bool{}}
	store := openStore(t, layercache.Options{})
	var err error
	h.registry, err = registry.Open(t.Context(), registry.Options{Root: filepath.Join(h.root, "registry"),
		Access: everybody{}})
	fatal(t, err)
	t.Cleanup(func() { fatal(t, h.registry.Close()) })
	nowhere := roundTripper(func(r *http.Request) (*http.Response, error) { return nil, fmt.Errorf("no way to %s", r.URL.Host) })
	images := &Registries{Direct: nowhere, Redirect: nowhere, Local: nowhere, IsLocal: func(host string) bool { return host == ownHost }}
	h.engine, err = New(Options{Cache: store, Root: filepath.Join(h.root, "buildkit"), MaxSize: max, Fetch: nowhere,
		Hosts: func(string) docker.RegistryHosts { return images.Hosts }})
	fatal(t, err)
	h.api = h.engine.API(APIOptions{
		Builder: builder.New(builder.Options{Cache: store, Engine: pushd.NewEngine(nil), MaxSize: max, Destination: h.destination}),
		Caller:  caller, Allow: h.allow, Code: code,
		Repository: func(name string) (string, bool) { return strings.CutPrefix(name, ownHost+"/") },
	})
	h.serve()
	return h
}

// everybody may do everything in a registry.
type everybody struct{}

func (everybody) Authenticate(context.Context, string, string) (string, error) { return "", nil }
func (everybody) Authorize(context.Context, string, string, ...string) error   { return nil }
func (everybody) Allowed(_ context.Context, _, _ string, do ...string) ([]string, error) {
	return do, nil
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func caller(ctx context.Context) Caller {
	md, _ := metadata.FromIncomingContext(ctx)
	part := strings.Split(strings.Join(md.Get("who"), ""), "/")
	return Caller{Org: part[0], App: part[1], ID: part[2]}
}

// allow is as tokens are: one for an app is for no other, and not for all.
func (h *house) allow(ctx context.Context, do Action, app string) error {
	c := caller(ctx)
	if c.App != "" && c.App != app || do == Prune && c.App != "" || h.denied[c.ID] {
		return failure.Userf(failure.PermissionDenied, "", "%s may not do %v to %q", c.ID, do, app)
	}
	return nil
}

func code(c string) (codes.Code, bool) {
	known, ok := map[string]codes.Code{
		failure.InvalidArgument: codes.InvalidArgument, failure.PermissionDenied: codes.PermissionDenied, failure.NotSupported: codes.Unimplemented,
		failure.TooLarge: codes.ResourceExhausted, failure.FileNotFound: codes.NotFound, failure.BaseUnavailable: codes.Unavailable,
		failure.Unavailable: codes.Unavailable, failure.DaemonStopped: codes.Unavailable, failure.Cancelled: codes.Canceled,
		failure.RegistryDenied: codes.PermissionDenied, failure.Internal: codes.Internal, failure.ClientLost: codes.Aborted, failure.ContextInvalid: codes.InvalidArgument,
	}[c]
	return known, ok
}

func (h *house) serve() {
	g := grpc.NewServer(grpc.MaxRecvMsgSize(16 << 20))
	h.api.Register(g)
	h.pipe = bufconn.Listen(1 << 20)
	var serving sync.WaitGroup
	serving.Go(func() { _ = g.Serve(h.pipe) })
	h.t.Cleanup(func() {
		h.idle()
		g.Stop()
		serving.Wait()
		fatal(h.t, h.engine.Close())
	})
}

// idle waits until nothing of any build is left.
func (h *house) idle() {
	h.t.Helper()
	var left string
	for range 500 {
		if left = h.left(); left == "" {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	h.t.Errorf("left behind: %s", left)
}

func (h *house) left() string {
	h.engine.mu.Lock()
	defer h.engine.mu.Unlock()
	for org, o := range h.engine.tenants {
		t := o.tenant
		t.builds.mu.Lock()
		t.owners.mu.Lock()
		t.solves.mu.Lock()
		builds, owned, solves := len(t.builds.all), len(t.owners.all), len(t.solves.all)
		t.builds.mu.Unlock()
		t.owners.mu.Unlock()
		t.solves.mu.Unlock()
		if builds+owned+solves > 0 {
			return fmt.Sprintf("%d builds, %d sessions and %d solves of %s", builds, owned, solves, org)
		}
	}
	return ""
}

func (h *house) destination(_ context.Context, p builder.Place) (builder.Remote, error) {
	path, ok := strings.CutPrefix(p.Name, ownHost+"/")
	if !ok {
		return builder.Remote{}, errors.New("no such registry")
	}
	repo, err := h.registry.Repository(path)
	if err != nil {
		return builder.Remote{}, err
	}
	return builder.Remote{Target: &door{pushd.NewLocal(p.Name, repo, h.root), h}, Name: p.Name}, nil
}

// A door may keep manifests waiting.
type door struct {
	pushd.Target
	house *house
}

func (d *door) PutManifest(ctx context.Context, desc ocispecDescriptor, raw []byte, tags []string, w pushd.Watcher) error {
	d.house.mu.Lock()
	blocked := d.house.blocked
	if d.house.reached != nil {
		close(d.house.reached)
		d.house.reached = nil
	}
	d.house.puts++
	d.house.mu.Unlock()
	if blocked != nil {
		select {
		case <-blocked:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return d.Target.PutManifest(ctx, desc, raw, tags, w)
}

// client returns a client of BuildKit's for a caller.
func (h *house) client(who string) *client.Client {
	h.t.Helper()
	c, err := client.New(h.t.Context(), "passthrough:///house",
		client.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return h.pipe.DialContext(ctx) }),
		client.WithGRPCDialOption(grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, next grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			return next(metadata.AppendToOutgoingContext(ctx, "who", who), method, req, reply, cc, opts...)
		})),
		client.WithGRPCDialOption(grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, next grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			return next(metadata.AppendToOutgoingContext(ctx, "who", who), desc, cc, method, opts...)
		})))
	fatal(h.t, err)
	h.t.Cleanup(func() { c.Close() })
	return c
}

// file is a definition of a file system with one file.
func file(t *testing.T, name, content string) *llb.Definition {
	t.Helper()
	return marshal(t, llb.Scratch().File(llb.Mkfile(name, 0o644, []byte(content))))
}

func marshal(t *testing.T, s llb.State) *llb.Definition {
	t.Helper()
	def, err := s.Marshal(t.Context(), llb.LinuxAmd64)
	fatal(t, err)
	return def
}

// pushed is a solve whose image goes to a name.
func pushed(name string) client.SolveOpt {
	return client.SolveOpt{Exports: []client.ExportEntry{{Type: client.ExporterImage, Attrs: map[string]string{"name": name, "push": "true"}}}}
}

// is fails the test unless the error has the code and the text.
func is(t *testing.T, what string, err error, want codes.Code, text string) {
	t.Helper()
	if got := grpcerrors.Code(err); got != want || err == nil || !strings.Contains(err.Error(), text) {
		t.Errorf("%s: %v (%v); want %v with %q", what, err, got, want, text)
	}
}

func TestAPISolve(t *testing.T) {
	h := openHouse(t, -1)
	c := h.client("acme//one")
	resp, err := c.Solve(t.Context(), file(t, "/hello", "world"), pushed(ownHost+"/shop:1,"+ownHost+"/shop:2"), nil)
	fatal(t, err)
	repo, err := h.registry.Repository("shop")
	fatal(t, err)
	for _, tag := range []string{"1", "2"} {
		d, _, err := repo.Manifest(t.Context(), tag)
		if err != nil || d.Digest.String() != resp.ExporterResponse["containerimage.digest"] {
			t.Errorf("tag %s: %v, %v; the answer is %v", tag, d, err, resp.ExporterResponse)
		}
	}
	for _, key := range []string{"containerimage.config.digest", "containerimage.descriptor", "image.name"} {
		if resp.ExporterResponse[key] == "" {
			t.Errorf("the answer lacks %s: %v", key, resp.ExporterResponse)
		}
	}
	if got := resp.ExporterResponse["image.name"]; got != ownHost+"/shop:1,"+ownHost+"/shop:2" {
		t.Errorf("name %q", got)
	}
	opt := pushed(ownHost + "/shop")
	opt.Exports[0].Attrs["push-by-digest"] = "true"
	resp, err = c.Solve(t.Context(), file(t, "/hello", "you"), opt, nil)
	fatal(t, err)
	if _, _, err := repo.Manifest(t.Context(), resp.ExporterResponse["containerimage.digest"]); err != nil {
		t.Errorf("by digest: %v", err)
	}
	if _, _, err := repo.Manifest(t.Context(), "latest"); err == nil {
		t.Error("by digest, and a tag was made")
	}
	opt = pushed(ownHost + "/shop:3")
	opt.Exports[0].Attrs["push"] = "false"
	resp, err = c.Solve(t.Context(), file(t, "/hello", "me"), opt, nil)
	fatal(t, err)
	if _, _, err := repo.Manifest(t.Context(), "3"); err == nil || resp.ExporterResponse["containerimage.digest"] == "" {
		t.Errorf("not to be pushed: %v, %v", err, resp.ExporterResponse)
	}
}

func TestAPITenants(t *testing.T) {
	h := openHouse(t, -1)
	ctx := t.Context()
	a, b := h.client("acme//one"), h.client("bolt//two")
	opt := pushed(ownHost + "/shop:1")
	opt.Ref = "thebuildofacme"
	resp, err := a.Solve(ctx, file(t, "/hello", "world"), opt, nil)
	fatal(t, err)
	digest := resp.ExporterResponse["containerimage.digest"]

	wa, err := a.ListWorkers(ctx)
	fatal(t, err)
	wb, err := b.ListWorkers(ctx)
	fatal(t, err)
	if len(wa) != 1 || len(wb) != 1 || wa[0].ID == wb[0].ID {
		t.Errorf("workers %v and %v", wa, wb)
	}
	used := func(c *client.Client) int {
		du, err := c.DiskUsage(ctx)
		fatal(t, err)
		return len(du)
	}
	if n := used(b); n != 0 || used(a) == 0 {
		t.Errorf("%d and %d records", n, used(a))
	}
	fatal(t, b.Prune(ctx, nil, client.PruneAll))
	if used(a) == 0 {
		t.Error("what acme has was pruned by bolt")
	}
	history := func(c *client.Client, ref string) (all []string) {
		t.Helper()
		s, err := c.ControlClient().ListenBuildHistory(ctx, &controlapi.BuildHistoryRequest{EarlyExit: true, Ref: ref})
		fatal(t, err)
		for {
			e, err := s.Recv()
			if err != nil {
				return all
			}
			all = append(all, e.Record.Ref)
		}
	}
	if got := history(a, ""); len(got) != 1 || got[0] != opt.Ref {
		t.Errorf("acme's history: %v", got)
	}
	for _, ref := range []string{"", opt.Ref} {
		if got := history(b, ref); len(got) != 0 {
			t.Errorf("bolt's history: %v", got)
		}
	}
	_, _ = b.ControlClient().UpdateBuildHistory(ctx, &controlapi.UpdateBuildHistoryRequest{Ref: opt.Ref, Delete: true})
	if got := history(a, opt.Ref); len(got) != 1 {
		t.Errorf("acme's history, later: %v", got)
	}
	status := func(c *client.Client) error {
		s, err := c.ControlClient().Status(ctx, &controlapi.StatusRequest{Ref: opt.Ref})
		fatal(t, err)
		_, err = s.Recv()
		return err
	}
	if err := status(a); err != nil {
		t.Errorf("acme's status: %v", err)
	}
	is(t, "acme's status, for bolt", status(b), codes.NotFound, "no such job")

	content := func(c *client.Client) error {
		_, err := c.ContentClient().Info(ctx, infoRequest(digest))
		return err
	}
	if err := content(a); err != nil {
		t.Errorf("acme's content: %v", err)
	}
	is(t, "acme's content, for bolt", content(b), codes.NotFound, digest)
	_, err = a.ContentClient().Delete(ctx, deleteRequest(digest))
	if err == nil || content(a) != nil {
		t.Errorf("content could be deleted: %v", err)
	}
}

// In an org, who is for an app sees that app, and knows no other's sessions.
func TestAPIApps(t *testing.T) {
	h := openHouse(t, -1)
	ctx := t.Context()
	shop, blog := h.client("acme/shop/one"), h.client("acme/blog/two")
	_, err := blog.Solve(ctx, file(t, "/hello", "world"), pushed(ownHost+"/shop:1"), nil)
	is(t, "push to another app", err, codes.PermissionDenied, `"shop"`)
	is(t, "prune", blog.Prune(ctx, nil), codes.PermissionDenied, "may not")
	_, err = blog.DiskUsage(ctx)
	is(t, "usage", err, codes.PermissionDenied, "may not")
	s, err := blog.ControlClient().ListenBuildHistory(ctx, &controlapi.BuildHistoryRequest{EarlyExit: true})
	fatal(t, err)
	_, err = s.Recv()
	is(t, "history", err, codes.PermissionDenied, "may not")

	session := openSession(t, shop, "session-of-shop")
	_, err = blog.ControlClient().Solve(ctx, &controlapi.SolveRequest{Ref: "r1", Session: "session-of-shop", Definition: file(t, "/a", "b").ToPB()})
	is(t, "another's session", err, codes.PermissionDenied, "not this client's")
	is(t, "the same id", endOf(t, blog, "session-of-shop"), codes.PermissionDenied, "not this client's")
	is(t, "the same id again", endOf(t, shop, "session-of-shop"), codes.AlreadyExists, "has a session already")
	is(t, "an id with a colon", endOf(t, blog, "x:session-of-shop"), codes.InvalidArgument, "no id")
	for _, id := range []string{"session-of-shop", "x:session-of-shop"} {
		_, err = blog.ControlClient().Solve(ctx, &controlapi.SolveRequest{Ref: "r" + id[:1], Definition: marshal(t, llb.Local("context", llb.SessionID(id))).ToPB()})
		is(t, "files of another's session", err, codes.PermissionDenied, "not this client's")
		layout := llb.OCILayout("x/y@sha256:"+strings.Repeat("0", 64), llb.OCIStore(id, "store"))
		_, err = blog.Solve(ctx, marshal(t, layout), client.SolveOpt{}, nil)
		is(t, "images of another's session", err, codes.PermissionDenied, "not this client's")
	}
	session()
}

func TestAPIRefuses(t *testing.T) {
	h := openHouse(t, 50_000)
	c := h.client("acme//one")
	exec := func(opts ...llb.RunOption) *llb.Definition {
		return marshal(t, llb.Scratch().Run(append(opts, llb.Args([]string{"/true"}))...).Root())
	}
	export := func(typ string, attrs ...string) client.SolveOpt {
		e := client.ExportEntry{Type: typ, Attrs: map[string]string{}}
		for i := 0; i < len(attrs); i += 2 {
			e.Attrs[attrs[i]] = attrs[i+1]
		}
		return client.SolveOpt{Exports: []client.ExportEntry{e}}
	}
	cached := func(typ string) client.SolveOpt {
		return client.SolveOpt{CacheExports: []client.CacheOptionsEntry{{Type: typ}}}
	}
	name := ownHost + "/shop:1"
	small := file(t, "/a", "b")
	for _, tc := range []struct {
		name string
		def  *llb.Definition
		opt  client.SolveOpt
		code codes.Code
		text string
	}{
		{"host network", exec(llb.Network(llb.NetModeHost)), client.SolveOpt{}, codes.PermissionDenied, "network.host is not allowed"},
		{"host network, allowed by the client", exec(llb.Network(llb.NetModeHost)), client.SolveOpt{AllowedEntitlements: []string{"network.host"}}, codes.PermissionDenied, "network.host is not allowed here"},
		{"insecure", exec(llb.Security(llb.SecurityModeInsecure)), client.SolveOpt{AllowedEntitlements: []string{"security.insecure"}}, codes.PermissionDenied, "security.insecure is not allowed"},
		{"device", exec(llb.AddCDIDevice(llb.CDIDeviceName("vendor.com/gpu=1"))), client.SolveOpt{}, codes.PermissionDenied, "CDI device"},
		{"proxied network", small, client.SolveOpt{ProxyNetwork: true}, codes.Unimplemented, "proxied network"},
		{"output", small, export("moby"), codes.Unimplemented, `no output of type "moby" here; use one of image, local, tar, oci, docker`},
		{"cache export", small, cached("gha"), codes.Unimplemented, "use one of registry, local, inline"},
		{"cache import", small, client.SolveOpt{CacheImports: []client.CacheOptionsEntry{{Type: "s3"}}}, codes.Unimplemented, "use one of registry, local"},
		{"no name", small, export("image", "push", "true"), codes.InvalidArgument, "needs a name"},
		{"bad name", small, export("image", "push", "true", "name", "UPPER/case"), codes.InvalidArgument, "UPPER/case"},
		{"digest in the name", small, export("image", "push", "true", "name", ownHost+"/a@sha256:"+strings.Repeat("0", 64)), codes.InvalidArgument, "digest"},
		{"tag by digest", small, export("image", "push", "true", "name", name, "push-by-digest", "true"), codes.InvalidArgument, "has a tag"},
		{"no flag", small, export("image", "push", "maybe", "name", name), codes.InvalidArgument, "maybe"},
		{"option", small, export("image", "name", name, "colour", "red"), codes.InvalidArgument, `no option "colour"`},
		{"compression", small, export("image", "name", name, "compression", "estargz"), codes.Unimplemented, "use one of gzip, zstd, uncompressed"},
		{"level", small, export("image", "name", name, "compression", "gzip", "compression-level", "99"), codes.InvalidArgument, "99"},
		{"media types", small, export("image", "name", name, "oci-artifact", "true", "oci-mediatypes", "false"), codes.InvalidArgument, "oci-mediatypes"},
		{"another's build", small, export("image", "name", name, "slipway.build", "x", "slipway.other", "y"), codes.InvalidArgument, "slipway.other"},
		{"too large", file(t, "/big", strings.Repeat("x", 100_000)), pushed(name), codes.ResourceExhausted, "unpacked root file system reached"},
		{"no such registry", small, pushed("elsewhere.test/shop:1"), codes.InvalidArgument, "elsewhere.test/shop"},
		{"base image", marshal(t, llb.Image("elsewhere.test/base:1")), client.SolveOpt{}, codes.Unavailable, "no way to elsewhere.test"},
		{"frontend image", nil, client.SolveOpt{Frontend: "gateway.v0", FrontendAttrs: map[string]string{"source": "elsewhere.test/frontend:1"}}, codes.Unavailable, "no way to elsewhere.test"},
		{"frontend", nil, client.SolveOpt{Frontend: "nosuch.v0"}, codes.InvalidArgument, "nosuch.v0"},
		{"git", marshal(t, llb.Git("https://elsewhere.test/a.git", "main")), client.SolveOpt{}, codes.Unimplemented, "does not fetch Git repositories"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			_, err := c.Solve(ctx, tc.def, tc.opt, nil)
			is(t, tc.name, err, tc.code, tc.text)
		})
	}
	if _, err := c.Solve(t.Context(), small, pushed(name), nil); err != nil {
		t.Errorf("after all that: %v", err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.puts != 1 {
		t.Errorf("%d manifests were pushed", h.puts)
	}
}

// A definition may be large, but neither endless nor the daemon's end.
func TestAPIOversized(t *testing.T) {
	h := openHouse(t, -1)
	c := h.client("acme//one")
	solve := func(def *pb.Definition) error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err := c.ControlClient().Solve(ctx, &controlapi.SolveRequest{Ref: identity.NewID(), Definition: def})
		return err
	}
	is(t, "a large definition", solve(&pb.Definition{Def: [][]byte{make([]byte, 20<<20)}}), codes.ResourceExhausted, "larger than max")
	deep := &pb.Definition{}
	var below *pb.Input
	add := func(op *pb.Op) {
		if below != nil {
			op.Inputs = []*pb.Input{below}
		}
		raw, err := op.MarshalVT()
		fatal(t, err)
		deep.Def = append(deep.Def, raw)
		below = &pb.Input{Digest: digest.FromBytes(raw).String()}
	}
	add(&pb.Op{Op: &pb.Op_Source{Source: &pb.SourceOp{Identifier: "docker-image://elsewhere.test/base:1"}}})
	for range 900 {
		add(&pb.Op{Op: &pb.Op_Exec{Exec: &pb.ExecOp{Meta: &pb.Meta{Args: []string{"/true"}, Cwd: "/"}, Mounts: []*pb.Mount{{Dest: "/"}}}}})
	}
	end := len(deep.Def)
	add(&pb.Op{})
	is(t, "a deep definition", solve(deep), codes.Unavailable, "no way to elsewhere.test")
	deep.Def, below = deep.Def[:end], &pb.Input{Digest: digest.FromBytes(deep.Def[end-1]).String()}
	for range 150_000 {
		add(&pb.Op{})
	}
	is(t, "one too deep", solve(deep), codes.InvalidArgument, "are too many, 1000 are allowed")
	for name, raw := range map[string][]byte{"rubbish": []byte("\xff\xff\xff"), "no operation": {}, "a lone input": mustMarshal(t, &pb.Op{Inputs: []*pb.Input{{Digest: "sha256:none"}}})} {
		if err := solve(&pb.Definition{Def: [][]byte{raw}}); err == nil {
			t.Errorf("%s was built", name)
		}
	}
	if _, err := c.Solve(t.Context(), file(t, "/a", "b"), pushed(ownHost+"/shop:1"), nil); err != nil {
		t.Errorf("another build: %v", err)
	}
}

func mustMarshal(t *testing.T, op *pb.Op) []byte {
	t.Helper()
	raw, err := op.MarshalVT()
	fatal(t, err)
	return raw
}
