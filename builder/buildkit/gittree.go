package buildkit

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"os"
	"path"
	"strings"
	"time"

	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/solver"

	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/builder/gitfetch"
	"github.com/slipwayhq/slipway/builder/rootfs"
)

// write makes a file system of a fetched tree.
func (i *gitInstance) write(ctx context.Context, job solver.JobContext, tree *gitfetch.Tree) (_ cache.ImmutableRef, err error) {
	top, err := i.open(tree)
	if err != nil {
		return nil, err
	}
	defer top.Close()
	t := i.source.tenant
	ref, err := t.worker.CacheManager().New(ctx, nil, nil, cache.WithRecordType(client.UsageRecordTypeGitCheckout), cache.WithDescription("git "+i.name()))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = ref.Release(context.WithoutCancel(ctx))
		}
	}()
	if err := fillFrom(ctx, ref, &checkout{root: top, time: tree.Time, keep: i.keeps()}); err != nil {
		return nil, fmt.Errorf("write the files of %s: %w", i.name(), err)
	}
	done, err := ref.Commit(ctx)
	if err != nil {
		return nil, err
	}
	for _, b := range t.builds.of(groupOf(job)) {
		t.worker.note(ctx, done, b.app)
	}
	return done, nil
}

// open opens the directory of the repository that is wanted. No part of the way
// may be a link.
func (i *gitInstance) open(tree *gitfetch.Tree) (*os.Root, error) {
	top, err := os.OpenRoot(tree.Dir)
	if err != nil || i.id.Subdir == "" {
		return top, err
	}
	defer top.Close()
	at := ""
	for _, name := range strings.Split(i.id.Subdir, "/") {
		at = path.Join(at, name)
		if f, err := top.Lstat(at); err != nil || !f.IsDir() || name == ".git" {
			return nil, failure.Userf(failure.FileNotFound, "name a directory of the repository", "%s: the repository has no directory %s", i.name(), i.id.Subdir)
		}
	}
	return top.OpenRoot(at)
}

// fillFrom writes the files of a checkout to a ref.
func fillFrom(ctx context.Context, ref cache.MutableRef, c *checkout) error {
	return writeTo(ctx, ref, func(upper *rootfs.Upper) error {
		return iofs.WalkDir(c.root.FS(), ".", func(p string, e iofs.DirEntry, err error) error {
			if err != nil || p == "." {
				return err
			}
			if e.Name() == ".git" && !c.keep {
				if e.IsDir() {
					return iofs.SkipDir
				}
				return nil
			}
			return errors.Join(c.entry(upper, p), context.Cause(ctx))
		})
	}, func(dir string) error { return os.Chtimes(dir, c.time, c.time) })
}

// A checkout is the files of a commit. Everything in it is root's and as old as
// the commit; of modes is left what Git keeps.
type checkout struct {
	root *os.Root
	time time.Time
	keep bool // .git
}

// entry writes one of them.
func (c *checkout) entry(upper *rootfs.Upper, p string) error {
	info, err := c.root.Lstat(p)
	if err != nil {
		return err
	}
	h := &tar.Header{Name: p, Mode: 0o644, ModTime: c.time, Typeflag: tar.TypeReg, Format: tar.FormatPAX}
	if info.Mode()&0o111 != 0 {
		h.Mode = 0o755
	}
	switch {
	case info.IsDir():
		h.Typeflag, h.Name = tar.TypeDir, p+"/"
		return upper.Entry(h, nil)
	case info.Mode().Type() == iofs.ModeSymlink:
		h.Typeflag, h.Mode = tar.TypeSymlink, 0o777
		if h.Linkname, err = c.root.Readlink(p); err != nil {
			return err
		}
		return upper.Entry(h, nil)
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s is neither a file nor a directory nor a link", p)
	}
	h.Size = info.Size()
	return upper.File(h, func() (io.ReadCloser, error) { return c.root.Open(p) })
}
