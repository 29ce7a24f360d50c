package main

import (
	"cmp"
	"context"

	"github.com/slipwayhq/slipway/cmd/slipway/client"
	"github.com/slipwayhq/slipway/cmd/slipway/progress"
)

// tokenVariables hold a token, the first one set.
var tokenVariables = []string{"SLIPWAY_API_TOKEN", "FLY_API_TOKEN", "FLY_ACCESS_TOKEN"}

// connection says how a daemon is reached, and where that was said.
type connection struct {
	client.Options
	addressFrom string
	tokenFrom   string // empty if there is no token
	saved       *login // for this address; nil if there is none
}

// hidden reports whether a saved login goes unused because of a token that was
// given otherwise.
func (c *connection) hidden() bool {
	return c.saved != nil && c.saved.Token != "" && c.tokenFrom != fromLogin
}

// bearer returns the token, "" if there is none.
func (c *connection) bearer(ctx context.Context) (string, error) {
	if c.Token != "" || c.Source == nil {
		return c.Token, nil
	}
	return c.Source(ctx)
}

const fromLogin = "the saved login"

// connection puts flags, environment and saved logins together, in this order.
func (p *program) connection() (*connection, error) {
	saved, err := loadLogins(p.loginFile)
	if err != nil {
		return nil, err
	}
	p.logins = saved
	c := &connection{}
	text := ""
	for _, from := range []struct{ name, value string }{
		{"--addr", p.flags.addr},
		{"SLIPWAY_ADDR", p.getenv("SLIPWAY_ADDR")},
		{fromLogin, saved.Current},
		{"the default", client.DefaultAddress},
	} {
		if from.value != "" {
			text, c.addressFrom = from.value, from.name
			break
		}
	}
	if c.Address, err = client.ParseAddress(text); err != nil {
		return nil, client.UserError(err.Error(), "The address comes from "+c.addressFrom+".")
	}
	known := login{}
	if c.saved = saved.find(c.Address); c.saved != nil {
		known = *c.saved
		if a, err := client.ParseAddress(known.Address); err == nil && a.TLS {
			c.Address.TLS = true
		}
	}
	c.Address.TLS = c.Address.TLS || p.flags.tls
	c.CAFile = cmp.Or(p.flags.caFile, p.getenv("SLIPWAY_TLS_CA"), known.CAFile)
	c.SkipVerify = p.flags.skipVerify || known.SkipVerify
	c.Insecure = p.flags.insecure || p.getenv("SLIPWAY_ALLOW_PLAINTEXT") == "1" || known.Insecure
	if !c.Address.TLS && p.flags.caFile == "" {
		c.CAFile = "" // meant for another daemon
	}
	c.Version, c.Timeout = p.version, p.flags.timeout
	c.Reattach, c.CancelWait = p.reattach, p.cancelWait
	c.Token, c.tokenFrom = p.token(known.Token)
	if c.Token == "" && p.getenv(oidcVariable) == "1" {
		o := c.Options
		c.Source, c.tokenFrom = func(ctx context.Context) (string, error) { return p.exchanged(ctx, o) }, "an ID token (SLIPWAY_OIDC=1)"
	}
	return c, nil
}

// token returns the token to use and where it comes from.
func (p *program) token(saved string) (token, from string) {
	if p.flags.token != "" {
		return p.flags.token, cmp.Or(p.caller, "--access-token")
	}
	for _, name := range tokenVariables {
		if v := p.getenv(name); v != "" {
			return v, name
		}
	}
	if saved != "" {
		return saved, fromLogin
	}
	return "", ""
}

// connect returns a client for the daemon that the user means. It does not
// wait for the daemon.
func (p *program) connect() (*client.Client, *connection, error) {
	conn, err := p.connection()
	if err != nil {
		return nil, nil, err
	}
	c, err := client.New(conn.Options)
	return c, conn, err
}

// ask connects, has f talk to the daemon, and explains what fails.
func (p *program) ask(ctx context.Context, f func(context.Context, *client.Client) error) error {
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

// explain adds to an error about a token where the token came from, which the
// daemon cannot know.
func (c *connection) explain(err error) error {
	e := client.AsError(err)
	if e == nil {
		return nil
	}
	if e.GetCode() != client.CodeUnauthorized && e.GetCode() != client.CodePermissionDenied || e.ExitCode() != client.ExitAuth {
		return e
	}
	switch {
	case c.tokenFrom == "":
		e.Hint = "There is no token here: run slipway login, or set SLIPWAY_API_TOKEN. A daemon's first start writes one to admin.token in its root."
	case c.hidden():
		e.Hint = progress.Join(e.GetHint(), "The token comes from "+c.tokenFrom+"; a saved login for "+cmp.Or(c.saved.Org, c.saved.Address)+" is hidden by it.")
	default:
		e.Hint = progress.Join(e.GetHint(), "The token comes from "+c.tokenFrom+".")
	}
	return e
}
