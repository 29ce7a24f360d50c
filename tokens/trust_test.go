package tokens

import (
	"errors"
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestMatch(t *testing.T) {
	for _, tc := range []struct {
		pattern, value string
		want           bool
	}{
		{"acme/shop", "acme/shop", true},
		{"acme/shop", "acme/shop2", false},
		{"acme/shop", "xacme/shop", false},
		{"acme/shop", "ACME/shop", false},
		{"acme/*", "acme/shop", true},
		{"acme/*", "acme/", true},
		{"acme/*", "acme/shop/evil", false},
		{"acme/*", "acme/shop:x", false},
		{"acme/*", "acme2/shop", false},
		{"acme/**", "acme/a/b:c\nd", true},
		{"*", "", true},
		{"*", "a:b", false},
		{"a*b*c", "abbbc", true},
		{"a*b*c", "ab", false},
		{"v1.*", "v1x0", false},
		{"(a|b)", "a", false},
		{"refs/heads/**-x", "refs/heads/a/b-x", true},
		{"", "", true},
		{"", "a", false},
	} {
		if got := match(tc.pattern, tc.value); got != tc.want {
			t.Errorf("match(%q, %q) = %v", tc.pattern, tc.value, got)
		}
	}
}

// plainMatch is match by trying all that a star can stand for.
func plainMatch(pattern, value string) bool {
	switch {
	case pattern == "":
		return value == ""
	case strings.HasPrefix(pattern, "**"):
		for i := 0; i <= len(value); i++ {
			if plainMatch(pattern[2:], value[i:]) {
				return true
			}
		}
		return false
	case pattern[0] == '*':
		for i := 0; ; i++ {
			if plainMatch(pattern[1:], value[i:]) {
				return true
			}
			if i == len(value) || value[i] == '/' || value[i] == ':' {
				return false
			}
		}
	}
	return value != "" && value[0] == pattern[0] && plainMatch(pattern[1:], value[1:])
}

func FuzzMatch(f *testing.F) {
	f.Add("acme/*", "acme/shop")
	f.Add("**:ref:*", "a/b:ref:main")
	f.Add("[a-z]+\\Q.*", "[x")
	f.Fuzz(func(t *testing.T, pattern, value string) {
		if len(value) > 30 || strings.Count(pattern, "*") > 6 || !printable(pattern) || !printable(value) {
			return // the plain way would take for ever; others are never patterns
		}
		if got, want := match(pattern, value), plainMatch(pattern, value); got != want {
			t.Errorf("match(%q, %q) = %v", pattern, value, got)
		}
	})
}

func TestCheckTrust(t *testing.T) {
	good := func() Trust {
		return Trust{Name: "ci", Issuer: "https://id.example.com", Audience: "us", Type: TypeDeploy, App: "shop"}
	}
	many := map[string]string{}
	for i := range 51 {
		many[strings.Repeat("x", i+1)] = "x"
	}
	for _, tc := range []struct {
		name   string
		change func(*Trust)
		want   string // part of the error; "" for none
	}{
		{"good", func(*Trust) {}, ""},
		{"no name", func(r *Trust) { r.Name = "" }, "name"},
		{"path as name", func(r *Trust) { r.Name = "../x" }, "name"},
		{"no type", func(r *Trust) { r.Type = "" }, "type"},
		{"ssh", func(r *Trust) { r.Type = TypeSSH }, "type"},
		{"admin", func(r *Trust) { r.Type = TypeAdmin }, "type"},
		{"deploy for all", func(r *Trust) { r.App = "" }, "one app"},
		{"org for an app", func(r *Trust) { r.Type = TypeOrg }, "all apps"},
		{"role of a deploy token", func(r *Trust) { r.Role = RoleAdmin }, "role"},
		{"unknown role", func(r *Trust) { r.Type, r.App, r.Role = TypeUser, "", "root" }, "role"},
		{"permission of a deploy token", func(r *Trust) { r.Permission = ReadWrite }, "permission"},
		{"a day", func(r *Trust) { r.TTL = 24 * time.Hour }, ""},
		{"too long", func(r *Trust) { r.TTL = 24*time.Hour + 1 }, "no time"},
		{"too short", func(r *Trust) { r.TTL = time.Second }, "no time"},
		{"before it begins", func(r *Trust) { r.TTL = -time.Hour }, "no time"},
		{"a month for people", func(r *Trust) { r.Type, r.App, r.TTL = TypeUser, "", 30*24*time.Hour }, ""},
		{"no issuer", func(r *Trust) { r.Issuer = "" }, "issuer"},
		{"plaintext", func(r *Trust) { r.Issuer = "http://id.example.com" }, "https"},
		{"plaintext here", func(r *Trust) { r.Issuer = "http://127.0.0.1:1" }, ""},
		{"a file", func(r *Trust) { r.Issuer = "file:///etc/passwd" }, "issuer"},
		{"a password", func(r *Trust) { r.Issuer = "https://a:b@id.example.com" }, "issuer"},
		{"a query", func(r *Trust) { r.Issuer = "https://id.example.com?x" }, "issuer"},
		{"an empty query", func(r *Trust) { r.Issuer = "https://id.example.com?" }, "issuer"},
		{"a fragment", func(r *Trust) { r.Issuer = "https://id.example.com#" }, "issuer"},
		{"a line break", func(r *Trust) { r.Issuer = "https://id.example.com/\n" }, "issuer"},
		{"no audience", func(r *Trust) { r.Audience = "" }, "audience"},
		{"a claim with a field of its own", func(r *Trust) { r.Claims = map[string]string{"aud": "x"} }, "cannot be chosen"},
		{"an empty pattern", func(r *Trust) { r.Claims = map[string]string{"sub": ""} }, "pattern"},
		{"three stars", func(r *Trust) { r.Claims = map[string]string{"sub": "***"} }, "pattern"},
		{"many claims", func(r *Trust) { r.Claims = many }, "too many"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := good()
			tc.change(&r)
			err := checkTrust(&r)
			if (err == nil) != (tc.want == "") || err != nil && (!errors.Is(err, ErrInvalid) || !regexp.MustCompile(tc.want).MatchString(err.Error())) {
				t.Errorf("%v; want one about %q", err, tc.want)
			}
		})
	}
	r := good()
	if err := checkTrust(&r); err != nil || r.TTL != time.Hour {
		t.Errorf("lives for %v, %v", r.TTL, err)
	}
	r = Trust{Name: "r", Issuer: "https://id.example.com", Audience: "us", Type: TypeRegistry}
	if err := checkTrust(&r); err != nil || r.Permission != ReadOnly {
		t.Errorf("permission %q, %v", r.Permission, err)
	}
}

