package classic

import (
	"archive/tar"
	"context"
	"io"
	"slices"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"

	"github.com/slipwayhq/slipway/builder"
	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/builder/rootfs"
	"github.com/slipwayhq/slipway/limits"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// What fuzz tests need of the parts.
var Decompress = decompress

// FollowDirs resolves links in p, scoped to the merged view of directories.
func FollowDirs(dirs []string, p string) (string, error) { return follow(layersTree(dirs), p, true) }

// FollowLedger resolves links in p, scoped to what a ledger has counted.
func FollowLedger(l *limits.Ledger, p string) (string, error) { return follow(ledgerTree{l}, p, true) }

// Unpack unpacks an archive below a directory of a root file system, as ADD
// does.
func Unpack(ctx context.Context, archive io.Reader, dest string, dirs rootfs.Dirs) error {
	plain, err := decompress(archive)
	if err != nil {
		return err
	}
	defer plain.Close()
	relocate := relocateInto(layersTree(slices.Concat([]string{dirs.Upper}, dirs.Parents)), marks{})
	return piped(
		func(w io.Writer) error { return relocate(w, tar.NewReader(plain), dest) },
		func(r io.Reader) error { return rootfs.Apply(ctx, r, dirs) },
	)
}

// Both drafts the copy over lower directories, and writes the draft in both
// ways: as a layer that is unpacked into one upper directory, and into another.
func (c Copy) Both(ctx context.Context, lowers []string, layer, upper string) error {
	t, err := c.transfer()
	if err != nil {
		return nil
	}
	d := newDraft(nil, layersTree(lowers))
	if err := t.plan(d, c.UID, c.GID); err != nil {
		return nil
	}
	if err := d.unpack(ctx, rootfs.Dirs{Upper: layer, Parents: lowers}); err != nil {
		return err
	}
	return d.create(ctx, upper)
}

type mute struct{ builder.Session }

func (mute) Emit(*slipwayv1.Event) {}

// Rehearse does with each step of a Dockerfile what is done before anything
// runs or is copied, over a context in memory.
func Rehearse(content []byte, files MemoryTree, args map[string]string) error {
	job := &builder.Job{Request: builder.Request{Start: &slipwayv1.Start{BuildArgs: args}}, Session: mute{}}
	job.Platform.OS, job.Platform.Architecture = "linux", "amd64"
	file, err := parse("Dockerfile", content)
	if err != nil {
		return err
	}
	b := &build{Pipeline: New(Options{}), job: job, file: file}
	if err := b.selectStages(); err != nil {
		return err
	}
	b.number()
	for _, s := range b.stages {
		if !s.needed {
			continue
		}
		s.node = s.fromScratch(s.steps[0])
		for _, st := range s.steps[1:] {
			if err := s.rehearse(st, files); err != nil {
				return failure.At(err, failure.Build, st.line)
			}
		}
	}
	return nil
}

func (s *stage) rehearse(st *step, files MemoryTree) error {
	if err := s.expand(st.cmd); err != nil {
		return err
	}
	f, ok := plainCopy(st.cmd)
	switch cmd := st.cmd.(type) {
	case *instructions.CopyCommand:
		f.chmod, f.chown, f.link, f.src = cmd.Chmod, cmd.Chown, cmd.Link, cmd.SourcesAndDest
	case *instructions.AddCommand:
		f.chmod, f.chown, f.link, f.src = cmd.Chmod, cmd.Chown, cmd.Link, cmd.SourcesAndDest
	case *instructions.RunCommand:
		runArgs(shellOf(&s.node.image), cmd)
		return nil
	case *instructions.WorkdirCommand:
		return newDraft(nil, files).workdir(destination("/", cmd.Path))
	default:
		image := cloneImage(s.node.image)
		comment, err := s.configure(&image, st)
		if err != nil {
			return err
		}
		nop(&s.node.image, &image, st.cmd, comment)
		s.node = &node{parent: s.node, stage: s, step: st, image: image, made: make(chan struct{})}
		return s.node.identify()
	}
	for _, p := range f.src.SourcePaths {
		if isGit(p) {
			if _, err := parseGit(p); err != nil {
				return err
			}
		}
		ok = ok && !isURL(p) && !isGit(p)
	}
	t, err := s.newTransfer(f)
	if err != nil || !ok {
		return err
	}
	t.from, t.context = files, true
	if err := t.choose(f.src.SourcePaths); err != nil {
		return err
	}
	if _, err := t.hash(context.Background()); err != nil {
		return err
	}
	return t.plan(newDraft(nil, files), 0, 0)
}
