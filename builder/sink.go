package builder

import (
	"cmp"
	"context"
	"errors"
	"regexp"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/builder/layer"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
	"github.com/slipwayhq/slipway/pushd"
)

// A sink is one repository that the image goes to, layer by layer.
type sink struct {
	run    *run
	remote Remote
	tags   []string // none: the image is known by its digest alone
	push   *pushd.Push
	stop   context.CancelCauseFunc // ends the build
	early  int64                   // bytes that had gone up when the build phase ended

	mu      sync.Mutex
	uploads []*pushd.Upload // of layers
	landing map[*layer.Pending]*pushd.Upload
	done    map[digest.Digest]pushd.Outcome
}

// A refusal is the cause of a build that ends because a registry does not take
// what it makes.
type refusal struct{ err error }

func (r *refusal) Error() string { return r.err.Error() }

func (r *refusal) Unwrap() error { return r.err }

// openSink opens the repository of a target, "host/path[:tag]" or "" for the
// app's own.
func (r *run) openSink(ctx context.Context, target string) (*sink, error) {
	name, tag := splitTag(target)
	tags, err := r.tags(tag)
	if err != nil {
		return nil, err
	}
	remote, err := r.b.opts.Destination(ctx, Place{Name: name, App: r.req.App, Insecure: r.req.Insecure, Auth: r.session.Credentials})
	if err != nil {
		return nil, err
	}
	return &sink{run: r, remote: remote, tags: tags,
		landing: map[*layer.Pending]*pushd.Upload{}, done: map[digest.Digest]pushd.Outcome{}}, nil
}

// tags are those that a target gets which names one, or "".
func (r *run) tags(tag string) ([]string, error) {
	if r.req.ByDigest {
		return nil, nil
	}
	tag = cmp.Or(tag, r.req.Tag, "deployment-"+r.req.ID)
	if !validTag.MatchString(tag) {
		return nil, failure.Userf(failure.InvalidArgument, "use letters, digits, dots, dashes and underscores, 128 at most", "%q is no tag for an image", tag)
	}
	return []string{tag}, nil
}

// validTag is the form of an image's tag (OCI distribution spec, pulling
// manifests).
var validTag = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)

// splitTag splits "host/path:tag"; a colon before the last slash is a port.
func splitTag(s string) (name, tag string) {
	for i := len(s) - 1; i >= 0 && s[i] != '/'; i-- {
		if s[i] == ':' {
			return s[:i], s[i+1:]
		}
	}
	return s, ""
}

// names are those of the image in all repositories.
func (r *run) names() []string {
	var names []string
	for _, s := range r.sinks {
		names = append(names, s.ref())
	}
	return names
}

// ref is the first name that the image gets here; without tags, that of the
// repository.
func (s *sink) ref() string {
	if len(s.tags) == 0 {
		return s.remote.Name
	}
	return s.remote.Name + ":" + s.tags[0]
}

func (s *sink) probe(ctx context.Context) error {
	return registryFailure(s.remote.Target.Probe(ctx))
}

// start opens the push. A registry that refuses a layer stops the build: what
// it would still make could not go anywhere.
func (s *sink) start(ctx context.Context, stop context.CancelCauseFunc) {
	s.push, s.stop = s.run.b.opts.Engine.Push(ctx, s.remote.Target, s.progress), stop
}

// add sends a layer that may still be growing, or be on its way here.
func (s *sink) add(p *layer.Pending) {
	blob := pushd.Blob{Name: p.Origin.Text, Descriptor: p.Descriptor, Source: p.Blob, MountFrom: s.repositories(p.MountFrom)}
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.push.Add(blob)
	s.uploads = append(s.uploads, u)
	s.landing[p] = u
}

// landed waits until the repository has a layer.
func (s *sink) landed(ctx context.Context, p *layer.Pending) error {
	s.mu.Lock()
	u := s.landing[p]
	s.mu.Unlock()
	_, _, err := u.Wait(ctx)
	return registryFailure(err)
}

// repositories keeps of "host/path" names the paths on the target's host.
func (s *sink) repositories(names []string) []string {
	host, _, _ := strings.Cut(s.remote.Name, "/")
	var paths []string
	for _, n := range names {
		if h, path, _ := strings.Cut(n, "/"); h == host {
			paths = append(paths, path)
		}
	}
	return paths
}

// abort stops the push; after a finished one it only frees it.
func (s *sink) abort(cause error) { s.push.Abort(cause) }

func (s *sink) markEarly() { s.early = s.push.Account().WireBytes }

