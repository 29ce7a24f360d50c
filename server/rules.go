package server

import (
	"strings"

	"github.com/slipwayhq/slipway/tokens"
)

// A rule says who may call a method. Handlers decide by app and environment;
// the rule keeps out whoever could do it to none at all.
type rule struct {
	scope string // empty: any token will do
	open  bool   // no token is needed

	// begun calls go on when their token expires: what was allowed when it
	// began may take hours. A revocation ends them all the same.
	begun bool
}

const (
	ours     = "/slipway.v1."
	buildkit = "/moby.buildkit.v1."
)

// rules has every method that is served, by its full name. One that is missing
// is refused to everybody: what is added must say who may call it.
var rules = map[string]rule{
	ours + "BuildService/Build":       {scope: tokens.ScopeBuildWrite, begun: true},
	ours + "BuildService/GetBuild":    {scope: tokens.ScopeBuildRead},
	ours + "BuildService/ListBuilds":  {scope: tokens.ScopeBuildRead},
	ours + "BuildService/WatchBuild":  {scope: tokens.ScopeBuildRead},
	ours + "BuildService/CancelBuild": {scope: tokens.ScopeBuildWrite},

	ours + "CacheService/Usage": {scope: tokens.ScopeCacheRead},
	ours + "CacheService/Prune": {scope: tokens.ScopeCacheWrite},

	ours + "SystemService/WhoAmI": {},
	ours + "SystemService/Info":   {},

	ours + "TokenService/CreateToken":   {scope: tokens.ScopeTokenWrite},
	ours + "TokenService/DeriveToken":   {},
	ours + "TokenService/ExchangeToken": {open: true},
	ours + "TokenService/ListTokens":    {}, // a token's children at least
	ours + "TokenService/GetToken":      {},
	ours + "TokenService/RevokeTokens":  {}, // every token may end itself
	ours + "TokenService/DeleteTokens":  {},

	ours + "OrgService/CreateOrg":   {scope: tokens.ScopeOrgWrite},
	ours + "OrgService/ListOrgs":    {scope: tokens.ScopeOrgWrite},
	ours + "OrgService/ListApps":    {},
	ours + "OrgService/CreateUser":  {scope: tokens.ScopeUserWrite},
	ours + "OrgService/ListUsers":   {scope: tokens.ScopeUserRead},
	ours + "OrgService/SetUserRole": {scope: tokens.ScopeUserWrite},
	ours + "OrgService/RemoveUser":  {scope: tokens.ScopeUserWrite},
	ours + "OrgService/CreateTrust": {scope: tokens.ScopeUserWrite},
	ours + "OrgService/ListTrusts":  {scope: tokens.ScopeUserRead},
	ours + "OrgService/DeleteTrust": {scope: tokens.ScopeUserWrite},
	ours + "OrgService/ExportAudit": {scope: tokens.ScopeAuditRead},

	ours + "EnvironmentService/CreateEnvironment": {scope: tokens.ScopeEnvWrite},
	ours + "EnvironmentService/ListEnvironments":  {scope: tokens.ScopeEnvRead},
	ours + "EnvironmentService/GetEnvironment":    {scope: tokens.ScopeEnvRead},
	ours + "EnvironmentService/DeleteEnvironment": {scope: tokens.ScopeEnvWrite},
	ours + "EnvironmentService/CreateRelease":     {scope: tokens.ScopeReleaseWrite},
	ours + "EnvironmentService/ListReleases":      {scope: tokens.ScopeEnvRead},
	ours + "EnvironmentService/Promote":           {scope: tokens.ScopeReleaseWrite},
	ours + "EnvironmentService/ListHistory":       {scope: tokens.ScopeEnvRead},

	ours + "ShellService/Shell": {scope: tokens.ScopeSSH},
	ours + "ShellService/Exec":  {scope: tokens.ScopeExec},

	buildkit + "Control/DiskUsage":          {scope: tokens.ScopeCacheRead},
	buildkit + "Control/Prune":              {scope: tokens.ScopeCacheWrite},
	buildkit + "Control/Solve":              {scope: tokens.ScopeBuildWrite, begun: true},
	buildkit + "Control/Status":             {scope: tokens.ScopeBuildRead, begun: true},
	buildkit + "Control/Session":            {scope: tokens.ScopeBuildWrite, begun: true},
	buildkit + "Control/ListWorkers":        {scope: tokens.ScopeBuildRead},
	buildkit + "Control/Info":               {scope: tokens.ScopeBuildRead},
	buildkit + "Control/ListenBuildHistory": {scope: tokens.ScopeBuildRead},
	buildkit + "Control/UpdateBuildHistory": {scope: tokens.ScopeBuildWrite},

	"/grpc.health.v1.Health/Check": {open: true},
	"/grpc.health.v1.Health/List":  {open: true},
	"/grpc.health.v1.Health/Watch": {open: true},

	"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo":      {},
	"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": {},
}

// families are services of others whose methods all have one rule, since a
// build's own calls make them.
var families = map[string]rule{
	"/moby.buildkit.v1.frontend.LLBBridge/":    {scope: tokens.ScopeBuildWrite, begun: true},
	"/containerd.services.content.v1.Content/": {scope: tokens.ScopeBuildWrite, begun: true},
}

// ruleOf returns the rule of a method, if it has one.
func ruleOf(method string) (rule, bool) {
	if r, ok := rules[method]; ok {
		return r, true
	}
	for family, r := range families {
		if strings.HasPrefix(method, family) {
			return r, true
		}
	}
	return rule{}, false
}
