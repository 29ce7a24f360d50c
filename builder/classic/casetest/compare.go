package casetest

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"testing"
	"time"
)

// image compares the last step's image.
func (c *caseRun) image(got *Image) {
	want := c.want.Image
	rewrite := c.rewrite()
	for _, layer := range want.Layers {
		for i := range layer {
			rewrite(&layer[i])
		}
	}
	for p, n := range want.Tree {
		n.Path = p
		rewrite(&n)
		want.Tree[p] = n
	}
	c.config(got, want)
	if len(got.Layers) != want.BaseLayers+len(want.Layers) {
		c.Errorf("%d layers, want %d", len(got.Layers), want.BaseLayers+len(want.Layers))
		return
	}
	for i, layer := range want.Layers {
		compareNodes(c.T, fmt.Sprintf("layer %d", i+1), byPath(got.Layers[want.BaseLayers+i]), byPath(layer))
	}
	base := map[string]Node{}
	if want.BaseLayers > 0 {
		base = c.builder.Pull(c.T, BaseRef).Tree
	}
	for _, p := range want.Deleted {
		if _, ok := got.Tree[p]; ok {
			c.Errorf("%s is not deleted", p)
		}
		delete(base, p)
	}
	tree := maps.Clone(got.Tree)
	for p, n := range base {
		if _, changed := want.Tree[p]; !changed && p != "/" {
			want.Tree[p] = n
		}
	}
	delete(tree, "/")
	compareNodes(c.T, "tree", tree, want.Tree)
}

// referenceBusybox is the busybox that the cases were observed with.
const referenceBusybox = "3d9f2889d6782537624a4e1a10e68a2ddd53e0ee8bac02676f27308f42ec6bf6"

// rewrite returns what turns an observed path into the expected one: with this
// machine's busybox, and with what is different on purpose.
func (c *caseRun) rewrite() func(*Node) {
	busybox := c.builder.Pull(c.T, BaseRef).Tree["/bin/busybox"]
	return func(n *Node) {
		if n.SHA256 == referenceBusybox {
			n.SHA256, n.Size = busybox.SHA256, busybox.Size
		}
		for _, d := range differences[c.name] {
			if d.node != nil {
				d.node(n)
			}
		}
	}
}

func byPath(nodes []Node) map[string]Node {
	out := map[string]Node{}
	for _, n := range nodes {
		out[n.Path] = n
	}
	return out
}

func compareNodes(t *testing.T, what string, got, want map[string]Node) {
	t.Helper()
	all := maps.Clone(want)
	maps.Copy(all, got)
	for _, p := range slices.Sorted(maps.Keys(all)) {
		if g, w := got[p], want[p]; !reflect.DeepEqual(g, w) {
			t.Errorf("%s: %s\n got %+v\nwant %+v", what, p, g, w)
		}
	}
}

// config compares the config and the history.
func (c *caseRun) config(img *Image, want *expectedImage) {
	for _, d := range differences[c.name] {
		if d.config != nil {
			d.config(want.Config)
		}
	}
	var got map[string]any
	if err := json.Unmarshal(img.Config, &got); err != nil {
		c.Fatal(err)
	}
	if at, err := time.Parse(time.RFC3339, fmt.Sprint(got["created"])); err != nil || time.Since(at) > recent {
		c.Errorf("created %v (%v)", got["created"], err)
	}
	delete(got, "created")
	delete(got, "rootfs")
	got["n_layers"] = float64(len(img.Layers))
	for _, h := range got["history"].([]any) {
		delete(h.(map[string]any), "created")
	}
	g, w := indent(c.T, dropEmpty(got)), indent(c.T, dropEmpty(want.Config))
	if g != w {
		c.Errorf("config\n got %s\nwant %s", g, w)
	}
}

// hashed is what a COPY or ADD has copied: our hashes are of other fields.
var hashed = regexp.MustCompile(`\b((?:file|dir|multi):|ADD (?:--chown=\S+ )?)[0-9a-f]{64}\b`)

func indent(t *testing.T, v any) string {
	raw, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return hashed.ReplaceAllString(string(raw), "${1}HASH")
}

// dropEmpty removes fields that say nothing.
func dropEmpty(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			e = dropEmpty(e)
			switch x := e.(type) {
			case nil:
				delete(v, k)
				continue
			case string:
				if x == "" {
					delete(v, k)
					continue
				}
			case bool:
				if !x {
					delete(v, k)
					continue
				}
			case []any:
				if len(x) == 0 {
					delete(v, k)
					continue
				}
			}
			v[k] = e
		}
	case []any:
		for i := range v {
			v[i] = dropEmpty(v[i])
		}
	}
	return v
}
