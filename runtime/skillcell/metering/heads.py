"""The ledger's head, told where the ledger's owner can't take it back: a file elsewhere, and the log.

A file of heads has one line for each, `SEQUENCE:HASH TIME`, the hash in hexadecimal digits; only its last line counts,
since a hash covers all before it. Keep the file on another machine's disk or in a store that only grows: whoever can
edit both can make them agree.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from skillcell.core.errors import precondition
from skillcell.metering.records import Head

_TAIL_BYTES = 4096
_LINE = re.compile(r"([0-9]{1,19}):([0-9a-f]{64})(?: [^\n]*)?")


def written(head: Head) -> str:
    """`SEQUENCE:HASH`."""
    return f"{head.sequence}:{head.hash.hex()}"


def read(line: str) -> Head | None:
    """The head of a line; None when it is none, as the half line that a crash leaves."""
    match = _LINE.fullmatch(line.strip())
    return Head(int(match[1]), bytes.fromhex(match[2])) if match else None


@dataclass(frozen=True, slots=True)
class HeadFile:
    """Grows by a line for each head. Blocking; OSError where the disk fails."""

    path: Path

    def last(self) -> Head | None:
        """The newest head; None for no file or an empty one. FAILED_PRECONDITION for a file of something else."""
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - _TAIL_BYTES))
                lines = file.read().decode("ascii", "replace").splitlines()
        except FileNotFoundError:
            return None
        heads = [head for head in map(read, lines) if head is not None]
        if not heads and size:
            raise precondition("HEAD_FILE_INVALID", f"head_file {self.path}: its last lines are no heads of a ledger")
        return heads[-1] if heads else None

    def append(self, head: Head, at: datetime) -> None:
        """Durable when it returns."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            end = os.lseek(descriptor, 0, os.SEEK_END)
            # What a crash cut off must not swallow the line that follows.
            cut = end > 0 and os.pread(descriptor, 1, end - 1) != b"\n"
            os.write(descriptor, f"{chr(10) if cut else ''}{written(head)} {at:%Y-%m-%dT%H:%M:%SZ}\n".encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
