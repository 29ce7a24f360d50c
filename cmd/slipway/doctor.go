package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"

	"github.com/slipwayhq/slipway/cmd/slipway/client"
)

// maxSkew is how far apart clocks may be before tokens and logs suffer.
const maxSkew = 5 * time.Second

// diagnosis is what doctor found, as JSON has it.
type diagnosis struct {
	OK     bool    `json:"ok"`
	Checks []check `json:"checks"`

	failure *client.Error // the first, for the exit code
}

type check struct {
	Name   string `json:"name"`
	Status string `json:"status"` // "ok", "warning", "failed"
	Detail string `json:"detail"`
	Hint   string `json:"hint"`
}

func (d *diagnosis) add(name, status, detail, hint string) {
	d.Checks = append(d.Checks, check{name, status, detail, hint})
	if status == "failed" && d.failure == nil {
		d.failure = client.NewError(client.CodeInternal, slipwayv1.Blame_BLAME_BUILDER, name, "")
	}
}

func (d *diagnosis) fail(name string, err error) {
	e := client.AsError(err)
	if d.failure == nil {
		d.failure = e
	}
	d.add(name, "failed", e.GetMessage(), e.GetHint())
}

func (p *program) doctor() *cobra.Command {
	return &cobra.Command{
		Use: "doctor", Short: "Check the way to the daemon, and what the daemon needs",
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, conn, err := p.connect()
			if err != nil {
				return err
			}
			defer c.Close()
			d := examine(cmd.Context(), c, conn)
			if err := p.print(d, d.write); err != nil {
				return err
			}
			if d.failure != nil {
				return &shownError{d.failure.ExitCode()}
			}
			return nil
		},
	}
}

// examine goes as far as it can get.
func examine(ctx context.Context, c *client.Client, conn *connection) *diagnosis {
	d := &diagnosis{Checks: []check{}}
	defer func() { d.OK = d.failure == nil }()
	sent := time.Now()
	info, err := c.Info(ctx)
	took := time.Since(sent)
	daemon := "daemon " + conn.Address.String()
	if err != nil {
		if e := client.AsError(err); e.ExitCode() == client.ExitAuth {
			d.add(daemon, "ok", "it answers", "")
			d.fail("token", conn.explain(e))
			return d
		}
		d.fail(daemon, err)
		return d
	}
	d.daemon(daemon, info)
	d.token(ctx, c, conn)
	for _, check := range info.GetChecks() {
		d.add(check.GetName(), enumName("CHECK_STATUS_", check.GetStatus()), check.GetDetail(), check.GetHint())
	}
	d.clock(info, sent, took)
	return d
}

func (d *diagnosis) daemon(name string, info *slipwayv1.InfoResponse) {
	detail := "slipwayd " + info.GetVersion()
	if info.GetStarted() != nil {
		detail += ", up " + span(info.GetNow().AsTime().Sub(info.GetStarted().AsTime()))
	}
	if got := info.GetProtocol(); got != protocol {
		d.add(name, "failed", fmt.Sprintf("%s, protocol %d; this client speaks %d", detail, got, protocol), "Use the client and the daemon of one release.")
		return
	}
	d.add(name, "ok", detail+", protocol matches", "")
}

func (d *diagnosis) token(ctx context.Context, c *client.Client, conn *connection) {
	who, err := c.WhoAmI(ctx)
	if err != nil {
		d.fail("token", conn.explain(err))
		return
	}
	id := newIdentity(who, conn)
	detail := fmt.Sprintf("%s, from %s, %s", id.title(), conn.tokenFrom, id.validity())
	if conn.hidden() {
		d.add("token", "warning", detail, "It hides the saved login for "+conn.saved.Address+".")
		return
	}
	d.add("token", "ok", detail, "")
}

// clock compares the daemon's clock with ours at the middle of the call.
func (d *diagnosis) clock(info *slipwayv1.InfoResponse, sent time.Time, took time.Duration) {
	if info.GetNow() == nil {
		return
	}
	skew := info.GetNow().AsTime().Sub(sent.Add(took / 2)).Abs()
	detail := fmt.Sprintf("%.1f s apart", skew.Seconds())
	if skew > maxSkew+took {
		d.add("clock", "warning", detail, "Tokens may seem expired, or not yet valid: set both clocks by NTP.")
		return
	}
	d.add("clock", "ok", detail, "")
}

var marks = map[string]string{"ok": "✓", "warning": "!", "failed": "✗", "": "·"}

func (d *diagnosis) write(w io.Writer) {
	width := 0
	for _, c := range d.Checks {
		width = max(width, len([]rune(c.Name)))
	}
	for _, c := range d.Checks {
		fmt.Fprintf(w, "%s %s%s   %s\n", marks[c.Status], c.Name, strings.Repeat(" ", width-len([]rune(c.Name))), c.Detail)
		if c.Hint != "" && c.Status != "ok" {
			fmt.Fprintf(w, "  %s   hint: %s\n", strings.Repeat(" ", width), c.Hint)
		}
	}
}
