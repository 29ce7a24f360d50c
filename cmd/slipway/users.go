package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"

	"github.com/slipwayhq/slipway/cmd/slipway/client"
)

func (p *program) users() *cobra.Command {
	cmd := &cobra.Command{
		Use: "users", Short: "Add and remove people, and say what they may do; for admins",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(p.usersCreate(), p.usersList(), p.usersRole(), p.usersRemove())
	return cmd
}

// user is a user as JSON has it.
type user struct {
	Name    string     `json:"name"`
	Role    string     `json:"role"`
	Created *time.Time `json:"created_at"`
}

func newUser(u *slipwayv1.User) user {
	return user{u.GetName(), u.GetRole(), timeOf(u.GetCreated())}
}

func (p *program) usersCreate() *cobra.Command {
	var role, expires string
	var without bool
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Add a user, and make a token to log in with", Args: exactly("the NAME of a user"),
		RunE: func(cmd *cobra.Command, args []string) error {
			in, never, err := expiry(expires)
			if err != nil {
				return err
			}
			return p.ask(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				r, err := c.CreateUser(ctx, &slipwayv1.CreateUserRequest{Name: args[0], Role: role, ExpiresIn: in, Never: never, WithoutToken: without})
				if err != nil {
					return err
				}
				if without {
					u := newUser(r.GetUser())
					return p.print(u, func(w io.Writer) { fmt.Fprintf(w, "%s is a user now, %s\n", u.Name, u.Role) })
				}
				return p.printLogin(r.GetUser().GetName(), r.GetTokenId(), r.GetToken(), r.GetExpires())
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&role, "role", "developer", "`ROLE`: developer, or admin who may also end what others made and add users")
	f.StringVarP(&expires, "expiry", "x", "", "how long the token lives, such as 720h, 30d or never (`TIME`; default 90 days)")
	f.BoolVar(&without, "without-token", false, "make no token: the user signs in with OIDC")
	return cmd
}

// printLogin shows the token with which somebody logs in for the first time.
func (p *program) printLogin(name, id, value string, expires *timestamppb.Timestamp) error {
	if p.flags.json {
		return p.printJSON(newToken{id, value, "user", timeOf(expires)})
	}
	if _, err := fmt.Fprintln(p.stdout, value); err != nil {
		return fmt.Errorf("write result: %w", err)
	}
	fmt.Fprintf(p.stderr, "shown once: give it to %s now, who runs slipway login with it\n", name)
	return nil
}

func (p *program) usersList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the organization's users", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.ask(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				list, err := c.ListUsers(ctx)
				if err != nil {
					return err
				}
				users := make([]user, 0, len(list))
				for _, u := range list {
					users = append(users, newUser(u))
				}
				return p.print(users, func(w io.Writer) {
					t := tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
					defer t.Flush()
					fmt.Fprintln(t, "NAME\tROLE\tCREATED")
					for _, u := range users {
						fmt.Fprintf(t, "%s\t%s\t%s\n", u.Name, u.Role, ago(u.Created))
					}
				})
			})
		},
	}
}

func (p *program) usersRole() *cobra.Command {
	return &cobra.Command{
		Use: "role NAME ROLE", Short: "Make a user an admin or a developer", Args: exactly("the NAME of a user", "and a ROLE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.ask(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				u, err := c.SetUserRole(ctx, args[0], args[1])
				if err != nil {
					return err
				}
				return p.print(newUser(u), func(w io.Writer) { fmt.Fprintf(w, "%s is %s now\n", u.GetName(), u.GetRole()) })
			})
		},
	}
}

func (p *program) usersRemove() *cobra.Command {
	return &cobra.Command{
		Use: "remove NAME", Aliases: []string{"rm"}, Short: "Remove a user and revoke the user's tokens", Args: exactly("the NAME of a user"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.ask(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				revoked, err := c.RemoveUser(ctx, args[0])
				if err != nil {
					return err
				}
				return p.print(map[string]any{"removed": args[0], "revoked": append([]string{}, revoked...)}, func(w io.Writer) {
					fmt.Fprintf(w, "removed %s; tokens revoked: %d\n", args[0], len(revoked))
				})
			})
		},
	}
}

