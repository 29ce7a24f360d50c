package tokens

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// Options are what an Authority needs.
type Options struct {
	Store  Store
	Issuer Verifier     // checks ID tokens for Exchange; nil means that nothing is exchanged
	Log    *slog.Logger // nil means none
}

// An Authority issues tokens, knows them, and ends them. Each of its decisions
// goes to the audit log of its store: a change together with the change, other
// decisions within a fraction of a second. It is safe for concurrent use.
type Authority struct {
	store    Store
	issuer   Verifier
	log      *slog.Logger
	flights  flights
	failures failures
	uses     uses
	journal  journal
	cursor   string // of revocations by other daemons; for Run only

	stop    context.CancelFunc
	running sync.WaitGroup
}

var _ Authenticator = (*Authority)(nil)

// How often what is kept in memory goes to the store, and how often the store
// is asked for what other daemons revoked.
const (
	journalEvery = 100 * time.Millisecond
	usesEvery    = 2 * time.Second
	feedEvery    = 300 * time.Millisecond
)

// Open returns the authority over a store's tokens. The caller closes it, and
// the store after it.
func Open(ctx context.Context, o Options) (*Authority, error) {
	a := &Authority{store: o.Store, issuer: o.Issuer, log: o.Log}
	if a.log == nil {
		a.log = slog.New(slog.DiscardHandler)
	}
	var err error
	if _, a.cursor, err = a.store.RevokedAfter(ctx, ""); err != nil {
		return nil, fmt.Errorf("open tokens: %w", err)
	}
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	a.stop = stop
	a.running.Go(func() { a.every(run, journalEvery, a.flushJournal) })
	a.running.Go(func() { a.every(run, usesEvery, a.flushUses) })
	a.running.Go(func() { a.every(run, feedEvery, a.follow) })
	return a, nil
}

// Close writes what is still in memory and ends the background work.
func (a *Authority) Close() error {
	a.stop()
	a.running.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return errors.Join(a.flushJournal(ctx), a.flushUses(ctx))
}

// every calls f again and again until ctx ends.
func (a *Authority) every(ctx context.Context, d time.Duration, f func(context.Context) error) {
	t := time.NewTicker(d)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if err := f(ctx); err != nil && ctx.Err() == nil {
			a.log.ErrorContext(ctx, "tokens", "err", err)
		}
	}
}

// Adopt makes the daemon's admin token one of the store's, with its org and
// user, and revokes one that was there before. If that very token was revoked,
// it stays so, and the error wraps [ErrRevoked].
func (a *Authority) Adopt(ctx context.Context, admin *Admin) error {
	now := time.Now()
	if err := a.store.CreateOrg(ctx, Org{Name: DefaultOrg, Created: now}); err != nil && !errors.Is(err, ErrExists) {
		return err
	}
	made := func(action, resource string) Decision {
		return Decision{ID: newID(""), Time: now, Org: DefaultOrg, Actor: "slipwayd", Action: action, Resource: resource, Allowed: true, Count: 1}
	}
	user := User{Org: DefaultOrg, Name: adminName, Role: RoleAdmin, Created: now}
	if err := a.store.CreateUser(ctx, user, made("user.create", "user "+adminName)); err != nil && !errors.Is(err, ErrExists) {
		return err
	}
	known, _, err := a.store.TokenByHash(ctx, admin.hash)
	if err == nil {
		if known.Status(now) == StatusRevoked {
			return fmt.Errorf("%w %s by %s", ErrRevoked, known.Revoked.UTC().Format(time.RFC3339), known.RevokedBy)
		}
		return nil
	}
	if !errors.Is(err, ErrNotFound) {
		return err
	}
	old, err := a.store.Tokens(ctx, TokenQuery{Org: DefaultOrg, Type: TypeAdmin})
	if err != nil {
		return err
	}
	var ids []string
	for _, t := range old {
		if !t.Session {
			ids = append(ids, t.ID)
		}
	}
	if len(ids) > 0 {
		if _, err := a.store.RevokeTokens(ctx, DefaultOrg, ids, "slipwayd", now, made("token.revoke", "admin tokens of before")); err != nil {
			return err
		}
	}
	t := Token{ID: newID("tok_"), Org: DefaultOrg, Type: TypeAdmin, Name: "admin.token", User: adminName, CreatedBy: "slipwayd", Created: now}
	return a.store.CreateToken(ctx, t, admin.hash, made("token.create", "token "+t.ID))
}

