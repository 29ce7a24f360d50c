package tokens

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// ErrIssuer means that an issuer's keys could not be had, so that nobody knows
// whether an ID token is good.
var ErrIssuer = errors.New("the issuer of the ID token cannot be reached")

// A Verifier checks tokens of OIDC issuers. Package tokens/oidc has one.
type Verifier interface {
	// Verify returns the claims of an ID token that is good: signed by the
	// issuer that it names, which must be one for which trusted returns true,
	// not expired, not from the future. Nothing is fetched from an issuer
	// before trusted was asked. Who calls checks audience and nonce. The error
	// wraps ErrUnauthorized and its text is for who presented the token, or
	// wraps ErrIssuer and its text is for the log; it never shows the token.
	Verify(ctx context.Context, idToken string, trusted func(issuer string) bool) (Claims, error)
}

// Claims are what an ID token says, as encoding/json decodes it with numbers
// as json.Number.
type Claims map[string]any

// values returns a claim as texts: one for a string, a number or a boolean,
// one for each of these in a list, none for anything else.
func (c Claims) values(name string) []string {
	list, ok := c[name].([]any)
	if !ok {
		list = []any{c[name]}
	}
	var out []string
	for _, v := range list {
		switch v := v.(type) {
		case string:
			out = append(out, v)
		case json.Number:
			out = append(out, v.String())
		case bool:
			out = append(out, fmt.Sprint(v))
		}
	}
	return out
}

// text returns a claim that is a string, "" if it is none.
func (c Claims) text(name string) string {
	s, _ := c[name].(string)
	return s
}

// expires returns when the ID token is no longer good.
func (c Claims) expires() time.Time {
	n, _ := c["exp"].(json.Number)
	seconds, err := n.Float64()
	if err != nil {
		return time.Now().Add(24 * time.Hour)
	}
	return time.Unix(int64(seconds), 0)
}

// An ExchangeRequest asks for a token of ours for one of an OIDC issuer.
type ExchangeRequest struct {
	IDToken   string
	Org       string        // whose rules count; empty means all orgs'
	Rule      string        // by name or ID; empty means the one that matches
	ExpiresIn time.Duration // 0, or more than the rule allows, means what it allows
	Session   bool          // a browser that signs in: the rule's type must be TypeUser, and Nonce must be given
	Nonce     string        // that the ID token must have been made for
}

// An ExchangeError says why an ID token gives no token of ours. It wraps
// [ErrUnauthorized], and its text is for who presented the token: it tells
// nothing that is not in it.
type ExchangeError struct {
	Text, Hint string

	org    string // that gets to read the reason; "" means only the daemon's admin
	reason string // for the audit log; "" means Text
}

func (e *ExchangeError) Error() string { return e.Text }
func (e *ExchangeError) Unwrap() error { return ErrUnauthorized }

// Exchange gives a token for an ID token that a trust rule matches, and
// returns it, its value and the rule. An ID token is exchanged once. The error
// is a [*TooManyError] when so many attempts from one address failed that this
// one is not told why it did; wraps [ErrUnauthorized], [ErrInvalid],
// [ErrDenied] or [ErrIssuer]; or is the store's.
func (a *Authority) Exchange(ctx context.Context, r ExchangeRequest) (Token, string, Trust, error) {
	if a.issuer == nil {
		return Token{}, "", Trust{}, invalid("use a token; the operator decides about this", "this daemon exchanges no ID tokens")
	}
	claims, rules, err := a.verify(ctx, r)
	if err == nil {
		var rule Trust
		if rule, err = choose(rules, claims, r); err == nil {
			var t Token
			var value string
			if t, value, err = a.give(ctx, rule, claims, r); err == nil {
				return t, value, rule, nil
			}
		}
	}
	return Token{}, "", Trust{}, a.notExchanged(ctx, claims, err)
}

// verify returns the claims of a good ID token, and the rules of its issuer.
func (a *Authority) verify(ctx context.Context, r ExchangeRequest) (Claims, []Trust, error) {
	var rules []Trust
	var asked error
	issuer := ""
	claims, err := a.issuer.Verify(ctx, r.IDToken, func(iss string) bool {
		issuer = iss
		if checkIssuer(iss) != nil {
			return false // no rule can be for it
		}
		rules, asked = a.store.TrustsOf(ctx, iss)
		return asked == nil && len(rules) > 0
	})
	switch {
	case asked != nil:
		return nil, nil, asked
	case issuer != "" && len(rules) == 0:
		return nil, nil, noMatch("issuer "+quoted([]string{issuer}), "", "")
	case err != nil:
		return nil, nil, err
	}
	rules = slices.DeleteFunc(rules, func(t Trust) bool {
		return r.Org != "" && t.Org != r.Org || r.Rule != "" && t.Name != r.Rule && t.ID != r.Rule
	})
	return claims, rules, checkNonce(claims, r)
}

