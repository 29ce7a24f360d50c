package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/slipwayhq/slipway/cmd/slipway/client"
)

func (p *program) login() *cobra.Command {
	return &cobra.Command{
		Use: "login", Short: "Save a token for the daemon at --addr",
		Long: `Login takes a token from --access-token or from standard input, asks the daemon
whose it is, and saves it for this address. A daemon writes its first token to
admin.token in its root directory:

    slipway login < /var/lib/slipway/admin.token`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			conn, err := p.connection()
			if err != nil {
				return err
			}
			if p.flags.token == "" {
				if conn.Token, err = p.readToken(conn.Address); err != nil {
					return err
				}
			}
			c, err := client.New(conn.Options)
			if err != nil {
				return err
			}
			defer c.Close()
			who, err := c.WhoAmI(cmd.Context())
			if err != nil {
				return err
			}
			err = p.logins.put(conn.Address, login{
				Address: conn.Address.String(), Token: conn.Token, Name: who.GetName(), Org: who.GetOrg(),
				CAFile: conn.CAFile, SkipVerify: conn.SkipVerify, Insecure: conn.Insecure,
			})
			if err != nil {
				return err
			}
			id := newIdentity(who, conn)
			id.TokenFrom = fromLogin
			return p.print(id, func(w io.Writer) {
				fmt.Fprintf(w, "logged in to %s as %s\n", conn.Address, id.title())
				for _, name := range tokenVariables {
					if p.getenv(name) != "" {
						fmt.Fprintf(p.stderr, "! %s is set and wins over this login\n", name)
						break
					}
				}
			})
		},
	}
}

// readToken reads a token from standard input, without showing it if that is
// a terminal.
func (p *program) readToken(a client.Address) (string, error) {
	var line string
	if f, ok := p.stdin.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		fmt.Fprintf(p.stderr, "token for %s: ", a)
		b, err := term.ReadPassword(int(f.Fd()))
		fmt.Fprintln(p.stderr)
		if err != nil {
			return "", client.UserError(fmt.Sprintf("read token: %v", err), "")
		}
		line = string(b)
	} else {
		line, _ = bufio.NewReader(io.LimitReader(p.stdin, 64<<10)).ReadString('\n')
	}
	if line = strings.TrimSpace(line); line == "" {
		return "", client.UserError("no token", "Give it with --access-token or on standard input.")
	}
	if strings.ContainsFunc(line, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", client.UserError("that is no token: it has spaces or unprintable characters", "")
	}
	return line, nil
}

func (p *program) logout() *cobra.Command {
	return &cobra.Command{
		Use: "logout", Short: "Forget the saved token for the daemon at --addr",
		Long: "Logout removes the saved login from this machine. The token stays valid.",
		Args: exactly(),
		RunE: func(*cobra.Command, []string) error {
			conn, err := p.connection()
			if err != nil {
				return err
			}
			removed := p.logins.drop(conn.Address)
			if removed {
				if err := p.logins.save(); err != nil {
					return err
				}
			}
			return p.print(map[string]any{"addr": conn.Address.String(), "removed": removed}, func(w io.Writer) {
				if removed {
					fmt.Fprintf(w, "logged out of %s\n", conn.Address)
				} else {
					fmt.Fprintf(w, "there was no login for %s\n", conn.Address)
				}
			})
		},
	}
}
