package buildkit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"

	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/secrets"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/source"
	"github.com/moby/buildkit/source/git"
	srctypes "github.com/moby/buildkit/source/types"
	"github.com/moby/buildkit/util/gitutil"
	"github.com/moby/buildkit/util/urlutil"

	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/builder/gitfetch"
	"github.com/slipwayhq/slipway/limits"
)

// A gitSource takes the place of BuildKit's source of Git repositories, which
// would reach from the daemon what steps may not. Of that one is what
// identifiers mean and what keys look like.
type gitSource struct {
	source.Source
	tenant *tenant
}

// Identifier implements BuildKit's source.
func (s *gitSource) Identifier(scheme, ref string, attrs map[string]string, p *pb.Platform) (source.Identifier, error) {
	id, err := s.Source.Identifier(scheme, ref, attrs, p)
	if bad, ok := errors.AsType[*url.Error](err); ok {
		return nil, fmt.Errorf("address of a Git repository: %w", bad.Err) // the whole may have a password
	}
	return id, err
}

// Resolve implements BuildKit's source.
func (s *gitSource) Resolve(_ context.Context, id source.Identifier, sm *session.Manager, _ solver.Vertex) (source.SourceInstance, error) {
	g, ok := id.(*git.GitIdentifier)
	if !ok {
		return nil, fmt.Errorf("%s is no Git source", id.Scheme())
	}
	return &gitInstance{source: s, id: g, sessions: sm}, nil
}

// ResolveSourceMetadata implements BuildKit's worker. BuildKit's own asks its
// own source of Git repositories.
func (w *worker) ResolveSourceMetadata(ctx context.Context, op *pb.SourceOp, opt sourceresolver.Opt, sm *session.Manager, job solver.JobContext) (*sourceresolver.MetaResponse, error) {
	if opt.SourcePolicies != nil || !strings.HasPrefix(op.Identifier, srctypes.GitScheme+"://") {
		return w.Worker.ResolveSourceMetadata(ctx, op, opt, sm, job)
	}
	id, err := w.ParseSource(op, nil)
	if err != nil {
		return nil, err
	}
	s, err := w.SourceManager.Resolve(ctx, id, sm, nil)
	if err != nil {
		return nil, err
	}
	i, ok := s.(*gitInstance)
	if !ok {
		return nil, fmt.Errorf("%s is no Git source", op.Identifier)
	}
	md, err := i.metadata(ctx, job, opt.GitOpt != nil && opt.GitOpt.ReturnObject)
	if err != nil {
		return nil, err
	}
	return &sourceresolver.MetaResponse{Op: op, Git: &sourceresolver.ResolveGitResponse{
		Checksum: md.Checksum, Ref: md.Ref, CommitChecksum: md.CommitChecksum, CommitObject: md.CommitObject, TagObject: md.TagObject,
	}}, nil
}

// A gitInstance is a repository that a build names.
type gitInstance struct {
	source   *gitSource
	id       *git.GitIdentifier
	sessions *session.Manager
	commit   gitfetch.Commit // what CacheKey has found; zero before
}

// name is the repository and the ref, for people.
func (i *gitInstance) name() string {
	name := urlutil.RedactCredentials(i.id.Remote)
	if i.id.Ref != "" || i.id.Subdir != "" {
		name += "#" + i.id.Ref
	}
	if i.id.Subdir != "" {
		name += ":" + i.id.Subdir
	}
	return name
}

// keeps reports whether .git is taken. A part of a repository has none.
func (i *gitInstance) keeps() bool { return i.id.KeepGitDir && i.id.Subdir == "" }

// CacheKey implements BuildKit's source.
func (i *gitInstance) CacheKey(ctx context.Context, job solver.JobContext, _ int) (key, pin string, _ solver.CacheOpts, done bool, err error) {
	md, err := i.metadata(ctx, job, false)
	if err != nil {
		return "", "", nil, false, err
	}
	return i.key(), md.Checksum, nil, true, nil
}

// key is all that the files depend on, as BuildKit writes it: builders that use
// the same cache elsewhere know the commit. A kept .git also has the remote.
func (i *gitInstance) key() string {
	key := i.commit.Hash
	if i.keeps() {
		key = cmp.Or(i.commit.Tag, i.commit.Hash) + ".git#" + cmp.Or(i.commit.Ref, i.commit.Hash) + "@" + withoutUser(i.id.Remote)
	}
	if i.id.Subdir != "" {
		key += ":" + i.id.Subdir
	}
	if i.id.SkipSubmodules {
		key += "(skip-submodules)"
	}
	if i.id.MTime != "" && i.id.MTime != "checkout" {
		key += "(mtime=" + i.id.MTime + ")"
	}
	return key
}

