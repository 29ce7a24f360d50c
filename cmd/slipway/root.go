package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"

	"github.com/slipwayhq/slipway/cmd/slipway/client"
	"github.com/slipwayhq/slipway/cmd/slipway/progress"
)

// environment is all that a run depends on besides its arguments.
type environment struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	getenv         func(string) string
	loginFile      string // where logins are saved
	version        string

	// Patience with connections; zero means the client's defaults.
	reattach, cancelWait time.Duration
}

// program is one run of the command line.
type program struct {
	*environment
	flags  globals
	began  bool   // a command's own code runs: flags and arguments were fine
	caller string // what flags.token is called if it is no flag
	logins *logins

	exchanging exchanging // for the whole run: an ID token is good for one time
}

// globals are the flags that every command has.
type globals struct {
	addr       string
	token      string
	tls        bool
	caFile     string
	skipVerify bool
	insecure   bool
	timeout    time.Duration
	json       bool
}

// run executes the command that args name and returns its exit code. Ending
// ctx interrupts it.
func run(ctx context.Context, env *environment, args []string) int {
	p := &program{environment: env}
	root := p.root()
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	var shown *shownError
	switch {
	case err == nil:
		return client.ExitDone
	case errors.As(err, &shown):
		return shown.code
	case !p.began:
		err = client.UserError(err.Error(), fmt.Sprintf("See %s --help.", cmd.CommandPath()))
	}
	return p.fail(cmd, p.flags.json || wantsJSON(args), client.AsError(err))
}

// fail shows an error that nobody has shown yet.
func (p *program) fail(cmd *cobra.Command, asJSON bool, e *client.Error) int {
	if asJSON {
		switch cmd.Annotations[streams] {
		case processLines:
			newProcessJSON(p.stdout).finish(nil, e)
		case "":
			p.printJSON(map[string]any{"error": progress.NewError(e.Proto())})
		default:
			progress.NewJSON(p.stdout).Finish(&slipwayv1.Result{Status: slipwayv1.ResultStatus_RESULT_STATUS_FAILED, Error: e.Proto()})
		}
	}
	fmt.Fprintln(p.stderr, progress.ErrorLine(e))
	return e.ExitCode()
}

// streams annotates commands whose JSON is lines, the last of type result.
const streams = "json-lines"

// shownError ends a command whose failure the user has seen.
type shownError struct{ code int }

func (e *shownError) Error() string { return fmt.Sprintf("exit code %d", e.code) }

// wantsJSON looks for --json among arguments that did not parse.
func wantsJSON(args []string) bool {
	for _, a := range args {
		switch {
		case a == "--":
			return false
		case a == "--json", a == "--json=true", a == "-j":
			return true
		}
	}
	return false
}

func (p *program) root() *cobra.Command {
	root := &cobra.Command{
		Use:           "slipway",
		Short:         "Build container images on a Slipway daemon and push them",
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       p.version,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRun: func(*cobra.Command, []string) {
			p.began = true
		},
	}
	root.SetIn(p.stdin)
	root.SetOut(p.stdout)
	root.SetErr(p.stderr)
	f := root.PersistentFlags()
	f.StringVar(&p.flags.addr, "addr", "", "daemon's `HOST:PORT`, or https://HOST:PORT (default $SLIPWAY_ADDR, the saved login, "+client.DefaultAddress+")")
	f.StringVarP(&p.flags.token, "access-token", "t", "", "`token` (default $SLIPWAY_API_TOKEN, $FLY_API_TOKEN, $FLY_ACCESS_TOKEN, the saved login)")
	f.BoolVar(&p.flags.tls, "tls", false, "speak TLS, as with an https:// address")
	f.StringVar(&p.flags.caFile, "tls-ca", "", "trust the certificates in `FILE` instead of the system's (default $SLIPWAY_TLS_CA)")
	f.BoolVar(&p.flags.skipVerify, "tls-skip-verify", false, "accept any certificate; anyone on the way can read along")
	f.BoolVar(&p.flags.insecure, "insecure", false, "allow plaintext to another machine, as SLIPWAY_ALLOW_PLAINTEXT=1 does; anyone on the way can read along")
	f.DurationVar(&p.flags.timeout, "timeout", 30*time.Second, "time limit of a call; builds have none")
	f.BoolVarP(&p.flags.json, "json", "j", false, "print JSON on standard output and nothing else there")
	root.AddCommand(
		p.deploy(), p.builds(), p.exec(), p.envs(), p.releases(), p.promote(), p.cache(),
		p.tokens(), p.trust(), p.users(), p.orgs(), p.apps(), p.audit(),
		p.bench(), p.buildkitProxy(), p.mcp(),
		p.login(), p.logout(), p.whoami(), p.doctor(), p.versionCommand(),
	)
	return root
}

// printJSON prints a command's one JSON value.
func (p *program) printJSON(v any) error {
	enc := json.NewEncoder(p.stdout)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("write result: %w", err)
	}
	return nil
}

// print shows v to programs and calls people to show it to the others.
func (p *program) print(v any, people func(w io.Writer)) error {
	if p.flags.json {
		return p.printJSON(v)
	}
	var b strings.Builder
	people(&b)
	if _, err := io.WriteString(p.stdout, b.String()); err != nil {
		return fmt.Errorf("write result: %w", err)
	}
	return nil
}

// exactly checks a command's arguments.
func exactly(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == len(names) {
			return nil
		}
		if len(names) == 0 {
			return fmt.Errorf("%s takes no arguments", cmd.CommandPath())
		}
		return fmt.Errorf("%s takes %s, not %d arguments", cmd.CommandPath(), strings.Join(names, " "), len(args))
	}
}
