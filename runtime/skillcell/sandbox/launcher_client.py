"""The gateway's end of the launcher: starts it, asks it, notices its death, starts another.

A reader could get two things wrong. A request to a launcher that dies fails with UNAVAILABLE and may have had any
effect; the driver's `destroy` is safe after that. And the launcher's own end of life is our socket's: nothing else
stops it.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import skillcell
from skillcell.core.errors import Fault, FaultKind, unavailable
from skillcell.sandbox import launcher_wire

_START_SECONDS = 20.0
_REAP_SECONDS = 30.0
_IMPORT_ROOT = str(Path(next(iter(skillcell.__path__))).parent)
_PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv[1]); from skillcell.sandbox.launcher import main; main(sys.argv[2:])"
)


class LauncherClient:
    """One launcher process. `on_death` is called once, on the loop, when it is gone though nobody closed it."""

    def __init__(self, process: subprocess.Popen[bytes], sock: socket.socket, on_death: Callable[[], None]) -> None:
        self._process = process
        self._socket = sock
        self._on_death = on_death
        self._loop = asyncio.get_running_loop()
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._sending = asyncio.Lock()
        self.alive = True

    @classmethod
    async def start(cls, arguments: Sequence[str], on_death: Callable[[], None]) -> LauncherClient:
        """Start one and wait until it is ready. Raises the Fault that it reports, or UNAVAILABLE."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            argv = [sys.executable, "-I", "-S", "-c", _PROGRAM, _IMPORT_ROOT, str(theirs.fileno()), *arguments]
            process = subprocess.Popen(  # noqa: ASYNC220 - once in a launcher's life
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                env={},
                cwd="/",
            )
        ours.setblocking(False)
        client = cls(process, ours, on_death)
        ready = client._loop.create_future()
        client._answers[0] = ready
        client._loop.add_reader(ours.fileno(), client._on_readable)
        try:
            async with asyncio.timeout(_START_SECONDS):
                await ready
        except TimeoutError as error:
            await client.close()
            raise unavailable(
                "LAUNCHER_NOT_STARTED", f"the launcher was not ready in {_START_SECONDS:.0f} s"
            ) from error
        except BaseException:
            await client.close()
            raise
        return client

    @property
    def pid(self) -> int:
        """Of the launcher's process."""
        return self._process.pid

    async def ask(self, header: dict[str, Any], body: bytes = b"", descriptors: Sequence[int] = ()) -> dict[str, Any]:
        """Its answer; raises the Fault that it reports, or UNAVAILABLE when it is gone."""
        number = next(self._numbers)
        answer: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        record = launcher_wire.pack({"id": number, **header}, body)
        try:
            async with self._sending:
                await self._send(record, descriptors)
                self._answers[number] = answer
            return await answer
        finally:
            self._answers.pop(number, None)

    async def _send(self, record: bytes, descriptors: Sequence[int]) -> None:
        while self.alive:
            try:
                launcher_wire.send(self._socket, record, descriptors)
                return
            except BlockingIOError:
                writable = self._loop.create_future()
                self._loop.add_writer(self._socket.fileno(), _resolve, writable)
                try:
                    await writable
                finally:
                    self._loop.remove_writer(self._socket.fileno())
            except OSError as error:
                raise _gone() from error
        raise _gone()

    def _on_readable(self) -> None:
        try:
            record, _ = launcher_wire.receive(self._socket)
        except BlockingIOError:
            return
        except OSError:
            record = b""
        if not record:
            self._lose()
            return
        answer, _ = launcher_wire.unpack(record)
        waiting = self._answers.pop(answer.pop("id"), None)
        if waiting is None or waiting.done():
            return
        if "fault" in answer:
            told = answer["fault"]
            waiting.set_exception(Fault(FaultKind(told["kind"]), told["reason"], told["message"]))
        else:
            waiting.set_result(answer)

    def _lose(self) -> None:
        if not self.alive:
            return
        self.alive = False
        self._loop.remove_reader(self._socket.fileno())
        for waiting in self._answers.values():
            if not waiting.done():
                waiting.set_exception(_gone())
        self._on_death()

    async def close(self) -> None:
        """End it: it kills what it has and goes. Returns when it is gone; killed if it does not go."""
        if self.alive:
            self.alive = False
            self._loop.remove_reader(self._socket.fileno())
            for waiting in self._answers.values():
                if not waiting.done():
                    waiting.set_exception(_gone())
        with suppress(OSError):
            self._socket.close()
        await asyncio.to_thread(self._reap)

    def _reap(self) -> None:
        try:
            self._process.wait(_REAP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _gone() -> Fault:
    return unavailable("LAUNCHER_GONE", "the sandbox launcher ended; it is being started again")
