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
	"google.golang.org/protobuf/types/known/timestamppb"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"

	"github.com/slipwayhq/slipway/cmd/slipway/client"
)

func (p *program) envs() *cobra.Command {
	cmd := &cobra.Command{
		Use: "envs", Aliases: []string{"env"}, Short: "Look after environments, and see what runs in them",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(p.envsCreate(), p.envsList(), p.envsShow(), p.envsHistory(), p.envsDrift(), p.envsDelete())
	return cmd
}

// call calls f with a client, and explains its errors.
func (p *program) call(ctx context.Context, f func(context.Context, *client.Client) error) error {
	c, conn, err := p.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	if err := f(ctx, c); err != nil {
		return conn.explain(err)
	}
	return nil
}

// madeEnv is a new environment as JSON has it.
type madeEnv struct {
	Name      string     `json:"name"`
	CreatedBy string     `json:"created_by"`
	Created   *time.Time `json:"created"`
	TokenID   string     `json:"token_id"`
	Token     string     `json:"token"` // in this answer and nowhere else
	Expires   *time.Time `json:"expires_at"`
}

func (p *program) envsCreate() *cobra.Command {
	var (
		req     slipwayv1.CreateEnvironmentRequest
		expires string
	)
	cmd := &cobra.Command{
		Use: "create ENV", Short: "Make an environment and a registry token for it",
		Long: `Create makes an environment and a token with which its machines pull images.
What they pull with it is recorded. The token is shown once, on standard output.`,
		Args: exactly("the name of an environment"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if req.WithoutToken && (req.App != "" || req.Permission != "" || expires != "") {
				return client.UserError("--no-token: --app, --permission and --expiry say what a token is like", "Leave --no-token out, or the others.")
			}
			var err error
			if req.ExpiresIn, req.Never, err = expiry(expires); err != nil {
				return err
			}
			req.Name = args[0]
			return p.call(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				r, err := c.CreateEnvironment(ctx, &req)
				if err != nil {
					return err
				}
				return p.showMade(ctx, c, &req, r)
			})
		},
	}
	f := cmd.Flags()
	f.StringVarP(&req.App, "app", "a", "", "the token is for `APP` only")
	f.StringVar(&req.Permission, "permission", "", "`PERMISSION` of the token: read-only, or read-write (default read-only)")
	f.StringVarP(&expires, "expiry", "x", "", "the token expires after `DURATION`, such as 720h or 30d, or never (default 90 days)")
	f.BoolVar(&req.WithoutToken, "no-token", false, "make no token")
	return cmd
}

// showMade shows an environment and its token, the value alone on its line
// where a program may read it.
func (p *program) showMade(ctx context.Context, c *client.Client, req *slipwayv1.CreateEnvironmentRequest, r *slipwayv1.CreateEnvironmentResponse) error {
	e := r.GetEnvironment()
	if p.flags.json {
		return p.printJSON(madeEnv{e.GetName(), e.GetCreatedBy(), timeOf(e.GetCreated()), r.GetTokenId(), r.GetToken(), timeOf(r.GetExpires())})
	}
	if r.GetToken() == "" {
		return p.print(nil, func(w io.Writer) { fmt.Fprintf(w, "environment %s\n", e.GetName()) })
	}
	value := r.GetToken()
	if _, terminal := asTerminal(p.stdout); terminal {
		value += "  shown once: copy it now"
	}
	if _, err := fmt.Fprintln(p.stdout, value); err != nil {
		return fmt.Errorf("write result: %w", err)
	}
	what := "registry token " + r.GetTokenId() + " for environment " + e.GetName()
	if req.GetApp() != "" {
		what += " and app " + req.GetApp()
	}
	what += ", " + cmp.Or(req.GetPermission(), "read-only")
	if t := timeOf(r.GetExpires()); t != nil {
		what += ", expires " + t.Format(time.DateOnly)
	}
	fmt.Fprintln(p.stderr, what+", shown once.")
	if info, err := c.Info(ctx); err == nil && info.GetRegistry() != "" {
		fmt.Fprintf(p.stderr, "where images run: docker login %s -u %s --password-stdin\n", info.GetRegistry(), e.GetName())
	}
	return nil
}

// env is an environment as JSON has it.
type env struct {
	Name      string     `json:"name"`
	CreatedBy string     `json:"created_by"`
	Created   *time.Time `json:"created"`
	Apps      []appState `json:"apps"`
}

func newEnv(e *slipwayv1.Environment) env {
	return env{e.GetName(), e.GetCreatedBy(), timeOf(e.GetCreated()), appStates(e)}
}

func (p *program) envsList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List environments",
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.call(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				list, err := c.Environments(ctx)
				if err != nil {
					return err
				}
				all := make([]env, 0, len(list))
				for _, e := range list {
					all = append(all, newEnv(e))
				}
				return p.print(all, func(w io.Writer) { tableOfEnvs(w, all) })
			})
		},
	}
}

