package classic

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/shell"

	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/builder/sandbox"
	"github.com/slipwayhq/slipway/layercache"
)

// mountHint is where the options of mounts are.
const mountHint = "see docs/dockerfile.md for the options of RUN --mount"

// sourcesOf names the stages and images that an instruction reads.
func sourcesOf(cmd instructions.Command) []string {
	switch cmd := cmd.(type) {
	case *instructions.CopyCommand:
		if cmd.From != "" {
			return []string{cmd.From}
		}
	case *instructions.RunCommand:
		var from []string
		for _, m := range instructions.GetMounts(cmd) {
			if m.From != "" && m.From != "scratch" {
				from = append(from, m.From)
			}
		}
		return from
	}
	return nil
}

// checkMounts refuses mounts that cannot work, unless a variable decides that.
func (s *stage) checkMounts(st *step, cmd *instructions.RunCommand) error {
	lex, none := shell.NewLex(s.build.file.escape), shell.EnvsFromSlice(nil)
	err := cmd.Expand(func(word string) (string, error) {
		st.variable = st.variable || strings.ContainsRune(word, '$')
		out, _, err := lex.ProcessWord(word, none)
		return out, err
	})
	for _, m := range instructions.GetMounts(cmd) {
		if err == nil {
			err = checkMount(m)
		}
	}
	if err == nil || st.variable {
		return nil
	}
	return mountFailure(err)
}

func mountFailure(err error) error {
	return failure.Userf(failure.DockerfileInvalid, mountHint, mountWhat+": %v", err)
}

func checkMount(m *instructions.Mount) error {
	switch {
	case m.Type == instructions.MountTypeSSH && m.Source != "":
		return errors.New("ssh does not support source")
	case path.IsAbs(m.Target) && path.Clean(m.Target) == "/":
		return fmt.Errorf("invalid mount target %q", m.Target)
	}
	return nil
}

// A runMount is one --mount of a RUN step, with all that its options leave out.
type runMount struct {
	*instructions.Mount
	target string       // absolute; "" is a secret that is only a variable
	id     string       // of a cache, secret or agent
	source *mountSource // of a bind or cache; nil if it begins empty
}

// runMounts are the mounts of one RUN step.
type runMounts struct {
	stage *stage
	step  *step
	list  []*runMount
}

// runMounts reads the mounts of a step, whose variables have been replaced.
func (s *stage) runMounts(ctx context.Context, st *step, cmd *instructions.RunCommand) (*runMounts, error) {
	out := &runMounts{stage: s, step: st}
	agents := 0
	for _, in := range instructions.GetMounts(cmd) {
		if err := checkMount(in); err != nil {
			return nil, mountFailure(err)
		}
		m := &runMount{Mount: in, id: in.CacheID, target: in.Target}
		switch m.Type {
		case instructions.MountTypeSecret:
			m.secretDefaults()
		case instructions.MountTypeSSH:
			m.agentDefaults(agents)
			agents++
		default:
			m.fileDefaults(s.node.image.Config.WorkingDir)
		}
		if m.target == "/" {
			return nil, mountFailure(fmt.Errorf("invalid mount target %q", in.Target))
		}
		var err error
		if m.source, err = s.mountSource(ctx, st, in); err != nil {
			return nil, err
		}
		out.list = append(out.list, m)
	}
	return out, nil
}

// fileDefaults is for all that shows files of this side. A target is relative
// to the working directory.
func (m *runMount) fileDefaults(workdir string) {
	if m.id == "" {
		m.id = path.Clean(m.Target)
	}
	m.target = path.Clean(destination(workdir, m.Target))
}

// agentDefaults is for the n-th agent of a step.
func (m *runMount) agentDefaults(n int) {
	if m.id == "" {
		m.id = "default"
	}
	if m.target == "" {
		m.target = fmt.Sprintf("/run/buildkit/ssh_agent.%d", n)
	}
	m.target = path.Join("/", m.target)
}

// secretDefaults takes the id from the source or the target, the target and the
// variable's name from the id.
func (m *runMount) secretDefaults() {
	if m.Source != "" {
		m.id = m.Source
	}
	if m.id == "" {
		m.id = path.Base(m.target)
	}
	if m.Env != nil && *m.Env == "" {
		m.Env = &m.id
	}
	if m.target == "" && m.Env != nil {
		return
	}
	if m.target == "" {
		m.target = "/run/secrets/" + path.Base(m.id)
	}
	m.target = path.Join("/", m.target)
}

// key returns what the step depends on: what binds show, and of the others how
// the process sees them, never what is in them. It may wait for other stages.
func (r *runMounts) key(ctx context.Context) ([]layercache.Part, error) {
	var parts []layercache.Part
	for _, m := range r.list {
		value := fmt.Sprintf("%s ro=%t", m.Type, m.ReadOnly)
		switch m.Type {
		case instructions.MountTypeTmpfs:
			value += fmt.Sprintf(" size=%d", m.SizeLimit)
		case instructions.MountTypeSecret, instructions.MountTypeSSH:
			value += fmt.Sprintf(" id=%q required=%t %s", m.id, m.Required, m.look())
			if m.Env != nil {
				value += fmt.Sprintf(" env=%q", *m.Env)
			}
		case instructions.MountTypeCache:
			value += " " + m.look()
		}
		if m.source != nil {
			id, err := m.source.identity(ctx)
			if err != nil {
				return nil, err
			}
			value += " of " + id
		}
		parts = append(parts, layercache.Part{Name: "mount " + m.target, Value: value})
	}
	return parts, nil
}