// checkNonce ties a sign-in to the browser that began it. A token that was made
// for one is good for nothing else.
func checkNonce(c Claims, r ExchangeRequest) error {
	nonce := c.text("nonce")
	switch {
	case r.Session && r.Nonce == "":
		return invalid("begin the sign-in again", "a sign-in needs a nonce")
	case subtle.ConstantTimeCompare([]byte(nonce), []byte(r.Nonce)) != 1:
		return &ExchangeError{Text: "the ID token was not made for this sign-in", Hint: "begin again"}
	}
	return nil
}

// choose returns the one rule that matches.
func choose(rules []Trust, c Claims, r ExchangeRequest) (Trust, error) {
	var matching []Trust
	var near []Trust // have the audience
	reason := ""
	for _, rule := range rules {
		if r.Session && rule.Type != TypeUser || !slices.Contains(c.values("aud"), rule.Audience) {
			continue
		}
		if name := rule.mismatch(c); name != "" {
			near = append(near, rule)
			reason += fmt.Sprintf("; rule %s: %s is %s, not %s", rule.Name, name, quoted(c.values(name)), rule.Claims[name])
			continue
		}
		matching = append(matching, rule)
	}
	switch len(matching) {
	case 1:
		return matching[0], nil
	case 0:
		return Trust{}, mismatched(near, c, strings.TrimPrefix(reason, "; "))
	}
	names := make([]string, len(matching))
	for i, rule := range matching {
		names[i] = rule.Name + " of " + rule.Org
	}
	slices.Sort(names)
	return Trust{}, invalid("name one with --rule, or the organization with --org", "several trust rules match: %s", strings.Join(names, ", "))
}

// mismatched says what was looked at in vain. The rules stay unsaid: what they
// want is not for everybody.
func mismatched(near []Trust, c Claims, reason string) error {
	looked := []string{"issuer " + quoted(c.values("iss")), "audience " + quoted(c.values("aud"))}
	names := map[string]bool{}
	org := ""
	for _, rule := range near {
		for name := range rule.Claims {
			names[name] = true
		}
		org = rule.Org
	}
	if slices.ContainsFunc(near, func(t Trust) bool { return t.Org != org }) {
		org = ""
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		looked = append(looked, name+" "+quoted(c.values(name)))
	}
	return noMatch(strings.Join(looked, ", "), org, reason)
}

func noMatch(looked, org, reason string) error {
	return &ExchangeError{
		Text: "no trust rule matches this ID token: " + looked,
		Hint: "an admin of the organization makes rules with slipway trust create; the audience must be the rule's, and each claim must match",
		org:  org, reason: reason,
	}
}

// quoted shows values of a claim, clipped.
func quoted(values []string) string {
	if len(values) == 0 {
		return "(none)"
	}
	out := make([]string, 0, len(values))
	for _, v := range values[:min(len(values), 5)] {
		out = append(out, fmt.Sprintf("%q", clip(v)))
	}
	return strings.Join(out, " ")
}

// give spends the ID token and makes the token that its rule gives.
func (a *Authority) give(ctx context.Context, rule Trust, c Claims, r ExchangeRequest) (Token, string, error) {
	by := rule.principal()
	user := by.User
	if rule.Type == TypeUser {
		var err error
		if user, err = userName(c); err != nil {
			return Token{}, "", err
		}
	}
	if err := a.redeem(ctx, rule, c, r.IDToken); err != nil {
		return Token{}, "", err
	}
	if rule.Type == TypeUser {
		if err := a.signUp(ctx, by, user, rule.Role); err != nil {
			return Token{}, "", err
		}
	}
	ttl := rule.TTL
	if r.ExpiresIn > 0 {
		ttl = min(ttl, r.ExpiresIn)
	}
	want := Request{Type: rule.Type, Name: rule.Name, App: rule.App, Env: rule.Env, Permission: rule.Permission, ExpiresIn: ttl, User: user, Session: r.Session}
	t, err := a.draft(by, want)
	if err != nil {
		return Token{}, "", err
	}
	t.CreatedBy = by.Name
	t, value, err := a.issue(ctx, by, t, want)
	if err == nil {
		a.decided(ctx, by, exchangeAction, fmt.Sprintf("token %s for %s of %s", t.ID, quoted(c.values("sub")), rule.Issuer), nil)
	}
	return t, value, err
}

