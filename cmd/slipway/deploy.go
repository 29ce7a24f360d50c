package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/spf13/cobra"

	"github.com/slipwayhq/slipway/buildctx"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
	"github.com/slipwayhq/slipway/sshagent"

	"github.com/slipwayhq/slipway/cmd/slipway/client"
	"github.com/slipwayhq/slipway/cmd/slipway/progress"
)

func (p *program) deploy() *cobra.Command {
	o := &deployFlags{}
	cmd := &cobra.Command{
		Use:   "deploy [DIR]",
		Short: "Build an image and push it",
		Long: `Deploy sends what the daemon lacks of DIR (default: the working directory),
builds the image there, pushes it and records a release: of the app, or with --env
of the app in an environment, which slipway envs create makes.

The image's name goes to standard output, everything else to standard error.
With --json standard output has JSON lines, the last one of type "result".`,
		Annotations: map[string]string{streams: "result"},
		Args:        cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.levelSet = cmd.Flags().Changed("compression-level")
			d := &deployment{p: p, flags: o, dir: "."}
			if len(args) == 1 {
				d.dir = args[0]
			}
			return d.run(cmd.Context())
		},
	}
	o.register(cmd)
	return cmd
}

// deployment is one run of deploy.
type deployment struct {
	p     *program
	flags *deployFlags
	dir   string
	keys  authn.Keychain // of registries; nil means the user's

	warnSize int64
	secrets  secrets
	agents   agents
	start    *slipwayv1.Start
	recipe   *recipe // nil for a prebuilt image
	show     progress.Display
	build    *buildLog
	release  *slipwayv1.CreateReleaseRequest // of a local build; nil if its daemon makes it
}

// run checks what can be checked here, then prepares, builds and reports. Once
// there is a display, it also shows every failure.
func (d *deployment) run(ctx context.Context) error {
	mode := d.flags.progress
	if d.flags.plan && mode == "auto" {
		mode = "none" // what it finds out is its result
	}
	show, err := d.p.display(mode)
	if err != nil {
		return err
	}
	var plan *forecasts
	if d.flags.plan {
		plan = &forecasts{Display: show}
		show = progress.Multi(plan)
	}
	d.show = show
	d.build = &buildLog{show: show, reattach: cmp.Or(d.p.reattach, time.Minute)}
	res, err := d.deploy(ctx)
	if plan != nil {
		return d.p.foreseen(d.build, plan, res, err, d.app())
	}
	return d.p.finish(d.build, res, err, d.app())
}

func (d *deployment) app() string {
	return cmp.Or(d.start.GetApp(), d.flags.app)
}

func (d *deployment) deploy(ctx context.Context) (*slipwayv1.Result, error) {
	if err := d.check(); err != nil {
		return nil, err
	}
	c, conn, err := d.p.connect()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	home, homeConn := c, conn
	if d.keys == nil {
		d.keys = authn.DefaultKeychain
	}
	ask := &answers{secrets: d.secrets, keychain: d.keys, warn: d.warn}
	if d.flags.localOnly {
		mine, daemon, err := d.local(ctx, c, conn, ask)
		if err != nil {
			return nil, conn.explain(err)
		}
		defer daemon.stop()
		defer mine.Close()
		c, conn = mine, &connection{Options: daemon.Options, tokenFrom: "the local daemon"}
	}
	job := client.Job{Start: d.start, Answer: ask.answer, Observer: d.build,
		Agent: func(conn *sshagent.Conn) { d.agents.serve(conn, d.warn) }}
	var src *source
	if d.recipe != nil {
		if src, err = d.open(); err != nil {
			return nil, err
		}
		defer src.Close()
		if conn.Address.Loopback() {
			src.sending.Compress = buildctx.CompressNever
		}
		job.Context = src
	}
	img, err := openImage(ctx, d.start, conn.Address.Loopback())
	if err != nil {
		return nil, err
	}
	if img != nil {
		defer img.Close()
		job.Context = img
	}
	d.show.Begin(d.header(src))
	res, err := c.Build(ctx, job)
	if errors.Is(err, client.ErrDetached) {
		return nil, err
	}
	if err != nil {
		return nil, conn.explain(err)
	}
	if res.GetError() != nil {
		conn.explain(client.FromProto(res.GetError()))
	}
	if err := d.releaseHome(ctx, home, res); err != nil {
		return nil, homeConn.explain(err)
	}
	return res, nil
}

// check reads flags and Dockerfile.
func (d *deployment) check() (err error) {
	if d.start, err = d.flags.start(d.p.getenv); err != nil {
		return err
	}
	d.start.ClientVersion = d.p.version
	if d.warnSize, err = size("--build-context-warn-size", d.flags.warnSize); err != nil {
		return err
	}
	if d.secrets, err = parseSecrets(d.flags.buildSecrets, d.p.getenv); err != nil {
		return err
	}
	d.start.SecretIds = d.secrets.ids()
	if d.agents, err = parseSSH(d.flags.ssh, d.p.getenv); err != nil {
		return err
	}
	d.start.AgentIds = d.agents.ids()
	if d.flags.image != "" {
		return nil
	}
	if d.recipe, err = findDockerfile(d.dir, d.flags.dockerfile, d.p.stdin); err != nil {
		return err
	}
	d.start.Dockerfile = d.recipe.proto()
	return nil
}

