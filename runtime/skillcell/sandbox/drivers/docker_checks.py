"""What `doctor` says of a Docker Engine, and which guarantees fall when it lacks something: pure, over the engine's
facts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from skillcell.core.errors import Fault
from skillcell.core.types import Isolation
from skillcell.sandbox.driver import Check, Guarantee
from skillcell.sandbox.drivers.docker_engine import DockerSettings, EngineFacts

_LIMIT_GUARANTEES: Mapping[str, Guarantee] = {
    "MemoryLimit": Guarantee.MEMORY_LIMIT,
    "SwapLimit": Guarantee.MEMORY_LIMIT,
    "PidsLimit": Guarantee.PIDS_LIMIT,
    "CpuCfsQuota": Guarantee.CPU_RATE_LIMIT,
}

_REGISTER: Mapping[Isolation, str] = {
    Isolation.STANDARD: "apt-get install runc, then restart the engine",
    Isolation.GVISOR: (
        'apt-get install runsc, add "runtimes": {"runsc": {"path": "/usr/bin/runsc", "runtimeArgs": '
        '["--platform=ptrace", "--network=none"]}} to /etc/docker/daemon.json, then systemctl restart docker'
    ),
    Isolation.VM: (
        'install Kata Containers, add "runtimes": {"kata": {"path": "/usr/bin/kata-runtime"}} to '
        "/etc/docker/daemon.json, then systemctl restart docker"
    ),
}

_GOOD_STORAGE = frozenset({"overlay2", "overlayfs", "btrfs", "zfs", "fuse-overlayfs"})


def lost_guarantees(facts: EngineFacts, *, sampled: bool) -> frozenset[Guarantee]:
    """What this engine can't hold of the table's row."""
    lost = {_LIMIT_GUARANTEES[name] for name in facts.unmet_limits}
    if not facts.seccomp:
        lost.add(Guarantee.SECCOMP)
    if sampled:
        lost.add(Guarantee.EXACT_USAGE)
    return frozenset(lost)


def unreachable(settings: DockerSettings, fault: Fault) -> Sequence[Check]:
    """The one check there is when the engine can't be asked."""
    fix = "systemctl start docker (or: apt-get install docker.io)"
    if settings.host.startswith("unix://"):
        fix += f"; and let this user use {settings.host.removeprefix('unix://')} (group `docker`)"
    return [Check("engine", False, f"{settings.host}: {fault.message}", fix)]


def checks(settings: DockerSettings, facts: EngineFacts, sampled_because: str) -> Sequence[Check]:
    """Everything, from the facts of the last connection and why usage is sampled (empty: it is exact)."""
    return [
        Check("engine", True, f"Docker Engine {facts.version}, API {facts.api_version}, at {settings.host}"),
        Check(
            "containers",
            facts.os_type == "linux",
            f"{facts.os_type or 'unknown'} containers",
            "" if facts.os_type == "linux" else "use an engine that runs Linux containers",
        ),
        _storage(facts),
        *(_runtime(settings, facts, isolation) for isolation in Isolation),
        Check(
            "seccomp",
            facts.seccomp,
            "available" if facts.seccomp else "the engine runs without seccomp",
            "" if facts.seccomp else "run the engine on a kernel with CONFIG_SECCOMP_FILTER",
        ),
        Check(
            "limits",
            not facts.unmet_limits,
            "memory, swap, pids and CPU are limited"
            if not facts.unmet_limits
            else f"missing: {', '.join(facts.unmet_limits)}",
            "" if not facts.unmet_limits else "boot with cgroup_enable=memory swapaccount=1, or with cgroup v2",
        ),
        _usage(facts, sampled_because),
    ]


def _storage(facts: EngineFacts) -> Check:
    good = facts.storage_driver in _GOOD_STORAGE
    fix = "" if good else 'set "storage-driver": "overlay2" in /etc/docker/daemon.json and restart the engine'
    detail = facts.storage_driver if good else f"{facts.storage_driver} copies whole files or layers: starts are slow"
    return Check("storage", good, detail, fix)


def _runtime(settings: DockerSettings, facts: EngineFacts, isolation: Isolation) -> Check:
    names = settings.runtimes.get(isolation, ())
    name = facts.runtime(names)
    title = f"isolation {isolation.value}"
    if name is not None:
        return Check(title, True, f"runtime {name}")
    needed = isolation is Isolation.STANDARD  # the others are a choice: calls that ask for them are refused
    detail = f"none of {', '.join(names)} is registered" + ("" if needed else "; calls that ask for it are refused")
    return Check(title, not needed, detail, _REGISTER[isolation])


def _usage(facts: EngineFacts, sampled_because: str) -> Check:
    layout = f"cgroup v{facts.cgroup_version}, {facts.cgroup_driver} driver"
    if not sampled_because:
        return Check("usage", True, f"exact, from cgroups of our own ({layout})")
    return Check("usage", True, f"sampled from the engine, not exact ({layout}): {sampled_because}")
