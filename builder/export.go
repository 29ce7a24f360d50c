package builder

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/builder/stepcache"
	"github.com/slipwayhq/slipway/layercache"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
	"github.com/slipwayhq/slipway/pushd"
)

// An export is a reference that the build's steps go to, after the image.
type export struct {
	*sink
	all bool // stages that the image has nothing of, too
}

// maxExports bounds what one build may write its steps to.
const maxExports = 8

// checkCaches refuses what a request cannot mean by its caches.
func (r *run) checkCaches() error {
	if r.pipeline() == slipwayv1.Pipeline_PIPELINE_PREBUILT && len(r.req.CacheFrom)+len(r.req.CacheTo) > 0 {
		return failure.Userf(failure.NotSupported, "leave them out, or build step by step", "--cache-from and --cache-to do not go with the %s pipeline", pipelineName(r.pipeline()))
	}
	if n := len(r.req.CacheTo); n > maxExports {
		return failure.Userf(failure.InvalidArgument, "name fewer", "--cache-to is given %d times, %d are allowed", n, maxExports)
	}
	for _, c := range r.req.CacheTo {
		switch c.Type {
		case slipwayv1.CacheExportType_CACHE_EXPORT_TYPE_INLINE:
		case slipwayv1.CacheExportType_CACHE_EXPORT_TYPE_REGISTRY:
			if c.Ref == "" {
				return failure.Userf(failure.InvalidArgument, "write --cache-to type=registry,ref=HOST/PATH[:TAG]", "--cache-to type=registry has no ref")
			}
		default:
			return failure.Userf(failure.NotSupported, "use type=inline, or type=registry,ref=HOST/PATH[:TAG]", "--cache-to %s is not available", enumName("CACHE_EXPORT_TYPE_", c.Type))
		}
	}
	return nil
}

// ownCaches reports whether caches elsewhere are this package's affair. BuildKit
// has its own form of them.
func (r *run) ownCaches() bool { return r.pipeline() == slipwayv1.Pipeline_PIPELINE_CLASSIC }

// inline reports whether the image itself is to hold its steps.
func (r *run) inline() bool {
	if !r.ownCaches() {
		return false
	}
	for _, c := range r.req.CacheTo {
		if c.Type == slipwayv1.CacheExportType_CACHE_EXPORT_TYPE_INLINE {
			return true
		}
	}
	return false
}

// openExports opens the references that steps go to.
func (r *run) openExports(ctx context.Context) error {
	if !r.ownCaches() {
		return nil
	}
	for _, c := range r.req.CacheTo {
		if c.Type != slipwayv1.CacheExportType_CACHE_EXPORT_TYPE_REGISTRY {
			continue
		}
		name, tag := splitTag(c.Ref)
		if tag == "" {
			tag = "latest"
		}
		s, err := r.openSink(ctx, name+":"+tag)
		if err != nil && failure.As(err).Code == failure.Internal {
			err = failure.Userf(failure.InvalidArgument, "give it as ref=HOST/PATH[:TAG]", "cannot write the cache %s: %v", c.Ref, err)
		}
		if err != nil {
			return err
		}
		for _, own := range r.sinks {
			if own.remote.Name == s.remote.Name && slices.Contains(own.tags, s.tags[0]) {
				return failure.Userf(failure.InvalidArgument, "give the cache a repository or a tag of its own, or use type=inline", "the cache %s would take the image's place", s.ref())
			}
		}
		r.exports = append(r.exports, &export{sink: s, all: c.All})
	}
	if r.inline() && len(r.sinks) == 0 {
		r.warn("push it, or use type=registry,ref=REF", "--cache-to type=inline keeps the steps in the image, which is not pushed")
	}
	return nil
}

// probeExport finds out whether the steps may go there. A registry that cannot
// be asked now may be there when the build is done.
func (r *run) probeExport(ctx context.Context, e *export) error {
	err := e.probe(ctx)
	if known := (*failure.Error)(nil); errors.As(err, &known) && known.Code != failure.RegistryUnavailable {
		refused := *known
		refused.Message = fmt.Sprintf("cannot write the cache %s: %s", e.ref(), known.Message)
		return failure.At(&refused, failure.Preflight, 0)
	}
	return context.Cause(ctx)
}

