package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"

	"github.com/slipwayhq/slipway/cmd/slipway/client"
	"github.com/slipwayhq/slipway/cmd/slipway/progress"
)

func (p *program) releases() *cobra.Command {
	cmd := &cobra.Command{
		Use: "releases", Short: "Look at releases, make them, and take them back",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(p.releasesList(), p.releasesCreate(), p.releasesRollback())
	return cmd
}

// release is a release as JSON has it.
type release struct {
	ID           string     `json:"id"`
	App          string     `json:"app"`
	Environment  string     `json:"environment"`
	Version      uint64     `json:"version"`
	Image        string     `json:"image"`
	Digest       string     `json:"digest"`
	BuildID      string     `json:"build_id"`
	PromotedFrom string     `json:"promoted_from"`
	CreatedBy    string     `json:"created_by"`
	Created      *time.Time `json:"created"`
	Unchanged    bool       `json:"unchanged,omitempty"` // of a promotion: it was there already
}

func newRelease(r *slipwayv1.Release) *release {
	if r == nil {
		return nil
	}
	return &release{ID: r.GetId(), App: r.GetApp(), Environment: r.GetEnvironment(), Version: r.GetVersion(), Image: r.GetImage(), Digest: r.GetDigest(),
		BuildID: r.GetBuildId(), PromotedFrom: r.GetPromotedFrom(), CreatedBy: r.GetCreatedBy(), Created: timeOf(r.GetCreated())}
}

// tag is the tag of the release's image, "" if it has none.
func (r *release) tag() string {
	i := strings.LastIndexAny(r.Image, ":/@")
	if i < 0 || r.Image[i] != ':' || strings.Contains(r.Image, "@") {
		return ""
	}
	return r.Image[i+1:]
}

func (r *release) short() string { return shortImage(r.tag(), r.Digest) }

// line says which release there is now.
func (r *release) line() string {
	return fmt.Sprintf("%s: %s, %s", r.App, progress.Released(r.Version, r.Environment), r.short())
}

func (p *program) releasesList() *cobra.Command {
	var req slipwayv1.ListReleasesRequest
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List releases, newest first",
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.call(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				list, err := c.Releases(ctx, &req)
				if err != nil {
					return err
				}
				all := make([]*release, 0, len(list))
				for _, r := range list {
					all = append(all, newRelease(r))
				}
				return p.print(all, func(w io.Writer) { tableOfReleases(w, all) })
			})
		},
	}
	f := cmd.Flags()
	f.StringVarP(&req.App, "app", "a", "", "only releases of `APP`")
	f.StringVar(&req.Environment, "env", "", "only releases to `ENVIRONMENT`")
	f.Uint32VarP(&req.Limit, "limit", "n", 50, "at most `N` releases, 1000 at the most")
	f.StringVar(&req.BeforeId, "before", "", "only releases older than `ID`")
	return cmd
}

func tableOfReleases(w io.Writer, all []*release) {
	if len(all) == 0 {
		fmt.Fprintln(w, "no releases")
		return
	}
	t := tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
	defer t.Flush()
	fmt.Fprintln(t, "ID\tAPP\tENV\tVERSION\tIMAGE\tCREATED BY\tCREATED\tFROM")
	for _, r := range all {
		fmt.Fprintf(t, "%s\t%s\t%s\tv%d\t%s\t%s\t%s\t%s\n", r.ID, r.App, cmp.Or(r.Environment, "–"), r.Version, r.short(),
			cmp.Or(r.CreatedBy, "–"), ago(r.Created), cmp.Or(r.PromotedFrom, "–"))
	}
}

func (p *program) releasesCreate() *cobra.Command {
	var req slipwayv1.CreateReleaseRequest
	cmd := &cobra.Command{
		Use: "create", Short: "Release an image that is in the daemon's registry",
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if req.Image == "" {
				return client.UserError("which image?", "Name it with --image: a tag, or a digest.")
			}
			return p.release(cmd.Context(), &req)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&req.App, "app", "a", "", "`APP` to release (default $SLIPWAY_APP, $FLY_APP)")
	f.StringVar(&req.Environment, "env", "", "`ENVIRONMENT` to release to")
	f.StringVar(&req.Image, "image", "", "`IMAGE` of the app: a tag, sha256:…, or HOST/APP with either")
	return cmd
}

// release makes a release and shows it.
func (p *program) release(ctx context.Context, req *slipwayv1.CreateReleaseRequest) error {
	var err error
	if req.App, err = p.app(req.App); err != nil {
		return err
	}
	return p.call(ctx, func(ctx context.Context, c *client.Client) error {
		r, err := c.CreateRelease(ctx, req)
		if err != nil {
			return err
		}
		return p.showRelease(newRelease(r))
	})
}

