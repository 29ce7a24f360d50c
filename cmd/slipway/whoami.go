package main

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// identity is whom the daemon takes us for, and why, as JSON has it.
type identity struct {
	Name        string     `json:"name"`
	Org         string     `json:"org"`
	Type        string     `json:"type"`
	App         string     `json:"app"`
	Environment string     `json:"environment"`
	Permission  string     `json:"permission"`
	Command     []string   `json:"command"`
	User        string     `json:"user"`
	Role        string     `json:"role"`
	TokenID     string     `json:"token_id"`
	Scopes      []string   `json:"scopes"`
	Expires     *time.Time `json:"expires"`
	Address     string     `json:"addr"`
	AddressFrom string     `json:"addr_source"`
	TokenFrom   string     `json:"token_source"`
	HiddenLogin bool       `json:"hidden_login"` // a saved login that the token hides
}

func newIdentity(w *slipwayv1.WhoAmIResponse, c *connection) *identity {
	return &identity{
		Name: w.GetName(), Org: w.GetOrg(), Type: w.GetType(), App: w.GetApp(), Environment: w.GetEnvironment(),
		Permission: w.GetPermission(), Command: append([]string{}, w.GetCommand()...), User: w.GetUser(), Role: w.GetRole(), TokenID: w.GetTokenId(),
		Scopes: append([]string{}, w.GetScopes()...), Expires: timeOf(w.GetExpires()),
		Address: c.Address.String(), AddressFrom: c.addressFrom, TokenFrom: c.tokenFrom, HiddenLogin: c.hidden(),
	}
}

func (i *identity) title() string {
	s := cmp.Or(i.Name, "–")
	var more []string
	for _, m := range []string{i.Type, i.App} {
		if m != "" && m != i.Name {
			more = append(more, m)
		}
	}
	if len(more) > 0 {
		s += " (" + strings.Join(more, " ") + ")"
	}
	if i.Org != "" {
		s += " of " + i.Org
	}
	return s
}

// validity says how long the token lasts.
func (i *identity) validity() string {
	switch {
	case i.Expires == nil:
		return "does not expire"
	case time.Now().After(*i.Expires):
		return "expired " + ago(i.Expires)
	}
	return span(time.Until(*i.Expires)) + " left"
}

func (p *program) whoami() *cobra.Command {
	return &cobra.Command{
		Use: "whoami", Short: "Show whose token is in use, and where it comes from",
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, conn, err := p.connect()
			if err != nil {
				return err
			}
			defer c.Close()
			who, err := c.WhoAmI(cmd.Context())
			if err != nil {
				return conn.explain(err)
			}
			id := newIdentity(who, conn)
			if id.HiddenLogin {
				fmt.Fprintf(p.stderr, "! %s hides the saved login for %s\n", conn.tokenFrom, conn.saved.Address)
			}
			return p.print(id, id.write)
		},
	}
}

func (i *identity) write(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
	defer t.Flush()
	fmt.Fprintf(t, "who\t%s\n", i.title())
	fmt.Fprintf(t, "token\t%s, %s\n", cmp.Or(i.TokenFrom, "none"), i.validity())
	if i.User != "" {
		fmt.Fprintf(t, "for\t%s, %s\n", i.User, i.Role)
	}
	if i.Environment != "" {
		fmt.Fprintf(t, "in\t%s only\n", i.Environment)
	}
	if len(i.Command) > 0 {
		fmt.Fprintf(t, "command\t%s\n", strings.Join(i.Command, " "))
	}
	if len(i.Scopes) > 0 {
		fmt.Fprintf(t, "may\t%s\n", strings.Join(i.Scopes, ", "))
	}
	fmt.Fprintf(t, "daemon\t%s, %s\n", i.Address, i.AddressFrom)
}
