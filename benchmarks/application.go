package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// What a medium application with its runtime looks like.
const (
	applicationFiles = 12_000
	runtimeBytes     = 566_000_000 // the layer below, which does not change
	runtimeFiles     = 560
	appBytes         = 150_000_000 // the layer on top
	appFiles         = applicationFiles - runtimeFiles - 1
)

const applicationDockerfile = `FROM debian:bookworm
RUN mkdir -p /srv && echo slipway > /srv/name
COPY runtime /opt/runtime
RUN find /opt/runtime -type f | wc -l > /srv/runtime.count
COPY app /srv/app
CMD ["cat", "/srv/runtime.count"]
`

func workloadA() *workload {
	again := deploys("a", "bench-a")
	return &workload{
		key: "A", title: "an application with its runtime",
		text:  "two COPY and two RUN",
		tools: []string{slipwayGzip, buildkitGzip, slipwayBuildKit, slipwayRegistry, slipwayZstd, buildkitZstd, docker, buildah},
		quick: []string{slipwayGzip, buildkitGzip},
		bases: []string{debianBase},
		prepare: func(ctx context.Context, b *bench) (err error) {
			b.res.Workload, err = makeApplication(ctx, b, "a", b.opts.scale)
			return err
		},
		scenarios: []scenario{
			{name: "A cold", text: "empty caches, base image not pulled yet", run: again, verify: true,
				prepare: func(b *bench, round int) error {
					if round == 1 {
						return nil
					}
					return freshApplication(b, "a")
				}},
			{name: "A unchanged", text: "the same directory again", run: again, times: 3},
			{name: "A one file", text: "one file of the 150 MB layer changed", run: again,
				prepare: func(b *bench, round int) error { return changeApplication(b.dir("a"), round) }},
			{name: "A fresh copy", text: "the first contents in a new checkout: new inodes and times", run: again,
				prepare: func(b *bench, _ int) error { return freshApplication(b, "a") }},
		},
	}
}

func workloadR() *workload {
	return &workload{
		key: "R", title: "20 short RUN steps",
		text:  "20 RUN steps that echo a line",
		tools: []string{slipwayGzip, buildkitGzip, slipwayBuildKit, slipwayRegistry, slipwayZstd, buildkitZstd, docker, buildah},
		quick: []string{slipwayGzip, buildkitGzip},
		bases: []string{debianBase},
		scenarios: []scenario{
			{name: "R cold", text: "20 × RUN echo that no cache knows, base image there", before: pulls(debianBase), run: deploys("r", "bench-r"),
				prepare: func(b *bench, round int) error { return writeSteps(b.dir("r"), round) }},
		},
	}
}

// application says what was made.
type application struct {
	Files  int    `json:"files"`
	Bytes  int64  `json:"bytes"`
	Source string `json:"source"` // where the contents are from
}

// makeApplication generates an application. What builds see is a copy.
func makeApplication(ctx context.Context, b *bench, name string, scale float64) (*application, error) {
	goroot, err := goroot(ctx)
	if err != nil {
		return nil, err
	}
	a := &application{Source: runtime.Version() + " src"}
	trees := []string{filepath.Join(goroot, "pkg"), filepath.Join(goroot, "bin")}
	if jdk := newestJDK(); jdk != "" {
		trees = append([]string{jdk}, trees...)
		a.Source = filepath.Base(jdk) + ", " + a.Source
	}
	first := b.dir(name + ".first")
	if err := os.RemoveAll(first); err != nil {
		return nil, err
	}
	logf("generate context %s of %s", name, a.Source)
	if err := fill(filepath.Join(first, "runtime"), trees, scaled(runtimeFiles, scale, 60), int64(float64(runtimeBytes)*scale)); err != nil {
		return nil, err
	}
	if err := fill(filepath.Join(first, "app"), []string{filepath.Join(goroot, "src")}, scaled(appFiles, scale, 100), int64(float64(appBytes)*scale)); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(first, "Dockerfile"), []byte(applicationDockerfile), 0o644); err != nil {
		return nil, err
	}
	if err := a.count(first); err != nil {
		return nil, err
	}
	return a, freshApplication(b, name)
}

func (a *application) count(dir string) error {
	return filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		a.Files++
		a.Bytes += info.Size()
		return nil
	})
}

// freshApplication replaces an application by a copy of what was generated, as
// a new checkout would be: same contents, new times, new inodes. It returns
// when the times are old enough for caches that distrust what has just changed.
func freshApplication(b *bench, name string) error {
	dir := b.dir(name)
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.CopyFS(dir, os.DirFS(dir+".first")); err != nil {
		return fmt.Errorf("copy the context: %w", err)
	}
	syscall.Sync()
	time.Sleep(2 * time.Second)
	return nil
}

// changeApplication edits one file of the upper layer. The edit is another for
// each n.
func changeApplication(dir string, n int) error {
	src := filepath.Join(dir, "app", "src")
	var f *os.File
	var err error
	for _, name := range []string{"net/http/server.go", "bufio/bufio.go", "archive/tar/reader.go"} { // a small tree has not all
		if f, err = os.OpenFile(filepath.Join(src, name), os.O_APPEND|os.O_WRONLY, 0); !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "\n// Change %d.\n", n)
	return errors.Join(err, f.Close())
}

// writeSteps writes 20 short RUN steps that no cache knows.
func writeSteps(dir string, round int) error {
	var b strings.Builder
	b.WriteString("FROM debian:bookworm\n")
	for i := range 20 {
		fmt.Fprintf(&b, "RUN echo round %d step %d\n", round, i)
	}
	return writeFiles(dir, map[string]string{"Dockerfile": b.String()})
}
