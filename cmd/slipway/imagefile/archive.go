package imagefile

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// An archive is what "docker save" writes: a tar with a list of images, their
// configs, and their layers as tars of their own.
type archive struct {
	path    string // as people know it
	file    *os.File
	members map[string]member
}

// A member is a file in the tar.
type member struct {
	off, size int64
	link      string // of a link; then the rest is nothing
}

// A saved image is an entry of manifest.json.
type saved struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func openArchive(ctx context.Context, spec, rest string) (_ *Image, err error) {
	file, tag := cutName(rest)
	a, err := newArchive(ctx, file)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.file.Close())
		}
	}()
	image, err := a.choose(tag)
	if err != nil {
		return nil, err
	}
	d, blobs, err := a.manifest(ctx, image)
	if err != nil {
		return nil, err
	}
	return newImage(spec+"@"+d.String(), blobs, a.file.Close), nil
}

func newArchive(ctx context.Context, file string) (*archive, error) {
	info, err := os.Stat(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, unknown("give a file that docker save has written, as docker-archive:FILE or docker-archive:FILE:NAME", "there is no file %s", file)
	case err != nil:
		return nil, err
	case info.IsDir():
		return nil, unknown("name an OCI layout as oci:"+file, "%s is a directory, not a docker archive", file)
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	a := &archive{path: file, file: f, members: map[string]member{}}
	if err := a.scan(ctx); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return a, nil
}

// compressions tells compressed files by how they begin.
var compressions = []struct{ magic, name, program string }{
	{"\x1f\x8b", "gzip", "gunzip"},
	{"\x28\xb5\x2f\xfd", "zstd", "unzstd"},
	{"\xfd7zXZ\x00", "xz", "unxz"},
	{"BZh", "bzip2", "bunzip2"},
}

// maxMembers bounds the files of an archive.
const maxMembers = 100_000

// scan lists the tar's files without reading them.
func (a *archive) scan(ctx context.Context) error {
	var head [6]byte
	n, err := a.file.ReadAt(head[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	for _, c := range compressions {
		if strings.HasPrefix(string(head[:n]), c.magic) {
			return invalid("decompress it first: "+c.program+" "+a.path, "%s is compressed with %s; parts of it cannot be read", a.path, c.name)
		}
	}
	r := tar.NewReader(a.file)
	for len(a.members) < maxMembers {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return invalid("save the image again: docker save -o FILE IMAGE", "%s is no docker archive: %v", a.path, err)
		}
		if err := a.note(h); err != nil {
			return err
		}
	}
	return invalid("", "%s has more than %d files", a.path, maxMembers)
}

// note writes down where a member is. The tar reader has read up to its
// content, and seeks over it next.
func (a *archive) note(h *tar.Header) error {
	m := member{size: h.Size}
	switch h.Typeflag {
	case tar.TypeReg:
		var err error
		if m.off, err = a.file.Seek(0, io.SeekCurrent); err != nil {
			return err
		}
	case tar.TypeSymlink:
		m.link = path.Join(path.Dir(path.Clean(h.Name)), h.Linkname)
	case tar.TypeLink:
		m.link = path.Clean(h.Linkname)
	default:
		return nil
	}
	a.members[path.Clean(h.Name)] = m
	return nil
}

// find returns a member, through links: equal layers may be stored once.
func (a *archive) find(name string) (member, error) {
	at := path.Clean(name)
	for range 8 {
		m, ok := a.members[at]
		if !ok {
			break
		}
		if m.link == "" {
			return m, nil
		}
		at = m.link
	}
	return member{}, invalid("save the image again: docker save -o FILE IMAGE", "the docker archive %s lacks the file %s", a.path, name)
}

func (a *archive) open(m member) io.Reader { return io.NewSectionReader(a.file, m.off, m.size) }

func (a *archive) read(name string) ([]byte, error) {
	m, err := a.find(name)
	if err != nil {
		return nil, err
	}
	return readAll(name+" in "+a.path, a.open(m))
}

// choose returns the image with a tag, or the only one if there is no tag.
func (a *archive) choose(tag string) (saved, error) {
	if _, ok := a.members["manifest.json"]; !ok {
		if _, ok := a.members[ocispec.ImageLayoutFile]; ok {
			return saved{}, invalid("extract it and use its directory: mkdir DIR && tar -xf "+a.path+" -C DIR, then --image oci:DIR", "%s is an OCI layout in a tar, not a docker archive", a.path)
		}
		return saved{}, invalid("give a file that docker save has written", "%s is no docker archive: it has no manifest.json", a.path)
	}
	raw, err := a.read("manifest.json")
	if err != nil {
		return saved{}, err
	}
	var all []saved
	if json.Unmarshal(raw, &all) != nil || len(all) == 0 {
		return saved{}, invalid("save the image again: docker save -o FILE IMAGE", "the docker archive %s has no images", a.path)
	}
	var tags []string
	found := slices.DeleteFunc(slices.Clone(all), func(s saved) bool {
		tags = append(tags, s.RepoTags...)
		return tag != "" && !slices.ContainsFunc(s.RepoTags, func(t string) bool { return sameName(t, tag) })
	})
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) == 0 && len(tags) == 0:
		return saved{}, unknown("its images have no names; save the one you want alone", "the docker archive %s has no image %s", a.path, tag)
	case len(found) == 0:
		return saved{}, unknown("name one of: "+list(tags), "the docker archive %s has no image %s", a.path, tag)
	}
	return saved{}, unknown("name one, as docker-archive:"+a.path+":NAME: "+list(tags), "the docker archive %s has %d images", a.path, len(found))
}

