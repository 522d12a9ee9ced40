"""What keeps a sandbox in: the OCI configuration, paths, mounts and rlimits, and the table of what each driver gives.

Pure functions. A reader could get three things wrong. Writable directories of the `oci` driver are subdirectories of
one tmpfs, so that the disk limits are totals; the host directories behind them are the launcher's. Two ids are
mapped into the user namespace: 0, which only the runtime uses while it sets up, and the Skill's own; everything
else, the image's owner included, shows as nobody. And /sys is an empty directory: nothing in it is a Skill's
business.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from skillcell.core.errors import invalid
from skillcell.core.types import Isolation, Limits
from skillcell.sandbox import seccomp
from skillcell.sandbox.driver import Guarantee, PackageMount, SandboxSpec
from skillcell.sandbox.launcher_wire import tree_name

SKILL_ID = 1000
"""uid and gid inside; outside it is another one for each sandbox."""

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

WRITABLE: Mapping[str, str] = MappingProxyType(
    {
        "workspace": "/workspace",
        "tmp": "/tmp",  # noqa: S108
        "output": "/output",
        "input": "/input",
        "home": "/home/skill",
        "run": "/run/skillcell",
        "shm": "/dev/shm",  # noqa: S108
    }
)
"""Subdirectory of the sandbox's tmpfs to where it appears inside."""

MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/bus",
    "/proc/cmdline",
    "/proc/diskstats",
    "/proc/fs",
    "/proc/interrupts",
    "/proc/irq",
    "/proc/kallsyms",
    "/proc/kcore",
    "/proc/key-users",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/modules",
    "/proc/partitions",
    "/proc/pressure",
    "/proc/sched_debug",
    "/proc/schedstat",
    "/proc/scsi",
    "/proc/sys/kernel/random/boot_id",
    "/proc/sysrq-trigger",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/fs/cgroup",
)
"""Docker's list and more: what names the machine, its hardware or its other tenants' doings. Each costs a mount, so
what only the host's root can read (vmallocinfo, slabinfo, kpage*, iomem) is left out: nobody inside is that."""

READ_ONLY_PATHS = ("/proc/sys",)
"""Docker's other four are masked here."""

_MASKED_IN_USER_NAMESPACE = tuple(path for path in MASKED_PATHS if not path.startswith("/sys/"))

_FSIZE_SLACK_BYTES = 64 * 1024
"""A file with real content meets the full disk (ENOSPC) first; only a sparse one meets SIGXFSZ."""

_ALL = frozenset(Guarantee)
GUARANTEES: Mapping[tuple[str, Isolation], frozenset[Guarantee]] = MappingProxyType(
    {
        ("oci", Isolation.STANDARD): _ALL,
        # runsc 2022 called directly: its own kernel has its own namespaces, filters for itself, and its threads don't
        # count as ours; of its processes outside, one runs as nobody, which other sandboxes share
        ("oci", Isolation.GVISOR): _ALL
        - {
            Guarantee.SECCOMP,
            Guarantee.OWN_UID,
            Guarantee.USER_NAMESPACE,
            Guarantee.PRIVATE_NAMESPACES,
            Guarantee.PIDS_LIMIT,
        },
        # an engine's volumes and its /etc/hostname show where they lie
        ("docker", Isolation.STANDARD): _ALL
        - {Guarantee.USER_NAMESPACE, Guarantee.SHARED_DISK_LIMIT, Guarantee.NO_HOST_PATHS},
        # runsc 2022 by way of an engine: its sentry and gofer run as nobody and root in namespaces of the host's
        # kernel, its own kernel filters for itself, its tmpfs counts no files, and past the pids limit it dies
        ("docker", Isolation.GVISOR): _ALL
        - {
            Guarantee.SECCOMP,
            Guarantee.NON_ROOT_OUTSIDE,
            Guarantee.OWN_UID,
            Guarantee.USER_NAMESPACE,
            Guarantee.PRIVATE_NAMESPACES,
            Guarantee.PIDS_LIMIT,
            Guarantee.DISK_FILES_LIMIT,
            Guarantee.SHARED_DISK_LIMIT,
            Guarantee.NO_HOST_PATHS,
        },
    }
)
"""What each driver and class gives; a pair that is not here can't be run. The contract suite asserts this table."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the launcher puts one sandbox on the host, and which host ids are its own."""

    directory: Path
    """The sandbox's own: `disk` is its tmpfs, with directories of `WRITABLE`; `layers` has /layers' mount points."""
    trees: Path
    """Where image and packages are bound, read-only, each under its `tree_name`."""
    host_root_id: int
    """Host uid and gid of the inside's 0."""
    host_skill_id: int
    """Host uid and gid of the inside's SKILL_ID."""
    cgroups_path: str = ""
    """For runtimes that place the container themselves; empty where the process has joined its cgroup already."""


def trees_directory(*, locked: bool) -> str:
    """Name of the directory of read-only views. runsc can't take locked ones: it remounts with fewer flags."""
    return "trees" if locked else "trees-plain"


