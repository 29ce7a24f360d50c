package classic

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/moby/patternmatcher"
	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/slipwayhq/slipway/layercache"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// A miss says why a step was not found in the cache: in a sentence for people,
// and in parts for programs.
type miss struct {
	text string
	why  *slipwayv1.Miss
}

func (m miss) tell(done *slipwayv1.StepDone) { done.Miss, done.Why = m.text, m.why }

func missed(reason slipwayv1.MissReason, text string, changes ...*slipwayv1.KeyChange) miss {
	return miss{text, &slipwayv1.Miss{Reason: reason, Changes: changes}}
}

// labelOf names a step as its display does, such as "[build 2/4]".
func (s *stage) labelOf(st *step) string {
	at := fmt.Sprintf("%d/%d", st.number, len(s.steps))
	if s.label != "" {
		at = s.label + " " + at
	}
	return "[" + at + "]"
}

// after is why a step misses that comes after one that ran.
func (s *stage) after(first *step, of *stage) miss {
	name := of.labelOf(first)
	return missed(slipwayv1.MissReason_MISS_REASON_PARENT, "parent "+name,
		&slipwayv1.KeyChange{Part: "step", Name: name + " " + clipText(first.source, maxInput)})
}

// parent says of a step in a busted stage that it runs for the sake of the one
// that missed first.
func (s *stage) parent(done *slipwayv1.StepDone) {
	m := s.after(s.first, s.blamed)
	if text := s.disabled(); text != "" {
		m = missed(slipwayv1.MissReason_MISS_REASON_DISABLED, text)
	}
	m.tell(done)
}

// explain says why the first step of a stage missed, and remembers what the
// next build will ask about. It is called with the step's own work under way.
func (s *stage) explain(ctx context.Context, n *node, done *slipwayv1.StepDone) {
	if len(n.reads) > 0 {
		s.build.passes.Go(func() { s.build.keepFiles(ctx, s.build.context.fs.Manifest) })
	}
	s.why(ctx, n).tell(done)
}

// why compares a step that was not found with the app's last build.
func (s *stage) why(ctx context.Context, n *node) miss {
	if text := s.disabled(); text != "" {
		return missed(slipwayv1.MissReason_MISS_REASON_DISABLED, text)
	}
	if n.tooLarge {
		return missed(slipwayv1.MissReason_MISS_REASON_CHANGED, "the image is larger than the limit is now",
			&slipwayv1.KeyChange{Part: "limit"})
	}
	t, ok := s.build.lastTrail(ctx)
	if !ok {
		return missed(slipwayv1.MissReason_MISS_REASON_NEW, "no earlier build to compare with")
	}
	old, chain := stepsOf(t, s.key()), s.chain(n)
	for i, at := range chain {
		if m, found := s.differs(ctx, old, chain, i); found {
			if at != n && m.why.Reason == slipwayv1.MissReason_MISS_REASON_CHANGED && m.why.Changes[0].Part != inBase {
				m.text += " in " + s.labelOf(at.step)
			}
			return m
		}
	}
	last := old[len(chain)-1]
	switch {
	case last.Unfinished:
		return missed(slipwayv1.MissReason_MISS_REASON_NEW, "it did not finish in the last build")
	case last.Key != n.asked:
		return s.rebuilt(old, chain)
	}
	return s.lost(t, last)
}

// disabled says which option keeps the stage from the cache, "" if none does.
func (s *stage) disabled() string {
	switch {
	case s.build.job.NoCache:
		return "--no-cache"
	case s.fresh:
		return "--no-cache-filter " + s.key()
	}
	return ""
}

// differs compares the i-th node of a stage with the step at its place in the
// last build.
func (s *stage) differs(ctx context.Context, old []layercache.TrailStep, chain []*node, i int) (miss, bool) {
	n := chain[i]
	if i >= len(old) {
		return missed(slipwayv1.MissReason_MISS_REASON_NEW, "new step"), true
	}
	was, now := old[i], n.explained()
	if valueOf(was.Inputs, inInstruction) != valueOf(now, inInstruction) {
		return s.edited(old, n, i), true
	}
	if was.Unfinished {
		return miss{}, false
	}
	var changes []*slipwayv1.KeyChange
	for _, p := range now {
		before := valueOf(was.Inputs, p.Name)
		if before == p.Value || p.Name == inExpanded {
			continue
		}
		changes = append(changes, s.changed(ctx, n, p, before)...)
	}
	for _, p := range was.Inputs {
		if arg, ok := strings.CutPrefix(p.Name, inArg+" "); ok && valueOf(now, p.Name) == "" {
			changes = append(changes, &slipwayv1.KeyChange{Part: inArg, Name: arg, Before: shown(p.Value)})
		}
	}
	if len(changes) == 0 && valueOf(was.Inputs, inExpanded) != valueOf(now, inExpanded) {
		changes = []*slipwayv1.KeyChange{{Part: inInstruction}}
	}
	if len(changes) == 0 {
		return miss{}, false
	}
	if s.from != nil && i == 0 && s.from.busted && changes[0].Part == inStage {
		return s.after(s.from.first, s.from.blamed), true
	}
	return missed(slipwayv1.MissReason_MISS_REASON_CHANGED, sentence(changes), changes...), true
}

