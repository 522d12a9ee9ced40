#!/usr/bin/env bash
# Sets up what one machine needs, and nothing twice: system packages, a virtual environment, the sandbox images.
# Usage: setup.sh run   what `skillcell serve` needs
#        setup.sh test  that, and what the test suite needs (a Docker engine, gVisor, promtool, Node …)
set -euo pipefail
cd "$(dirname "$0")/../.."
mode=${1:-run}
venv=${VENV:-.venv}

say() { printf '\033[1m==> %s\033[0m\n' "$*" >&2; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }
has() { command -v "$1" >/dev/null 2>&1; }

[ "$(uname -s)" = Linux ] || die "Skillcell's sandboxes need Linux; this is $(uname -s)"

# program:package pairs of Debian and Ubuntu
wanted=(crun:crun mmdebstrap:mmdebstrap)
[ "$mode" = test ] && wanted+=(
    runc:runc runsc:runsc dockerd:docker.io promtool:prometheus node:nodejs npm:npm unshare:util-linux git:git strace:strace
)
missing=()
for pair in "${wanted[@]}"; do
    has "${pair%%:*}" || [ -x "/usr/sbin/${pair%%:*}" ] || missing+=("${pair##*:}")
done
if ! python3 -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    missing+=(python3 python3-venv)
fi
if [ "${#missing[@]}" -gt 0 ]; then
    has apt-get || die "these are missing, and there is no apt-get to install them: ${missing[*]}"
    [ "$(id -u)" = 0 ] || die "run this as root once, or: sudo apt-get install -y --no-install-recommends ${missing[*]}"
    say "system packages: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    # Services are not started: the engine that tests use is their own.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy"
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    fi
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || die "Python 3.11 or newer is needed; $(python3 -V) is here"

extra=$([ "$mode" = test ] && echo '[dev]' || echo '')
stamp="$venv/.skillcell-$mode-$(cat pyproject.toml | sha256sum | cut -c1-16)"
if [ ! -e "$stamp" ]; then
    say "virtual environment in $venv"
    [ -x "$venv/bin/python" ] || python3 -m venv "$venv"
    "$venv/bin/pip" install -q --disable-pip-version-check -e ".$extra"
    touch "$stamp"
fi

if [ "$(id -u)" = 0 ]; then
    say "sandbox images"
    "$venv/bin/skillcell" images prepare
else
    say "not root: the sandbox images and the oci driver need root; with a Docker engine, 'skillcell images prepare --driver docker' works without"
fi
