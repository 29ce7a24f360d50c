package tokens

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ErrDenied means that a good token does not suffice.
var ErrDenied = errors.New("permission denied")

// A DeniedError says what a token lacks. It wraps [ErrDenied], and its text is
// for the token's owner.
type DeniedError struct {
	Principal Principal
	Action    string // the scope that the action needs
	App       string // the app it concerns; empty for none in particular
	Env       string // the environment it concerns; empty for none in particular
}

func (e *DeniedError) Unwrap() error { return ErrDenied }

// Error says what the token may not do and which token may.
func (e *DeniedError) Error() string {
	noun := kindOf(e.Principal.Type).noun
	switch {
	case !e.Principal.Has(e.Action):
		return fmt.Sprintf("%v: this %s lacks the scope %s%s. Needed: %s", ErrDenied, noun, e.Action, e.on(), e.needed())
	case !e.foreignApp() && e.Env == "":
		return fmt.Sprintf("%v: this %s is for environment %q only (%s). Needed: %s, for no environment",
			ErrDenied, noun, e.Principal.Env, e.Action, e.needed())
	case !e.foreignApp():
		return fmt.Sprintf("%v: this %s is for environment %q, not %q (%s). Needed: %s, for environment %s or for none",
			ErrDenied, noun, e.Principal.Env, e.Env, e.Action, e.needed(), e.Env)
	case e.App == "":
		return fmt.Sprintf("%v: this %s is for app %q only, and %s concerns them all. Needed: %s",
			ErrDenied, noun, e.Principal.App, e.Action, e.needed())
	}
	return fmt.Sprintf("%v: this %s is for app %q, not %q (%s). Needed: %s",
		ErrDenied, noun, e.Principal.App, e.App, e.Action, e.needed())
}

// foreignApp reports whether it was the app that did not fit; if not, and the
// scope is there, it was the environment.
func (e *DeniedError) foreignApp() bool { return e.Principal.App != "" && e.Principal.App != e.App }

func (e *DeniedError) on() string {
	if e.App == "" {
		return ""
	}
	return fmt.Sprintf(" on app %q", e.App)
}

// needed lists the kinds of token that would do.
func (e *DeniedError) needed() string {
	var nouns []string
	for _, k := range kinds {
		if !slices.Contains(k.scopes, e.Action) || (e.App == "" && k.typ == TypeDeploy) || (k.typ == TypeUser && len(nouns) > 0) {
			continue
		}
		noun := k.noun
		switch {
		case k.typ == TypeDeploy:
			noun += " for " + e.App
		case k.typ == TypeRegistry && !slices.Contains(scopesOf(k.typ, ReadOnly, ""), e.Action):
			noun = ReadWrite + " " + noun
		}
		nouns = append(nouns, noun)
	}
	switch n := len(nouns); n {
	case 0:
		return "nothing grants this"
	case 1:
		return nouns[0]
	default:
		return strings.Join(nouns[:n-1], ", ") + " or " + nouns[n-1]
	}
}

// Allow decides whether a principal may do an action, which is the name of a
// scope, to an app of its org; with no app, to the org as a whole. The error is
// a [*DeniedError] if it may not. The caller answers for the org: Allow knows
// apps by name only.
func Allow(p Principal, action, app string) error {
	if p.Has(action) && (p.App == "" || p.App == app) {
		return nil
	}
	return &DeniedError{Principal: p, Action: action, App: app}
}

// AllowIn is [Allow] for what is done in an environment: a token that is bound
// to one may do it in no other.
func AllowIn(p Principal, action, app, env string) error {
	if err := Allow(p, action, app); err != nil {
		return err
	}
	if p.Env == "" || p.Env == env {
		return nil
	}
	return &DeniedError{Principal: p, Action: action, App: app, Env: env}
}
