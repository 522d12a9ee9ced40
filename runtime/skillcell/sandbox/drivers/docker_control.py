"""How a Docker sandbox is measured and ended: by its own cgroup on this machine, or by way of the engine.

A reader could get two things wrong. Whether the engine is on this machine is not believed but seen: the cgroup that we
made holds the container's processes, or it does not (`LocalControl.proven`). And the engine's statistics end with the
last process, so a sample is taken before the kill; they are SAMPLED, whatever they are made of.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any, Protocol

import docker
from docker.errors import APIError, NotFound

from skillcell.core.errors import Fault, FaultKind, invalid
from skillcell.core.types import Counters, Limits, Measurement
from skillcell.sandbox import hardening
from skillcell.sandbox.cgroups import Cgroup, CgroupTree
from skillcell.sandbox.driver import DiskUsage
from skillcell.sandbox.drivers.docker_engine import Engine

_KILL_SECONDS = 30


class Control(Protocol):
    """What is done to a sandbox from outside."""

    async def counters(self) -> Counters: ...

    async def disk(self) -> DiskUsage | None: ...

    async def kill(self) -> None: ...


class SandboxCgroups:
    """One parent cgroup per sandbox, under the names that the engine's cgroup driver understands.

    With the `systemd` driver a parent is a slice, `<root>-<id>.slice` inside `<root>.slice`, where systemd itself looks
    for it (systemd.slice(5)); limits that it resets there are held by the container's own scope below.
    """

    def __init__(self, instance: str, cgroup_driver: str) -> None:
        self._systemd = cgroup_driver == "systemd"
        self._root = f"skillcell_docker_{instance}" if self._systemd else f"skillcell-docker-{instance}"
        self._tree = CgroupTree.detect(f"{self._root}.slice" if self._systemd else self._root)

    def create(self, sandbox_id: str, limits: Limits) -> tuple[Cgroup, str]:
        """The cgroup and what Docker's `CgroupParent` must be for it."""
        if self._systemd and "-" in sandbox_id:
            raise invalid("sandbox_id", f"{sandbox_id!r} has a '-', which systemd reads as a nested slice")
        cgroup = self._tree.create(self._directory(sandbox_id), limits, devices=False)
        return cgroup, self._directory(sandbox_id) if self._systemd else cgroup.engine_path

    def open(self, sandbox_id: str) -> Cgroup | None:
        """The cgroup of a sandbox if it exists."""
        return self._tree.open(self._directory(sandbox_id))

    def list(self) -> list[str]:
        """Ids of all sandboxes that have one."""
        if not self._systemd:
            return self._tree.list()
        start, end = f"{self._root}-", ".slice"
        names = self._tree.list()
        return [name[len(start) : -len(end)] for name in names if name.startswith(start) and name.endswith(end)]

    def _directory(self, sandbox_id: str) -> str:
        return f"{self._root}-{sandbox_id}.slice" if self._systemd else sandbox_id


class LocalControl:
    """By the sandbox's cgroup: exact, at once, and also while the engine is down."""

    def __init__(self, engine: Engine, cgroup: Cgroup) -> None:
        self._engine = engine
        self._cgroup = cgroup
        self._init_pid: int | None = None

    def proven(self) -> bool:
        """Whether the container that was started has processes here, or had."""
        return bool(self._cgroup.pids()) or self._cgroup.counters().cpu_total_ns > 0

    async def counters(self) -> Counters:
        return self._cgroup.counters()

    async def disk(self) -> DiskUsage | None:
        """The sum over the writable mounts as the container's first process has them; None where they are not the host
        kernel's (gVisor) or the process is gone."""
        pid = self._init_pid or self._find_init()
        if pid is None:
            return None
        self._init_pid = pid
        totals = [0, 0, 0, 0]
        try:
            root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            for inside in hardening.WRITABLE.values():
                mount = os.open(
                    inside.lstrip("/"), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=root
                )
                try:
                    seen = os.fstatvfs(mount)
                finally:
                    os.close(mount)
                used = (seen.f_blocks - seen.f_bfree) * seen.f_frsize, seen.f_files - seen.f_ffree
                for index, value in enumerate((used[0], seen.f_blocks * seen.f_frsize, used[1], seen.f_files)):
                    totals[index] += value
        except OSError:
            return None
        finally:
            os.close(root)
        return DiskUsage(*totals)

    def _find_init(self) -> int | None:
        """The member whose innermost pid is 1."""
        for pid in sorted(self._cgroup.pids()):
            with suppress(OSError), open(f"/proc/{pid}/status") as status:
                line = next((line for line in status if line.startswith("NSpid:")), "")
                if len(line.split()) > 2 and line.split()[-1] == "1":
                    return pid
        return None

    async def kill(self) -> None:
        await self._engine.submit_kill(self._cgroup.kill)


