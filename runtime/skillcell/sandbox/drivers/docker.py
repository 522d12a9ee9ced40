"""The `docker` driver: each sandbox is one fresh container of a Docker Engine, local or remote, named by its sandbox
id.

The path of a create is: cgroup, uid, `create`, `attach`, `start`, all in one thread; packages, image facts and the
connection are kept from earlier calls. A reader could get three things wrong. The attach comes before the start, or the
agent's first bytes would be lost. Undoing removes only what this very attempt made, found by its own label, as the
engine may have made a container and died before saying so; what can't be undone while the engine is gone is owed, and
paid when it is back. And whether usage is exact depends on the engine being on this machine, which each start proves
anew.

It is past 400 lines because one create and its undoing are one story, told in one place; what the engine is asked, how
its counters are read and what `doctor` looks at lie in the modules beside it.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

import docker
from docker.errors import APIError, NotFound

from skillcell.core.errors import Fault, FaultKind, invalid, precondition
from skillcell.core.types import Counters, Isolation
from skillcell.sandbox import hardening
from skillcell.sandbox.cgroups import Cgroup
from skillcell.sandbox.driver import Check, DiskUsage, Found, Guarantee, SandboxSpec
from skillcell.sandbox.drivers import docker_checks
from skillcell.sandbox.drivers.docker_attach import AttachChannel, attach
from skillcell.sandbox.drivers.docker_config import (
    LABEL_ATTEMPT,
    LABEL_INSTANCE,
    LABEL_SANDBOX,
    Binding,
    check_image,
    container_body,
)
from skillcell.sandbox.drivers.docker_control import (
    Control,
    EngineControl,
    LocalControl,
    SandboxCgroups,
    cgroups_of,
)
from skillcell.sandbox.drivers.docker_engine import DockerSettings, Engine, EngineFacts, settled
from skillcell.sandbox.drivers.docker_packages import PackageVolumes
from skillcell.sandbox.drivers.docker_stats import StatsFeed, open_stats
from skillcell.sandbox.drivers.docker_stream import RawStream
from skillcell.sandbox.uids import IdPair, IdRange

T = TypeVar("T")

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{1,63}")
_OWED_SECONDS = 120.0
_INSTANCE = re.compile(r"[a-z0-9]{1,24}")


class DockerSandbox:
    """One live container."""

    def __init__(self, sandbox_id: str, container_id: str, channel: AttachChannel, control: Control) -> None:
        self._sandbox_id = sandbox_id
        self.container_id = container_id
        self._channel = channel
        self._control = control

    @property
    def sandbox_id(self) -> str:
        return self._sandbox_id

    @property
    def channel(self) -> AttachChannel:
        return self._channel

    @property
    def stderr_tail(self) -> bytes:
        """The agent's last words, as far as the channel was read."""
        return self._channel.stderr_tail

    async def counters(self) -> Counters:
        return await self._control.counters()

    async def begin(self) -> Counters:
        return await self._control.begin()

    async def disk(self) -> DiskUsage | None:
        return await self._control.disk()

    async def kill(self) -> None:
        await self._control.kill()
        self._channel.end()

    async def release(self) -> None:
        """Close what connects us to it; the container stays."""
        await self._channel.close()
        self._control.close()


@dataclass(slots=True)
class _Attempt:
    """What one create has made so far, to be undone if it fails."""

    spec: SandboxSpec
    token: str
    cgroup: Cgroup | None = None
    ids: IdPair | None = None
    asked: bool = False
    """The engine was asked for a container; it may have made one whatever it answered."""
    container_id: str = ""
    stream: RawStream | None = None
    stats: RawStream | None = None


class _NotHere(Exception):
    """The engine's containers do not appear in this machine's cgroups."""


