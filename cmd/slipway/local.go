package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/slipwayhq/slipway/cmd/slipway/client"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// A localDaemon is a slipwayd of the user's own, for one deploy. Its cache stays
// in the user's cache directory for the next one.
type localDaemon struct {
	client.Options
	cmd   *exec.Cmd
	ended chan struct{} // closed when it has ended
}

// startLocal starts the daemon and returns when it is ready. While another
// deploy has it, it waits.
func (p *program) startLocal(ctx context.Context, note func(string)) (*localDaemon, error) {
	if runtime.GOOS != "linux" {
		return nil, client.UserError("--local-only builds on Linux only", "Deploy to a daemon: leave --local-only out.")
	}
	program, err := findDaemon()
	if err != nil {
		return nil, client.UserError("--local-only: "+err.Error(), "Put slipwayd beside slipway, or into a directory of PATH.")
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil, client.UserError("--local-only: "+err.Error(), "Set XDG_CACHE_HOME to a directory.")
	}
	root := filepath.Join(cache, "slipway", "local")
	for told := false; ; {
		d, said, err := p.launch(ctx, program, root)
		if err == nil || !strings.Contains(said, "another slipwayd uses") {
			return d, err
		}
		if !told {
			note("another deploy builds on this machine; this one waits for it")
			told = true
		}
		select {
		case <-time.After(500 * time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// findDaemon looks for slipwayd beside this program, then in PATH.
func findDaemon() (string, error) {
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), "slipwayd")
		if st, err := os.Stat(beside); err == nil && st.Mode().IsRegular() {
			return beside, nil
		}
	}
	return exec.LookPath("slipwayd")
}

// launch starts the daemon once; said is the last of what it logged if it did
// not become ready.
func (p *program) launch(ctx context.Context, program, root string) (d *localDaemon, said string, err error) {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, "", client.UserError("--local-only: "+err.Error(), "Set XDG_CACHE_HOME to a directory that can be written.")
	}
	log, err := os.OpenFile(root+".log", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, "", client.UserError("--local-only: "+err.Error(), "Set XDG_CACHE_HOME to a directory that can be written.")
	}
	out, in := io.Pipe()
	d = &localDaemon{ended: make(chan struct{})}
	d.cmd = exec.Command(program, "--root", root, "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--log-format", "json", "--keep-failed", "0")
	d.cmd.Stderr = in
	alone(d.cmd)
	started := make(chan error, 1)
	go func() {
		// A child may be tied to the thread that made it.
		runtime.LockOSThread()
		defer close(d.ended)
		err := d.cmd.Start()
		started <- err
		if err == nil {
			_ = d.cmd.Wait() // how it ended is in its log
		}
		in.Close()
	}()
	if err := <-started; err != nil {
		log.Close()
		return nil, "", client.UserError("--local-only: start slipwayd: "+err.Error(), "")
	}
	ready := make(chan logLine, 1)
	last := make(chan string, 1)
	go func() {
		defer log.Close()
		last <- follow(out, log, ready)
	}()
	select {
	case line := <-ready:
		return d, "", p.adopt(d, root, line.GRPC)
	case said = <-last:
		<-d.ended
		e := client.NewError("unavailable", slipwayv1.Blame_BLAME_BUILDER, "--local-only: slipwayd does not start: "+cmp.Or(said, "it says nothing"), "Its log is in "+root+".log; it wants to run as root.")
		return nil, said, e
	case <-ctx.Done():
		d.stop()
		return nil, "", ctx.Err()
	}
}

// logLine is what of the daemon's log matters here.
type logLine struct {
	Level, Msg, Err string
	GRPC            string `json:"grpc"`
}

// follow copies the log and returns the last thing that went wrong.
func follow(r io.Reader, to io.Writer, ready chan<- logLine) (wrong string) {
	lines := bufio.NewScanner(io.TeeReader(r, to))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var l logLine
		if json.Unmarshal(lines.Bytes(), &l) != nil {
			wrong = lines.Text()
			continue
		}
		switch {
		case l.Msg == "slipwayd is ready":
			ready <- l
		case l.Level == "ERROR":
			wrong = strings.TrimSuffix(l.Msg+": "+l.Err, ": ")
		}
	}
	_, _ = io.Copy(to, r) // a line that was too long
	return wrong
}

