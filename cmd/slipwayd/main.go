// Command slipwayd is the Slipway daemon: it builds images for clients and
// pushes them. main.go reads as a list of its parts; config.go has the flags.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/slipwayhq/slipway/builder/buildkit"
)

// version is set by the linker.
var version = "0.1.0-dev"

// readApart is the argument of the process that reads a Dockerfile for the
// daemon. It is for nobody else.
const readApart = "read-dockerfile-apart"

func main() {
	if len(os.Args) == 2 && os.Args[1] == readApart {
		exit(buildkit.ReadApart(context.Background()))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	exit(command().ExecuteContext(ctx))
}

func exit(err error) {
	if err == nil {
		os.Exit(0)
	}
	fmt.Fprintf(os.Stderr, "slipwayd: %v\n", err)
	os.Exit(1)
}

func command() *cobra.Command {
	var c config
	cmd := &cobra.Command{
		Use:           "slipwayd",
		Short:         "Build container images for slipway deploy, and push them",
		Args:          cobra.NoArgs,
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := c.complete(cmd.Flags(), os.LookupEnv); err != nil {
				return err
			}
			return run(cmd.Context(), &c)
		},
	}
	c.register(cmd.Flags())
	return cmd
}

// run starts the daemon and serves until ctx ends. That is no error, also when
// it comes before the daemon is ready.
func run(ctx context.Context, c *config) error {
	log := c.logger()
	slog.SetDefault(log)
	routeLogrus(log)
	unlock, err := lockRoot(c.root)
	if err != nil {
		return err
	}
	defer unlock()
	d, err := start(ctx, c, log)
	if err != nil && ctx.Err() != nil {
		log.Info("stopped before it was ready", "err", err)
		return nil
	}
	if err != nil {
		return err
	}
	err = d.serve(ctx)
	return errors.Join(err, d.close())
}

// lockRoot makes the root directory and takes it for this process. The lock
// ends with the process, however it ends.
func lockRoot(root string) (unlock func(), err error) {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, fmt.Errorf("root: %w", err)
	}
	f, err := os.OpenFile(root+"/lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("root: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("another slipwayd uses %s; stop it, or give this one its own --root", root)
		}
		return nil, fmt.Errorf("lock %s: %w", root, err)
	}
	return func() { f.Close() }, nil
}
