package main

import (
	"cmp"
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"

	"github.com/slipwayhq/slipway/cmd/slipway/client"
)

func (p *program) buildsShell() *cobra.Command {
	var noTTY bool
	cmd := &cobra.Command{
		Use:   "shell ID [-- CMD…]",
		Short: "Open a shell where a build failed",
		Long: "Shell opens a shell in the sandbox of the RUN step that failed: its file system, environment, user, working\n" +
			"directory and mounts. Secrets are not kept. With CMD it runs that instead. It ends with the exit code of the shell.\n" +
			"At a terminal the shell has one, too; else it reads standard input to its end.",
		Annotations: map[string]string{streams: processLines},
		RunE: func(cmd *cobra.Command, args []string) error {
			before, words, err := command(args, cmd.ArgsLenAtDash(), "the ID of a build")
			if err != nil {
				return client.UserError(cmd.CommandPath()+": "+err.Error(), "See "+cmd.CommandPath()+" --help.")
			}
			c, conn, err := p.connect()
			if err != nil {
				return err
			}
			defer c.Close()
			s := attendance{p: p, input: true, terminal: p.isTerminal() && !noTTY && !p.flags.json}
			return s.run(cmd.Context(), func(ctx context.Context, t *slipwayv1.Terminal, out client.Process) (int, error) {
				code, err := c.Shell(ctx, &slipwayv1.ShellStart{BuildId: before[0], Args: words, Terminal: t}, out)
				return code, explained(conn, err)
			})
		},
	}
	cmd.Flags().BoolVar(&noTTY, "no-tty", false, "use no terminal, even at one")
	return cmd
}

// explained keeps a nil error nil.
func explained(conn *connection, err error) error {
	if err == nil {
		return nil
	}
	return conn.explain(err)
}

// defaultTimeLimit is how long a command may run that is given no other limit.
const defaultTimeLimit = 15 * time.Minute

func (p *program) exec() *cobra.Command {
	var start slipwayv1.ExecStart
	var tty bool
	limit := defaultTimeLimit
	cmd := &cobra.Command{
		Use:   "exec -a APP [flags] -- CMD [ARG…]",
		Short: "Run a command in an app's image",
		Long: "Exec runs a command in a sandbox of the image that was released last, with the environment, user and working\n" +
			"directory of the image. No shell reads the command. Nothing of what it writes is kept. It ends with the command's\n" +
			"exit code; what goes wrong before that is told on standard error, in a line that begins with \"error:\".",
		Annotations: map[string]string{streams: processLines},
		RunE: func(cmd *cobra.Command, args []string) error {
			_, words, err := command(args, cmd.ArgsLenAtDash())
			if err != nil || len(words) == 0 {
				return client.UserError("the command to run is missing", "Give it after --: slipway exec -a APP -- CMD [ARG…]")
			}
			start.App = cmp.Or(start.App, p.getenv("SLIPWAY_APP"), p.getenv("FLY_APP"))
			if start.App == "" {
				return client.UserError("no app is named", "Give -a APP, or set SLIPWAY_APP.")
			}
			if tty && p.flags.json {
				return client.UserError("--tty and --json do not go together", "Leave one of them out.")
			}
			start.Args, start.Image, start.TimeLimit = words, strings.TrimPrefix(start.Image, "@"), durationpb.New(limit)
			c, conn, err := p.connect()
			if err != nil {
				return err
			}
			defer c.Close()
			s := attendance{p: p, input: start.Interactive, terminal: tty}
			return s.run(cmd.Context(), func(ctx context.Context, t *slipwayv1.Terminal, out client.Process) (int, error) {
				start.Terminal = t
				code, err := c.Exec(ctx, &start, out)
				return code, explained(conn, err)
			})
		},
	}
	f := cmd.Flags()
	f.StringVarP(&start.App, "app", "a", "", "`APP` whose image it is (default $SLIPWAY_APP, $FLY_APP)")
	f.StringVar(&start.Environment, "env", "", "the image that was released to `ENVIRONMENT`")
	f.StringVar(&start.Image, "image", "", "another image of the app, by its `TAG` or @DIGEST")
	f.BoolVarP(&start.Interactive, "interactive", "i", false, "pass standard input on")
	f.BoolVarP(&tty, "tty", "T", false, "run it on a terminal")
	f.DurationVar(&limit, "time-limit", defaultTimeLimit, "end the command after this `TIME`, 24h at most")
	return cmd
}
