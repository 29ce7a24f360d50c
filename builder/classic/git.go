package classic

import (
	"archive/tar"
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/url"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/moby/buildkit/frontend/dockerfile/dfgitutil"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"

	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/builder/gitfetch"
)

// scpLike is how Git writes an SSH address without a scheme, such as
// git@github.com:org/repo.
var scpLike = regexp.MustCompile(`^([\w.-]+)@([\w.-]+):`)

// isGit reports whether s is the address of a Git repository, or looks like one
// to people: a URL that ends in ".git/", or has a branch behind a "#". A
// fragment with an equals sign is not one but a checksum, as lists of Python
// packages have them.
func isGit(s string) bool {
	if strings.HasPrefix(s, "git://") || strings.HasPrefix(s, "ssh://") || scpLike.MatchString(s) {
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
	unable := func(hint string) error {
		return failure.Userf(failure.NotSupported, hint, "ADD failed: %s: the daemon fetches Git repositories over https and http only", redact(s))
	}
	switch at := scpLike.FindStringSubmatch(s); {
	case at != nil:
		return nil, unable("write https://" + at[2] + "/" + strings.TrimPrefix(s, at[0]) + "; a private repository needs the build secret GIT_AUTH_TOKEN")
	case strings.HasPrefix(s, "ssh://"), strings.HasPrefix(s, "git://"):
		return nil, unable("write the repository's https:// address; a private one needs the build secret GIT_AUTH_TOKEN")
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
	u, err := url.Parse(remote)
	if err != nil {
		return failure.Userf(failure.DockerfileInvalid, "mend the URL", "ADD failed: %s: not a URL", c.name)
	}
	user := u.User
	u.User = nil
	c.src.Remote = u.String()
	if user != nil {
		password, _ := user.Password()
		c.src.Authorization = basic(user.Username(), password)
		return nil
	}
	for _, name := range []string{"GIT_AUTH_HEADER." + u.Host, "GIT_AUTH_TOKEN." + u.Host, "GIT_AUTH_HEADER", "GIT_AUTH_TOKEN"} {
		value, ok, err := c.stage.build.job.Session.Secret(ctx, name)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		c.src.Authorization = strings.TrimSpace(string(value))
		if strings.HasPrefix(name, "GIT_AUTH_TOKEN") {
			c.src.Authorization = basic("x-access-token", c.src.Authorization)
		}
		return nil
	}
	return nil
}

func basic(user, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
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
	var closed *closedError
	var git *gitfetch.Error
	e := &failure.Error{Code: failure.FetchFailed, Blame: failure.User, Message: fmt.Sprintf("ADD failed: %s: %v", c.name, err), Err: err}
	switch {
	case errors.As(err, &closed):
		e.Hint = "copy the repository into the context, or ask the operator for --allow-egress"
	case errors.Is(err, gitfetch.ErrRedirect):
		e.Hint = "write the address that it redirects to: credentials are sent to no other server than the one that is named"
	case errors.Is(err, gitfetch.ErrNoRef):
		e.Hint = "name a branch, a tag or a commit's full hash that the repository has"
	case errors.Is(err, gitfetch.ErrTooLarge):
		e.Code, e.Hint = failure.TooLarge, "fetch a smaller repository, or an archive of what the image needs"
		e.Message = fmt.Sprintf("ADD failed: %s: with its history, it takes more than twice the limit of %d bytes", c.name, c.stage.build.job.MaxSize)
	case errors.Is(err, gitfetch.ErrNoGit):
		e.Code, e.Blame, e.Hint = failure.NotSupported, failure.Builder, "the operator installs git where the daemon runs"
	case errors.As(err, &git) && git.Auth:
		e.Hint = "check the address; a private repository needs the build secret GIT_AUTH_TOKEN with a token that may read it"
	case errors.As(err, &git):
		e.Hint = "check the address and the ref; a private repository needs the build secret GIT_AUTH_TOKEN"
	case isConnection(err):
		e.Blame, e.Retryable, e.Hint = failure.Net, true, "check the address; the daemon reaches public addresses only, unless the operator allows more"
	default:
		return err
	}
	return e
}

// isConnection reports whether a network failed, not a server.
func isConnection(err error) bool {
	var op *net.OpError
	var dns *net.DNSError
	return errors.As(err, &op) || errors.As(err, &dns)
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
