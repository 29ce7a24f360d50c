// Command slipway is the client of a Slipway daemon: it deploys build contexts
// as images and looks after builds, cache and login.
//
// Start with root.go for the commands and deploy.go for the one that matters.
// What is said over the wire is in package client, what people and programs
// see of a build in package progress.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/slipwayhq/slipway/cmd/slipway/client"
)

// version is set by the linker.
var version = "dev"

func main() {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-signals
		cancel() // stops what runs, in order
		<-signals
		os.Exit(client.ExitCancelled)
	}()
	code := run(ctx, &environment{
		stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr,
		getenv: os.Getenv, loginFile: defaultLoginFile(os.Getenv), version: version,
	}, os.Args[1:])
	os.Exit(code)
}
