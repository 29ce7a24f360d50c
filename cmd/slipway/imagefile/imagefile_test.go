package imagefile_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/match"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/slipwayhq/slipway/cmd/slipway/imagefile"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func randomImage(t testing.TB) v1.Image {
	img, err := random.Image(1000, 2)
	check(t, err)
	return img
}

func named(tag string) layout.Option {
	return layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": tag})
}

func newLayout(t *testing.T) (layout.Path, string) {
	dir := filepath.Join(t.TempDir(), "a:b") // as paths may be
	p, err := layout.Write(dir, empty.Index)
	check(t, err)
	return p, dir
}

func digestOf(t *testing.T, x interface{ Digest() (v1.Hash, error) }) string {
	d, err := x.Digest()
	check(t, err)
	return d.String()
}

// open opens an image and reads every blob, whose digests must be right.
func open(t *testing.T, spec, top string) *imagefile.Image {
	t.Helper()
	img, err := imagefile.Open(t.Context(), spec)
	check(t, err)
	t.Cleanup(func() { check(t, img.Close()) })
	if top != "" && !strings.HasSuffix(img.Name, "@"+top) {
		t.Errorf("%s is %s, want %s", spec, img.Name, top)
	}
	if strings.Count(img.Name, "@") != 1 || !strings.HasPrefix(img.Name, spec[:4]) {
		t.Errorf("name %q", img.Name)
	}
	last := ""
	for i := range img.Manifest.Entries {
		e := &img.Manifest.Entries[i]
		r, err := img.Open(e)
		check(t, err)
		raw, err := io.ReadAll(r)
		check(t, errors.Join(err, r.Close()))
		if e.Path <= last || int64(len(raw)) != e.Size || sha256.Sum256(raw) != e.Digest || e.Path != e.Content().String() {
			t.Errorf("%s after %s: %d bytes of %d", e.Path, last, len(raw), e.Size)
		}
		last = e.Path
	}
	return img
}

func TestLayout(t *testing.T) {
	p, dir := newLayout(t)
	img := randomImage(t)
	check(t, p.AppendImage(img, named("v1")))
	want := digestOf(t, img)
	for _, name := range []string{"", ":v1", "@" + want} {
		if n := len(open(t, "oci:"+dir+name, want).Manifest.Entries); n != 4 {
			t.Errorf("%q: %d blobs", name, n)
		}
	}
	// A second image makes a name necessary, and is named.
	check(t, p.AppendImage(randomImage(t), named("v2")))
	fails(t, "oci:"+dir, imagefile.ErrName, "2 images", "v1, v2")
	fails(t, "oci:"+dir+":v3", imagefile.ErrName, "no image v3", "v1, v2")
	open(t, "oci:"+dir+":v1", want)

	// An index, one of whose images is not there: another may be wanted.
	idx, err := random.Index(1000, 1, 2)
	check(t, err)
	check(t, p.AppendIndex(idx, named("all")))
	if n := len(open(t, "oci:"+dir+":all", digestOf(t, idx)).Manifest.Entries); n != 7 {
		t.Errorf("index: %d blobs", n)
	}
	m, err := idx.IndexManifest()
	check(t, err)
	check(t, p.RemoveBlob(m.Manifests[0].Digest))
	if n := len(open(t, "oci:"+dir+":all", digestOf(t, idx)).Manifest.Entries); n != 4 {
		t.Errorf("half an index: %d blobs", n)
	}
	// Of what is not listed, the digest is enough.
	open(t, "oci:"+dir+"@"+m.Manifests[1].Digest.String(), m.Manifests[1].Digest.String())
}

func fails(t *testing.T, spec string, kind error, texts ...string) {
	t.Helper()
	img, err := imagefile.Open(t.Context(), spec)
	if err == nil {
		_ = img.Close()
		t.Errorf("%s opens", spec)
		return
	}
	var e *imagefile.Error
	if !errors.As(err, &e) || !errors.Is(err, kind) || e.Hint == "" {
		t.Errorf("%s: %v", spec, err)
		return
	}
	for _, text := range texts {
		if !strings.Contains(e.Message+" | "+e.Hint, text) {
			t.Errorf("%s: %q, hint %q; want %q in it", spec, e.Message, e.Hint, text)
		}
	}
}

