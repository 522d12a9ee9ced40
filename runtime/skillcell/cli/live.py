"""A call while it runs: the Skill's bytes untouched, everything of ours on stderr, a progress line for eyes only.

The Skill's stdout and stderr pass through byte for byte. What it says in events (logs, progress, names) is text of a
stranger and is made harmless for a terminal first.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from typing import BinaryIO

from skillcell.cli.present import printable
from skillcell.core import events

_REMEMBERED_BYTES = 4 << 20
_BAR = 24


class Live:
    """Shows events as they come."""

    def __init__(self) -> None:
        self._stdout: BinaryIO = sys.stdout.buffer
        self._stderr: BinaryIO = sys.stderr.buffer
        self._out_terminal = sys.stdout.isatty()
        self._err_terminal = sys.stderr.isatty()
        self._line = ""
        self._drawn = False
        self._printed = bytearray()
        self._at_line_start = {id(self._stdout): True, id(self._stderr): True}

    async def show(self, event: events.Event) -> None:
        match event:
            case events.Stdout(data):
                if len(self._printed) < _REMEMBERED_BYTES:
                    self._printed += data
                await self._write(self._stdout, data)
            case events.Stderr(data):
                await self._write(self._stderr, data)
            case events.Log(level, message, fields):
                extra = "".join(f" {key}={json.dumps(value, ensure_ascii=False)}" for key, value in fields.items())
                await self.say(f"{level}: {message}{extra}")
            case events.Progress(fraction, message):
                self._progress(fraction, message)
            case events.Queued(position) if self._err_terminal:
                self._draw(f"queued, number {position} in line")
            case events.Output(value):
                await self._output(value)
            case _:
                pass

    async def say(self, text: str) -> None:
        """A line of ours on stderr."""
        if not self._at_line_start[id(self._stderr)]:
            await self._write(self._stderr, b"\n")
        await self._write(self._stderr, printable(text).encode("utf-8", "replace") + b"\n")

    async def finish(self) -> None:
        """Leaves the terminal at the start of a clean line."""
        self._line = ""
        self._erase()
        if self._out_terminal and not self._at_line_start[id(self._stdout)]:
            await self._write(self._stdout, b"\n")

    async def _output(self, value: bytes) -> None:
        """JSON values go to stdout, unless they are there already because the Skill's stdout is the JSON."""
        text = value.strip()
        if text == self._printed.strip() or text in self._printed.splitlines():
            return
        if not self._at_line_start[id(self._stdout)]:
            await self._write(self._stdout, b"\n")
        if self._out_terminal:
            pretty = json.dumps(json.loads(value), ensure_ascii=True, indent=2)
            await self._write(self._stdout, f"\x1b[1moutput\x1b[0m\n{pretty}\n".encode())
        else:
            await self._write(self._stdout, text + b"\n")

    async def _write(self, stream: BinaryIO, data: bytes) -> None:
        # In a thread: a reader that stops reading must not stop Ctrl-C.
        self._erase()
        await asyncio.to_thread(_put, stream, data)
        self._at_line_start[id(stream)] = data.endswith(b"\n")
        if self._line and all(self._at_line_start.values()):
            self._draw(self._line)

    def _progress(self, fraction: float | None, message: str) -> None:
        if not self._err_terminal:
            return
        if fraction is None:
            self._draw(message)
            return
        filled = round(_BAR * min(max(fraction, 0.0), 1.0))
        bar = "━" * filled + "╌" * (_BAR - filled)
        self._draw(f"{bar} {fraction:4.0%} {message}")

    def _draw(self, line: str) -> None:
        self._line = line
        if not all(self._at_line_start.values()):
            return
        width = shutil.get_terminal_size().columns - 1
        self._stderr.write(b"\r\x1b[2K" + printable(line)[:width].encode("utf-8", "replace"))
        self._stderr.flush()
        self._drawn = True

    def _erase(self) -> None:
        if self._drawn:
            self._stderr.write(b"\r\x1b[2K")
            self._stderr.flush()
            self._drawn = False


def _put(stream: BinaryIO, data: bytes) -> None:
    stream.write(data)
    stream.flush()