// blobs sends what the image has beside layers and returns when every blob is
// there.
func (s *sink) blobs(ctx context.Context, img *pushedImage) error {
	var others []*pushd.Upload
	for _, b := range img.blobs {
		b.MountFrom = s.repositories(b.MountFrom)
		others = append(others, s.push.Add(b))
	}
	s.mu.Lock()
	uploads := s.uploads
	s.mu.Unlock()
	done := map[digest.Digest]pushd.Outcome{}
	for _, u := range uploads {
		desc, outcome, err := u.Wait(ctx)
		if err != nil {
			return registryFailure(err)
		}
		if o := s.run.b.opts.Observe; o != nil {
			o.Pushed(string(outcome), desc.Size)
		}
		// An image may have a layer twice; the second one is always present.
		if before, twice := done[desc.Digest]; !twice || before == pushd.Present {
			done[desc.Digest] = outcome
		}
	}
	for _, u := range others {
		if _, _, err := u.Wait(ctx); err != nil {
			return registryFailure(err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.done = done
	return nil
}

// manifest makes the image known. It comes last.
func (s *sink) manifest(ctx context.Context, img *pushedImage) error {
	for i, m := range img.manifests {
		var tags []string
		if i == len(img.manifests)-1 {
			tags = s.tags
		}
		if err := s.push.Manifest(ctx, m.Descriptor, m.Raw, tags...); err != nil {
			return registryFailure(err)
		}
	}
	return nil
}

var outcomes = map[pushd.Outcome]slipwayv1.PushOutcome{
	pushd.Uploaded: slipwayv1.PushOutcome_PUSH_OUTCOME_UPLOADED,
	pushd.Mounted:  slipwayv1.PushOutcome_PUSH_OUTCOME_MOUNTED,
	pushd.Present:  slipwayv1.PushOutcome_PUSH_OUTCOME_PRESENT,
	pushd.Linked:   slipwayv1.PushOutcome_PUSH_OUTCOME_LINKED,
}

func (s *sink) outcome(d digest.Digest) slipwayv1.PushOutcome {
	s.mu.Lock()
	defer s.mu.Unlock()
	o, ok := s.done[d]
	if !ok {
		return slipwayv1.PushOutcome_PUSH_OUTCOME_UNSPECIFIED
	}
	return outcomes[o]
}

func (s *sink) progress(p pushd.Progress) {
	e := &slipwayv1.PushProgress{
		Digest: p.Digest.String(), Bytes: uint64(p.Sent), Total: uint64(p.Size),
		Retries: uint32(p.Retries), Target: s.remote.Name, BytesPerSecond: p.Rate,
	}
	switch p.State {
	case pushd.Done:
		e.Outcome = outcomes[p.Outcome]
	case pushd.Failed:
		s.failed(p.Err)
	}
	s.run.session.Emit(&slipwayv1.Event{Event: &slipwayv1.Event_Push{Push: e}})
}

// failed stops the build when a registry refused a layer. That a layer could
// not be made is the build's own affair.
func (s *sink) failed(err error) {
	if known := refusalOf(err); known != nil {
		s.stop(&refusal{known})
	}
}

// registryFailure names what a registry's refusal means for the user.
func registryFailure(err error) error {
	if known := refusalOf(err); known != nil {
		return known
	}
	return err
}

// refusalOf returns a registry's refusal as a failure, nil for other errors.
func refusalOf(err error) *failure.Error {
	var known *failure.Error
	if err == nil || errors.As(err, &known) {
		return nil
	}
	e := &failure.Error{Phase: failure.Push, Blame: failure.Registry, Message: err.Error(), Err: err}
	switch {
	case errors.Is(err, pushd.ErrUnauthorized):
		e.Code, e.Hint = failure.RegistryDenied, "log in to the registry with docker login where you deploy; Slipway asks your docker config for credentials"
	case errors.Is(err, pushd.ErrDenied):
		e.Code, e.Hint = failure.RegistryDenied, "the credentials are valid but may not push to this repository; use an account that may"
	case errors.Is(err, pushd.ErrUnavailable):
		e.Code, e.Retryable = failure.RegistryUnavailable, true
		e.Hint = "run the same command again: what is up already is not sent twice"
	case errors.Is(err, pushd.ErrDigest):
		e.Code, e.Retryable = failure.RegistryRefused, true
		e.Hint = "the registry stored other bytes than were sent; run the same command again, and check the registry's storage if it stays"
	case errors.Is(err, pushd.ErrRefused), errors.Is(err, pushd.ErrBlobUnknown):
		e.Code, e.Hint = failure.RegistryRefused, "the registry's own message says why; its operator can tell more"
	default:
		return nil
	}
	return e
}
