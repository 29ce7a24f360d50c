package classic

import (
	"archive/tar"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/moby/buildkit/frontend/dockerfile/dfgitutil"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"

	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/builder/gitfetch"
)

// isGit reports whether s is the address of a Git repository, or looks like one
// to people: a URL that ends in ".git/", or has a branch behind a "#". A
// fragment with an equals sign is not one but a checksum, as lists of Python
// packages have them.
func isGit(s string) bool {
	if _, other := gitfetch.IsOther(s); other {
		return true
	}
	if !isURL(s) {
		return false
	}
	address, ref, _ := strings.Cut(s, "#")
	address, _, _ = strings.Cut(address, "?")
	return strings.HasSuffix(strings.TrimSuffix(address, "/"), ".git") || ref != "" && !strings.Contains(ref, "=")
}

// parseGit reads the address of a repository.
func parseGit(s string) (*dfgitutil.GitRef, error) {
	if remedy, other := gitfetch.IsOther(s); other {
		return nil, failure.Userf(failure.NotSupported, remedy, "ADD failed: %s: the daemon fetches Git repositories over https and http only", redact(s))
	}
	ref, is, err := dfgitutil.ParseGitRef(s)
	if err != nil && is {
		return nil, failure.Userf(failure.DockerfileInvalid, "write https://HOST/REPOSITORY.git?ref=REF&subdir=DIRECTORY, or .git#REF:DIRECTORY", "ADD failed: %s: %v", redact(s), err)
	}
	if err != nil {
		return nil, failure.Userf(failure.DockerfileInvalid, "end the name of a repository in .git, before any #REF; the URL of a file needs no # part",
			"ADD failed: %s is neither the address of a Git repository nor that of a file", redact(s))
	}
	return ref, nil
}

// redact takes the password out of a URL.
func redact(s string) string {
	u, err := url.Parse(s)
	if err != nil {
		return s
	}
	return u.Redacted()
}

// addGit finds the commit that an address stands for. It is fetched when a
// layer is made of it.
func (s *stage) addGit(ctx context.Context, st *step, t *transfer, address string, cmd *instructions.AddCommand) error {
	ref, err := parseGit(address)
	if err != nil {
		return err
	}
	checksum, keep := cmp.Or(cmd.Checksum, ref.Checksum), cmd.KeepGitDir
	switch {
	case cmd.Checksum != "" && ref.Checksum != "" && cmd.Checksum != ref.Checksum:
		return failure.Userf(failure.DockerfileInvalid, "leave one of them out", "ADD --checksum=%s differs from that of %s", cmd.Checksum, redact(address))
	case keep != nil && ref.KeepGitDir != nil && *keep != *ref.KeepGitDir:
		return failure.Userf(failure.DockerfileInvalid, "leave one of them out", "ADD --keep-git-dir=%t differs from that of %s", *keep, redact(address))
	case s.build.opts.Git == nil:
		return failure.Userf(failure.NotSupported, "clone the repository in a RUN step", "this daemon does not fetch Git repositories")
	}
	if keep == nil {
		keep = ref.KeepGitDir
	}
	c := &clone{
		stage: s, name: redact(address), subdir: path.Join("/", ref.SubDir),
		src: gitfetch.Source{Ref: ref.Ref, KeepGitDir: keep != nil && *keep, Submodules: ref.Submodules == nil || *ref.Submodules},
	}
	if ref.FetchByCommit {
		c.src.Ref = checksum
	}
	if err := c.authorize(ctx, ref.Remote); err != nil {
		return err
	}
	if c.commit, err = s.build.opts.Git.Resolve(ctx, c.src); err != nil {
		return c.failed(err)
	}
	if checksum != "" && !c.commit.Matches(checksum) {
		return t.failf(failure.FetchFailed, "check the ref and the checksum, which is the beginning of a commit's hash", "%s is at commit %s, not %s", c.name, c.commit.Hash, checksum)
	}
	s.note(st, "%s is at commit %s", c.name, c.commit.Hash)
	t.sources = append(t.sources, copySource{file: &root, from: c, git: c})
	return nil
}

