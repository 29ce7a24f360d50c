package pushd

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A Manifest is a manifest or an index, as it goes to a registry.
type Manifest struct {
	ocispec.Descriptor
	Raw  []byte
	Tags []string
}

// A TagError says that a manifest is stored, but not under all of its tags.
type TagError struct {
	Tagged   []string // what has the manifest now
	Untagged []string // what stands for what it stood for before
	Err      error    // why the first of them failed
}

func (e *TagError) Error() string {
	done := "none"
	if len(e.Tagged) > 0 {
		done = strings.Join(e.Tagged, ", ")
	}
	return fmt.Sprintf("tag %s: %v (tagged: %s; not tagged: %s)", e.Untagged[0], e.Err, done, strings.Join(e.Untagged, ", "))
}

func (e *TagError) Unwrap() error { return e.Err }

// references is what a manifest or index says about others.
type references struct {
	ArtifactType string               `json:"artifactType"`
	Config       ocispec.Descriptor   `json:"config"`
	Manifests    []ocispec.Descriptor `json:"manifests"`
	Subject      *ocispec.Descriptor  `json:"subject"`
	Annotations  map[string]string    `json:"annotations"`
}

func parseReferences(raw []byte) (references, error) {
	var r references
	if err := json.Unmarshal(raw, &r); err != nil {
		return references{}, fmt.Errorf("bad manifest: %w", err)
	}
	return r, nil
}

// inOrder sorts manifests so that what an index lists and what a subject is
// comes first, and reports which of them no other names.
func inOrder(all []Manifest) (sorted []Manifest, top map[digest.Digest]bool, err error) {
	byDigest := make(map[digest.Digest]Manifest)
	top = make(map[digest.Digest]bool)
	for _, m := range all {
		if d := digest.FromBytes(m.Raw); d != m.Digest {
			return nil, nil, fmt.Errorf("%w: manifest %s has content %s", ErrDigest, m.Digest, d)
		}
		if before, twice := byDigest[m.Digest]; twice {
			m.Tags = append(slices.Clip(before.Tags), m.Tags...)
		}
		byDigest[m.Digest], top[m.Digest] = m, true
	}
	seen := make(map[digest.Digest]bool)
	var visit func(m Manifest) error
	visit = func(m Manifest) error { // a digest cannot name itself: there are no circles
		if seen[m.Digest] {
			return nil
		}
		seen[m.Digest] = true
		refs, err := parseReferences(m.Raw)
		if err != nil {
			return err
		}
		named := refs.Manifests
		if refs.Subject != nil {
			named = append(named, *refs.Subject)
		}
		for _, d := range named {
			if child, ok := byDigest[d.Digest]; ok {
				top[d.Digest] = false
				if err := visit(child); err != nil {
					return err
				}
			}
		}
		sorted = append(sorted, byDigest[m.Digest])
		return nil
	}
	for _, m := range all {
		if err := visit(m); err != nil {
			return nil, nil, err
		}
	}
	return sorted, top, nil
}

// PutManifest implements [Target]. A registry that does not keep lists of what
// refers to a manifest (OCI-Subject) gets them as tags.
func (t *HTTP) PutManifest(ctx context.Context, desc ocispec.Descriptor, raw []byte, tags []string, w Watcher) error {
	if d := digest.FromBytes(raw); d != desc.Digest {
		return t.error(ErrDigest, "put manifest", fmt.Sprintf("%s has content %s", desc.Digest, d))
	}
	a, err := t.putManifest(ctx, desc, raw, desc.Digest.String(), w)
	if err != nil {
		return err
	}
	if a.header.Get("OCI-Subject") == "" {
		if err := t.refer(ctx, desc, raw, w); err != nil {
			return err
		}
	}
	for i, tag := range tags {
		if _, err := t.putManifest(ctx, desc, raw, tag, w); err != nil {
			return &TagError{Tagged: tags[:i], Untagged: tags[i:], Err: err}
		}
	}
	return nil
}

func (t *HTTP) putManifest(ctx context.Context, desc ocispec.Descriptor, raw []byte, ref string, w Watcher) (a *answer, err error) {
	err = t.retry(ctx, w, t.budget(), func() error {
		u, err := t.url(ctx, "manifests/"+ref)
		if err != nil {
			return err
		}
		a, err = t.send(ctx, request{
			op: "put manifest", method: http.MethodPut, url: u,
			header: http.Header{"Content-Type": {desc.MediaType}},
			body:   Bytes(raw), size: int64(len(raw)), w: w,
			want: []int{200, 201, 202, 204},
		})
		if err != nil {
			return err
		}
		return t.verify("put manifest", a, desc.Digest)
	})
	return a, err
}
