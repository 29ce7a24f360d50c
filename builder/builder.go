// Package builder runs one build: a request comes in, a pipeline turns it into
// layers, each layer goes to the registry while the next is made, and a
// result goes out. Pipelines (builder/classic is the default) know nothing of
// registries to push to, and pushd knows nothing of builds; they meet here.
// Read [Request] and [Session] first, then [Builder.Build].
package builder

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/slipwayhq/slipway/buildctx"
	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/builder/layer"
	"github.com/slipwayhq/slipway/builder/stepcache"
	"github.com/slipwayhq/slipway/layercache"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
	"github.com/slipwayhq/slipway/pushd"
	"github.com/slipwayhq/slipway/pushd/compress"
	"github.com/slipwayhq/slipway/rescue"
)

// A Request is one build to run.
type Request struct {
	ID      string // ULID
	Org     string
	Created time.Time
	Queued  time.Duration // time spent in the queue

	ByDigest bool // the image gets no tag
	Insecure bool // registries may be spoken to in plain HTTP

	*slipwayv1.Start
}

// A Session is a build's line to its client. Its methods are safe for
// concurrent use and fail with the cause when the client has gone.
type Session interface {
	// Manifest waits for the whole manifest of the context.
	Manifest(ctx context.Context) (*buildctx.Manifest, error)

	// Need returns when the store has the contents of the manifest's
	// entries at these indices; they travel group by group.
	Need(ctx context.Context, groups ...[]int) error

	// Credentials asks the client for a registry's credentials. None is the
	// zero value.
	Credentials(ctx context.Context, host string) (authn.AuthConfig, error)

	// Secret asks the client for a build secret. ok says whether it has one
	// of this id. The value must stay in memory and must not be changed; it
	// is wiped when the build ends.
	Secret(ctx context.Context, id string) (value []byte, ok bool, err error)

	// Agent opens a connection to the SSH agent that the client forwards
	// under the id. It lists keys and signs, and nothing else. The caller
	// closes it; it ends when the client goes, and when the build ends.
	Agent(ctx context.Context, id string) (io.ReadWriteCloser, error)

	// Context tells what of the context has travelled so far.
	Context() *slipwayv1.ContextProgress

	// Emit appends an event to the build's log.
	Emit(*slipwayv1.Event)
}

// A Pipeline turns a job into an image.
type Pipeline interface {
	// Plan does everything that can fail before content travels: parse,
	// resolve base images, count them.
	Plan(ctx context.Context, job *Job) (Plan, error)
}

// A Plan is a job that is ready to run.
type Plan interface {
	// Detail is a line for people about what will be built.
	Detail() string

	// Writes estimates the bytes that the build is going to put on the disk.
	Writes() int64

	// Build makes the image. It hands each layer of the final image to
	// job.Layer as soon as there is a byte of it, lowest first. A nil image is
	// one that goes nowhere: the plan has put out what was asked for.
	Build(ctx context.Context) (*Image, error)
}

// A Job is a request with the means to carry it out.
type Job struct {
	Request
	Session  Session
	Cache    *layercache.Cache
	Maker    *layer.Maker
	Platform ocispec.Platform
	MaxSize  int64 // of the unpacked root file system, in bytes

	// Layer hands a layer of the image to every repository it goes to.
	Layer func(*layer.Pending)

	// Names are what the image is called where it goes, "host/path:tag"; none if
	// it goes nowhere. They are known when the pipeline builds, not when it plans.
	Names func() []string

	// Landed waits until every repository has a layer that Layer got.
	Landed func(ctx context.Context, p *layer.Pending) error
}

// An Image is what a pipeline made.
type Image struct {
	Config dockerspec.DockerOCIImage
	Layers []*layer.Layer   // lowest first
	RootFS int64            // bytes unpacked, as package limits counts them
	Keys   []layercache.Key // of the steps, for the cache to keep longest; may be empty
	Steps  int
	Cached int

	// Portable are the steps for caches elsewhere, in the order of the
	// Dockerfile; may be empty.
	Portable []CachedStep

	// Manifests, if there are any, are pushed as they are and in this order,
	// the last one under the tag. Otherwise one is made of Config and Layers.
	Manifests []Manifest
	Blobs     []pushd.Blob // that manifests name beside layers, such as configs
}

// A CachedStep is a step as a cache elsewhere keeps it.
type CachedStep struct {
	stepcache.Step
	From []string // repositories that may have its blob, as "host/path"
	Open Open     // of a blob that the cache may lack; else nil
}

// Open returns the bytes of a blob from off on, unverified.
type Open func(ctx context.Context, d ocispec.Descriptor, off int64) (io.ReadCloser, error)

// A Manifest is a manifest that exists, byte for byte.
type Manifest struct {
	ocispec.Descriptor
	Raw []byte
}

// AllPlatforms is what a request for a prebuilt image may have as platform: an
// index is then pushed whole.
const AllPlatforms = "all"

// A Place is a repository that an image is to go to.
type Place struct {
	Name     string // "host/path", or "" for the app's in the daemon's own registry
	App      string
	Insecure bool // plain HTTP will do
	Auth     func(ctx context.Context, host string) (authn.AuthConfig, error)
}

// Destination opens a repository to push to.
type Destination func(ctx context.Context, p Place) (Remote, error)

// A Remote is a repository of a registry that images go to.
type Remote struct {
	Target pushd.Target
	Name   string // "host/path"
}

// Options tunes a Builder.
type Options struct {
	Cache       *layercache.Store
	Engine      *pushd.Engine
	Destination Destination
	Pipelines   map[slipwayv1.Pipeline]Pipeline
	MaxSize     int64            // of an unpacked root file system; 0 means 8 GB
	Compression compress.Options // default of builds that name none
	Timeout     time.Duration    // of one build; 0 means none
	Observe     Observer         // may be nil
	History     History          // for forecasts; may be nil
	Log         *slog.Logger
}

// An Observer counts what builds do.
type Observer interface {
	BuildEnded(pipeline, status string, t *slipwayv1.Timings)
	Pushed(outcome string, bytes int64)
	Compressed(bytes int64)
	StepCached(hit bool)
}

// A Builder runs builds. It is safe for concurrent use.
type Builder struct{ opts Options }

// New returns a builder.
func New(o Options) *Builder {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Builder{opts: o}
}

// Build runs one build to its end and returns its result, which it has not
// emitted. It does not return an error: what failed is in the result.
func (b *Builder) Build(ctx context.Context, req Request, s Session) *slipwayv1.Result {
	return b.BuildWith(ctx, req, s, b.opts.Pipelines[newRun(b, req, s).pipeline()])
}

// BuildWith is Build by a pipeline that need not be one of the builder's own.
func (b *Builder) BuildWith(ctx context.Context, req Request, s Session, p Pipeline) *slipwayv1.Result {
	if b.opts.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, b.opts.Timeout)
		defer cancel()
	}
	r := newRun(b, req, s)
	r.with = p
	err := rescue.Run(func() error { return r.run(ctx) })
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = because(cause, err)
	}
	return r.result(err)
}

// because prefers the reason a context ended to what stages made of it.
func because(cause, err error) error {
	var known *failure.Error
	if errors.As(cause, &known) {
		return cause
	}
	if e := failure.As(err); e.Code == failure.Internal || errors.Is(err, cause) {
		return cause
	}
	return err
}
