package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"

	"github.com/slipwayhq/slipway/cmd/slipway/client"
	"github.com/slipwayhq/slipway/cmd/slipway/progress"
)

func (p *program) builds() *cobra.Command {
	cmd := &cobra.Command{
		Use: "builds", Short: "Look at builds, follow and cancel them",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(p.buildsList(), p.buildsShow(), p.buildsLogs(), p.buildsAttach(), p.buildsCancel(), p.buildsShell())
	return cmd
}

func (p *program) buildsList() *cobra.Command {
	var req slipwayv1.ListBuildsRequest
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List builds, newest first",
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, conn, err := p.connect()
			if err != nil {
				return err
			}
			defer c.Close()
			builds, err := c.ListBuilds(cmd.Context(), &req)
			if err != nil {
				return conn.explain(err)
			}
			records := make([]build, 0, len(builds))
			for _, b := range builds {
				records = append(records, newBuild(b))
			}
			return p.print(records, func(w io.Writer) { tableOfBuilds(w, records) })
		},
	}
	f := cmd.Flags()
	f.StringVarP(&req.App, "app", "a", "", "only builds of `APP`")
	f.Uint32VarP(&req.Limit, "limit", "n", 50, "at most `N` builds, 1000 at the most")
	f.StringVar(&req.BeforeId, "before", "", "only builds older than `ID`")
	return cmd
}

// build is a build's record as JSON has it.
type build struct {
	ID         string           `json:"id"`
	Org        string           `json:"org"`
	App        string           `json:"app"`
	Status     string           `json:"status"` // "queued", "running", "succeeded", "failed", "cancelled"
	Pipeline   string           `json:"pipeline"`
	CreatedBy  string           `json:"created_by"`
	Created    *time.Time       `json:"created"`
	Started    *time.Time       `json:"started"`
	Ended      *time.Time       `json:"ended"`
	DurationMS int64            `json:"duration_ms"`
	Result     *progress.Result `json:"result"`
}

func newBuild(b *slipwayv1.Build) build {
	r := build{
		ID: b.GetId(), Org: b.GetOrg(), App: b.GetApp(), CreatedBy: b.GetCreatedBy(),
		Status: enumName("BUILD_STATUS_", b.GetStatus()), Pipeline: enumName("PIPELINE_", b.GetPipeline()),
		Created: timeOf(b.GetCreated()), Started: timeOf(b.GetStarted()), Ended: timeOf(b.GetEnded()),
		DurationMS: b.GetDuration().AsDuration().Milliseconds(),
	}
	if b.GetResult() != nil {
		r.Result = progress.NewResult(b.GetResult())
	}
	return r
}

// outcome says in one column what came of a build.
func (b *build) outcome() string {
	switch {
	case b.Result == nil:
		return ""
	case b.Result.Error != nil:
		return b.Result.Error.Code
	}
	return cmp.Or(b.Result.Image, b.Result.Digest)
}

func (b *build) took() string {
	if b.DurationMS == 0 {
		return "–"
	}
	return progress.Duration(time.Duration(b.DurationMS) * time.Millisecond)
}

func tableOfBuilds(w io.Writer, builds []build) {
	if len(builds) == 0 {
		fmt.Fprintln(w, "no builds")
		return
	}
	t := tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
	defer t.Flush()
	fmt.Fprintln(t, "ID\tAPP\tSTATUS\tCREATED\tTOOK\tIMAGE OR ERROR")
	for i := range builds {
		b := &builds[i]
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", b.ID, b.App, b.Status, ago(b.Created), b.took(), b.outcome())
	}
}

func (p *program) buildsShow() *cobra.Command {
	var explain bool
	cmd := &cobra.Command{
		Use: "show ID", Short: "Show one build", Args: exactly("the ID of a build"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, conn, err := p.connect()
			if err != nil {
				return err
			}
			defer c.Close()
			if explain {
				return p.explain(cmd.Context(), c, conn, args[0])
			}
			b, err := c.GetBuild(cmd.Context(), args[0])
			if err != nil {
				return conn.explain(err)
			}
			r := newBuild(b)
			return p.print(r, func(w io.Writer) { showBuild(w, &r, b) })
		},
	}
	cmd.Flags().BoolVar(&explain, "explain", false, "say of each step whether it was cached, and if not why")
	return cmd
}

// explain prints why steps of a build were not cached.
func (p *program) explain(ctx context.Context, c *client.Client, conn *connection, id string) error {
	x := &explainer{}
	if _, err := c.Replay(ctx, id, 0, x); err != nil {
		return conn.explain(err)
	}
	e := x.Explain(id)
	return p.print(e, func(w io.Writer) { e.Write(w) })
}

// explainer hears a build's log for what it says of the cache.
type explainer struct{ progress.Explainer }

func (*explainer) Accepted(string, bool) {}
func (*explainer) Lost(*client.Error)    {}
func (*explainer) Reattached(uint64)     {}
func (*explainer) Cancelling()           {}

