package pushd

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// referrersTag is where a registry without the referrers API keeps the list of
// what refers to a manifest.
func referrersTag(subject digest.Digest) string {
	return strings.ReplaceAll(subject.String(), ":", "-")
}

// refer adds a manifest that has a subject to the subject's list.
func (t *HTTP) refer(ctx context.Context, desc ocispec.Descriptor, raw []byte, w Watcher) error {
	refs, err := parseReferences(raw)
	if err != nil || refs.Subject == nil {
		return err
	}
	select { // one change of a list at a time
	case t.lists <- struct{}{}:
		defer func() { <-t.lists }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	tag := referrersTag(refs.Subject.Digest)
	list, err := t.getIndex(ctx, tag, w)
	if err != nil {
		return err
	}
	next, d, err := withReferrer(list, desc, refs)
	if err != nil || next == nil {
		return err
	}
	if _, err := t.putManifest(ctx, d, next, tag, w); err != nil {
		return fmt.Errorf("list what refers to %s: %w", refs.Subject.Digest, err)
	}
	return nil
}

// getIndex returns the index of a tag, nil if there is none.
func (t *HTTP) getIndex(ctx context.Context, tag string, w Watcher) (raw []byte, err error) {
	err = t.retry(ctx, w, t.budget(), func() error {
		u, err := t.url(ctx, "manifests/"+tag)
		if err != nil {
			return err
		}
		a, err := t.send(ctx, request{
			op: "get referrers", method: http.MethodGet, url: u,
			header: http.Header{"Accept": {ocispec.MediaTypeImageIndex}}, answer: maxIndex,
			want: []int{200, 404},
		})
		if err != nil || a.status == http.StatusNotFound {
			raw = nil
			return err
		}
		raw = a.body
		if int64(len(raw)) > maxIndex {
			return t.error(ErrRefused, "get referrers", fmt.Sprintf("list of %s is too long", tag))
		}
		return t.verify("get referrers", a, digest.FromBytes(raw))
	})
	return raw, err
}

// maxIndex is how long a list of referrers may be.
const maxIndex = 4 << 20

// withReferrer returns the list with a manifest in it, or nil if it is there.
func withReferrer(list []byte, desc ocispec.Descriptor, refs references) ([]byte, ocispec.Descriptor, error) {
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	if list != nil {
		if err := json.Unmarshal(list, &index); err != nil {
			return nil, ocispec.Descriptor{}, fmt.Errorf("bad list of referrers: %w", err)
		}
		if index.MediaType != "" && index.MediaType != ocispec.MediaTypeImageIndex {
			return nil, ocispec.Descriptor{}, fmt.Errorf("list of referrers is of type %.80q", index.MediaType)
		}
		index.MediaType = ocispec.MediaTypeImageIndex
	}
	for _, m := range index.Manifests {
		if m.Digest == desc.Digest {
			return nil, ocispec.Descriptor{}, nil
		}
	}
	artifact := refs.ArtifactType
	if artifact == "" {
		artifact = refs.Config.MediaType
	}
	index.Manifests = append(index.Manifests, ocispec.Descriptor{
		MediaType: desc.MediaType, Digest: desc.Digest, Size: desc.Size,
		ArtifactType: artifact, Annotations: refs.Annotations,
	})
	raw, err := json.Marshal(index)
	if err != nil {
		return nil, ocispec.Descriptor{}, err
	}
	return raw, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Digest: digest.FromBytes(raw), Size: int64(len(raw))}, nil
}
