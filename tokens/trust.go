package tokens

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// How long tokens live that trust rules give.
const (
	DefaultTrustTTL = time.Hour
	MaxTrustTTL     = 24 * time.Hour      // of jobs
	MaxSignInTTL    = 30 * 24 * time.Hour // of people
)

// CreateTrust adds a rule to by's org. Of t, ID, Org, CreatedBy and Created are
// ignored; TTL 0 means DefaultTrustTTL, and no Role that of developers. The
// error wraps [ErrInvalid], [ErrDenied], [ErrExists], or is the store's.
func (a *Authority) CreateTrust(ctx context.Context, by Principal, t Trust) (Trust, error) {
	if err := a.AllowIn(ctx, by, ScopeUserWrite, "", ""); err != nil {
		return Trust{}, err
	}
	t.ID, t.Org, t.CreatedBy, t.Created = newID("tru_"), by.Org, by.Actor(), time.Now()
	if err := checkTrust(&t); err != nil {
		return Trust{}, err
	}
	all, err := a.store.Trusts(ctx, by.Org)
	if err != nil {
		return Trust{}, err
	}
	if slices.ContainsFunc(all, func(o Trust) bool { return o.Name == t.Name }) {
		return Trust{}, fmt.Errorf("trust rule %q: %w", t.Name, ErrExists)
	}
	return t, a.store.CreateTrust(ctx, t, decision(ctx, by, "trust.create", fmt.Sprintf("trust %s %s: %s gives %s", t.ID, t.Name, t.Issuer, t.gives())))
}

// gives says what tokens a rule gives.
func (t *Trust) gives() string {
	return t.Type + scopeText(Token{App: t.App, Env: t.Env})
}

// Trusts returns the rules of by's org, newest first.
func (a *Authority) Trusts(ctx context.Context, by Principal) ([]Trust, error) {
	if err := a.AllowIn(ctx, by, ScopeUserRead, "", ""); err != nil {
		return nil, err
	}
	return a.store.Trusts(ctx, by.Org)
}

// DeleteTrust removes a rule of by's org. Tokens that it gave stay good until
// they expire.
func (a *Authority) DeleteTrust(ctx context.Context, by Principal, id string) error {
	if err := a.AllowIn(ctx, by, ScopeUserWrite, "", ""); err != nil {
		return err
	}
	return a.store.DeleteTrust(ctx, by.Org, id, decision(ctx, by, "trust.delete", "trust "+clip(id)))
}

// trustable are the types that rules give.
var trustable = []string{TypeDeploy, TypeReadOnly, TypeRegistry, TypeOrg, TypeUser}

// checkTrust checks a rule and fills in what was left to us.
func checkTrust(t *Trust) error {
	if err := CheckName("a trust rule", t.Name); err != nil {
		return err
	}
	if !slices.Contains(trustable, t.Type) {
		return invalid("use one of "+strings.Join(trustable, ", "), "%q is no type of token that a trust rule gives", clip(t.Type))
	}
	if err := checkTrustTTL(t); err != nil {
		return err
	}
	switch {
	case t.Type == TypeUser && t.Role == "":
		t.Role = RoleDeveloper
	case t.Type == TypeUser:
		if err := checkRole(t.Role); err != nil {
			return err
		}
	case t.Role != "":
		return invalid("leave the role out", "only users have a role, not a %s", kindOf(t.Type).noun)
	}
	given := Token{Type: t.Type, App: t.App, Env: t.Env, Permission: t.Permission}
	if err := checkToken(&given); err != nil {
		return err
	}
	t.Permission = given.Permission
	if err := checkIssuer(t.Issuer); err != nil {
		return err
	}
	if t.Audience == "" || len(t.Audience) > 500 || !printable(t.Audience) {
		return invalid("name the audience that the ID token is made for", "%q is no audience", clip(t.Audience))
	}
	if err := checkClaims(t.Claims); err != nil {
		return err
	}
	return checkPublic(t)
}

func checkTrustTTL(t *Trust) error {
	most := MaxTrustTTL
	if t.Type == TypeUser {
		most = MaxSignInTTL
	}
	if t.TTL == 0 {
		t.TTL = DefaultTrustTTL
	}
	if t.TTL < time.Minute || t.TTL > most {
		return invalid(fmt.Sprintf("give between 1m and %v", most), "%v is no time for which a trust rule gives a %s", t.TTL, kindOf(t.Type).noun)
	}
	return nil
}

// checkIssuer accepts the URLs that iss claims have.
func checkIssuer(issuer string) error {
	const hint = "give it as in the token's iss, like https://gitlab.example.com"
	u, err := url.Parse(issuer)
	switch {
	case err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.ForceQuery || strings.Contains(issuer, "#") || len(issuer) > 500 || !printable(issuer):
		return invalid(hint, "%q is no URL of an issuer", clip(issuer))
	case u.Scheme == "https" || u.Scheme == "http" && loopback(u.Hostname()):
		return nil
	}
	return invalid(hint, "the issuer %q does not begin with https://: anybody on the way could give us keys", clip(issuer))
}

func loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

// registered are the claims that are looked at by themselves.
var registered = []string{"iss", "aud", "exp", "nbf", "iat", "jti", "nonce"}

func checkClaims(claims map[string]string) error {
	if len(claims) > 50 {
		return invalid("give at most 50", "%d claims are too many for a trust rule", len(claims))
	}
	for _, name := range slices.Sorted(maps.Keys(claims)) {
		pattern := claims[name]
		switch {
		case name == "" || len(name) > 200 || !printable(name):
			return invalid("name a claim of the ID token", "%q is no name of a claim", clip(name))
		case slices.Contains(registered, name):
			return invalid("leave it out; issuer and audience have fields of their own", "the claim %s cannot be chosen", name)
		case pattern == "" || len(pattern) > 1000 || !printable(pattern):
			return invalid("give the value, with * for any text without a slash or colon, ** for any text", "claim %s: %q is no pattern", name, clip(pattern))
		case strings.Contains(pattern, "***"):
			return invalid("use * or **", "claim %s: %q is no pattern", name, clip(pattern))
		}
	}
	return nil
}

// public are issuers whose tokens everybody in the world can have, and the
// claims, with the beginning that a pattern for them needs, that say whose a
// token is. Without one of them a rule would let everybody in.
var public = []struct {
	issuer string // the URL, or all below it
	claims map[string]*regexp.Regexp
}{
	{"https://token.actions.githubusercontent.com", map[string]*regexp.Regexp{
		"repository": ownerThenSlash, "repository_owner": fixed, "repository_id": fixed, "repository_owner_id": fixed,
		"sub": regexp.MustCompile(`^repo:[^*:/]+/`),
	}},
	{"https://gitlab.com", map[string]*regexp.Regexp{
		"project_path": ownerThenSlash, "namespace_path": fixed, "project_id": fixed, "namespace_id": fixed,
		"sub": regexp.MustCompile(`^project_path:[^*:/]+/`),
	}},
	{"https://agent.buildkite.com", map[string]*regexp.Regexp{
		"organization_slug": fixed, "organization_id": fixed, "pipeline_id": fixed,
		"sub": regexp.MustCompile(`^organization:[^*:]+:`),
	}},
	{"https://oidc.circleci.com/org", map[string]*regexp.Regexp{
		"oidc.circleci.com/project-id": fixed, "oidc.circleci.com/context-ids": fixed,
		"sub": regexp.MustCompile(`^org/[^*/]+/project/[^*/]+/`),
	}},
	{"https://accounts.google.com", map[string]*regexp.Regexp{
		"hd": fixed, "sub": fixed, "email": regexp.MustCompile(`^[^*]+$|@[^*@]+$`),
	}},
}

var (
	fixed          = regexp.MustCompile(`^[^*]+$`)
	ownerThenSlash = regexp.MustCompile(`^[^*/]+/`)
)

// checkPublic refuses rules that would let everybody in.
func checkPublic(t *Trust) error {
	for _, p := range public {
		if t.Issuer != p.issuer && !strings.HasPrefix(t.Issuer, p.issuer+"/") {
			continue
		}
		for name, pattern := range t.Claims {
			if begin := p.claims[name]; begin != nil && begin.MatchString(pattern) {
				return nil
			}
		}
		names := strings.Join(slices.Sorted(maps.Keys(p.claims)), ", ")
		return invalid("say whose tokens count by one of the claims "+names+", without a star in the owner's name",
			"anybody can have ID tokens of %s, and this rule would let them all in", p.issuer)
	}
	return nil
}

// mismatch returns the first claim by name that the rule wants otherwise, ""
// if all are as it wants.
func (t *Trust) mismatch(c Claims) string {
	for _, name := range slices.Sorted(maps.Keys(t.Claims)) {
		if !slices.ContainsFunc(c.values(name), func(v string) bool { return match(t.Claims[name], v) }) {
			return name
		}
	}
	return ""
}

// match reports whether a value is as a pattern has it, as a whole: * stands
// for any text without a slash or colon, ** for any text, none too.
func match(pattern, value string) bool {
	var b strings.Builder
	b.WriteString(`^`)
	for pattern != "" {
		text, rest, star := strings.Cut(pattern, "*")
		b.WriteString(regexp.QuoteMeta(text))
		if pattern = rest; !star {
			break
		}
		if any, ok := strings.CutPrefix(rest, "*"); ok {
			pattern = any
			b.WriteString(`(?s:.*)`)
		} else {
			b.WriteString(`[^/:]*`)
		}
	}
	b.WriteString(`$`)
	re, err := regexp.Compile(b.String())
	return err == nil && re.MatchString(value)
}