// edited says how the Dockerfile differs from the i-th step on.
func (s *stage) edited(old []layercache.TrailStep, n *node, i int) miss {
	text := valueOf(n.explained(), inInstruction)
	for j := i + 1; j < len(old); j++ {
		if valueOf(old[j].Inputs, inInstruction) == text {
			gone := &slipwayv1.KeyChange{Part: inInstruction, Name: "removed", Before: shown(old[i].Source)}
			return missed(slipwayv1.MissReason_MISS_REASON_CHANGED, gone.Before+" before it is gone", gone)
		}
	}
	was := valueOf(old[i].Inputs, inInstruction)
	inserted := slices.ContainsFunc(s.steps[min(n.step.number, len(s.steps)):], func(st *step) bool {
		return input("", st.source) == was
	})
	if inserted || !sameKind(old[i].Source, n.step.source) {
		return missed(slipwayv1.MissReason_MISS_REASON_NEW, "new step")
	}
	change := &slipwayv1.KeyChange{Part: inInstruction, Before: shown(was), Now: shown(text)}
	return missed(slipwayv1.MissReason_MISS_REASON_CHANGED, sentence([]*slipwayv1.KeyChange{change}), change)
}

func sameKind(a, b string) bool {
	a, _, _ = strings.Cut(a, " ")
	b, _, _ = strings.Cut(b, " ")
	return strings.EqualFold(a, b)
}

// changed describes an input that is not what it was.
func (s *stage) changed(ctx context.Context, n *node, p layercache.Part, before string) []*slipwayv1.KeyChange {
	kind, name, _ := strings.Cut(p.Name, " ")
	if kind == inFiles {
		return s.changedFiles(ctx, n)
	}
	out := []*slipwayv1.KeyChange{{Part: kind, Name: name, Before: shown(before), Now: shown(p.Value)}}
	if of := s.build.stageNamed(name, s.index); kind == inStage && of != nil && of.busted {
		out = append(out, s.after(of.first, of.blamed).why.Changes...)
	}
	return out
}

// maxChanges is how many files are named.
const maxChanges = 20

// changedFiles compares the files that a COPY or ADD reads with those that it
// would have read in the last build.
func (s *stage) changedFiles(ctx context.Context, n *node) []*slipwayv1.KeyChange {
	some := []*slipwayv1.KeyChange{{Part: inFiles}}
	last := s.build.lastFiles(ctx)
	if last == nil {
		return some
	}
	var out []*slipwayv1.KeyChange
	for _, t := range n.reads {
		out = append(out, t.changes(last, s.build.context.fs)...)
	}
	if len(out) == 0 {
		return some
	}
	// Those that say most come first: near the root, and there before.
	slices.SortStableFunc(out, func(a, b *slipwayv1.KeyChange) int {
		return strings.Count(a.Name, "/") - strings.Count(b.Name, "/")
	})
	if more := len(out) - maxChanges; more > 0 {
		out = append(out[:maxChanges], &slipwayv1.KeyChange{Part: "more", Name: fmt.Sprint(more)})
	}
	return out
}

// changes lists how what the transfer chooses differs between two contexts.
func (t *transfer) changes(last, now *manifestFS) (out []*slipwayv1.KeyChange) {
	before, order, err := t.over(last).list()
	if err != nil {
		return nil
	}
	after, names, err := t.over(now).list()
	if err != nil {
		return nil
	}
	for _, p := range names {
		if c := fileChange(p, before[p], after[p]); c != nil {
			out = append(out, c)
		}
	}
	for _, p := range order {
		if after[p] == nil {
			out = append(out, fileChange(p, before[p], nil))
		}
	}
	return out
}

// over returns the transfer's choice among other files of a context.
func (t *transfer) over(files *manifestFS) *transfer {
	out := &transfer{what: t.what, from: files, context: true, parents: t.parents, dest: "/", excludes: t.excludes}
	if len(t.excludes) > 0 {
		out.exclude, _ = patternmatcher.New(t.excludes) // it was made before; it is not for concurrent use
	}
	for _, p := range t.patterns {
		if !isURL(p) && !isGit(p) {
			_ = out.chooseOne(p) // what is not there is a change, no fault
		}
	}
	return out
}

// A listed file is one of a manifest, with the digest of its content.
type listed struct {
	*file
	content [sha256.Size]byte
}

