package buildkit

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/filesync"
	"github.com/tonistiigi/fsutil"
	fstypes "github.com/tonistiigi/fsutil/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
)

// A liar is a session that serves files as it likes.
type liar struct {
	filesync.UnimplementedFileSyncServer
	packets []*fstypes.Packet
	asked   chan struct{} // closed when it was asked for files
	hang    bool
}

func (l *liar) Register(s *grpc.Server) { filesync.RegisterFileSyncServer(s, l) }

func (l *liar) DiffCopy(stream filesync.FileSync_DiffCopyServer) error {
	if l.asked != nil {
		close(l.asked)
	}
	for _, p := range l.packets {
		if err := stream.Send(p); err != nil {
			return err
		}
	}
	for l.hang {
		if _, err := stream.Recv(); err != nil {
			return err
		}
	}
	var p fstypes.Packet
	for {
		if err := stream.RecvMsg(&p); err != nil {
			return err
		}
		if p.Type == fstypes.PACKET_REQ { // more than was announced, and then less
			for _, data := range [][]byte{make([]byte, 1000), nil} {
				if err := stream.Send(&fstypes.Packet{Type: fstypes.PACKET_DATA, ID: p.ID, Data: data}); err != nil {
					return err
				}
			}
		}
		if p.Type == fstypes.PACKET_FIN || p.Type == fstypes.PACKET_ERR {
			return nil
		}
	}
}

func stat(path string, mode os.FileMode, size int64) *fstypes.Packet {
	return &fstypes.Packet{Type: fstypes.PACKET_STAT, Stat: &fstypes.Stat{Path: path, Mode: uint32(mode), Size: size}}
}

var noMore = &fstypes.Packet{Type: fstypes.PACKET_STAT}

// filesOf solves the files of a session.
func filesOf(ctx context.Context, t *testing.T, c *client.Client, s session.Attachable) error {
	t.Helper()
	ended := make(chan error, 1)
	opened, err := session.NewSession(ctx, "")
	fatal(t, err)
	opened.Allow(s)
	go func() { ended <- opened.Run(ctx, dialer(c)) }()
	_, err = c.Solve(ctx, marshal(t, llb.Local("context", llb.SessionID(opened.ID()))), client.SolveOpt{
		LocalMounts: map[string]fsutil.FS{"context": mustFS(t)}, SharedSession: opened, SessionPreInitialized: true,
	}, nil)
	opened.Close()
	<-ended
	return err
}

func mustFS(t *testing.T) fsutil.FS {
	t.Helper()
	fs, err := fsutil.NewFS(t.TempDir())
	fatal(t, err)
	return fs
}

// A session that lies about its files gets nowhere with it.
func TestAPILies(t *testing.T) {
	h := openHouse(t, -1)
	c := h.client("acme//one")
	outside := filepath.Join(t.TempDir(), "evil")
	up := "../../../../../../../../../../.." + outside
	for name, packets := range map[string][]*fstypes.Packet{
		"up":           {stat(up, 0o644, 3), noMore},
		"absolute":     {stat(outside, 0o644, 3), noMore},
		"through link": {{Type: fstypes.PACKET_STAT, Stat: &fstypes.Stat{Path: "a", Mode: uint32(os.ModeSymlink | 0o777), Linkname: filepath.Dir(outside)}}, stat("a/evil", 0o644, 3), noMore},
		"hard link":    {{Type: fstypes.PACKET_STAT, Stat: &fstypes.Stat{Path: "a", Mode: 0o644, Linkname: "/etc/passwd"}}, noMore},
		"out of order": {stat("b", 0o644, 1), stat("a", 0o644, 1), noMore},
		"data first":   {{Type: fstypes.PACKET_DATA, ID: 77, Data: []byte("x")}},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			err := filesOf(ctx, t, c, &liar{packets: packets})
			is(t, name, err, codes.InvalidArgument, "")
			if _, err := os.Lstat(outside); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("wrote outside: %v", err)
			}
		})
	}
	if _, err := c.Solve(t.Context(), file(t, "/a", "b"), pushed(ownHost+"/shop:1"), nil); err != nil {
		t.Errorf("another build: %v", err)
	}
}

