#!/bin/sh
# Copies the root it runs in to TARGET and makes a sandbox's root of the copy: small, read-only by nature, byte for byte the
# same each time.
#
#   finalize.sh IMAGE TARGET        with SOURCE_DATE_EPOCH, or the lock's date
#
# Works on a copy, so that the next, larger image can go on from the untouched root, and because a build container's
# /etc/hosts and /etc/resolv.conf are mounts of its engine.
set -eu

recipe=$(cd "$(dirname "$0")/.." && pwd)
image=$1
target=$2
epoch=${SOURCE_DATE_EPOCH:-$(sed -n 's/^# epoch //p' "$recipe/bookworm.$(dpkg --print-architecture).lock")}
export LC_ALL=C.UTF-8
umask 022

list() { sed 's/#.*//' "$@" | tr -s ' \n' '\n' | sed '/^$/d'; }

mkdir -p "$target"
for entry in bin etc lib lib32 lib64 libx32 sbin usr var; do
    [ ! -e "/$entry" ] || cp -a "/$entry" "$target/"
done
cd "$target"

# --- packages that only administer a machine ---------------------------------------------------------------------------
# By list, not by dpkg: no maintainer script runs, and what a kept package owns too stays.
removed=$(list "$recipe/common/remove.txt" $(ls "$recipe/$image/remove.txt" 2>/dev/null || true))
set -f
names=" $(echo $removed) "
set +f
work=$(mktemp -d)
: >"$work/gone"
: >"$work/kept"
for listing in var/lib/dpkg/info/*.list; do
    name=${listing##*/}
    name=${name%.list}
    case $names in *" ${name%%:*} "*) cat "$listing" >>"$work/gone" ;; *) cat "$listing" >>"$work/kept" ;; esac
done
sort -u "$work/kept" >"$work/kept.sorted"
# Deepest first; -d takes a directory once it is empty, and leaves one that is not.
sort -ru "$work/gone" | grep -vxF -f "$work/kept.sorted" | sed 's/^/./' | tr '\n' '\0' | xargs -0r rm -fd -- 2>/dev/null || true
rm -rf "$work"
# Single paths, given from the root.
echo "$removed" | while read -r path; do
    case $path in /*) rm -rf .$path ;; esac
done

# The package database stays as one file, for whoever scans the image for known weaknesses.
awk -v removed="$names" 'BEGIN { RS = ""; ORS = "\n\n" }
    { split($1 " " $2, word, " "); if (!index(removed, " " word[2] " ")) print }' var/lib/dpkg/status >status.new
rm -rf var/lib/dpkg
mkdir -p var/lib/dpkg
mv status.new var/lib/dpkg/status

# --- what no Skill reads -------------------------------------------------------------------------------------------------
find usr/share/doc -mindepth 1 -not -type d -not -name copyright -delete
find usr/share/doc -depth -type d -empty -delete
rm -rf usr/share/man usr/share/info usr/share/locale usr/share/lintian usr/share/bug usr/share/bash-completion usr/share/menu \
    usr/share/pixmaps usr/share/applications usr/share/doc-base usr/share/debconf usr/share/pam usr/share/pam-configs \
    usr/share/perl5/Debconf usr/share/perl5/Debian usr/share/gdb usr/share/gitweb usr/share/polkit-1 usr/share/python-wheels \
    usr/share/gcc usr/share/initramfs-tools usr/lib/systemd usr/lib/init usr/lib/udev usr/lib/tmpfiles.d usr/lib/sysusers.d usr/local/man usr/local/share/man \
    usr/lib/dpkg usr/lib/apt usr/sbin/policy-rc.d usr/sbin/start-stop-daemon* usr/games usr/local/games usr/src usr/local/src
rm -rf etc/apt etc/dpkg etc/cron.* etc/default etc/init.d etc/rc?.d etc/kernel etc/logrotate.d etc/pam.conf etc/pam.d etc/security \
    etc/selinux etc/skel etc/systemd etc/update-motd.d etc/motd etc/issue etc/issue.net etc/shadow* etc/gshadow* etc/passwd* \
    etc/group* etc/subuid* etc/subgid* etc/login.defs etc/adduser.conf etc/deluser.conf etc/debconf.conf etc/machine-id etc/fstab \
    etc/mke2fs.conf etc/e2scrub.conf etc/hosts etc/hostname etc/resolv.conf etc/mtab etc/.pwd.lock etc/opt etc/python3/debian_config \
    etc/ssh etc/terminfo etc/shells etc/python3.11/sitecustomize.py usr/lib/python3.11/sitecustomize.py
rm -rf var/cache var/log var/backups var/mail var/spool var/opt var/local var/run var/lock var/tmp var/lib/apt var/lib/pam \
    var/lib/systemd var/lib/misc var/lib/shells.state var/lib/python var/lib/ucf var/lib/git

# --- who one is: the agent writes these two when it knows its user; till then, and without an agent, the default --------
mkdir -p run/skillcell
ln -s /run/skillcell/passwd etc/passwd
ln -s /run/skillcell/group etc/group
printf '%s\n' 'root:x:0:0:root:/nonexistent:/usr/sbin/nologin' 'skill:x:65532:65532::/home/skill:/bin/sh' \
    'nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin' >run/skillcell/passwd
printf '%s\n' 'root:x:0:' 'skill:x:65532:' 'nogroup:x:65534:' >run/skillcell/group
printf 'passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nservices: files\nprotocols: files\n' >etc/nsswitch.conf
printf '127.0.0.1 localhost sandbox\n::1 localhost ip6-localhost ip6-loopback\n' >etc/hosts
printf 'sandbox\n' >etc/hostname
# Nothing answers at loopback's port 53, so a name fails at once instead of after a timeout.
printf 'nameserver 127.0.0.1\noptions timeout:1 attempts:1\n' >etc/resolv.conf
ln -sf /usr/share/zoneinfo/Etc/UTC etc/localtime
ln -sf python3 usr/bin/python

# --- directories that are mount points ------------------------------------------------------------------------------------
mkdir -p .skillcell dev home/skill input layers/npm layers/pip layers/tools opt output proc root skill sys tmp var/lib workspace
ln -s ../run var/run
ln -s ../tmp var/tmp

chroot . /sbin/ldconfig -X
rm -rf var/cache
# Read inside the copy, where absolute links lead to the copy's own files.
chroot . /usr/bin/find / -xdev '(' -path /proc -o -path /sys -o -path /dev ')' -prune -o -xtype l -print0 | sed -z 's/^/./' | xargs -0r rm -f --

# Node looks for what a module imports in node_modules of its folder and of every folder above; NODE_PATH is for require() alone.
ln -s /layers/npm/node_modules node_modules

# A read-only root can't keep what Python compiles, so all of it is compiled here; "unchecked" since mtimes mean nothing in it.
find . -name __pycache__ -type d -prune -exec rm -rf {} +
PYTHONHASHSEED=0 python3 -I -m compileall -q -j1 --invalidation-mode unchecked-hash -s "$target" -p / \
    usr/lib/python3.11 usr/lib/python3/dist-packages >/dev/null || true

# --- one owner, nothing writable, no privilege, one date -------------------------------------------------------------------
chown -hR 0:0 .
find . -not -type l -perm /7022 -exec chmod u-s,g-s,o-t,go-w {} +
chmod -R u+rwX,a+rX .
chmod 1777 tmp
find . -depth -exec touch -h -d "@$epoch" {} +
