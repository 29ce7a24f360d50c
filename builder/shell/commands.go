package shell

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/oklog/ulid/v2"

	"github.com/slipwayhq/slipway/builder"
	"github.com/slipwayhq/slipway/builder/base"
	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/builder/layer"
	"github.com/slipwayhq/slipway/builder/sandbox"
	"github.com/slipwayhq/slipway/layercache"
	"github.com/slipwayhq/slipway/limits"
)

// CommandsOptions tunes [Commands].
type CommandsOptions struct {
	Runner   Runner
	Cache    *layercache.Store
	Bases    *base.Resolver
	Unpacker *layer.Unpacker
	Network  sandbox.Mode
	Limits   sandbox.Limits
	MaxSize  int64 // of an image, and of what a command may write beside it; less than 1 means no limit
	Most     int   // commands at a time; 0 means 32
	Log      *slog.Logger
}

// Commands runs commands in images. It is safe for concurrent use.
type Commands struct {
	opts  CommandsOptions
	seats chan struct{} // one for each command
}

// NewCommands returns Commands.
func NewCommands(o CommandsOptions) *Commands {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Commands{o, make(chan struct{}, cmp.Or(o.Most, 32))}
}

// Exec runs a command with the environment, the user and the working directory
// of the image's config, and returns its exit code. Nothing of it is kept but
// the image's layers, which the cache may need again. It ends with ctx, whose
// cause it then returns. The caller has made sure that the org may run what it
// asks for.
func (x *Commands) Exec(ctx context.Context, cmd builder.Command, c builder.Console) (int, error) {
	if c.Stdin != nil {
		defer c.Stdin.Close()
	}
	leave, err := sit(x.seats, "commands run")
	if err != nil {
		return 0, err
	}
	defer leave()
	code, err := x.exec(ctx, cmd, c)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = cause
	}
	return code, err
}

func (x *Commands) exec(ctx context.Context, cmd builder.Command, c builder.Console) (code int, err error) {
	cache := x.opts.Cache.Org(cmd.Org)
	id := "exec-" + strings.ToLower(ulid.Make().String())
	lease, err := cache.Lease(ctx, id, 0)
	if err != nil {
		return 0, err
	}
	defer func() { _ = lease.Release(context.WithoutCancel(ctx)) }()
	ctx = lease.Context(ctx)
	img, snap, err := x.unpack(ctx, cache, cmd)
	if err != nil {
		return 0, imageFailure(cmd.Image, err)
	}
	defer func() {
		if failed := snap.Discard(context.WithoutCancel(ctx)); failed != nil {
			x.opts.Log.WarnContext(ctx, "discard what a command wrote", "id", id, "err", failed)
		}
	}()
	code, err = x.run(ctx, img, snap, cmd.Args, c)
	return code, explain(err)
}

// unpack returns a place to write to on top of the image. Layers that the cache
// has unpacked are not unpacked again.
func (x *Commands) unpack(ctx context.Context, cache *layercache.Cache, cmd builder.Command) (*base.Image, *layercache.Snapshot, error) {
	platform, err := base.Default("")
	if err != nil {
		return nil, nil, err
	}
	nobody := func(context.Context, string) (authn.AuthConfig, error) { return authn.AuthConfig{}, nil }
	img, err := x.opts.Bases.Resolve(ctx, cmd.Image, platform, nobody)
	if err != nil {
		return nil, nil, err
	}
	layers, err := x.opts.Bases.Pull(ctx, cache, img, base.PullOptions{App: cmd.App, Max: cmp.Or(x.opts.MaxSize, limits.DefaultMax), Unpack: true})
	if err != nil {
		return nil, nil, err
	}
	name, err := x.opts.Unpacker.Snapshot(ctx, cache, layers)
	if err != nil {
		return nil, nil, err
	}
	snap, err := cache.Prepare(ctx, name)
	return img, snap, err
}

func (x *Commands) run(ctx context.Context, img *base.Image, snap *layercache.Snapshot, args []string, c builder.Console) (int, error) {
	config := img.Config.Config
	p := &sandbox.Process{
		Lowers: snap.Lowers(), Upper: snap.Upper(), Work: snap.Work(), Volatile: true,
		Env: config.Env, Dir: config.WorkingDir, User: config.User, Volumes: slices.Sorted(maps.Keys(config.Volumes)),
		Network: x.opts.Network, Limits: x.opts.Limits,
	}
	r := newRoom()
	go func() {
		defer close(r.over)
		r.err = r.run(x.opts.Runner, p, x.opts.MaxSize)
	}()
	defer func() { r.end(errEmpty); <-r.over }()
	if err := r.wait(ctx); err != nil {
		return 0, err
	}
	return r.exec(ctx, args, c)
}

// imageFailure says why there is no image to run something in.
func imageFailure(ref string, err error) error {
	var platform *base.PlatformError
	switch {
	case errors.Is(err, base.ErrNotFound):
		return failure.Userf(failure.NotFound, "deploy the app again; the registry may have lost the image", "there is no image %s", ref)
	case errors.As(err, &platform):
		return failure.Userf(failure.PlatformMismatch, "commands run on the daemon's own kind of machine", "%v", err)
	case errors.Is(err, base.ErrInvalid):
		return failure.Userf(failure.ImageInvalid, "build the image again", "%v", err)
	}
	return fmt.Errorf("unpack image: %w", err)
}
