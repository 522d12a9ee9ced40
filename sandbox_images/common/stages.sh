#!/bin/sh
# A customize hook of mmdebstrap: builds each IMAGE on top of the one before in ROOT and moves finished trees to OUT.
#
#   stages.sh ROOT OUT NPM DRIFT IMAGE…
#
# NPM is a folder of fetched npm packages. One run for all images: the base is made once, and an image's bytes don't depend on
# whether a larger one follows, since each is finished as a copy.
set -eu

root=$1 out=$2 npm=$3 drift=$4
shift 4
recipe=$(cd "$(dirname "$0")/.." && pwd)

mkdir -p "$root/build/npm"
cp -R "$recipe/." "$root/build/"
find "$npm" -name 'node-*.tgz' -exec cp {} "$root/build/npm/" ';'
for image in "$@"; do
    echo "stage: $image: installing packages"
    DRIFT=$drift chroot "$root" /build/common/install.sh "$image"
    if [ "$drift" != update ]; then
        echo "stage: $image: finishing"
        chroot "$root" /build/common/finalize.sh "$image" "/build/out/$image"
        mv "$root/build/out/$image" "$out/$image"
    fi
done
native=$(chroot "$root" dpkg --print-architecture)
chroot "$root" dpkg-query -W -f '${Package}=${Version}\n' >"$out/packages.$native"

if [ "$drift" = update ]; then
    # The other architectures' versions of the same packages: looked up, not built here.
    names=$(sed 's/=.*//' "$out/packages.$native")
    for other in amd64 arm64; do
        [ "$other" != "$native" ] || continue
        mkdir -p "$root/tmp/lists/partial"
        apt="-q -o APT::Architecture=$other -o APT::Architectures=$other -o Dir::State::lists=/tmp/lists -o Dir::State::status=/dev/null
            -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o Acquire::Languages=none"
        chroot "$root" apt-get $apt update
        chroot "$root" apt-cache $apt policy $names |
            awk '/^[^ ]/ { sub(/:$/, "", $1); name = $1 } $1 == "Candidate:" { print name "=" $2 }' >"$out/packages.$other"
    done
    # When the mirror was published: the lock's date.
    sed -n 's/^Date: //p' "$root"/var/lib/apt/lists/*InRelease >"$out/dates"
fi
