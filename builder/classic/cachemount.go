package classic

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"os"
	"slices"

	"github.com/containerd/continuity/fs"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/builder/sandbox"
	"github.com/slipwayhq/slipway/layercache"
)

// held are the cache mounts that a step has.
type held struct{ mounts []*layercache.Mount }

func (h *held) release() {
	for _, m := range h.mounts {
		m.Release()
	}
}

// sharings are what BuildKit calls them; shared is the default.
var sharings = map[instructions.ShareMode]layercache.Sharing{
	instructions.MountSharingPrivate: layercache.Private,
	instructions.MountSharingLocked:  layercache.Locked,
}

// A cacheName tells the directories of an app apart.
type cacheName struct{ id, origin string }

// caches takes the step's cache mounts, each directory once. All steps take
// theirs in one order, so that no two wait for each other.
func (r *runMounts) caches(ctx context.Context, shown []*sandbox.Mount, h *held) error {
	names, byName, err := r.cacheUses(ctx)
	if err != nil {
		return err
	}
	for _, name := range names {
		dir, err := r.cache(ctx, name, r.list[byName[name][0]], h)
		if err != nil {
			return err
		}
		for _, i := range byName[name] {
			shown[i] = &sandbox.Mount{Target: r.list[i].target, Source: dir, ReadOnly: r.list[i].ReadOnly}
		}
	}
	return nil
}

// cacheUses returns the directories of the step's cache mounts in the order in
// which they are taken, and which of the mounts show each.
func (r *runMounts) cacheUses(ctx context.Context) (names []cacheName, uses map[cacheName][]int, err error) {
	uses = map[cacheName][]int{}
	for i, m := range r.list {
		if m.Type != instructions.MountTypeCache {
			continue
		}
		name, err := m.cacheName(ctx)
		if err != nil {
			return nil, nil, err
		}
		uses[name] = append(uses[name], i)
	}
	names = slices.SortedFunc(maps.Keys(uses), func(a, b cacheName) int {
		return cmp.Or(cmp.Compare(a.id, b.id), cmp.Compare(a.origin, b.origin))
	})
	return names, uses, nil
}

// cacheName is the id, and what a new directory would begin with.
func (m *runMount) cacheName(ctx context.Context) (cacheName, error) {
	name := cacheName{m.id, m.look()}
	if m.source == nil {
		return name, nil
	}
	of, err := m.source.identity(ctx)
	name.origin += " of " + of
	return name, err
}

func (r *runMounts) cache(ctx context.Context, name cacheName, m *runMount, h *held) (string, error) {
	mount, err := r.stage.build.job.Cache.Mount(ctx, r.cacheOptions(name, m))
	if err != nil {
		return "", err
	}
	h.mounts = append(h.mounts, mount)
	return mount.Dir(), nil
}

func (r *runMounts) cacheOptions(name cacheName, m *runMount) layercache.MountOptions {
	s := r.stage
	return layercache.MountOptions{
		App: s.build.job.App, ID: name.id, Origin: name.origin, Sharing: sharings[m.CacheSharing],
		Fill: m.fillCache,
		Waiting: func() {
			s.note(r.step, "waiting for the cache mount %s (sharing=locked), which another step has", name.id)
		},
	}
}

// fillCache makes the first content of a directory.
func (m *runMount) fillCache(ctx context.Context, dir string) error {
	if m.source != nil {
		from, err := m.source.open(ctx)
		if err != nil {
			return err
		}
		info, err := os.Stat(from)
		if err != nil {
			return err
		}
		if !info.IsDir() {
			return failure.Userf(failure.DockerfileInvalid, "name a directory", "RUN --mount: the source %s of a cache is no directory", m.source.path)
		}
		if err := fs.CopyDir(dir, from); err != nil {
			return fmt.Errorf("copy %s: %w", m.source.path, err)
		}
	}
	if m.UID != nil || m.GID != nil {
		if err := os.Lchown(dir, m.uid(), m.gid()); err != nil {
			return err
		}
	}
	if m.Mode == nil {
		return nil
	}
	return unix.Chmod(dir, uint32(*m.Mode&0o7777))
}
