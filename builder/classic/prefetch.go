package classic

import (
	"context"
	"path"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
)

// bust says that st missed the cache: the steps after it will run too, so the
// contents that they read may travel while st runs.
func (s *stage) bust(ctx context.Context, st *step) {
	s.busted, s.first, s.blamed = true, st, s
	var copies []copyFlags
	for _, later := range s.steps[min(st.number, len(s.steps)):] {
		if f, ok := plainCopy(later.cmd); ok {
			copies = append(copies, f)
		}
		copies = append(copies, plainBinds(later)...)
	}
	s.endAhead()
	if len(copies) == 0 {
		return
	}
	s.build.aside(func() {
		// What fails here fails again, and is told, when the step runs.
		_ = s.prefetch(ctx, copies)
	})
}

// plainCopy returns what a COPY or ADD of the context's files copies, if no
// variable decides it.
func plainCopy(cmd instructions.Command) (copyFlags, bool) {
	var f copyFlags
	switch cmd := cmd.(type) {
	case *instructions.CopyCommand:
		if cmd.From != "" {
			return f, false
		}
		f = copyFlags{what: "COPY", exclude: cmd.ExcludePatterns, parents: cmd.Parents, src: cmd.SourcesAndDest}
	case *instructions.AddCommand:
		f = copyFlags{what: "ADD", exclude: cmd.ExcludePatterns, src: cmd.SourcesAndDest}
	default:
		return f, false
	}
	for _, p := range f.src.SourcePaths {
		if strings.ContainsRune(p, '$') || isURL(p) || isGit(p) {
			return f, false
		}
	}
	// The step itself will expand its words in place.
	f.src = instructions.SourcesAndDest{SourcePaths: slices.Clone(f.src.SourcePaths), DestPath: "/"}
	return f, len(f.src.SourcePaths) > 0 && len(f.exclude) == 0
}

// plainBinds returns what a RUN binds of the context's files, if no variable
// decides it.
func plainBinds(st *step) []copyFlags {
	cmd, ok := st.cmd.(*instructions.RunCommand)
	if !ok || st.variable {
		return nil
	}
	var all []copyFlags
	for _, m := range instructions.GetMounts(cmd) {
		if m.Type == instructions.MountTypeBind && m.From == "" {
			all = append(all, copyFlags{what: mountWhat, src: instructions.SourcesAndDest{SourcePaths: []string{m.Source}}})
		}
	}
	return all
}

// pick finds the files that a COPY, an ADD or a bind reads.
func (t *transfer) pick(f copyFlags) error {
	if f.what != mountWhat {
		return t.choose(f.src.SourcePaths)
	}
	at := path.Join("/", f.src.SourcePaths[0])
	return t.take(at, at)
}

// prefetch asks for the contents of the copies, those of the first one first.
func (s *stage) prefetch(ctx context.Context, copies []copyFlags) error {
	files, err := s.build.files(ctx)
	if err != nil {
		return err
	}
	var need [][]int
	for _, f := range copies {
		t := &transfer{what: f.what, from: files, context: true, parents: f.parents, dest: "/"}
		if err := t.pick(f); err != nil {
			return err
		}
		entries, err := t.entries()
		if err != nil {
			return err
		}
		need = append(need, entries)
	}
	return s.build.job.Session.Need(ctx, need...)
}
