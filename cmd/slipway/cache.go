package main

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"

	"github.com/slipwayhq/slipway/cmd/slipway/client"
	"github.com/slipwayhq/slipway/cmd/slipway/progress"
)

func (p *program) cache() *cobra.Command {
	cmd := &cobra.Command{
		Use: "cache", Short: "Look at the layer cache and trim it",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(p.cacheUsage(), p.cachePrune())
	return cmd
}

// usage is what the cache holds, as JSON has it.
type usage struct {
	Bytes     uint64      `json:"bytes"`
	Limit     uint64      `json:"limit"`
	DiskFree  uint64      `json:"disk_free"`
	Apps      []appUsage  `json:"apps"`
	Kinds     []kindUsage `json:"kinds"`
	Evictions []eviction  `json:"evictions"`
}

type appUsage struct {
	App      string     `json:"app"`
	Bytes    uint64     `json:"bytes"`
	Records  uint64     `json:"records"`
	LastUsed *time.Time `json:"last_used"`
}

type kindUsage struct {
	Kind  string `json:"kind"`
	Bytes uint64 `json:"bytes"`
	Count uint64 `json:"count"`
}

type eviction struct {
	Time   *time.Time `json:"time"`
	What   string     `json:"what"`
	App    string     `json:"app"`
	Bytes  uint64     `json:"bytes"`
	Reason string     `json:"reason"`
}

func newUsage(u *slipwayv1.UsageResponse) usage {
	r := usage{Bytes: u.GetBytes(), Limit: u.GetLimit(), DiskFree: u.GetDiskFree(), Apps: []appUsage{}, Kinds: []kindUsage{}, Evictions: []eviction{}}
	for _, a := range u.GetApps() {
		r.Apps = append(r.Apps, appUsage{a.GetApp(), a.GetBytes(), a.GetRecords(), timeOf(a.GetLastUsed())})
	}
	for _, k := range u.GetKinds() {
		r.Kinds = append(r.Kinds, kindUsage{k.GetKind(), k.GetBytes(), k.GetCount()})
	}
	for _, e := range u.GetEvictions() {
		r.Evictions = append(r.Evictions, eviction{timeOf(e.GetTime()), e.GetWhat(), e.GetApp(), e.GetBytes(), e.GetReason()})
	}
	return r
}

func (p *program) cacheUsage() *cobra.Command {
	var app string
	cmd := &cobra.Command{
		Use: "usage", Short: "Show what the cache holds, for whom, and what was evicted",
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, conn, err := p.connect()
			if err != nil {
				return err
			}
			defer c.Close()
			u, err := c.CacheUsage(cmd.Context(), app)
			if err != nil {
				return conn.explain(err)
			}
			r := newUsage(u)
			return p.print(r, r.write)
		},
	}
	cmd.Flags().StringVarP(&app, "app", "a", "", "only what builds of `APP` hold")
	return cmd
}

func (u *usage) write(w io.Writer) {
	fmt.Fprintf(w, "%s", progress.Size(u.Bytes))
	if u.Limit > 0 {
		fmt.Fprintf(w, " of %s", progress.Size(u.Limit))
	}
	fmt.Fprintf(w, ", %s free on the disk\n", progress.Size(u.DiskFree))
	t := tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
	if len(u.Kinds) > 0 {
		fmt.Fprintln(t, "\nKIND\tCOUNT\tSIZE")
		for _, k := range u.Kinds {
			fmt.Fprintf(t, "%s\t%s\t%s\n", k.Kind, progress.Count(k.Count), progress.Size(k.Bytes))
		}
		t.Flush()
	}
	if len(u.Apps) > 0 {
		fmt.Fprintln(t, "\nAPP\tRECORDS\tSIZE\tLAST USED")
		for _, a := range u.Apps {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", a.App, progress.Count(a.Records), progress.Size(a.Bytes), ago(a.LastUsed))
		}
		t.Flush()
	}
	if len(u.Evictions) > 0 {
		fmt.Fprintln(t, "\nEVICTED\tWHAT\tAPP\tSIZE\tWHY")
		for _, e := range u.Evictions {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", ago(e.Time), e.What, e.App, progress.Size(e.Bytes), e.Reason)
		}
		t.Flush()
	}
}

func (p *program) cachePrune() *cobra.Command {
	var (
		app, keep string
		all       bool
		olderThan time.Duration
	)
	cmd := &cobra.Command{
		Use: "prune", Short: "Remove what no build needs",
		Long: "Prune removes what was not used for a week, or what the flags say. What running builds hold stays.",
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if all && cmd.Flags().Changed("older-than") {
				return client.UserError("--all and --older-than exclude each other", "")
			}
			req := &slipwayv1.PruneRequest{App: app, All: all}
			if !all {
				req.OlderThan = durationpb.New(olderThan)
			}
			bytes, err := size("--keep-bytes", keep)
			if err != nil {
				return err
			}
			req.KeepBytes = uint64(bytes)
			c, conn, err := p.connect()
			if err != nil {
				return err
			}
			defer c.Close()
			r, err := c.Prune(cmd.Context(), req)
			if err != nil {
				return conn.explain(err)
			}
			freed := map[string]uint64{"freed_bytes": r.GetFreedBytes(), "records": r.GetRecords()}
			return p.print(freed, func(w io.Writer) {
				fmt.Fprintf(w, "freed %s, %s records\n", progress.Size(r.GetFreedBytes()), progress.Count(r.GetRecords()))
			})
		},
	}
	f := cmd.Flags()
	f.StringVarP(&app, "app", "a", "", "only what builds of `APP` hold")
	f.BoolVar(&all, "all", false, "remove everything that is not in use")
	f.DurationVar(&olderThan, "older-than", 7*24*time.Hour, "remove what was not used for `DURATION`")
	f.StringVar(&keep, "keep-bytes", "0", "stop when the cache is down to `SIZE`")
	return cmd
}
