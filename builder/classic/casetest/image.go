package casetest

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive/compression"
)

// A Node is one path of an image, as the cases' expected.json has it.
type Node struct {
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

// An Image is one read back from a registry.
type Image struct {
	Config []byte          // as it was pushed
	Layers [][]Node        // the entries of each, in the order of the layer
	Tree   map[string]Node // what the layers make together, by path
}

// NewImage returns an image that has no layers yet.
func NewImage(config []byte) *Image { return &Image{Config: config, Tree: map[string]Node{}} }

// Add reads the next layer: a tar, compressed or not.
func (i *Image) Add(r io.Reader) error {
	nodes, err := readLayer(r)
	if err != nil {
		return fmt.Errorf("layer %d: %w", len(i.Layers)+1, err)
	}
	i.Layers = append(i.Layers, nodes)
	flatten(i.Tree, nodes)
	return nil
}

// recent is how old what a build made may be.
const recent = time.Hour

func readLayer(r io.Reader) ([]Node, error) {
	plain, err := compression.DecompressStream(r)
	if err != nil {
		return nil, err
	}
	defer plain.Close()
	var nodes []Node
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

func newNode(h *tar.Header, r io.Reader) (Node, error) {
	n := Node{
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
func flatten(tree map[string]Node, layer []Node) {
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

func removeBelow(tree map[string]Node, dir string) {
	for p := range tree {
		if strings.HasPrefix(p, strings.TrimSuffix(dir, "/")+"/") {
			delete(tree, p)
		}
	}
}