// hang is a frontend that asks until it gets no answer.
func hang(in chan struct{}) gateway.BuildFunc {
	return func(ctx context.Context, g gateway.Client) (*gateway.Result, error) {
		close(in)
		for {
			if _, err := g.Inputs(ctx); err != nil {
				return nil, err
			}
			time.Sleep(time.Millisecond)
		}
	}
}

// A client may go at any time; nothing of it is left, and others go on.
func TestAPIVanish(t *testing.T) {
	h := openHouse(t, -1)
	other := h.client("acme//two")
	phases := map[string]func(ctx context.Context, t *testing.T, c *client.Client, in chan struct{}) error{
		"files": func(ctx context.Context, t *testing.T, c *client.Client, in chan struct{}) error {
			return filesOf(ctx, t, c, &liar{asked: in, hang: true})
		},
		"frontend": func(ctx context.Context, _ *testing.T, c *client.Client, in chan struct{}) error {
			_, err := c.Build(ctx, client.SolveOpt{}, "", hang(in), nil)
			return err
		},
		"push": func(ctx context.Context, t *testing.T, c *client.Client, in chan struct{}) error {
			h.mu.Lock()
			h.blocked, h.reached = make(chan struct{}), in
			h.mu.Unlock()
			_, err := c.Solve(ctx, file(t, "/a", t.Name()), pushed(ownHost+"/gone:1"), nil)
			return err
		},
	}
	_, err := other.Solve(t.Context(), file(t, "/a", "first"), pushed(ownHost+"/shop:1"), nil)
	fatal(t, err)
	for name, run := range phases {
		t.Run(name, func(t *testing.T) {
			c := h.client("acme//one")
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			in, ended := make(chan struct{}), make(chan error, 1)
			go func() { ended <- run(ctx, t, c, in) }()
			<-in
			c.Close() // as if the process had died
			h.idle()
			cancel()
			if err := <-ended; err == nil {
				t.Error("the client had its build")
			}
			h.mu.Lock()
			h.blocked, h.reached = nil, nil
			h.mu.Unlock()
			if _, err := other.Solve(t.Context(), file(t, "/a", t.Name()), pushed(ownHost+"/shop:1"), nil); err != nil {
				t.Errorf("another build: %v", err)
			}
		})
	}
	repo, err := h.registry.Repository("gone")
	fatal(t, err)
	if _, _, err := repo.Manifest(t.Context(), "1"); err == nil {
		t.Error("the image of a client that is gone was pushed")
	}
	left := ""
	for range 100 {
		if left = working(); left == "" {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if left != "" {
		t.Errorf("goroutines go on:\n%s", left)
	}
}

// working returns the stacks of goroutines that serve calls or are part of
// builds.
func working() string {
	stacks := make([]byte, 4<<20)
	var out []string
	for s := range strings.SplitSeq(string(stacks[:runtime.Stack(stacks, true)]), "\n\n") {
		if !strings.Contains(s, "_test.go") && (strings.Contains(s, "slipway/builder/buildkit.(*API)") || strings.Contains(s, "slipway/builder/buildkit.(*solve)") ||
			strings.Contains(s, "slipway/builder.(*") || strings.Contains(s, "control.(*Controller).S")) {
			out = append(out, s)
		}
	}
	return strings.Join(out, "\n\n")
}

// A daemon that stops ends builds with a reason, and takes no new ones.
func TestAPIStop(t *testing.T) {
	h := openHouse(t, -1)
	c := h.client("acme//one")
	in, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		_, err := c.Build(t.Context(), client.SolveOpt{}, "", hang(in), nil)
		ended <- err
	}()
	<-in
	drained := make(chan struct{})
	go func() { h.api.Drain(); close(drained) }()
	for !h.draining() {
		time.Sleep(time.Millisecond)
	}
	_, err := h.client("acme//two").Solve(t.Context(), file(t, "/a", "b"), client.SolveOpt{}, nil)
	is(t, "a new build", err, codes.Unavailable, "the daemon is stopping")
	select {
	case <-drained:
		t.Error("drained while a build runs")
	default:
	}
	h.api.Stop()
	is(t, "the build", <-ended, codes.Unavailable, "the daemon stopped")
	<-drained
}

func (h *house) draining() bool {
	h.api.mu.Lock()
	defer h.api.mu.Unlock()
	return h.api.draining
}
