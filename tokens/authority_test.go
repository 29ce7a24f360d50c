package tokens_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/sqldb"
	"github.com/slipwayhq/slipway/tokens"
	"github.com/slipwayhq/slipway/tokens/store"
)

// An office is an authority with two orgs and somebody in each role.
type office struct {
	*tokens.Authority
	t     *testing.T
	store tokens.Store
	root  string           // the admin token of the daemon
	as    tokens.Principal // its owner
	ana   tokens.Principal // an admin of acme
	dev   tokens.Principal // a developer of acme
	other tokens.Principal // an admin of globex
}

func open(t *testing.T) *office {
	t.Helper()
	dir := t.TempDir()
	db, err := sqldb.Open(t.Context(), filepath.Join(dir, "records.db"))
	check(t, err)
	t.Cleanup(func() { check(t, db.Close()) })
	s, err := store.New(t.Context(), db)
	check(t, err)
	a := authority(t, s)
	o := &office{Authority: a, t: t, store: s}
	file := filepath.Join(dir, "admin.token")
	admin, err := tokens.AdminFile(file)
	check(t, err)
	check(t, a.Adopt(t.Context(), admin))
	o.root = adminValue(t, file)
	o.as = o.who(o.root)
	for _, x := range []struct {
		org string
		p   *tokens.Principal
	}{{"acme", &o.ana}, {"globex", &o.other}} {
		_, _, value, err := a.CreateOrg(t.Context(), o.as, x.org, "ana")
		check(t, err)
		*x.p = o.who(value)
	}
	_, _, value, err := a.CreateUser(t.Context(), o.ana, "dev", tokens.RoleDeveloper, true, tokens.Request{})
	check(t, err)
	o.dev = o.who(value)
	return o
}

