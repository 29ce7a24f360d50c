package main_test

import (
	"os"
	"strings"
	"testing"
)

// maxMemory is what the daemon may take at its peak.
const maxMemory = 300_000_000

// An app is a project as its developers have it.
type app struct {
	name   string
	files  tree
	change string // a source file, with what it changes to
	to     string
	prints string // what the image says
	after  string // the same after the change
	sends  int    // files that the first deploy sends
	reruns []string
}

var apps = []app{{
	name: "debian",
	files: tree{
		"Dockerfile": `FROM debian:bookworm
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends jq && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY . .
CMD ["/app/run.sh"]
`,
		".dockerignore": "*.md\n",
		"README.md":     "not for the image\n",
		"run.sh":        "#!/bin/sh\njq -r .greeting /app/data.json\n",
		"data.json":     `{"greeting": "hello from jq"}` + "\n",
	},
	change: "data.json", to: `{"greeting": "goodbye from jq"}` + "\n",
	prints: "hello from jq\n", after: "goodbye from jq\n",
	reruns: []string{"COPY . ."}, sends: 4,
}, {
	name: "node",
	files: tree{
		"Dockerfile": `FROM debian:bookworm AS node
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends nodejs npm >/dev/null
FROM node
WORKDIR /app
COPY package.json ./
RUN npm install --no-audit --no-fund
COPY . .
RUN node -e 'require("./server.js").check()'
USER 1000:1000
CMD ["node", "-e", "require('./server.js').check()"]
`,
		".dockerignore": "node_modules\n",
		"package.json":  `{"name": "shop", "version": "1.0.0", "dependencies": {"express": "4.19.2"}}` + "\n",
		"server.js": `const express = require("express");
const { text } = require("./text.js");
const app = express();
app.get("/", (_, res) => res.send(text));
exports.check = () => {
  const server = app.listen(0, "127.0.0.1", () => {
    require("http").get({ host: "127.0.0.1", port: server.address().port }, (res) => {
      res.on("data", (d) => console.log(res.statusCode, String(d)));
      res.on("end", () => server.close());
    });
  });
};
`,
		"text.js": `exports.text = "a page";` + "\n",
	},
	change: "text.js", to: `exports.text = "another page";` + "\n",
	prints: "200 a page\n", after: "200 another page\n",
	reruns: []string{"COPY . .", `RUN node -e 'require("./server.js").check()'`}, sends: 5,
}, {
	name: "go",
	files: tree{
		"Dockerfile": `FROM golang AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -ldflags=-s -o /out/shop .
FROM scratch
COPY --from=build /out/shop /shop
USER 1000:1000
ENTRYPOINT ["/shop"]
CMD ["customer"]
`,
		"go.mod": "module example.com/shop\n\ngo 1.22\n\nrequire github.com/google/uuid v1.6.0\n",
		"go.sum": "github.com/google/uuid v1.6.0 h1:NIvaJDMOsjHA8n1jAhLSgzrAzy1Hgr+hNrb57e+94F0=\ngithub.com/google/uuid v1.6.0/go.mod h1:TIyPZe4MgqvfeYDBFedMoGGpEw/LqOeaOT+nhxU+yHo=\n",
		"main.go": `package main

import (
	"fmt"
	"os"

	"github.com/google/uuid"
)

func main() {
	fmt.Println(greeting, os.Args[1], uuid.NewSHA1(uuid.NameSpaceDNS, []byte("slipway")))
}
`,
		"greeting.go": "package main\n\nconst greeting = \"welcome\"\n",
	},
	change: "greeting.go", to: "package main\n\nconst greeting = \"farewell\"\n",
	prints: "welcome customer 22958cb8-5754-5ffd-bf4a-197108d907dc\n", after: "farewell customer 22958cb8-5754-5ffd-bf4a-197108d907dc\n",
	reruns: []string{"COPY . .", "RUN CGO_ENABLED=0 go build -trimpath -ldflags=-s -o /out/shop .", "COPY --from=build /out/shop /shop"}, sends: 5,
}}

// TestRealInput deploys projects as developers do: cold, again, from a fresh
// checkout, and after a change.
func TestRealInput(t *testing.T) {
	t.Parallel()
	if _, err := os.Stat(buildCA); err != nil {
		need(t, buildCA, false)
	}
	debian, golang := debianBase(t), golangBase(t)
	d := startDaemon(t, "--build-ca", buildCA)
	d.push(debian, "library/debian:bookworm")
	d.push(golang, "library/golang")
	t.Run("apps", func(t *testing.T) {
		for _, a := range apps {
			t.Run(a.name, func(t *testing.T) {
				t.Parallel()
				c := d.client()
				c.t = t
				a.deploy(t, d, c)
			})
		}
	})
	peak := d.peakMemory()
	t.Logf("the daemon took %d MB at its peak", peak/1e6)
	if peak > maxMemory {
		t.Errorf("the daemon took %d MB; at most %d MB are allowed", peak/1e6, maxMemory/int64(1e6))
	}
}

func (a *app) deploy(t *testing.T, d *daemon, c *client) {
	dir := a.files.write(t)
	first := c.deploy(a.name, dir)
	if first.Context.SentFiles != a.sends {
		t.Errorf("sent %d files; want %d", first.Context.SentFiles, a.sends)
	}
	a.check(t, d, first, a.prints)
	checkUnchanged(t, "unchanged", first, c.deploy(a.name, dir))
	checkUnchanged(t, "fresh copy", first, c.deploy(a.name, freshCopy(t, dir)))

	writeFile(t, dir, a.change, a.to)
	changed := c.deploy(a.name, dir)
	if changed.Context.SentFiles != 1 {
		t.Errorf("sent %d files after one changed", changed.Context.SentFiles)
	}
	if ran := ranSteps(changed); strings.Join(ran, "\n") != strings.Join(a.reruns, "\n") {
		t.Errorf("ran %q after a change; want %q", ran, a.reruns)
	}
	if changed.Digest == first.Digest {
		t.Error("a change did not change the image")
	}
	a.check(t, d, changed, a.after)
	writeFile(t, dir, a.change, a.files[a.change])
	checkUnchanged(t, "changed back", first, c.deploy(a.name, dir))
}

// check pulls an image, runs it and compares its sizes with what was told.
func (a *app) check(t *testing.T, d *daemon, r *deployed, want string) {
	t.Helper()
	image := d.pull(r)
	if got := runImage(t, image); got != want {
		t.Errorf("the image prints %q; want %q", got, want)
	}
	layers, err := image.Layers()
	if err != nil {
		t.Fatal(err)
	}
	if len(layers) != len(r.Layers) {
		t.Fatalf("the image has %d layers, the result tells of %d", len(layers), len(r.Layers))
	}
	for i, l := range layers {
		digest, _ := l.Digest()
		diff, _ := l.DiffID()
		size, _ := l.Size()
		if told := r.Layers[i]; told.Digest != digest.String() || told.DiffID != diff.String() || told.Size != size {
			t.Errorf("layer %d is %s, diff %s, %d bytes; the result says %+v", i, digest, diff, size, told)
		}
	}
	if r.RootFS <= 0 || r.RootFS > r.RootFSLimit || r.CompressedBytes <= 0 || r.UncompressedBytes < r.CompressedBytes/2 {
		t.Errorf("sizes: rootfs %d of %d, uncompressed %d, compressed %d", r.RootFS, r.RootFSLimit, r.UncompressedBytes, r.CompressedBytes)
	}
}
