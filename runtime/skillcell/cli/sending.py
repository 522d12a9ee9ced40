"""What goes to the gateway before anything comes back: read as far as it must be, and shown while it takes a while."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import stat
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, BinaryIO

import typer

from skillcell.cli.present import printable

_ALONG_BYTES = 4 << 20
"""What is no larger goes along with the call, and can be looked into first."""
_READ_BYTES = 1 << 20
_BAR = 24


def sending(name: str, sent: int, total: int) -> None:
    """A line on stderr while somebody watches; gone when all is sent. `total` is 0 where it is not known."""
    if max(sent, total) < _ALONG_BYTES or not sys.stderr.isatty():
        return
    if sent == total:
        line = ""
    elif total:
        filled = _BAR * sent // total
        line = f"sending {name} {'━' * filled}{'╌' * (_BAR - filled)} {100 * sent // total:3} %"
    else:
        line = f"sending {name} {sent >> 20} MiB"
    sys.stderr.write("\r\x1b[2K" + printable(line)[: shutil.get_terminal_size().columns - 1])
    sys.stderr.flush()


def json_input(text: str) -> bytes | Path | AsyncIterator[bytes]:
    """`--input`: JSON, `@FILE` or `@-`. What goes along is checked here; the gateway checks everything."""
    given = source("--input", text[1:]) if text.startswith("@") else text.encode("utf-8", "surrogateescape")
    data = given.read_bytes() if isinstance(given, Path) and given.stat().st_size <= _ALONG_BYTES else given
    if isinstance(data, bytes):
        try:
            value: Any = json.loads(data)
        except ValueError as error:
            raise typer.BadParameter(f"--input is not JSON: {error}") from error
        del value
    return data


def source(option: str, name: str) -> bytes | Path | AsyncIterator[bytes]:
    """A file, or standard input for `-`: whole where it is small, else as it comes."""
    if name == "-":
        return _from(typer.get_binary_stream("stdin"))
    path = Path(name)
    try:
        file = path.open("rb")  # a pipe is read by this one and no other: its writer may end when it is closed
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return _from(file)
        file.close()
        return path
    except OSError as error:
        raise typer.BadParameter(f"{option} {name!r}: {error.strerror}") from error


def _from(stream: BinaryIO) -> bytes | AsyncIterator[bytes]:
    begun = stream.read(_ALONG_BYTES + 1)
    return begun if len(begun) <= _ALONG_BYTES else _rest(begun, stream)


async def _rest(begun: bytes, stream: BinaryIO) -> AsyncIterator[bytes]:
    yield begun
    while data := await asyncio.to_thread(stream.read, _READ_BYTES):
        yield data
