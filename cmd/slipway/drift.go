package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"

	"github.com/slipwayhq/slipway/cmd/slipway/client"
)

// inSync is the status of an app that pulls what is released.
const inSync = "in_sync"

// exitDrift is the exit code of envs drift --exit-code for what is not in sync.
const exitDrift = 2

// appState is an app in an environment as JSON has it.
type appState struct {
	Environment string   `json:"environment"`
	App         string   `json:"app"`
	Status      string   `json:"status"` // "in_sync", "pending", "drifted", "unreleased", "mixed"
	Behind      uint32   `json:"behind"`
	SinceMS     int64    `json:"since_ms"` // for how long it has not been in sync
	Released    *release `json:"released"`
	Pulled      *pull    `json:"pulled"`
}

// pull is a pull as JSON has it.
type pull struct {
	App         string     `json:"app"`
	Environment string     `json:"environment"`
	Digest      string     `json:"digest"`
	Tag         string     `json:"tag"`
	First       *time.Time `json:"first"`
	Last        *time.Time `json:"last"`
	Count       uint64     `json:"count"`
	TokenID     string     `json:"token_id"`
	TokenName   string     `json:"token_name"`
	Address     string     `json:"address"`
	UserAgent   string     `json:"user_agent"`
}

func newPull(p *slipwayv1.Pull) *pull {
	if p == nil {
		return nil
	}
	return &pull{p.GetApp(), p.GetEnvironment(), p.GetDigest(), p.GetTag(), timeOf(p.GetFirst()), timeOf(p.GetLast()), p.GetCount(),
		p.GetTokenId(), p.GetTokenName(), p.GetAddress(), p.GetUserAgent()}
}

func (p *pull) short() string { return shortImage(p.Tag, p.Digest) }

// shortImage names an image in a column: "v1 5c1e02ab93f7".
func shortImage(tag, digest string) string {
	return strings.TrimSpace(tag + " " + shortDigest(digest))
}

// shortDigest is as much of a digest as tells images apart.
func shortDigest(digest string) string {
	_, hex, _ := strings.Cut(digest, ":")
	return hex[:min(12, len(hex))]
}

func appStates(e *slipwayv1.Environment) []appState {
	out := make([]appState, 0, len(e.GetApps()))
	for _, a := range e.GetApps() {
		out = append(out, appState{e.GetName(), a.GetApp(), enumName("DRIFT_STATUS_", a.GetDrift()), a.GetBehind(), a.GetSince().AsDuration().Milliseconds(),
			newRelease(a.GetReleased()), newPull(a.GetPulled())})
	}
	return out
}

func (p *program) envsDrift() *cobra.Command {
	var app string
	var exitCode bool
	cmd := &cobra.Command{
		Use: "drift [ENV]", Short: "Compare what environments pull with what was released to them",
		Long: `Drift compares, for each app, the image that was released last to an environment
with the one that its tokens pulled last. A pull shows that a machine wanted the
image, not that it runs: it is evidence, not proof.

  in sync      the image pulled last is the one released last
  pending      it was released, and nobody has pulled anything since
  drifted      another image was pulled after the release
  mixed        several images were pulled by turns within the last ten minutes
  unreleased   images are pulled, and none was released

With --exit-code the exit code is 0 if every app is in sync and 2 otherwise, also
if there is nothing to compare.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var states []appState
			err := p.call(cmd.Context(), func(ctx context.Context, c *client.Client) (err error) {
				states, err = drift(ctx, c, args, app)
				return err
			})
			if err != nil {
				return err
			}
			if err := p.print(states, func(w io.Writer) { tableOfApps(w, states) }); err != nil {
				return err
			}
			if exitCode && !allInSync(states) {
				return &shownError{exitDrift}
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVarP(&app, "app", "a", "", "only `APP`")
	f.BoolVar(&exitCode, "exit-code", false, "end with exit code 2 unless every app is in sync")
	return cmd
}

// drift returns the apps of the environment that is named, or of all.
func drift(ctx context.Context, c *client.Client, names []string, app string) ([]appState, error) {
	states := []appState{}
	if len(names) > 0 {
		e, err := c.Environment(ctx, names[0], app)
		return append(states, appStates(e)...), err
	}
	all, err := c.Environments(ctx)
	for _, e := range all {
		for _, s := range appStates(e) {
			if app == "" || s.App == app {
				states = append(states, s)
			}
		}
	}
	return states, err
}

func allInSync(states []appState) bool {
	for _, s := range states {
		if s.Status != inSync {
			return false
		}
	}
	return len(states) > 0
}

func tableOfApps(w io.Writer, states []appState) {
	if len(states) == 0 {
		fmt.Fprintln(w, "nothing was released or pulled")
		return
	}
	t := tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
	defer t.Flush()
	fmt.Fprintln(t, "ENV\tAPP\tDRIFT\tRELEASED\tWHEN\tPULLED\tWHEN\tBY")
	for i := range states {
		s := &states[i]
		released, when, pulled, last, by := "–", "–", "–", "–", "–"
		if r := s.Released; r != nil {
			released, when = fmt.Sprintf("v%d %s", r.Version, shortDigest(r.Digest)), ago(r.Created)
		}
		if p := s.Pulled; p != nil {
			pulled, last, by = shortDigest(p.Digest), ago(p.Last), cmp.Or(p.TokenName, p.TokenID, "–")
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", s.Environment, s.App, s.verdict(), released, when, pulled, last, by)
	}
}

// verdict says the status, for how long, and how far behind.
func (s *appState) verdict() string {
	text := spoken(s.Status)
	if s.Status == inSync {
		return text
	}
	if d := time.Duration(s.SinceMS) * time.Millisecond; d >= time.Second {
		text += " for " + span(d)
	}
	switch {
	case s.Behind == 1:
		text += ", 1 release behind"
	case s.Behind > 1:
		text += fmt.Sprintf(", %d releases behind", s.Behind)
	}
	return text
}

func spoken(status string) string { return strings.ReplaceAll(status, "_", " ") }