// sameName compares image names, with or without a registry and a tag.
func sameName(a, b string) bool {
	if a == b {
		return true
	}
	x, err := name.ParseReference(a)
	if err != nil {
		return false
	}
	y, err := name.ParseReference(b)
	return err == nil && x.Name() == y.Name()
}

// manifest makes a manifest up that says what the archive has, and returns its
// digest and all blobs.
func (a *archive) manifest(ctx context.Context, s saved) (digest.Digest, map[digest.Digest]blob, error) {
	raw, err := a.read(s.Config)
	if err != nil {
		return "", nil, err
	}
	var config ocispec.Image
	if err := json.Unmarshal(raw, &config); err != nil {
		return "", nil, invalid("save the image again: docker save -o FILE IMAGE", "the config %s in %s does not parse: %v", s.Config, a.path, err)
	}
	if len(config.RootFS.DiffIDs) != len(s.Layers) {
		return "", nil, invalid("save the image again: docker save -o FILE IMAGE", "the docker archive %s has %d layers, its config names %d", a.path, len(s.Layers), len(config.RootFS.DiffIDs))
	}
	blobs := map[digest.Digest]blob{digest.FromBytes(raw): inMemory(raw)}
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Layers: []ocispec.Descriptor{},
		Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(raw), Size: int64(len(raw))},
	}
	for n, file := range s.Layers {
		d, b, err := a.layer(ctx, file, config.RootFS.DiffIDs[n])
		if err != nil {
			return "", nil, err
		}
		blobs[d.Digest] = b
		m.Layers = append(m.Layers, d)
	}
	top, err := json.Marshal(m)
	if err != nil {
		return "", nil, fmt.Errorf("manifest: %w", err)
	}
	blobs[digest.FromBytes(top)] = inMemory(top)
	return digest.FromBytes(top), blobs, nil
}

// layer describes a layer. A plain tar has the digest that the config gives
// it, which is checked when it is sent; a compressed one must be read.
func (a *archive) layer(ctx context.Context, file string, diffID digest.Digest) (ocispec.Descriptor, blob, error) {
	none := ocispec.Descriptor{}
	if err := checkDigest("the config in "+a.path, diffID); err != nil {
		return none, blob{}, err
	}
	m, err := a.find(file)
	if err != nil {
		return none, blob{}, err
	}
	b := blob{m.size, func() (io.ReadCloser, error) { return io.NopCloser(a.open(m)), nil }}
	d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: diffID, Size: m.size}
	head, err := io.ReadAll(io.LimitReader(a.open(m), 4))
	if err != nil {
		return none, blob{}, err
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		d.MediaType = ocispec.MediaTypeImageLayerGzip
	case bytes.Equal(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		d.MediaType = ocispec.MediaTypeImageLayerZstd
	default:
		return d, b, nil
	}
	d.Digest, err = digestOf(ctx, a.open(m))
	return d, b, err
}

func digestOf(ctx context.Context, r io.Reader) (digest.Digest, error) {
	sum := digest.SHA256.Digester()
	for buf := make([]byte, 1<<20); ; {
		n, err := r.Read(buf)
		sum.Hash().Write(buf[:n])
		if errors.Is(err, io.EOF) {
			return sum.Digest(), nil
		}
		if err == nil && ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		if err != nil {
			return "", err
		}
	}
}
