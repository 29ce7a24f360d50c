package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/tokens"
)

// A Guard knows tokens and decides what they may do. A [tokens.Authority] is
// one.
type Guard interface {
	tokens.Authenticator

	// Enter returns a context for a call of p that ends when p's token does.
	Enter(ctx context.Context, p tokens.Principal) (_ context.Context, leave func())

	// AllowIn is [tokens.AllowIn] as a decision that is recorded, Allow
	// [tokens.Allow].
	Allow(ctx context.Context, p tokens.Principal, action, app string) error
	AllowIn(ctx context.Context, p tokens.Principal, action, app, env string) error

	// Claim makes an app one of p's org if it is nobody's. The error wraps
	// [tokens.ErrDenied] if it is another org's.
	Claim(ctx context.Context, p tokens.Principal, app string) error

	// Owner returns the org that an app belongs to, "" if it is nobody's.
	Owner(ctx context.Context, app string) (string, error)
}

type accessKey struct{}

// An access is what a call may do, and who decides that.
type access struct {
	principal tokens.Principal
	guard     Guard
}

// Caller returns whom the token of a call stands for that this server has let
// in.
func Caller(ctx context.Context) tokens.Principal { return caller(ctx) }

// Allow checks that the caller may do an action to an app.
func Allow(ctx context.Context, action, app string) error { return allow(ctx, action, app) }

// caller returns whom the call's token stands for.
func caller(ctx context.Context) tokens.Principal { return accessOf(ctx).principal }

func accessOf(ctx context.Context) access {
	a, _ := ctx.Value(accessKey{}).(access)
	return a
}

func (f *Front) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	ctx, leave, err := f.enter(ctx, info.FullMethod)
	if err != nil {
		return nil, toStatus(err)
	}
	defer leave()
	resp, err := next(ctx, req)
	if ended := endedCause(ctx); err != nil && ended != nil {
		err = ended
	}
	return resp, f.status(ctx, info.FullMethod, err)
}

// stream serves a call that may take long. It ends when the caller's token
// does, whatever its handler waits for: the handler's next word to the client
// fails.
func (f *Front) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	ctx, leave, err := f.enter(ss.Context(), info.FullMethod)
	if err != nil {
		return toStatus(err)
	}
	call := &guarded{ServerStream: ss, ctx: ctx}
	served := make(chan error, 1)
	go func() {
		defer leave()
		defer f.caught(ctx, info.FullMethod, func(panicked error) { served <- panicked })
		served <- next(srv, call)
	}()
	select {
	case err := <-served:
		return f.status(ctx, info.FullMethod, err)
	case <-ctx.Done():
	}
	if ended := endedCause(ctx); ended != nil {
		call.cut.Store(true)
		return toStatus(ended)
	}
	return f.status(ctx, info.FullMethod, <-served)
}

// endedCause returns why a call must end whose token has: nil if it has not.
func endedCause(ctx context.Context) error {
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, tokens.ErrRevoked), errors.Is(cause, tokens.ErrExpired):
		return unauthorized(cause.Error(), cause)
	}
	return nil
}

// status turns a handler's error into what the client may see.
func (f *Front) status(ctx context.Context, method string, err error) error {
	if err == nil {
		return nil
	}
	if _, known := status.FromError(err); known && status.Code(err) != codes.Internal {
		return toStatus(err)
	}
	if failure.As(err).Code == failure.Internal { // databases, too
		f.opts.Log.ErrorContext(ctx, "call failed", "method", method, "err", err)
	}
	return toStatus(err)
}

// guarded is the stream of a call that may be cut.
type guarded struct {
	grpc.ServerStream
	ctx context.Context // with the caller; ends with the caller's token
	cut atomic.Bool
}

func (s *guarded) Context() context.Context { return s.ctx }

func (s *guarded) SendMsg(m any) error {
	if s.cut.Load() {
		return toStatus(endedCause(s.ctx))
	}
	return s.ServerStream.SendMsg(m)
}

