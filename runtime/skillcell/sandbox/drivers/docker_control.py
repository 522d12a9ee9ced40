"""How a Docker sandbox is measured and ended: by its own cgroup on this machine, or by way of the engine.

A reader could get one thing wrong: whether the engine is on this machine is not believed but seen: the cgroup that we
made holds the container's processes, or it does not (`proven`).
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

import docker
from docker.errors import APIError, NotFound

from skillcell.core.errors import Fault, FaultKind, invalid
from skillcell.core.types import Counters, Limits
from skillcell.sandbox.cgroups import Cgroup, CgroupTree
from skillcell.sandbox.driver import DiskUsage
from skillcell.sandbox.drivers.docker_config import split
from skillcell.sandbox.drivers.docker_engine import DockerSettings, Engine, EngineFacts
from skillcell.sandbox.drivers.docker_slices import SliceCgroup, stop_slice
from skillcell.sandbox.drivers.docker_stats import StatsFeed, larger

_KILL_SECONDS = 30
_SLICE_TRIES = 5


class Control(Protocol):
    """What is done to a sandbox from outside."""

    async def counters(self) -> Counters: ...

    async def begin(self) -> Counters: ...

    async def disk(self) -> DiskUsage | None: ...

    async def kill(self) -> None: ...

    def close(self) -> None: ...


class SandboxCgroups:
    """One parent cgroup per sandbox, under the names that the engine's cgroup driver understands.

    With the `systemd` driver a parent is a slice, `<root>-<id>.slice` inside `<root>.slice` at the top, where systemd
    itself looks for it (systemd.slice(5)); limits that it resets there are held by the container's own scope below.
    """

    def __init__(self, instance: str, cgroup_driver: str) -> None:
        self._systemd = cgroup_driver == "systemd"
        self._root = f"skillcell_docker_{instance}" if self._systemd else f"skillcell-docker-{instance}"
        root = f"{self._root}.slice" if self._systemd else self._root
        self._tree = CgroupTree.detect(root, delegated=not self._systemd)

    def create(self, sandbox_id: str, limits: Limits) -> tuple[Cgroup, str]:
        """The cgroup and what Docker's `CgroupParent` must be for it."""
        if not self._systemd:
            cgroup = self._tree.create(sandbox_id, limits, devices=False)
            return cgroup, cgroup.engine_path
        if "-" in sandbox_id:
            raise invalid("sandbox_id", f"{sandbox_id!r} has a '-', which systemd reads as a nested slice")
        name = self._directory(sandbox_id)
        for left in reversed(range(_SLICE_TRIES)):
            self._tree.enable()  # systemd takes a controller away when the last unit that it knows to need it has ended
            try:
                self._tree.create(name, limits, devices=False)
                break
            except Fault as fault:  # it may do so between two writes of ours
                if fault.reason != "LIMIT_NOT_ENFORCED" or not left:
                    raise
        return SliceCgroup(self._tree, name), name

    def started(self, cgroup: Cgroup, limits: Limits) -> bool:
        """Whether the container that was started runs in it.

        Sets the limits again that systemd has just reset, lest a page of the kernel's own, charged to the slice, take
        the peak past the limit. Where that fails, the container's scope below holds them nevertheless.
        """
        if not proven(cgroup):
            return False
        if self._systemd:
            with suppress(Fault):
                self._tree.limit(cgroup.sandbox_id, limits)
        return True

    def open(self, sandbox_id: str) -> Cgroup | None:
        """The cgroup of a sandbox if it exists."""
        name = self._directory(sandbox_id)
        found = self._tree.open(name)
        return SliceCgroup(self._tree, name) if self._systemd and found is not None else found

    def list(self) -> list[str]:
        """Ids of all sandboxes that have one."""
        if not self._systemd:
            return self._tree.list()
        start, end = f"{self._root}-", ".slice"
        names = self._tree.list()
        return [name[len(start) : -len(end)] for name in names if name.startswith(start) and name.endswith(end)]

    def retire(self) -> None:
        """Take the instance's own directories away, where no sandbox is left in them."""
        if self._systemd and not self._tree.list():
            stop_slice(f"{self._root}.slice")
        self._tree.retire()

    def _directory(self, sandbox_id: str) -> str:
        return f"{self._root}-{sandbox_id}.slice" if self._systemd else sandbox_id


def cgroups_of(settings: DockerSettings, facts: EngineFacts) -> tuple[SandboxCgroups | None, str]:
    """Cgroups where the engine seems to be on this machine and we may write them, else why not. A Unix socket and the
    same kernel make it a candidate (a forwarded socket or a VM shows at the first start)."""
    if settings.engine_counters:
        return None, "the settings say so (engine_counters)"
    if not settings.host.startswith("unix://"):
        return None, "the engine is reached over the network"
    if facts.kernel != os.uname().release:
        return None, "the engine runs on another kernel than this machine's"
    try:
        return SandboxCgroups(settings.instance, facts.cgroup_driver), ""
    except Fault as fault:
        return None, fault.message