func authority(t *testing.T, s tokens.Store) *tokens.Authority {
	t.Helper()
	a, err := tokens.Open(t.Context(), tokens.Options{Store: s})
	check(t, err)
	t.Cleanup(func() { check(t, a.Close()) })
	return a
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// who returns whom a value stands for.
func (o *office) who(value string) tokens.Principal {
	o.t.Helper()
	p, err := o.Authenticate(o.t.Context(), value)
	check(o.t, err)
	return p
}

// make creates a token.
func (o *office) make(by tokens.Principal, r tokens.Request) (tokens.Token, tokens.Principal, string) {
	o.t.Helper()
	t, value, err := o.Create(o.t.Context(), by, r)
	check(o.t, err)
	return t, o.who(value), value
}

func TestCreate(t *testing.T) {
	o := open(t)
	for _, tc := range []struct {
		name string
		by   tokens.Principal
		r    tokens.Request
		want error
		says string
	}{
		{"deploy", o.dev, tokens.Request{Type: "deploy", App: "shop"}, nil, ""},
		{"deploy without app", o.dev, tokens.Request{Type: "deploy"}, tokens.ErrInvalid, "is for one app"},
		{"org", o.dev, tokens.Request{Type: "org"}, nil, ""},
		{"org of an app", o.dev, tokens.Request{Type: "org", App: "shop"}, tokens.ErrInvalid, "is for all apps"},
		{"a user's", o.ana, tokens.Request{Type: "user"}, tokens.ErrInvalid, `"user" is no type`},
		{"the daemon's", o.as, tokens.Request{Type: "admin"}, tokens.ErrInvalid, "no type"},
		{"no type", o.ana, tokens.Request{}, tokens.ErrInvalid, "no type"},
		{"registry", o.dev, tokens.Request{Type: "registry", Permission: "read-write", Env: "production"}, nil, ""},
		{"bad permission", o.dev, tokens.Request{Type: "registry", Permission: "rw"}, tokens.ErrInvalid, `"rw" is no permission`},
		{"permission of another type", o.dev, tokens.Request{Type: "org", Permission: "read-only"}, tokens.ErrInvalid, "no permission to choose"},
		{"machine-exec", o.dev, tokens.Request{Type: "machine-exec", App: "shop", Command: []string{"bin/migrate", "--all"}}, nil, ""},
		{"machine-exec of nothing", o.dev, tokens.Request{Type: "machine-exec", App: "shop"}, tokens.ErrInvalid, "for one command"},
		{"a command of another type", o.dev, tokens.Request{Type: "ssh", Command: []string{"sh"}}, tokens.ErrInvalid, "runs no command"},
		{"a zero byte", o.dev, tokens.Request{Type: "machine-exec", App: "shop", Command: []string{"a\x00b"}}, tokens.ErrInvalid, "zero byte"},
		{"20 years", o.dev, tokens.Request{Type: "org", ExpiresIn: 20 * 365 * 24 * time.Hour}, nil, ""},
		{"21 years", o.dev, tokens.Request{Type: "org", ExpiresIn: 21 * 366 * 24 * time.Hour}, tokens.ErrInvalid, "longer than a token may live"},
		{"in the past", o.dev, tokens.Request{Type: "org", ExpiresIn: -1}, tokens.ErrInvalid, "before it is made"},
		{"never, admin", o.ana, tokens.Request{Type: "org", Never: true}, nil, ""},
		{"never, developer", o.dev, tokens.Request{Type: "org", Never: true}, tokens.ErrDenied, "only admins"},
		{"for another, admin", o.ana, tokens.Request{Type: "org", User: "dev"}, nil, ""},
		{"for another, developer", o.dev, tokens.Request{Type: "org", User: "ana"}, tokens.ErrDenied, "only admins"},
		{"for nobody", o.ana, tokens.Request{Type: "org", User: "eve"}, tokens.ErrInvalid, `no user "eve"`},
		{"app of HTML", o.dev, tokens.Request{Type: "deploy", App: "<b>"}, tokens.ErrInvalid, "no name for an app"},
		{"app of a path", o.dev, tokens.Request{Type: "deploy", App: "../shop"}, tokens.ErrInvalid, "no name for an app"},
		{"env of SQL", o.dev, tokens.Request{Type: "org", Env: "a';--"}, tokens.ErrInvalid, "no name for an environment"},
		{"name of a line break", o.dev, tokens.Request{Type: "org", Name: "a\nb"}, tokens.ErrInvalid, "is no name for a token"},
		{"a long name", o.dev, tokens.Request{Type: "org", Name: strings.Repeat("x", 101)}, tokens.ErrInvalid, "is no name for a token"},
		{"a name of HTML", o.dev, tokens.Request{Type: "org", Name: `<script>"'`}, nil, ""},
		{"another org's app", o.other, tokens.Request{Type: "deploy", App: "shop"}, tokens.ErrDenied, "belongs to another organization"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			made, value, err := o.Create(t.Context(), tc.by, tc.r)
			if tc.want != nil {
				if !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.says) || value != "" {
					t.Errorf("Create: %v, want %v that says %q", err, tc.want, tc.says)
				}
				return
			}
			check(t, err)
			p := o.who(value)
			if p.ID != made.ID || p.Org != tc.by.Org || p.Type != tc.r.Type || p.App != tc.r.App || p.Env != tc.r.Env || !slices.Equal(p.Command, tc.r.Command) {
				t.Errorf("stands for %+v", p)
			}
			want := tokens.DefaultExpiry
			if tc.r.ExpiresIn > 0 {
				want = tc.r.ExpiresIn
			}
			if left := time.Until(p.Expires); tc.r.Never != p.Expires.IsZero() || !tc.r.Never && (left > want || left < want-time.Minute) {
				t.Errorf("expires in %v, want %v", left, want)
			}
			for _, s := range p.Scopes {
				if !tc.by.Has(s) {
					t.Errorf("it has %s, which its maker has not", s)
				}
			}
		})
	}
}

