package classic

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
	"github.com/moby/patternmatcher"

	"github.com/slipwayhq/slipway/builder/base"
	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/builder/layer"
	"github.com/slipwayhq/slipway/layercache"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// copyFlags are what COPY and ADD have in common.
type copyFlags struct {
	what    string
	chown   string
	chmod   string
	exclude []string
	parents bool
	link    bool
	src     instructions.SourcesAndDest
}

// copy carries out COPY.
func (s *stage) copy(ctx, steps context.Context, st *step, cmd *instructions.CopyCommand, done *slipwayv1.StepDone) error {
	flags := copyFlags{what: "COPY", chown: cmd.Chown, chmod: cmd.Chmod, exclude: cmd.ExcludePatterns, parents: cmd.Parents, link: cmd.Link, src: cmd.SourcesAndDest}
	if slices.ContainsFunc(cmd.SourcePaths, isURL) {
		return failure.Userf(failure.DockerfileInvalid, "use ADD for a URL", "COPY failed: source can't be a URL for COPY")
	}
	if cmd.From != "" {
		return s.copyFrom(ctx, steps, st, cmd.From, flags, done)
	}
	t, err := s.fromContext(steps, flags, flags.src.SourcePaths)
	if err != nil {
		return err
	}
	return s.transfer(ctx, steps, st, t, done)
}

// fromContext returns the transfer of files of the build context.
func (s *stage) fromContext(ctx context.Context, f copyFlags, patterns []string) (*transfer, error) {
	t, err := s.newTransfer(f)
	if err != nil {
		return nil, err
	}
	files, err := s.build.files(ctx)
	if err != nil {
		return nil, err
	}
	t.from, t.context, t.patterns = files, true, patterns
	return t, t.choose(patterns)
}

func (s *stage) newTransfer(f copyFlags) (*transfer, error) {
	t := &transfer{
		what: f.what, dest: destination(s.node.image.Config.WorkingDir, f.src.DestPath), chown: f.chown, parents: f.parents, link: f.link,
	}
	if t.parents && !strings.HasSuffix(t.dest, "/") {
		t.dest += "/" // directories come into it
	}
	if f.chmod != "" {
		set, err := parseMode(f.chmod)
		if err != nil {
			return nil, failure.Userf(failure.DockerfileInvalid, "write octal digits like 0755, or changes like u=rwX,go=rX", "%s --chmod=%s: %v", f.what, f.chmod, err)
		}
		t.chmod = set
	}
	if len(f.exclude) > 0 {
		pm, err := patternmatcher.New(f.exclude)
		if err != nil {
			return nil, failure.Userf(failure.DockerfileInvalid, "mend the pattern", "%s --exclude: %v", f.what, err)
		}
		t.exclude, t.excludes = pm, f.exclude
	}
	for _, c := range f.src.SourceContents {
		content := c.Data
		if c.Expand {
			out, _, err := shell.NewLex(s.build.file.escape).ProcessWord(content, s.environment())
			if err != nil {
				return nil, unexpanded(err)
			}
			content = out
		}
		t.inline = append(t.inline, inlineFile{name: c.Path, content: content})
	}
	return t, nil
}

// destination completes a destination. It ends in "/" where it can only be a
// directory.
func destination(workdir, dest string) string {
	slash := strings.HasSuffix(dest, "/") || dest == "." || strings.HasSuffix(dest, "/.")
	if !path.IsAbs(dest) {
		dest = path.Join("/", workdir, dest)
	}
	dest = path.Clean(dest)
	if slash && dest != "/" {
		dest += "/"
	}
	return dest
}

// comment is the instruction as history and key show it, around the hash.
func (t *transfer) comment(hash string, dest string) string {
	var flags strings.Builder
	if t.chown != "" {
		flags.WriteString("--chown=" + t.chown + " ")
	}
	if t.chmod != nil {
		flags.WriteString("--chmod=" + t.chmod.String() + " ")
	}
	if t.parents {
		flags.WriteString("--parents ")
	}
	return t.what + " " + flags.String() + hash + " in " + dest + " "
}

// parts is a transfer's key: a text under a name, and the flags that history
// does not show.
func (t *transfer) parts(name, text string) []layercache.Part {
	parts := []layercache.Part{{Name: name, Value: text}, {Name: "exclude", Value: t.excluded()}}
	if t.link {
		parts = append(parts, layercache.Part{Name: "link", Value: "true"})
	}
	return parts
}

func (t *transfer) excluded() string {
	if t.exclude == nil {
		return ""
	}
	var all []string
	for _, p := range t.exclude.Patterns() {
		all = append(all, fmt.Sprintf("%t %q", p.Exclusion(), p.String()))
	}
	return strings.Join(all, ",")
}

