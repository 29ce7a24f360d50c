package registry

import (
	"errors"
	"slices"
	"strings"
)

// maxScopes is how many scopes one bearer token may be for. Clients ask for one
// or two, and for one more for each repository that they mount from.
const maxScopes = 64

// A scope is what may be done in one place, as the token specification of
// distribution has it in bearer tokens.
type scope struct {
	Type    string   `json:"type"`
	Name    string   `json:"name"`
	Actions []string `json:"actions"`
}

// String writes the scope as clients ask for it.
func (s scope) String() string { return s.Type + ":" + s.Name + ":" + strings.Join(s.Actions, ",") }

// scopeOf returns the scope of actions in a repository, or of the catalog.
func scopeOf(repository string, actions ...string) scope {
	if repository == "" {
		return scope{"registry", "catalog", []string{"*"}}
	}
	return scope{"repository", repository, actions}
}

// repository returns the repository that the scope is for; "" is the catalog.
// Not ok is a scope that this registry has no use for.
func (s scope) repository() (name string, ok bool) {
	switch {
	case s.Type == "repository":
		return s.Name, repositoryName.MatchString(s.Name)
	case s.Type == "registry" && s.Name == "catalog":
		return "", true
	}
	return "", false
}

// wanted returns the actions that an [Access] can be asked about. Clients write
// * for all of them.
func (s scope) wanted() []string {
	name, ok := s.repository()
	switch {
	case !ok:
		return nil
	case name == "":
		return []string{ActionCatalog}
	}
	var out []string
	for _, action := range []string{ActionPull, ActionPush, ActionDelete} {
		if slices.Contains(s.Actions, action) || slices.Contains(s.Actions, "*") {
			out = append(out, action)
		}
	}
	return out
}

// covers reports whether scopes contain all of the actions in a repository; for
// "", whether they contain the catalog, or there is no action to contain.
func covers(scopes []scope, repository string, actions []string) bool {
	for _, action := range actions {
		if !slices.ContainsFunc(scopes, func(s scope) bool {
			name, ok := s.repository()
			return ok && name == repository && slices.Contains(s.wanted(), action)
		}) {
			return false
		}
	}
	return true
}

// parseScopes reads the scopes that a client asks for: each value has some,
// apart by spaces, of the form TYPE:NAME:ACTION,ACTION. A name may have colons.
// What it cannot read it leaves out, so that the client gets a token without
// it; it refuses a list without end.
func parseScopes(values []string) ([]scope, error) {
	var out []scope
	for _, v := range values {
		for field := range strings.FieldsSeq(v) {
			i, j := strings.IndexByte(field, ':'), strings.LastIndexByte(field, ':')
			if i < 0 || i == j {
				continue
			}
			if len(out) == maxScopes {
				return nil, errors.New("too many scopes")
			}
			out = append(out, scope{field[:i], field[i+1 : j], strings.Split(field[j+1:], ",")})
		}
	}
	return out, nil
}
