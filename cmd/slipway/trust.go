package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"

	"github.com/slipwayhq/slipway/cmd/slipway/client"
)

func (p *program) trust() *cobra.Command {
	cmd := &cobra.Command{
		Use: "trust", Short: "Say which CI jobs get tokens without a secret; for admins",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(p.trustCreate(), p.trustList(), p.trustDelete())
	return cmd
}

// trustFlags say which ID tokens a rule is about, and what it gives.
type trustFlags struct {
	github, gitlab, buildkite, circleci string
	branch, environment                 string
	issuer, audience                    string
	claims                              []string

	typ, app, env, permission, role, expires string
}

func (f *trustFlags) register(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVar(&f.github, "github", "", "jobs of GitHub Actions of `OWNER/REPO`")
	fs.StringVar(&f.gitlab, "gitlab", "", "jobs of GitLab CI of `GROUP/PROJECT`, with --issuer of your own GitLab")
	fs.StringVar(&f.buildkite, "buildkite", "", "jobs of Buildkite of `ORG/PIPELINE`")
	fs.StringVar(&f.circleci, "circleci", "", "jobs of CircleCI of `ORG_ID/PROJECT_ID`")
	fs.StringVar(&f.branch, "branch", "", "only jobs of `BRANCH`; * and ** are patterns as in --claim")
	fs.StringVar(&f.environment, "environment", "", "only jobs of `ENVIRONMENT` of GitHub or GitLab")
	fs.StringVar(&f.issuer, "issuer", "", "`URL` of any issuer of OpenID Connect, as in the token's iss")
	fs.StringVar(&f.audience, "audience", "", "`AUDIENCE` that ID tokens must be for (default slipway://HOST:PORT of the daemon; with --circleci ORG_ID)")
	fs.StringArrayVar(&f.claims, "claim", nil, "`NAME=PATTERN` that the ID token must match: * is any text without a slash or colon, ** any text; repeatable")
	fs.StringVar(&f.typ, "type", "", "`TYPE` of token to give: deploy, readonly, registry, org or user (default deploy)")
	fs.StringVarP(&f.app, "app", "a", "", "only for `APP`")
	fs.StringVar(&f.env, "env", "", "only for Slipway's environment `ENV`")
	fs.StringVar(&f.permission, "permission", "", "of registry tokens: read-only or read-write (`WHICH`)")
	fs.StringVar(&f.role, "role", "", "of users who sign in for the first time: developer or admin (`ROLE`)")
	fs.StringVarP(&f.expires, "expiry", "x", "", "how long tokens live at most, such as 30m (`TIME`; default 1h, at most 24h, users 30d)")
}

// preset is what a CI system's jobs are known by.
type preset struct {
	flag, value string
	issuer      string
	audience    string // "" means the daemon's
	claims      map[string]string
	branch      string // format of the claims that --branch is put into; "" if there is none
	environment string // claim that --environment is put into; "" if there is none
}

func (f *trustFlags) presets() []preset {
	owner, rest, _ := strings.Cut(cmp.Or(f.buildkite, f.circleci), "/")
	return []preset{
		{flag: "--github", value: f.github, issuer: "https://token.actions.githubusercontent.com",
			claims: map[string]string{"repository": f.github}, branch: "ref=refs/heads/%s", environment: "environment"},
		{flag: "--gitlab", value: f.gitlab, issuer: cmp.Or(f.issuer, "https://gitlab.com"),
			claims: map[string]string{"project_path": f.gitlab}, branch: "ref_type=branch,ref=%s", environment: "environment"},
		{flag: "--buildkite", value: f.buildkite, issuer: "https://agent.buildkite.com",
			claims: map[string]string{"organization_slug": owner, "pipeline_slug": rest}, branch: "build_branch=%s"},
		{flag: "--circleci", value: f.circleci, issuer: "https://oidc.circleci.com/org/" + owner, audience: owner,
			claims: map[string]string{"oidc.circleci.com/project-id": rest}, branch: "oidc.circleci.com/vcs-ref=refs/heads/%s"},
	}
}

// trust returns the rule that the flags describe.
func (f *trustFlags) trust(name string) (*slipwayv1.Trust, error) {
	in, never, err := expiry(f.expires)
	if err != nil {
		return nil, err
	}
	if never {
		return nil, client.UserError("tokens that a trust rule gives expire", "Leave --expiry out, or give a time.")
	}
	t := &slipwayv1.Trust{
		Name: name, Issuer: f.issuer, Audience: f.audience, Claims: map[string]string{}, Type: cmp.Or(f.typ, "deploy"), App: f.app,
		Environment: f.env, Permission: f.permission, Role: f.role, Ttl: in,
	}
	if err := f.preset(t); err != nil {
		return nil, err
	}
	more, err := pairs("--claim", f.claims, nil)
	if err != nil {
		return nil, err
	}
	for name, pattern := range more {
		if t.Claims[name] != "" {
			return nil, client.UserError("--claim "+name+" is said twice", "Leave one out.")
		}
		t.Claims[name] = pattern
	}
	return t, nil
}

// preset fills in what the flag of a CI system stands for.
func (f *trustFlags) preset(t *slipwayv1.Trust) error {
	var chosen []preset
	for _, s := range f.presets() {
		if s.value != "" {
			chosen = append(chosen, s)
		}
	}
	switch {
	case len(chosen) == 0 && f.issuer == "":
		return client.UserError("whose ID tokens?", "Give --github, --gitlab, --buildkite, --circleci or --issuer.")
	case len(chosen) == 0 && (f.branch != "" || f.environment != ""):
		return client.UserError("--branch and --environment go with --github, --gitlab, --buildkite and --circleci", "Give --claim.")
	case len(chosen) == 0:
		return nil
	case len(chosen) > 1:
		return client.UserError(chosen[0].flag+" and "+chosen[1].flag+": which one?", "Make a rule for each.")
	}
	s := chosen[0]
	if owner, rest, ok := strings.Cut(s.value, "/"); !ok || owner == "" || rest == "" {
		return client.UserError(fmt.Sprintf("%s %q: want two names with a slash between them", s.flag, s.value), "")
	}
	if f.issuer != "" && s.flag != "--gitlab" {
		return client.UserError("--issuer does not go with "+s.flag, "Leave it out.")
	}
	t.Issuer, t.Audience, t.Claims = s.issuer, cmp.Or(t.Audience, s.audience), s.claims
	if f.branch != "" {
		for _, c := range strings.Split(s.branch, ",") {
			name, pattern, _ := strings.Cut(c, "=")
			t.Claims[name] = strings.ReplaceAll(pattern, "%s", f.branch)
		}
	}
	if f.environment != "" {
		if s.environment == "" {
			return client.UserError("--environment does not go with "+s.flag, "Give --branch or --claim.")
		}
		t.Claims[s.environment] = f.environment
	}
	return nil
}

func (p *program) trustCreate() *cobra.Command {
	var f trustFlags
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Give tokens for ID tokens of a CI system or identity provider",
		Args: exactly("the NAME of the rule"),
		Example: `  slipway trust create shop-main --github acme/shop --branch main -a shop
  slipway trust create shop-live --gitlab acme/shop --environment production -a shop --env production
  slipway trust create images --issuer https://id.example.com --audience slipway --claim 'sub=ci:**' --type registry`,
		RunE: func(cmd *cobra.Command, args []string) error {
			t, err := f.trust(args[0])
			if err != nil {
				return err
			}
			return p.ask(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				own := t.Audience == ""
				if own {
					t.Audience = p.audience("", c.Address())
				}
				made, err := c.CreateTrust(ctx, t)
				if err != nil {
					return err
				}
				if own && c.Address().Loopback() && p.getenv("SLIPWAY_OIDC_AUDIENCE") == "" {
					fmt.Fprintf(p.stderr, "! ID tokens must be for %s, which is how this machine calls the daemon; jobs that call it otherwise need --audience here\n", made.GetAudience())
				}
				r := newTrust(made)
				return p.print(r, func(w io.Writer) {
					fmt.Fprintf(w, "%s: ID tokens of %s for %s%s give %s, for %s (%s)\n", r.Name, r.Issuer, r.Audience, r.with(), r.gives(), span(made.GetTtl().AsDuration()), r.ID)
				})
			})
		},
	}
	f.register(cmd)
	return cmd
}

