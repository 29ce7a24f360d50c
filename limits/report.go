package limits

import (
	"cmp"
	"slices"
)

// A Report says what a root file system consists of.
type Report struct {
	Total, Max int64        // Max is negative where there is no limit
	Path       string       // where the limit was crossed; empty if it was not
	Paths      []PathSize   // the ten largest files, largest first
	Dirs       []PathSize   // the ten largest directories with all below them, largest first
	Sources    []SourceSize // by Dockerfile line, in order
	Advice     []Advice     // what would help, what saves most first
}

// A PathSize is what a path takes.
type PathSize struct {
	Path  string
	Bytes int64
}

// A SourceSize is what the layers of a Dockerfile line added. It is negative
// if they took more away. All of them add up to the total.
type SourceSize struct {
	Source
	Bytes int64
}

// reported is the length of a report's lists of paths.
const reported = 10

// Report makes a report; it visits every path. Of directories, it leaves out
// the root and those that hold little more than one other directory, which
// says it better. A file with several names appears under one.
func (l *Ledger) Report() Report {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.report("")
}

func (l *Ledger) report(path string) Report {
	r := Report{Total: l.total.Load(), Max: l.max, Path: path, Sources: slices.Clone(l.sources)}
	var sums []int64
	r.Paths, r.Dirs, sums = l.tree.largest()
	r.Advice = l.advise(sums)
	return r
}

// largest returns the largest files and directories, and what each node takes
// with all below.
func (t *tree) largest() (files, dirs []PathSize, sums []int64) {
	sums = make([]int64, t.used)
	inner := make([]int64, t.used) // largest directory in a directory
	seen := make([]bool, len(t.inodes))
	var topFiles, topDirs top
	t.postorder(func(k id) {
		n := t.at(k)
		sums[k] += t.once(n, seen)
		if k == 0 {
			return
		}
		p := n.parent
		sums[p] += sums[k]
		if n.kind != kindDir {
			topFiles.add(k, sums[k])
			return
		}
		inner[p] = max(inner[p], sums[k])
		if inner[k] < sums[k]/10*9 {
			topDirs.add(k, sums[k])
		}
	})
	return topFiles.paths(t), topDirs.paths(t), sums
}

// once returns what n takes, and what an inode takes for the first of its
// names.
func (t *tree) once(n *node, seen []bool) int64 {
	if n.flags&flagLinked == 0 {
		return n.own()
	}
	if seen[n.payload] {
		return 0
	}
	seen[n.payload] = true
	in := t.inodes[n.payload]
	return nodeBytes(n.kind, in.payload, in.flags)
}

// postorder visits all nodes, children before parents.
func (t *tree) postorder(visit func(id)) {
	k := t.deepest(0)
	for {
		visit(k)
		if k == 0 {
			return
		}
		n := t.at(k)
		if n.next != 0 {
			k = t.deepest(n.next)
		} else {
			k = n.parent
		}
	}
}

func (t *tree) deepest(k id) id {
	for {
		child := t.at(k).child
		if child == 0 {
			return k
		}
		k = child
	}
}

// A top keeps the largest nodes, largest first.
type top []ranked

type ranked struct {
	id    id
	bytes int64
}

func (p *top) add(k id, bytes int64) {
	if bytes == 0 || len(*p) == reported && bytes <= (*p)[reported-1].bytes {
		return
	}
	i, _ := slices.BinarySearchFunc(*p, bytes, func(r ranked, b int64) int { return cmp.Compare(b, r.bytes) })
	for i < len(*p) && (*p)[i].bytes == bytes {
		i++
	}
	*p = slices.Insert(*p, i, ranked{k, bytes})
	*p = (*p)[:min(len(*p), reported)]
}

func (p top) paths(t *tree) []PathSize {
	out := make([]PathSize, len(p))
	for i, r := range p {
		out[i] = PathSize{Path: t.path(r.id), Bytes: r.bytes}
	}
	slices.SortStableFunc(out, func(a, b PathSize) int {
		return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), cmp.Compare(a.Path, b.Path))
	})
	return out
}