const exchangeAction = "token.exchange"

// principal is who makes a rule's tokens: somebody whose name no user can have.
func (t *Trust) principal() Principal {
	return Principal{
		ID: t.ID, Name: "trust " + t.Name, User: "trust:" + t.Name, Org: t.Org, Type: t.Type, Role: RoleDeveloper,
		App: t.App, Env: t.Env, Scopes: scopesOf(t.Type, t.Permission, t.Role),
	}
}

// redeem spends an ID token. One without an ID of its own is known by what was
// signed; the signature itself can be written in more ways than one.
func (a *Authority) redeem(ctx context.Context, rule Trust, c Claims, idToken string) error {
	id := c.text("jti")
	if id == "" {
		id = idToken[:max(0, strings.LastIndexByte(idToken, '.'))]
	}
	sum := sha256.Sum256([]byte(rule.Issuer + "\n" + id))
	err := a.store.Redeem(ctx, "oidc:"+hex.EncodeToString(sum[:]), c.expires().Add(time.Hour))
	if errors.Is(err, ErrExists) {
		return &ExchangeError{
			Text: "this ID token was exchanged before, and each is good for one time",
			Hint: `ask for another one, or exchange once for the whole job: eval "$(slipway tokens exchange --export)"`,
			org:  rule.Org,
		}
	}
	return err
}

// userName returns the name of the user that an ID token stands for, in the
// form that names have here: ann@example.com is ann-at-example.com.
func userName(c Claims) (string, error) {
	claim := "preferred_username"
	if c.text(claim) == "" {
		claim = "email"
		if verified := c.values("email_verified"); len(verified) != 1 || verified[0] != "true" {
			return "", &ExchangeError{Text: "the ID token names no user", Hint: "its issuer must give preferred_username, or an email that is verified"}
		}
	}
	user := strings.ReplaceAll(strings.ToLower(c.text(claim)), "@", "-at-")
	if err := CheckName("a user", user); err != nil {
		return "", &ExchangeError{Text: fmt.Sprintf("%s %q is no name for a user", claim, clip(c.text(claim))),
			Hint: "names are lower-case letters, digits and single dots, dashes or underscores between them"}
	}
	return user, nil
}

// signUp makes sure that there is a user of that name: the first time, one with
// that role. The daemon's own admin signs in with its token only.
func (a *Authority) signUp(ctx context.Context, by Principal, user, role string) error {
	if by.Org == DefaultOrg && user == adminName {
		return &ExchangeError{Text: "the daemon's admin signs in with its token only", Hint: "use another account of the issuer", org: by.Org}
	}
	u, err := a.store.User(ctx, by.Org, user)
	if errors.Is(err, ErrNotFound) {
		u = User{Org: by.Org, Name: user, Role: role, Created: time.Now()}
		if err = a.store.CreateUser(ctx, u, decision(ctx, by, "user.create", "user "+user+" "+role)); errors.Is(err, ErrExists) {
			u, err = a.store.User(ctx, by.Org, user)
		}
	}
	if err == nil && !u.Removed.IsZero() {
		err = &ExchangeError{Text: fmt.Sprintf("user %q was removed", user), Hint: "ask an admin of the organization", org: by.Org}
	}
	return err
}

// notExchanged notes a failed attempt and returns what its caller gets to know.
func (a *Authority) notExchanged(ctx context.Context, c Claims, err error) error {
	if !errors.Is(err, ErrUnauthorized) {
		if errors.Is(err, ErrIssuer) {
			a.log.WarnContext(ctx, "ID token not exchanged", "err", err)
		}
		return err // nobody could look, or the one who may is told what to change
	}
	if wait := a.failures.add(addr(ctx), time.Now()); wait > 0 {
		return &TooManyError{wait}
	}
	d := Decision{Action: exchangeAction, Addr: addr(ctx), Reason: err.Error()}
	if c != nil {
		d.Resource = "ID token of " + quoted(c.values("sub"))
	}
	var x *ExchangeError
	if errors.As(err, &x) {
		d.Org, d.Reason = x.org, cmp.Or(x.reason, x.Text)
	}
	a.journal.add(d)
	return err
}