class DockerDriver:
    """A `Driver`. `close` it when done; sandboxes that live then are left to the reaper."""

    def __init__(self, settings: DockerSettings | None = None) -> None:
        self.settings = settings = settings if settings is not None else DockerSettings()
        if not _INSTANCE.fullmatch(settings.instance):
            raise invalid("docker.instance", f"{settings.instance!r} does not match {_INSTANCE.pattern}")
        self._engine = Engine(settings)
        self._packages = PackageVolumes(settings.instance)
        self._ids = IdRange(settings.uid_directory, settings.uid_base, settings.uid_pairs)
        self._images: set[str] = set()
        self._live: dict[str, DockerSandbox] = {}
        self._owed: dict[str, float] = {}
        self._examining = threading.Lock()
        self._cgroups: SandboxCgroups | None = None
        self._sampled_because = ""
        self._examined: EngineFacts | None = None

    @property
    def name(self) -> str:
        return "docker"

    def guarantees(self, isolation: Isolation) -> frozenset[Guarantee]:
        """The table's row, less what this engine was found not to hold. Before the first contact: the row as it is."""
        declared = hardening.GUARANTEES.get(("docker", isolation), frozenset())
        facts = self._engine.facts
        if facts is None:
            return declared
        if facts.runtime(self.settings.runtimes.get(isolation, ())) is None:
            return frozenset()
        return declared - docker_checks.lost_guarantees(facts, sampled=bool(self._sampled_because))

    async def ready(self) -> None:
        """One ping; UNAVAILABLE when the engine is gone."""
        await self._finished(self._engine.submit(lambda client: client.ping()))

    async def create(self, spec: SandboxSpec) -> DockerSandbox:
        """Make and start it; on any error, and when canceled, nothing is left."""
        if not _ID.fullmatch(spec.sandbox_id):
            raise invalid("sandbox_id", f"{spec.sandbox_id!r} does not match {_ID.pattern}")
        making = self._engine.submit(lambda client: self._make(client, spec))
        canceled = await settled(making)
        if canceled:
            if not making.cancelled() and making.exception() is None:
                attempt = making.result()
                await settled(self._engine.submit_kill(lambda: self._undo(attempt)))
            raise asyncio.CancelledError
        attempt = making.result()
        assert attempt.stream is not None
        control: Control
        if attempt.cgroup is not None:
            control = LocalControl(self._engine, attempt.cgroup, attempt.container_id, spec.limits)
        else:
            assert attempt.stats is not None
            control = EngineControl(self._engine, attempt.container_id, StatsFeed(attempt.stats))
        sandbox = DockerSandbox(spec.sandbox_id, attempt.container_id, AttachChannel(attempt.stream), control)
        self._live[spec.sandbox_id] = sandbox
        return sandbox

    def _make(self, client: docker.APIClient, spec: SandboxSpec) -> _Attempt:
        self._examine(client)
        try:
            return self._try(client, spec)
        except _NotHere:
            self._cgroups = None
            self._sampled_because = (
                "the engine's containers do not run in this machine's cgroups (a remote engine or a VM)"
            )
            return self._try(client, spec)

    def _try(self, client: docker.APIClient, spec: SandboxSpec) -> _Attempt:
        attempt = _Attempt(spec, secrets.token_hex(8))
        try:
            self._start(client, spec, attempt)
        except BaseException as error:
            self._undo(attempt)
            if isinstance(error, APIError):
                raise _create_fault(error, attempt) from error
            raise
        return attempt

    def _start(self, client: docker.APIClient, spec: SandboxSpec, attempt: _Attempt) -> None:
        facts = self._engine.facts
        names = self.settings.runtimes.get(spec.isolation, ())
        runtime = facts.runtime(names) if facts is not None else None
        if runtime is None or not self.guarantees(spec.isolation):
            raise precondition(
                "ISOLATION_UNAVAILABLE",
                f"the engine has no runtime for isolation class {spec.isolation.value} (looked for {', '.join(names)})",
                isolation=spec.isolation.value,
            )
        self._examine_image(client, spec)
        volumes = self._packages.ensure(client, spec.mounts, spec.image.engine_reference)
        parent = ""
        cgroups = self._cgroups
        if cgroups is not None:
            attempt.cgroup, parent = cgroups.create(spec.sandbox_id, spec.limits)
        attempt.ids = self._ids.allocate(spec.sandbox_id)
        binding = Binding(attempt.token, self.settings.instance, attempt.ids.skill, runtime, parent, volumes)
        body = container_body(spec, binding)
        attempt.asked = True
        try:
            made = client.create_container_from_config(body, spec.sandbox_id)  # type: ignore[no-untyped-call]
        except APIError:
            attempt.asked = False
            raise
        attempt.container_id = str(made["Id"])
        attempt.stream = attach(client, attempt.container_id)
        client.start(attempt.container_id)
        if attempt.cgroup is None:
            attempt.stats = open_stats(client, attempt.container_id)
        elif cgroups is None or not cgroups.started(attempt.cgroup, spec.limits):
            raise _NotHere

    def _undo(self, attempt: _Attempt) -> None:
        """Remove what the attempt made. Never raises: what can't be removed now is owed."""
        for stream in (attempt.stream, attempt.stats):
            if stream is not None:
                stream.close()
        if attempt.cgroup is not None:
            with suppress(Fault):
                attempt.cgroup.kill()
        if attempt.asked:
            self._owed[attempt.token] = time.monotonic() + (_OWED_SECONDS if not attempt.container_id else 0.0)
            with suppress(Fault):
                self._engine.run(lambda client: self._pay(client, attempt.token))
        if attempt.cgroup is not None:
            with suppress(Fault):
                attempt.cgroup.remove()
        if attempt.ids is not None:
            self._ids.release(attempt.spec.sandbox_id, attempt.ids)

    def _pay(self, client: docker.APIClient, token: str) -> None:
        """Remove what an attempt left. One that never heard the engine's answer is looked for a while longer."""
        removed = self._remove_containers(client, f"{LABEL_ATTEMPT}={token}")
        if removed or time.monotonic() >= self._owed.get(token, 0.0):
            self._owed.pop(token, None)

    def _examine(self, client: docker.APIClient) -> None:
        """After each new connection: what may have changed with the engine is looked at again, and debts are paid."""
        with self._examining:
            facts = self._engine.facts
            if facts is not self._examined and facts is not None:
                self._packages.forget()
                self._images.clear()
                self._cgroups, self._sampled_because = cgroups_of(self.settings, facts)
                self._examined = facts
        for token in tuple(self._owed):
            with suppress(APIError):
                self._pay(client, token)

    def _examine_image(self, client: docker.APIClient, spec: SandboxSpec) -> None:
        reference = spec.image.engine_reference
        if reference in self._images:
            return
        missing = precondition(
            "IMAGE_NOT_READY",
            f"image {spec.image.reference!r} is not in the Docker Engine: import it with "
            f"`skillcell images prepare --driver docker`, or pull it",
            image=spec.image.reference,
        )
        if not reference:
            raise missing
        try:
            check_image(client.inspect_image(reference))  # type: ignore[no-untyped-call]
        except NotFound as error:
            raise missing from error
        self._images.add(reference)

    async def destroy(self, sandbox_id: str) -> None:
        """Remove every trace. Idempotent."""
        live = self._live.get(sandbox_id)
        if live is not None:
            await live.release()
        known = live.container_id if live is not None else ""
        await self._finished(self._engine.submit_kill(lambda: self._kill_cgroup(sandbox_id)))
        await self._finished(self._engine.submit(lambda client: self._destroy(client, sandbox_id, known)))
        self._live.pop(sandbox_id, None)

    def _kill_cgroup(self, sandbox_id: str) -> None:
        cgroup = self._cgroups.open(sandbox_id) if self._cgroups is not None else None
        if cgroup is not None:
            cgroup.kill()

    def _destroy(self, client: docker.APIClient, sandbox_id: str, known: str) -> None:
        self._examine(client)
        if known:
            _remove_container(client, known)
        else:
            self._remove_containers(client, f"{LABEL_SANDBOX}={sandbox_id}")
        cgroup = self._cgroups.open(sandbox_id) if self._cgroups is not None else None
        if cgroup is not None:
            cgroup.kill()
            cgroup.remove()
        self._ids.release(sandbox_id)

    def _remove_containers(self, client: docker.APIClient, label: str) -> int:
        labels = [label, f"{LABEL_INSTANCE}={self.settings.instance}"]
        containers = client.containers(all=True, filters={"label": labels})
        for container in containers:
            _remove_container(client, container["Id"])
        return len(containers)

    async def end(self, sandbox_id: str) -> Found | None:
        """By its cgroup, and by the engine too: a container may run elsewhere than this machine shows."""
        return await self._finished(self._engine.submit(lambda client: self._end(client, sandbox_id)))

    def _end(self, client: docker.APIClient, sandbox_id: str) -> Found | None:
        self._examine(client)
        cgroup = self._cgroups.open(sandbox_id) if self._cgroups is not None else None
        alive, counters = cgroup.end() if cgroup is not None else (False, None)
        labels = [f"{LABEL_SANDBOX}={sandbox_id}", f"{LABEL_INSTANCE}={self.settings.instance}"]
        containers = client.containers(all=True, filters={"label": labels})
        for container in containers:
            alive |= _kill_container(client, container["Id"])
        if cgroup is None:
            return Found(sandbox_id, None, alive) if containers else None
        return Found(sandbox_id, counters, alive)

    async def list(self) -> Sequence[Found]:
        """By label and by cgroup: running, made and never started, dead, or only a cgroup that was left."""
        return await self._finished(self._engine.submit(self._list))

    def _list(self, client: docker.APIClient) -> Sequence[Found]:
        self._examine(client)
        labels = [LABEL_SANDBOX, f"{LABEL_INSTANCE}={self.settings.instance}"]
        containers = client.containers(all=True, filters={"label": labels})
        found = {c["Labels"][LABEL_SANDBOX]: Found(c["Labels"][LABEL_SANDBOX], None) for c in containers}
        if self._cgroups is not None:
            for sandbox_id in self._cgroups.list():
                cgroup = self._cgroups.open(sandbox_id)
                with suppress(Fault):  # gone meanwhile
                    found[sandbox_id] = Found(sandbox_id, cgroup.counters() if cgroup is not None else None)
        return [found[sandbox_id] for sandbox_id in sorted(found)]

    async def check(self) -> Sequence[Check]:
        """Never raises."""
        try:
            await self._finished(self._engine.submit(self._examine))
        except Fault as fault:
            return docker_checks.unreachable(self.settings, fault)
        assert self._engine.facts is not None
        return docker_checks.checks(self.settings, self._engine.facts, self._sampled_because)

    async def prune_packages(self, keep: set[str]) -> int:
        """Remove this instance's package volumes that are not in `keep` (digests) and not in use; returns how many."""
        return await self._finished(self._engine.submit(lambda client: self._packages.prune(client, keep)))

    async def _finished(self, future: asyncio.Future[T]) -> T:
        """The result of work that can't be interrupted; a cancel is raised once it is over."""
        if await settled(future):
            if not future.cancelled():
                future.exception()  # seen: the cancel goes before it
            raise asyncio.CancelledError
        return future.result()

    async def close(self) -> None:
        """Close all channels and the connection."""
        for sandbox in tuple(self._live.values()):
            await sandbox.release()
        await asyncio.to_thread(self._engine.close)

    def retire(self) -> None:
        """After `close`, by the only user of this instance's name: leave no empty cgroups of ours behind."""
        if self._cgroups is not None:
            self._cgroups.retire()