func (p *program) showRelease(r *release) error {
	return p.print(r, func(w io.Writer) { fmt.Fprintln(w, r.line()) })
}

// app returns the app that a flag or the environment names.
func (p *program) app(flag string) (string, error) {
	app := cmp.Or(flag, p.getenv("SLIPWAY_APP"), p.getenv("FLY_APP"))
	if app == "" {
		return "", client.UserError("which app?", "Name it with --app, or set SLIPWAY_APP.")
	}
	return app, nil
}

func (p *program) releasesRollback() *cobra.Command {
	var app, env, to string
	cmd := &cobra.Command{
		Use: "rollback", Short: "Release again what an environment had before",
		Long: `Rollback makes a new release of an image that was released before: of the last
one that is not the present one, or of the release that --to names. Nothing is
built.`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			name, err := p.app(app)
			if err != nil {
				return err
			}
			if env == "" {
				return client.UserError("which environment?", "Name it with --env.")
			}
			req := &slipwayv1.ListReleasesRequest{App: name, Environment: env, Limit: 1000}
			if to != "" {
				if req.Version, err = strconv.ParseUint(strings.TrimPrefix(to, "v"), 10, 63); err != nil || req.Version == 0 {
					return client.UserError(fmt.Sprintf("--to %q is no version", to), "Give one such as v12; slipway releases list shows them.")
				}
			}
			return p.call(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				digest, err := rollback(ctx, c, req)
				if err != nil {
					return err
				}
				r, err := c.CreateRelease(ctx, &slipwayv1.CreateReleaseRequest{App: name, Environment: env, Image: digest})
				if err != nil {
					return err
				}
				return p.showRelease(newRelease(r))
			})
		},
	}
	f := cmd.Flags()
	f.StringVarP(&app, "app", "a", "", "`APP` to roll back (default $SLIPWAY_APP, $FLY_APP)")
	f.StringVar(&env, "env", "", "`ENVIRONMENT` to roll back")
	f.StringVar(&to, "to", "", "`VERSION` whose image is released again, such as v12 (default the one before)")
	return cmd
}

// rollback finds the image to go back to.
func rollback(ctx context.Context, c *client.Client, req *slipwayv1.ListReleasesRequest) (string, error) {
	list, err := c.Releases(ctx, req)
	if err != nil {
		return "", err
	}
	for _, r := range list {
		if req.GetVersion() != 0 || r.GetDigest() != list[0].GetDigest() {
			return r.GetDigest(), nil
		}
	}
	what := "no release before the present one"
	if req.GetVersion() != 0 {
		what = fmt.Sprintf("no release v%d", req.GetVersion())
	}
	return "", client.NewError(client.CodeNotFound, slipwayv1.Blame_BLAME_USER, fmt.Sprintf("%s has %s of %s", req.GetEnvironment(), what, req.GetApp()),
		fmt.Sprintf("slipway releases list -a %s --env %s shows those there are.", req.GetApp(), req.GetEnvironment()))
}

func (p *program) promote() *cobra.Command {
	var req slipwayv1.PromoteRequest
	cmd := &cobra.Command{
		Use: "promote", Short: "Release to one environment what another one has",
		Long: `Promote makes a release of the image that was released last to the environment
--from. Nothing is built: the same digest is released. Without --from it takes the
last release to no environment.`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if req.App, err = p.app(req.App); err != nil {
				return err
			}
			if req.To == "" {
				return client.UserError("to which environment?", "Name it with --to.")
			}
			return p.call(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				resp, err := c.Promote(ctx, &req)
				if err != nil {
					return err
				}
				r := newRelease(resp.GetRelease())
				r.Unchanged = resp.GetUnchanged()
				return p.print(r, func(w io.Writer) {
					if r.Unchanged {
						fmt.Fprintf(w, "%s: %s has this image since v%d, %s\n", r.App, r.Environment, r.Version, r.short())
						return
					}
					fmt.Fprintln(w, r.line())
				})
			})
		},
	}
	f := cmd.Flags()
	f.StringVarP(&req.App, "app", "a", "", "`APP` to promote (default $SLIPWAY_APP, $FLY_APP)")
	f.StringVar(&req.From, "from", "", "`ENVIRONMENT` that has the image")
	f.StringVar(&req.To, "to", "", "`ENVIRONMENT` to release it to")
	return cmd
}