// transfer carries out a COPY or ADD whose files are known.
func (s *stage) transfer(ctx, steps context.Context, st *step, t *transfer, done *slipwayv1.StepDone) error {
	hash, err := t.hash(ctx)
	if err != nil {
		return err
	}
	comment := t.comment(hash, destOf(st))
	c := s.drafted(t)
	c.image, c.createdBy, c.alone = cloneImage(s.node.image), nopFS(&s.node.image, comment), s.alone(t)
	c.key = fixed(t.parts("instruction", comment)...)
	c.inputs, c.reads = s.transferInputs(st, t, hash), []*transfer{t}
	return s.apply(ctx, steps, st, c, done)
}

// destOf is the destination as written, variables replaced.
func destOf(st *step) string {
	switch cmd := st.cmd.(type) {
	case *instructions.CopyCommand:
		return cmd.DestPath
	case *instructions.AddCommand:
		return cmd.DestPath
	}
	return ""
}

// drafted returns the change of a transfer of the context's files.
func (s *stage) drafted(t *transfer) *change {
	return drafted(func(ctx context.Context, d *draft) error {
		if t.context {
			if err := s.summon(ctx, t, d); err != nil {
				return err
			}
		}
		return s.plan(ctx, t, d)
	})
}

// plan drafts a transfer's layer.
func (s *stage) plan(ctx context.Context, t *transfer, d *draft) error {
	if err := t.fetch(ctx); err != nil {
		return err
	}
	if t.link {
		d.below = nothing{}
	}
	uid, gid, err := s.owner(ctx, t, d.node)
	if err != nil {
		return err
	}
	return t.plan(d, uid, gid)
}

// summon has the contents of a transfer sent, in the background: the layer is
// made of them as they arrive.
func (s *stage) summon(ctx context.Context, t *transfer, d *draft) error {
	need, err := t.entries()
	if err != nil {
		return err
	}
	ctx, d.abandon = context.WithCancel(ctx)
	s.build.aside(func() {
		defer d.abandon()
		// What fails to come fails again where it is read.
		_ = s.build.job.Session.Need(ctx, need)
	})
	return nil
}

// drafted returns a change whose layer plan drafts. The draft is made once,
// over the snapshot or the ledger of the tree below, whichever is there.
func drafted(plan func(ctx context.Context, d *draft) error) *change {
	var mu sync.Mutex
	var made *draft
	get := func(ctx context.Context, n *node, below tree) (*draft, error) {
		mu.Lock()
		defer mu.Unlock()
		if made != nil {
			return made, nil
		}
		d := newDraft(n, below)
		if err := plan(ctx, d); err != nil {
			return nil, err
		}
		made = d
		return made, nil
	}
	return &change{
		write: func(ctx context.Context, n *node, w *layer.Writer) error {
			d, err := get(ctx, n, ledgerTree{n.stage.ledger})
			if err != nil {
				return err
			}
			err = d.write(ctx, w.Entry)
			if err != nil && d.abandon != nil {
				d.abandon() // the rest need not travel
			}
			return err
		},
		fill: func(ctx context.Context, n *node, snap *layercache.Snapshot) error {
			d, err := get(ctx, n, layersTree(snap.Lowers()))
			if err != nil {
				return err
			}
			return d.create(ctx, snap.Upper())
		},
	}
}

// copyFrom carries out COPY --from. The step is found by the identity of what
// it copies from, or else by the content that it copies: a source that was
// rebuilt to the same files is a hit.
func (s *stage) copyFrom(ctx, steps context.Context, st *step, from string, f copyFlags, done *slipwayv1.StepDone) error {
	src, err := s.origin(steps, st, from)
	if err != nil {
		return err
	}
	t, err := s.newTransfer(f)
	if err != nil {
		return err
	}
	v := &fromStage{stage: s, src: src, transfer: t, patterns: f.src.SourcePaths, dest: f.src.DestPath}
	image := s.node.image
	draw := drafted(func(ctx context.Context, d *draft) error { return s.plan(ctx, t, d) })
	return s.apply(ctx, steps, st, &change{
		image: cloneImage(image), alone: s.alone(t),
		from:   src,
		inputs: v.inputs(st, from),
		key:    v.key,
		also:   v.contentKey,
		write: func(ctx context.Context, n *node, w *layer.Writer) error {
			comment, err := v.comment(ctx)
			if err != nil {
				return err
			}
			n.createdBy = nopFS(&image, comment)
			return draw.write(ctx, n, w)
		},
		fill: func(ctx context.Context, n *node, snap *layercache.Snapshot) error {
			if err := v.open(ctx); err != nil {
				return err
			}
			return draw.fill(ctx, n, snap)
		},
	}, done)
}

