package tokens

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
)

// How long tokens live.
const (
	DefaultExpiry = 90 * 24 * time.Hour
	MaxExpiry     = 20 * 366 * 24 * time.Hour
)

// ErrInvalid means that what was asked for cannot be, whoever asks.
var ErrInvalid = errors.New("invalid request")

// An InvalidError says what is wrong with a request and what to do. It wraps
// [ErrInvalid].
type InvalidError struct{ Text, Hint string }

func (e *InvalidError) Error() string { return e.Text }
func (e *InvalidError) Unwrap() error { return ErrInvalid }

func invalid(hint, format string, args ...any) error {
	return &InvalidError{fmt.Sprintf(format, args...), hint}
}

// A Request asks for a token.
type Request struct {
	Type       string
	Name       string // empty means as the type
	App        string
	Env        string
	Permission string // of registry tokens; empty means ReadOnly
	Command    []string
	ExpiresIn  time.Duration // 0 means DefaultExpiry
	Never      bool          // does not expire
	User       string        // on whose behalf; empty means the maker's own
	Session    bool          // for a browser
}

// creatable are the types that are made by asking for one. Those of users and
// of the daemon's admin come with them.
var creatable = []string{TypeDeploy, TypeOrg, TypeReadOnly, TypeSSH, TypeMachineExec, TypeRegistry}

// Create makes a token in the org of by, and returns it and its value, which is
// kept nowhere. Nobody makes a token that may more than they may themselves. A
// token that is no person's login makes children: they end with it. The error
// wraps [ErrInvalid], [ErrDenied], or is the store's.
func (a *Authority) Create(ctx context.Context, by Principal, r Request) (Token, string, error) {
	if !slices.Contains(creatable, r.Type) {
		return Token{}, "", invalid("use one of "+strings.Join(creatable, ", "), "%q is no type of token that can be created", r.Type)
	}
	if err := a.Allow(ctx, by, ScopeTokenWrite, r.App); err != nil {
		return Token{}, "", err
	}
	t, err := a.draft(by, r)
	if err != nil {
		return Token{}, "", err
	}
	switch {
	case r.Never && by.Role != RoleAdmin:
		return Token{}, "", a.deny(ctx, by, "only admins make tokens that never expire")
	case t.User != by.User && by.Role != RoleAdmin:
		return Token{}, "", a.deny(ctx, by, "only admins make tokens on behalf of others")
	}
	if err := a.knownUser(ctx, by, t.User); err != nil {
		return Token{}, "", err
	}
	if !isLogin(by) {
		t.Parent, t.Expires = by.ID, earlier(t.Expires, by.Expires)
	}
	return a.issue(ctx, by, t, r)
}

// Derive makes a child of the token that by stands for, which ends with it and
// may no more than it. What r leaves empty is as the parent has it. Tokens of
// any type can be derived from. The error is as that of Create.
func (a *Authority) Derive(ctx context.Context, by Principal, r Request) (Token, string, error) {
	if !strings.HasPrefix(by.ID, "tok_") {
		return Token{}, "", invalid("use a token, or slipway tokens create", "%s is no token that one could derive from", by.Name)
	}
	if r.Type == "" {
		r.Type, r.Session = by.Type, r.Session || by.Session
	}
	same := r.Type == by.Type
	if !same && !slices.Contains(creatable, r.Type) {
		return Token{}, "", invalid("use one of "+strings.Join(creatable, ", "), "%q is no type of token that can be derived", clip(r.Type))
	}
	if r.App == "" {
		r.App = by.App
	}
	if r.Env == "" {
		r.Env = by.Env
	}
	if r.Permission == "" && same {
		r.Permission = by.Permission
	}
	if len(r.Command) == 0 && same {
		r.Command = by.Command
	}
	if r.Never = r.ExpiresIn == 0 && r.Session && by.Expires.IsZero(); r.Never {
		r.Never, r.ExpiresIn = false, DefaultExpiry
	}
	r.User = by.User
	t, err := a.draft(by, r)
	if err != nil {
		return Token{}, "", err
	}
	t.Parent, t.Expires = by.ID, earlier(t.Expires, by.Expires)
	return a.issue(ctx, by, t, r)
}

