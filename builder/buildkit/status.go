package buildkit

import (
	"context"
	"errors"
	"fmt"

	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/util/grpcerrors"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipwayhq/slipway/builder"
	"github.com/slipwayhq/slipway/builder/failure"
)

// status turns what BuildKit or this package returned into what the client may
// see, with the details by which BuildKit's clients know errors.
func (a *API) status(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if e := ours(err); e != nil {
		return a.refusal(e)
	}
	st := status.Convert(grpcerrors.ToGRPC(ctx, err))
	if st.Code() != codes.Unknown {
		return st.Err()
	}
	if _, ok := errors.AsType[*gateway.ExitError](err); ok {
		return st.Err()
	}
	if code, ok := a.opts.Code(kindOf(err).Code); ok {
		p := st.Proto()
		p.Code = int32(code)
		st = status.FromProto(p)
	}
	return st.Err()
}

// ours is an error that this daemon has a word for; nil for those of BuildKit's
// own.
func ours(err error) *failure.Error {
	e := failure.As(err)
	if e.Code == failure.Internal && !errors.Is(err, e) {
		return nil
	}
	if _, ok := status.FromError(err); ok && e.Err != nil && (e.Code == failure.Cancelled || e.Code == failure.Timeout) {
		return nil // as it came over the wire
	}
	return e
}

// refusal is one of our own errors. Clients that do not know them get all that
// there is to say as text.
func (a *API) refusal(e *failure.Error) error {
	code, ok := a.opts.Code(e.Code)
	if !ok {
		code = codes.Unknown
	}
	text := e.Message
	if e.Line > 0 {
		text = fmt.Sprintf("line %d: %s", e.Line, text)
	}
	if e.Hint != "" {
		text += "; " + e.Hint
	}
	st := status.New(code, text)
	if detailed, err := st.WithDetails(builder.Proto(e)); err == nil {
		st = detailed
	}
	return st.Err()
}
