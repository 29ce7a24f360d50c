package tokens

import (
	"slices"
	"strings"
)

// The types of token. A type decides the prefix of values and the scopes that
// a token comes with.
const (
	TypeAdmin       = "admin"        // everything; one for each daemon
	TypeOrg         = "org"          // everything in an organization
	TypeDeploy      = "deploy"       // one app: build, push, follow
	TypeReadOnly    = "readonly"     // look, don't touch
	TypeSSH         = "ssh"          // a shell into a failed step
	TypeMachineExec = "machine-exec" // one command in an app's image
	TypeRegistry    = "registry"     // pull images; pushing is a scope to add
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
	ScopeRegistryList   = "registry:list" // names of repositories
	ScopeTokenRead      = "token:read"
	ScopeTokenWrite     = "token:write" // create, revoke and delete
	ScopeEnvRead        = "env:read"
	ScopeEnvWrite       = "env:write"
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
// error suggests them.
var kinds = []kind{
	{TypeRegistry, "sg_", "registry token", []string{ScopeRegistryPull}},
	{TypeMachineExec, "sx_", "machine-exec token", []string{ScopeExec}},
	{TypeSSH, "ss_", "ssh token", []string{ScopeSSH}},
	{TypeReadOnly, "sr_", "readonly token", []string{ScopeBuildRead, ScopeCacheRead, ScopeRegistryPull, ScopeEnvRead}},
	{TypeDeploy, "sd_", "deploy token", []string{ScopeBuildRead, ScopeBuildWrite, ScopeRegistryPull, ScopeRegistryPush, ScopeEnvRead}},
	{TypeOrg, "so_", "org token", orgScopes},
	{TypeAdmin, "sa_", "admin token", append([]string{ScopeRegistryList}, orgScopes...)},
}

var orgScopes = []string{
	ScopeBuildRead, ScopeBuildWrite, ScopeCacheRead, ScopeCacheWrite, ScopeRegistryPull, ScopeRegistryPush,
	ScopeRegistryDelete, ScopeTokenRead, ScopeTokenWrite, ScopeEnvRead, ScopeEnvWrite, ScopeSSH, ScopeExec,
}

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

// Scopes returns the scopes that tokens of a type come with; none if there is
// no such type.
func Scopes(typ string) []string { return slices.Clone(kindOf(typ).scopes) }

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