// trustRule is a trust rule as JSON has it.
type trustRule struct {
	ID          string            `json:"id"`
	Name        string            `json:"name"`
	Issuer      string            `json:"issuer"`
	Audience    string            `json:"audience"`
	Claims      map[string]string `json:"claims"`
	Type        string            `json:"type"`
	App         string            `json:"app"`
	Environment string            `json:"environment"`
	Permission  string            `json:"permission"`
	Role        string            `json:"role"`
	TTL         int64             `json:"ttl_seconds"`
	CreatedBy   string            `json:"created_by"`
	Created     *time.Time        `json:"created_at"`
}

func newTrust(t *slipwayv1.Trust) *trustRule {
	claims := t.GetClaims()
	if claims == nil {
		claims = map[string]string{}
	}
	return &trustRule{
		ID: t.GetId(), Name: t.GetName(), Issuer: t.GetIssuer(), Audience: t.GetAudience(), Claims: claims, Type: t.GetType(), App: t.GetApp(),
		Environment: t.GetEnvironment(), Permission: t.GetPermission(), Role: t.GetRole(), TTL: int64(t.GetTtl().AsDuration() / time.Second),
		CreatedBy: t.GetCreatedBy(), Created: timeOf(t.GetCreated()),
	}
}

// with lists the claims that a rule wants.
func (r *trustRule) with() string {
	s := ""
	for _, name := range slices.Sorted(maps.Keys(r.Claims)) {
		s += " " + name + "=" + r.Claims[name]
	}
	return s
}