// Nobody makes a token that may more than their own.
func TestNoTokenMakesAWiderOne(t *testing.T) {
	o := open(t)
	_, org, _ := o.make(o.ana, tokens.Request{Type: "org", ExpiresIn: time.Hour})
	_, staging, _ := o.make(o.dev, tokens.Request{Type: "org", Env: "staging"})
	_, deploy, _ := o.make(o.dev, tokens.Request{Type: "deploy", App: "shop"})
	_, puller, _ := o.make(o.dev, tokens.Request{Type: "registry"})
	_, exec, _ := o.make(o.dev, tokens.Request{Type: "machine-exec", App: "shop", Command: []string{"a", "b c"}})

	child, _, err := o.Create(t.Context(), org, tokens.Request{Type: "deploy", App: "shop"})
	check(t, err)
	if child.Parent != org.ID || child.Expires.After(org.Expires) {
		t.Errorf("what an org token makes outlives it: %+v", child)
	}
	for _, tc := range []struct {
		name   string
		by     tokens.Principal
		derive bool
		r      tokens.Request
	}{
		{"org: another user's", org, false, tokens.Request{Type: "org", User: "dev"}},
		{"org: never", org, false, tokens.Request{Type: "org", Never: true}},
		{"bound: unbound", staging, false, tokens.Request{Type: "deploy", App: "shop"}},
		{"bound: elsewhere", staging, false, tokens.Request{Type: "deploy", App: "shop", Env: "production"}},
		{"bound: elsewhere, derived", staging, true, tokens.Request{Env: "production"}},
		{"deploy: create", deploy, false, tokens.Request{Type: "deploy", App: "shop"}},
		{"deploy: another app", deploy, true, tokens.Request{App: "blog"}},
		{"deploy: ssh", deploy, true, tokens.Request{Type: "ssh"}},
		{"deploy: exec", deploy, true, tokens.Request{Type: "machine-exec", Command: []string{"sh"}}},
		{"pull: push", puller, true, tokens.Request{Permission: "read-write"}},
		{"pull: read", puller, true, tokens.Request{Type: "readonly"}},
		{"exec: another command", exec, true, tokens.Request{Command: []string{"a", "b", "c"}}},
		{"exec: a longer one", exec, true, tokens.Request{Command: []string{"a", "b c", "d"}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := o.Create
			if tc.derive {
				f = o.Derive
			}
			if _, value, err := f(t.Context(), tc.by, tc.r); !errors.Is(err, tokens.ErrDenied) || value != "" {
				t.Errorf("made one: %v", err)
			}
		})
	}
}

func TestDerive(t *testing.T) {
	o := open(t)
	parent, deploy, _ := o.make(o.dev, tokens.Request{Type: "deploy", App: "shop", Env: "staging", ExpiresIn: time.Hour})
	for _, tc := range []struct {
		r    tokens.Request
		typ  string
		perm string
	}{
		{tokens.Request{}, "deploy", ""},
		{tokens.Request{Type: "registry"}, "registry", "read-only"},
		{tokens.Request{Type: "registry", Permission: "read-write"}, "registry", "read-write"},
		{tokens.Request{Session: true, Name: "web"}, "deploy", ""},
	} {
		child, value, err := o.Derive(t.Context(), deploy, tc.r)
		check(t, err)
		p := o.who(value)
		if p.Type != tc.typ || p.Permission != tc.perm || p.App != "shop" || p.Env != "staging" || child.Parent != parent.ID || p.Session != tc.r.Session || p.Expires.After(deploy.Expires) {
			t.Errorf("%+v: %+v of %s", tc.r, p, child.Parent)
		}
	}
	short, _, err := o.Derive(t.Context(), deploy, tokens.Request{ExpiresIn: time.Minute})
	check(t, err)
	if left := time.Until(short.Expires); left > time.Minute {
		t.Errorf("expires in %v", left)
	}
	local, err := tokens.Local(0, 0)
	check(t, err)
	for _, typ := range []string{"king", "Deploy", "\x00"} {
		if got, _, err := o.Derive(t.Context(), deploy, tokens.Request{Type: typ}); !errors.Is(err, tokens.ErrInvalid) {
			t.Errorf("type %q: %+v, %v", typ, got, err)
		}
	}
	if _, _, err := o.Derive(t.Context(), local, tokens.Request{}); !errors.Is(err, tokens.ErrInvalid) {
		t.Errorf("derived from a user of the machine: %v", err)
	}
}