func (p *program) orgs() *cobra.Command {
	cmd := &cobra.Command{
		Use: "orgs", Short: "Add and list the daemon's organizations; for its operator",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var admin string
	create := &cobra.Command{
		Use: "create NAME", Short: "Add an organization, and make a token for its first admin", Args: exactly("the NAME of an organization"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.ask(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				r, err := c.CreateOrg(ctx, args[0], admin)
				if err != nil {
					return err
				}
				return p.printLogin(admin, r.GetTokenId(), r.GetToken(), r.GetExpires())
			})
		},
	}
	create.Flags().StringVar(&admin, "admin", "admin", "`NAME` of its first user, an admin")
	list := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the daemon's organizations", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.ask(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				all, err := c.ListOrgs(ctx)
				if err != nil {
					return err
				}
				rows := make([]nameAndTime, 0, len(all))
				for _, o := range all {
					rows = append(rows, nameAndTime{o.GetName(), timeOf(o.GetCreated())})
				}
				return p.printNames(rows)
			})
		},
	}
	cmd.AddCommand(create, list)
	return cmd
}

// nameAndTime is a row of what has nothing but these.
type nameAndTime struct {
	Name    string     `json:"name"`
	Created *time.Time `json:"created_at"`
}

func (p *program) printNames(rows []nameAndTime) error {
	return p.print(rows, func(w io.Writer) {
		t := tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
		defer t.Flush()
		fmt.Fprintln(t, "NAME\tCREATED")
		for _, r := range rows {
			fmt.Fprintf(t, "%s\t%s\n", r.Name, ago(r.Created))
		}
	})
}

func (p *program) apps() *cobra.Command {
	cmd := &cobra.Command{
		Use: "apps", Short: "List the apps that the token may see",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(&cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List apps; the first deploy of a name makes one", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.ask(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				all, err := c.ListApps(ctx)
				if err != nil {
					return err
				}
				rows := make([]nameAndTime, 0, len(all))
				for _, a := range all {
					rows = append(rows, nameAndTime{a.GetName(), timeOf(a.GetCreated())})
				}
				return p.printNames(rows)
			})
		},
	})
	return cmd
}

func (p *program) audit() *cobra.Command {
	cmd := &cobra.Command{
		Use: "audit", Short: "Read the log of who was allowed what; for admins",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var since time.Duration
	req := &slipwayv1.ExportAuditRequest{}
	export := &cobra.Command{
		Use: "export", Short: "Print the audit log, oldest first; with --json as JSON lines",
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if since > 0 {
				req.Since = timestamppb.New(time.Now().Add(-since))
			}
			return p.ask(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				return c.ExportAudit(ctx, req, p.printDecision)
			})
		},
	}
	f := export.Flags()
	f.DurationVar(&since, "since", 0, "only the last `TIME`, such as 24h (default all)")
	f.StringVar(&req.Token, "token", "", "only what token `ID` did")
	f.BoolVar(&req.Denied, "denied", false, "only what was not allowed")
	cmd.AddCommand(export)
	return cmd
}

// decision is an entry of the audit log as JSON has it.
type decision struct {
	ID       string     `json:"id"`
	Time     *time.Time `json:"time"`
	Token    string     `json:"token"`
	Actor    string     `json:"actor"`
	Action   string     `json:"action"`
	Resource string     `json:"resource"`
	Address  string     `json:"address"`
	Allowed  bool       `json:"allowed"`
	Reason   string     `json:"reason"`
	Count    int64      `json:"count"`
}

func (p *program) printDecision(d *slipwayv1.Decision) error {
	r := decision{d.GetId(), timeOf(d.GetTime()), d.GetToken(), d.GetActor(), d.GetAction(), d.GetResource(), d.GetAddress(), d.GetAllowed(), d.GetReason(), d.GetCount()}
	if p.flags.json {
		return json.NewEncoder(p.stdout).Encode(r)
	}
	verdict := "allowed"
	if !r.Allowed {
		verdict = "denied: " + r.Reason
	}
	_, err := fmt.Fprintf(p.stdout, "%s %s %s %s %s ×%d %s\n", r.Time.Format(time.RFC3339), r.Actor, r.Action, r.Resource, r.Address, r.Count, verdict)
	return err
}