// inputs lists for people what the mounts show. The identity of a stage is
// known when it is made.
func (r *runMounts) inputs() (out []layercache.Part) {
	var files []string
	for _, m := range r.list {
		switch {
		case m.source == nil:
		case m.source.files != nil:
			files = append(files, m.source.hash)
		default:
			out = append(out, layercache.Part{Name: inStage + " " + m.From, Value: shortID(m.source.tree.id)})
		}
	}
	if len(files) > 0 {
		out = append(out, layercache.Part{Name: inFiles, Value: short(strings.Join(files, " "))})
	}
	return out
}

// reads lists what the mounts show of the context.
func (r *runMounts) reads() (out []*transfer) {
	for _, m := range r.list {
		if m.source != nil && m.source.files != nil {
			out = append(out, m.source.files)
		}
	}
	return out
}

// from returns a stage or image that is mounted: in a forecast, one that would
// be built anew before all others.
func (r *runMounts) from() (n *node) {
	for _, m := range r.list {
		if m.source != nil && m.source.tree != nil && (n == nil || m.source.tree.ghost) {
			n = m.source.tree
		}
	}
	return n
}

// look is what the options say of owner and mode.
func (m *runMount) look() string {
	var text []string
	for _, o := range []struct {
		name, format string
		value        *uint64
	}{{"mode", "%s=%o", m.Mode}, {"uid", "%s=%d", m.UID}, {"gid", "%s=%d", m.GID}} {
		if o.value != nil {
			text = append(text, fmt.Sprintf(o.format, o.name, *o.value))
		}
	}
	return strings.Join(text, ",")
}

func (m *runMount) uid() int { return int(or(m.UID, 0)) }
func (m *runMount) gid() int { return int(or(m.GID, 0)) }

func or(v *uint64, def uint64) uint64 {
	if v == nil {
		return def
	}
	return *v
}

// prepare adds the mounts to a process. What it holds for them is let go by
// release, after the process has ended and also when prepare fails.
func (r *runMounts) prepare(ctx context.Context, p *sandbox.Process) (release func(), err error) {
	h := &held{}
	shown := make([]*sandbox.Mount, len(r.list))
	// What can fail soon, then what takes long, then what others wait for.
	for i, m := range r.list {
		if shown[i], err = r.private(ctx, m, p); err != nil {
			return h.release, err
		}
	}
	for i, m := range r.list {
		if m.Type != instructions.MountTypeBind {
			continue
		}
		if shown[i], err = m.bind(ctx); err != nil {
			return h.release, err
		}
	}
	if err := r.caches(ctx, shown, h); err != nil {
		return h.release, err
	}
	for _, m := range shown {
		if m != nil {
			p.Mounts = append(p.Mounts, *m)
		}
	}
	return h.release, nil
}

func (m *runMount) bind(ctx context.Context) (*sandbox.Mount, error) {
	source, err := m.source.open(ctx)
	return &sandbox.Mount{Target: m.target, Source: source, ReadOnly: m.ReadOnly, Discard: !m.ReadOnly}, err
}

// maxSecret is as in BuildKit.
const maxSecret = 500 << 10

// private makes what is the process's own: memory, secrets and agents. What the
// client does not have and the step does not require is left out.
func (r *runMounts) private(ctx context.Context, m *runMount, p *sandbox.Process) (*sandbox.Mount, error) {
	switch m.Type {
	case instructions.MountTypeTmpfs:
		return &sandbox.Mount{Target: m.target, ReadOnly: m.ReadOnly, Size: m.SizeLimit}, nil
	case instructions.MountTypeSecret:
		return r.secret(ctx, m, p)
	case instructions.MountTypeSSH:
		return r.agent(m, p)
	}
	return nil, nil
}

func (r *runMounts) secret(ctx context.Context, m *runMount, p *sandbox.Process) (*sandbox.Mount, error) {
	value, ok, err := r.stage.build.job.Session.Secret(ctx, m.id)
	switch {
	case err != nil:
		return nil, err
	case !ok && m.Required:
		return nil, failure.Userf(failure.InvalidArgument, fmt.Sprintf("give it with --build-secret id=%s,src=FILE or id=%s,env=NAME", m.id, m.id),
			"the step requires the secret %s, which was not given", m.id)
	case !ok:
		return nil, nil
	case len(value) > maxSecret:
		return nil, failure.Userf(failure.InvalidArgument, "bring large files by COPY, or from another stage",
			"the secret %s has %d bytes, more than the %d that a secret may have", m.id, len(value), maxSecret)
	}
	if m.Env != nil {
		p.SecretEnv = append(p.SecretEnv, *m.Env+"="+string(value))
	}
	if m.target == "" {
		return nil, nil
	}
	return &sandbox.Mount{
		Target: m.target, Data: append([]byte{}, value...), ReadOnly: true,
		Mode: uint32(or(m.Mode, 0o400)), UID: m.uid(), GID: m.gid(),
	}, nil
}

// socketVariable tells programs where the agent is.
const socketVariable = "SSH_AUTH_SOCK="

func (r *runMounts) agent(m *runMount, p *sandbox.Process) (*sandbox.Mount, error) {
	job := r.stage.build.job
	if !slices.Contains(job.GetAgentIds(), m.id) {
		if m.Required {
			return nil, failure.Userf(failure.InvalidArgument, "give it with --ssh "+m.id,
				"the step requires the SSH agent %s, which was not given", m.id)
		}
		return nil, nil
	}
	if !slices.ContainsFunc(p.Env, func(kv string) bool { return strings.HasPrefix(kv, socketVariable) }) {
		p.Env = append(p.Env, socketVariable+m.target)
	}
	out := &sandbox.Mount{Target: m.target, Mode: uint32(or(m.Mode, 0o600)), UID: m.uid(), GID: m.gid()}
	out.Dial = func(ctx context.Context) (io.ReadWriteCloser, error) { return job.Session.Agent(ctx, m.id) }
	return out, nil
}
