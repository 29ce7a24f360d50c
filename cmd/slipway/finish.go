package main

import (
	"errors"
	"fmt"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"

	"github.com/slipwayhq/slipway/cmd/slipway/client"
	"github.com/slipwayhq/slipway/cmd/slipway/progress"
)

// finish shows how a build ended and returns what the command ends with. A
// build that has no result because of err fails with it.
func (p *program) finish(b *buildLog, res *slipwayv1.Result, err error, app string) error {
	switch {
	case errors.Is(err, client.ErrDetached):
		return p.detached(b, app)
	case err != nil:
		res = &slipwayv1.Result{Status: slipwayv1.ResultStatus_RESULT_STATUS_FAILED, BuildId: b.id, App: app, Error: client.AsError(err).Proto()}
	case res.GetStatus() == slipwayv1.ResultStatus_RESULT_STATUS_FAILED && res.GetError() == nil:
		res.Error = client.NewError(client.CodeInternal, slipwayv1.Blame_BLAME_BUILDER, "the daemon does not say why the build failed", "").Proto()
	}
	if err := b.show.Finish(res); err != nil {
		return fmt.Errorf("write result: %w", err)
	}
	switch res.GetStatus() {
	case slipwayv1.ResultStatus_RESULT_STATUS_SUCCEEDED:
		return p.image(res)
	case slipwayv1.ResultStatus_RESULT_STATUS_CANCELLED:
		return &shownError{client.ExitCancelled}
	}
	return &shownError{client.FromProto(res.GetError()).ExitCode()}
}

// image prints the image's name, alone on its line where a program may read
// it, with the rest of what there is to say where people do.
func (p *program) image(res *slipwayv1.Result) error {
	if p.flags.json {
		return nil
	}
	name := res.GetImage()
	if name != "" && res.GetDigest() != "" {
		name += "@"
	}
	name += res.GetDigest()
	_, terminal := asTerminal(p.stdout)
	if terminal {
		name += "  " + progress.Trailer(res)
	} else {
		fmt.Fprintln(p.stderr, "  "+progress.Trailer(res))
	}
	if _, err := fmt.Fprintln(p.stdout, name); err != nil {
		return fmt.Errorf("write result: %w", err)
	}
	return nil
}

// detached ends a command whose build goes on.
func (p *program) detached(b *buildLog, app string) error {
	if err := b.show.Finish(&slipwayv1.Result{BuildId: b.id, App: app}); err != nil || p.flags.json {
		return err
	}
	fmt.Fprintf(p.stderr, "the build goes on; slipway builds attach %s\n", b.id)
	_, err := fmt.Fprintln(p.stdout, b.id)
	return err
}