func withoutUser(remote string) string {
	u, err := url.Parse(remote)
	if err != nil {
		return "" // it would not have been resolved
	}
	u.User = nil
	return u.String()
}

// metadata is what BuildKit tells frontends of the repository. It remembers the
// commit.
func (i *gitInstance) metadata(ctx context.Context, job solver.JobContext, objects bool) (*git.Metadata, error) {
	md, err := i.resolve(ctx, job, objects)
	if err != nil {
		return nil, i.failed(ctx, job, err)
	}
	return md, nil
}

func (i *gitInstance) resolve(ctx context.Context, job solver.JobContext, objects bool) (*git.Metadata, error) {
	c, err := i.find(ctx, job)
	if err != nil {
		return nil, err
	}
	i.commit = c
	md := &git.Metadata{}
	if objects || i.id.VerifySignature != nil {
		src, err := i.request(ctx, job)
		if err != nil {
			return nil, err
		}
		all, err := i.source.tenant.engine.opts.Git.Objects(ctx, src, c)
		if err != nil {
			return nil, err
		}
		c, md.CommitObject, md.TagObject = all.Commit, all.RawCommit, all.RawTag
	}
	md.Ref, md.Checksum = cmp.Or(c.Ref, c.Hash), cmp.Or(c.Tag, c.Hash)
	if c.Tag != "" && (!i.id.KeepGitDir || md.CommitObject != nil) {
		md.CommitChecksum = c.Hash
	}
	if i.id.VerifySignature != nil {
		if err := verify(md, i.id.VerifySignature); err != nil {
			return nil, failure.Userf(failure.FetchFailed, "sign the commit or its tag with the key that the build asks for", "%s: commit %s: %v", i.name(), c.Hash, err)
		}
	}
	return md, nil
}

// find says which commit is meant.
func (i *gitInstance) find(ctx context.Context, job solver.JobContext) (c gitfetch.Commit, err error) {
	if err := i.check(); err != nil {
		return c, err
	}
	sum := i.id.Checksum
	switch {
	case i.id.FetchByCommit && !gitutil.IsCommitSHA(i.id.Ref):
		if !gitutil.IsCommitSHA(sum) {
			return c, failure.Userf(failure.InvalidArgument, "give the full hash of a commit as the checksum", "%s: to fetch by commit takes one, not %q", i.name(), sum)
		}
		c = gitfetch.Commit{Hash: sum, Ref: i.id.Ref}
		if c.Ref != "" && !strings.HasPrefix(c.Ref, "refs/") {
			c.Ref = "refs/heads/" + c.Ref // as BuildKit takes it
		}
	case job == nil:
		c, err = i.ask(ctx, job)
	default:
		c, err = i.askOnce(ctx, job)
	}
	if err == nil && sum != "" && !c.Matches(sum) {
		err = failure.Userf(failure.FetchFailed, "check the ref and the checksum, which is the beginning of a commit's hash", "%s is at commit %s, not %s", i.name(), c.Hash, sum)
	}
	return c, err
}

// otherProtocol refuses the address of a repository that the daemon has no
// protocol for.
func otherProtocol(remote string) error {
	if remedy, other := gitfetch.IsOther(remote); other {
		return failure.Userf(failure.NotSupported, remedy, "%s: the daemon fetches Git repositories over https and http only", urlutil.RedactCredentials(remote))
	}
	return nil
}

var hexadecimal = regexp.MustCompile(`^[0-9a-fA-F]+$`)

// check refuses what the daemon does not do.
func (i *gitInstance) check() error {
	if err := otherProtocol(i.id.Remote); err != nil {
		return err
	}
	switch {
	case i.source.tenant.engine.opts.Git == nil:
		return failure.Userf(failure.NotSupported, "clone the repository in a RUN step", "%s: this daemon does not fetch Git repositories", i.name())
	case i.id.Bundle != "" || i.id.CheckoutBundle:
		return failure.Userf(failure.NotSupported, "fetch from the repository, and take its files with .git if the history is needed (keep-git-dir)", "%s: the daemon does not read or write Git bundles", i.name())
	case i.id.Checksum != "" && !hexadecimal.MatchString(i.id.Checksum):
		return failure.Userf(failure.InvalidArgument, "give the hash of a commit, or its beginning", "%s: the checksum %q is not hexadecimal", i.name(), i.id.Checksum)
	}
	return nil
}

