package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"

	"github.com/slipwayhq/slipway/cmd/slipway/client"
)

// maxDockerfile is the most that a Dockerfile may hold.
const maxDockerfile = 2 << 20

// recipe is a build's Dockerfile.
type recipe struct {
	file    string // empty if it came from standard input
	name    string // as people know it
	content []byte
}

func (r *recipe) proto() *slipwayv1.Dockerfile {
	return &slipwayv1.Dockerfile{Name: r.name, Content: r.content}
}

// findDockerfile reads the Dockerfile that flag names: "-" is standard input, a
// path is looked for from the working directory and then from dir. Without a
// flag it is dir's Dockerfile, or dockerfile.
func findDockerfile(dir, flag string, stdin io.Reader) (*recipe, error) {
	info, err := os.Stat(dir)
	switch {
	case err != nil:
		return nil, contextError(err)
	case !info.IsDir():
		return nil, contextError(fmt.Errorf("%s is not a directory", dir))
	case flag == "-":
		return readDockerfile(&recipe{name: "-"}, stdin)
	}
	var candidates []string
	if flag == "" {
		candidates = []string{filepath.Join(dir, "Dockerfile"), filepath.Join(dir, "dockerfile")}
	} else if candidates = []string{flag}; !filepath.IsAbs(flag) {
		candidates = append(candidates, filepath.Join(dir, flag))
	}
	for _, file := range candidates {
		f, err := os.Open(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, dockerfileError(err.Error(), "")
		}
		defer f.Close()
		return readDockerfile(&recipe{file: file, name: shownName(dir, file)}, f)
	}
	if flag == "" {
		return nil, noDockerfile("no Dockerfile in "+shownDir(dir), "Name it with --dockerfile, or the directory it is in.")
	}
	return nil, noDockerfile("there is no file "+flag, "Paths are looked for from here, then from the directory to deploy.")
}

func readDockerfile(r *recipe, from io.Reader) (*recipe, error) {
	var b bytes.Buffer
	n, err := io.Copy(&b, io.LimitReader(from, maxDockerfile+1))
	if err != nil {
		return nil, dockerfileError(fmt.Sprintf("read Dockerfile: %v", err), "")
	}
	if n > maxDockerfile {
		return nil, dockerfileError(fmt.Sprintf("%s holds more than %d MB", r.name, maxDockerfile>>20), "")
	}
	r.content = b.Bytes()
	return r, nil
}

// shownName is file relative to dir if it lies in there.
func shownName(dir, file string) string {
	absDir, err1 := filepath.Abs(dir)
	absFile, err2 := filepath.Abs(file)
	if err1 != nil || err2 != nil {
		return file
	}
	rel, err := filepath.Rel(absDir, absFile)
	if err != nil || !filepath.IsLocal(rel) {
		return filepath.ToSlash(file)
	}
	return filepath.ToSlash(rel)
}

func shownDir(dir string) string {
	if abs, err := filepath.Abs(dir); err == nil {
		return abs
	}
	return dir
}

func noDockerfile(message, hint string) error {
	return recipeError("dockerfile_not_found", message, hint)
}

func dockerfileError(message, hint string) error {
	return recipeError("dockerfile_invalid", message, hint)
}

func recipeError(code, message, hint string) error {
	e := client.NewError(code, slipwayv1.Blame_BLAME_USER, message, hint)
	e.Phase = "preflight"
	return e
}

func contextError(err error) error {
	e := client.NewError("context_invalid", slipwayv1.Blame_BLAME_USER, err.Error(), "")
	e.Phase = "context"
	return e
}
