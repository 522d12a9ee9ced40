"""The connection to one Docker Engine: threads for its blocking client, its facts, and its errors as `Fault`s.

A reader could get three things wrong. Kills have threads of their own, so that they never wait behind slow creates. A
piece of work that has begun can't be interrupted, so whoever is canceled must wait for it to know what to undo:
`settled`. And a lost engine is forgotten at once: the next piece of work connects anew, so that it recovers when the
engine returns.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import docker
import requests
import urllib3
from docker.errors import APIError, DockerException, TLSParameterError
from docker.tls import TLSConfig

from skillcell.core.errors import Fault, FaultKind, precondition, unavailable
from skillcell.core.types import Isolation
from skillcell.sandbox.uids import DEFAULT_BASE, DEFAULT_PAIRS

T = TypeVar("T")

_LEAST_API = "1.41"  # Docker 20.10: cgroup namespaces

RUNTIMES: Mapping[Isolation, tuple[str, ...]] = {
    Isolation.STANDARD: ("runc", "crun"),
    Isolation.GVISOR: ("runsc",),
    Isolation.VM: ("kata", "kata-runtime", "io.containerd.kata.v2"),
}


@dataclass(frozen=True, slots=True)
class DockerSettings:
    """How the driver reaches its engine and what it may use of the machine."""

    host: str = "unix:///var/run/docker.sock"
    """Where the engine listens: unix://, tcp:// (set the TLS files with it)."""
    tls_ca: Path | None = None
    """PEM file of the authority that signed the engine's certificate; with it TLS is used and the engine verified."""
    tls_certificate: Path | None = None
    """PEM file of our certificate for the engine."""
    tls_key: Path | None = None
    """PEM file of its key."""
    timeout_seconds: float = 60.0
    """The longest that one request to the engine may take."""
    threads: int = 8
    """How many requests run at once."""
    instance: str = "default"
    """Letters and digits that tell this gateway's sandboxes from those of others on the same engine."""
    uid_directory: Path = Path("/run/skillcell/docker-uids")
    """Where links say which host uids are in use; shared by all gateways of a machine that use the same range."""
    uid_base: int = DEFAULT_BASE + 2 * DEFAULT_PAIRS
    """First of the host uids; the default lies behind the `oci` driver's. Gateways on several machines that share one
    engine need ranges that do not overlap."""
    uid_pairs: int = DEFAULT_PAIRS
    """Half as many uids as there are; at most so many sandboxes live at once."""
    runtimes: Mapping[Isolation, tuple[str, ...]] = field(default_factory=lambda: dict(RUNTIMES))
    """Names the engine may know each class's runtime by; the first registered one is used."""
    engine_counters: bool = False
    """Take usage from the engine's statistics (SAMPLED) even where this machine's cgroups could be read."""


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What the engine said of itself when we connected."""

    version: str
    api_version: str
    storage_driver: str
    cgroup_driver: str
    cgroup_version: str
    kernel: str
    os_type: str
    runtimes: frozenset[str]
    seccomp: bool
    unmet_limits: tuple[str, ...]
    """Limits that the engine says its kernel can't hold."""

    @classmethod
    def parse(cls, info: Mapping[str, Any], version: Mapping[str, Any]) -> EngineFacts:
        """From the bodies of GET /info and GET /version."""
        needed = ("MemoryLimit", "SwapLimit", "PidsLimit", "CpuCfsQuota")
        return cls(
            version=str(info.get("ServerVersion", "")),
            api_version=str(version.get("ApiVersion", "0.0")),
            storage_driver=str(info.get("Driver", "")),
            cgroup_driver=str(info.get("CgroupDriver", "")),
            cgroup_version=str(info.get("CgroupVersion", "1")),
            kernel=str(info.get("KernelVersion", "")),
            os_type=str(info.get("OSType", "")),
            runtimes=frozenset(info.get("Runtimes") or {}),
            seccomp=any(str(option).startswith("name=seccomp") for option in info.get("SecurityOptions") or ()),
            unmet_limits=tuple(name for name in needed if not info.get(name, False)),
        )

    def runtime(self, names: tuple[str, ...]) -> str | None:
        """The first of `names` that is registered."""
        return next((name for name in names if name in self.runtimes), None)


