package agent

import (
	"context"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

func (s *server) addEnvironmentTools() {
	if !s.may("env:read") {
		return
	}
	add(s, reads, "list_environments", "List the environments of the organization, and whether what runs there is what was released.", s.listEnvironments)
	add(s, reads, "drift", "Compare what was released to an environment with what was last pulled there, by app.", s.drift)
}

type environment struct {
	Name    string     `json:"name"`
	Created string     `json:"created_at"`
	Apps    []appState `json:"apps"`
}

type appState struct {
	App      string   `json:"app"`
	Drift    string   `json:"drift" jsonschema:"in_sync; pending: released and not yet pulled; drifted: another image was pulled last; unreleased: pulled though nothing was released; mixed: several images are being pulled"`
	Released *release `json:"released,omitempty"`
	Pulled   *pull    `json:"pulled,omitempty"`
	Behind   uint32   `json:"behind" jsonschema:"how many releases came after the one that was pulled"`
	Seconds  float64  `json:"out_of_sync_seconds"`
}

type release struct {
	ID          string `json:"id"`
	App         string `json:"app"`
	Environment string `json:"environment"`
	Version     uint64 `json:"version"`
	Image       string `json:"image"`
	Digest      string `json:"digest"`
	BuildID     string `json:"build_id"`
	CreatedBy   string `json:"created_by"`
	Created     string `json:"created_at"`
}

type pull struct {
	Digest  string `json:"digest"`
	Tag     string `json:"tag"`
	Last    string `json:"last_at"`
	Token   string `json:"token_name"`
	Address string `json:"address"`
}

func newRelease(r *slipwayv1.Release) *release {
	if r == nil {
		return nil
	}
	return &release{r.GetId(), r.GetApp(), r.GetEnvironment(), r.GetVersion(), r.GetImage(), r.GetDigest(), r.GetBuildId(), r.GetCreatedBy(), moment(r.GetCreated(), r.GetCreated() != nil)}
}

func newEnvironment(e *slipwayv1.Environment) environment {
	out := environment{Name: e.GetName(), Created: moment(e.GetCreated(), e.GetCreated() != nil), Apps: []appState{}}
	for _, a := range e.GetApps() {
		state := appState{
			App: a.GetApp(), Drift: name("DRIFT_STATUS_", a.GetDrift()), Released: newRelease(a.GetReleased()), Behind: a.GetBehind(), Seconds: a.GetSince().AsDuration().Seconds(),
		}
		if p := a.GetPulled(); p != nil {
			state.Pulled = &pull{p.GetDigest(), p.GetTag(), moment(p.GetLast(), p.GetLast() != nil), p.GetTokenName(), p.GetAddress()}
		}
		out.Apps = append(out.Apps, state)
	}
	return out
}

type environmentList struct {
	Environments []environment `json:"environments"`
}

func (s *server) listEnvironments(ctx context.Context, _ *mcp.CallToolRequest, _ nothing) (environmentList, error) {
	all, err := s.opts.Client.Environments(ctx)
	out := environmentList{Environments: []environment{}}
	for _, e := range all {
		out.Environments = append(out.Environments, newEnvironment(e))
	}
	return out, err
}

type driftRequest struct {
	Environment string `json:"environment" jsonschema:"its name"`
	App         string `json:"app,omitempty" jsonschema:"only this app; empty means all"`
}

func (s *server) drift(ctx context.Context, _ *mcp.CallToolRequest, r driftRequest) (environment, error) {
	got, err := s.opts.Client.Environment(ctx, r.Environment, r.App)
	return newEnvironment(got), err
}

// releases returns an app's releases, newest first.
func (s *server) releases(ctx context.Context, app string, limit uint32) ([]release, error) {
	got, err := s.opts.Client.Releases(ctx, &slipwayv1.ListReleasesRequest{App: app, Limit: min(limit, 1000)})
	out := []release{}
	for _, r := range got {
		out = append(out, *newRelease(r))
	}
	return out, err
}
