#!/usr/bin/env bash
# Installs, with apt, what is missing of the programs that Slipway (runc, git) and
# its tests (busybox, debootstrap) run, and says what it installs. Further
# programs are named as arguments: PROGRAM:PACKAGE[,PACKAGE...].
set -euo pipefail
PATH="$PATH:/usr/sbin:/sbin"
for dir in /usr/lib/postgresql/*/bin; do
	PATH="$PATH:$dir"
done

packages=()
need() { command -v "$1" >/dev/null || packages+=("${@:2}"); }

need runc runc
need git git ca-certificates
need debootstrap debootstrap
# Tests make root file systems of one program: it must be static.
if ! command -v busybox >/dev/null || ldd "$(command -v busybox)" >/dev/null 2>&1; then
	packages+=(busybox-static)
fi
for more in "$@"; do
	IFS=, read -ra names <<<"${more#*:}"
	need "${more%%:*}" "${names[@]}"
done
[ ${#packages[@]} -gt 0 ] || exit 0

if ! command -v apt-get >/dev/null; then
	echo "deps: please install ${packages[*]}" >&2
	exit 1
fi
root=()
if [ "$(id -u)" != 0 ]; then
	if ! command -v sudo >/dev/null; then
		echo "deps: please run as root: apt-get install --no-install-recommends ${packages[*]}" >&2
		exit 1
	fi
	root=(sudo)
fi
echo "deps: installing ${packages[*]} with apt-get"
"${root[@]}" apt-get update -qq
# Debian starts a server when it installs PostgreSQL. Tests start their own.
case " ${packages[*]} " in *" postgresql "*)
	config=/etc/postgresql-common/createcluster.d
	trap '"${root[@]}" rm -f "$config/slipway.conf"' EXIT
	"${root[@]}" mkdir -p "$config"
	echo 'create_main_cluster = false' | "${root[@]}" tee "$config/slipway.conf" >/dev/null
	;;
esac
"${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
