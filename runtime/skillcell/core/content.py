"""Bytes that a call is given: at hand, or in a file of the gateway's that is too large to be held in memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class StoredContent:
    """A file that nobody changes, and that stays for as long as the one who holds this needs it."""

    path: Path
    size_bytes: int


Content = bytes | StoredContent


def size_of(content: Content) -> int:
    """How many bytes it is."""
    return len(content) if isinstance(content, bytes) else content.size_bytes
