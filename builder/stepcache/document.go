// Package stepcache is how the steps of a build travel between daemons: a
// document that says what each step made, kept in an image's config or under a
// reference of its own. What a document says are the claims of whoever wrote
// it; [Decode] checks their form, the reader everything else. Read [Document]
// first.
package stepcache

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/slipwayhq/slipway/layercache"
)

// Names in registries.
const (
	// Field of an image's config that holds its document.
	Field = "slipway.cache.v1"

	// MediaType of a document that is the config of a manifest of its own.
	MediaType = "application/vnd.slipway.cache.v1+json"

	// ArtifactType of such a manifest.
	ArtifactType = "application/vnd.slipway.cache.v1"
)

// Version is that of the documents that this package writes and reads.
const Version = 1

// MaxSize bounds what Decode takes.
const MaxSize = 2 << 20

// Decisions that callers take.
var (
	ErrNone    = errors.New("holds no steps")                      // an image without a document
	ErrInvalid = errors.New("document of cached steps is invalid") // and is used in no part
)

// A Document holds steps in the order of their Dockerfile. Equal builds write
// equal documents.
type Document struct {
	Version int    `json:"version"`
	Steps   []Step `json:"steps"`
}

// A Step is what one step made.
type Step struct {
	// Keys under which the step is found: one or two.
	Keys []layercache.Key `json:"keys"`

	Created   time.Time     `json:"created"`
	CreatedBy string        `json:"created_by"`
	Empty     bool          `json:"empty,omitempty"` // the step changed no file
	DiffID    digest.Digest `json:"diff_id,omitempty"`
	Blob      *Blob         `json:"blob,omitempty"`
	InImage   bool          `json:"in_image,omitempty"` // of the image's own stages
	RootFS    int64         `json:"rootfs"`             // bytes of the unpacked tree after it
	Peak      int64         `json:"peak"`               // the most it had up to here
}

// A Blob is a layer as it lies in the repository of the document.
type Blob struct {
	MediaType string        `json:"media_type"`
	Digest    digest.Digest `json:"digest"`
	Size      int64         `json:"size"`
}

// Descriptor returns the blob as manifests name it.
func (b *Blob) Descriptor() ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: b.MediaType, Digest: b.Digest, Size: b.Size}
}

// Encode returns the document's bytes.
func (d *Document) Encode() ([]byte, error) {
	d.Version = Version
	if d.Steps == nil {
		d.Steps = []Step{}
	}
	raw, err := json.Marshal(d)
	if err == nil && len(raw) > MaxSize {
		err = fmt.Errorf("%d steps take %d bytes, %d are allowed", len(d.Steps), len(raw), MaxSize)
	}
	return raw, err
}

// Decode reads a document that anybody may have written. The error wraps
// [ErrInvalid].
func Decode(raw []byte) (*Document, error) {
	if len(raw) > MaxSize {
		return nil, fmt.Errorf("%w: it has %d bytes, %d are allowed", ErrInvalid, len(raw), MaxSize)
	}
	var d struct {
		Version int  `json:"version"`
		Steps   list `json:"steps"`
	}
	if err := json.Unmarshal(raw, &d); err != nil {
		return nil, fmt.Errorf("%w: %v", ErrInvalid, err)
	}
	if d.Version != Version {
		return nil, fmt.Errorf("%w: it is of version %d, this daemon reads %d", ErrInvalid, d.Version, Version)
	}
	return &Document{Version: d.Version, Steps: d.Steps}, nil
}

// A list is read a step at a time: the first that is none ends it, before many
// small ones take much memory.
type list []Step

func (l *list) UnmarshalJSON(raw []byte) error {
	*l = list{}
	dec := json.NewDecoder(bytes.NewReader(raw))
	if open, err := dec.Token(); err != nil || open != json.Delim('[') {
		return errors.New("it has no list of steps")
	}
	for dec.More() {
		var s Step
		err := dec.Decode(&s)
		if err == nil {
			err = s.check()
		}
		if err != nil {
			return fmt.Errorf("step %d: %w", len(*l)+1, err)
		}
		*l = append(*l, s)
	}
	return nil
}

// OfConfig returns the document that an image's config holds, else [ErrNone].
func OfConfig(raw []byte) (*Document, error) {
	var config struct {
		Document json.RawMessage `json:"slipway.cache.v1"`
	}
	if err := json.Unmarshal(raw, &config); err != nil {
		return nil, fmt.Errorf("%w: %v", ErrInvalid, err)
	}
	if config.Document == nil {
		return nil, ErrNone
	}
	return Decode(config.Document)
}

// maxKeys is how many keys one step has at most.
const maxKeys = 2

func (s *Step) check() error {
	switch {
	case len(s.Keys) == 0 || len(s.Keys) > maxKeys:
		return fmt.Errorf("has %d keys", len(s.Keys))
	case s.RootFS < 0 || s.Peak < s.RootFS:
		return fmt.Errorf("has a root file system of %d bytes, at most %d", s.RootFS, s.Peak)
	case s.Empty != (s.Blob == nil) || s.Empty != (s.DiffID == ""):
		return errors.New("has no layer, or an empty one")
	case s.Empty:
		return nil
	case !sha256(s.DiffID):
		return fmt.Errorf("has the diff ID %.100q", s.DiffID)
	}
	return s.Blob.check()
}

func (b *Blob) check() error {
	switch b.MediaType {
	case ocispec.MediaTypeImageLayer, ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerZstd:
	default:
		return fmt.Errorf("has a blob of type %.100q", b.MediaType)
	}
	if !sha256(b.Digest) || b.Size < 0 {
		return fmt.Errorf("has the blob %.100q of %d bytes", b.Digest, b.Size)
	}
	return nil
}

func sha256(d digest.Digest) bool { return d.Validate() == nil && d.Algorithm() == digest.SHA256 }
