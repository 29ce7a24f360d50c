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

	"github.com/google/shlex"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"

	"github.com/slipwayhq/slipway/cmd/slipway/client"
)

func (p *program) tokens() *cobra.Command {
	cmd := &cobra.Command{
		Use: "tokens", Aliases: []string{"token"}, Short: "Create, show and revoke tokens",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(p.tokensCreate(), p.tokensDerive(), p.tokensExchange(), p.tokensList(), p.tokensShow(), p.tokensRevoke(), p.tokensDelete())
	return cmd
}

// tokenTypes are those that can be created, and what each is for.
var tokenTypes = [][2]string{
	{"deploy", "build, push and read one app"},
	{"org", "all apps of the organization"},
	{"readonly", "read the organization's state, change nothing"},
	{"ssh", "open shells in failed build steps"},
	{"machine-exec", "run exactly one command in an app's image"},
	{"registry", "pull images; with --permission read-write push them and create releases"},
}

// tokenFlags are what create and derive share.
type tokenFlags struct {
	app, org, env, name, permission, command, expires string
}

func (f *tokenFlags) register(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVarP(&f.app, "app", "a", "", "only for `APP`")
	fs.StringVarP(&f.org, "org", "o", "", "make sure that it is a token of `ORG`")
	fs.StringVar(&f.env, "env", "", "only for environment `ENV`")
	fs.StringVarP(&f.name, "name", "n", "", "`NAME` to find it by")
	fs.StringVar(&f.permission, "permission", "", "of a registry token: read-only or read-write (`WHICH`)")
	fs.StringVarP(&f.command, "command", "C", "", "the `COMMAND` that a machine-exec token may run, quoted as in a shell; or give it after --")
	fs.StringVarP(&f.expires, "expiry", "x", "", "how long it lives, such as 720h or 30d (`TIME`; default 90 days)")
}

// argv returns the command of a machine-exec token.
func (f *tokenFlags) argv(rest []string) ([]string, error) {
	if f.command == "" {
		return rest, nil
	}
	if len(rest) > 0 {
		return nil, client.UserError("a command both in --command and after --", "Give it once.")
	}
	words, err := shlex.Split(f.command)
	if err != nil || len(words) == 0 {
		return nil, client.UserError(fmt.Sprintf("--command %q is no command", f.command), "Quote it as in a shell, or give it after --.")
	}
	return words, nil
}

// expiry reads how long a token is to live; nil if nobody said.
func expiry(text string) (in *durationpb.Duration, never bool, err error) {
	if text == "" || text == "never" {
		return nil, text == "never", nil
	}
	d, err := time.ParseDuration(text)
	if days, ok := strings.CutSuffix(text, "d"); ok && err != nil {
		var n int
		if n, err = strconv.Atoi(days); err == nil && n > 0 && n < 100_000 {
			d = time.Duration(n) * 24 * time.Hour
		}
	}
	if err != nil || d <= 0 {
		return nil, false, client.UserError(fmt.Sprintf("%q is no time to live", text), "Use 720h, 30d or never.")
	}
	return durationpb.New(d), false, nil
}

func (p *program) tokensCreate() *cobra.Command {
	var f tokenFlags
	var user string
	long := "Create makes a token and prints its value, once. Types:\n\n"
	for _, t := range tokenTypes {
		long += fmt.Sprintf("    %-14s %s\n", t[0], t[1])
	}
	cmd := &cobra.Command{
		Use: "create TYPE [-- COMMAND ARG…]", Short: "Make a token", Long: long,
		Example: `  slipway tokens create deploy -a shop -x 720h --name ci
  slipway tokens create registry --permission read-only --env production
  slipway tokens create machine-exec -a shop -- bin/migrate --all`,
		Args: oneAndCommand("the TYPE of token: " + typeNames()),
		RunE: func(cmd *cobra.Command, args []string) error {
			in, never, err := expiry(f.expires)
			if err != nil {
				return err
			}
			argv, err := f.argv(args[1:])
			if err != nil {
				return err
			}
			return p.ask(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				if err := f.checkOrg(ctx, c); err != nil {
					return err
				}
				r, err := c.CreateToken(ctx, &slipwayv1.CreateTokenRequest{
					Type: args[0], Name: f.name, App: f.app, Environment: f.env, Permission: f.permission, Command: argv,
					ExpiresIn: in, Never: never, User: user,
				})
				if err != nil {
					return err
				}
				return p.printNew(r.GetToken(), r.GetValue())
			})
		},
	}
	f.register(cmd)
	cmd.Flags().Lookup("expiry").Usage = "how long it lives, such as 720h or 30d, 20 years at most; admins: never (`TIME`; default 90 days)"
	cmd.Flags().StringVar(&user, "user", "", "on behalf of `USER`; for admins")
	return cmd
}

