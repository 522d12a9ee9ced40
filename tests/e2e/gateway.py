"""The real `skillcell serve` as a process of its own: start it, call it, stop or kill it, and look what it left.

What a reader could get wrong: `stop` expects exit code 0 and nothing left; `kill` is what a crash is, and expects
neither.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from sandbox_fixtures import image, image_store
from skillcell.client import RetryPolicy, SkillcellClient

SKILLCELL = str(Path(sys.executable).parent / "skillcell")
NO_RETRY = RetryPolicy(before_admission=0, reattach_seconds=0)


@dataclass
class Gateway:
    """One data directory, and the process that serves it while there is one."""

    driver: str
    data: Path
    docker_host: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    """More environment, as `{"SKILLCELL_RECONNECT_SECONDS": "1"}`."""
    listen: str = "127.0.0.1:0"
    address: str = ""
    metrics: str = ""
    process: subprocess.Popen[str] | None = None

    def start(self, *, ready: bool = True) -> None:
        """Serves, and health says so, when this returns; with `ready` false it waits for something, and says that."""
        assert self.process is None
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.data.parent),
            "XDG_STATE_HOME": str(self.data.parent / "state"),
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            "SKILLCELL_DOCKER_HOST": self.docker_host,
            **self.settings,
        }
        command = [SKILLCELL, "serve", "--driver", self.driver, "--data", str(self.data)]
        command += ["--listen", self.listen, "--metrics", "127.0.0.1:0"]
        with self._log.open("a") as log:
            self.process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.process.stdout is not None
        said = [self.process.stdout.readline() for _ in range(2)]
        assert said[0].startswith("serving on "), self._log.read_text()[-2000:]
        self.address = said[0].split()[2]
        self.metrics = said[1].split()[2].removesuffix("/metrics")
        with grpc.insecure_channel(self.address) as channel:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=10, wait_for_ready=True
            )
        expected = health_pb2.HealthCheckResponse
        assert answer.status == (expected.SERVING if ready else expected.NOT_SERVING)

    def stop(self, within_seconds: float = 60) -> None:
        """SIGTERM; it ends well and leaves nothing."""
        self.signal(signal.SIGTERM)
        assert self.wait(within_seconds) == 0, self._log.read_text()[-2000:]
        assert self.leftovers() == []

    def kill(self) -> None:
        """As a crash: nothing is tidied up by the process itself."""
        self.signal(signal.SIGKILL)
        self.wait(10)

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self, within_seconds: float) -> int:
        """Its exit code, once it has ended."""
        assert self.process is not None
        process, self.process = self.process, None
        try:
            process.communicate(timeout=within_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise
        return process.returncode

    @property
    def key(self) -> str:
        return (self.data / "development.key").read_text().strip()

    @property
    def instance(self) -> str:
        return (self.data / "instance").read_text().strip()

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def _log(self) -> Path:
        return self.data.parent / "serve.log"

    @property
    def log(self) -> str:
        """All that it ever said on stderr."""
        return self._log.read_text()

    def logged(self, event: str) -> list[dict[str, Any]]:
        """The log's lines of one kind."""
        lines = (json.loads(line) for line in self._log.read_text().splitlines() if line.startswith("{"))
        return [line for line in lines if line.get("event") == event]

    def client(self, *, retry: RetryPolicy = NO_RETRY, key: str | None = None) -> SkillcellClient:
        return SkillcellClient(self.address, api_key=self.key if key is None else key, retry=retry)

    def channel(self) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(self.address)

    @property
    def credentials(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.key}"),)

    def samples(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        """Every sample of /metrics by name and labels."""
        with urllib.request.urlopen(f"{self.metrics}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def not_ready(self) -> list[str]:
        """What /readyz has against it; empty when it is ready."""
        try:
            with urllib.request.urlopen(f"{self.metrics}/readyz", timeout=30) as answer:
                said = json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                said = json.load(error)
        assert said["ready"] == (not said["reasons"])
        return list(said["reasons"])

    async def until_ready(self, within_seconds: float = 60) -> None:
        async with asyncio.timeout(within_seconds):
            while await asyncio.to_thread(self.not_ready):
                await asyncio.sleep(0.1)

    def resident_bytes(self) -> int:
        """Memory of the gateway process itself."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) * 1024

    def cgroups(self) -> list[Path]:
        """Every cgroup directory that is this gateway's, without the roots that hold none."""
        roots = (f"skillcell-{self.instance}", f"skillcell-docker-{self.instance}")
        tree = Path("/sys/fs/cgroup")
        places = [place / root for root in roots for place in (tree, *tree.iterdir())]
        return [Path(at) / name for place in places for at, names, _ in os.walk(place) for name in names]

    def processes(self) -> dict[int, str]:
        """Processes in a cgroup or from a directory of this gateway, by id."""
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                groups = (entry / "cgroup").read_text()
                ended = (entry / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"  # only not yet waited for
            except OSError:
                continue
            if not ended and (self.instance in groups or str(self.data) in line):
                found[int(entry.name)] = line
        return found

    def containers(self) -> list[str]:
        """Containers of this gateway, in whatever state."""
        if self.driver != "docker":
            return []
        client = docker.DockerClient(base_url=self.docker_host)
        try:
            label = {"label": f"skillcell.instance={self.instance}"}
            return [str(found["Id"]) for found in client.api.containers(all=True, filters=label)]
        finally:
            client.close()

    def leftovers(self) -> list[str]:
        """What there is of its sandboxes, or of itself; empty after a stop."""
        mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(self.data) in line]
        return [
            *(f"cgroup {path}" for path in self.cgroups()),
            *(f"process {pid}: {line}" for pid, line in self.processes().items()),
            *(f"mount {line}" for line in mounts),
            *(f"container {name}" for name in self.containers()),
        ]


def new_gateway(home: Path, driver: str, docker_host: str = "", **settings: str) -> Gateway:
    """Not started yet; its images are those that all tests share."""
    if os.geteuid() != 0:
        pytest.skip("sandboxes with exact usage need root")
    image("python-3.11")
    data = home / "data"
    data.mkdir()
    (data / "images").symlink_to(image_store().directory)
    return Gateway(driver, data, docker_host, {f"SKILLCELL_{name.upper()}": value for name, value in settings.items()})


@contextmanager
def serving(gateway: Gateway) -> Iterator[Gateway]:
    """Serves until the block ends; then whatever runs of it ends well and leaves nothing."""
    try:
        gateway.start()
        yield gateway
    except BaseException:
        if gateway.process is not None:
            gateway.signal(signal.SIGTERM)
            gateway.wait(90)
        raise
    if gateway.process is not None:
        gateway.stop()
    gc.collect()
