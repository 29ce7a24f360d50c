# make demo    see it work
# make test    all tests
# make lint    what CI checks besides: format, linters, protocol, imports
# make check   all of that, builds for other systems, and the tests for races
# Needs Go, git, make and, for what "make deps" installs, apt.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

# An older Go fetches the toolchain that go.mod asks for.
GO      ?= go
TOOL    := $(GO) tool -modfile=tools.mod
BUF     := $(TOOL) buf
SUDO    := $(if $(filter 0,$(shell id -u)),,sudo)
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
# Without a usable git there is no revision to stamp.
VCS     := $(if $(shell git rev-parse HEAD 2>/dev/null),auto,false)
# slipwayd compresses gzip with Intel's ISA-L where gcc and the library are there
# to build it: ISAL=1 installs them, ISAL=0 does without.
ISAL    ?= auto
ISA_L   := igzip:isal,libisal-dev gcc:gcc,libc6-dev
FOUND    = $(shell [ "$$($(GO) env GOARCH)" = amd64 ] && [ -e /usr/include/isa-l/igzip_lib.h ] && command -v gcc >/dev/null && echo 1)
WITH     = $(filter 1,$(patsubst auto,$(FOUND),$(ISAL)))
STAMP   := -trimpath -buildvcs=$(VCS) -ldflags "-s -w -X main.version=$(VERSION)"
BUILD   := CGO_ENABLED=0 $(GO) build $(STAMP)
TIMEOUT ?= 15m
FUZZ    ?= 20s

.PHONY: build
build: PROGRAMS := $(ISA_L)
build: $(if $(filter 1,$(ISAL)),deps) ## bin/slipwayd and bin/slipway
	$(BUILD) -o bin/ ./cmd/slipway
	$(if $(WITH),CGO_ENABLED=1 $(GO) build -tags isal $(STAMP),$(BUILD)) -o bin/ ./cmd/slipwayd

.PHONY: deps
deps: ## install what is missing of the programs that Slipway and its tests run
	@scripts/deps.sh $(PROGRAMS)

.PHONY: demo
demo: PROGRAMS := $(if $(filter 1,$(ISAL)),$(ISA_L))
demo: deps build ## deploy examples/hello to a daemon of its own
	$(BUILD) -o bin/ ./examples/hello ./examples/verify
	$(SUDO) scripts/demo.sh

# What the tests make their input with, and the clients that they drive.
TOOLS   := python3:python3 bzip2:bzip2 xz:xz-utils mkfs.ext4:e2fsprogs postgres:postgresql
CLIENTS := skopeo:skopeo ctr:containerd dockerd:docker.io

# What the tests of the pages run in; playwright-core comes with npm.
BROWSER := chromium:chromium node:nodejs npm:npm

# Go cannot see what the tests of cmd/slipwayd build, so no result is kept.
.PHONY: test
test: PROGRAMS := $(TOOLS) $(CLIENTS)
test: deps ## all tests; some need root and are skipped without
	$(GO) test -count=1 -timeout $(TIMEOUT) ./...

.PHONY: lint
lint: format vet staticcheck protocol generated arrows tidy ## what can be said without a run

.PHONY: check
check: lint cross race isal ## before a change goes in

.PHONY: format
format:
	@out=$$(gofmt -l .); \
	[ -z "$$out" ] || { echo "gofmt these:"; echo "$$out"; exit 1; }

.PHONY: vet
vet:
	$(GO) vet ./...

.PHONY: staticcheck
staticcheck:
	$(TOOL) staticcheck ./...

# What old clients and daemons say must stay readable: compare with main, or on
# main itself with the commit before.
.PHONY: protocol
protocol:
	$(BUF) lint
	@old=$$(git rev-parse -q --verify origin/main 2>/dev/null || git rev-parse -q --verify main 2>/dev/null || git rev-parse -q --verify HEAD 2>/dev/null || true); \
	if [ "$$old" = "$$(git rev-parse -q --verify HEAD 2>/dev/null || true)" ]; then \
		old="$$old $$(git rev-parse -q --verify HEAD~1 2>/dev/null || true)"; fi; \
	for commit in $$old; do \
		git cat-file -e $$commit:proto 2>/dev/null || continue; \
		dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; \
		git archive $$commit buf.yaml proto | tar -x -C "$$dir"; \
		echo "buf breaking --against $$commit"; \
		$(BUF) breaking --against "$$dir"; rm -rf "$$dir"; \
	done

.PHONY: generated
generated:
	@dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; \
	$(BUF) generate -o "$$dir"; \
	diff -r "$$dir/proto/slipway" proto/slipway -x '*.proto' || { echo 'generated code is out of date: run "make generate"'; exit 1; }

.PHONY: arrows
arrows:
	$(GO) test .

.PHONY: tidy
tidy:
	$(GO) mod tidy -diff

.PHONY: cross
cross:
	@for os in linux darwin windows; do for arch in amd64 arm64; do \
		echo "build slipway for $$os/$$arch"; \
		GOOS=$$os GOARCH=$$arch CGO_ENABLED=0 $(GO) build -o /dev/null ./cmd/slipway; \
	done; done

# The tests of cmd/slipwayd drive finished binaries, in which nothing would look
# for races; those that hold the ledger against file systems, or count its
# memory, have one goroutine and much to do.
.PHONY: race
race: PROGRAMS := $(TOOLS) gcc:gcc,libc6-dev # for the race detector
race: deps
	CGO_ENABLED=1 $(GO) test -race -skip '^TestLedgerAgainst|^TestMemoryOfAMillionPaths$$' -timeout $(TIMEOUT) $$($(GO) list ./... | grep -v /cmd/slipwayd$$)

# The compressor that is built on request makes the same streams.
.PHONY: isal
isal: PROGRAMS := $(ISA_L)
isal: deps
	CGO_ENABLED=1 $(GO) vet -tags isal ./pushd/compress
	CGO_ENABLED=1 $(GO) test -tags isal ./pushd/compress ./builder/layer

.PHONY: generate
generate: ## code from proto/
	$(BUF) generate

.PHONY: browser-test
browser-test: PROGRAMS := $(BROWSER)
browser-test: deps ## the pages in Chromium; SCREENSHOTS=docs/web draws those of the documentation anew
	SCREENSHOTS=$(if $(SCREENSHOTS),$(abspath $(SCREENSHOTS))) scripts/browser-test.sh

.PHONY: web-assets
web-assets: ## fetch the scripts that the pages embed
	scripts/web-assets.sh

.PHONY: fuzz
fuzz: ## each fuzz test for FUZZ (20s)
	@for package in $$($(GO) list ./...); do \
		for name in $$($(GO) test -list '^Fuzz' $$package | grep '^Fuzz' || true); do \
			echo "$$package $$name"; \
			$(GO) test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZ) $$package; \
		done; \
	done

.PHONY: bench
bench: PROGRAMS := curl:curl $(ISA_L)
bench: deps build ## beside BuildKit and others; QUICK=1 for one small round, ONLY=A,P for some workloads
	cd benchmarks && $(SUDO) env "PATH=$$PATH" QUICK=$(QUICK) $(GO) run . -only "$(ONLY)"

.PHONY: clean
clean:
	rm -rf bin