func typeNames() string {
	var names []string
	for _, t := range tokenTypes {
		names = append(names, t[0])
	}
	return strings.Join(names, ", ")
}

// oneAndCommand wants one argument, and allows a command after --.
func oneAndCommand(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if n := cmd.ArgsLenAtDash(); n == 1 || n < 0 && len(args) == 1 {
			return nil
		}
		return fmt.Errorf("%s takes %s", cmd.CommandPath(), what)
	}
}

// checkOrg makes sure that the token in use is of the org that was named.
func (f *tokenFlags) checkOrg(ctx context.Context, c *client.Client) error {
	if f.org == "" {
		return nil
	}
	who, err := c.WhoAmI(ctx)
	if err == nil && who.GetOrg() != f.org {
		err = client.NewError(client.CodePermissionDenied, slipwayv1.Blame_BLAME_USER,
			fmt.Sprintf("the token in use is of organization %s, not %s", who.GetOrg(), f.org), "Log in with a token of "+f.org+".")
	}
	return err
}

func (p *program) tokensDerive() *cobra.Command {
	var f tokenFlags
	cmd := &cobra.Command{
		Use: "derive [TYPE] [-- COMMAND ARG…]", Short: "Make a narrower token from the one in use",
		Long: `Derive makes a child of the token in use: of the same type unless another one is
named, and narrower by what the flags say. It ends with its parent: when that
expires or is revoked.`,
		Example: "  slipway tokens derive registry --permission read-only -x 1h",
		Args: func(cmd *cobra.Command, args []string) error {
			if n := cmd.ArgsLenAtDash(); n > 1 || n < 0 && len(args) > 1 {
				return fmt.Errorf("%s takes one TYPE at most", cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			in, never, err := expiry(f.expires)
			if err != nil {
				return err
			}
			if never {
				return client.UserError("a derived token ends with its parent", "Leave --expiry out, or give a time.")
			}
			typ := ""
			if n := cmd.ArgsLenAtDash(); len(args) > 0 && n != 0 {
				typ, args = args[0], args[1:]
			}
			argv, err := f.argv(args)
			if err != nil {
				return err
			}
			return p.ask(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				if err := f.checkOrg(ctx, c); err != nil {
					return err
				}
				r, err := c.DeriveToken(ctx, &slipwayv1.DeriveTokenRequest{
					Type: typ, Name: f.name, App: f.app, Environment: f.env, Permission: f.permission, Command: argv, ExpiresIn: in,
				})
				if err != nil {
					return err
				}
				return p.printNew(r.GetToken(), r.GetValue())
			})
		},
	}
	f.register(cmd)
	return cmd
}

// newToken is what is printed of a token when it is made.
type newToken struct {
	ID      string     `json:"id"`
	Token   string     `json:"token"`
	Type    string     `json:"type"`
	Expires *time.Time `json:"expires_at"`
}

func (p *program) printNew(t *slipwayv1.Token, value string) error {
	if p.flags.json {
		return p.printJSON(newToken{t.GetId(), value, t.GetType(), timeOf(t.GetExpires())})
	}
	// The value alone is on standard output, for scripts to take.
	if _, err := fmt.Fprintln(p.stdout, value); err != nil {
		return fmt.Errorf("write result: %w", err)
	}
	r := newTokenRecord(t)
	fmt.Fprintf(p.stderr, "shown once: copy it now\n%s token for %s, %s (%s).\n%s\n", t.GetType(), r.target(), r.until(), t.GetId(), useOf(t))
	return nil
}

// useOf says how to use a new token.
func useOf(t *slipwayv1.Token) string {
	if t.GetType() == "registry" {
		return "To log in: docker login HOST -u token --password-stdin"
	}
	return "In CI: export SLIPWAY_API_TOKEN=…"
}

// tokenRecord is a token as JSON has it.
type tokenRecord struct {
	ID          string     `json:"id"`
	Name        string     `json:"name"`
	Type        string     `json:"type"`
	Org         string     `json:"org"`
	App         string     `json:"app"`
	Environment string     `json:"environment"`
	Permission  string     `json:"permission"`
	Command     []string   `json:"command"`
	Scopes      []string   `json:"scopes"`
	Status      string     `json:"status"` // "active", "expired" or "revoked"
	Parent      string     `json:"parent"`
	User        string     `json:"user"`
	CreatedBy   string     `json:"created_by"`
	Created     *time.Time `json:"created_at"`
	Expires     *time.Time `json:"expires_at"`
	LastUsed    *time.Time `json:"last_used_at"`
	LastAddress string     `json:"last_address"`
	Revoked     *time.Time `json:"revoked_at"`
	RevokedBy   string     `json:"revoked_by"`
	Session     bool       `json:"session"`
}

func newTokenRecord(t *slipwayv1.Token) *tokenRecord {
	return &tokenRecord{
		ID: t.GetId(), Name: t.GetName(), Type: t.GetType(), Org: t.GetOrg(), App: t.GetApp(), Environment: t.GetEnvironment(),
		Permission: t.GetPermission(), Command: append([]string{}, t.GetCommand()...), Scopes: append([]string{}, t.GetScopes()...),
		Status: enumName("TOKEN_STATUS_", t.GetStatus()), Parent: t.GetParent(), User: t.GetUser(), CreatedBy: t.GetCreatedBy(),
		Created: timeOf(t.GetCreated()), Expires: timeOf(t.GetExpires()), LastUsed: timeOf(t.GetLastUsed()), LastAddress: t.GetLastAddress(),
		Revoked: timeOf(t.GetRevoked()), RevokedBy: t.GetRevokedBy(), Session: t.GetSession(),
	}
}

// target says what a token is for.
func (r *tokenRecord) target() string {
	s := "organization " + r.Org
	if r.App != "" {
		s = "app " + r.App
	}
	if r.Environment != "" {
		s += " in " + r.Environment
	}
	return s
}

// until says when it expires.
func (r *tokenRecord) until() string {
	if r.Expires == nil {
		return "never expires"
	}
	return "expires " + r.Expires.Local().Format("2006-01-02 15:04")
}

// scope is what the table says of what a token is for.
func (r *tokenRecord) scope() string {
	return cmp.Or(strings.TrimSpace(r.Permission+" "+r.App), r.Org)
}

func (r *tokenRecord) statusTitle() string {
	return strings.ToUpper(r.Status[:min(1, len(r.Status))]) + r.Status[min(1, len(r.Status)):]
}

// expiresIn says it as people count.
func expiresIn(t *time.Time) string {
	switch {
	case t == nil:
		return "never"
	case time.Now().After(*t):
		return ago(t)
	}
	return "in " + span(time.Until(*t))
}

func (p *program) tokensList() *cobra.Command {
	var req slipwayv1.ListTokensRequest
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List tokens, newest first: all to admins, to others their own",
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.ask(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				list, err := c.ListTokens(ctx, &req)
				if err != nil {
					return err
				}
				records := make([]*tokenRecord, 0, len(list))
				for _, t := range list {
					records = append(records, newTokenRecord(t))
				}
				return p.print(records, func(w io.Writer) { tableOfTokens(w, records) })
			})
		},
	}
	f := cmd.Flags()
	f.StringVarP(&req.App, "app", "a", "", "only tokens for `APP`")
	f.StringVar(&req.Environment, "env", "", "only tokens for environment `ENV`")
	f.StringVar(&req.Type, "type", "", "only tokens of `TYPE`")
	f.BoolVar(&req.Sessions, "sessions", false, "signed-in browsers, too")
	f.Uint32VarP(&req.Limit, "limit", "n", 100, "at most `N` tokens, 1000 at the most")
	f.StringVar(&req.BeforeId, "before", "", "only tokens older than `ID`")
	return cmd
}

