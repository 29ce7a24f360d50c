package agent

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
	"google.golang.org/protobuf/types/known/durationpb"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"

	"github.com/slipwayhq/slipway/cmd/slipway/client"
)

func (s *server) addTokenTools() {
	add(s, reads, "whoami", "Whose token this server uses, and what it may do.", s.whoami)
	if strings.HasPrefix(s.who.GetTokenId(), "tok_") {
		add(s, adds, "create_token", fmt.Sprintf("Make a token that may do no more than the one in use and ends with it. Its value is in the answer and nowhere else. "+
			"It lives for %s unless told otherwise, and no longer.", hours(s.opts.maxExpiry())), s.createToken)
	}
	add(s, reads, "list_tokens", "List tokens that the one in use gets to see, newest first, without their values.", s.listTokens)
	add(s, ruins, "revoke_token", "End a token, and all that were derived from it, at once and for ever.", s.revokeToken)
}

func hours(d time.Duration) string {
	if d%time.Hour == 0 {
		return fmt.Sprintf("%d hours", d/time.Hour)
	}
	return d.String()
}

type nothing struct{}

type identity struct {
	Name        string   `json:"name"`
	Org         string   `json:"org"`
	Type        string   `json:"type"`
	App         string   `json:"app" jsonschema:"the only app that the token is for; empty means all"`
	Environment string   `json:"environment" jsonschema:"the only environment that the token is for; empty means any"`
	Scopes      []string `json:"scopes"`
	Expires     string   `json:"expires"`
}

func (s *server) whoami(ctx context.Context, _ *mcp.CallToolRequest, _ nothing) (identity, error) {
	w, err := s.opts.Client.WhoAmI(ctx)
	if err != nil {
		return identity{}, err
	}
	return identity{w.GetName(), w.GetOrg(), w.GetType(), w.GetApp(), w.GetEnvironment(), append([]string{}, w.GetScopes()...), moment(w.GetExpires(), w.GetExpires() != nil)}, nil
}

type tokenRequest struct {
	Type        string   `json:"type,omitempty" jsonschema:"deploy, org, readonly, ssh, machine-exec or registry; empty means as the token in use"`
	Name        string   `json:"name,omitempty" jsonschema:"to find it by; it is marked as made here"`
	App         string   `json:"app,omitempty" jsonschema:"the only app that it is for; a deploy or machine-exec token needs one"`
	Environment string   `json:"environment,omitempty" jsonschema:"the only environment that it is for"`
	Permission  string   `json:"permission,omitempty" jsonschema:"of a registry token: read-only or read-write"`
	Command     []string `json:"command,omitempty" jsonschema:"of a machine-exec token: the command that it may run, word by word"`
	ExpiresIn   string   `json:"expires_in,omitempty" jsonschema:"how long it lives, such as 30m or 12h"`
}

type newToken struct {
	ID      string `json:"id"`
	Token   string `json:"token" jsonschema:"the value; keep it out of files and logs"`
	Type    string `json:"type"`
	Expires string `json:"expires_at"`
}

func (s *server) createToken(ctx context.Context, _ *mcp.CallToolRequest, r tokenRequest) (newToken, error) {
	lives := s.opts.maxExpiry()
	if r.ExpiresIn != "" {
		d, err := time.ParseDuration(r.ExpiresIn)
		if err != nil || d <= 0 {
			return newToken{}, client.UserError(fmt.Sprintf("expires_in %q is no time to live", r.ExpiresIn), "Use a duration such as 30m or 12h.")
		}
		if d > lives {
			return newToken{}, client.UserError(fmt.Sprintf("expires_in %s is longer than the %s that this server allows", r.ExpiresIn, hours(lives)), "Ask the user, who can make one with slipway tokens create.")
		}
		lives = d
	}
	made, err := s.opts.Client.DeriveToken(ctx, &slipwayv1.DeriveTokenRequest{
		Type: r.Type, Name: marked(r.Name), App: r.App, Environment: r.Environment, Permission: r.Permission, Command: r.Command, ExpiresIn: durationpb.New(lives),
	})
	if err != nil {
		return newToken{}, err
	}
	t := made.GetToken()
	return newToken{t.GetId(), made.GetValue(), t.GetType(), moment(t.GetExpires(), t.GetExpires() != nil)}, nil
}

// marked is the name of a token that an agent made.
func marked(name string) string {
	if name = strings.TrimSpace(name); name == "" {
		return "mcp"
	}
	return "mcp: " + name
}

type tokensRequest struct {
	App         string `json:"app,omitempty" jsonschema:"only tokens for this app"`
	Environment string `json:"environment,omitempty" jsonschema:"only tokens for this environment"`
	Type        string `json:"type,omitempty" jsonschema:"only tokens of this type"`
	Limit       uint32 `json:"limit,omitempty" jsonschema:"at most so many; 100 if 0, at most 1000"`
	Before      string `json:"before,omitempty" jsonschema:"only tokens older than the one with this ID, to page on"`
}

type token struct {
	ID          string   `json:"id"`
	Name        string   `json:"name"`
	Type        string   `json:"type"`
	App         string   `json:"app"`
	Environment string   `json:"environment"`
	Permission  string   `json:"permission"`
	Command     []string `json:"command"`
	Status      string   `json:"status" jsonschema:"active, expired or revoked"`
	CreatedBy   string   `json:"created_by"`
	Created     string   `json:"created_at"`
	Expires     string   `json:"expires_at" jsonschema:"empty if it never does"`
	LastUsed    string   `json:"last_used_at"`
	Revocable   bool     `json:"revocable" jsonschema:"whether the token in use may revoke it"`
}

type tokenList struct {
	Tokens []token `json:"tokens"`
}

func (s *server) listTokens(ctx context.Context, _ *mcp.CallToolRequest, r tokensRequest) (tokenList, error) {
	all, err := s.opts.Client.ListTokens(ctx, &slipwayv1.ListTokensRequest{App: r.App, Environment: r.Environment, Type: r.Type, Limit: r.Limit, BeforeId: r.Before})
	out := tokenList{Tokens: []token{}}
	for _, t := range all {
		out.Tokens = append(out.Tokens, token{
			ID: t.GetId(), Name: t.GetName(), Type: t.GetType(), App: t.GetApp(), Environment: t.GetEnvironment(), Permission: t.GetPermission(),
			Command: append([]string{}, t.GetCommand()...), Status: name("TOKEN_STATUS_", t.GetStatus()), CreatedBy: t.GetCreatedBy(), Revocable: t.GetRevocable(),
			Created: moment(t.GetCreated(), t.GetCreated() != nil), Expires: moment(t.GetExpires(), t.GetExpires() != nil), LastUsed: moment(t.GetLastUsed(), t.GetLastUsed() != nil),
		})
	}
	return out, err
}

type revokeRequest struct {
	ID string `json:"id" jsonschema:"of the token, tok_…"`
}

type revoked struct {
	Revoked []string `json:"revoked" jsonschema:"IDs of the tokens that were good until now"`
}

func (s *server) revokeToken(ctx context.Context, _ *mcp.CallToolRequest, r revokeRequest) (revoked, error) {
	ids, err := s.opts.Client.RevokeTokens(ctx, []string{r.ID})
	return revoked{append([]string{}, ids...)}, err
}
