"""What running calls have used so far, as the store keeps it: functions of a Connection, as in `settling.py`.

A batch that was deferred may come after the settlement of one of its calls: it must not bring that row back.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, Row, bindparam, delete, insert, select

from skillcell.core.records import Checkpoint
from skillcell.core.types import Counters, Measurement
from skillcell.storage.tables import executions, unsettled
from skillcell.storage.tables_running import running

_OPEN = select(executions.c.id).where(executions.c.id.in_(bindparam("ids", expanding=True)), unsettled)
_FORGET = delete(running).where(running.c.execution_id.in_(bindparam("ids", expanding=True)))
_KEEP = insert(running)
_ERASE = delete(running).where(running.c.execution_id == bindparam("of_id"))
_OF_INSTANCE = (
    select(running)
    .join(executions, executions.c.id == running.c.execution_id)
    .where(executions.c.instance_id == bindparam("of_instance"), unsettled)
)


def keep(connection: Connection, batch: Sequence[Checkpoint]) -> None:
    """Replaces what was known of these calls, but for those that have been settled."""
    left = set(connection.execute(_OPEN, {"ids": [checkpoint.execution_id for checkpoint in batch]}).scalars())
    if left:
        connection.execute(_FORGET, {"ids": list(left)})
        connection.execute(_KEEP, [_values(checkpoint) for checkpoint in batch if checkpoint.execution_id in left])


def erase(connection: Connection, execution_id: str) -> None:
    """Part of a settlement."""
    connection.execute(_ERASE, {"of_id": execution_id})


def of_instance(connection: Connection, instance_id: str) -> dict[str, Checkpoint]:
    """The last of each open execution of a gateway, by execution."""
    found = connection.execute(_OF_INSTANCE, {"of_instance": instance_id})
    return {row.execution_id: _checkpoint(row) for row in found}


def _values(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "execution_id": checkpoint.execution_id,
        "sandbox_id": checkpoint.sandbox_id,
        "boot_id": checkpoint.boot_id,
        "started_at": checkpoint.started_at,
        "began_ns": checkpoint.began_ns,
        "seen_ns": checkpoint.seen_ns,
        "queue_ns": checkpoint.queue_ns,
        "startup_ns": checkpoint.startup_ns,
        "deliver_ns": checkpoint.deliver_ns,
        "output_bytes": checkpoint.output_bytes,
        "at_lease": _text(checkpoint.at_lease),
        "latest": _text(checkpoint.latest),
    }


def _checkpoint(row: Row[Any]) -> Checkpoint:
    values = dict(row._mapping)
    return Checkpoint(**values | {name: _counters(values[name]) for name in ("at_lease", "latest")})


def _text(counters: Counters) -> str:
    return json.dumps(asdict(counters) | {"measurement": counters.measurement.value}, sort_keys=True)


def _counters(text: str) -> Counters:
    values = json.loads(text)
    return Counters(**values | {"measurement": Measurement(values["measurement"])})