// source is a build context as a build sends it. It is scanned while the
// daemon begins: a base image may come, and a fault of the Dockerfile be told,
// while a large context is still being read.
type source struct {
	*buildctx.Dir
	d        *deployment
	scanning buildctx.ScanOptions
	sending  buildctx.SenderOptions
}

// open opens the context and finds the ignore file.
func (d *deployment) open() (*source, error) {
	s := &source{d: d, scanning: buildctx.ScanOptions{
		Dockerfile: d.recipe.file,
		IgnoreFile: d.flags.ignoreFile,
		Warn:       func(err error) { d.warn(err.Error()) },
		Progress:   scanNotes(d.show),
	}}
	cache, err := buildctx.UserHashCache(d.dir)
	if err == nil { // else every file is read
		s.scanning.HashCache = cache
	}
	if s.Dir, err = buildctx.Open(d.dir, &s.scanning); err != nil {
		return nil, scanError(err)
	}
	d.start.Context = &slipwayv1.ContextInfo{IgnoreFile: s.IgnoreFile, IgnorePatterns: uint32(s.IgnorePatterns)}
	return s, nil
}

// Manifest implements [client.Context].
func (s *source) Manifest(ctx context.Context, send func(*slipwayv1.ManifestPart) error) error {
	if err := s.Scan(ctx, &s.scanning); err != nil {
		return scanError(err)
	}
	s.d.warnAboutSize(s)
	return s.ToProto(send)
}

// Send implements [client.Context]. A sender serves one want at a time, so each
// want gets its own.
func (s *source) Send(ctx context.Context, w *slipwayv1.Want, emit func(*slipwayv1.ContentFrame) error) error {
	return buildctx.NewSender(s.Dir.Manifest, s.Dir, &s.sending).Send(ctx, w, emit)
}

// scanError says that a context cannot be read, in the terms of the daemon.
func scanError(err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	code := "context_invalid"
	switch {
	case errors.Is(err, buildctx.ErrUnsupported):
		code = "context_unsupported"
	case errors.Is(err, buildctx.ErrIgnore):
		code = "ignore_invalid"
	case errors.Is(err, buildctx.ErrChanged):
		code = "context_changed"
	}
	e := client.NewError(code, slipwayv1.Blame_BLAME_USER, err.Error(), "")
	e.Phase = "context"
	if code == "context_changed" {
		e.Retryable, e.Hint = true, "Run the command again when nothing writes there, or name it in the ignore file."
	}
	return e
}

// scanNotes tells every ten seconds how far a scan is.
func scanNotes(show progress.Display) func(buildctx.ScanProgress) {
	next := time.Now().Add(10 * time.Second)
	return func(s buildctx.ScanProgress) {
		if time.Now().Before(next) {
			return
		}
		next = time.Now().Add(10 * time.Second)
		text := fmt.Sprintf("  scan             %s files, %s", progress.Count(s.Files), progress.Size(s.Bytes))
		if s.Stale > 0 {
			text += fmt.Sprintf("; hashed %s of %s", progress.Size(s.HashedBytes), progress.Size(s.StaleBytes))
		}
		show.Note(progress.Note{Type: "scan", Text: text, Progress: true, Fields: map[string]any{
			"files": s.Files, "bytes": s.Bytes, "hashed_bytes": s.HashedBytes,
		}})
	}
}

func (d *deployment) header(src *source) progress.Header {
	h := progress.Header{App: d.start.GetApp(), Pipeline: "classic", Image: d.start.GetImage()}
	switch d.start.GetPipeline() {
	case slipwayv1.Pipeline_PIPELINE_BUILDKIT:
		h.Pipeline = "buildkit"
	case slipwayv1.Pipeline_PIPELINE_PREBUILT:
		h.Pipeline = "prebuilt"
	}
	if src != nil {
		h.Dockerfile, h.Content = d.recipe.name, d.recipe.content
		h.IgnoreFile, h.IgnorePatterns = filepath.ToSlash(src.IgnoreFile), src.IgnorePatterns
	}
	return h
}

// warnAboutSize names what makes a context large, before any of it is sent.
func (d *deployment) warnAboutSize(src *source) {
	total := src.Bytes()
	if d.warnSize == 0 || total <= d.warnSize {
		return
	}
	ignore := "there is no ignore file"
	if src.IgnoreFile != "" {
		ignore = "after " + src.IgnoreFile
	}
	note := progress.Note{
		Type: "warning",
		Text: fmt.Sprintf("! the context holds %s in %s files (%s); the largest:", progress.Size(total), progress.Count(src.Files()), ignore),
	}
	largest := []map[string]any{}
	for _, e := range src.Largest(5) {
		path := buildctx.Quote(e.Path)
		if e.Dir {
			path += "/"
		}
		note.Lines = append(note.Lines, fmt.Sprintf("%9s  %s", progress.Size(e.Bytes), path))
		largest = append(largest, map[string]any{"path": strings.ToValidUTF8(e.Path, "�"), "bytes": e.Bytes, "directory": e.Dir})
	}
	hint := "Name what the image does not need in .dockerignore."
	note.Lines = append(note.Lines, "hint: "+hint)
	note.Fields = map[string]any{"message": fmt.Sprintf("the context holds %s", progress.Size(total)), "hint": hint, "line": 0, "context_bytes": total, "largest": largest}
	d.show.Note(note)
}

func (d *deployment) warn(message string) {
	d.show.Note(progress.Note{Type: "warning", Text: "! " + message, Fields: map[string]any{"message": message, "hint": "", "line": 0}})
}
