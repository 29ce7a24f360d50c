package classic_test

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive/compression"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

const goarch = runtime.GOARCH

// An outcome is what became of a build.
type outcome struct {
	world *world
	*slipwayv1.Result
	events     []*slipwayv1.Event
	needed     map[string]bool // files whose content was asked for
	repository string
}

// exitCode is what slipway deploy's exit code follows from: a RUN step's own,
// or 1 for all else.
func (o *outcome) exitCode() int {
	switch {
	case o.Error == nil:
		return 0
	case o.Error.ExitCode != 0:
		return int(o.Error.ExitCode)
	}
	return 1
}

// A node is one path of an image, as the cases' expected.json has it.
type node struct {
	Type   string            `json:"t"`
	Mode   string            `json:"mode"`
	Own    string            `json:"own"`
	Size   int64             `json:"size,omitempty"`
	SHA256 string            `json:"sha256,omitempty"`
	Link   string            `json:"link,omitempty"`
	MTime  string            `json:"mtime,omitempty"`
	Device string            `json:"dev,omitempty"`
	Xattrs map[string]string `json:"xattr,omitempty"`
	Path   string            `json:"path,omitempty"`
}

// An image is one read back from the registry.
type image struct {
	raw    []byte
	config dockerspec.DockerOCIImage
	layers [][]node
	tree   map[string]node
}

// pull reads the build's image back from the registry.
func (o *outcome) pull() *image {
	w := o.world
	w.tb.Helper()
	if o.Error != nil {
		w.tb.Fatalf("build failed: %s: line %d: %s", o.Error.Code, o.Error.Line, o.Error.Message)
	}
	name, tag, _ := strings.Cut(strings.TrimPrefix(o.repository, registryHost+"/"), ":")
	return w.pull(name, tag)
}

func (w *world) pull(name, tag string) *image {
	w.tb.Helper()
	ctx := w.tb.Context()
	repo, err := w.registry.Repository(name)
	w.must(err)
	_, raw, err := repo.Manifest(ctx, tag)
	w.must(err)
	var m ocispec.Manifest
	w.must(json.Unmarshal(raw, &m))
	img := &image{tree: map[string]node{}}
	file, _, err := repo.Blob(ctx, m.Config.Digest)
	w.must(err)
	img.raw, err = os.ReadFile(file)
	w.must(err)
	w.must(json.Unmarshal(img.raw, &img.config))
	for _, l := range m.Layers {
		file, _, err := repo.Blob(ctx, l.Digest)
		w.must(err)
		nodes, err := readLayer(file)
		w.must(err)
		img.layers = append(img.layers, nodes)
		flatten(img.tree, nodes)
	}
	return img
}

// recent is how old what a build made may be.
const recent = time.Hour

func readLayer(file string) ([]node, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	plain, err := compression.DecompressStream(f)
	if err != nil {
		return nil, err
	}
	defer plain.Close()
	var nodes []node
	for tr := tar.NewReader(plain); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nodes, nil
		}
		if err != nil {
			return nil, err
		}
		n, err := newNode(h, tr)
		if err != nil {
			return nil, err
		}
		nodes = append(nodes, n)
	}
}

var nodeTypes = map[byte]string{
	tar.TypeReg: "f", tar.TypeDir: "d", tar.TypeSymlink: "l", tar.TypeLink: "h", tar.TypeFifo: "p", tar.TypeChar: "c", tar.TypeBlock: "b",
}

func newNode(h *tar.Header, r io.Reader) (node, error) {
	n := node{
		Type: nodeTypes[h.Typeflag], Mode: fmt.Sprintf("%04o", h.Mode), Own: fmt.Sprintf("%d:%d", h.Uid, h.Gid),
		Link: h.Linkname, Path: path.Clean("/" + h.Name), MTime: strconv.FormatInt(h.ModTime.Unix(), 10),
	}
	if time.Since(h.ModTime) < recent {
		n.MTime = "now"
	}
	if h.Typeflag == tar.TypeReg {
		sum := sha256.New()
		size, err := io.Copy(sum, r)
		if err != nil {
			return n, err
		}
		n.Size, n.SHA256 = size, hex.EncodeToString(sum.Sum(nil))
	}
	if h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock {
		n.Device = fmt.Sprintf("%d:%d", h.Devmajor, h.Devminor)
	}
	for k, v := range h.PAXRecords {
		if name, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
			if n.Xattrs == nil {
				n.Xattrs = map[string]string{}
			}
			n.Xattrs[name] = hex.EncodeToString([]byte(v))
		}
	}
	return n, nil
}

// flatten applies a layer to a tree.
func flatten(tree map[string]node, layer []node) {
	for _, n := range layer {
		dir, name := path.Split(n.Path)
		gone, whiteout := strings.CutPrefix(name, ".wh.")
		if name == ".wh..wh..opq" {
			removeBelow(tree, path.Clean(dir))
		} else if whiteout {
			delete(tree, dir+gone)
			removeBelow(tree, dir+gone)
		}
	}
	for _, n := range layer {
		if strings.HasPrefix(path.Base(n.Path), ".wh.") {
			continue
		}
		if n.Type != "d" {
			removeBelow(tree, n.Path)
		}
		tree[n.Path] = n
	}
}

func removeBelow(tree map[string]node, dir string) {
	for p := range tree {
		if strings.HasPrefix(p, strings.TrimSuffix(dir, "/")+"/") {
			delete(tree, p)
		}
	}
}