func tableOfEnvs(w io.Writer, all []env) {
	if len(all) == 0 {
		fmt.Fprintln(w, "no environments")
		return
	}
	t := tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
	defer t.Flush()
	fmt.Fprintln(t, "NAME\tAPPS\tDRIFT\tCREATED BY\tCREATED")
	for i := range all {
		e := &all[i]
		fmt.Fprintf(t, "%s\t%d\t%s\t%s\t%s\n", e.Name, len(e.Apps), summary(e.Apps), cmp.Or(e.CreatedBy, "–"), ago(e.Created))
	}
}

// summary counts apps by their drift: "1 drifted, 2 in sync".
func summary(apps []appState) string {
	count := map[string]int{}
	for _, a := range apps {
		count[a.Status]++
	}
	var parts []string
	for _, s := range []string{"drifted", "mixed", "unreleased", "pending", inSync} {
		if n := count[s]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, spoken(s)))
		}
	}
	return cmp.Or(strings.Join(parts, ", "), "–")
}

func (p *program) envsShow() *cobra.Command {
	var app string
	cmd := &cobra.Command{
		Use: "show ENV", Short: "Show an environment and the apps in it", Args: exactly("the name of an environment"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.call(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				r, err := c.Environment(ctx, args[0], app)
				if err != nil {
					return err
				}
				e := newEnv(r)
				return p.print(e, func(w io.Writer) {
					fmt.Fprintf(w, "%s, created %s by %s\n\n", e.Name, ago(e.Created), cmp.Or(e.CreatedBy, "–"))
					tableOfApps(w, e.Apps)
				})
			})
		},
	}
	cmd.Flags().StringVarP(&app, "app", "a", "", "only `APP`")
	return cmd
}

func (p *program) envsDelete() *cobra.Command {
	return &cobra.Command{
		Use: "delete ENV", Short: "Remove an environment and revoke its tokens",
		Long: `Delete removes an environment and revokes the tokens that are for it, at once and
for ever. What was recorded of it stays: slipway envs history shows it, and an
environment that is made again under the name goes on with it.`,
		Args: exactly("the name of an environment"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.call(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				revoked, err := c.DeleteEnvironment(ctx, args[0])
				if err != nil {
					return err
				}
				gone := map[string]any{"name": args[0], "revoked": append([]string{}, revoked...)}
				return p.print(gone, func(w io.Writer) {
					fmt.Fprintf(w, "%s is deleted", args[0])
					if len(revoked) > 0 {
						fmt.Fprintf(w, "; revoked %s", strings.Join(revoked, ", "))
					}
					fmt.Fprintln(w)
				})
			})
		},
	}
}

// happening is an entry of an environment's history as JSON has it.
type happening struct {
	Time    *time.Time `json:"time"`
	Type    string     `json:"type"` // "release", "pull"
	Release *release   `json:"release,omitempty"`
	Pull    *pull      `json:"pull,omitempty"`
}

func newHappening(e *slipwayv1.HistoryEntry) happening {
	h := happening{Time: timeOf(e.GetTime()), Type: "pull", Release: newRelease(e.GetRelease()), Pull: newPull(e.GetPull())}
	if h.Release != nil {
		h.Type = "release"
	}
	return h
}

func (p *program) envsHistory() *cobra.Command {
	var req slipwayv1.ListHistoryRequest
	var before string
	cmd := &cobra.Command{
		Use: "history ENV", Short: "Show what was released to an environment and pulled from there, newest first",
		Args: exactly("the name of an environment"),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Environment = args[0]
			if before != "" {
				t, err := time.Parse(time.RFC3339, before)
				if err != nil {
					return client.UserError(fmt.Sprintf("--before %q is no time", before), "Give one such as 2026-11-22T17:00:00Z; --json has those of the entries.")
				}
				req.Before = timestamppb.New(t)
			}
			return p.call(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				list, err := c.History(ctx, &req)
				if err != nil {
					return err
				}
				all := make([]happening, 0, len(list))
				for _, e := range list {
					all = append(all, newHappening(e))
				}
				return p.print(all, func(w io.Writer) { tableOfHistory(w, all) })
			})
		},
	}
	f := cmd.Flags()
	f.StringVarP(&req.App, "app", "a", "", "only `APP`")
	f.Uint32VarP(&req.Limit, "limit", "n", 50, "at most `N` entries, 1000 at the most")
	f.StringVar(&before, "before", "", "only what happened before `TIME`")
	return cmd
}

func tableOfHistory(w io.Writer, all []happening) {
	if len(all) == 0 {
		fmt.Fprintln(w, "nothing was released or pulled")
		return
	}
	t := tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
	defer t.Flush()
	fmt.Fprintln(t, "WHEN\tWHAT\tAPP\tIMAGE\tBY\tFROM")
	for i := range all {
		h := &all[i]
		if r := h.Release; r != nil {
			fmt.Fprintf(t, "%s\trelease v%d\t%s\t%s\t%s\t%s\n", ago(h.Time), r.Version, r.App, r.short(), cmp.Or(r.CreatedBy, "–"), cmp.Or(r.PromotedFrom, "–"))
		} else if p := h.Pull; p != nil {
			fmt.Fprintf(t, "%s\tpull\t%s\t%s\t%s\t%s\n", ago(h.Time), p.App, p.short(), cmp.Or(p.TokenName, p.TokenID, "–"), cmp.Or(p.Address, "–"))
		}
	}
}
