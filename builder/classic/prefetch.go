package classic

import (
	"context"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
)

// bust says that st missed the cache: the steps after it will run too, so the
// contents that they copy may travel while st runs.
func (s *stage) bust(ctx context.Context, st *step) {
	s.busted = true
	var copies []copyFlags
	for _, later := range s.steps[min(st.number, len(s.steps)):] {
		if f, ok := plainCopy(later.cmd); ok {
			copies = append(copies, f)
		}
	}
	s.endAhead()
	if len(copies) == 0 {
		return
	}
	s.build.passes.Go(func() {
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
		f = copyFlags{what: "COPY", exclude: cmd.ExcludePatterns, src: cmd.SourcesAndDest}
	case *instructions.AddCommand:
		f = copyFlags{what: "ADD", exclude: cmd.ExcludePatterns, src: cmd.SourcesAndDest}
	default:
		return f, false
	}
	for _, p := range f.src.SourcePaths {
		if strings.ContainsRune(p, '$') || isURL(p) {
			return f, false
		}
	}
	// The step itself will expand its words in place.
	f.src = instructions.SourcesAndDest{SourcePaths: slices.Clone(f.src.SourcePaths), DestPath: "/"}
	return f, len(f.src.SourcePaths) > 0 && len(f.exclude) == 0
}

// prefetch asks for the contents of the copies, those of the first one first.
func (s *stage) prefetch(ctx context.Context, copies []copyFlags) error {
	files, err := s.build.files(ctx)
	if err != nil {
		return err
	}
	var need [][]int
	for _, f := range copies {
		t := &transfer{what: f.what, from: files, context: true, dest: "/"}
		if err := t.choose(f.src.SourcePaths); err != nil {
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
