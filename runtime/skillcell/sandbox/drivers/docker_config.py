"""What a sandbox is to Docker: the body of `POST /containers/create`, made whole from a spec by pure functions.

A reader could get three things wrong. `NetworkDisabled` gives a new, empty network namespace with loopback and nothing
of libnetwork: no mounts of the engine's /etc/hosts and resolv.conf, no hook that starts the engine's binary again, half
the start time. Each writable directory is a tmpfs of its own, so the disk limit is split among them (`split`), and the
sum is the limit. And what an image declares (VOLUME, HEALTHCHECK, ENTRYPOINT) must not add anything: each is
overridden, or refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from skillcell.core.errors import invalid, precondition
from skillcell.core.types import Limits
from skillcell.sandbox import hardening, seccomp
from skillcell.sandbox.driver import SandboxSpec

LABEL_SANDBOX = "skillcell.sandbox"
LABEL_INSTANCE = "skillcell.instance"
LABEL_ATTEMPT = "skillcell.attempt"

_PAGE = 4096
_FLOOR_PAGES = 4
_FLOOR_FILES = 16
_LEAST = {"memory_bytes": 6 << 20, "milli_cpus": 10, "pids": 1, "open_files": 1}
"""What the engine or the kernel can enforce at least; to the engine 0 means no limit at all."""

_SHARES = {
    "/workspace": 40,
    "/output": 22,
    "/tmp": 14,  # noqa: S108
    "/input": 10,
    "/home/skill": 8,
    "/dev/shm": 5,  # noqa: S108
    "/run/skillcell": 1,
}
"""Hundredths of the disk limits, bytes and files alike, that each gets above a floor of 4 pages and 16 files."""

_NO_EXEC = frozenset({"/input", "/dev/shm", "/run/skillcell"})  # noqa: S108
_EVERYONE = frozenset({"/tmp", "/dev/shm"})  # noqa: S108


@dataclass(frozen=True, slots=True)
class Binding:
    """What one container gets besides its spec."""

    attempt: str
    instance: str
    uid: int
    runtime: str
    cgroup_parent: str
    """Empty: the engine's own default."""
    volumes: Sequence[tuple[str, str]]
    """(volume, target), mounted read-only."""


def split(limits: Limits) -> Mapping[str, tuple[int, int]]:
    """(bytes, inodes) of each writable directory. They sum to the limits, rounded down to whole pages."""
    pages = _divide("disk_bytes", limits.disk_bytes // _PAGE, limits.disk_bytes, _FLOOR_PAGES, unit=_PAGE)
    files = _divide("disk_files", limits.disk_files, limits.disk_files, _FLOOR_FILES, unit=1)
    return {path: (pages[path] * _PAGE, files[path]) for path in _SHARES}


def _divide(name: str, total: int, given: int, floor: int, *, unit: int) -> dict[str, int]:
    spare = total - floor * len(_SHARES)
    if spare < 0:
        least = floor * len(_SHARES) * unit
        raise invalid(
            f"limits.{name}", f"{given} is below the least that the docker driver can divide, {least}", value=str(given)
        )
    parts = {path: floor + spare * share // 100 for path, share in _SHARES.items()}
    parts["/workspace"] += total - sum(parts.values())
    return parts


def check_image(image: Mapping[str, Any]) -> None:
    """Refuse what the body can't override, from the body of GET /images/{name}/json."""
    volumes = sorted((image.get("Config") or {}).get("Volumes") or {})
    if volumes:
        raise precondition(
            "IMAGE_DECLARES_VOLUMES",
            f"the image declares VOLUME {', '.join(volumes)}, which would be writable without a limit; "
            "rebuild it without",
        )


def container_body(spec: SandboxSpec, binding: Binding) -> dict[str, Any]:
    """The request's body. INVALID_ARGUMENT for a limit that the engine can't hold."""
    for name, least in _LEAST.items():
        value = getattr(spec.limits, name)
        if value < least:
            raise invalid(f"limits.{name}", f"{value} is below the least that can be enforced, {least}")
    labels = {
        LABEL_SANDBOX: spec.sandbox_id,
        LABEL_INSTANCE: binding.instance,
        LABEL_ATTEMPT: binding.attempt,
    }
    return {
        "Image": spec.image.engine_reference,
        "Entrypoint": list(spec.command),
        "Cmd": [],
        "Env": [f"{name}={value}" for name, value in spec.image.env.items()],
        "WorkingDir": "/",
        "Hostname": spec.hostname,
        "User": f"{binding.uid}:{binding.uid}",
        "Labels": labels,
        "Healthcheck": {"Test": ["NONE"]},
        "NetworkDisabled": True,
        "Tty": False,
        "OpenStdin": True,
        "StdinOnce": True,
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
        "HostConfig": _host_config(spec, binding),
    }


def _host_config(spec: SandboxSpec, binding: Binding) -> dict[str, Any]:
    limits = spec.limits
    return {
        "Runtime": binding.runtime,
        "CgroupParent": binding.cgroup_parent,
        "NetworkMode": "none",
        "ReadonlyRootfs": True,
        "Privileged": False,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges", f"seccomp={_seccomp_text(spec.image.architecture)}"],
        "IpcMode": "private",
        "PidMode": "",
        "UTSMode": "",
        "CgroupnsMode": "private",
        "Init": False,
        "Memory": limits.memory_bytes,
        "MemorySwap": limits.memory_bytes,
        "CpuPeriod": 100_000,
        "CpuQuota": limits.milli_cpus * 100,
        "PidsLimit": limits.pids,
        "OomKillDisable": False,
        "OomScoreAdj": 500,
        "Ulimits": _ulimits(limits),
        "LogConfig": {"Type": "none"},
        "RestartPolicy": {"Name": "no"},
        "AutoRemove": False,
        "MaskedPaths": list(hardening.MASKED_PATHS),
        "ReadonlyPaths": list(hardening.READ_ONLY_PATHS),
        "Tmpfs": _tmpfs(limits, binding.uid),
        "Mounts": [
            {"Type": "volume", "Source": volume, "Target": target, "ReadOnly": True, "VolumeOptions": {"NoCopy": True}}
            for volume, target in binding.volumes
        ],
    }


def _tmpfs(limits: Limits, uid: int) -> dict[str, str]:
    mounts = {}
    for path, (size, files) in split(limits).items():
        execution = "noexec" if path in _NO_EXEC else "exec"
        mode = "1777" if path in _EVERYONE else "0755"
        mounts[path] = f"rw,nosuid,nodev,{execution},size={size},nr_inodes={files},uid={uid},gid={uid},mode={mode}"
    # a Skill has no use for what the engine would mount there, which no limit covers
    mounts["/dev/mqueue"] = "ro,nosuid,nodev,noexec,size=4096,nr_inodes=1,mode=0555"
    return mounts


def _ulimits(limits: Limits) -> list[dict[str, Any]]:
    values = [(name.removeprefix("RLIMIT_").lower(), value) for name, value in hardening.rlimits(limits)]
    values.append(("msgqueue", 0))  # POSIX message queues are files that no tmpfs limit counts
    return [{"Name": name, "Soft": value, "Hard": value} for name, value in values]


@lru_cache(maxsize=4)
def _seccomp_text(architecture: str) -> str:
    return json.dumps(seccomp.docker_profile(architecture), separators=(",", ":"))
