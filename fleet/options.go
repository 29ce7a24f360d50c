package fleet

import (
	"log/slog"
	"time"
)

// Options tunes an engine. A nil *Options means the defaults.
type Options struct {
	Backlog  int           // unfinished jobs of one app, queued or running; 0 means 10
	Keep     time.Duration // how long entries and ended jobs are kept; 0 means 7 days
	LogBytes int64         // all logs together; the oldest entries go first; 0 means 4 GiB
	Lease    time.Duration // silence after which a job of another process is handed out again; 0 means 30 s
	Replicas int           // copies in a cluster; 0 means 1
	Log      *slog.Logger  // nil means none
}

func (o *Options) backlog() int {
	if o == nil || o.Backlog <= 0 {
		return 10
	}
	return o.Backlog
}

func (o *Options) keep() time.Duration {
	if o == nil || o.Keep <= 0 {
		return 7 * 24 * time.Hour
	}
	return o.Keep
}

func (o *Options) logBytes() int64 {
	if o == nil || o.LogBytes <= 0 {
		return 4 << 30
	}
	return o.LogBytes
}

func (o *Options) lease() time.Duration {
	if o == nil || o.Lease <= 0 {
		return 30 * time.Second
	}
	return o.Lease
}

func (o *Options) replicas() int {
	if o == nil || o.Replicas <= 0 {
		return 1
	}
	return o.Replicas
}

func (o *Options) log() *slog.Logger {
	if o == nil || o.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return o.Log
}