func tableOfTokens(w io.Writer, records []*tokenRecord) {
	if len(records) == 0 {
		fmt.Fprintln(w, "no tokens")
		return
	}
	t := tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
	defer t.Flush()
	fmt.Fprintln(t, "ID\tNAME\tTYPE\tSCOPE\tENV\tCREATED BY\tCREATED\tEXPIRES\tLAST USED\tSTATUS")
	for _, r := range records {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.ID, r.Name, r.Type, r.scope(), cmp.Or(r.Environment, "–"),
			r.CreatedBy, ago(r.Created), expiresIn(r.Expires), ago(r.LastUsed), r.statusTitle())
	}
}

func (p *program) tokensShow() *cobra.Command {
	return &cobra.Command{
		Use: "show ID", Short: "Show one token's record", Args: exactly("the ID of a token"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.ask(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				t, err := c.GetToken(ctx, args[0])
				if err != nil {
					return err
				}
				r := newTokenRecord(t)
				return p.print(r, r.write)
			})
		},
	}
}

func (r *tokenRecord) write(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
	defer t.Flush()
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(t, "%s\t%s\n", name, value)
		}
	}
	line("id", r.ID)
	line("name", r.Name)
	line("type", r.Type)
	line("for", r.target())
	line("permission", r.Permission)
	line("command", strings.Join(r.Command, " "))
	line("may", strings.Join(r.Scopes, ", "))
	line("status", r.statusTitle())
	line("created", fmt.Sprintf("%s by %s", ago(r.Created), r.CreatedBy))
	line("on behalf of", r.User)
	line("derived from", r.Parent)
	line("expires", expiresIn(r.Expires))
	line("last used", strings.TrimSpace(ago(r.LastUsed)+" "+r.LastAddress))
	if r.Revoked != nil {
		line("revoked", fmt.Sprintf("%s by %s", ago(r.Revoked), r.RevokedBy))
	}
}

