package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/slipwayhq/slipway/cmd/slipway/client"
)

// maxIDToken bounds what is read as an ID token, and what a CI system answers.
const maxIDToken = 64 << 10

// audience is whom ID tokens are made for unless somebody says otherwise: this
// daemon and no other, so that no other could use them here.
func (p *program) audience(flag string, a client.Address) string {
	return cmp.Or(flag, p.getenv("SLIPWAY_OIDC_AUDIENCE"), "slipway://"+a.HostPort())
}

// idToken gets an ID token from where this runs: the CI systems each have their
// own way.
func (p *program) idToken(ctx context.Context, audience string) (string, error) {
	switch {
	case p.getenv("SLIPWAY_ID_TOKEN") != "":
		return p.getenv("SLIPWAY_ID_TOKEN"), nil
	case p.getenv("ACTIONS_ID_TOKEN_REQUEST_URL") != "":
		return p.githubToken(ctx, audience)
	case p.getenv("GITHUB_ACTIONS") == "true":
		return "", client.UserError("this job may not have ID tokens", "Give it the permission id-token: write.")
	case p.getenv("BUILDKITE") == "true":
		return buildkiteToken(ctx, audience)
	case p.getenv("CIRCLE_OIDC_TOKEN_V2") != "":
		return p.getenv("CIRCLE_OIDC_TOKEN_V2"), nil
	case p.getenv("GITLAB_CI") == "true":
		return "", client.UserError("this job has no ID token", "Let id_tokens of the job name SLIPWAY_ID_TOKEN, with aud: "+audience+".")
	}
	return "", client.UserError("there is no ID token here",
		"Run this in GitHub Actions, GitLab CI, Buildkite or CircleCI, set SLIPWAY_ID_TOKEN, or give --id-token-file.")
}

// githubToken asks the runner of GitHub Actions.
func (p *program) githubToken(ctx context.Context, audience string) (string, error) {
	at, err := url.Parse(p.getenv("ACTIONS_ID_TOKEN_REQUEST_URL"))
	if err != nil {
		return "", client.UserError("ACTIONS_ID_TOKEN_REQUEST_URL is no address", "")
	}
	q := at.Query()
	q.Set("audience", audience)
	at.RawQuery = q.Encode()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at.String(), nil)
	if err != nil {
		return "", client.UserError("ACTIONS_ID_TOKEN_REQUEST_URL is no address", "")
	}
	req.Header.Set("Authorization", "Bearer "+p.getenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN"))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", noIDToken("GitHub Actions", err)
	}
	defer resp.Body.Close()
	var answer struct {
		Value string `json:"value"`
	}
	if resp.StatusCode != http.StatusOK {
		return "", noIDToken("GitHub Actions", errors.New(resp.Status))
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxIDToken)).Decode(&answer); err != nil || answer.Value == "" {
		return "", noIDToken("GitHub Actions", errors.New("its answer holds none"))
	}
	return answer.Value, nil
}

// noIDToken says why a CI system gave none. The address that was asked, which
// may be part of err, holds no secret.
func noIDToken(system string, err error) error {
	return client.NewError(client.CodeUnavailable, 0, fmt.Sprintf("%s gave no ID token: %v", system, err), "Try again; the job needs the right to ask for ID tokens.")
}

// buildkiteToken asks Buildkite's agent.
func buildkiteToken(ctx context.Context, audience string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "buildkite-agent", "oidc", "request-token", "--audience", audience)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		if line := firstLine(said.String()); line != "" {
			err = fmt.Errorf("%w: %s", err, line)
		}
		return "", noIDToken("buildkite-agent", err)
	}
	token := strings.TrimSpace(string(out))
	if token == "" {
		return "", noIDToken("buildkite-agent", errors.New("it printed none"))
	}
	return token, nil
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return line[:min(len(line), 200)]
}

// readIDToken reads an ID token from a file, or from standard input.
func (p *program) readIDToken(file string) (string, error) {
	r := p.stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return "", client.UserError(fmt.Sprintf("--id-token-file: %v", err), "")
		}
		defer f.Close()
		r = f
	}
	b, err := io.ReadAll(io.LimitReader(r, maxIDToken))
	if err != nil {
		return "", client.UserError(fmt.Sprintf("--id-token-file: %v", err), "")
	}
	token := strings.TrimSpace(string(b))
	if token == "" {
		return "", client.UserError("--id-token-file "+file+" is empty", "")
	}
	return token, nil
}
