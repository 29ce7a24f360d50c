package server

import (
	"context"
	"fmt"
	"runtime/debug"

	"google.golang.org/grpc"
)

// A call that panics fails alone: its caller gets an internal error, the log
// the stack, and the daemon goes on.

func (f *Front) recoverUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (resp any, err error) {
	defer f.caught(ctx, info.FullMethod, func(panicked error) { resp, err = nil, toStatus(panicked) })
	return next(ctx, req)
}

func (f *Front) recoverStream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
	defer f.caught(ss.Context(), info.FullMethod, func(panicked error) { err = toStatus(panicked) })
	return next(srv, ss)
}

// caught is deferred by what serves a call. After a panic it logs the stack and
// calls fail, which ends what must not wait for an answer any more.
func (f *Front) caught(ctx context.Context, method string, fail func(error)) {
	v := recover()
	if v == nil {
		return
	}
	err := fmt.Errorf("panic: %v", v)
	f.opts.Log.ErrorContext(ctx, "call panicked", "method", method, "err", err, "stack", string(debug.Stack()))
	fail(err)
}