// A child ends with its parent, and calls under way with their token.
func TestRevoke(t *testing.T) {
	o := open(t)
	parent, deploy, value := o.make(o.dev, tokens.Request{Type: "deploy", App: "shop"})
	child, childValue, err := o.Derive(t.Context(), deploy, tokens.Request{})
	check(t, err)
	grandchild, _, err := o.Derive(t.Context(), o.who(childValue), tokens.Request{})
	check(t, err)
	call, leave := o.Enter(t.Context(), o.who(childValue))
	defer leave()
	bystander, leaveToo := o.Enter(t.Context(), o.dev)
	defer leaveToo()

	revoked, err := o.Revoke(t.Context(), o.dev, parent.ID)
	check(t, err)
	if want := []string{parent.ID, child.ID, grandchild.ID}; !sameIDs(revoked, want) {
		t.Errorf("revoked %v, want %v", revoked, want)
	}
	if cause := context.Cause(call); !errors.Is(cause, tokens.ErrRevoked) {
		t.Errorf("the call of a child: %v", cause)
	}
	if bystander.Err() != nil {
		t.Error("a call of another token ended")
	}
	for _, v := range []string{value, childValue} {
		if _, err := o.Authenticate(t.Context(), v); !errors.Is(err, tokens.ErrRevoked) || !errors.Is(err, tokens.ErrUnauthorized) || !strings.Contains(err.Error(), "by dev") {
			t.Errorf("revoked token: %v", err)
		}
	}
	late, leave2 := o.Enter(t.Context(), deploy)
	defer leave2()
	if !errors.Is(context.Cause(late), tokens.ErrRevoked) {
		t.Error("a call that was looked up before and begins after goes on")
	}
	if _, _, err := o.Derive(t.Context(), deploy, tokens.Request{}); !errors.Is(err, tokens.ErrUnauthorized) {
		t.Errorf("derived from what is revoked: %v", err)
	}
	again, err := o.Revoke(t.Context(), o.ana, parent.ID)
	if err != nil || len(again) != 0 {
		t.Errorf("again: %v, %v", again, err)
	}
	if got, err := o.Get(t.Context(), o.ana, parent.ID); err != nil || got.RevokedBy != "dev" {
		t.Errorf("revoked by %q, %v: the second time counts", got.RevokedBy, err)
	}
}

func sameIDs(a, b []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}

// Another daemon on the same database hears of a revocation.
func TestRevokedElsewhere(t *testing.T) {
	o := open(t)
	here := authority(t, o.store)
	made, p, value := o.make(o.dev, tokens.Request{Type: "org"})
	call, leave := here.Enter(t.Context(), p)
	defer leave()
	_, err := o.Revoke(t.Context(), o.dev, made.ID)
	check(t, err)
	if _, err := here.Authenticate(t.Context(), value); !errors.Is(err, tokens.ErrRevoked) {
		t.Errorf("the other daemon lets it in: %v", err)
	}
	select {
	case <-call.Done():
	case <-time.After(5 * time.Second):
		t.Fatal("the call goes on")
	}
	if cause := context.Cause(call); !errors.Is(cause, tokens.ErrRevoked) {
		t.Errorf("it ended with %v", cause)
	}
}

func TestWhoMayEndWhat(t *testing.T) {
	o := open(t)
	devs, dev, _ := o.make(o.dev, tokens.Request{Type: "org"})
	anas, ana, _ := o.make(o.ana, tokens.Request{Type: "org"})
	children, _, err := o.Create(t.Context(), ana, tokens.Request{Type: "readonly"})
	check(t, err)
	for _, tc := range []struct {
		name string
		by   tokens.Principal
		id   string
		want error
	}{
		{"another's", o.dev, anas.ID, tokens.ErrNotFound},
		{"another org's", o.other, devs.ID, tokens.ErrNotFound},
		{"the daemon's admin in another org", o.as, devs.ID, tokens.ErrNotFound},
		{"an org token, its user's", dev, o.dev.ID, tokens.ErrNotFound},
		{"none", o.ana, "tok_nothing", tokens.ErrNotFound},
		{"a path", o.ana, "../../etc", tokens.ErrNotFound},
		{"what it made", ana, children.ID, nil},
		{"its own", o.dev, devs.ID, nil},
		{"itself", ana, anas.ID, nil},
	} {
		if _, err := o.Revoke(t.Context(), tc.by, tc.id); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, err, tc.want)
		}
	}
	if _, err := o.Revoke(t.Context(), o.ana); !errors.Is(err, tokens.ErrInvalid) {
		t.Errorf("nothing: %v", err)
	}
	good, _, _ := o.make(o.dev, tokens.Request{Type: "org"})
	if err := o.Delete(t.Context(), o.ana, good.ID, devs.ID); !errors.Is(err, tokens.ErrInUse) {
		t.Errorf("deleted a good one: %v", err)
	}
	if _, err := o.Get(t.Context(), o.ana, devs.ID); err != nil {
		t.Errorf("half of a refused call was done: %v", err)
	}
	check(t, o.Delete(t.Context(), o.dev, devs.ID))
	if _, err := o.Get(t.Context(), o.dev, devs.ID); !errors.Is(err, tokens.ErrNotFound) {
		t.Errorf("after delete: %v", err)
	}
}

