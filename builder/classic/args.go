package classic

import (
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/frontend/dockerfile/shell"

	"github.com/slipwayhq/slipway/builder/failure"
)

// predefined args may be given without an ARG line. They reach RUN, but
// neither keys nor history.
var predefined = map[string]bool{
	"HTTP_PROXY": true, "http_proxy": true, "HTTPS_PROXY": true, "https_proxy": true, "FTP_PROXY": true,
	"ftp_proxy": true, "NO_PROXY": true, "no_proxy": true, "ALL_PROXY": true, "all_proxy": true,
}

// usedArgs remembers which build args a Dockerfile declared.
type usedArgs struct {
	mu   sync.Mutex
	used map[string]bool
}

func (u *usedArgs) use(name string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.used == nil {
		u.used = map[string]bool{}
	}
	u.used[name] = true
}

func (u *usedArgs) unused(given map[string]string) []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	var out []string
	for _, name := range slices.Sorted(maps.Keys(given)) {
		if !u.used[name] && !predefined[name] {
			out = append(out, name)
		}
	}
	return out
}

// metaArgs evaluates the ARGs before the first FROM.
func (b *build) metaArgs() (map[string]string, error) {
	values := b.platformArgs()
	for name := range predefined {
		if v, ok := b.job.BuildArgs[name]; ok {
			values[name] = v
		}
	}
	lex := shell.NewLex(b.file.escape)
	for _, cmd := range b.file.meta {
		env := shell.EnvsFromSlice(pairs(values)) // a line sees what lines before it set
		for _, arg := range cmd.Args {
			b.args.use(arg.Key)
			if v, ok := b.job.BuildArgs[arg.Key]; ok {
				values[arg.Key] = v
				continue
			}
			if arg.Value == nil {
				continue
			}
			v, _, err := lex.ProcessWord(*arg.Value, env)
			if err != nil {
				return nil, failure.At(unexpanded(err), failure.Preflight, cmd.Location()[0].Start.Line)
			}
			values[arg.Key] = v
		}
	}
	return values, nil
}

// platformArgs are the values of TARGETPLATFORM and its like.
func (b *build) platformArgs() map[string]string {
	p := b.job.Platform
	out := map[string]string{}
	for _, side := range []string{"TARGET", "BUILD"} {
		out[side+"PLATFORM"], out[side+"OS"] = platforms.Format(p), p.OS
		out[side+"ARCH"], out[side+"VARIANT"] = p.Architecture, p.Variant
	}
	return out
}

// A scope holds the ARGs of one stage.
type scope struct {
	build    *build
	declared map[string]*string
}

func newScope(b *build) *scope { return &scope{build: b, declared: map[string]*string{}} }

// declare brings an arg into scope: the build arg wins over the default, the
// default over the value from before the first FROM.
func (s *scope) declare(name string, def *string) {
	s.build.args.use(name)
	if v, ok := s.build.job.BuildArgs[name]; ok {
		s.declared[name] = &v
		return
	}
	if def == nil {
		if v, ok := s.build.meta[name]; ok {
			def = &v
		}
	}
	s.declared[name] = def
}

// values returns the args that a RUN sees: declared ones with a value and
// predefined ones that were given, less those that env hides.
func (s *scope) values(env []string) map[string]string {
	out := map[string]string{}
	for name := range predefined {
		if v, ok := s.build.job.BuildArgs[name]; ok {
			out[name] = v
		}
	}
	for name, v := range s.declared {
		if v != nil {
			out[name] = *v
		}
	}
	for _, kv := range env {
		name, _, _ := strings.Cut(kv, "=")
		delete(out, name)
	}
	return out
}

// recorded returns the part of values that keys and history show.
func (s *scope) recorded(values map[string]string) map[string]string {
	out := map[string]string{}
	for name, v := range values {
		if _, ok := s.declared[name]; ok || !predefined[name] {
			out[name] = v
		}
	}
	return out
}

// pairs returns "name=value" for each value, sorted.
func pairs(values map[string]string) []string {
	out := make([]string, 0, len(values))
	for _, name := range slices.Sorted(maps.Keys(values)) {
		out = append(out, name+"="+values[name])
	}
	return out
}
