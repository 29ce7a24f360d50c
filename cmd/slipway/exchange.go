package main

import (
	"cmp"
	"context"
	"fmt"
	"regexp"
	"sync"

	"github.com/spf13/cobra"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"

	"github.com/slipwayhq/slipway/cmd/slipway/client"
)

// oidcVariable set to 1 lets every command that has no token exchange an ID
// token for one.
const oidcVariable = "SLIPWAY_OIDC"

func (p *program) tokensExchange() *cobra.Command {
	var rule, org, file, audience, expires string
	var export bool
	cmd := &cobra.Command{
		Use: "exchange", Short: "Get a token for the ID token of a CI system", Args: exactly(),
		Long: `Exchange gives a token for an ID token that a trust rule knows (slipway trust
create), so that a CI job needs no secret. It finds the ID token by itself in
GitHub Actions, GitLab CI (as SLIPWAY_ID_TOKEN), Buildkite and CircleCI.

An ID token is exchanged once. With SLIPWAY_OIDC=1, every command that has no
token does this by itself.`,
		Example: `  eval "$(slipway tokens exchange --export)"
  slipway tokens exchange --json --id-token-file token.jwt`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if export && p.flags.json {
				return client.UserError("--export and --json exclude each other", "")
			}
			in, never, err := expiry(expires)
			if err != nil {
				return err
			}
			if never {
				return client.UserError("tokens in exchange for others expire", "Leave --expiry out, or give a time.")
			}
			conn, err := p.connection()
			if err != nil {
				return err
			}
			req := &slipwayv1.ExchangeTokenRequest{Rule: rule, Org: org, ExpiresIn: in}
			if file != "" {
				req.IdToken, err = p.readIDToken(file)
			} else {
				req.IdToken, err = p.idToken(cmd.Context(), p.audience(audience, conn.Address))
			}
			if err != nil {
				return err
			}
			r, err := exchange(cmd.Context(), conn.Options, req)
			if err != nil {
				return err
			}
			return p.printExchanged(r, export)
		},
	}
	f := cmd.Flags()
	f.StringVar(&rule, "rule", "", "trust rule by `NAME` or ID; needed only if several match")
	f.StringVarP(&org, "org", "o", "", "`ORG` whose rules count; needed only if those of several match (default $SLIPWAY_ORG)")
	f.StringVar(&file, "id-token-file", "", "read the ID token from `FILE`; - is standard input")
	f.StringVar(&audience, "audience", "", "ask the CI system for an ID token for `AUDIENCE` (default $SLIPWAY_OIDC_AUDIENCE, slipway://HOST:PORT of the daemon)")
	f.StringVarP(&expires, "expiry", "x", "", "how long the token lives, such as 10m (`TIME`; default what the rule allows)")
	f.BoolVar(&export, "export", false, "print a line that a shell can evaluate: export SLIPWAY_API_TOKEN=…")
	cmd.PreRun = func(*cobra.Command, []string) { org = cmp.Or(org, p.getenv("SLIPWAY_ORG")) }
	return cmd
}

// exchange makes the call, which goes without a token.
func exchange(ctx context.Context, o client.Options, req *slipwayv1.ExchangeTokenRequest) (*slipwayv1.ExchangeTokenResponse, error) {
	o.Token, o.Source = "", nil
	c, err := client.New(o)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	r, err := c.ExchangeToken(ctx, req)
	if err == nil && !tokenText.MatchString(r.GetValue()) {
		return nil, client.NewError(client.CodeInternal, slipwayv1.Blame_BLAME_BUILDER, "the daemon's answer is no token", "") // a shell may get to read it
	}
	return r, err
}

var tokenText = regexp.MustCompile(`^[A-Za-z0-9_]+$`)

// exchanging keeps the token of a run that has exchanged an ID token.
type exchanging struct {
	mu    sync.Mutex
	token string
}

// exchanged returns a token for the ID token of the job that this runs in: the
// same one each time.
func (p *program) exchanged(ctx context.Context, o client.Options) (string, error) {
	p.exchanging.mu.Lock()
	defer p.exchanging.mu.Unlock()
	if p.exchanging.token != "" {
		return p.exchanging.token, nil
	}
	id, err := p.idToken(ctx, p.audience("", o.Address))
	if err != nil {
		return "", err
	}
	r, err := exchange(ctx, o, &slipwayv1.ExchangeTokenRequest{IdToken: id, Org: p.getenv("SLIPWAY_ORG"), Rule: p.getenv("SLIPWAY_TRUST")})
	if err != nil {
		return "", err
	}
	p.mask(r.GetValue())
	p.exchanging.token = r.GetValue()
	return r.GetValue(), nil
}

// mask keeps a token out of the log of GitHub Actions, which reads what to hide
// from the output itself.
func (p *program) mask(token string) {
	if p.getenv("GITHUB_ACTIONS") == "true" {
		fmt.Fprintf(p.stderr, "::add-mask::%s\n", token)
	}
}

func (p *program) printExchanged(r *slipwayv1.ExchangeTokenResponse, export bool) error {
	p.mask(r.GetValue())
	t := r.GetToken()
	if p.flags.json {
		return p.printJSON(newToken{t.GetId(), r.GetValue(), t.GetType(), timeOf(t.GetExpires())})
	}
	format := "%s\n"
	if export {
		format = "export SLIPWAY_API_TOKEN=%s\n"
	}
	if _, err := fmt.Fprintf(p.stdout, format, r.GetValue()); err != nil {
		return fmt.Errorf("write result: %w", err)
	}
	record := newTokenRecord(t)
	fmt.Fprintf(p.stderr, "%s token for %s, %s, by trust rule %s\n", t.GetType(), record.target(), record.until(), r.GetRule())
	return nil
}
