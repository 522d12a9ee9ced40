"""A Docker Engine for tests: one of the test's own, that ends with it, or the one that runs already."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from skillcell.core.ids import sandbox_id

# Ends with whoever started it, however that ends: no engine outlives its test.
_BOUND = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execvp(sys.argv[1], sys.argv[1:])"


class Daemon:
    """A dockerd with a containerd, sockets and data of its own."""

    def __init__(self, directory: Path, *listen: str) -> None:
        self.directory = directory
        self.socket = directory / "docker.sock"
        self._listen = listen
        self._dockerd: subprocess.Popen[bytes] | None = None
        (directory / "none.json").write_text("{}")
        self._containerd = self._run(
            *("containerd", "--address", str(directory / "containerd.sock"), "--config", "/dev/null"),
            *("--root", str(directory / "containerd-root"), "--state", str(directory / "containerd-state")),
        )

    @property
    def host(self) -> str:
        return f"unix://{self.socket}"

    def _run(self, *command: str) -> subprocess.Popen[bytes]:
        with open(self.directory / "log", "ab") as log:
            return subprocess.Popen([sys.executable, "-c", _BOUND, *command], stdout=log, stderr=log)

    async def start(self) -> None:
        (self.directory / "docker.pid").unlink(missing_ok=True)
        places = {"data-root": "data", "exec-root": "exec", "pidfile": "docker.pid", "containerd": "containerd.sock"}
        async with asyncio.timeout(60):
            while not (self.directory / "containerd.sock").exists():
                await asyncio.sleep(0.02)
            self._dockerd = self._run(
                *("dockerd", "--config-file", str(self.directory / "none.json"), "-H", self.host, *self._listen),
                *(f"--{option}={self.directory / name}" for option, name in places.items()),
                *("--bridge=none", "--iptables=false", "--ip6tables=false", "--storage-driver=overlay2"),
            )
            while not answers(self.socket):
                assert self._dockerd.poll() is None, (self.directory / "log").read_text()[-2000:]
                await asyncio.sleep(0.05)

    def crash(self) -> None:
        assert self._dockerd is not None
        self._dockerd.kill()
        self._dockerd.wait()

    def stop(self) -> None:
        """End both, and take their mounts away."""
        for process in (self._dockerd, self._containerd):
            if process is not None and process.poll() is None:
                process.terminate()
                process.wait(timeout=60)
        mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for mount in sorted((mount for mount in mounts if mount.startswith(str(self.directory))), reverse=True):
            subprocess.run(["umount", mount], check=False)


@contextmanager
def own_daemon() -> Iterator[Daemon]:
    """A private engine, started. Its directory has a short name: a socket's path has 107 bytes at most."""
    if shutil.which("dockerd") is None or os.geteuid() != 0:
        pytest.skip("needs dockerd and root")
    directory = Path("/tmp") / f"skillcell-{sandbox_id()[-10:]}"
    directory.mkdir()
    try:
        daemon = Daemon(directory)
        try:
            start_now(daemon)
            yield daemon
        finally:
            daemon.stop()
    finally:
        shutil.rmtree(directory)


def start_now(daemon: Daemon) -> None:
    """`start` for fixtures that are not coroutines. In this very thread: the engine ends with the thread it is of."""
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(daemon.start())
    finally:
        loop.close()


def answers(path: Path) -> bool:
    """Whether an engine listens there. Not by the docker package: that leaves refused sockets to the collector."""
    with suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        probe.connect(str(path))
        probe.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
        return b" 200 " in probe.recv(64)
    return False


@contextmanager
def any_engine() -> Iterator[str]:
    """The URL of the engine that runs here, else of a private one."""
    host = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    if not host.startswith("unix://") or answers(Path(host.removeprefix("unix://"))):
        yield host
        return
    with own_daemon() as daemon:
        yield daemon.host