class LocalControl:
    """By the sandbox's cgroup: exact, at once, and also while the engine is down."""

    def __init__(self, engine: Engine, cgroup: Cgroup, container_id: str, limits: Limits) -> None:
        self._engine = engine
        self._cgroup = cgroup
        self._container_id = container_id
        self._limits = limits
        self._init_pid: int | None = None
        self._engine_oom_kills = 0

    async def counters(self) -> Counters:
        seen = self._cgroup.counters()
        return replace(seen, oom_kills=max(seen.oom_kills, self._engine_oom_kills))

    async def begin(self) -> Counters:
        self._cgroup.begin()
        return await self.counters()

    async def disk(self) -> DiskUsage | None:
        """Of the writable mounts and of all together, as the container's first process has them; None where that
        process is gone or has others than we asked for (gVisor's live in its own kernel).
        """
        pid = self._init_pid or self._find_init()
        if pid is None:
            return None
        self._init_pid = pid
        parts: dict[str, DiskUsage] = {}
        try:
            root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            for inside, (size, _) in split(self._limits).items():
                seen = _statvfs(root, inside)
                if seen.f_blocks * seen.f_frsize != size:
                    return None
                used = (seen.f_blocks - seen.f_bfree) * seen.f_frsize
                parts[inside] = DiskUsage(used, size, seen.f_files - seen.f_ffree, seen.f_files)
        except OSError:
            return None
        finally:
            os.close(root)
        return DiskUsage(
            bytes_used=sum(part.bytes_used for part in parts.values()),
            bytes_limit=sum(part.bytes_limit for part in parts.values()),
            files_used=sum(part.files_used for part in parts.values()),
            files_limit=sum(part.files_limit for part in parts.values()),
            parts=parts,
        )

    def _find_init(self) -> int | None:
        """The member whose innermost pid is 1."""
        for pid in sorted(self._cgroup.pids()):
            with suppress(OSError), open(f"/proc/{pid}/status") as status:
                line = next((line for line in status if line.startswith("NSpid:")), "")
                if len(line.split()) > 2 and line.split()[-1] == "1":
                    return pid
        return None

    async def kill(self) -> None:
        await self._engine.submit_kill(self._kill)

    def _kill(self) -> None:
        """The engine removes its cgroup below ours soon after the last death, and v1's count of OOM kills with it.
        So that is read first, or, where the agent itself was the victim, asked of the engine."""
        died_itself = not self._cgroup.pids()
        with suppress(Fault):
            seen = self._cgroup.counters()
            if died_itself and not seen.oom_kills and not self._engine_oom_kills:
                self._engine_oom_kills = self._engine.run(lambda client: oom_kills(client, self._container_id))
        self._cgroup.kill()

    def close(self) -> None:
        """Nothing is held open."""


class EngineControl:
    """By way of the engine, which may be anywhere."""

    def __init__(self, engine: Engine, container_id: str, feed: StatsFeed) -> None:
        self._engine = engine
        self._container_id = container_id
        self._feed = feed
        self._oom_kills = 0
        self._dead = False

    async def counters(self) -> Counters:
        return larger(self._feed.latest, Counters(oom_kills=self._oom_kills))

    async def begin(self) -> Counters:
        return await self.counters()

    async def disk(self) -> DiskUsage | None:
        return None

    async def kill(self) -> None:
        if not self._dead:
            await self._engine.submit_engine_kill(self._kill)
            self._dead = True
            self._feed.close()

    def _kill(self, client: docker.APIClient) -> None:
        try:
            with suppress(APIError):  # 409: not running, which the wait below confirms
                client.kill(self._container_id)
            client.wait(self._container_id, timeout=_KILL_SECONDS)
            state = client.inspect_container(self._container_id)["State"]
        except NotFound:
            return
        if state.get("Running"):
            raise Fault(FaultKind.INTERNAL, "SANDBOX_WILL_NOT_DIE", "the engine says that a killed sandbox still runs")
        self._oom_kills = oom_kills(client, self._container_id)

    def close(self) -> None:
        """Stop listening to the engine."""
        self._feed.close()


def oom_kills(client: docker.APIClient, container_id: str) -> int:
    """1 when the engine saw the kernel kill for memory in a container that has ended, else 0: it counts none."""
    try:
        client.wait(container_id, timeout=_KILL_SECONDS)
        return int(bool(client.inspect_container(container_id)["State"].get("OOMKilled")))
    except NotFound:
        return 0


def _statvfs(root: int, inside: str) -> os.statvfs_result:
    mount = os.open(inside.lstrip("/"), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=root)
    try:
        return os.fstatvfs(mount)
    finally:
        os.close(mount)


def proven(cgroup: Cgroup) -> bool:
    """Whether a container that was started has processes here, or had."""
    return bool(cgroup.pids()) or cgroup.counters().cpu_total_ns > 0