// adopt says how the daemon is reached.
func (p *program) adopt(d *localDaemon, root, addr string) error {
	token, err := os.ReadFile(filepath.Join(root, "admin.token"))
	if err == nil {
		d.Address, err = client.ParseAddress(addr)
	}
	if err != nil {
		d.stop()
		return client.UserError("--local-only: "+err.Error(), "Its log is in "+root+".log.")
	}
	d.Token = strings.TrimSpace(string(token))
	d.Version, d.Timeout, d.Reattach, d.CancelWait = p.version, p.flags.timeout, p.reattach, p.cancelWait
	return nil
}

// stop ends the daemon, which finishes what it writes.
func (d *localDaemon) stop() {
	_ = d.cmd.Process.Signal(os.Interrupt)
	<-d.ended
}

// home lets a local build use the registry of the daemon that the user means:
// images there may be bases, and without a target the push goes there.
func (d *deployment) home(ctx context.Context, c *client.Client, conn *connection, a *answers) error {
	needed := d.start.GetPush() && len(d.start.GetTargets()) == 0
	if !needed {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeout(ctx, 2*time.Second)
		defer stop()
	}
	info, err := c.Info(ctx)
	if err != nil && needed {
		return client.UserError("--local-only pushes to the registry of the daemon at "+conn.Address.HostPort()+", which cannot be asked: "+client.AsError(err).GetMessage(),
			"Name another place with --push-to, or build without a push: --build-only.")
	}
	host := info.GetRegistry()
	if host != "" {
		token, err := conn.bearer(ctx)
		if err != nil {
			return err
		}
		a.keychain = authn.NewMultiKeychain(tokenFor{host, token}, a.keychain)
	}
	if needed {
		d.start.Targets = []string{host + "/" + d.start.GetApp()}
	}
	if needed && d.start.GetRelease() {
		return d.keepRelease(ctx, c)
	}
	return nil
}

// keepRelease leaves the release of a local build to the daemon whose registry
// gets the image.
func (d *deployment) keepRelease(ctx context.Context, c *client.Client) error {
	env := d.start.GetEnvironment()
	if env != "" {
		if _, err := c.Environment(ctx, env, d.start.GetApp()); err != nil {
			return err
		}
	}
	d.release = &slipwayv1.CreateReleaseRequest{App: d.start.GetApp(), Environment: env}
	d.start.Release, d.start.Environment = false, ""
	return nil
}

// releaseHome releases what a local build has pushed, and says so in its result.
func (d *deployment) releaseHome(ctx context.Context, c *client.Client, res *slipwayv1.Result) error {
	if d.release == nil || res.GetStatus() != slipwayv1.ResultStatus_RESULT_STATUS_SUCCEEDED || d.start.GetPlanOnly() {
		return nil
	}
	d.release.Image = res.GetDigest()
	r, err := c.CreateRelease(ctx, d.release)
	if err != nil {
		return err
	}
	res.ReleaseId, res.ReleaseVersion, res.Environment = r.GetId(), r.GetVersion(), r.GetEnvironment()
	return nil
}

// tokenFor is a keychain for one registry, whose password is a Slipway token.
type tokenFor struct{ host, token string }

func (t tokenFor) Resolve(r authn.Resource) (authn.Authenticator, error) {
	if r.RegistryStr() != t.host || t.token == "" {
		return authn.Anonymous, nil
	}
	return &authn.Basic{Username: "slipway", Password: t.token}, nil
}

// local starts the private daemon and redirects the deploy to it. The caller
// stops it.
func (d *deployment) local(ctx context.Context, c *client.Client, conn *connection, a *answers) (*client.Client, *localDaemon, error) {
	if err := d.home(ctx, c, conn, a); err != nil {
		return nil, nil, err
	}
	daemon, err := d.p.startLocal(ctx, d.warn)
	if err != nil {
		return nil, nil, err
	}
	mine, err := client.New(daemon.Options)
	if err != nil {
		daemon.stop()
		return nil, nil, fmt.Errorf("--local-only: %w", err)
	}
	return mine, daemon, nil
}