// A fromStage is what COPY --from reads.
type fromStage struct {
	stage    *stage
	src      *node
	transfer *transfer
	patterns []string
	dest     string

	mu   sync.Mutex
	hash string
}

func (v *fromStage) key(ctx context.Context) ([]layercache.Part, error) {
	if err := v.src.wait(ctx); err != nil {
		return nil, err
	}
	text := v.transfer.comment(fmt.Sprintf("%q of %s", v.patterns, v.src.id), v.dest)
	return v.transfer.parts("instruction", text), nil
}

func (v *fromStage) contentKey(ctx context.Context) ([]layercache.Part, error) {
	comment, err := v.comment(ctx)
	return v.transfer.parts("copied", comment), err
}

// open mounts the source and finds the files, once.
func (v *fromStage) open(ctx context.Context) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.openLocked(ctx)
}

func (v *fromStage) openLocked(ctx context.Context) error {
	if v.transfer.from != nil {
		return nil
	}
	dir, err := v.src.mountTree(ctx)
	if err != nil {
		return err
	}
	found := *v.transfer
	found.from = dirFS(dir)
	if err := found.choose(v.patterns); err != nil {
		return err
	}
	*v.transfer = found
	return nil
}

// comment is the instruction with the hash of what it copies.
func (v *fromStage) comment(ctx context.Context) (string, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.hash == "" {
		if err := v.openLocked(ctx); err != nil {
			return "", err
		}
		hash, err := v.transfer.hash(ctx)
		if err != nil {
			return "", err
		}
		v.hash = hash
	}
	return v.transfer.comment(v.hash, v.dest), nil
}

// origin returns the node that --from names.
func (s *stage) origin(ctx context.Context, st *step, from string) (*node, error) {
	if dep := s.build.stageNamed(from, s.index); dep != nil {
		return dep.result(ctx)
	}
	img := s.other[from]
	if img == nil {
		return nil, failure.Userf(failure.DockerfileInvalid, "name a stage or an image", "invalid from flag value %s", from)
	}
	if n := s.pulled[from]; n != nil {
		return n, nil
	}
	n, err := s.imageNode(ctx, st, img)
	if err == nil {
		s.pulled[from] = n
	}
	return n, err
}

// imageNode pulls an image to copy from.
func (s *stage) imageNode(ctx context.Context, st *step, img *base.Image) (*node, error) {
	layers, err := s.build.pull(ctx, img, st, nil)
	if err != nil {
		return nil, err
	}
	n := &node{stage: s, step: st, made: make(chan struct{}), base: layers, image: baseConfig(img.Config)}
	n.settle()
	return n, n.err
}

// mountTree mounts the node's whole tree read-only, until the build ends.
func (n *node) mountTree(ctx context.Context) (string, error) {
	n.mounting.Lock()
	defer n.mounting.Unlock()
	if n.mounted != "" {
		return n.mounted, nil
	}
	name, err := n.rootSnapshot(ctx)
	if err != nil {
		return "", err
	}
	b := n.stage.build
	dir, err := os.MkdirTemp(b.opts.Scratch, "view-")
	if err != nil {
		return "", err
	}
	b.mounts.add(dir)
	if name != "" {
		lowers, err := b.job.Cache.View(ctx, name)
		if err == nil {
			err = mount.All(readOnly(lowers), dir)
		}
		if err != nil {
			return "", fmt.Errorf("mount %s: %w", name, err)
		}
	}
	n.mounted = dir
	return dir, nil
}

func readOnly(lowers []string) []mount.Mount {
	if len(lowers) == 1 {
		return []mount.Mount{{Type: "bind", Source: lowers[0], Options: []string{"rbind", "ro"}}}
	}
	return []mount.Mount{{Type: "overlay", Source: "overlay", Options: []string{"lowerdir=" + strings.Join(lowers, ":")}}}
}

// mounts are the trees that a build has mounted.
type mounts struct {
	mu   sync.Mutex
	dirs []string
}

func (m *mounts) add(dir string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dirs = append(m.dirs, dir)
}

// close unmounts all of them.
func (m *mounts) close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var errs []error
	for _, dir := range m.dirs {
		err := mount.UnmountAll(dir, 0)
		if err == nil {
			err = os.Remove(dir)
		}
		errs = append(errs, err)
	}
	m.dirs = nil
	return errors.Join(errs...)
}
