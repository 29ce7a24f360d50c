package server

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"

	"github.com/slipwayhq/slipway/builder"
	"github.com/slipwayhq/slipway/builder/failure"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
	"github.com/slipwayhq/slipway/server/records"
	"github.com/slipwayhq/slipway/tokens"
)

// Shells opens shells where builds failed.
type Shells interface {
	// Shell runs a command, or a shell if args has none, where a build of the org
	// failed, until that ends or ctx does, and returns the exit code.
	Shell(ctx context.Context, org, build string, args []string, c builder.Console) (int, error)
}

// Commands runs commands in images.
type Commands interface {
	// Exec runs a command until it ends or ctx does, and returns the exit code.
	// Nothing of it is kept.
	Exec(ctx context.Context, cmd builder.Command, c builder.Console) (int, error)
}

// Releases knows what was released.
type Releases interface {
	// Released returns the image of an app that was released last, to an
	// environment if one is named: a reference without tag or digest, "host/path",
	// and the digest.
	Released(ctx context.Context, org, app, env string) (ref, digest string, err error)
}

// shellService serves ShellService.
type shellService struct {
	slipwayv1.UnimplementedShellServiceServer
	front *Front
}

// Shell implements ShellService.
func (s *shellService) Shell(stream grpc.BidiStreamingServer[slipwayv1.ShellRequest, slipwayv1.ShellResponse]) error {
	ctx := stream.Context()
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	start := first.GetStart()
	if start == nil {
		return failure.Userf(failure.InvalidArgument, "update the client", "the first message must be a start")
	}
	if err := checkArgs(start.Args); err != nil {
		return err
	}
	b, err := s.front.find(ctx, start.BuildId, tokens.ScopeSSH)
	if err != nil {
		return err
	}
	if s.front.opts.Shells == nil {
		return failure.Userf(failure.NotSupported, "deploy again with --progress plain to see more", "this daemon does not keep failed steps")
	}
	t := newTalk(start.Terminal, true, func() (*slipwayv1.ProcessInput, error) {
		m, err := stream.Recv()
		return m.GetInput(), err
	}, func(out *slipwayv1.ProcessOutput) error { return stream.Send(&slipwayv1.ShellResponse{Output: out}) })
	s.note(ctx, "a shell in a failed step", "build", b.ID, "app", b.App)
	return t.run(ctx, s.front, slipwayv1.ShellService_Shell_FullMethodName, func(ctx context.Context, c builder.Console) (int, error) {
		return s.front.opts.Shells.Shell(ctx, b.Org, b.ID, start.Args, c)
	})
}

// Exec implements ShellService.
func (s *shellService) Exec(stream grpc.BidiStreamingServer[slipwayv1.ExecRequest, slipwayv1.ExecResponse]) error {
	ctx := stream.Context()
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	start := first.GetStart()
	if err := s.checkExec(ctx, start); err != nil {
		return err
	}
	image, err := s.image(ctx, start)
	if err != nil {
		return err
	}
	t := newTalk(start.Terminal, start.Interactive, func() (*slipwayv1.ProcessInput, error) {
		m, err := stream.Recv()
		return m.GetInput(), err
	}, func(out *slipwayv1.ProcessOutput) error { return stream.Send(&slipwayv1.ExecResponse{Output: out}) })
	limit := timeLimit(start)
	ctx, cancel := context.WithTimeoutCause(ctx, limit, failure.Userf(failure.Timeout, "give it more with --time-limit", "the command was ended after %v", limit))
	defer cancel()
	s.note(ctx, "a command in an image", "app", start.App, "image", image)
	return t.run(ctx, s.front, slipwayv1.ShellService_Exec_FullMethodName, func(ctx context.Context, c builder.Console) (int, error) {
		return s.front.opts.Commands.Exec(ctx, builder.Command{Org: caller(ctx).Org, App: start.App, Image: image, Args: start.Args}, c)
	})
}

// note logs who runs something here. What, may hold secrets.
func (s *shellService) note(ctx context.Context, what string, args ...any) {
	p := caller(ctx)
	s.front.opts.Log.InfoContext(ctx, what, append(args, "org", p.Org, "token", p.ID, "name", p.Name)...)
}

// Limits of what a client may ask for.
const (
	maxArgs      = 128 << 10 // bytes of a command
	defaultLimit = 15 * time.Minute
	maxLimit     = 24 * time.Hour
)

func timeLimit(s *slipwayv1.ExecStart) time.Duration {
	if s.TimeLimit == nil {
		return defaultLimit
	}
	return s.TimeLimit.AsDuration()
}

func checkArgs(args []string) error {
	bytes := 0
	for _, a := range args {
		bytes += len(a) + 1
		if strings.ContainsRune(a, 0) {
			return failure.Userf(failure.InvalidArgument, "leave it out", "an argument of the command has a zero byte")
		}
	}
	if bytes > maxArgs {
		return failure.Userf(failure.InvalidArgument, "pass long values on standard input", "the command has %d bytes, %d are allowed", bytes, maxArgs)
	}
	if len(args) > 0 && args[0] == "" {
		return failure.Userf(failure.InvalidArgument, "name the program after --", "the command has no program")
	}
	return nil
}

