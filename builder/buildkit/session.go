package buildkit

import (
	"context"
	"strings"

	controlapi "github.com/moby/buildkit/api/services/control"
	"google.golang.org/grpc/metadata"
)

// Headers of a session.
const (
	headerSessionID = "x-docker-expose-session-uuid"
	headerSharedKey = "x-docker-expose-session-sharedkey"
)

// Session implements BuildKit's Control: a client serves its files, secrets and
// credentials for as long as the call takes.
func (a *API) Session(stream controlapi.Control_SessionServer) error {
	ctx := stream.Context()
	c, t, err := a.admit(ctx, Build, a.own(ctx))
	if err != nil {
		return a.status(ctx, err)
	}
	md, _ := metadata.FromIncomingContext(ctx)
	release, err := t.owners.take(strings.Join(md.Get(headerSessionID), ","), c.ID, toServe)
	if err != nil {
		return a.status(ctx, err)
	}
	defer release()
	md = scopedSession(md, c.App)
	return a.status(ctx, t.control.Session(&scopedStream{stream, metadata.NewIncomingContext(ctx, md)}))
}

// scopedSession makes a session's files those of an app: by the shared key,
// BuildKit finds the copy of them that it has.
func scopedSession(md metadata.MD, app string) metadata.MD {
	out := md.Copy()
	delete(out, "authorization") // clients are asked with what is left here
	key := strings.Join(md.Get(headerSharedKey), ",")
	out.Set(headerSharedKey, scopedMount(app, key))
	return out
}

type scopedStream struct {
	controlapi.Control_SessionServer
	ctx context.Context
}

// Context implements grpc.ServerStream.
func (s *scopedStream) Context() context.Context { return s.ctx }
