#!/usr/bin/env bash
# Fetches the scripts of others that package web embeds, in the versions and
# with the checksums below. The files are kept in the repository: a build
# needs no network. With --check it only says whether they are what they should
# be.
set -euo pipefail
cd "$(dirname "$0")/../web/assets"

version=4.0.1
integrity=sha512-oF7JgXhDW9UXCy/k1ZYFUQgzu/rm19ORWPSPNL91vPluB2PB9+MV55tyQdH/w7o2EAbTYUG5SDW1R60mdkdqGg==

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
(cd "$tmp" && npm pack --silent "htmx.org@$version" >/dev/null 2>&1)
got=sha512-$(openssl dgst -sha512 -binary "$tmp/htmx.org-$version.tgz" | base64 -w0)
if [ "$got" != "$integrity" ]; then
	echo "web-assets: htmx.org@$version is $got, not $integrity" >&2
	exit 1
fi
tar -xzf "$tmp/htmx.org-$version.tgz" -C "$tmp"
for file in htmx.min.js ext/hx-sse.min.js; do
	# The map that the last line names is not served.
	sed '/^\/\/# sourceMappingURL=/d' "$tmp/package/dist/$file" >"$tmp/${file##*/}"
	if [ "${1-}" = --check ]; then
		cmp "$tmp/${file##*/}" "${file##*/}"
	else
		cp "$tmp/${file##*/}" .
	fi
done
