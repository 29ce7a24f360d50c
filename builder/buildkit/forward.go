package buildkit

import (
	"context"
	"errors"
	"io"
	"path"
	"strings"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	apitypes "github.com/moby/buildkit/api/types"
	"github.com/moby/buildkit/client/buildid"
	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// through decides about a call that a tenant's own server is to answer: it
// returns a connection to it, and what makes the client's error of the
// server's. req is nil for streams. An answer that it has itself needs no
// server.
type through func(ctx context.Context, method string, req proto.Message) (r route)

// A route is where a call goes.
type route struct {
	to     grpc.ClientConnInterface
	answer proto.Message     // if there is one already
	err    error             // if it goes nowhere
	status func(error) error // for the client
	done   func()            // is called when the call has ended; nil for nothing
}

// forward serves a service by sending its calls on, whatever methods it has.
func forward(g *grpc.Server, desc grpc.ServiceDesc, t through) {
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(desc.ServiceName))
	if err != nil {
		panic(err) // its package registers it
	}
	methods := d.(protoreflect.ServiceDescriptor).Methods()
	own := grpc.ServiceDesc{ServiceName: desc.ServiceName, Metadata: desc.Metadata}
	for _, m := range desc.Methods {
		md := methods.ByName(protoreflect.Name(m.MethodName))
		f := &forwarded{name: "/" + desc.ServiceName + "/" + m.MethodName, in: typeOfMessage(md.Input()), out: typeOfMessage(md.Output()), through: t}
		own.Methods = append(own.Methods, grpc.MethodDesc{MethodName: m.MethodName, Handler: f.unary})
	}
	for _, s := range desc.Streams {
		md := methods.ByName(protoreflect.Name(s.StreamName))
		f := &forwarded{name: "/" + desc.ServiceName + "/" + s.StreamName, in: typeOfMessage(md.Input()), out: typeOfMessage(md.Output()), through: t, desc: s}
		f.desc.Handler = nil
		s.Handler = func(_ any, stream grpc.ServerStream) error { return f.stream(stream) }
		own.Streams = append(own.Streams, s)
	}
	g.RegisterService(&own, nil)
}

func typeOfMessage(d protoreflect.MessageDescriptor) protoreflect.MessageType {
	t, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
	if err != nil {
		panic(err) // its package registers it
	}
	return t
}

// A forwarded method is one that another server answers.
type forwarded struct {
	name    string
	in, out protoreflect.MessageType
	through through
	desc    grpc.StreamDesc
}

func (f *forwarded) unary(_ any, ctx context.Context, decode func(any) error, via grpc.UnaryServerInterceptor) (any, error) { //nolint:revive // as gRPC has it
	in := f.in.New().Interface()
	if err := decode(in); err != nil {
		return nil, err
	}
	if via == nil {
		return f.call(ctx, in)
	}
	return via(ctx, in, &grpc.UnaryServerInfo{FullMethod: f.name}, func(ctx context.Context, req any) (any, error) {
		return f.call(ctx, req.(proto.Message))
	})
}

func (f *forwarded) call(ctx context.Context, in proto.Message) (any, error) {
	r := f.through(ctx, path.Base(f.name), in)
	if r.done != nil {
		defer r.done()
	}
	if r.err != nil || r.answer != nil {
		return r.answer, r.err
	}
	out := f.out.New().Interface()
	if err := r.to.Invoke(onward(ctx), f.name, in, out); err != nil {
		return nil, r.status(err)
	}
	return out, nil
}

// stream passes messages on in both directions until the server ends the call.
func (f *forwarded) stream(client grpc.ServerStream) error {
	ctx, cancel := context.WithCancel(client.Context())
	defer cancel()
	r := f.through(ctx, path.Base(f.name), nil)
	if r.done != nil {
		defer r.done()
	}
	if r.err != nil {
		return r.err
	}
	server, err := r.to.NewStream(onward(ctx), &f.desc, f.name)
	if err != nil {
		return r.status(err)
	}
	// It ends with the client's stream, soon after this call: nobody waits for
	// it.
	go func() {
		for {
			m := f.in.New().Interface()
			err := client.RecvMsg(m)
			if errors.Is(err, io.EOF) {
				_ = server.CloseSend()
				return
			}
			if err != nil || server.SendMsg(m) != nil {
				return
			}
		}
	}()
	for {
		m := f.out.New().Interface()
		if err := server.RecvMsg(m); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return r.status(err)
		}
		if err := client.SendMsg(m); err != nil {
			return err
		}
	}
}