// Authenticate implements [Authenticator]. Besides, an error wraps
// [ErrMalformed] for what cannot be a token, [ErrRevoked] for one that was
// revoked, and is a [*TooManyError] when so many attempts from one address
// ([From]) have failed that this one is not told why it did. A good token is
// let in even then: others may share its address.
func (a *Authority) Authenticate(ctx context.Context, value string) (Principal, error) {
	p, t, err := a.authenticate(ctx, value)
	if err != nil {
		return Principal{}, a.refused(ctx, t, err)
	}
	a.uses.note(p.ID, addr(ctx))
	return p, nil
}

func (a *Authority) authenticate(ctx context.Context, value string) (Principal, Token, error) {
	if _, err := Check(value); err != nil {
		return Principal{}, Token{}, &rejection{err.Error(), err}
	}
	return admit(a.store.TokenByHash(ctx, Hash(value)))
}

// Principal returns whom the token of that ID stands for now, for who has been
// let in with it. Its errors are those of Authenticate.
func (a *Authority) Principal(ctx context.Context, id string) (Principal, error) {
	p, _, err := admit(a.store.TokenByID(ctx, id))
	return p, err
}

// admit returns whom a token stands for that the store has found, or not.
func admit(t Token, role string, err error) (Principal, Token, error) {
	if errors.Is(err, ErrNotFound) {
		return Principal{}, Token{}, ErrUnauthorized
	}
	if err != nil {
		return Principal{}, Token{}, err
	}
	now := time.Now()
	switch t.Status(now) {
	case StatusRevoked:
		return Principal{}, t, &rejection{fmt.Sprintf("%v %s by %s", ErrRevoked, ago(now.Sub(t.Revoked)), t.RevokedBy), ErrRevoked}
	case StatusExpired:
		return Principal{}, t, fmt.Errorf("%w %s", ErrExpired, ago(now.Sub(t.Expires)))
	}
	return t.Principal(role), t, nil
}

// refused notes a failed attempt and returns what its caller gets to know.
func (a *Authority) refused(ctx context.Context, t Token, err error) error {
	if !errors.Is(err, ErrUnauthorized) && !errors.Is(err, ErrExpired) {
		return err // nobody could look
	}
	if wait := a.failures.add(addr(ctx), time.Now()); wait > 0 {
		return &TooManyError{wait}
	}
	a.journal.add(Decision{Org: t.Org, Token: t.ID, Actor: t.User, Action: "login", Addr: addr(ctx), Reason: err.Error()})
	return err
}

// A rejection is an ErrUnauthorized with a text of its own and a cause that
// callers may look for.
type rejection struct {
	text  string
	cause error
}

func (r *rejection) Error() string   { return r.text }
func (r *rejection) Unwrap() []error { return []error{ErrUnauthorized, r.cause} }

// ago says how long something is past, in the largest unit.
func ago(d time.Duration) string {
	for _, u := range []struct {
		size time.Duration
		name string
	}{{24 * time.Hour, "day"}, {time.Hour, "hour"}, {time.Minute, "minute"}} {
		switch n := int64(d / u.size); {
		case n == 1:
			return "1 " + u.name + " ago"
		case n > 1:
			return fmt.Sprintf("%d %ss ago", n, u.name)
		}
	}
	return "just now"
}

type addrKey struct{}

// From returns a context that says from where a call comes: an address without
// a port. It travels with the context because what is between the connection
// and this package has no use for it.
func From(ctx context.Context, address string) context.Context {
	return context.WithValue(ctx, addrKey{}, address)
}

func addr(ctx context.Context) string {
	s, _ := ctx.Value(addrKey{}).(string)
	return s
}
