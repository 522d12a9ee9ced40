"""The wire between gateway and agent: typed, length-prefixed frames over one two-way byte channel.

A frame is one byte of type, four bytes of big-endian length, and that many bytes of payload; JSON payloads are UTF-8
objects. Both sides import this module (the agent finds it beside itself in the sandbox), so it uses the standard
library alone. The gateway believes nothing in a frame but its form: sizes are capped here by type, and what a frame
claims is the Skill's own claim. The order of one call:

    agent    HELLO                       as soon as it can take a job (a warm sandbox waits here)
    gateway  JOB, (FILE, DATA*)*, RUN    deliver everything, then start; STDIN*, STDIN_EOF, SIGNAL may follow any time
    agent    STARTED                     the entrypoint's process exists
    agent    STDOUT | STDERR | EVENT     live, in the order read
    agent    EXITED                      main process ended, every other process killed, pipes drained
    agent    RESULT?                     bytes of /output/result.json, when there is one
    agent    (ARTIFACT, DATA*, ARTIFACT_END)* | ARTIFACT_REFUSED*
    agent    DONE                        nothing follows until the next JOB (sessions)

    agent    FAILED                      instead of STARTED, when the job could not be set up; payload says why

JOB (JSON): see `JOB_KEYS`. FILE (JSON): root (`workspace` | `input` | `skill` | `home`), name, mode (int), size
(bytes that follow as DATA). EXITED (JSON): code (int or null), signal (int or null), disk: {target: {bytes_used,
bytes_limit, files_used, files_limit}} as statvfs shows them. ARTIFACT (JSON): name, size. ARTIFACT_REFUSED (JSON):
name, reason. HELLO (JSON): protocol, python. SIGNAL (JSON): signal (int). FAILED (JSON): message, disk (as in EXITED).

EVENT carries one JSON object that the Skill wrote to the file named by SKILLCELL_EVENTS, one per line there:
{"type": "log", "level", "message", "fields"}, {"type": "progress", "fraction", "message"}, {"type": "output", "value"}.
"""

from __future__ import annotations

import json
import struct

PROTOCOL = 1
HEADER = struct.Struct(">BI")

JOB = 1
FILE = 2
DATA = 3
RUN = 4
STDIN = 5
STDIN_EOF = 6
SIGNAL = 7

HELLO = 64
STARTED = 65
STDOUT = 66
STDERR = 67
EVENT = 68
EXITED = 69
RESULT = 70
ARTIFACT = 71
ARTIFACT_END = 72
ARTIFACT_REFUSED = 73
DONE = 74
FAILED = 75

CHUNK_BYTES = 256 * 1024
"""The most that one STDOUT, STDERR, STDIN or DATA frame carries."""
VALUE_BYTES = 8 * 1024 * 1024
"""The most that one EVENT, RESULT or JOB frame carries; a longer line or result is refused where it is read."""
CONTROL_BYTES = 64 * 1024
"""The most that any other frame carries."""

_MAXIMUM = {
    JOB: VALUE_BYTES,
    EVENT: VALUE_BYTES,
    RESULT: VALUE_BYTES,
    DATA: CHUNK_BYTES,
    STDIN: CHUNK_BYTES,
    STDOUT: CHUNK_BYTES,
    STDERR: CHUNK_BYTES,
}
_TYPES = frozenset({JOB, FILE, DATA, RUN, STDIN, STDIN_EOF, SIGNAL, *range(HELLO, FAILED + 1)})

JOB_KEYS = {
    "kind": "python-script | python-function | node-function | exec",
    "argv": "list of str: for exec the whole argv; for scripts and functions what follows the script (sys.argv[1:])",
    "script": "str: absolute path of the script or of the file that holds the function",
    "function": "str: name of the function, for the function kinds",
    "env": "dict of str: the whole environment of the Skill, nothing is added",
    "cwd": "str: working directory",
    "copy_skill": "bool: copy /skill into the working directory before delivering files (workingDir: skill)",
    "stdin": "bool: stdin comes as STDIN frames; else it is empty",
    "rlimits": "dict of str to int: nofile, fsize, core, nproc, cpu (seconds); soft = hard",
    "collect": "list of str: globs relative to cwd whose new or changed regular files become artifacts",
    "artifact_bytes": "int: stop sending artifacts past this many bytes",
    "artifact_count": "int: stop sending artifacts past this many files",
    "deadline_ns": "int: nanoseconds the call has, for the function's context",
}
"""What a JOB holds; all keys are always present."""


class FrameError(Exception):
    """The other side broke the protocol; the channel can't be used further."""


def encode(kind: int, payload: bytes = b"") -> bytes:
    """One frame as bytes. Raises FrameError when the payload is longer than its type allows."""
    if len(payload) > maximum(kind):
        raise FrameError(f"frame type {kind} of {len(payload)} bytes is over its limit of {maximum(kind)}")
    return HEADER.pack(kind, len(payload)) + payload


def encode_json(kind: int, value: object) -> bytes:
    """One frame with a JSON payload."""
    return encode(kind, json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogateescape"))


def maximum(kind: int) -> int:
    """The longest payload that a frame of this type may have, bytes. Raises FrameError for an unknown type."""
    if kind not in _TYPES:
        raise FrameError(f"unknown frame type {kind}")
    return _MAXIMUM.get(kind, CONTROL_BYTES)


def parse_header(header: bytes) -> tuple[int, int]:
    """Type and payload length from HEADER.size bytes, checked. Raises FrameError."""
    kind, length = HEADER.unpack(header)
    if length > maximum(kind):
        raise FrameError(f"frame type {kind} announces {length} bytes, over its limit of {maximum(kind)}")
    return kind, length