func TestList(t *testing.T) {
	o := open(t)
	devs, dev, _ := o.make(o.dev, tokens.Request{Type: "org", Name: "devs"})
	o.make(o.ana, tokens.Request{Type: "readonly", Name: "anas"})
	o.make(o.other, tokens.Request{Type: "org", Name: "foreign"})
	_, _, err := o.Create(t.Context(), dev, tokens.Request{Type: "readonly", Name: "child"})
	check(t, err)
	_, _, err = o.Derive(t.Context(), o.dev, tokens.Request{Session: true, Name: "web"})
	check(t, err)
	for _, tc := range []struct {
		name string
		by   tokens.Principal
		q    tokens.TokenQuery
		want string
	}{
		{"admin", o.ana, tokens.TokenQuery{}, "[child anas devs login of dev login of ana]"},
		{"admin who asks for another org", o.ana, tokens.TokenQuery{Org: "globex"}, "[child anas devs login of dev login of ana]"},
		{"developer", o.dev, tokens.TokenQuery{}, "[child devs login of dev]"},
		{"developer, sessions too", o.dev, tokens.TokenQuery{Sessions: true}, "[web child devs login of dev]"},
		{"a token", dev, tokens.TokenQuery{}, "[child]"},
		{"a type", o.ana, tokens.TokenQuery{Type: "readonly"}, "[child anas]"},
		{"page", o.ana, tokens.TokenQuery{Before: devs.ID, Limit: 1}, "[login of dev]"},
	} {
		list, err := o.List(t.Context(), tc.by, tc.q)
		check(t, err)
		var names []string
		for _, x := range list {
			names = append(names, x.Name)
		}
		if fmt.Sprint(names) != tc.want {
			t.Errorf("%s: %v, want %s", tc.name, names, tc.want)
		}
	}
}

func TestUsers(t *testing.T) {
	o := open(t)
	_, token, value := o.make(o.dev, tokens.Request{Type: "org"})
	if _, _, _, err := o.CreateUser(t.Context(), o.dev, "eve", tokens.RoleAdmin, true, tokens.Request{}); !errors.Is(err, tokens.ErrDenied) {
		t.Errorf("a developer makes users: %v", err)
	}
	if _, err := o.SetRole(t.Context(), o.dev, "dev", tokens.RoleAdmin); !errors.Is(err, tokens.ErrDenied) {
		t.Errorf("a developer makes itself admin: %v", err)
	}
	if _, err := o.SetRole(t.Context(), o.ana, "ana", tokens.RoleDeveloper); !errors.Is(err, tokens.ErrInvalid) {
		t.Errorf("no admin is left: %v", err)
	}
	if _, err := o.RemoveUser(t.Context(), o.ana, "ana"); !errors.Is(err, tokens.ErrInvalid) {
		t.Errorf("no admin is left: %v", err)
	}
	call, leave := o.Enter(t.Context(), token)
	defer leave()
	_, err := o.RemoveUser(t.Context(), o.ana, "dev")
	check(t, err)
	if !errors.Is(context.Cause(call), tokens.ErrRevoked) {
		t.Error("a removed user's call goes on")
	}
	if _, err := o.Authenticate(t.Context(), value); !errors.Is(err, tokens.ErrRevoked) {
		t.Errorf("a removed user's token: %v", err)
	}
	if _, _, _, err := o.CreateUser(t.Context(), o.ana, "dev", tokens.RoleAdmin, true, tokens.Request{}); !errors.Is(err, tokens.ErrExists) {
		t.Errorf("a removed user's name is free: %v", err)
	}
	if _, _, _, err := o.CreateOrg(t.Context(), o.ana, "initech", "bob"); !errors.Is(err, tokens.ErrDenied) {
		t.Errorf("an org's admin makes orgs: %v", err)
	}
	if _, _, _, err := o.CreateOrg(t.Context(), o.as, "acme", "eve"); !errors.Is(err, tokens.ErrExists) {
		t.Errorf("an org is made twice: %v", err)
	}
}

