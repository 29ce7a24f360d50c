package tokens

import (
	"slices"
	"strings"
)

// The types of token. A type decides the prefix of values and the scopes that
// a token comes with.
const (
	TypeAdmin       = "admin"        // everything; one for each daemon
	TypeUser        = "user"         // what its user may, by role
	TypeOrg         = "org"          // all apps of an organization
	TypeDeploy      = "deploy"       // one app: build, push, follow
	TypeReadOnly    = "readonly"     // look, don't touch
	TypeSSH         = "ssh"          // a shell into a failed step
	TypeMachineExec = "machine-exec" // one command in an app's image
	TypeRegistry    = "registry"     // pull images, or push as well
)

// Permissions of registry tokens.
const (
	ReadOnly  = "read-only"  // pull and view
	ReadWrite = "read-write" // push and create releases as well
)

// The scopes of tokens. An action needs the scope of its name.
const (
	ScopeBuildRead      = "build:read"  // builds, their logs and results
	ScopeBuildWrite     = "build:write" // start and cancel builds
	ScopeCacheRead      = "cache:read"
	ScopeCacheWrite     = "cache:write" // prune
	ScopeRegistryPull   = "registry:pull"
	ScopeRegistryPush   = "registry:push"
	ScopeRegistryDelete = "registry:delete"
	ScopeRegistryList   = "registry:list" // names of the repositories that it may pull from
	ScopeReleaseWrite   = "release:write" // record and promote releases
	ScopeTokenRead      = "token:read"
	ScopeTokenWrite     = "token:write" // create, revoke and delete
	ScopeEnvRead        = "env:read"    // environments, their releases and pulls
	ScopeEnvWrite       = "env:write"
	ScopeUserRead       = "user:read"
	ScopeUserWrite      = "user:write" // users, roles and trust rules
	ScopeAuditRead      = "audit:read"
	ScopeOrgWrite       = "org:write" // organizations of the daemon
	ScopeSSH            = "ssh"
	ScopeExec           = "exec"
)

// A kind is what there is to know about a type.
type kind struct {
	typ    string
	prefix string
	noun   string
	scopes []string
}

// kinds has the types from the narrowest to the widest: the order in which an
// error suggests them. A registry token has those of ReadWrite here, a user
// those of an admin: scopesOf takes away.
var kinds = []kind{
	{TypeRegistry, "sg_", "registry token", []string{ScopeRegistryPull, ScopeRegistryList, ScopeRegistryPush, ScopeReleaseWrite}},
	{TypeMachineExec, "sx_", "machine-exec token", []string{ScopeExec}},
	{TypeSSH, "ss_", "ssh token", []string{ScopeSSH}},
	{TypeReadOnly, "sr_", "readonly token", []string{ScopeBuildRead, ScopeCacheRead, ScopeRegistryPull, ScopeRegistryList, ScopeEnvRead}},
	{TypeDeploy, "sd_", "deploy token", []string{ScopeBuildRead, ScopeBuildWrite, ScopeRegistryPull, ScopeRegistryPush, ScopeRegistryList, ScopeEnvRead, ScopeReleaseWrite}},
	{TypeOrg, "so_", "org token", developerScopes},
	{TypeUser, "su_", "admin's token", append(slices.Clone(developerScopes), adminScopes...)},
	{TypeAdmin, "sa_", "admin token", append(append(slices.Clone(developerScopes), adminScopes...), ScopeOrgWrite)},
}

// developerScopes are what everybody of an organization may, tokens made for
// all of its apps too.
var developerScopes = []string{
	ScopeBuildRead, ScopeBuildWrite, ScopeCacheRead, ScopeCacheWrite, ScopeRegistryPull, ScopeRegistryPush,
	ScopeRegistryDelete, ScopeRegistryList, ScopeReleaseWrite, ScopeTokenRead, ScopeTokenWrite, ScopeEnvRead, ScopeEnvWrite, ScopeSSH, ScopeExec,
}

// adminScopes are what the admins of an organization may besides.
var adminScopes = []string{ScopeUserRead, ScopeUserWrite, ScopeAuditRead}

// Types returns all types, from the narrowest to the widest.
func Types() []string {
	out := make([]string, len(kinds))
	for i, k := range kinds {
		out[i] = k.typ
	}
	return out
}

// Prefix returns what values of a type begin with; "" if there is no such type.
func Prefix(typ string) string { return kindOf(typ).prefix }

// Scopes returns the scopes that tokens of a type can have, registry tokens
// with ReadWrite and users who are admins; none if there is no such type.
func Scopes(typ string) []string { return slices.Clone(kindOf(typ).scopes) }

// scopesOf returns the scopes of a token of that type, permission and role.
func scopesOf(typ, permission, role string) []string {
	switch {
	case typ == TypeRegistry && permission != ReadWrite:
		return []string{ScopeRegistryPull, ScopeRegistryList}
	case typ == TypeUser && role != RoleAdmin:
		return slices.Clone(developerScopes)
	}
	return Scopes(typ)
}

func kindOf(typ string) kind {
	for _, k := range kinds {
		if k.typ == typ {
			return k
		}
	}
	return kind{typ: typ, noun: strings.TrimSpace(typ + " token")}
}

func typeOf(prefix string) (typ string, ok bool) {
	for _, k := range kinds {
		if k.prefix == prefix {
			return k.typ, true
		}
	}
	return "", false
}
