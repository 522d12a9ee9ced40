#!/usr/bin/env bash
# Sets up what one machine needs, and nothing twice: system packages, a virtual environment, the sandbox images.
# Usage: setup.sh run   what `skillcell serve` needs
#        setup.sh test  that, and what the test suite needs (a Docker engine, gVisor, PostgreSQL, promtool, Node …)
# Environment: PYTHON  the interpreter to use (3.11 or newer)    VENV  the virtual environment    DATA  what lasts
set -euo pipefail
cd "$(dirname "$0")/../.."
mode=${1:-run}
venv=${VENV:-.venv}
data=${DATA:-.data}

say() { printf '\033[1m==> %s\033[0m\n' "$*" >&2; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }
has() { PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null 2>&1; }
is_root() { [ "$(id -u)" = 0 ]; }

[ "$(uname -s)" = Linux ] || die "Skillcell's sandboxes need Linux; this is $(uname -s)"

# The first interpreter that is new enough and can make virtual environments.
find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
        echo "$candidate"
        return
    done
    return 1
}

# What is looked for, and the package of Debian and Ubuntu that has it. A path is looked for as a file.
wanted=(crun:crun mmdebstrap:mmdebstrap /usr/share/keyrings/debian-archive-keyring.gpg:debian-archive-keyring)
[ "$mode" = test ] && wanted+=(
    runc:runc runsc:runsc dockerd:docker.io containerd:containerd promtool:prometheus node:nodejs npm:npm
    unshare:util-linux strace:strace git:git openssl:openssl /usr/share/postgresql-common:postgresql
    faketime:faketime mkfs.ext4:e2fsprogs
)
missing=()
for pair in "${wanted[@]}"; do
    case "$pair" in
        /*) [ -e "${pair%%:*}" ] || missing+=("${pair##*:}") ;;
        *) has "${pair%%:*}" || missing+=("${pair##*:}") ;;
    esac
done
find_python >/dev/null || missing+=(python3 python3-venv)

if [ "${#missing[@]}" -gt 0 ]; then
    has apt-get || die "these are missing, and there is no apt-get to install them: ${missing[*]}"
    is_root || die "these are missing: ${missing[*]}
  run this as root once, or: sudo apt-get install -y --no-install-recommends ${missing[*]}"
    say "system packages: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    # No service is started: the engine and the databases of tests are their own.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    fi
    log=$(mktemp)
    { apt-get update && apt-get install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1 ||
        { tail -n 20 "$log" >&2; die "apt-get could not install: ${missing[*]}"; }
    rm -f "$log"
fi
python=$(find_python) || die "Python 3.11 or newer with venv is needed; python3 here is $(python3 -V 2>&1).
  Ubuntu 22.04: apt-get install python3.11 python3.11-venv, then again"

extra=$([ "$mode" = test ] && echo '[dev,export]' || echo '[export]')
stamp="$venv/.skillcell-$mode-$(sha256sum pyproject.toml | cut -c1-16)"
if [ ! -e "$stamp" ] || ! "$venv/bin/python" -c 'import skillcell' 2>/dev/null; then
    say "virtual environment in $venv"
    "$venv/bin/python" -c '' 2>/dev/null || "$python" -m venv --clear "$venv"
    "$venv/bin/python" -m pip install -q --disable-pip-version-check --root-user-action=ignore -e ".$extra"
    touch "$stamp"
fi

# The judge of FOCUS datasets lives apart from us: it wants other versions of the same packages.
focus="$venv-focus"
stamp="$focus/.installed-$(sha256sum deploy/one-machine/focus-validator.txt | cut -c1-16)"
if [ "$mode" = test ] && [ ! -e "$stamp" ]; then
    say "the FOCUS validator in $focus"
    "$python" -m venv --clear "$focus"
    "$focus/bin/python" -m pip install -q --disable-pip-version-check --root-user-action=ignore \
        --no-deps --ignore-requires-python -r deploy/one-machine/focus-validator.txt
    touch "$stamp"
fi

# One store of images for the demonstration and the tests.
mkdir -p "$data/images" "$data/demo"
[ -e "$data/demo/images" ] || ln -s ../images "$data/demo/images"
if is_root; then
    say "sandbox images"
    driver=auto
    [ "$mode" = test ] && driver=oci
    "$venv/bin/skillcell" images prepare --driver "${SKILLCELL_DRIVER:-$driver}" --data "$data/demo"
else
    say "not root: with a Docker engine that you may use, images are made in it; the oci driver needs root"
    "$venv/bin/skillcell" images prepare --driver docker --data "$data/demo"
fi
