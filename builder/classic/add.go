package classic

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/opencontainers/go-digest"

	"github.com/slipwayhq/slipway/builder/failure"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

func isURL(s string) bool {
	return strings.HasPrefix(s, "http://") || strings.HasPrefix(s, "https://")
}

// add carries out ADD: COPY, and URLs, and archives of the context unpacked.
func (s *stage) add(ctx, steps context.Context, st *step, cmd *instructions.AddCommand, done *slipwayv1.StepDone) error {
	f := copyFlags{what: "ADD", chown: cmd.Chown, chmod: cmd.Chmod, exclude: cmd.ExcludePatterns, link: cmd.Link, src: cmd.SourcesAndDest}
	fetches := func(p string) bool { return isURL(p) || isGit(p) }
	if s.build.forecast != nil && slices.ContainsFunc(f.src.SourcePaths, fetches) {
		return s.apply(ctx, steps, st, &change{image: cloneImage(s.node.image), unknown: "depends on what the URL answers"}, done)
	}
	t, err := s.newTransfer(f)
	if err != nil {
		return err
	}
	if err := s.chooseAdded(steps, st, t, cmd); err != nil {
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

// chooseAdded finds what ADD names: files of the context, repositories, and
// what URLs lead to.
func (s *stage) chooseAdded(ctx context.Context, st *step, t *transfer, cmd *instructions.AddCommand) error {
	paths := cmd.SourcePaths
	if cmd.Checksum != "" && (len(paths) != 1 || !isURL(paths[0]) && !isGit(paths[0])) {
		return failure.Userf(failure.DockerfileInvalid, "use an ADD of its own for the URL", "ADD --checksum needs one URL or Git repository as its only source")
	}
	files, err := s.build.files(ctx)
	if err != nil {
		return err
	}
	t.from, t.context, t.patterns = files, true, paths
	for _, p := range paths {
		switch {
		case isGit(p):
			err = s.addGit(ctx, st, t, p, cmd)
		case isURL(p):
			err = s.addURL(ctx, st, t, p, cmd.Checksum)
		default:
			err = t.chooseOne(p)
		}
		if err != nil {
			return err
		}
	}
	return t.checkCount()
}

// unnamed is what a download is called that has no name, in a destination that
// is a directory and was not known to be one.
const unnamed = "__unnamed__"

// addURL downloads a file. It is always downloaded, and found in the cache by
// its content.
func (s *stage) addURL(ctx context.Context, st *step, t *transfer, link, checksum string) error {
	if d := digest.Digest(checksum); checksum != "" && (d.Validate() != nil || d.Algorithm() != digest.SHA256) {
		return failure.Userf(failure.DockerfileInvalid, "write sha256: and 64 hexadecimal digits, as sha256sum prints them", "ADD --checksum=%s is no checksum of a file", checksum)
	}
	got, err := s.download(ctx, st, link, strings.HasSuffix(t.dest, "/"))
	if err != nil {
		return err
	}
	if checksum != "" && checksum != got.content.String() {
		return t.failf(failure.FetchFailed, "check the URL and the checksum", "%s has digest %s, not %s", link, got.content, checksum)
	}
	t.sources = append(t.sources, copySource{name: cmp.Or(got.name, unnamed), file: &got.file, from: got, url: true})
	return nil
}
