package registry

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"reflect"

	"github.com/sirupsen/logrus"
)

// newEntry returns the logger of distribution that logs to log.
func newEntry(log *slog.Logger) *logrus.Entry {
	l := logrus.New()
	l.SetOutput(io.Discard)
	l.SetFormatter(silent{})
	l.AddHook(&bridge{log})
	return logrus.NewEntry(l)
}

// withLog returns a context in which distribution logs to entry. Distribution
// looks its logger up in the context, by a key that it keeps to itself, and
// else takes the one of the process: that one is not ours to change.
func withLog(ctx context.Context, entry *logrus.Entry) context.Context {
	return &logContext{ctx, entry}
}

type logContext struct {
	context.Context
	entry *logrus.Entry
}

func (c *logContext) Value(key any) any {
	if t := reflect.TypeOf(key); t != nil && t.String() == "dcontext.loggerKey" {
		return c.entry
	}
	return c.Context.Value(key)
}

type silent struct{}

func (silent) Format(*logrus.Entry) ([]byte, error) { return nil, nil }

// A bridge passes what distribution logs on to slog. Distribution reports each
// 404 and each refusal as an error: what happens within a request is of
// interest to those who debug, unless the registry itself failed.
type bridge struct{ log *slog.Logger }

func (*bridge) Levels() []logrus.Level { return logrus.AllLevels }

func (b *bridge) Fire(e *logrus.Entry) error {
	ctx := e.Context
	if ctx == nil {
		ctx = context.Background()
	}
	level := level(e)
	if !b.log.Enabled(ctx, level) {
		return nil
	}
	attrs := make([]slog.Attr, 0, len(logged))
	for _, f := range logged {
		if v, ok := e.Data[f.from]; ok {
			attrs = append(attrs, slog.String(f.to, fmt.Sprint(v)))
		}
	}
	b.log.LogAttrs(ctx, level, "registry: "+e.Message, attrs...)
	return nil
}

func level(e *logrus.Entry) slog.Level {
	if _, request := e.Data["http.request.id"]; request {
		if status, ok := e.Data["http.response.status"].(int); ok && status >= 500 {
			return slog.LevelError
		}
		return slog.LevelDebug
	}
	switch {
	case e.Level <= logrus.ErrorLevel:
		return slog.LevelError
	case e.Level == logrus.WarnLevel:
		return slog.LevelWarn
	}
	return slog.LevelDebug
}

// logged are the fields that are passed on. URIs and user names are not among
// them: the first carry the state of uploads, the second may be tokens.
var logged = []struct{ from, to string }{
	{"http.request.method", "method"},
	{"http.response.status", "status"},
	{"vars.name", "repository"},
	{"vars.reference", "reference"},
	{"vars.digest", "digest"},
	{"err.code", "code"},
	{"err.message", "reason"},
	{"err.detail", "detail"},
	{logrus.ErrorKey, "error"},
}
