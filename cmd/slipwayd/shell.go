package main

import (
	"context"

	"github.com/slipwayhq/slipway/builder/base"
	"github.com/slipwayhq/slipway/builder/layer"
	"github.com/slipwayhq/slipway/builder/sandbox"
	"github.com/slipwayhq/slipway/builder/shell"
)

// openKeeper opens what keeps failed steps, which ends before the cache and the
// sandbox do.
func (d *daemon) openKeeper(context.Context) error {
	d.keeper = shell.NewKeeper(shell.Options{
		Runner: d.runner, Cache: d.cache, For: d.config.keepFailed, MostBytes: d.config.cacheBytes / 5,
		MaxSize: d.config.maxRootFSBytes, Log: d.log.With("part", "shell"),
	})
	d.closing(func() error { d.keeper.Close(context.Background()); return nil })
	return nil
}

// commands runs what people ask for in images.
func (d *daemon) commands(bases *base.Resolver, unpacker *layer.Unpacker) *shell.Commands {
	return shell.NewCommands(shell.CommandsOptions{
		Runner: d.runner, Cache: d.cache, Bases: bases, Unpacker: unpacker, Network: d.config.networkMode, Limits: d.stepLimits(),
		MaxSize: d.config.maxRootFSBytes, Log: d.log.With("part", "shell"),
	})
}

// stepLimits are those of everything that runs in the sandbox.
func (d *daemon) stepLimits() sandbox.Limits {
	return sandbox.Limits{Memory: d.config.buildMemoryBytes, CPUs: d.config.buildCPUs, Pids: d.config.buildPids}
}