// The role of a user counts for the tokens the user logs in with, at once.
func TestRoleCountsAtOnce(t *testing.T) {
	o := open(t)
	_, _, value, err := o.CreateUser(t.Context(), o.ana, "max", tokens.RoleDeveloper, true, tokens.Request{})
	check(t, err)
	if o.who(value).Has(tokens.ScopeUserWrite) {
		t.Error("a developer may make users")
	}
	_, err = o.SetRole(t.Context(), o.ana, "max", tokens.RoleAdmin)
	check(t, err)
	if !o.who(value).Has(tokens.ScopeUserWrite) {
		t.Error("an admin may not make users")
	}
}

// The value of the admin's file is one of the store's tokens; another file
// takes its place, and what was revoked stays so.
func TestAdopt(t *testing.T) {
	o := open(t)
	file := filepath.Join(t.TempDir(), "admin.token")
	next, err := tokens.AdminFile(file)
	check(t, err)
	check(t, o.Adopt(t.Context(), next))
	check(t, o.Adopt(t.Context(), next))
	if _, err := o.Authenticate(t.Context(), o.root); !errors.Is(err, tokens.ErrRevoked) {
		t.Errorf("the admin token of before: %v", err)
	}
	p := o.who(adminValue(t, file))
	if p.Type != tokens.TypeAdmin || p.Org != tokens.DefaultOrg || p.Role != tokens.RoleAdmin {
		t.Errorf("the new one is %+v", p)
	}
	_, err = o.Revoke(t.Context(), p, p.ID)
	check(t, err)
	if err := o.Adopt(t.Context(), next); !errors.Is(err, tokens.ErrRevoked) {
		t.Errorf("adopted what was revoked: %v", err)
	}
}

func TestFailuresAreLimited(t *testing.T) {
	o := open(t)
	ctx := tokens.From(t.Context(), "192.0.2.1")
	var many *tokens.TooManyError
	for i := range 12 {
		_, err := o.Authenticate(ctx, tokens.New("sd_"))
		if errors.As(err, &many) != (i >= 10) || !errors.Is(err, tokens.ErrUnauthorized) {
			t.Errorf("attempt %d: %v", i+1, err)
		}
	}
	if many.Wait <= 0 || many.Wait > time.Minute {
		t.Errorf("wait %v", many.Wait)
	}
	if _, err := o.Authenticate(ctx, o.root); err != nil {
		t.Errorf("a good token from there: %v", err)
	}
	if _, err := o.Authenticate(tokens.From(t.Context(), "192.0.2.2"), "nonsense"); errors.As(err, &many) || !errors.Is(err, tokens.ErrMalformed) {
		t.Errorf("from elsewhere: %v", err)
	}
}

func TestExpired(t *testing.T) {
	o := open(t)
	_, p, value := o.make(o.dev, tokens.Request{Type: "org", ExpiresIn: 300 * time.Millisecond})
	call, leave := o.Enter(t.Context(), p)
	defer leave()
	<-call.Done() // when the token expires
	if !errors.Is(context.Cause(call), tokens.ErrExpired) {
		t.Errorf("the call ended with %v", context.Cause(call))
	}
	if _, err := o.Authenticate(t.Context(), value); !errors.Is(err, tokens.ErrExpired) || errors.Is(err, tokens.ErrUnauthorized) {
		t.Errorf("an expired token: %v", err)
	}
}

