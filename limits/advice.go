package limits

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"
)

// An Advice is something that people can do to make their image smaller.
type Advice struct {
	Text  string // one line, without a full stop
	Bytes int64  // about what it would save
	Line  int    // of the Dockerfile, where it is to be done; 0 if nowhere special
}

const (
	// advised is how many advices a report has at most.
	advised = 4

	// worthwhile is the part of the total below which nothing is worth a word.
	worthwhile = 100
)

// advise returns what would help most, judged by the directories that there
// are and by who wrote them.
func (l *Ledger) advise(sums []int64) []Advice {
	a := adviser{ledger: l, tree: l.tree, sums: sums, least: l.tree.bytes/worthwhile + 1, groups: map[group]*finding{}}
	for _, f := range a.find() {
		a.collect(f)
	}
	out := a.texts()
	out = append(out, l.tooLate(a.least)...)
	slices.SortStableFunc(out, func(x, y Advice) int {
		return cmp.Or(cmp.Compare(y.Bytes, x.Bytes), cmp.Compare(x.Line, y.Line), strings.Compare(x.Text, y.Text))
	})
	if len(out) < advised {
		out = append(out, l.general(a.told)...)
	}
	return out[:min(len(out), advised)]
}

// An adviser looks for directories that rules know.
type adviser struct {
	ledger *Ledger
	tree   *tree
	sums   []int64
	least  int64 // what is worth a word
	groups map[group]*finding
	told   []int // sources that an advice is about
}

// A group is what one advice is about.
type group struct {
	help   help
	how    string
	source int
}

// A finding is a directory that a rule fits, or all of a group.
type finding struct {
	rule   *rule
	id     id
	source int
	bytes  int64
	paths  []string // largest first
}

// find returns the directories that rules know, those with what they hold that
// are not in another one, largest first.
func (a *adviser) find() []finding {
	found := map[id]*finding{}
	known := rulesByName()
	for k := id(1); k < a.tree.used; k++ {
		n := a.tree.at(k)
		if n.kind != kindDir || n.nameLen == 0 { // a freed one
			continue
		}
		for _, r := range known[string(a.tree.name(n))] {
			if found[k] == nil {
				found[k] = a.match(k, r)
			}
		}
	}
	maps.DeleteFunc(found, func(_ id, f *finding) bool { return f == nil })
	var out []finding
	for k, f := range found {
		if !a.within(k, found) {
			out = append(out, *f)
		}
	}
	slices.SortFunc(out, func(x, y finding) int {
		return cmp.Or(cmp.Compare(y.bytes, x.bytes), strings.Compare(a.tree.path(x.id), a.tree.path(y.id)))
	})
	return out
}

// match returns what r finds in the directory k, which may be nil.
func (a *adviser) match(k id, r *rule) *finding {
	if !r.fits(a.tree.path(k)) || r.with != "" && a.tree.find(k, r.with) == 0 {
		return nil
	}
	source := a.writer(k)
	if a.ledger.sources[source].origin()&r.by == 0 {
		return nil
	}
	return &finding{rule: r, id: k, source: source, bytes: a.sums[k]}
}

// writer returns the source of what is largest in k.
func (a *adviser) writer(k id) int {
	for a.tree.at(k).child != 0 {
		most := a.tree.at(k).child
		for c := most; c != 0; c = a.tree.at(c).next {
			if a.sums[c] > a.sums[most] {
				most = c
			}
		}
		k = most
	}
	return int(a.ledger.sourceOf[a.tree.at(k).layer])
}

// within reports whether a directory above k is among found.
func (a *adviser) within(k id, found map[id]*finding) bool {
	for k != 0 {
		if k = a.tree.at(k).parent; found[k] != nil {
			return true
		}
	}
	return false
}

func (a *adviser) collect(f finding) {
	g := group{f.rule.help, f.rule.how, f.source}
	all := a.groups[g]
	if all == nil {
		all = &finding{rule: f.rule, source: f.source}
		a.groups[g] = all
	}
	all.bytes += f.bytes
	all.paths = append(all.paths, a.tree.path(f.id))
}

func (a *adviser) texts() (out []Advice) {
	for g, f := range a.groups {
		if f.bytes < a.least {
			continue
		}
		s := a.ledger.sources[g.source].Source
		out = append(out, Advice{Text: f.text(s), Bytes: f.bytes, Line: s.Line})
		a.told = append(a.told, g.source)
	}
	return out
}

// text says what to do about f, which comes from s.
func (f *finding) text(s Source) string {
	size, at := gigabytes(f.bytes), brief(f.paths[0])
	if more := len(f.paths) - 1; more > 0 {
		at = fmt.Sprintf("%s and %d more", at, more)
	}
	switch f.rule.help {
	case ignoreIt:
		return fmt.Sprintf("add %s to .dockerignore: %s copies %s to %s", f.rule.how, s.where(), size, at)
	case cleanUp:
		return fmt.Sprintf("end the RUN of %s with && %s: it leaves %s in %s", s.where(), f.rule.how, size, at)
	case optOut:
		return fmt.Sprintf("use %s in %s: it leaves %s in %s", f.rule.how, s.where(), size, at)
	}
	return fmt.Sprintf("build in a stage of its own and take only the result with COPY --from: %s brings %s of %s in %s",
		s.where(), size, f.rule.how, at)
}

// brief shortens a long path: its end tells most.
func brief(path string) string {
	const most = 100
	if len(path) <= most {
		return path
	}
	cut := len(path) - most
	for cut < len(path) && !utf8.RuneStart(path[cut]) {
		cut++
	}
	return "…" + path[cut:]
}

// where names a source within a sentence.
func (s Source) where() string {
	if s.Line == 0 {
		return "the base image"
	}
	return fmt.Sprintf("line %d", s.Line)
}

// tooLate says which lines remove what earlier ones wrote: that makes room for
// nothing that comes before them, and the layers below keep it.
func (l *Ledger) tooLate(least int64) (out []Advice) {
	for _, s := range l.sources {
		if -s.Bytes >= least {
			out = append(out, Advice{
				Text:  fmt.Sprintf("remove files in the RUN that writes them: %s removes %s of earlier lines, which comes too late", s.where(), gigabytes(-s.Bytes)),
				Bytes: -s.Bytes, Line: s.Line,
			})
		}
	}
	return out
}

// general is for the line that adds most, if nothing better is known of it.
func (l *Ledger) general(told []int) []Advice {
	most := -1
	for i, s := range l.sources {
		if most < 0 || s.Bytes > l.sources[most].Bytes {
			most = i
		}
	}
	if most < 0 || slices.Contains(told, most) {
		return nil
	}
	s := l.sources[most]
	size := gigabytes(s.Bytes)
	a := Advice{Bytes: s.Bytes, Line: s.Line}
	switch s.origin() {
	case fromBase:
		a.Text = fmt.Sprintf("choose a smaller base image: this one takes %s", size)
	case fromContext:
		a.Text = fmt.Sprintf("name what the image does not need in .dockerignore: %s copies %s", s.where(), size)
	case fromStage:
		a.Text = fmt.Sprintf("copy less from the other stage: %s copies %s", s.where(), size)
	case fromRun:
		a.Text = fmt.Sprintf("remove what is not needed within the RUN of %s, or take only the result to another stage with COPY --from: it adds %s", s.where(), size)
	default:
		return nil
	}
	return []Advice{a}
}