func TestLayoutsThatAreWrong(t *testing.T) {
	tmp := t.TempDir()
	file := filepath.Join(tmp, "image.tar")
	check(t, os.WriteFile(file, []byte("x"), 0o600))
	fails(t, "oci:"+tmp, imagefile.ErrInvalid, "no OCI layout", "skopeo copy")
	fails(t, "oci:"+tmp+"/absent", imagefile.ErrName, "no directory")
	fails(t, "oci:"+file, imagefile.ErrInvalid, "is a file", "tar -xf")

	for name, tc := range map[string]struct {
		change func(t *testing.T, p layout.Path, dir string, img v1.Image)
		text   string
	}{
		"no images": {func(t *testing.T, p layout.Path, _ string, _ v1.Image) {
			check(t, p.RemoveDescriptors(match.Name("v1")))
		}, "no images"},
		"no manifest": {func(t *testing.T, p layout.Path, _ string, img v1.Image) { check(t, p.RemoveBlob(hash(t, img))) }, "lacks the manifest"},
		"another layout": {func(t *testing.T, p layout.Path, dir string, _ v1.Image) {
			overwrite(t, dir, "oci-layout", `{"imageLayoutVersion":"2.0.0"}`)
		}, "unknown version"},
		"no index": {func(t *testing.T, p layout.Path, dir string, _ v1.Image) { overwrite(t, dir, "index.json", `x`) }, "index.json"},
		"a digest that leads out": {func(t *testing.T, p layout.Path, dir string, _ v1.Image) {
			overwrite(t, dir, "index.json", `{"schemaVersion":2,"manifests":[{"digest":"sha256:../../../etc/passwd","size":1}]}`)
		}, "no SHA-256 digest"},
		"manifest damaged": {func(t *testing.T, _ layout.Path, dir string, img v1.Image) {
			raw, err := img.RawManifest()
			check(t, err)
			overwrite(t, dir, "blobs/sha256/"+hash(t, img).Hex, strings.Replace(string(raw), "2", "3", 1))
		}, "is damaged"},
		"layer cut off": {func(t *testing.T, _ layout.Path, dir string, img v1.Image) {
			layers, err := img.Layers()
			check(t, err)
			overwrite(t, dir, "blobs/sha256/"+hash(t, layers[0]).Hex, "short")
		}, "has 5 bytes, its descriptor says"},
	} {
		t.Run(name, func(t *testing.T) {
			p, dir := newLayout(t)
			img := randomImage(t)
			check(t, p.AppendImage(img, named("v1")))
			tc.change(t, p, dir, img)
			fails(t, "oci:"+dir, imagefile.ErrInvalid, tc.text)
		})
	}
}

func hash(t *testing.T, x interface{ Digest() (v1.Hash, error) }) v1.Hash {
	d, err := x.Digest()
	check(t, err)
	return d
}