class EngineControl:
    """By way of the engine, which may be anywhere."""

    def __init__(self, engine: Engine, container_id: str) -> None:
        self._engine = engine
        self._container_id = container_id
        self._last = Counters(measurement=Measurement.SAMPLED)
        self._dead = False

    async def counters(self) -> Counters:
        if not self._dead:
            await self._engine.submit_engine_kill(self._sample)
        return self._last

    def _sample(self, client: docker.APIClient) -> None:
        try:
            self._last = larger(self._last, sample(client, self._container_id))
        except NotFound:
            return

    async def disk(self) -> DiskUsage | None:
        return None

    async def kill(self) -> None:
        if not self._dead:
            await self._engine.submit_engine_kill(self._kill)
            self._dead = True

    def _kill(self, client: docker.APIClient) -> None:
        self._sample(client)
        try:
            with suppress(APIError):  # 409: not running, which the wait below confirms
                client.kill(self._container_id)
            client.wait(self._container_id, timeout=_KILL_SECONDS)
            state = client.inspect_container(self._container_id)["State"]
        except NotFound:
            return
        if state.get("Running"):
            raise Fault(FaultKind.INTERNAL, "SANDBOX_WILL_NOT_DIE", "the engine says that a killed sandbox still runs")
        if state.get("OOMKilled") and not self._last.oom_kills:
            self._last = larger(self._last, Counters(oom_kills=1))


def sample(client: docker.APIClient, container_id: str) -> Counters:
    """What the engine's statistics say of a container now; zeros when it does not run ("Get container stats")."""
    stats: dict[str, Any] = client.stats(container_id, stream=False, one_shot=True)
    cpu = (stats.get("cpu_stats") or {}).get("cpu_usage") or {}
    memory = stats.get("memory_stats") or {}
    return Counters(
        cpu_user_ns=int(cpu.get("usage_in_usermode", 0)),
        cpu_system_ns=int(cpu.get("usage_in_kernelmode", 0)),
        cpu_total_ns=int(cpu.get("total_usage", 0)),
        memory_peak_bytes=int(memory.get("max_usage") or memory.get("usage") or 0),
        pids_peak=int((stats.get("pids_stats") or {}).get("current", 0)),
        measurement=Measurement.SAMPLED,
    )


def larger(one: Counters, other: Counters) -> Counters:
    """The larger of each figure: a later sample may miss what an earlier one saw."""
    return Counters(
        cpu_user_ns=max(one.cpu_user_ns, other.cpu_user_ns),
        cpu_system_ns=max(one.cpu_system_ns, other.cpu_system_ns),
        cpu_total_ns=max(one.cpu_total_ns, other.cpu_total_ns),
        memory_peak_bytes=max(one.memory_peak_bytes, other.memory_peak_bytes),
        pids_peak=max(one.pids_peak, other.pids_peak),
        oom_kills=max(one.oom_kills, other.oom_kills),
        measurement=Measurement.SAMPLED,
    )
