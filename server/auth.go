package server

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/tokens"
)

// open lists the services that answer without a token.
var open = []string{"/grpc.health.v1.Health/"}

type principalKey struct{}

// Caller returns whom the token of a call stands for that this server has let
// in.
func Caller(ctx context.Context) tokens.Principal { return caller(ctx) }

// Allow checks that the caller may do an action to an app.
func Allow(ctx context.Context, action, app string) error { return allow(ctx, action, app) }

// caller returns whom the call's token stands for.
func caller(ctx context.Context) tokens.Principal {
	p, _ := ctx.Value(principalKey{}).(tokens.Principal)
	return p
}

func (f *Front) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	ctx, err := f.authenticate(ctx, info.FullMethod)
	if err != nil {
		return nil, toStatus(err)
	}
	resp, err := next(ctx, req)
	return resp, f.status(ctx, info.FullMethod, err)
}

func (f *Front) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	ctx, err := f.authenticate(ss.Context(), info.FullMethod)
	if err != nil {
		return toStatus(err)
	}
	return f.status(ctx, info.FullMethod, next(srv, &authStream{ss, ctx}))
}

// status turns a handler's error into what the client may see.
func (f *Front) status(ctx context.Context, method string, err error) error {
	if err == nil {
		return nil
	}
	if _, known := status.FromError(err); known && status.Code(err) != codes.Internal {
		return toStatus(err)
	}
	if failure.As(err).Code == failure.Internal {
		f.opts.Log.ErrorContext(ctx, "call failed", "method", method, "err", err)
	}
	return toStatus(err)
}

type authStream struct {
	grpc.ServerStream
	ctx context.Context // with the principal
}

func (s *authStream) Context() context.Context { return s.ctx }

func (f *Front) authenticate(ctx context.Context, method string) (context.Context, error) {
	for _, prefix := range open {
		if strings.HasPrefix(method, prefix) {
			return ctx, nil
		}
	}
	p, err := f.principal(ctx, method)
	if err != nil {
		return nil, err
	}
	return context.WithValue(ctx, principalKey{}, p), nil
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
	switch {
	case errors.Is(err, tokens.ErrUnauthorized):
		return tokens.Principal{}, unauthorized(tokens.ErrUnauthorized.Error(), err)
	case errors.Is(err, tokens.ErrExpired):
		return tokens.Principal{}, unauthorized(tokens.ErrExpired.Error(), err)
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
	err := tokens.Allow(caller(ctx), action, app)
	if err == nil {
		return nil
	}
	return &failure.Error{Code: failure.PermissionDenied, Phase: failure.Auth, Blame: failure.User, Err: err,
		Message: fmt.Sprint(err), Hint: "use a token that has the scope"}
}