// Each decision is in the audit log, and no value ever is.
func TestAudit(t *testing.T) {
	o := open(t)
	ctx := tokens.From(t.Context(), "192.0.2.7")
	_, p, value := o.make(o.dev, tokens.Request{Type: "deploy", App: "shop", Name: "ci"})
	_, err := o.Authenticate(ctx, value)
	check(t, err)
	for range 3 {
		check(t, o.Allow(ctx, p, tokens.ScopeBuildWrite, "shop"))
	}
	if err := o.Allow(ctx, p, tokens.ScopeCacheWrite, ""); err == nil {
		t.Fatal("allowed")
	}
	_, err = o.Revoke(ctx, o.ana, p.ID)
	check(t, err)
	if _, err := o.Authenticate(ctx, value); err == nil {
		t.Fatal("let in")
	}
	var lines []string
	for d, err := range o.Decisions(t.Context(), o.ana, tokens.AuditQuery{Token: ""}) {
		check(t, err)
		line := fmt.Sprint(d.Actor, " ", d.Action, " ", d.Resource, " ", d.Addr, " ", d.Allowed, " ", d.Count, " ", d.Reason)
		if strings.Contains(line, value) || strings.Contains(line, value[3:20]) {
			t.Errorf("the value is in the log: %s", line)
		}
		if d.Org != "acme" {
			t.Errorf("of another org: %s", line)
		}
		lines = append(lines, line)
	}
	all := strings.Join(lines, "\n")
	for _, want := range []string{
		"dev token.create token " + p.ID + " deploy app shop  true 1",
		"ci build:write app shop 192.0.2.7 true 3",
		"ci cache:write  192.0.2.7 false 1 permission denied: this deploy token lacks the scope cache:write",
		"ana token.revoke token " + p.ID + " 192.0.2.7 true 1",
		"login  192.0.2.7 false 1 token revoked just now by ana",
	} {
		if !strings.Contains(all, want) {
			t.Errorf("no %q in\n%s", want, all)
		}
	}
	for _, err := range o.Decisions(t.Context(), o.dev, tokens.AuditQuery{}) {
		if !errors.Is(err, tokens.ErrDenied) {
			t.Errorf("a developer reads the log: %v", err)
		}
	}
}

func TestLastUsed(t *testing.T) {
	o := open(t)
	made, _, value := o.make(o.dev, tokens.Request{Type: "org"})
	_, err := o.Authenticate(tokens.From(t.Context(), "192.0.2.9"), value)
	check(t, err)
	got, err := o.Get(t.Context(), o.dev, made.ID)
	if err != nil || got.LastAddr != "192.0.2.9" || time.Since(got.LastUsed) > time.Minute {
		t.Errorf("used %v from %q, %v", got.LastUsed, got.LastAddr, err)
	}
}

// Many revocations at once end every token exactly once.
func TestConcurrentRevocations(t *testing.T) {
	o := open(t)
	var ids []string
	for range 20 {
		made, _, _ := o.make(o.dev, tokens.Request{Type: "org"})
		ids = append(ids, made.ID)
	}
	var mu sync.Mutex
	var revoked []string
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			got, err := o.Revoke(t.Context(), []tokens.Principal{o.dev, o.ana}[i%2], ids[i%20], ids[(i+7)%20])
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			revoked = append(revoked, got...)
		})
	}
	wg.Wait()
	if !sameIDs(revoked, ids) {
		t.Errorf("%d revocations of %d tokens", len(revoked), len(ids))
	}
}

func TestActor(t *testing.T) {
	o := open(t)
	_, token, _ := o.make(o.dev, tokens.Request{Type: "deploy", App: "shop", Name: "ci"})
	local, err := tokens.Local(0, 0)
	check(t, err)
	for _, tc := range []struct {
		p    tokens.Principal
		want string
	}{{o.dev, "dev"}, {o.as, "admin"}, {token, "ci"}, {local, "local user 0"}} {
		if got := tc.p.Actor(); got != tc.want {
			t.Errorf("%+v acts as %s, want %s", tc.p, got, tc.want)
		}
	}
}

// A token for one environment does nothing to the org as a whole.
func TestBoundTokensChangeNoUsers(t *testing.T) {
	o := open(t)
	_, value, err := o.Derive(t.Context(), o.ana, tokens.Request{Env: "staging"})
	check(t, err)
	bound := o.who(value)
	_, _, _, create := o.CreateUser(t.Context(), bound, "eve", tokens.RoleAdmin, true, tokens.Request{})
	_, role := o.SetRole(t.Context(), bound, "dev", tokens.RoleAdmin)
	_, remove := o.RemoveUser(t.Context(), bound, "dev")
	_, trust := o.CreateTrust(t.Context(), bound, tokens.Trust{Name: "ci", Issuer: "https://issuer.test", Audience: "a", Type: tokens.TypeOrg})
	for name, err := range map[string]error{"create": create, "role": role, "remove": remove, "trust": trust} {
		if !errors.Is(err, tokens.ErrDenied) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
