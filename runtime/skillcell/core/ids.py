"""Identifiers: time-ordered, readable, safe as file, cgroup and container names."""

from __future__ import annotations

import os
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32, lower case


def new_id(prefix: str) -> str:
    """`prefix` + `_` + 26 characters: 48 bits of milliseconds, then 80 random bits (the ULID layout), lower case."""
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10))
    return f"{prefix}_" + "".join(_ALPHABET[(value >> shift) & 31] for shift in range(125, -1, -5))


def execution_id() -> str:
    """Names one call."""
    return new_id("exe")


def sandbox_id() -> str:
    """Names one sandbox; its cgroup, container and directories carry it."""
    return new_id("sbx")


def event_id() -> str:
    """Names one usage record for ever; de-duplication at a sink rests on it."""
    return new_id("evt")
