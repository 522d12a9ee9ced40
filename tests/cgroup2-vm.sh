#!/bin/sh
# Runs tests on a pure cgroup v2 host, whatever this machine has: Debian 12 in a small virtual machine without network.
#
#   tests/cgroup2-vm.sh [PYTEST ARGUMENTS…]      by default the cgroup tests and the oci driver's contract with crun
#
# Needs root, about 2 GiB of disk, a virtual environment of Python 3.11 (PYTHON=…, by default .venv) and
#   apt-get install --no-install-recommends mmdebstrap qemu-system-x86 e2fsprogs
# The machine's system is kept (SKILLCELL_VM=…, by default ~/.cache/skillcell-tests/cgroup2-vm) and made again when that
# directory is removed. KVM is not used (ACCEL=kvm to try): emulated, a test takes ten times as long and more, so one
# that races a clock may fail here for that reason alone. What is committed is tested, not the working tree.
set -eu

repository=$(cd "$(dirname "$0")/.." && pwd)
work=${SKILLCELL_VM:-$HOME/.cache/skillcell-tests/cgroup2-vm}
python=${PYTHON:-$repository/.venv/bin/python}
[ "$#" -gt 0 ] || set -- tests/unit/test_cgroups.py tests/contract/test_oci_driver.py -k "not Runc and not Runsc"

[ "$(id -u)" = 0 ] || { echo "a system's tree can only be made by root: run with sudo" >&2; exit 2; }
for program in mmdebstrap qemu-system-x86_64 mke2fs; do
    command -v "$program" >/dev/null || { echo "$program is missing: see the top of $0" >&2; exit 2; }
done
packages=$("$python" -c 'import sys, sysconfig
assert sys.version_info[:2] == (3, 11), "Debian 12 has Python 3.11; PYTHON=… must be one too"
print(sysconfig.get_path("purelib"))')
image=$(cd "$repository" && PYTHONPATH=runtime:tests "$python" -c '
from sandbox_fixtures import image
print(image("python-3.11").rootfs.parent)')

mkdir -p "$work"
if [ ! -e "$work/system.tar" ]; then
    # docker.io is there for tests/contract/test_docker_driver.py; its daemon starts with its socket's first user
    mmdebstrap --variant=minbase --aptopt='APT::Install-Recommends "false"' \
        --include=linux-image-cloud-amd64,initramfs-tools,systemd-sysv,dbus,python3,crun,runc,docker.io,iproute2,procps \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --customize-hook='rm -f "$1"/var/cache/apt/archives/*.deb' bookworm "$work/system.new.tar"
    mv "$work/system.new.tar" "$work/system.tar"
fi

tree=$work/tree
rm -rf "$tree"
mkdir -p "$tree"
tar -C "$tree" --numeric-owner -xf "$work/system.tar"
mkdir -p "$tree/opt/skillcell" "$tree/opt/packages" "$tree/opt/images/references" "$tree/opt/bin" "$tree/etc/docker"
git -C "$repository" archive HEAD | tar -C "$tree/opt/skillcell" -x
tar -C "$packages" --exclude=mypy --exclude='*mypyc*' --exclude=./pip -c . | tar -C "$tree/opt/packages" -x
rm -f "$tree"/opt/packages/*.pth
cp -a "$image" "$tree/opt/images/"
ln -s "../$(basename "$image")" "$tree/opt/images/references/python-3.11"
cat >"$tree/usr/bin/skillcell" <<'PROGRAM'
#!/usr/bin/python3
from skillcell.cli.main import main

raise SystemExit(main())
PROGRAM
echo '{"bridge": "none", "iptables": false, "ip6tables": false}' >"$tree/etc/docker/daemon.json"
echo '/dev/vda / ext4 rw,noatime 0 0' >"$tree/etc/fstab"

{
    echo '#!/bin/sh'
    echo 'ip link set lo up'
    echo 'cd /opt/skillcell'
    echo 'export HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin PYTHONPATH=runtime:tests:/opt/packages'
    echo 'export SKILLCELL_IMAGES=/opt/images'
    printf 'timeout %s python3 -m pytest -p no:cacheprovider --color=no --timeout=600' "${SECONDS_AT_MOST:-7200}"
    for argument; do
        printf " '%s'" "$(printf %s "$argument" | sed "s/'/'\\\\''/g")"
    done
    echo
    echo 'echo "exit code of the tests: $?"'
    echo 'systemctl --force --force poweroff'
} >"$tree/opt/bin/tests"
chmod 755 "$tree/usr/bin/skillcell" "$tree/opt/bin/tests"
cat >"$tree/etc/systemd/system/tests.service" <<'UNIT'
[Unit]
After=multi-user.target
[Service]
Type=exec
ExecStart=/opt/bin/tests
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
[Install]
WantedBy=multi-user.target
UNIT
mkdir -p "$tree/etc/systemd/system/multi-user.target.wants"
ln -s /etc/systemd/system/tests.service "$tree/etc/systemd/system/multi-user.target.wants/tests.service"
ln -s /dev/null "$tree/etc/systemd/system/serial-getty@ttyS0.service"
rm -f "$tree/etc/systemd/system/multi-user.target.wants/docker.service"

cp -L "$tree"/boot/vmlinuz-* "$work/vmlinuz"
cp -L "$tree"/boot/initrd.img-* "$work/initrd.img"
rm -f "$work/disk"
truncate -s 5G "$work/disk"
mke2fs -q -t ext4 -d "$tree" "$work/disk"
rm -rf "$tree"

nice -n 19 qemu-system-x86_64 -machine q35 -accel "${ACCEL:-tcg}" -cpu max -smp 1 -m 2048 -display none -no-reboot \
    -kernel "$work/vmlinuz" -initrd "$work/initrd.img" \
    -append 'console=ttyS0 root=/dev/vda rw quiet apparmor=0 systemd.unified_cgroup_hierarchy=1 systemd.show_status=no' \
    -drive "file=$work/disk,format=raw,if=virtio,cache=unsafe" -nic none -monitor none -serial stdio </dev/null |
    tee "$work/console.log"
grep -q '^exit code of the tests: 0' "$work/console.log"