// isLogin reports whether a person logs in with it, so that what it makes is
// the person's and not the token's.
func isLogin(p Principal) bool {
	return (p.Type == TypeUser || p.Type == TypeAdmin) || !strings.HasPrefix(p.ID, "tok_")
}

func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// draft checks what r asks for by itself and returns the token that it would be.
func (a *Authority) draft(by Principal, r Request) (Token, error) {
	now := time.Now()
	t := Token{
		ID: newID("tok_"), Org: by.Org, Type: r.Type, Name: strings.TrimSpace(r.Name), App: r.App, Env: r.Env,
		Permission: r.Permission, Command: slices.Clone(r.Command), Session: r.Session, User: r.User, CreatedBy: by.Actor(), Created: now,
	}
	if t.Name == "" {
		t.Name = r.Type
	}
	if t.User == "" {
		t.User = by.User
	}
	switch {
	case r.ExpiresIn < 0:
		return t, invalid("give a positive duration such as 720h", "a token cannot expire before it is made")
	case r.ExpiresIn > MaxExpiry:
		return t, invalid("give at most 20 years, or never as an admin", "%v is longer than a token may live", r.ExpiresIn)
	case r.Never && r.ExpiresIn != 0:
		return t, invalid("choose one of them", "a token cannot both expire and never expire")
	case r.ExpiresIn > 0:
		t.Expires = now.Add(r.ExpiresIn)
	case !r.Never:
		t.Expires = now.Add(DefaultExpiry)
	}
	return t, checkToken(&t)
}

// name is the form of names of apps, environments, users and orgs.
var name = regexp.MustCompile(`^[a-z0-9]+([._-][a-z0-9]+)*$`)

// CheckName returns an error that wraps [ErrInvalid] if there can be no app,
// environment, user or org of that name; what says which of them.
func CheckName(what, s string) error {
	if len(s) > 100 || !name.MatchString(s) {
		return invalid("use at most 100 lower-case letters, digits and single dots, dashes or underscores between them", "%q is no name for %s", clip(s), what)
	}
	return nil
}

func clip(s string) string {
	if len(s) > 100 {
		return s[:100] + "…"
	}
	return s
}

func checkToken(t *Token) error {
	for _, c := range []struct{ what, name string }{{"an app", t.App}, {"an environment", t.Env}} {
		if c.name == "" {
			continue
		}
		if err := CheckName(c.what, c.name); err != nil {
			return err
		}
	}
	if len(t.Name) > 100 || strings.ContainsFunc(t.Name, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return invalid("use at most 100 printable characters", "%q is no name for a token", clip(t.Name))
	}
	switch {
	case t.App == "" && (t.Type == TypeDeploy || t.Type == TypeMachineExec):
		return invalid("name it with -a", "a %s is for one app", kindOf(t.Type).noun)
	case t.App != "" && (t.Type == TypeOrg || t.Type == TypeUser || t.Type == TypeAdmin):
		return invalid("make a deploy token for one app", "a %s is for all apps", kindOf(t.Type).noun)
	}
	if err := checkPermission(t); err != nil {
		return err
	}
	return checkCommand(t)
}

func checkPermission(t *Token) error {
	switch {
	case t.Type != TypeRegistry && t.Permission != "":
		return invalid("leave --permission out, or make a registry token", "a %s has no permission to choose", kindOf(t.Type).noun)
	case t.Type == TypeRegistry && t.Permission == "":
		t.Permission = ReadOnly
	case t.Type == TypeRegistry && t.Permission != ReadOnly && t.Permission != ReadWrite:
		return invalid("use read-only or read-write", "%q is no permission", clip(t.Permission))
	}
	return nil
}

func checkCommand(t *Token) error {
	size := 0
	for _, word := range t.Command {
		size += len(word)
	}
	switch {
	case t.Type != TypeMachineExec && len(t.Command) > 0:
		return invalid("leave --command out, or make a machine-exec token", "a %s runs no command", kindOf(t.Type).noun)
	case t.Type == TypeMachineExec && len(t.Command) == 0:
		return invalid(`give it with --command "bin/migrate --all"`, "a machine-exec token is for one command")
	case size > 16<<10 || len(t.Command) > 1000:
		return invalid("put long texts into a script of the image", "the command has %d bytes in %d words", size, len(t.Command))
	case slices.ContainsFunc(t.Command, func(s string) bool { return strings.ContainsRune(s, 0) }):
		return invalid("leave the zero byte out", "the command has a zero byte")
	}
	return nil
}

