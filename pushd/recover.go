package pushd

import (
	"context"
	"errors"
	"net/http"
)

const smallestChunk = 1 << 20

// recover decides how to go on after err, and waits. It reports true if the
// blob turns out to be there.
func (u *upload) recover(ctx context.Context, err error) (present bool, fatal error) {
	var e *Error
	if !errors.As(err, &e) {
		return false, err
	}
	op := e.Op
	chunk := op == "send chunk"
	switch {
	case (e.Kind == ErrUnauthorized || e.Kind == ErrDenied) && !e.elsewhere || e.permanent && e.Status == 0:
		return false, err
	case e.Kind == ErrDigest:
		if e.permanent || u.mismatch {
			return false, err
		}
		// Bytes were damaged on the way, or a registry overlooks those that
		// come with the last request: once more from the start.
		u.mismatch, u.bareEnd = true, true
		u.forget(ctx)
	case chunk && refusesChunks(e), chunk && u.gone(e) && !e.elsewhere && u.s.offset == 0 && u.lost > 0:
		u.whole = true
		u.t.opts.Hosts.learn(u.t.host(), func(f *hostFacts) { f.noChunks = true })
		u.forget(ctx)
		return false, nil
	case u.gone(e):
		if chunk {
			u.lost++
		}
		u.drop(ctx)
		if u.done && op != "start upload" {
			if present, err := u.t.Exists(ctx, u.desc, &u.w); present || err != nil {
				return present, err
			}
		}
	case e.Status == http.StatusRequestEntityTooLarge && !u.whole && min(u.most, u.size) > max(smallestChunk, u.s.minChunk):
		u.most = max(smallestChunk, u.s.minChunk, min(u.most, u.size)/4)
		u.s.unsure = u.s.offset > 0
	case e.Status == http.StatusRequestedRangeNotSatisfiable && u.s != nil && !u.s.unsure:
		u.s.unsure = true
	case e.temporary():
		if u.s != nil {
			u.s.unsure = true
		}
	case op == "resume upload":
		u.forget(ctx) // no way to ask: from the start
	default:
		return false, err
	}
	return false, u.budget.wait(ctx, &u.w, err)
}

// gone reports whether the registry no longer knows the session, or the
// address that it gave, on another host, is no longer good.
func (u *upload) gone(e *Error) bool {
	if u.s == nil {
		return false
	}
	if e.elsewhere && (e.Kind == ErrUnauthorized || e.Kind == ErrDenied) {
		return true
	}
	return e.Status == http.StatusNotFound || e.Code == "BLOB_UPLOAD_UNKNOWN" || e.Code == "BLOB_UPLOAD_INVALID"
}

func refusesChunks(e *Error) bool {
	return e.Status == http.StatusMethodNotAllowed || e.Status == http.StatusNotImplemented || e.Code == "UNSUPPORTED"
}

// forget starts over with a new session.
func (u *upload) forget(ctx context.Context) {
	if u.s != nil {
		u.t.cancel(ctx, *u.s)
	}
	u.drop(ctx)
}

func (u *upload) drop(ctx context.Context) {
	u.s = nil
	u.w.At(0)
	u.entry.drop(ctx)
}

// close leaves nothing behind that nobody can use.
func (u *upload) close(ctx context.Context, err error) {
	if u.scout != nil {
		u.scout.close()
	}
	switch {
	case err == nil:
		u.entry.drop(ctx)
	case u.s == nil:
	case u.entry != nil && (u.done || errors.Is(err, ErrUnavailable)):
		u.entry.leave(ctx) // the next to bring the blob goes on from here
	case !errors.Is(err, ErrUnavailable):
		u.t.cancel(ctx, *u.s)
		u.entry.drop(ctx)
	}
}