func overwrite(t *testing.T, dir, name, text string) {
	t.Helper()
	check(t, os.Chmod(filepath.Join(dir, name), 0o600))
	check(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
}

// A link out of the layout is not followed.
func TestLayoutStaysInside(t *testing.T) {
	p, dir := newLayout(t)
	img := randomImage(t)
	check(t, p.AppendImage(img, named("v1")))
	layers, err := img.Layers()
	check(t, err)
	path := filepath.Join(dir, "blobs/sha256", hash(t, layers[0]).Hex)
	outside := filepath.Join(t.TempDir(), "secret")
	check(t, os.Rename(path, outside))
	check(t, os.Symlink(outside, path))
	if img, err := imagefile.Open(t.Context(), "oci:"+dir); err == nil {
		_ = img.Close()
		t.Error("a symbolic link leads out of the layout")
	}
}

// A docker archive as docker save writes it, with plain layers.
func plainArchive(t *testing.T, file string, entries map[string]string, order ...string) {
	t.Helper()
	f, err := os.Create(file)
	check(t, err)
	w := tar.NewWriter(f)
	for _, n := range order {
		h := &tar.Header{Name: n, Mode: 0o644, Size: int64(len(entries[n]))}
		if to, ok := strings.CutPrefix(entries[n], "link:"); ok {
			h = &tar.Header{Typeflag: tar.TypeSymlink, Name: n, Linkname: to}
		}
		check(t, w.WriteHeader(h))
		if h.Size > 0 {
			_, err := io.WriteString(w, entries[n])
			check(t, err)
		}
	}
	check(t, errors.Join(w.Close(), f.Close()))
}

func TestArchive(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "shop.tar")
	a, b := randomImage(t), randomImage(t)
	one, err := name.NewTag("example.com/shop:v1")
	check(t, err)
	// Its layers are compressed, which docker load takes too.
	check(t, tarball.WriteToFile(file, one, a))
	img := open(t, "docker-archive:"+file, "")
	if len(img.Manifest.Entries) != 4 {
		t.Errorf("%d blobs", len(img.Manifest.Entries))
	}
	layers, err := a.Layers()
	check(t, err)
	for _, l := range layers {
		if !has(img, digestOf(t, l)) {
			t.Errorf("lacks layer %s", digestOf(t, l))
		}
	}
	two, err := name.NewTag("nginx:1")
	check(t, err)
	both := filepath.Join(dir, "both.tar")
	check(t, tarball.MultiWriteToFile(both, map[name.Tag]v1.Image{one: a, two: b}))
	fails(t, "docker-archive:"+both, imagefile.ErrName, "2 images", "shop:v1")
	fails(t, "docker-archive:"+both+":v9", imagefile.ErrName, "no image v9", "nginx:1")
	if got := open(t, "docker-archive:"+both+":example.com/shop:v1", ""); !strings.HasSuffix(got.Name, img.Name[strings.LastIndex(img.Name, "@"):]) {
		t.Errorf("the same image is %s and %s", got.Name, img.Name)
	}
	open(t, "docker-archive:"+both+":docker.io/library/nginx:1", "")
}

func has(img *imagefile.Image, d string) bool {
	_, ok := img.Manifest.Find(d)
	return ok
}

// Plain layers are named by their diff IDs, without being read; equal ones may
// be links.
func TestArchiveOfPlainLayers(t *testing.T) {
	file := filepath.Join(t.TempDir(), "shop.tar")
	layer := tarText(t, "hello")
	diffID := sum(layer)
	entries := map[string]string{
		"aa/layer.tar": layer, "bb/layer.tar": "link:../aa/layer.tar",
		"config.json":   `{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":["` + diffID + `","` + diffID + `"]}}`,
		"manifest.json": `[{"Config":"config.json","RepoTags":null,"Layers":["aa/layer.tar","bb/layer.tar"]}]`,
	}
	plainArchive(t, file, entries, "aa/layer.tar", "bb/layer.tar", "config.json", "manifest.json")
	img := open(t, "docker-archive:"+file, "")
	if !has(img, diffID) || !has(img, sum(entries["config.json"])) || len(img.Manifest.Entries) != 3 {
		t.Errorf("%v", img.Manifest.Entries)
	}
}

func tarText(t testing.TB, text string) string {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	check(t, w.WriteHeader(&tar.Header{Name: "f", Mode: 0o644, Size: int64(len(text))}))
	_, err := io.WriteString(w, text)
	check(t, errors.Join(err, w.Close()))
	return b.String()
}

func sum(text string) string {
	h, _, err := v1.SHA256(strings.NewReader(text))
	if err != nil {
		panic(err)
	}
	return h.String()
}

