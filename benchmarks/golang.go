package main

import "path/filepath"

const goDockerfile = `FROM slipway-bench-go AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -ldflags=-s -o /out/shop .
FROM scratch
COPY --from=build /out/shop /shop
USER 1000:1000
ENTRYPOINT ["/shop"]
`

const (
	goMod = `module example.com/shop

go 1.24

require github.com/klauspost/compress v1.19.2
`
	goSum = `github.com/klauspost/compress v1.19.2 h1:hMRETovs/pu/dVWN7zIT1PGG8t509MwT6bO7XSi26R8=
github.com/klauspost/compress v1.19.2/go.mod h1:cwPg85FWrGar70rWktvGQj8/hthj3wpl0PGDogxkrSQ=
`
	goMain = `package main

import (
	"encoding/json"
	"log/slog"
	"os"

	"github.com/klauspost/compress/zstd"
)

func main() {
	z, err := zstd.NewWriter(os.Stdout)
	if err == nil {
		err = json.NewEncoder(z).Encode(map[string]string{"greeting": greeting})
	}
	if err != nil {
		slog.Error(err.Error())
		os.Exit(1)
	}
	_ = z.Close()
}
`
	goGreeting = `package main

const greeting = "hello"
`
)

func workloadG() *workload {
	again := deploys("g", "bench-g")
	return &workload{
		key: "G", title: "a Go program",
		text:  "`go mod download` and `go build` in one stage, COPY of the program into an empty image",
		tools: []string{slipwayGzip, buildkitGzip, docker, buildah},
		quick: []string{slipwayGzip}, // Go takes most of the time, and N compares
		bases: []string{goBase},
		scenarios: []scenario{
			{name: "G cold", text: "empty caches, base image there", before: pulls(goBase), run: again, verify: true,
				prepare: func(b *bench, _ int) error {
					return writeFiles(b.dir("g"), map[string]string{
						"Dockerfile": goDockerfile, "go.mod": goMod, "go.sum": goSum, "main.go": goMain, "greeting.go": goGreeting,
					})
				}},
			{name: "G unchanged", text: "the same directory again", run: again, times: 3},
			{name: "G source", text: "one source file changed: Go compiles everything again", run: again, long: true,
				prepare: func(b *bench, _ int) error {
					return rewrite(filepath.Join(b.dir("g"), "greeting.go"), "hello", "good morning")
				}},
		},
	}
}
