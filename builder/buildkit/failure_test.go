package buildkit

import (
	"context"
	"errors"
	"fmt"
	"testing"

	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"

	"github.com/slipwayhq/slipway/builder/failure"
)

func TestExplain(t *testing.T) {
	at := func(line int32, err error) error {
		return errdefs.WithSource(err, &errdefs.Source{Info: &pb.SourceInfo{Filename: "Dockerfile"}, Ranges: []*pb.Range{{Start: &pb.Position{Line: line}, End: &pb.Position{Line: line}}}})
	}
	for _, tc := range []struct {
		err     error
		code    string
		line    int
		exit    int
		message string
	}{
		{at(3, fmt.Errorf("failed to solve: process %q did not complete successfully: %w", "make", &gateway.ExitError{ExitCode: 7})), failure.StepFailed, 3, 7, `process "make" did not complete successfully: exit code: 7`},
		{at(2, errors.New(`failed to solve: failed to compute cache key: failed to calculate checksum of ref abc::def: "/gone": not found`)), failure.FileNotFound, 2, 0, `"/gone": not found`},
		{errors.New("failed to solve: openssh: failed to resolve source metadata for docker.io/library/openssh:1: not found"), failure.BaseNotFound, 0, 0, "openssh: failed to resolve source metadata for docker.io/library/openssh:1: not found"},
		{errors.New("secrets/image: failed to resolve source metadata for x: pull access denied"), failure.BaseDenied, 0, 0, "secrets/image: failed to resolve source metadata for x: pull access denied"},
		{errors.New(`x: failed to resolve source metadata for x: failed to do request: Head "https://x/v2": dial tcp: refused`), failure.BaseUnavailable, 0, 0, `x: failed to resolve source metadata for x: failed to do request: Head "https://x/v2": dial tcp: refused`},
		{errors.New("failed to solve: secret token: not found"), failure.InvalidArgument, 0, 0, "secret token: not found"},
		{errors.New("failed to load LLB: network.host is not allowed"), failure.PermissionDenied, 0, 0, "failed to load LLB: network.host is not allowed"},
		{errors.New("failed to solve: something new"), failure.StepFailed, 0, 0, "something new"},
		{failure.Userf(failure.ContextChanged, "", "moved"), failure.ContextChanged, 0, 0, "moved"},
	} {
		b := &build{ctx: context.Background()}
		e := failure.As(b.explain(tc.err))
		if e.Code != tc.code || e.Line != tc.line || e.ExitCode != tc.exit || e.Message != tc.message || e.Blame == failure.User && e.Code != failure.ContextChanged && e.Hint == "" {
			t.Errorf("%v: %+v", tc.err, e)
		}
	}
	stopped, stop := context.WithCancelCause(context.Background())
	cause := errors.New("the limit")
	stop(cause)
	if err := (&build{ctx: stopped}).explain(fmt.Errorf("failed to solve: %w", context.Canceled)); !errors.Is(err, cause) {
		t.Errorf("a build that was stopped ends with %v", err)
	}
}