func TestArchivesThatAreWrong(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "shop.tar")
	fails(t, "docker-archive:"+file, imagefile.ErrName, "no file")
	fails(t, "docker-archive:"+dir, imagefile.ErrName, "is a directory", "oci:")

	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	_, err := io.WriteString(w, tarText(t, "x"))
	check(t, errors.Join(err, w.Close()))
	check(t, os.WriteFile(file, z.Bytes(), 0o600))
	fails(t, "docker-archive:"+file, imagefile.ErrInvalid, "compressed with gzip", "gunzip "+file)
	check(t, os.WriteFile(file, []byte(strings.Repeat("no tar", 1000)), 0o600))
	fails(t, "docker-archive:"+file, imagefile.ErrInvalid, "no docker archive")

	layer := tarText(t, "hello")
	config := `{"rootfs":{"diff_ids":["` + sum(layer) + `"]}}`
	for name, tc := range map[string]struct {
		entries map[string]string
		text    string
	}{
		"no manifest":     {map[string]string{"x": "y"}, "no manifest.json"},
		"a layout":        {map[string]string{"oci-layout": "{}"}, "OCI layout in a tar"},
		"no images":       {map[string]string{"manifest.json": "[]"}, "no images"},
		"no config":       {map[string]string{"manifest.json": `[{"Config":"c","Layers":[]}]`}, "lacks the file c"},
		"no layer":        {map[string]string{"manifest.json": `[{"Config":"c","Layers":["l"]}]`, "c": config}, "lacks the file l"},
		"too few layers":  {map[string]string{"manifest.json": `[{"Config":"c","Layers":[]}]`, "c": config}, "has 0 layers, its config names 1"},
		"config broken":   {map[string]string{"manifest.json": `[{"Config":"c","Layers":[]}]`, "c": "x"}, "does not parse"},
		"links in a ring": {map[string]string{"manifest.json": `[{"Config":"c","Layers":["l"]}]`, "c": config, "l": "link:l"}, "lacks the file l"},
		"diff ID broken":  {map[string]string{"manifest.json": `[{"Config":"c","Layers":["l"]}]`, "c": `{"rootfs":{"diff_ids":["sha256:x"]}}`, "l": layer}, "no SHA-256 digest"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "shop.tar")
			var order []string
			for n := range tc.entries {
				order = append(order, n)
			}
			plainArchive(t, file, tc.entries, order...)
			fails(t, "docker-archive:"+file, imagefile.ErrInvalid, tc.text)
		})
	}
}

func TestIs(t *testing.T) {
	for spec, want := range map[string]bool{"oci:dir": true, "docker-archive:x": true, "oci/dir": false, "debian:bookworm": false, "": false} {
		if imagefile.Is(spec) != want {
			t.Errorf("Is(%q) = %v", spec, !want)
		}
	}
}

// What an archive holds is never trusted with more than an error.
func FuzzArchive(f *testing.F) {
	layer := tarText(f, "hello")
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for n, text := range map[string]string{"manifest.json": `[{"Config":"c","Layers":["l"]}]`, "c": `{"rootfs":{"diff_ids":["` + sum(layer) + `"]}}`, "l": layer} {
		_ = w.WriteHeader(&tar.Header{Name: n, Mode: 0o644, Size: int64(len(text))})
		_, _ = io.WriteString(w, text)
	}
	_ = w.Close()
	f.Add(b.Bytes())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		file := filepath.Join(t.TempDir(), "a.tar")
		check(t, os.WriteFile(file, data, 0o600))
		img, err := imagefile.Open(t.Context(), "docker-archive:"+file)
		if err != nil {
			return
		}
		defer img.Close()
		for i := range img.Manifest.Entries {
			e := &img.Manifest.Entries[i]
			r, err := img.Open(e)
			if err != nil {
				t.Fatal(err)
			}
			if n, err := io.Copy(io.Discard, r); n > int64(len(data))+1<<20 {
				t.Fatalf("%d bytes of an archive of %d, %v", n, len(data), err)
			}
			_ = r.Close()
		}
	})
}