// list returns the transfer's files by path, and the paths in order.
func (t *transfer) list() (map[string]*listed, []string, error) {
	files, entries := map[string]*listed{}, t.from.(*manifestFS).Entries
	var order []string
	err := t.each(func(_ copySource, _ string, f *file) error {
		if files[f.path] == nil {
			order = append(order, f.path)
		}
		files[f.path] = &listed{f, entries[f.entry].Digest}
		return nil
	})
	return files, order, err
}

// fileChange says how a file differs, nil if it does not. One of the two may
// be nil.
func fileChange(path string, before, now *listed) *slipwayv1.KeyChange {
	c := &slipwayv1.KeyChange{Part: "file", Name: strings.ToValidUTF8(strings.TrimPrefix(path, "/"), "�")}
	switch {
	case before == nil:
		c.Now = now.brief()
	case now == nil:
		c.Before = before.brief()
	case before.typ != now.typ || before.link != now.link || shorten(before.content) != shorten(now.content) || before.size != now.size && before.typ == tar.TypeReg:
		c.Before, c.Now = before.brief(), now.brief()
	case before.mode != now.mode:
		c.Part, c.Before, c.Now = "mode", fmt.Sprintf("%04o", before.mode), fmt.Sprintf("%04o", now.mode)
	default:
		return nil
	}
	return c
}

// brief is a file in a few letters: the beginning of its digest, or its kind.
func (f *listed) brief() string {
	switch f.typ {
	case tar.TypeReg:
		return hex.EncodeToString(f.content[:2]) + "…"
	case tar.TypeDir:
		return "directory"
	case tar.TypeSymlink:
		return "link to " + clipText(f.link, 60)
	}
	return "fifo"
}

// rebuilt blames the first step whose result is another one although it was
// made of the same: somebody ran it anew.
func (s *stage) rebuilt(old []layercache.TrailStep, chain []*node) miss {
	for i, n := range chain[:len(chain)-1] {
		if n.isMade() && n.err == nil && old[i].Image != n.id {
			name := s.labelOf(n.step)
			return missed(slipwayv1.MissReason_MISS_REASON_CHANGED, name+" was built anew since",
				&slipwayv1.KeyChange{Part: "result", Name: name + " " + clipText(n.step.source, maxInput), Before: shortID(old[i].Image), Now: shortID(n.id)})
		}
	}
	return missed(slipwayv1.MissReason_MISS_REASON_CHANGED, "its parent changed", &slipwayv1.KeyChange{Part: "result"})
}

// lost says what became of a step that was cached.
func (s *stage) lost(t layercache.Trail, st layercache.TrailStep) miss {
	ev, ok := s.build.job.Cache.Lost(st.Key, st.DiffID, st.Blob, t.Time)
	if !ok {
		return missed(slipwayv1.MissReason_MISS_REASON_EVICTED, "it is no longer in the cache")
	}
	text, reason := "removed from the cache at ", slipwayv1.MissReason_MISS_REASON_EVICTED
	if ev.Damaged() {
		text, reason = "found damaged at ", slipwayv1.MissReason_MISS_REASON_DAMAGED
	}
	m := missed(reason, text+ev.Time.UTC().Format("2006-01-02 15:04:05 MST")+": "+strings.TrimPrefix(ev.Reason, "damaged: "))
	m.why.Evicted, m.why.EvictedReason = timestamppb.New(ev.Time), ev.Reason
	return m
}

// sentence says what changed: the first change, and how many more there are.
func sentence(changes []*slipwayv1.KeyChange) string {
	c := changes[0]
	text := ""
	switch c.Part {
	case "file":
		text = c.Name
	case "mode":
		text = "the mode of " + c.Name
	case inFiles:
		return "the files that it copies changed"
	case inArg, inEnv:
		text = strings.ToUpper(c.Part) + " " + c.Name
	case inInstruction:
		text = "the instruction"
	case inStage:
		text = "stage " + c.Name + " changed"
		if len(changes) > 1 && changes[1].Part == "step" {
			label, _, _ := strings.Cut(changes[1].Name, "]")
			text += " (" + label + "] ran)"
		}
		return text
	default:
		text = strings.TrimSpace(c.Part + " " + c.Name)
	}
	switch {
	case c.Before == "" && c.Now == "":
		text += " changed"
	case c.Before == "":
		text += " is new"
	case c.Now == "":
		text += " is gone"
	default:
		text += fmt.Sprintf(" changed (was %s, is %s)", c.Before, c.Now)
	}
	more := len(changes) - 1
	if last := changes[more]; last.Part == "more" {
		n := 0
		_, _ = fmt.Sscan(last.Name, &n)
		more += n - 1
	}
	if more > 0 {
		what := "change"
		if c.Part == "file" {
			what = "file"
		}
		text += " and " + count(more, "more "+what)
	}
	return text
}

// imageInput is an image that a step depends on.
func imageInput(kind, ref string, d digest.Digest) layercache.Part {
	return layercache.Part{Name: kind + " " + ref, Value: shortID(d)}
}