// gives says what tokens a rule gives.
func (r *trustRule) gives() string {
	s := r.Type
	for _, part := range []string{r.Permission, r.Role, r.App} {
		if part != "" {
			s += " " + part
		}
	}
	if r.Environment != "" {
		s += " in " + r.Environment
	}
	return s
}

func (p *program) trustList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "Show the trust rules", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.ask(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				all, err := c.ListTrusts(ctx)
				if err != nil {
					return err
				}
				rules := make([]*trustRule, len(all))
				for i, t := range all {
					rules[i] = newTrust(t)
				}
				return p.print(map[string]any{"trusts": rules}, func(w io.Writer) { writeTrusts(w, rules) })
			})
		},
	}
}

func writeTrusts(w io.Writer, rules []*trustRule) {
	if len(rules) == 0 {
		fmt.Fprintln(w, "no trust rules")
		return
	}
	t := tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
	defer t.Flush()
	fmt.Fprintln(t, "NAME\tISSUER\tAUDIENCE\tCLAIMS\tGIVES\tFOR\tID")
	for _, r := range rules {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.Name, r.Issuer, r.Audience, cmp.Or(strings.TrimSpace(r.with()), "–"), r.gives(), span(time.Duration(r.TTL)*time.Second), r.ID)
	}
}

func (p *program) trustDelete() *cobra.Command {
	return &cobra.Command{
		Use: "delete NAME|ID", Aliases: []string{"rm"}, Short: "Remove a trust rule; tokens that it gave stay good until they expire",
		Args: exactly("the NAME or ID of a rule"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.ask(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				all, err := c.ListTrusts(ctx)
				if err != nil {
					return err
				}
				id := args[0]
				if i := slices.IndexFunc(all, func(t *slipwayv1.Trust) bool { return t.GetName() == id }); i >= 0 {
					id = all[i].GetId()
				}
				if err := c.DeleteTrust(ctx, id); err != nil {
					return err
				}
				return p.print(map[string]any{"deleted": []string{id}}, func(w io.Writer) { fmt.Fprintf(w, "removed %s\n", id) })
			})
		},
	}
}
