package main

import "path/filepath"

const nodeDockerfile = `FROM slipway-bench-node
WORKDIR /srv/shop
COPY package.json ./
RUN npm install --no-audit --no-fund --loglevel=error
COPY . .
USER 1000:1000
CMD ["node", "server.js"]
`

// What nodePackage asks for is pinned; what that asks for is npm's choice, the
// same for all tools of a run.
const nodePackage = `{
  "name": "shop",
  "version": "1.0.0",
  "private": true,
  "dependencies": {
    "axios": "1.7.9",
    "date-fns": "3.6.0",
    "express": "4.19.2",
    "lodash": "4.17.20",
    "moment": "2.30.1",
    "typescript": "5.4.5",
    "winston": "3.13.0"
  }
}
`

const nodeServer = `const express = require("express");
const { greeting } = require("./greeting.js");
express().get("/", (_, res) => res.send(greeting)).listen(8080);
`

func workloadN() *workload {
	again := deploys("n", "bench-n")
	in := func(b *bench, name string) string { return filepath.Join(b.dir("n"), name) }
	return &workload{
		key: "N", title: "a Node.js application",
		text:  "`npm install` of seven pinned packages from the npm registry, then COPY of the source",
		tools: []string{slipwayGzip, buildkitGzip, docker, buildah},
		bases: []string{nodeBase},
		scenarios: []scenario{
			{name: "N cold", text: "empty caches, base image there", before: pulls(nodeBase), run: again, verify: true,
				prepare: func(b *bench, _ int) error {
					return writeFiles(b.dir("n"), map[string]string{
						"Dockerfile": nodeDockerfile, ".dockerignore": "node_modules\n", "package.json": nodePackage,
						"server.js": nodeServer, "greeting.js": "exports.greeting = \"hello\";\n",
					})
				}},
			{name: "N unchanged", text: "the same directory again", run: again, times: 3},
			{name: "N source", text: "one source file changed", run: again,
				prepare: func(b *bench, _ int) error { return rewrite(in(b, "greeting.js"), "hello", "good morning") }},
			{name: "N dependency", text: "one of the packages in another version: npm installs all of them again", run: again, long: true,
				prepare: func(b *bench, _ int) error { return rewrite(in(b, "package.json"), "4.17.20", "4.17.21") }},
		},
	}
}
