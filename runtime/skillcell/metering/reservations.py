"""What calls that have not ended keep reserved: the limits of the unsettled rows of `executions`, and nothing besides.

There is no counter that could drift: ADMIT makes the row, SETTLE completes it, and in that very transaction what it
reserved is free again, whatever dies before or after.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, select

from skillcell.storage.tables import executions, unsettled

_OPEN = select(executions.c.tenant, executions.c.limits).where(unsettled)


@dataclass(frozen=True, slots=True)
class Reserved:
    """Sums over calls that wait or run."""

    calls: int = 0
    memory_bytes: int = 0
    milli_cpus: int = 0
    cpu_ns: int = 0
    """CPU time that they may still use, at the most."""


def reserved(connection: Connection, tenant: str | None = None) -> Mapping[str, Reserved]:
    """By tenant, of one or of all; a tenant without open calls is not there."""
    query = _OPEN if tenant is None else _OPEN.where(executions.c.tenant == tenant)
    sums: dict[str, Reserved] = {}
    for owner, text in connection.execute(query):
        limits = json.loads(text)
        one = Reserved(1, limits["memory_bytes"], limits["milli_cpus"], limits["cpu_ns"])
        sums[owner] = total((sums.get(owner, Reserved()), one))
    return sums


def total(parts: Iterable[Reserved]) -> Reserved:
    calls = memory_bytes = milli_cpus = cpu_ns = 0
    for part in parts:
        calls += part.calls
        memory_bytes += part.memory_bytes
        milli_cpus += part.milli_cpus
        cpu_ns += part.cpu_ns
    return Reserved(calls, memory_bytes, milli_cpus, cpu_ns)
