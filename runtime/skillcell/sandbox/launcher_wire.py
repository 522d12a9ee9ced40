"""Messages between gateway and launcher: one SOCK_SEQPACKET record each, JSON, then perhaps raw bytes and descriptors.

    request   {"id", "op": "create", "sandbox", "limits", "ids", "argv", "join", "root", "packages", "locked",
              "layers"} and config.json, with three descriptors: the agent's stdin, stdout and stderr
    request   {"id", "op": "kill" | "destroy", "sandbox"}
    reply     {"id", ...}, or {"id", "fault": {"kind", "reason", "message"}}; reply 0 comes unasked, when it is ready

The launcher believes its gateway: both are the same program with the same rights. Nothing from a sandbox travels here.
"""

from __future__ import annotations

import array
import hashlib
import json
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RECORD_BYTES = 1 << 20
MAX_DESCRIPTORS = 4


def pack(header: dict[str, Any], body: bytes = b"") -> bytes:
    """One record."""
    return json.dumps(header, separators=(",", ":")).encode() + b"\n" + body


def unpack(record: bytes) -> tuple[dict[str, Any], bytes]:
    """The header and the raw bytes of a record."""
    head, _, body = record.partition(b"\n")
    return json.loads(head), body


def send(sock: socket.socket, record: bytes, descriptors: Sequence[int] = ()) -> None:
    """Send one record whole."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    sock.sendmsg([record], rights)


def receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    """One record and its descriptors (close-on-exec); b"" when the other side is gone."""
    record, descriptors, _flags, _address = socket.recv_fds(
        sock, RECORD_BYTES, MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
    )
    return record, list(descriptors)


def tree_name(path: Path) -> str:
    """Where below `trees/` the launcher binds a directory of the host: a name that follows from the path alone."""
    return hashlib.sha256(str(path).encode()).hexdigest()[:24]
