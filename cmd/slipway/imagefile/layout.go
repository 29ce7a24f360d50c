package imagefile

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const remake = "make the layout again, with all blobs: skopeo copy --all docker://… oci:DIR, or crane pull --format oci"

// A layout is an OCI image layout: a directory.
type layout struct {
	path  string // as people know it
	root  *os.Root
	blobs map[digest.Digest]blob
}

func openLayout(spec, rest string) (_ *Image, err error) {
	path, name := rest, ""
	if i := strings.LastIndex(rest, "@sha256:"); i >= 0 {
		path, name = rest[:i], rest[i+1:]
	} else {
		path, name = cutName(rest)
	}
	l, err := newLayout(path)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.root.Close())
		}
	}()
	top, err := l.choose(name)
	if err != nil {
		return nil, err
	}
	if err := l.add(top, 0); err != nil {
		return nil, err
	}
	return newImage(strings.TrimSuffix(spec, "@"+name)+"@"+top.Digest.String(), l.blobs, l.root.Close), nil
}

func newLayout(path string) (*layout, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, unknown("give the directory of an OCI layout, as oci:DIR or oci:DIR:TAG", "there is no directory %s", path)
	case err != nil:
		return nil, err
	case !info.IsDir():
		return nil, invalid("extract it into a directory first: mkdir DIR && tar -xf "+filepath.Base(path)+" -C DIR", "%s is a file, not the directory of an OCI layout", path)
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	l := &layout{path: path, root: root, blobs: map[digest.Digest]blob{}}
	if err := l.check(); err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return l, nil
}

// check looks for the mark of a layout.
func (l *layout) check() error {
	raw, err := l.read(ocispec.ImageLayoutFile)
	if errors.Is(err, fs.ErrNotExist) {
		return invalid("give a directory with an OCI layout, as skopeo copy docker://… oci:DIR makes it", "%s is no OCI layout: it has no file %s", l.path, ocispec.ImageLayoutFile)
	}
	if err != nil {
		return err
	}
	var mark ocispec.ImageLayout
	if json.Unmarshal(raw, &mark) != nil || !strings.HasPrefix(mark.Version, "1.") {
		return invalid("update slipway, or make a layout of version 1", "%s is an OCI layout of the unknown version %.20q", l.path, mark.Version)
	}
	return nil
}