def _kill_container(client: docker.APIClient, container_id: str) -> bool:
    """Returns once it is dead; whether it had to be killed."""
    try:
        client.kill(container_id)
    except NotFound:
        return False
    except APIError as error:
        if error.status_code != 409:  # not running
            raise
        return False
    with suppress(NotFound):
        client.wait(container_id, timeout=30)
    return True


def _remove_container(client: docker.APIClient, container_id: str) -> None:
    """Force-remove, and wait where somebody else is at it."""
    try:
        client.remove_container(container_id, force=True, v=True)
    except NotFound:
        return
    except APIError as error:
        if error.status_code != 409:
            raise
        with suppress(NotFound):
            client.wait(container_id, timeout=30, condition="removed")


def _create_fault(error: APIError, attempt: _Attempt) -> Fault:
    sandbox_id = attempt.spec.sandbox_id
    if error.status_code == 409 and not attempt.container_id:
        return Fault(FaultKind.ALREADY_EXISTS, "SANDBOX_EXISTS", f"a container named {sandbox_id} exists already")
    if error.status_code == 404 and not attempt.container_id:
        return precondition(
            "IMAGE_NOT_READY", f"image {attempt.spec.image.reference!r} is no longer in the Docker Engine"
        )
    return Fault(
        FaultKind.INTERNAL,
        "SANDBOX_NOT_STARTED",
        f"the Docker Engine could not {'start' if attempt.container_id else 'create'} sandbox {sandbox_id} "
        f"(HTTP {error.status_code}); its log has the reason",
        metadata={"status": str(error.status_code)},
    )
