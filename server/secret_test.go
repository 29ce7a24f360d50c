package server_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/slipwayhq/slipway/builder"
	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/fleet"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
	"github.com/slipwayhq/slipway/server"
)

func secretAnswer(ask uint64, value string) *slipwayv1.BuildRequest {
	return &slipwayv1.BuildRequest{Message: &slipwayv1.BuildRequest_Answer{Answer: &slipwayv1.Answer{
		AskId: ask, Answer: &slipwayv1.Answer_Secret{Secret: []byte(value)},
	}}}
}

func withSecrets(s *slipwayv1.Start, ids ...string) *slipwayv1.Start {
	s.SecretIds = ids
	return s
}

// A secret is asked for once, is there for as long as the build lives, and
// leaves no trace.
func TestSecretsGoNowhere(t *testing.T) {
	const value = "correct-horse-battery"
	var kept []byte
	d := start(t, &script{build: func(ctx context.Context, job *builder.Job) (*builder.Image, error) {
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				got, ok, err := job.Session.Secret(ctx, "npm")
				if err != nil || !ok || string(got) != value {
					t.Errorf("a secret of %d bytes, %v, %v", len(got), ok, err)
				}
			})
		}
		wg.Wait()
		kept, _, _ = job.Session.Secret(ctx, "npm")
		if string(kept) != value {
			t.Error("a second look finds another value")
		}
		if _, ok, err := job.Session.Secret(ctx, "other"); ok || err != nil {
			t.Errorf("a secret that nobody gave: %v, %v", ok, err)
		}
		if _, err := image(ctx, job, "hello"); err != nil {
			return nil, err
		}
		return nil, errors.New("fails, for the log to tell")
	}}, 1)
	c := d.call("acme", withSecrets(shop(), "npm"))
	check(t, c.recv(askMsg))
	check(t, c.stream.Send(secretAnswer(c.asks[0].Id, value)))
	wantCode(t, c.result(), failure.Internal)
	if len(c.asks) != 1 || c.asks[0].GetSecret() != "npm" {
		t.Errorf("asked %v", c.asks)
	}
	d.drain()
	if !bytes.Equal(kept, make([]byte, len(value))) {
		t.Error("the secret is still in memory after the build")
	}
	text := d.log.String()
	for _, e := range c.events {
		text += protojson.Format(e)
	}
	b, err := d.records.Get(t.Context(), "acme", c.id)
	check(t, err)
	if text += string(b.Result); strings.Contains(text, value) {
		t.Error("the secret is in a log, an event or the record")
	}
	if at := holding(t, d.root, value); at != "" {
		t.Errorf("the secret is in %s", at)
	}
}

// holding returns a file below dir that has the text.
func holding(t *testing.T, dir, text string) string {
	found := ""
	check(t, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte(text)) {
			found = path
		}
		return err
	}))
	return found
}

func TestSecretsHaveALimit(t *testing.T) {
	for size, want := range map[int]string{500 << 10: "", 500<<10 + 1: failure.InvalidArgument} {
		d := start(t, &script{build: func(ctx context.Context, job *builder.Job) (*builder.Image, error) {
			if _, _, err := job.Session.Secret(ctx, "big"); err != nil {
				return nil, err
			}
			return image(ctx, job, "hello")
		}}, 1)
		c := d.call("acme", withSecrets(shop(), "big"))
		check(t, c.recv(askMsg))
		check(t, c.stream.Send(secretAnswer(c.asks[0].Id, strings.Repeat("x", size))))
		wantCode(t, c.result(), want)
	}
}

// A detached build has its secrets before its client may go.
func TestDetachedSecrets(t *testing.T) {
	left := make(chan struct{})
	d := start(t, &script{build: func(ctx context.Context, job *builder.Job) (*builder.Image, error) {
		<-left
		for id, want := range map[string]bool{"npm": true, "none": false} {
			if got, ok, err := job.Session.Secret(ctx, id); err != nil || ok != want || ok && string(got) != "value of npm" {
				t.Errorf("secret %s: %q, %v, %v", id, got, ok, err)
			}
		}
		return image(ctx, job, "hello")
	}}, 1, func(o *server.Options, _ *fleet.Options) { o.Grace = 1 })
	s := withSecrets(shop(), "npm", "none")
	s.Detach = true
	c := d.call("acme", s)
	check(t, c.recv(func(m *slipwayv1.BuildResponse) bool {
		ask := m.GetAsk()
		switch ask.GetSecret() {
		case "npm":
			check(t, c.stream.Send(secretAnswer(ask.Id, "value of npm")))
		case "none":
			check(t, c.stream.Send(&slipwayv1.BuildRequest{Message: &slipwayv1.BuildRequest_Answer{Answer: &slipwayv1.Answer{
				AskId: ask.Id, Answer: &slipwayv1.Answer_None{None: &slipwayv1.None{}}}}}))
		}
		p := m.GetEvent().GetPhase()
		return p.GetDone() && p.GetName() == slipwayv1.PhaseName_PHASE_NAME_PREFLIGHT
	}))
	if len(c.asks) != 2 {
		t.Errorf("when the preflight ends, %d secrets have been asked for", len(c.asks))
	}
	c.cancel()
	for c.recv(func(*slipwayv1.BuildResponse) bool { return false }) == nil {
	}
	close(left)
	if res := d.watch(c.id); res.Error != nil {
		t.Errorf("result %v", res.Error)
	}
}

// A client that goes before it has answered leaves no secret.
func TestDetachedSecretsOfAClientThatGoes(t *testing.T) {
	d := start(t, &script{}, 1)
	s := withSecrets(shop(), "npm")
	s.Detach = true
	c := d.call("acme", s)
	check(t, c.recv(askMsg))
	c.cancel()
	res := d.watch(c.id)
	wantCode(t, res, failure.ClientLost)
}