func (l *layout) read(name string) ([]byte, error) {
	f, err := l.root.Open(filepath.FromSlash(name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readAll(filepath.Join(l.path, name), f)
}

// choose returns what a name stands for: a tag, a digest, or the only image if
// there is no name.
func (l *layout) choose(name string) (ocispec.Descriptor, error) {
	var index ocispec.Index
	raw, err := l.read(ocispec.ImageIndexFile)
	if errors.Is(err, fs.ErrNotExist) || err == nil && json.Unmarshal(raw, &index) != nil {
		return ocispec.Descriptor{}, invalid(remake, "%s has no readable %s", l.path, ocispec.ImageIndexFile)
	}
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if d := digest.Digest(name); strings.HasPrefix(name, "sha256:") {
		return l.byDigest(index, d)
	}
	found := slices.DeleteFunc(slices.Clone(index.Manifests), func(d ocispec.Descriptor) bool { return name != "" && !named(d, name) })
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(index.Manifests) == 0:
		return ocispec.Descriptor{}, invalid(remake, "the OCI layout %s has no images", l.path)
	case len(found) == 0:
		return ocispec.Descriptor{}, unknown("name one of: "+names(index.Manifests), "the OCI layout %s has no image %s", l.path, name)
	case name != "":
		return ocispec.Descriptor{}, unknown("name one by its digest: "+digests(found), "the OCI layout %s has %d images called %s", l.path, len(found), name)
	}
	return ocispec.Descriptor{}, unknown("name one, as oci:"+l.path+":TAG or oci:"+l.path+"@DIGEST: "+names(found), "the OCI layout %s has %d images", l.path, len(found))
}

// byDigest returns any manifest of the layout, listed or not.
func (l *layout) byDigest(index ocispec.Index, want digest.Digest) (ocispec.Descriptor, error) {
	for _, d := range index.Manifests {
		if d.Digest == want {
			return d, nil
		}
	}
	if err := checkDigest("the name", want); err != nil {
		return ocispec.Descriptor{}, err
	}
	info, err := l.root.Stat(blobPath(want))
	if err != nil {
		return ocispec.Descriptor{}, unknown("name one of: "+names(index.Manifests), "the OCI layout %s has no image %s", l.path, want)
	}
	return ocispec.Descriptor{Digest: want, Size: info.Size()}, nil
}

// The annotations that hold an image's name: a tag, or all of it.
const fullName = "io.containerd.image.name"

func named(d ocispec.Descriptor, name string) bool {
	full := d.Annotations[fullName]
	return d.Annotations[ocispec.AnnotationRefName] == name || full == name || full != "" && strings.HasSuffix(full, ":"+name)
}

func names(all []ocispec.Descriptor) string {
	var out []string
	for _, d := range all {
		name := d.Annotations[ocispec.AnnotationRefName]
		if name == "" {
			name = "@" + d.Digest.String()
		}
		out = append(out, name)
	}
	return list(out)
}

func digests(all []ocispec.Descriptor) string {
	var out []string
	for _, d := range all {
		out = append(out, "@"+d.Digest.String())
	}
	return list(out)
}

// list joins names, not too many.
func list(names []string) string {
	const most = 10
	if len(names) > most {
		return strings.Join(names[:most], ", ") + fmt.Sprintf(" and %d more", len(names)-most)
	}
	return strings.Join(names, ", ")
}

func blobPath(d digest.Digest) string {
	return filepath.Join(ocispec.ImageBlobsDir, d.Algorithm().String(), d.Encoded())
}

// A document is a manifest or an index.
type document struct {
	MediaType string               `json:"mediaType"`
	Manifests []ocispec.Descriptor `json:"manifests"`
	Config    *ocispec.Descriptor  `json:"config"`
	Layers    []ocispec.Descriptor `json:"layers"`
}

const maxNesting = 4

// add lists a manifest and what it names, as far as the layout has it: of an
// index, one platform's image may be enough. The daemon knows which.
func (l *layout) add(d ocispec.Descriptor, depth int) error {
	if err := l.addBlob(d); err != nil {
		return err
	}
	if _, ok := l.blobs[d.Digest]; !ok {
		if depth == 0 {
			return invalid(remake, "the OCI layout %s lacks the manifest %s", l.path, d.Digest)
		}
		return nil
	}
	raw, err := l.read(filepath.ToSlash(blobPath(d.Digest)))
	if err != nil {
		return err
	}
	var m document
	if digest.FromBytes(raw) != d.Digest || json.Unmarshal(raw, &m) != nil || depth > maxNesting {
		return invalid(remake, "the manifest %s of the OCI layout %s is damaged", d.Digest, l.path)
	}
	for _, child := range m.Manifests {
		if err := l.add(child, depth+1); err != nil {
			return err
		}
	}
	if m.Config != nil {
		m.Layers = append(m.Layers, *m.Config)
	}
	for _, child := range m.Layers {
		if err := l.addBlob(child); err != nil {
			return err
		}
	}
	return nil
}

// addBlob lists a blob if it is there. A size that is wrong is told here; of a
// digest that is wrong the daemon is told when the blob is sent.
func (l *layout) addBlob(d ocispec.Descriptor) error {
	if err := checkDigest("the OCI layout "+l.path, d.Digest); err != nil {
		return err
	}
	path := blobPath(d.Digest)
	info, err := l.root.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !info.Mode().IsRegular() || info.Size() != d.Size:
		return invalid(remake, "blob %s of the OCI layout %s has %d bytes, its descriptor says %d", d.Digest, l.path, info.Size(), d.Size)
	}
	l.blobs[d.Digest] = blob{d.Size, func() (io.ReadCloser, error) { return l.root.Open(path) }}
	return nil
}