func showBuild(w io.Writer, b *build, record *slipwayv1.Build) {
	t := tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
	row := func(name, value string) {
		if value != "" {
			fmt.Fprintf(t, "%s\t%s\n", name, value)
		}
	}
	row("build", b.ID)
	row("app", b.App)
	row("status", b.Status)
	row("pipeline", b.Pipeline)
	row("created", fmt.Sprintf("%s by %s", ago(b.Created), cmp.Or(b.CreatedBy, "–")))
	row("took", b.took())
	if r := b.Result; r != nil {
		row("image", r.Image)
		row("digest", r.Digest)
		if r.Steps > 0 {
			row("steps", fmt.Sprintf("%d, %d of them cached", r.Steps, r.CachedSteps))
		}
		if r.RootfsLimit > 0 {
			row("rootfs", fmt.Sprintf("%s of %s", progress.Size(r.RootfsBytes), progress.Size(r.RootfsLimit)))
		}
		if r.CompressedBytes > 0 {
			row("layers", fmt.Sprintf("%d, %s compressed", len(r.Layers), progress.Size(r.CompressedBytes)))
		}
	}
	t.Flush()
	if e := record.GetResult().GetError(); e != nil {
		fmt.Fprintln(w)
		progress.WriteFailure(w, client.FromProto(e))
	}
}

func (p *program) buildsLogs() *cobra.Command {
	var from uint64
	var follow bool
	cmd := &cobra.Command{
		Use: "logs ID", Short: "Print what a build has said so far",
		Long:        "Logs prints a build's log on standard output. With --json it prints the events as JSON lines, as deploy does, and the result if the build has ended.",
		Annotations: map[string]string{streams: "events"},
		Args:        exactly("the ID of a build"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, conn, err := p.connect()
			if err != nil {
				return err
			}
			defer c.Close()
			var show progress.Display
			if p.flags.json {
				show = progress.NewJSON(p.stdout)
			} else {
				_, terminal := asTerminal(p.stdout)
				show = progress.NewPlain(p.stdout, &progress.PlainOptions{Color: terminal && p.color(), Past: !follow})
			}
			log := &buildLog{show: progress.Multi(show), id: args[0], reattach: cmp.Or(p.reattach, time.Minute)}
			if err := p.introduce(cmd.Context(), c, log); err != nil {
				return p.finish(log, nil, conn.explain(err), "")
			}
			watch := c.Replay
			if follow {
				watch = c.Watch
			}
			res, err := watch(cmd.Context(), args[0], from, log)
			if err != nil {
				return p.finish(log, nil, conn.explain(err), "")
			}
			return log.show.Finish(res)
		},
	}
	cmd.Flags().Uint64Var(&from, "from", 0, "begin with event `N`")
	cmd.Flags().BoolVar(&follow, "follow", false, "go on until the build ends")
	return cmd
}

// introduce finds a build and says what it is.
func (p *program) introduce(ctx context.Context, c *client.Client, log *buildLog) error {
	b, err := c.GetBuild(ctx, log.id)
	if err != nil {
		return err
	}
	log.show.Begin(progress.Header{App: b.GetApp(), Pipeline: enumName("PIPELINE_", b.GetPipeline())})
	return nil
}

func (p *program) buildsAttach() *cobra.Command {
	var from uint64
	var mode string
	cmd := &cobra.Command{
		Use: "attach ID", Short: "Follow a build to its end, as its deploy would have",
		Long:        "Attach shows a build and exits as its deploy would have. Interrupting it leaves the build alone.",
		Annotations: map[string]string{streams: "result"},
		Args:        exactly("the ID of a build"),
		RunE: func(cmd *cobra.Command, args []string) error {
			show, err := p.display(mode)
			if err != nil {
				return err
			}
			log := &buildLog{show: show, id: args[0], reattach: cmp.Or(p.reattach, time.Minute)}
			c, conn, err := p.connect()
			if err != nil {
				return p.finish(log, nil, err, "")
			}
			defer c.Close()
			if err := p.introduce(cmd.Context(), c, log); err != nil {
				return p.finish(log, nil, conn.explain(err), "")
			}
			res, err := c.Watch(cmd.Context(), args[0], from, log)
			if err != nil && cmd.Context().Err() != nil {
				e := client.AsError(err)
				e.Message, e.Hint = "interrupted; the build goes on", "slipway builds attach "+args[0]+" follows it again, slipway builds cancel stops it."
			}
			return p.finish(log, res, conn.explain(err), "")
		},
	}
	cmd.Flags().Uint64Var(&from, "from", 0, "begin with event `N`")
	cmd.Flags().StringVar(&mode, "progress", "auto", "`HOW` to show the build: auto, plain, tty or none")
	return cmd
}

func (p *program) buildsCancel() *cobra.Command {
	return &cobra.Command{
		Use: "cancel ID", Short: "Stop a build", Args: exactly("the ID of a build"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, conn, err := p.connect()
			if err != nil {
				return err
			}
			defer c.Close()
			b, err := c.CancelBuild(cmd.Context(), args[0])
			if err != nil {
				return conn.explain(err)
			}
			r := newBuild(b)
			return p.print(r, func(w io.Writer) {
				switch b.GetStatus() {
				case slipwayv1.BuildStatus_BUILD_STATUS_SUCCEEDED, slipwayv1.BuildStatus_BUILD_STATUS_FAILED:
					fmt.Fprintf(w, "%s had ended already: %s\n", r.ID, r.Status)
				case slipwayv1.BuildStatus_BUILD_STATUS_CANCELLED:
					fmt.Fprintf(w, "%s is cancelled; finished steps stay cached\n", r.ID)
				default:
					fmt.Fprintf(w, "%s is being cancelled\n", r.ID)
				}
			})
		},
	}
}