// A clone is a repository that ADD names, as a tree of the files of a commit.
// Everything in it is root's and as old as the commit.
type clone struct {
	dirFS  // where it is, when it has been fetched
	stage  *stage
	name   string // for people
	src    gitfetch.Source
	commit gitfetch.Commit
	subdir string // absolute
	once   sync.Once
	err    error
	time   time.Time
}

// authorize finds the credentials for a remote: those in its address, or the
// build secrets that BuildKit asks for.
func (c *clone) authorize(ctx context.Context, remote string) error {
	err := c.src.Authorize(ctx, remote, gitfetch.BuildSecrets(), c.stage.build.job.Session.Secret)
	if errors.Is(err, gitfetch.ErrAddress) {
		return failure.Userf(failure.DockerfileInvalid, "mend the URL", "ADD failed: %s: not a URL", c.name)
	}
	return err
}

// identity stands for all that the clone's files depend on.
func (c *clone) identity() string {
	fields := []string{"git/v1", c.commit.Hash, c.subdir, fmt.Sprint(c.src.Submodules), fmt.Sprint(c.keeps())}
	if c.keeps() {
		fields = append(fields, c.src.Remote, c.commit.Ref, c.commit.Tag)
	}
	return "git:" + sum(fields...)
}

// keeps reports whether .git is taken. A part of a repository has none.
func (c *clone) keeps() bool { return c.src.KeepGitDir && c.subdir == "/" }

// fetch gets the repositories that the transfer copies, each once.
func (t *transfer) fetch(ctx context.Context) error {
	for _, src := range t.sources {
		if c := src.git; c != nil {
			c.once.Do(func() { c.err = c.fetch(ctx) })
			if c.err != nil {
				return c.err
			}
		}
	}
	return nil
}

func (c *clone) fetch(ctx context.Context) error {
	b := c.stage.build
	got, err := b.opts.Git.Fetch(ctx, c.src, c.commit, b.job.MaxSize)
	if err != nil {
		return c.failed(err)
	}
	b.clones.add(got)
	c.time = got.Time
	// No part of the way may be a link: it would lead out of the tree.
	top, at := dirFS(got.Dir), "/"
	for _, name := range strings.Split(strings.Trim(c.subdir, "/"), "/") {
		at = path.Join(at, name)
		if f, err := top.lstat(at); err != nil || !f.isDir() {
			return failure.Userf(failure.FileNotFound, "name a directory of the repository", "ADD failed: %s has no directory %s", c.name, strings.Trim(c.subdir, "/"))
		}
	}
	c.dirFS = dirFS(filepath.Join(got.Dir, at))
	return nil
}

// failed tells people what became of a fetch.
func (c *clone) failed(err error) error {
	return gitfetch.Explain(err, "ADD failed: "+c.name, c.stage.build.job.MaxSize)
}

func (c *clone) lstat(p string) (*file, error) {
	f, err := c.dirFS.lstat(p)
	if err != nil || p == "/" {
		return f, err
	}
	c.level(f)
	return f, nil
}

func (c *clone) list(p string) ([]*file, error) {
	all, err := c.dirFS.list(p)
	out := all[:0]
	for _, f := range all {
		if path.Base(f.path) == ".git" && !c.keeps() {
			continue
		}
		c.level(f)
		out = append(out, f)
	}
	return out, err
}

// level leaves of a file's attributes what Git keeps.
func (c *clone) level(f *file) {
	f.uid, f.gid, f.mtime, f.xattrs, f.inode = 0, 0, c.time, nil, ""
	switch {
	case f.typ == tar.TypeSymlink:
	case f.isDir() || f.mode&0o111 != 0:
		f.mode = 0o755
	default:
		f.mode = 0o644
	}
}

// clones are the trees that a build has fetched.
type clones struct {
	mu    sync.Mutex
	trees []*gitfetch.Tree
}

func (c *clones) add(t *gitfetch.Tree) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.trees = append(c.trees, t)
}

// close removes all of them.
func (c *clones) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	for _, t := range c.trees {
		errs = append(errs, t.Close())
	}
	c.trees = nil
	return errors.Join(errs...)
}