// onward has the call's metadata for the next server, without what proved who
// made it.
func onward(ctx context.Context) context.Context {
	md, _ := metadata.FromIncomingContext(ctx)
	out := metadata.MD{}
	for k, v := range md {
		if k != "authorization" && k != "content-type" && k != "user-agent" && !strings.HasPrefix(k, ":") && !strings.HasPrefix(k, "grpc-") {
			out[k] = v
		}
	}
	return metadata.NewOutgoingContext(ctx, out)
}

// throughContent lets callers read the blobs of their org, such as the logs
// and attestations that records of builds name. To list them is for those who
// may see all apps.
func (a *API) throughContent(ctx context.Context, method string, _ proto.Message) route {
	app, do := a.own(ctx), Look
	switch method {
	case contentInfo, contentRead:
	default:
		app, do = "", SeeCache
	}
	_, t, err := a.admit(ctx, do, app)
	if err != nil {
		return route{err: a.status(ctx, err)}
	}
	return route{to: t.conn, status: func(err error) error { return err }}
}

// Methods of containerd's content service that name a blob.
const (
	contentInfo = "Info"
	contentRead = "Read"
)

var _ contentapi.ContentServer // which has them

// registration is how long a call for a build waits for the build's own, which
// clients make at the same time. BuildKit's is as long.
const registration = 3 * time.Second

// throughBridge lets a client's frontend at its own build.
func (a *API) throughBridge(ctx context.Context, method string, req proto.Message) route {
	c, t, err := a.admit(ctx, Build, a.own(ctx))
	if err != nil {
		return route{err: a.status(ctx, err)}
	}
	ref := buildid.FromIncomingContext(ctx)
	s, over := t.solves.wait(ctx, ref, registration)
	if over != nil && over.caller == c.ID {
		return route{err: a.status(ctx, over.err)} // clients show what they hear first
	}
	if s == nil || s.caller.ID != c.ID {
		return route{err: a.status(ctx, errdefs.NewUnknownJobError(ref))}
	}
	if _, ok := req.(*gateway.PingRequest); ok {
		return route{answer: t.pong()} // clients do not wait long for this one
	}
	if err := s.underWay(ctx); err != nil {
		return route{err: a.status(ctx, err)}
	}
	if err := s.build.admit(req); err != nil {
		return route{err: a.status(ctx, err)}
	}
	return route{to: t.conn, done: s.asked(req), status: func(err error) error { return a.status(ctx, s.because(err)) }}
}

// asked notes that the build's client asks for something, until done is called.
func (s *solve) asked(req proto.Message) (done func()) {
	if _, ok := req.(*gateway.ReturnRequest); ok {
		s.rest.end()
	}
	return s.rest.enter()
}

// pong is what BuildKit's bridge answers.
func (t *tenant) pong() *gateway.PongResponse {
	return &gateway.PongResponse{FrontendAPICaps: gateway.Caps.All(), LLBCaps: pb.Caps.All(), Workers: []*apitypes.WorkerRecord{{
		ID: t.worker.ID(), Labels: t.worker.Labels(), Platforms: pb.PlatformsFromSpec(t.worker.Platforms(false)),
	}}}
}

// admit marks the definitions of a request of a frontend, and refuses what it
// may not name.
func (b *build) admit(req proto.Message) error {
	switch req := req.(type) {
	case *gateway.SolveRequest:
		var types []string
		for _, c := range req.CacheImports {
			types = append(types, c.GetType())
		}
		if err := checkImports(append(types, frontendImports(req.FrontendOpt)...)); err != nil {
			return err
		}
		return b.mark(req.Definition)
	case *gateway.ResolveImageConfigRequest:
		return b.mayAsk(req.SessionID)
	case *gateway.ResolveSourceMetaRequest:
		return b.mayFetch(req.Source)
	}
	return nil
}