// A refKey is under which a solve remembers what a ref stands for.
type refKey struct{ remote, ref string }

// askOnce asks the remote once in a solve, so that all of it sees the same
// commit.
func (i *gitInstance) askOnce(ctx context.Context, job solver.JobContext) (c gitfetch.Commit, err error) {
	known, release, err := job.ResolverCache().Lock(refKey{withoutUser(i.id.Remote), i.id.Ref})
	if err != nil {
		return c, err
	}
	var found any // nil is nothing to remember
	defer func() { err = errors.Join(err, release(found)) }()
	for _, k := range known {
		if c, ok := k.(gitfetch.Commit); ok && (i.id.Checksum == "" || c.Matches(i.id.Checksum)) {
			return c, nil
		}
	}
	if c, err = i.ask(ctx, job); err == nil {
		found = c
	}
	return c, err
}

func (i *gitInstance) ask(ctx context.Context, job solver.JobContext) (gitfetch.Commit, error) {
	src, err := i.request(ctx, job)
	if err != nil {
		return gitfetch.Commit{}, err
	}
	return i.source.tenant.engine.opts.Git.Resolve(ctx, src)
}

// request is what the fetcher is told. It has the credentials of the clients
// that wait, and is not kept.
func (i *gitInstance) request(ctx context.Context, job solver.JobContext) (gitfetch.Source, error) {
	src := gitfetch.Source{Ref: i.id.Ref, KeepGitDir: i.id.KeepGitDir, Submodules: !i.id.SkipSubmodules}
	names := gitfetch.Secrets{Token: i.id.AuthTokenSecret, Header: i.id.AuthHeaderSecret}
	err := src.Authorize(ctx, i.id.Remote, names, func(ctx context.Context, name string) ([]byte, bool, error) {
		return i.secret(ctx, job, name)
	})
	if errors.Is(err, gitfetch.ErrAddress) {
		err = failure.Userf(failure.InvalidArgument, "mend the URL", "%s: %v", i.name(), err)
	}
	return src, err
}

// secret asks the clients, of which any will do.
func (i *gitInstance) secret(ctx context.Context, job solver.JobContext, name string) (value []byte, ok bool, err error) {
	if len(session.AllSessionIDs(groupOf(job))) == 0 {
		return nil, false, nil
	}
	err = i.sessions.Any(ctx, job.Session(), func(ctx context.Context, _ string, c session.Caller) error {
		value, err = secrets.GetSecret(ctx, c, name)
		return err
	})
	if errors.Is(err, secrets.ErrNotFound) {
		return nil, false, nil
	}
	return value, err == nil, err
}

func groupOf(job solver.JobContext) session.Group {
	if job == nil {
		return nil
	}
	return job.Session()
}

// most is how large the tree may be, as gitfetch takes it.
func (i *gitInstance) most(job solver.JobContext) int64 {
	t, g := i.source.tenant, groupOf(job)
	if len(t.builds.of(g)) > 0 {
		return t.builds.limit(g)
	}
	return cmp.Or(t.engine.opts.MaxSize, limits.DefaultMax)
}

// failed tells the builds that wait what became of the repository. BuildKit
// passes on the text alone, which has the remedy for its own clients.
func (i *gitInstance) failed(ctx context.Context, job solver.JobContext, err error) error {
	e, ok := errors.AsType[*failure.Error](gitfetch.Explain(err, i.name(), i.most(job)))
	if !ok || ctx.Err() != nil {
		return err
	}
	for _, b := range i.source.tenant.builds.of(groupOf(job)) {
		b.foresee(e)
	}
	return fmt.Errorf("%s (%s)", e.Message, e.Hint)
}

// Snapshot implements BuildKit's source: it fetches the files.
func (i *gitInstance) Snapshot(ctx context.Context, job solver.JobContext) (cache.ImmutableRef, error) {
	if i.commit.Hash == "" {
		if _, err := i.metadata(ctx, job, false); err != nil {
			return nil, err
		}
	}
	ref, err := i.fetch(ctx, job)
	if err != nil {
		return nil, i.failed(ctx, job, err)
	}
	return ref, nil
}

func (i *gitInstance) fetch(ctx context.Context, job solver.JobContext) (_ cache.ImmutableRef, err error) {
	src, err := i.request(ctx, job)
	if err != nil {
		return nil, err
	}
	tree, err := i.source.tenant.engine.opts.Git.Fetch(ctx, src, i.commit, i.most(job))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, tree.Close()) }()
	return i.write(ctx, job, tree)
}