// issue checks that by may all that t may, and stores t.
func (a *Authority) issue(ctx context.Context, by Principal, t Token, r Request) (Token, string, error) {
	role := by.Role
	if t.User != by.User {
		role = RoleDeveloper // an admin gives no more than the other one has; the store has the role itself
	}
	for _, scope := range scopesOf(t.Type, t.Permission, role) {
		if !by.Has(scope) {
			return Token{}, "", a.deny(ctx, by, fmt.Sprintf("this %s lacks the scope %s, so it cannot give it to a %s", kindOf(by.Type).noun, scope, kindOf(t.Type).noun))
		}
	}
	switch {
	case by.App != "" && t.App != by.App:
		return Token{}, "", a.deny(ctx, by, fmt.Sprintf("this %s is for app %q, so it cannot make a token for %s", kindOf(by.Type).noun, by.App, whole(t.App, "all apps", "app %q")))
	case by.Env != "" && t.Env != by.Env:
		return Token{}, "", a.deny(ctx, by, fmt.Sprintf("this %s is for environment %q, so it cannot make a token for %s", kindOf(by.Type).noun, by.Env, whole(t.Env, "any", "environment %q")))
	case len(by.Command) > 0 && !slices.Equal(t.Command, by.Command):
		return Token{}, "", a.deny(ctx, by, "this machine-exec token is for one command, so it cannot make a token for another")
	}
	if t.App != "" {
		if err := a.Claim(ctx, by, t.App); err != nil {
			return Token{}, "", err
		}
	}
	value := New(Prefix(t.Type))
	d := decision(ctx, by, "token.create", "token "+t.ID+" "+t.Type+scopeText(t))
	err := a.store.CreateToken(ctx, t, Hash(value), d)
	if t.Parent != "" && errors.Is(err, ErrNotFound) {
		return Token{}, "", fmt.Errorf("%w: %w", ErrUnauthorized, errRevokedNow)
	}
	return t, value, err
}

func whole(name, all, one string) string {
	if name == "" {
		return all
	}
	return fmt.Sprintf(one, name)
}

func scopeText(t Token) string {
	s := ""
	if t.App != "" {
		s += " app " + t.App
	}
	if t.Env != "" {
		s += " environment " + t.Env
	}
	return s
}

// deny records and returns a refusal that no single scope explains.
func (a *Authority) deny(ctx context.Context, by Principal, text string) error {
	err := &forbidden{text}
	a.decided(ctx, by, ScopeTokenWrite, "", err)
	return err
}

// forbidden is an ErrDenied with a text of its own.
type forbidden struct{ text string }

func (f *forbidden) Error() string { return ErrDenied.Error() + ": " + f.text }
func (f *forbidden) Unwrap() error { return ErrDenied }

func (a *Authority) knownUser(ctx context.Context, by Principal, name string) error {
	if name == by.User {
		return nil
	}
	u, err := a.store.User(ctx, by.Org, name)
	if errors.Is(err, ErrNotFound) || err == nil && !u.Removed.IsZero() {
		return invalid("slipway users list shows them", "there is no user %q", clip(name))
	}
	return err
}

// Claim makes sure that an app belongs to the org of by: it does from now on if
// it did to none. The error wraps [ErrDenied] if it is another org's.
func (a *Authority) Claim(ctx context.Context, by Principal, app string) error {
	got, err := a.store.ClaimApp(ctx, App{Name: app, Org: by.Org, CreatedBy: by.Actor(), Created: time.Now()})
	if err != nil {
		return err
	}
	return a.owned(ctx, by, got.Org, app)
}

// Owner returns the org that an app belongs to, "" if it is nobody's yet.
func (a *Authority) Owner(ctx context.Context, app string) (string, error) {
	got, err := a.store.App(ctx, app)
	if errors.Is(err, ErrNotFound) {
		return "", nil
	}
	return got.Org, err
}

func (a *Authority) owned(ctx context.Context, by Principal, org, app string) error {
	if org == by.Org {
		return nil
	}
	err := &forbidden{fmt.Sprintf("app %q belongs to another organization; choose another name", app)}
	a.decided(ctx, by, "app", resource("app", app), err)
	return err
}
