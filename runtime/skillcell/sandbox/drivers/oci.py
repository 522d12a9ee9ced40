"""The `oci` driver: an OCI runtime called directly, without a daemon.

What is made on the host is made by the launcher, one child process for each gateway; this module decides, asks, and
reads counters, which lie in files that outlive both. A reader could get two things wrong. Several gateways on one
machine need cgroup roots of their own, because `list` shows all below one root. And a dead launcher means that
everything it had is killed here.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from skillcell.core.errors import Fault, FaultKind, precondition
from skillcell.core.types import Counters, Isolation
from skillcell.sandbox import hardening, uids
from skillcell.sandbox.cgroup_files import check_limits
from skillcell.sandbox.cgroups import Cgroup, CgroupTree
from skillcell.sandbox.channel import PipeChannel, SocketChannel, Tail
from skillcell.sandbox.driver import ByteChannel, Check, DiskUsage, Found, Guarantee, SandboxSpec
from skillcell.sandbox.drivers.oci_runtimes import FIXES, Runtime, find_runtime
from skillcell.sandbox.launcher_client import LauncherClient

_FEW = 8
"""Processes that are ended without asking the launcher."""
_FEW_ROUNDS, _FEW_SECONDS = 20, 0.0005


@dataclass(frozen=True, slots=True)
class OciSettings:
    """Where the driver keeps its things and which programs it calls."""

    run_directory: Path = Path("/run/skillcell")
    """Shared by all gateways of the machine: user ids in use, and the mount point of each launcher's private tmpfs."""
    cgroup_root: str = "skillcell"
    """Below each cgroup hierarchy; one for each gateway of a machine."""
    runtimes: tuple[str, ...] = ()
    """Names or paths of OCI runtimes to use instead of those found: crun or runc, runsc."""
    uid_base: int = uids.DEFAULT_BASE
    """First host user id for sandboxes."""
    uid_pairs: int = uids.DEFAULT_PAIRS
    """How many sandboxes can live at once; each takes two user ids."""


class OciSandbox:
    """One live sandbox."""

    def __init__(self, driver: OciDriver, sandbox_id: str, channel: ByteChannel, cgroup: Cgroup, tail: Tail) -> None:
        self._driver = driver
        self._id = sandbox_id
        self._channel = channel
        self._cgroup = cgroup
        self._tail = tail

    @property
    def sandbox_id(self) -> str:
        return self._id

    @property
    def channel(self) -> ByteChannel:
        return self._channel

    async def counters(self) -> Counters:
        return self._cgroup.counters()

    async def begin(self) -> Counters:
        return self._cgroup.begin()

    async def disk(self) -> DiskUsage | None:
        return self._driver.disk(self._id)

    async def kill(self) -> None:
        await self._driver.kill(self._id)

    async def kill_few(self) -> bool:
        """Whether no process is left, tried for a moment where there are few."""
        if len(self._cgroup.pids()) > _FEW:
            return False
        for _ in range(_FEW_ROUNDS):
            if self._cgroup.kill_round():
                return True
            await asyncio.sleep(_FEW_SECONDS)
        return False

    def diagnostics(self) -> str:
        """The last 64 KiB that the agent wrote to stderr: for the log, not for a caller."""
        return self._tail.text()

    def release(self) -> None:
        """Close what this process holds of it."""
        self._tail.close()