// export takes the steps of a build that has succeeded to every reference.
// What fails is a warning.
func (r *run) export(ctx context.Context) {
	var g errgroup.Group
	for _, e := range r.exports {
		g.Go(func() error {
			if err := r.exportTo(ctx, e); err != nil {
				r.b.opts.Log.WarnContext(ctx, "cache not written", "build", r.req.ID, "ref", e.ref(), "err", err)
				r.warn("the image is complete; the next build with --cache-to writes the cache again", "the cache %s was not written: %v", e.ref(), failure.As(err).Message)
			}
			return nil
		})
	}
	_ = g.Wait()
}

func (r *run) warn(hint, format string, args ...any) {
	r.session.Emit(&slipwayv1.Event{Event: &slipwayv1.Event_Warning{
		Warning: &slipwayv1.Warning{Message: fmt.Sprintf(format, args...), Hint: hint},
	}})
}

func (r *run) exportTo(ctx context.Context, e *export) error {
	cache := r.b.opts.Cache.Org(r.req.Org)
	config, err := document(r.image, e.all).Encode()
	if err != nil {
		return failure.Userf(failure.NotSupported, "", "%v", err)
	}
	e.push = r.b.opts.Engine.Push(ctx, e.remote.Target, nil)
	defer e.abort(context.Canceled)
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, ArtifactType: stepcache.ArtifactType,
		Config: ocispec.Descriptor{MediaType: stepcache.MediaType, Digest: digest.FromBytes(config), Size: int64(len(config))},
		Layers: []ocispec.Descriptor{},
	}
	seen := map[digest.Digest]bool{}
	for _, st := range r.image.Portable {
		if st.Empty || seen[st.Blob.Digest] || !st.InImage && !e.all {
			continue
		}
		seen[st.Blob.Digest] = true
		blob, err := e.blob(ctx, cache, st)
		if err != nil {
			return err
		}
		m.Layers = append(m.Layers, blob.Descriptor)
		e.push.Add(blob)
	}
	e.push.Add(pushd.Blob{Name: "config", Descriptor: m.Config, Source: pushd.Bytes(config)})
	raw, err := json.Marshal(m)
	if err != nil {
		return err
	}
	desc := ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	return registryFailure(e.push.Manifest(ctx, desc, raw, e.tags...))
}

// blob returns a step's layer as it goes to the cache elsewhere: from this
// daemon's cache, or from where its record came from.
func (e *export) blob(ctx context.Context, cache *layercache.Cache, st CachedStep) (pushd.Blob, error) {
	b := pushd.Blob{Name: st.CreatedBy, Descriptor: st.Blob.Descriptor(), MountFrom: e.repositories(st.From)}
	for _, s := range e.run.sinks {
		b.MountFrom = append(b.MountFrom, e.repositories([]string{s.remote.Name})...)
	}
	kept, err := cache.Blob(ctx, st.Blob.Digest)
	switch {
	case err == nil:
		b.Source = kept
	case errors.Is(err, layercache.ErrNotFound) && st.Open != nil:
		b.Source = elsewhere{st.Blob.Descriptor(), st.Open}
	default:
		return b, err
	}
	return b, nil
}

// elsewhere is a blob that another repository has.
type elsewhere struct {
	desc ocispec.Descriptor
	open Open
}

func (e elsewhere) Open(ctx context.Context, off int64) (io.ReadCloser, error) {
	return e.open(ctx, e.desc, off)
}

func (e elsewhere) Descriptor(context.Context) (ocispec.Descriptor, error) { return e.desc, nil }

// document lists the image's own steps, or those of all stages.
func document(img *Image, all bool) *stepcache.Document {
	d := &stepcache.Document{}
	for _, st := range img.Portable {
		if st.InImage || all {
			d.Steps = append(d.Steps, st.Step)
		}
	}
	return d
}

// inlineSteps returns the document that the image's config is to hold; nil if
// it is to hold none.
func (r *run) inlineSteps(img *Image) []byte {
	if !r.inline() {
		return nil
	}
	doc, err := document(img, false).Encode()
	if err != nil {
		r.warn("the image is complete; shorter instructions take less room", "the image holds no cached steps: %v", err)
		return nil
	}
	return doc
}

// withSteps adds a document to an image's config, which is an object with
// fields, and leaves the rest of it as it is.
func withSteps(config, doc []byte) []byte {
	return fmt.Appendf(nil, "%s,%q:%s}", bytes.TrimSuffix(config, []byte("}")), stepcache.Field, doc)
}