// enter lets a call in, or not.
func (f *Front) enter(ctx context.Context, method string) (_ context.Context, leave func(), err error) {
	r, known := ruleOf(method)
	if r.open {
		return tokens.From(ctx, address(ctx)), func() {}, nil
	}
	ctx = tokens.From(ctx, address(ctx))
	p, err := f.principal(ctx, method)
	if err != nil {
		return nil, nil, err
	}
	if !known { // a method that somebody forgot: nobody's
		return nil, nil, refused(fmt.Errorf("%w: %s has no rule", tokens.ErrDenied, method))
	}
	if r.scope != "" && !p.Has(r.scope) {
		return nil, nil, refused(f.opts.Auth.Allow(ctx, p, r.scope, p.App))
	}
	in := p
	if r.begun {
		in.Expires = time.Time{}
	}
	ctx, leave = f.opts.Auth.Enter(ctx, in)
	return context.WithValue(ctx, accessKey{}, access{p, f.opts.Auth}), leave, nil
}

// clientHeader is in calls that the web page makes from inside the daemon: the
// address of the browser.
const clientHeader = "slipway-client"

// address returns from where a call comes, without a port.
func address(ctx context.Context) string {
	from, ok := peer.FromContext(ctx)
	if !ok {
		return ""
	}
	switch from.Addr.Network() {
	case "unix":
		return "unix"
	case inside:
		md, _ := metadata.FromIncomingContext(ctx)
		return strings.Join(md.Get(clientHeader), " ")
	}
	host, _, err := net.SplitHostPort(from.Addr.String())
	if err != nil {
		return from.Addr.String()
	}
	return host
}

// principal returns whom a call is from: by the token that it brings, and only
// if it brings nothing of that kind by its connection.
func (f *Front) principal(ctx context.Context, method string) (tokens.Principal, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	sent := md.Get("authorization")
	if len(sent) == 0 {
		return peerPrincipal(ctx)
	}
	token := bearer(sent)
	if token == "" {
		return tokens.Principal{}, noToken()
	}
	p, err := f.opts.Auth.Authenticate(ctx, token)
	var many *tokens.TooManyError
	switch {
	case errors.As(err, &many):
		return tokens.Principal{}, tooMany(many)
	case errors.Is(err, tokens.ErrUnauthorized), errors.Is(err, tokens.ErrExpired):
		return tokens.Principal{}, unauthorized(err.Error(), err)
	case err != nil:
		// Who is not let in does not learn what is broken here.
		f.opts.Log.ErrorContext(ctx, "authenticate", "method", method, "err", err)
		return tokens.Principal{}, &failure.Error{Code: failure.Unavailable, Phase: failure.Auth, Blame: failure.Builder, Retryable: true,
			Message: "the daemon cannot check tokens now", Hint: "try again in a moment; the daemon's log has more"}
	}
	return p, nil
}

func bearer(sent []string) string {
	for _, v := range sent {
		if scheme, token, ok := strings.Cut(v, " "); ok && strings.EqualFold(scheme, "bearer") {
			return token
		}
	}
	return ""
}

func noToken() error { return unauthorized("no token was given", nil) }

func unauthorized(text string, cause error) error {
	return &failure.Error{Code: failure.Unauthorized, Phase: failure.Auth, Blame: failure.User, Message: text, Err: cause,
		Hint: "give a token with -t, SLIPWAY_API_TOKEN or slipway login; the daemon's first start wrote one to admin.token in its root"}
}

// allow checks that the caller may do an action to an app.
func allow(ctx context.Context, action, app string) error {
	a := accessOf(ctx)
	if a.guard == nil {
		return refused(tokens.Allow(a.principal, action, app))
	}
	return refused(a.guard.Allow(ctx, a.principal, action, app))
}

// allowIn checks that the caller may do an action to an app in an environment.
func allowIn(ctx context.Context, action, app, env string) error {
	a := accessOf(ctx)
	if a.guard == nil {
		return refused(tokens.AllowIn(a.principal, action, app, env))
	}
	return refused(a.guard.AllowIn(ctx, a.principal, action, app, env))
}

// refused turns the error of a decision into what its caller is told.
func refused(err error) error {
	if !errors.Is(err, tokens.ErrDenied) {
		return err
	}
	return &failure.Error{Code: failure.PermissionDenied, Phase: failure.Auth, Blame: failure.User, Err: err,
		Message: strings.TrimPrefix(err.Error(), tokens.ErrDenied.Error()+": "), Hint: "slipway whoami shows what the token in use may do"}
}