def rlimits(limits: Limits) -> tuple[tuple[str, int], ...]:
    """(RLIMIT_*, soft and hard). fsize stops sparse files; core dumps are off."""
    return (
        ("RLIMIT_NOFILE", limits.open_files),
        ("RLIMIT_CORE", 0),
        ("RLIMIT_FSIZE", limits.disk_bytes + _FSIZE_SLACK_BYTES),
    )


def tmpfs_options(limits: Limits) -> str:
    """Mount data of the one tmpfs that holds every writable byte and file of a sandbox. FAILS on a limit of none."""
    for name in ("disk_bytes", "disk_files"):
        if getattr(limits, name) < 1:  # 0 means "no limit" to tmpfs
            raise invalid(f"limits.{name}", f"{getattr(limits, name)} is below what can be enforced, 1")
    # the top directory and those of WRITABLE are ours, not the Skill's
    return f"size={limits.disk_bytes},nr_inodes={limits.disk_files + 1 + len(WRITABLE)},mode=0711"


def oci_config(spec: SandboxSpec, place: Placement) -> bytes:
    """config.json for crun and runc. The seccomp part is rendered once and spliced in: it is most of the bytes."""
    config = _config(spec, place)
    config["linux"] |= {
        "uidMappings": _mappings(place),
        "gidMappings": _mappings(place),
        "maskedPaths": _MASKED_IN_USER_NAMESPACE,
        "readonlyPaths": READ_ONLY_PATHS,
        "seccomp": "@",
    }
    config["linux"]["namespaces"] = [
        {"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network", "cgroup", "user")
    ]
    text = json.dumps(config, separators=(",", ":"))
    return text.replace('"seccomp":"@"', f'"seccomp":{_seccomp_text(spec.image.architecture)}', 1).encode()


def _config(spec: SandboxSpec, place: Placement) -> dict[str, Any]:
    rootfs = spec.image.rootfs
    if rootfs is None:
        raise invalid("image", f"{spec.image.reference} has no file tree on this machine")
    env = {"PATH": DEFAULT_PATH, **spec.image.env}
    linux: dict[str, Any] = {"resources": {}}
    if place.cgroups_path:
        linux["cgroupsPath"] = place.cgroups_path
    return {
        "ociVersion": "1.0.2",
        "root": {"path": str(place.trees / tree_name(rootfs)), "readonly": True},
        "hostname": spec.hostname,
        "process": {
            "terminal": False,
            "user": {"uid": SKILL_ID, "gid": SKILL_ID, "umask": 0o22},
            "args": list(spec.command),
            "env": [f"{name}={value}" for name, value in env.items()],
            "cwd": "/",
            "noNewPrivileges": True,
            "capabilities": {kind: [] for kind in ("bounding", "effective", "permitted", "inheritable", "ambient")},
            "rlimits": [{"type": name, "soft": value, "hard": value} for name, value in rlimits(spec.limits)],
        },
        "mounts": [*_system_mounts(), *_writable_mounts(place), *_package_mounts(spec, place)],
        "linux": linux,
    }


def _mappings(place: Placement) -> list[dict[str, int]]:
    return [
        {"containerID": 0, "hostID": place.host_root_id, "size": 1},
        {"containerID": SKILL_ID, "hostID": place.host_skill_id, "size": 1},
    ]


def _system_mounts() -> list[dict[str, Any]]:
    return [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
        {
            "destination": "/dev",
            "type": "tmpfs",
            "source": "dev",
            "options": ["nosuid", "noexec", "strictatime", "mode=755", "size=64k", "nr_inodes=64"],
        },
    ]


def _writable_mounts(place: Placement) -> list[dict[str, Any]]:
    return [
        _bind(place.directory / "disk" / name, inside, "rw", noexec=name == "shm") for name, inside in WRITABLE.items()
    ]


def _package_mounts(spec: SandboxSpec, place: Placement) -> list[dict[str, Any]]:
    mounts = []
    if layer_names(spec.mounts):
        # the image has /layers but nothing below; the launcher made the mount points in a directory of its own
        mounts.append(_bind(place.directory / "layers", "/layers", "ro"))
    return mounts + [_bind(place.trees / tree_name(mount.path), mount.target, "ro") for mount in spec.mounts]


def layer_names(mounts: Sequence[PackageMount]) -> tuple[str, ...]:
    """Names below /layers that mounts need as directories."""
    return tuple(mount.target.removeprefix("/layers/") for mount in mounts if mount.target.startswith("/layers/"))


def _bind(source: Path, inside: str, mode: str, *, noexec: bool = False) -> dict[str, Any]:
    options = ["bind", mode, "nosuid", "nodev", *(["noexec"] if noexec else [])]
    return {"destination": inside, "type": "bind", "source": str(source), "options": options}


@lru_cache(maxsize=4)
def _seccomp_text(architecture: str) -> str:
    return json.dumps(seccomp.oci_profile(architecture), separators=(",", ":"))