class Engine:
    """One engine, connected when first needed. Safe to use from any of its threads."""

    def __init__(self, settings: DockerSettings) -> None:
        self.settings = settings
        self.facts: EngineFacts | None = None
        """As of the last connection; None before the first."""
        self._client: docker.APIClient | None = None
        self._connecting = threading.Lock()
        self._pool = ThreadPoolExecutor(settings.threads, thread_name_prefix="docker")
        self._kill_pool = ThreadPoolExecutor(settings.threads, thread_name_prefix="docker-kill")

    def submit(self, work: Callable[[docker.APIClient], T]) -> asyncio.Future[T]:
        """Run `work` in a thread with a connected client. Its engine errors come out as Faults."""
        return asyncio.wrap_future(self._pool.submit(self.run, work))

    def submit_kill(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Run work that ends something, and needs no engine, in threads kept for that."""
        future: Future[T] = self._kill_pool.submit(work)
        return asyncio.wrap_future(future)

    def submit_engine_kill(self, work: Callable[[docker.APIClient], T]) -> asyncio.Future[T]:
        """The same, by way of the engine."""
        return self.submit_kill(lambda: self.run(work))

    def run(self, work: Callable[[docker.APIClient], T]) -> T:
        """In this thread: connect if need be, do it, translate errors."""
        client = self.connect()
        try:
            return work(client)
        except Fault as fault:
            if fault.reason == "ENGINE_UNAVAILABLE":
                self._forget(client)
            raise
        except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, DockerException, OSError) as error:
            translated = translate(error)
            if translated.reason == "ENGINE_UNAVAILABLE":
                self._forget(client)
            raise translated from error

    def connect(self) -> docker.APIClient:
        """The client, made and its engine examined if there is none."""
        with self._connecting:
            if self._client is None:
                self._client = self._open()
            return self._client

    def _open(self) -> docker.APIClient:
        client = None
        try:
            client = self._client_for(_LEAST_API)
            version = client.version(api_version=False)
            newest = str(version.get("ApiVersion", "0.0"))
            client.close()
            client = self._client_for(newest)
            self.facts = EngineFacts.parse(client.info(), version)
        except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, DockerException, OSError) as error:
            if client is not None:
                client.close()
            raise translate(error) from error
        if parse_version(newest) < parse_version(_LEAST_API):
            client.close()
            raise precondition(
                "ENGINE_TOO_OLD",
                f"Docker Engine {self.facts.version} speaks API {newest}; 20.10 (API {_LEAST_API}) or newer is needed",
            )
        return client

    def _client_for(self, version: str) -> docker.APIClient:
        settings = self.settings
        client = docker.APIClient(
            base_url=settings.host,
            version=version,
            timeout=int(settings.timeout_seconds),
            tls=_tls(settings),
            num_pools=4,
            max_pool_size=2 * settings.threads,
        )
        # else REQUESTS_CA_BUNDLE goes before the engine's own authority, and HTTP_PROXY between us
        client.trust_env = False
        return client

    def _forget(self, client: docker.APIClient) -> None:
        with self._connecting:
            if self._client is client:
                self._client = None
                client.close()  # idle connections only; what other threads have in use runs on to its own error

    def close(self) -> None:
        """Wait for what runs, then drop the connection."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._kill_pool.shutdown(wait=True)
        with self._connecting:
            if self._client is not None:
                self._client.close()
                self._client = None


async def settled(future: asyncio.Future[Any]) -> bool:
    """Wait until `future` is done, whatever cancels us meanwhile; True when something did: then raise it after."""
    canceled = False
    while not future.done():
        try:
            await asyncio.wait({future})
        except asyncio.CancelledError:
            canceled = True
    return canceled


def parse_version(text: str) -> tuple[int, int]:
    """`1.41` as (1, 41); (0, 0) for what is no such thing."""
    major, _, minor = text.partition(".")
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else (0, 0)


def _tls(settings: DockerSettings) -> TLSConfig | bool:
    if settings.tls_ca is None:
        return False
    pair = None
    if settings.tls_certificate is not None and settings.tls_key is not None:
        pair = (str(settings.tls_certificate), str(settings.tls_key))
    try:
        return TLSConfig(client_cert=pair, ca_cert=str(settings.tls_ca), verify=True)
    except TLSParameterError as error:
        raise precondition(
            "ENGINE_TLS", "the engine's TLS files can't be read; check tls_ca, tls_certificate, tls_key"
        ) from error


def translate(error: Exception) -> Fault:
    """An exception of the engine or its transport as a Fault, without the engine's text: it may name host paths."""
    if isinstance(error, APIError):
        return _refusal(error.status_code)
    if isinstance(error, requests.exceptions.SSLError):
        return precondition(
            "ENGINE_TLS", "the engine's certificate or ours was refused; check tls_ca, tls_certificate, tls_key"
        )
    if isinstance(error, requests.exceptions.Timeout | TimeoutError):
        return unavailable("ENGINE_TIMEOUT", "the Docker Engine took too long to answer", timedelta(seconds=5))
    return unavailable(
        "ENGINE_UNAVAILABLE",
        "the Docker Engine does not answer. Fix: start it (`systemctl start docker`), see that this user may use its "
        "socket (group `docker`), or point the docker driver's `host` at an engine that runs",
        timedelta(seconds=2),
    )


def _refusal(status: int | None) -> Fault:
    if status == 404:
        return Fault(FaultKind.NOT_FOUND, "ENGINE_NOT_FOUND", "the Docker Engine knows no such object")
    if status == 409:
        return Fault(FaultKind.ABORTED, "ENGINE_CONFLICT", "the Docker Engine refused: the object is in another state")
    if status == 503:
        return unavailable("ENGINE_BUSY", "the Docker Engine can't take the request now", timedelta(seconds=2))
    return Fault(
        FaultKind.INTERNAL,
        "ENGINE_REFUSED",
        f"the Docker Engine refused a request (HTTP {status})",
        metadata={"status": str(status)},
    )