class OciDriver:
    """The driver. Enter it to start its launcher; leaving ends every sandbox it made."""

    def __init__(self, settings: OciSettings | None = None) -> None:
        self._settings = settings or OciSettings()
        self._tree: CgroupTree | None = None
        self._launcher: LauncherClient | None = None
        self._starting = asyncio.Lock()
        self._live: dict[str, OciSandbox] = {}
        self._lost: set[asyncio.Task[None]] = set()
        self._ids = uids.IdRange(
            self._settings.run_directory / "uids",
            self._settings.uid_base,
            self._settings.uid_pairs,
            self._settings.cgroup_root,
        )
        self._runtimes = {isolation: find_runtime(isolation, self._settings.runtimes) for isolation in Isolation}

    @property
    def name(self) -> str:
        return "oci"

    async def __aenter__(self) -> OciDriver:
        await self._ready()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End the launcher and with it every sandbox; their cgroups stay until destroyed."""
        launcher, self._launcher = self._launcher, None
        if launcher is not None:
            await launcher.close()
        for sandbox in self._live.values():
            sandbox.release()
            await sandbox.channel.close()
        self._live.clear()
        if self._lost:
            await asyncio.wait(self._lost)

    def retire(self) -> None:
        """After `close`, by the only user of this cgroup root: leave no empty directories of ours behind."""
        if self._tree is not None:
            self._tree.retire()
            self._tree = None

    def guarantees(self, isolation: Isolation) -> frozenset[Guarantee]:
        if self._runtimes[isolation] is None:
            return frozenset()
        return hardening.GUARANTEES.get((self.name, isolation), frozenset())

    async def ready(self) -> None:
        """The launcher lives, or lives again. Raises Fault."""
        await self._ready()

    async def create(self, spec: SandboxSpec) -> OciSandbox:
        runtime = self._runtime(spec.isolation)
        check_limits(spec.limits)
        launcher = await self._ready()
        pair = self._ids.allocate(spec.sandbox_id)
        try:
            return await self._create(spec, runtime, launcher, pair)
        except BaseException as error:
            # Of an id that was taken, only the pair is ours; else whatever was made must go, also when we are canceled.
            self._ids.release(spec.sandbox_id, pair)
            if not (isinstance(error, Fault) and error.kind is FaultKind.ALREADY_EXISTS):
                await asyncio.shield(self.destroy(spec.sandbox_id))
            raise

    async def _create(
        self, spec: SandboxSpec, runtime: Runtime, launcher: LauncherClient, pair: uids.IdPair
    ) -> OciSandbox:
        directory = self._settings.run_directory / "oci" / spec.sandbox_id
        place = hardening.Placement(
            directory=directory,
            trees=directory.parent / hardening.trees_directory(locked=runtime.locked),
            host_root_id=pair.root,
            host_skill_id=pair.skill,
            cgroups_path="" if runtime.joins else f"{self._cgroups().engine_root}/{spec.sandbox_id}/container",
        )
        config = hardening.oci_config(spec, place)
        channel, theirs = _open_channel(sockets=runtime.sockets)
        errors, errors_in = os.pipe2(os.O_CLOEXEC)
        tail = Tail(errors)
        try:
            request = {
                "op": "create",
                "sandbox": spec.sandbox_id,
                "limits": asdict(replace(spec.limits, pids=spec.limits.pids + runtime.own_threads)),
                "ids": [pair.root, pair.skill],
                "argv": runtime.argv(spec.sandbox_id, directory),
                "join": runtime.joins,
                "locked": runtime.locked,
                "root": str(spec.image.rootfs),
                "packages": [str(mount.path) for mount in spec.mounts],
                "layers": hardening.layer_names(spec.mounts),
            }
            await launcher.ask(request, config, (*theirs, errors_in))
        except BaseException:
            await channel.close()
            tail.close()
            raise
        finally:
            for descriptor in {*theirs, errors_in}:
                os.close(descriptor)
        cgroup = Cgroup(self._cgroups(), spec.sandbox_id)
        sandbox = OciSandbox(self, spec.sandbox_id, channel, cgroup, tail)
        self._live[spec.sandbox_id] = sandbox
        return sandbox

    async def kill(self, sandbox_id: str) -> None:
        """Returns when every process of the sandbox is dead; works without a launcher too.

        A few processes are ended from here, since the launcher may be busy with another sandbox; a crowd is its work.
        """
        sandbox = self._live.get(sandbox_id)
        if sandbox is not None and await sandbox.kill_few():
            return
        with suppress(Fault):
            launcher = self._launcher
            if launcher is not None and launcher.alive:
                await launcher.ask({"op": "kill", "sandbox": sandbox_id})
                return
        cgroup = self._cgroups().open(sandbox_id)
        if cgroup is not None:
            await asyncio.to_thread(cgroup.kill)

    async def destroy(self, sandbox_id: str) -> None:
        sandbox = self._live.pop(sandbox_id, None)
        if sandbox is not None:
            sandbox.release()
            await sandbox.channel.close()
        launcher = await self._ready()
        await launcher.ask({"op": "destroy", "sandbox": sandbox_id})

    async def end(self, sandbox_id: str) -> Found | None:
        cgroup = self._cgroups().open(sandbox_id)
        if cgroup is None:
            return None
        alive, counters = await asyncio.to_thread(cgroup.end)
        return Found(sandbox_id, counters, alive)

    async def list(self) -> Sequence[Found]:
        tree = self._cgroups()
        found = []
        for sandbox_id in sorted({*tree.list(), *self._ids.owners()}):
            cgroup = tree.open(sandbox_id)
            counters = None
            if cgroup is not None:
                with suppress(Fault):
                    counters = cgroup.counters()
            found.append(Found(sandbox_id, counters))
        return found

    async def check(self) -> Sequence[Check]:
        checks = []
        for isolation, runtime in self._runtimes.items():
            wanted = {Isolation.STANDARD: "crun", Isolation.GVISOR: "runsc"}.get(isolation)
            if wanted is None:
                continue
            where = runtime.path if runtime else f"{wanted} was not found"
            fix = "" if runtime else FIXES[wanted]
            checks.append(Check(f"oci runtime for {isolation.value.lower()}", runtime is not None, where, fix))
        try:
            tree = self._cgroups()
            checks.append(Check("oci cgroups", True, f"v{tree.version} at {tree.engine_root}"))
            launcher = await self._ready()
            checks.append(Check("oci launcher", True, f"process {launcher.pid}"))
        except Fault as fault:
            what, _, fix = fault.message.partition(" Fix: ")
            checks.append(Check("oci host", False, what, fix))
        return checks

    def disk(self, sandbox_id: str) -> DiskUsage | None:
        """Looked at through the launcher's mount namespace, without a word to it: it may be busy with another one."""
        launcher = self._launcher
        if launcher is None or not launcher.alive:
            return None
        directory = self._settings.run_directory / "oci" / sandbox_id / "disk"
        try:
            seen = os.statvfs(f"/proc/{launcher.pid}/root{directory.absolute()}")
        except OSError:
            return None
        ours = 1 + len(hardening.WRITABLE)
        return DiskUsage(
            bytes_used=(seen.f_blocks - seen.f_bfree) * seen.f_frsize,
            bytes_limit=seen.f_blocks * seen.f_frsize,
            files_used=max(seen.f_files - seen.f_ffree - ours, 0),
            files_limit=seen.f_files - ours,
        )

    def _runtime(self, isolation: Isolation) -> Runtime:
        runtime = self._runtimes[isolation]
        if runtime is None or not self.guarantees(isolation):
            raise precondition(
                "ISOLATION_UNAVAILABLE",
                f"isolation {isolation.value} can't be run by the oci driver on this machine",
                field="isolation",
                value=isolation.value,
            )
        return runtime

    def _cgroups(self) -> CgroupTree:
        if self._tree is None:
            self._tree = CgroupTree.detect(self._settings.cgroup_root)
        return self._tree

    async def _ready(self) -> LauncherClient:
        """The launcher, started when there is none (again)."""
        launcher = self._launcher
        if launcher is not None and launcher.alive:
            return launcher
        self._cgroups()
        async with self._starting:
            if self._launcher is None or not self._launcher.alive:
                if self._launcher is not None:
                    await self._launcher.close()
                settings = self._settings
                arguments = (
                    str(settings.run_directory),
                    settings.cgroup_root,
                    str(settings.uid_base),
                    str(settings.uid_pairs),
                )
                self._launcher = await LauncherClient.start(arguments, self._on_launcher_death)
            return self._launcher

    def _on_launcher_death(self) -> None:
        """Kill at once what the dead launcher had: nobody else will."""
        task = asyncio.get_running_loop().create_task(self._kill_lost(tuple(self._live)))
        self._lost.add(task)
        task.add_done_callback(self._lost.discard)

    async def _kill_lost(self, lost: Sequence[str]) -> None:
        for sandbox_id in lost:
            with suppress(Fault):
                cgroup = self._cgroups().open(sandbox_id)
                if cgroup is not None:
                    await asyncio.to_thread(cgroup.kill)
        with suppress(Fault):
            await self._ready()


def _open_channel(*, sockets: bool) -> tuple[ByteChannel, tuple[int, int]]:
    """Our end, and the agent's stdin and stdout (one descriptor twice, when it is a socket)."""
    if sockets:
        ours, theirs = socket.socketpair()
        descriptor = theirs.detach()
        return SocketChannel(ours), (descriptor, descriptor)
    stdin, writing = os.pipe2(os.O_CLOEXEC)
    reading, stdout = os.pipe2(os.O_CLOEXEC)
    return PipeChannel(reading, writing), (stdin, stdout)
