package fleet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// startServer runs a NATS server in this process that keeps its data in dir and
// listens nowhere. Everything is on disk before it is acknowledged.
func startServer(ctx context.Context, dir string, log *slog.Logger) (*server.Server, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	srv, err := server.NewServer(&server.Options{
		ServerName:             "slipway",
		DontListen:             true,
		JetStream:              true,
		StoreDir:               dir,
		SyncAlways:             true,
		JetStreamMaxMemory:     256 << 20,
		JetStreamMaxStore:      1 << 50, // by default the server stops at a share of the free space it finds now
		DisableJetStreamBanner: true,
		NoSigs:                 true,
	})
	if err != nil {
		return nil, err
	}
	srv.SetLogger(serverLog{log}, false, false)
	srv.Start()
	for !srv.ReadyForConnections(10 * time.Millisecond) {
		if ctx.Err() != nil {
			stopServer(srv)
			return nil, context.Cause(ctx)
		}
	}
	if !srv.JetStreamEnabled() {
		stopServer(srv)
		return nil, errors.New("the store cannot be used; the log says why")
	}
	return srv, nil
}

func stopServer(srv *server.Server) {
	srv.Shutdown()
	srv.WaitForShutdown()
}

// serverLog passes what the server logs on to slog. What it notices is detail to us.
type serverLog struct{ log *slog.Logger }

func (l serverLog) Noticef(f string, v ...any) { l.put(slog.LevelDebug, f, v) }
func (l serverLog) Debugf(f string, v ...any)  { l.put(slog.LevelDebug, f, v) }
func (l serverLog) Tracef(f string, v ...any)  { l.put(slog.LevelDebug, f, v) }
func (l serverLog) Warnf(f string, v ...any)   { l.put(slog.LevelWarn, f, v) }
func (l serverLog) Errorf(f string, v ...any)  { l.put(slog.LevelError, f, v) }
func (l serverLog) Fatalf(f string, v ...any)  { l.put(slog.LevelError, f, v) }

func (l serverLog) put(level slog.Level, format string, v []any) {
	ctx := context.Background()
	if l.log.Enabled(ctx, level) {
		l.log.Log(ctx, level, "nats: "+fmt.Sprintf(format, v...))
	}
}
