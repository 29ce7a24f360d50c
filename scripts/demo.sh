#!/usr/bin/env bash
# Deploys examples/hello to a daemon of its own: cold, unchanged, and with one
# file changed; then pulls the image, verifies it and runs it. Leaves nothing
# behind. Run it with "make demo", which builds what it needs into bin/.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$PWD/bin

work=$(mktemp -d "${TMPDIR:-/tmp}/slipway-demo-XXXXXX")
daemon=

stop() {
	status=$?
	trap - EXIT
	if [ -n "$daemon" ]; then
		kill -TERM "$daemon" 2>/dev/null || true
		wait "$daemon" || [ $status != 0 ] || status=1
	fi
	if [ $status != 0 ] && [ $status != 130 ]; then
		echo "demo: it failed; the daemon's log:" >&2
		cat "$work/log" >&2
	fi
	if grep -F " $work/" /proc/self/mounts; then
		echo "demo: these mounts are left in $work" >&2
		exit 1
	fi
	rm -rf "$work"
	exit $status
}
trap stop EXIT
trap 'exit 130' INT TERM

say() { printf '\n== %s\n' "$*"; }

# Settings of the caller, and the caller's home, are left alone.
slipway() {
	env -i PATH="$PATH" HOME="$work/home" SLIPWAY_ADDR="$grpc" \
		SLIPWAY_API_TOKEN="$(cat "$work/root/admin.token")" "$bin/slipway" "$@"
}

field() { sed -n "s/.*slipwayd is ready.* $1=\([^ ]*\).*/\1/p" "$work/log"; }

say "start slipwayd with its registry, on free ports, in $work/root"
# In a process group of its own, so that Ctrl-C reaches the client alone.
set -m
env -i PATH="$PATH" HOME="$work/home" TMPDIR="${TMPDIR:-/tmp}" \
	"$bin/slipwayd" --root "$work/root" --grpc 127.0.0.1:0 --http 127.0.0.1:0 2>"$work/log" &
daemon=$!
set +m
for _ in $(seq 100); do
	grpc=$(field grpc)
	[ -n "$grpc" ] && break
	kill -0 "$daemon" 2>/dev/null || exit 1
	sleep 0.1
done
[ -n "$grpc" ] || { echo "demo: the daemon is not ready after 10 s"; cat "$work/log"; exit 1; }
echo "gRPC at $grpc, registry at $(field http)"

mkdir -p "$work/context" "$work/home"
cp -r examples/hello/. "$work/context"
cp "$bin/hello" "$work/context/hello"

deploy() { image=$(slipway deploy -a hello "$work/context"); echo "$image"; }

say "deploy examples/hello, cold"
deploy
say "deploy it again, unchanged"
deploy
say "deploy it again, one file changed"
echo "Hello again." >>"$work/context/texts/en.txt"
deploy

say "pull the image back, verify it and run it"
"$bin/verify" -token-file "$work/root/admin.token" -run "${image%@*}" | tee "$work/output"
grep -q '^Hello again\.$' "$work/output" || { echo "demo: the image does not have the change"; exit 1; }

say "stop"