// Rules for issuers that the whole world gets tokens of name somebody.
func TestCheckPublic(t *testing.T) {
	const github, gitlab, circleci = "https://token.actions.githubusercontent.com", "https://gitlab.com", "https://oidc.circleci.com/org/1"
	const buildkite, google = "https://agent.buildkite.com", "https://accounts.google.com"
	for _, tc := range []struct {
		issuer, claim, pattern string
		ok                     bool
	}{
		{github, "", "", false},
		{github + "/enterprise", "", "", false},
		{github, "ref", "refs/heads/main", false},
		{github, "repository", "acme/shop", true},
		{github, "repository", "acme/*", true},
		{github, "repository", "**", false},
		{github, "repository", "*/shop", false},
		{github, "repository", "acme*/shop", false},
		{github, "repository_owner", "acme", true},
		{github, "repository_owner", "acme*", false},
		{github, "sub", "repo:acme/shop:ref:**", true},
		{github, "sub", "repo:acme/*:ref:**", true},
		{github, "sub", "repo:*", false},
		{github, "sub", "repo:acme**", false},
		{github, "job_workflow_ref", "acme/ci/build.yml@refs/heads/main", false},
		{gitlab, "project_path", "acme/platform/shop", true},
		{gitlab, "namespace_path", "**", false},
		{gitlab, "user_login", "ann", false},
		{gitlab + "/", "ref", "main", false},
		{"https://gitlab.example.com", "", "", true},
		{buildkite, "organization_slug", "acme", true},
		{buildkite, "pipeline_slug", "shop", false},
		{buildkite, "sub", "organization:acme:pipeline:*:**", true},
		{circleci, "", "", false},
		{circleci, "oidc.circleci.com/project-id", "2", true},
		{google, "email", "**", false},
		{google, "email", "ann@example.com", true},
		{google, "hd", "example.com", true},
	} {
		r := Trust{Name: "ci", Issuer: tc.issuer, Audience: "us", Type: TypeReadOnly, Claims: map[string]string{"actor": "ann"}}
		if tc.claim != "" {
			r.Claims[tc.claim] = tc.pattern
		}
		if err := checkTrust(&r); (err == nil) != tc.ok {
			t.Errorf("%s with %s=%s: %v", tc.issuer, tc.claim, tc.pattern, err)
		}
	}
}
