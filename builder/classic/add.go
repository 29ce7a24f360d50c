package classic

import (
	"context"
	"regexp"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"

	"github.com/slipwayhq/slipway/builder/failure"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

func isURL(s string) bool {
	return strings.HasPrefix(s, "http://") || strings.HasPrefix(s, "https://")
}

// scpLike is how Git writes an SSH address without a scheme, such as
// git@github.com:org/repo.
var scpLike = regexp.MustCompile(`^[\w.-]+@[\w.-]+:`)

// isGit reports whether s is the address of a Git repository, as builders that
// can clone read it. What they do not know of a URL is in its fragment: a branch
// or tag to check out. A fragment with an equals sign is not one but a checksum,
// as lists of Python packages have them.
func isGit(s string) bool {
	if strings.HasPrefix(s, "git://") || strings.HasPrefix(s, "ssh://") || scpLike.MatchString(s) {
		return true
	}
	if !isURL(s) {
		return false
	}
	address, ref, _ := strings.Cut(s, "#")
	address, _, _ = strings.Cut(address, "?")
	return strings.HasSuffix(strings.TrimSuffix(address, "/"), ".git") || ref != "" && !strings.Contains(ref, "=")
}

// add carries out ADD: COPY, and URLs, and archives of the context unpacked.
func (s *stage) add(ctx, steps context.Context, st *step, cmd *instructions.AddCommand, done *slipwayv1.StepDone) error {
	f := copyFlags{what: "ADD", chown: cmd.Chown, chmod: cmd.Chmod, exclude: cmd.ExcludePatterns, src: cmd.SourcesAndDest}
	if cmd.KeepGitDir != nil {
		return failure.Userf(failure.NotSupported, "clone the repository in a RUN step", "ADD --keep-git-dir is not supported yet")
	}
	if s.build.forecast != nil && slices.ContainsFunc(f.src.SourcePaths, isURL) {
		return s.apply(ctx, steps, st, &change{image: cloneImage(s.node.image), unknown: "depends on what the URL answers"}, done)
	}
	t, err := s.newTransfer(f)
	if err != nil {
		return err
	}
	if err := s.chooseAdded(steps, st, t, f.src.SourcePaths, cmd.Checksum); err != nil {
		return err
	}
	archives, err := s.archives(steps, t, cmd.Unpack)
	if err != nil {
		return err
	}
	if len(archives) == 0 {
		return s.transfer(ctx, steps, st, t, done)
	}
	return s.addArchives(ctx, steps, st, t, archives, done)
}

// chooseAdded finds what ADD names: files of the context, and what URLs lead
// to.
func (s *stage) chooseAdded(ctx context.Context, st *step, t *transfer, paths []string, checksum string) error {
	if slices.ContainsFunc(paths, isGit) {
		return failure.Userf(failure.NotSupported, "clone the repository in a RUN step, or ADD the URL of an archive; the URL of a file needs no # part",
			"ADD of a Git repository is not supported yet")
	}
	if checksum != "" && (len(paths) != 1 || !isURL(paths[0])) {
		return failure.Userf(failure.DockerfileInvalid, "use an ADD of its own for the URL", "ADD --checksum needs one URL as its only source")
	}
	files, err := s.build.files(ctx)
	if err != nil {
		return err
	}
	t.from, t.context, t.patterns = files, true, paths
	for _, p := range paths {
		if !isURL(p) {
			err = t.chooseOne(p)
		} else {
			err = s.addURL(ctx, st, t, p, checksum)
		}
		if err != nil {
			return err
		}
	}
	return t.checkCount()
}

// addURL downloads a file. It is always downloaded, and found in the cache by
// its content.
func (s *stage) addURL(ctx context.Context, st *step, t *transfer, link, checksum string) error {
	got, err := s.download(ctx, st, link, strings.HasSuffix(t.dest, "/"))
	if err != nil {
		return err
	}
	if checksum != "" && checksum != got.content.String() {
		return t.failf(failure.FetchFailed, "check the URL and the checksum", "%s has digest %s, not %s", link, got.content, checksum)
	}
	t.sources = append(t.sources, copySource{name: got.name, file: &got.file, from: got, url: true})
	return nil
}
