package registry

import (
	"context"
	"net/http"
	"strings"
	"time"
)

// A caller is whoever sent a request.
type caller struct {
	origin origin
	id     string  // of the token
	err    error   // why there is no id
	minted bool    // whether the token came as a bearer token that we made
	scopes []scope // what that one is for
	bearer bool    // whether it came as Bearer

	answer *answer
	stop   func() (cut bool) // ends the watch over the token; nil when there is none
}

type callerKey struct{}

// callerOf returns who sent a request that came through a gate.
func callerOf(ctx context.Context) *caller {
	c, _ := ctx.Value(callerKey{}).(*caller)
	return c
}

// arrive returns a caller of whom only the origin is known, and the request
// with what others ask its context about.
func (g *gate) arrive(w http.ResponseWriter, r *http.Request) (*caller, *http.Request) {
	c := &caller{origin: originOf(r, g.proxied), answer: &answer{ResponseWriter: w}}
	ctx := context.WithValue(r.Context(), callerKey{}, c)
	ctx = context.WithValue(ctx, addrKey{}, c.origin.addr)
	return c, r.WithContext(ctx)
}

// unforwarded returns the request without what distribution would believe, and
// log where it is no address, whoever says it.
func unforwarded(r *http.Request) *http.Request {
	h := r.Header.Clone()
	for _, name := range []string{"X-Forwarded-For", "X-Real-Ip", "X-Forwarded-Host", "X-Forwarded-Proto", "Forwarded"} {
		h.Del(name)
	}
	r = r.WithContext(r.Context())
	r.Header = h
	return r
}

// meet finds out who sent a request.
func (g *gate) meet(w http.ResponseWriter, r *http.Request) (*caller, *http.Request) {
	c, r := g.arrive(w, r)
	user, secret, bearer, ok := credentials(r)
	c.bearer = ok && bearer
	switch {
	case !ok:
		c.err = ErrUnauthorized
	case bearer && isBearer(secret):
		c.minted = true
		c.id, c.scopes, c.err = g.mint.verify(secret, time.Now())
	default:
		c.id, c.err = g.access.Authenticate(r.Context(), user, secret)
	}
	return c, r
}

// credentials returns what the request proves itself with: Basic, where the
// password is the secret, or the secret or what we gave for it as Bearer.
func credentials(r *http.Request) (user, secret string, bearer, ok bool) {
	if user, secret, ok = r.BasicAuth(); ok {
		return user, secret, false, secret != ""
	}
	scheme, secret, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	secret = strings.TrimSpace(secret)
	return "", secret, true, strings.EqualFold(scheme, "bearer") && secret != ""
}

// may reports why the caller may not do the actions in a repository now: nil,
// or an error as an [Access] answers it, or errScope.
func (g *gate) may(ctx context.Context, c *caller, repository string, actions []string) error {
	if c.err != nil {
		return c.err
	}
	if err := g.access.Authorize(ctx, c.id, repository, actions...); err != nil {
		return err
	}
	if c.minted && !covers(c.scopes, repository, actions) {
		return errScope
	}
	return nil
}

// watch cuts the caller's connection when its token dies, until leave.
func (g *gate) watch(ctx context.Context, c *caller) {
	w, ok := g.access.(Watcher)
	if !ok || c.stop != nil {
		return
	}
	done := make(chan struct{})
	stop := context.AfterFunc(w.Watch(ctx, c.id), func() {
		defer close(done)
		cut(c.answer)
	})
	c.stop = func() bool {
		if stop() {
			return false
		}
		<-done
		return true
	}
}

// cut makes what is under way on a connection fail now, and what is to come.
func cut(w http.ResponseWriter) {
	past := time.Unix(1, 0)
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(past) // fails where there is no connection to cut
	_ = control.SetWriteDeadline(past)
}

// leave ends the watch over the caller's token, and reports whether its
// connection was cut.
func (c *caller) leave() (cut bool) {
	stop := c.stop
	c.stop = nil
	return stop != nil && stop()
}