// oneOrMore wants arguments.
func oneOrMore(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return nil
		}
		return fmt.Errorf("%s takes %s", cmd.CommandPath(), what)
	}
}

func (p *program) tokensRevoke() *cobra.Command {
	return &cobra.Command{
		Use: "revoke ID…", Short: "End tokens at once and for ever, and all that were derived from them",
		Args: oneOrMore("the IDs of tokens"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.ask(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				revoked, err := c.RevokeTokens(ctx, args)
				if err != nil {
					return err
				}
				return p.print(map[string]any{"revoked": append([]string{}, revoked...)}, func(w io.Writer) {
					for _, id := range revoked {
						fmt.Fprintf(w, "revoked %s\n", id)
					}
					if len(revoked) == 0 {
						fmt.Fprintln(w, "nothing to do: they were revoked before")
					}
				})
			})
		},
	}
}

func (p *program) tokensDelete() *cobra.Command {
	return &cobra.Command{
		Use: "delete ID…", Aliases: []string{"rm"}, Short: "Remove the records of expired or revoked tokens",
		Args: oneOrMore("the IDs of tokens"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.ask(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				if err := c.DeleteTokens(ctx, args); err != nil {
					return err
				}
				return p.print(map[string]any{"deleted": args}, func(w io.Writer) {
					for _, id := range args {
						fmt.Fprintf(w, "deleted %s\n", id)
					}
				})
			})
		},
	}
}
