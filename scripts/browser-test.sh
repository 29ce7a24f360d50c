#!/usr/bin/env bash
# Tests the pages in Chromium, against a slipwayd that builds. It needs root,
# as all tests do that build. Says why when it does not run.
set -euo pipefail
cd "$(dirname "$0")/.."

skip() {
	echo "browser-test: skipped: $*"
	[ "${CI:-}" != true ] # where nothing may be skipped
	exit
}
[ "$(id -u)" = 0 ] || skip "builds need root"
for program in chromium node npm busybox; do
	command -v $program >/dev/null || skip "$program is not there and could not be installed"
done

node -e 'process.exit(parseInt(process.versions.node) < 18 ? 1 : 0)' || skip "node $(node --version) is older than 18, which playwright-core needs"

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
CGO_ENABLED=0 ${GO:-go} build -o "$tmp/" ./cmd/slipway ./cmd/slipwayd
cd web/browser
npm ci --silent --no-audit --no-fund >/dev/null 2>"$tmp/npm" || skip "npm ci: $(tail -n 3 "$tmp/npm")"
SLIPWAY_BIN=$tmp BUSYBOX=$(command -v busybox) CHROMIUM=$(command -v chromium) npm test --silent
