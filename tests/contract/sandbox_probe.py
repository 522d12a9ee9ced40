"""A stand-in for the agent, for tests of drivers alone: it runs Python sent to it and answers in JSON."""

from __future__ import annotations

import json
import struct
from typing import Any

from skillcell.sandbox.driver import ByteChannel, Sandbox

_INSIDE = """
import ctypes, errno, json, os, resource, signal, socket, struct, sys, time
libc = ctypes.CDLL(None, use_errno=True)
def take(count):
    parts = b""
    while len(parts) < count:
        part = os.read(0, min(count - len(parts), 1 << 18))
        if not part:
            os._exit(0)
        parts += part
    return parts
def give(data):
    while data:
        data = data[os.write(1, data[: 1 << 18]):]
def read(path):
    with open(path) as file:
        return file.read()
def refused(action, *arguments):
    try:
        action(*arguments)
    except OSError as error:
        return error.errno
    return 0
def call(number, *arguments):
    ctypes.set_errno(0)
    value = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
    return -ctypes.get_errno() if value == -1 else value
while True:
    (size,) = struct.unpack(">I", take(4))
    names = dict(globals(), result=None)
    try:
        exec(take(size).decode(), names)
        answer = json.dumps({"result": names["result"]})
    except BaseException as error:
        answer = json.dumps({"error": repr(error)})
    give(struct.pack(">I", len(answer)) + answer.encode())
"""


def probe_command(python: str) -> tuple[str, ...]:
    """argv of the stand-in."""
    return (python, "-I", "-S", "-c", _INSIDE)


async def read_exactly(channel: ByteChannel, count: int) -> bytes:
    """`count` bytes, or a failure that says how many came."""
    parts = bytearray()
    while len(parts) < count:
        part = await channel.read(count - len(parts))
        if not part:
            raise AssertionError(f"the channel ended after {len(parts)} of {count} bytes")
        parts += part
    return bytes(parts)


async def inside(sandbox: Sandbox, source: str) -> Any:
    """Run `source` inside; the value it left in `result`."""
    code = source.encode()
    await sandbox.channel.write(struct.pack(">I", len(code)) + code)
    (size,) = struct.unpack(">I", await read_exactly(sandbox.channel, 4))
    answer = json.loads(await read_exactly(sandbox.channel, size))
    assert "error" not in answer, answer["error"]
    return answer["result"]
