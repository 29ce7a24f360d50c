package limits

import "strings"

const (
	maxName  = 255  // of a path's component
	maxPath  = 4095 // of a whole path and of a link target
	maxLinks = 255  // followed on the way to one path
)

// walk finds the directory dir as a lookup in the finished image does: links
// are followed, whoever wrote them, and stay within the root.
func (t *tree) walk(dir string) (id, bool) {
	var at id
	links := 0
	for dir != "" {
		var name string
		name, dir, _ = strings.Cut(dir, "/")
		k, ok := t.step(at, name)
		if !ok {
			return 0, false
		}
		switch n := t.at(k); n.kind {
		case kindDir:
			at = k
		case kindSymlink:
			if links++; links > maxLinks {
				return 0, false
			}
			at, dir = t.follow(n, at, dir)
		default:
			return 0, false
		}
	}
	return at, true
}

// make finds the directory dir as an unpacked layer does, and makes what is
// missing. Links that the same layer wrote are followed; what else is in the
// way comes from layers below and is replaced. All on the way then counts as
// written by layer.
func (t *tree) make(dir string, layer uint16) (id, error) {
	var at id
	links := 0
	for rest := dir; rest != ""; {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		k, ok := t.step(at, name)
		if !ok {
			made, err := t.mkdir(at, name, layer)
			if err != nil {
				return 0, err
			}
			at = made
			continue
		}
		n := t.at(k)
		switch {
		case n.kind == kindDir:
			n.layer = layer
			at = k
		case n.layer != layer:
			t.set(k, kindDir, 1, 0)
			n.layer = layer
			at = k
		case n.kind == kindSymlink:
			if links++; links > maxLinks {
				return 0, entryError(dir, "too many links")
			}
			at, rest = t.follow(n, at, rest)
		default:
			return 0, entryError(dir, "%s is not a directory", name)
		}
	}
	return at, nil
}

func (t *tree) mkdir(at id, name string, layer uint16) (id, error) {
	if len(name) > maxName {
		return 0, entryError(name, "name is longer than %d bytes", maxName)
	}
	return t.add(at, name, layer)
}

// step returns what name is at a directory.
func (t *tree) step(at id, name string) (id, bool) {
	switch name {
	case "", ".":
		return at, true
	case "..":
		return t.at(at).parent, true
	}
	k := t.find(at, name)
	return k, k != 0
}

// follow returns where the lookup of rest goes on after the link n at a
// directory.
func (t *tree) follow(n *node, at id, rest string) (id, string) {
	target := t.target(n)
	if strings.HasPrefix(target, "/") {
		at = 0
	}
	if rest == "" {
		return at, target
	}
	return at, target + "/" + rest
}

// target returns where the symbolic link n points to.
func (t *tree) target(n *node) string {
	payload, _ := t.inode(n)
	return string(t.names.at(nameRef(payload>>32), int(uint32(payload))))
}
