"""The gateway's end of the agent, small and blocking: starts a real agent on a socket, sends a job, collects what comes
back.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from skillcell.agent import frames
from skillcell.sandbox.agent_package import build_agent_package

SYSTEM_PYTHON = "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass
class Ending:
    """Everything one job sent."""

    stdout: bytes = b""
    stderr: bytes = b""
    events: list[dict[str, Any]] = field(default_factory=list)
    code: int | None = None
    signal: int | None = None
    disk: dict[str, dict[str, int]] = field(default_factory=dict)
    result: bytes | None = None
    artifacts: dict[str, bytes] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    failed: str | None = None
    kinds: list[int] = field(default_factory=list)

    @property
    def outputs(self) -> list[Any]:
        return [event["value"] for event in self.events if event["type"] == "output"]


class Wire:
    """Blocking frames over a pair of files, with whatever must be closed behind them."""

    def __init__(self, reader: BinaryIO, writer: BinaryIO, close: Callable[[], None]) -> None:
        self.reader = reader
        self.writer = writer
        self.close = close

    def send_raw(self, data: bytes) -> None:
        self.writer.write(data)
        self.writer.flush()

    def send(self, kind: int, payload: bytes = b"") -> None:
        self.send_raw(frames.encode(kind, payload))

    def send_json(self, kind: int, value: object) -> None:
        self.send_raw(frames.encode_json(kind, value))

    def receive(self) -> tuple[int, bytes]:
        header = self.reader.read(frames.HEADER.size)
        if len(header) < frames.HEADER.size:
            raise EOFError("the agent closed the channel")
        kind, length = frames.parse_header(header)
        return kind, self.reader.read(length)


def socket_wire(sock: socket.socket) -> Wire:
    sock.settimeout(60)
    reader, writer = sock.makefile("rb", 1 << 18), sock.makefile("wb")

    def close() -> None:
        sock.shutdown(socket.SHUT_RDWR)
        for end in (reader, writer, sock):
            end.close()

    return Wire(reader, writer, close)


class Agent:
    """A running agent. `places` are its directories; outside a container they lie below a temporary directory."""

    def __init__(self, process: subprocess.Popen[bytes], wire: Wire, places: dict[str, str]) -> None:
        self.process = process
        self.wire = wire
        self.places = places
        self.hello: dict[str, Any] = {}

    def say_hello(self) -> None:
        kind, payload = self.wire.receive()
        assert kind == frames.HELLO, (kind, payload)
        self.hello = json.loads(payload)

    def env(self, **more: str) -> dict[str, str]:
        return {
            "PATH": PATH,
            "HOME": self.places["home"],
            "TMPDIR": self.places["tmp"],
            "LANG": "C.UTF-8",
            "SKILLCELL_INPUT": f"{self.places['input']}/input.json",
            "SKILLCELL_OUTPUT_DIR": self.places["output"],
            "SKILLCELL_WORKSPACE": self.places["workspace"],
            **more,
        }

    def job(self, **changes: Any) -> dict[str, Any]:
        job: dict[str, Any] = {
            "kind": "exec",
            "argv": [],
            "script": "",
            "function": "",
            "env": self.env(),
            "cwd": self.places["workspace"],
            "copy_skill": False,
            "stdin": False,
            "rlimits": {},
            "collect": [],
            "artifact_bytes": 1 << 24,
            "artifact_count": 256,
            "deadline_ns": 60_000_000_000,
        }
        assert set(job) == set(frames.JOB_KEYS)
        return {**job, **changes}

    def deliver(self, job: dict[str, Any], files: Sequence[tuple[str, str, int, bytes]] = ()) -> None:
        self.wire.send_json(frames.JOB, job)
        for root, name, mode, content in files:
            self.wire.send_json(frames.FILE, {"root": root, "name": name, "mode": mode, "size": len(content)})
            for start in range(0, len(content), frames.CHUNK_BYTES):
                self.wire.send(frames.DATA, content[start : start + frames.CHUNK_BYTES])
        self.wire.send(frames.RUN)

    def run(
        self, files: Sequence[tuple[str, str, int, bytes]] = (), stdin: bytes | None = None, **changes: Any
    ) -> Ending:
        """One whole job."""
        self.deliver(self.job(stdin=stdin is not None, **changes), files)
        feeder = None
        if stdin is not None:
            feeder = threading.Thread(target=self.feed, args=(stdin,))
            feeder.start()
        ending = self.collect()
        if feeder is not None:
            feeder.join()
        return ending

    def feed(self, stdin: bytes) -> None:
        for start in range(0, len(stdin), frames.CHUNK_BYTES):
            self.wire.send(frames.STDIN, stdin[start : start + frames.CHUNK_BYTES])
        self.wire.send(frames.STDIN_EOF)

    def collect(self) -> Ending:
        ending = Ending()
        stdout, stderr = bytearray(), bytearray()
        for kind, payload in self.frames():
            ending.kinds.append(kind)
            if kind == frames.STDOUT:
                stdout += payload
            elif kind == frames.STDERR:
                stderr += payload
            elif kind == frames.EVENT:
                ending.events.append(json.loads(payload))
            elif kind == frames.EXITED:
                said = json.loads(payload)
                ending.code, ending.signal, ending.disk = said["code"], said["signal"], said["disk"]
            elif kind == frames.RESULT:
                ending.result = payload
            elif kind == frames.ARTIFACT:
                name, size = json.loads(payload)["name"], json.loads(payload)["size"]
                content = bytearray()
                while (frame := self.wire.receive())[0] == frames.DATA:
                    content += frame[1]
                assert frame[0] == frames.ARTIFACT_END
                assert len(content) == size
                ending.artifacts[name] = bytes(content)
            elif kind == frames.ARTIFACT_REFUSED:
                said = json.loads(payload)
                ending.refused[said["name"]] = said["reason"]
            elif kind == frames.FAILED:
                ending.failed = json.loads(payload)["message"]
        ending.stdout, ending.stderr = bytes(stdout), bytes(stderr)
        return ending

    def frames(self) -> Iterator[tuple[int, bytes]]:
        while True:
            kind, payload = self.wire.receive()
            yield kind, payload
            if kind in (frames.DONE, frames.FAILED):
                return

    def close(self) -> int:
        self.wire.close()
        return self.process.wait(20)


def start_code(directory: Path, places: dict[str, str]) -> str:
    """Python that is an agent with its places elsewhere than in a sandbox."""
    package = build_agent_package(directory / "package")
    return (
        f"import sys; sys.path.insert(0, {str(package.path)!r});from skillcell.agent.main import main; main({places!r})"
    )


def make_places(directory: Path) -> dict[str, str]:
    places = {}
    for name in ("workspace", "input", "skill", "output", "run", "tmp", "home"):
        (directory / name).mkdir()
        places[name] = str(directory / name)
    return places


def start_agent(directory: Path, python: str = SYSTEM_PYTHON) -> Agent:
    """An agent as an ordinary process over a socketpair, with its directories below `directory`."""
    places = make_places(directory)
    ours, theirs = socket.socketpair()
    command = [python, "-c", start_code(directory, places)]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, env={"PATH": PATH, "LANG": "C.UTF-8"})
    theirs.close()
    agent = Agent(process, socket_wire(ours), places)
    agent.say_hello()
    return agent
