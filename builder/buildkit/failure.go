package buildkit

import (
	"cmp"
	"context"
	"errors"
	"regexp"
	"strings"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/slipwayhq/slipway/builder/failure"
)

// invalid is what a parser says of a Dockerfile.
func invalid(err error) error {
	out := failure.Userf(failure.DockerfileInvalid, "see the Dockerfile reference for the instruction", "%v", err)
	var at *parser.LocationError
	if errors.As(err, &at) && len(at.Locations) > 0 && len(at.Locations[0]) > 0 {
		out.Line = at.Locations[0][0].Start.Line
	}
	return out
}

// explain turns what BuildKit's solver returned into a failure.
func (b *build) explain(err error) error {
	if known, ok := errors.AsType[*failure.Error](err); ok {
		return known
	}
	if errors.Is(err, context.Canceled) && context.Cause(b.ctx) != nil {
		return context.Cause(b.ctx)
	}
	line := cmp.Or(lineOf(err), b.lineOfVertex(err))
	if known := b.foreseen(err); known != nil {
		return known
	}
	if exit, ok := errors.AsType[*gateway.ExitError](err); ok && exit.ExitCode != gateway.UnknownExitStatus {
		hint := "the output above says why; steps before this one stay cached"
		if b.keeps() {
			hint = cmp.Or(b.keeper.Hint(b.job.Org, b.job.ID), hint)
		}
		e := failure.Userf(failure.StepFailed, hint, "%s", message(err))
		e.ExitCode, e.Line, e.Err = int(exit.ExitCode), line, err
		return e
	}
	e := kindOf(err)
	e.Line, e.Err, e.Message = line, err, message(err)
	return e
}

// foresee notes what an error means that is going to come back as a text with
// its message in it.
func (b *build) foresee(e *failure.Error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.causes = append(b.causes, e)
}

// foreseen returns a copy of what is known of an error; nil if that is nothing.
func (b *build) foreseen(err error) *failure.Error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range b.causes {
		if strings.Contains(err.Error(), e.Message) {
			known := *e
			known.Line, known.Err = cmp.Or(lineOf(err), b.lineOfVertex(err)), err
			return &known
		}
	}
	return nil
}

// lineOf is the line of the Dockerfile that an error is about; 0 if it is about
// none.
func lineOf(err error) int {
	for _, s := range errdefs.Sources(err) {
		for _, r := range s.Ranges {
			if n := int(r.GetStart().GetLine()); n > 0 {
				return n
			}
		}
	}
	return 0
}

// message is an error's text without what says where it came through.
func message(err error) string {
	text := err.Error()
	for _, prefix := range []string{"failed to solve: ", "rpc error: ", "code = Unknown desc = ", "code = NotFound desc = "} {
		text = strings.TrimPrefix(text, prefix)
	}
	return checksum.ReplaceAllString(text, "$1")
}

// checksum is how BuildKit says that a file is not there.
var checksum = regexp.MustCompile(`^failed to compute cache key: failed to calculate checksum of ref \S+: (.*)$`)

// A kind is a sort of error that BuildKit has no type for. It is known by its
// text.
type kind struct {
	text *regexp.Regexp
	failure.Error
}

func textual(text, code string, blame failure.Blame, hint string) kind {
	return kind{regexp.MustCompile(text), failure.Error{Code: code, Blame: blame, Hint: hint}}
}

const (
	hintReference = "see the Dockerfile reference for the instruction"
	hintPath      = "check the path, and that no pattern of the ignore file takes it away"
	hintLogin     = "check the image's name, and log in to its registry with docker login where you deploy"
)

// kinds are in the order in which they are tried.
var kinds = []kind{
	// What a client says of its files that cannot be.
	textual(`escape check |changes out of order|absolute path /|invalid link |invalid file request `, failure.ContextInvalid, failure.User, "the client sent what is no tree of files; update it"),
	textual(`CDI device`, failure.PermissionDenied, failure.User, "leave the device out; steps see none of the daemon's"),
	textual(`this daemon does not fetch Git|not supported on this daemon|a proxied network is not supported`, failure.NotSupported, failure.User, ""),
	textual(`invalid frontend: `, failure.InvalidArgument, failure.User, "use dockerfile.v0, or gateway.v0 with an image"),
	textual(`no active session`, failure.ClientLost, failure.User, "the client that had the files is gone"),
	textual(`dockerfile parse error|unknown instruction`, failure.DockerfileInvalid, failure.User, hintReference),
	textual(`target stage .* could not be found`, failure.DockerfileInvalid, failure.User, "name one of the Dockerfile's stages"),
	textual(`failed to (calculate checksum|compute cache key)`, failure.FileNotFound, failure.User, hintPath),
	textual(`(network\.host|security\.insecure|device\S*) is not allowed`, failure.PermissionDenied, failure.User, "the operator of the daemon decides what steps may do"),
	textual(`failed to do request`, failure.BaseUnavailable, failure.Registry, "the daemon cannot reach the registry; with --registry-mirror its operator names another place to pull from"),
	textual(`pull access denied|authorization failed|401 Unauthorized|403 Forbidden`, failure.BaseDenied, failure.User, hintLogin),
	textual(`failed to resolve source metadata`, failure.BaseNotFound, failure.User, "check the image's name and tag"),
	textual(`(^|: )secret [^:]+: not found`, failure.InvalidArgument, failure.User, "give the secret with --build-secret"),
	textual(`no SSH key .* forwarded|unset ssh forward key`, failure.InvalidArgument, failure.User, "forward an agent with --ssh"),
}

// lineOfVertex is the line of the vertex that an error is about; 0 if it is
// about none.
func (b *build) lineOfVertex(err error) int {
	if v, ok := errors.AsType[*errdefs.VertexError](err); ok {
		return b.lines.of(digest.Digest(v.Digest)).Line
	}
	return 0
}

func kindOf(err error) *failure.Error {
	for _, k := range kinds {
		if k.text.MatchString(err.Error()) {
			e := k.Error
			e.Retryable = e.Blame == failure.Registry
			return &e
		}
	}
	if cerrdefs.IsNotFound(err) {
		return &failure.Error{Code: failure.FileNotFound, Blame: failure.User, Hint: "check the name"}
	}
	if cerrdefs.IsInvalidArgument(err) {
		return &failure.Error{Code: failure.InvalidArgument, Blame: failure.User}
	}
	e := *failure.As(err)
	if e.Code == failure.Internal {
		e.Code, e.Blame, e.Hint = failure.StepFailed, failure.User, "the message is BuildKit's own"
		e.Retryable = false
	}
	return &e
}