// checkExec refuses what the caller may not run, or nobody.
func (s *shellService) checkExec(ctx context.Context, start *slipwayv1.ExecStart) error {
	switch {
	case start == nil:
		return failure.Userf(failure.InvalidArgument, "update the client", "the first message must be a start")
	case len(start.App) > 100 || !appName.MatchString(start.App):
		return failure.Userf(failure.InvalidArgument, "name the app with -a", "%q is no name for an app", start.App)
	case len(start.Args) == 0:
		return failure.Userf(failure.InvalidArgument, "give it after --", "there is no command to run")
	}
	if err := checkArgs(start.Args); err != nil {
		return err
	}
	if limit := timeLimit(start); limit <= 0 || limit > maxLimit {
		return failure.Userf(failure.InvalidArgument, fmt.Sprintf("give up to %v", maxLimit), "%v is no time limit for a command", limit)
	}
	p := caller(ctx)
	if start.Environment == "" {
		start.Environment = p.Env
	}
	if err := allowIn(ctx, tokens.ScopeExec, start.App, start.Environment); err != nil {
		return err
	}
	if err := checkCommand(p, start); err != nil {
		return err
	}
	if s.front.opts.Commands == nil {
		return failure.Userf(failure.NotSupported, "run the image elsewhere", "this daemon runs no commands in images")
	}
	return nil
}

func mayNot(cause error, hint, format string, args ...any) error {
	e := failure.Userf(failure.PermissionDenied, hint, format, args...)
	e.Phase, e.Err = failure.Auth, cause
	return e
}

// checkCommand holds a machine-exec token to its command: word for word, in what
// was released, with nobody to type.
func checkCommand(p tokens.Principal, start *slipwayv1.ExecStart) error {
	if p.Type != tokens.TypeMachineExec && len(p.Command) == 0 {
		return nil
	}
	const hint = "use a token made for that command, or an org token"
	switch {
	case len(p.Command) == 0 || !slices.Equal(p.Command, start.Args):
		return mayNot(tokens.ErrDenied, hint, "permission denied: this token may run %s and nothing else, not %s", words(p.Command), words(start.Args))
	case start.Interactive || start.Terminal != nil:
		return mayNot(tokens.ErrDenied, "leave -i and -t out", "permission denied: this token may run %s, without input and without a terminal", words(p.Command))
	case start.Image != "":
		return mayNot(tokens.ErrDenied, "leave --image out", "permission denied: this token may run %s in the image that was released last, and in no other", words(p.Command))
	}
	return nil
}

// words writes a command so that each of its arguments can be told.
func words(args []string) string {
	if len(args) == 0 {
		return "no command"
	}
	out := make([]string, len(args))
	for i, a := range args {
		out[i] = a
		if !plainWord.MatchString(a) {
			out[i] = strconv.Quote(a)
		}
	}
	return "`" + strings.Join(out, " ") + "`"
}

var plainWord = regexp.MustCompile(`^[A-Za-z0-9_./:=@%+,-]+$`)

// digestName is the form of a digest that images have.
var digestName = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// image returns the reference of what is to be run: what was released last, or
// what the caller names in the app's repository, which must be the org's.
func (s *shellService) image(ctx context.Context, start *slipwayv1.ExecStart) (string, error) {
	org, o := caller(ctx).Org, s.front.opts
	if owner, err := accessOf(ctx).guard.Owner(ctx, start.App); err != nil {
		return "", err
	} else if owner != org {
		return "", nothingReleased(start.App, start.Environment)
	}
	switch at := start.Image; {
	case at == "":
		ref, digest, err := o.releases().Released(ctx, org, start.App, start.Environment)
		return ref + "@" + digest, err
	case digestName.MatchString(at):
		return o.Registry + "/" + start.App + "@" + at, nil
	case tagName.MatchString(at):
		return o.Registry + "/" + start.App + ":" + at, nil
	default:
		return "", failure.Userf(failure.InvalidArgument, "give a tag, or @sha256:… with 64 digits", "%q names no image of app %s", at, start.App)
	}
}

func (o *Options) releases() Releases {
	if o.Releases != nil {
		return o.Releases
	}
	return recorded{o.Records, o.Registry}
}

// recorded are the releases on record.
type recorded struct {
	records  *records.Store
	registry string
}

// Released implements [Releases].
func (r recorded) Released(ctx context.Context, org, app, env string) (ref, digest string, err error) {
	q := records.ReleaseQuery{Org: org, App: app, Limit: 1}
	if env != "" {
		q.Env = &env
	}
	last, err := r.records.Releases(ctx, q)
	if err != nil {
		return "", "", err
	}
	if len(last) == 0 {
		return "", "", nothingReleased(app, env)
	}
	return r.registry + "/" + app, last[0].Digest, nil
}
