"""Once a second, what all running calls have used so far is noted in the store, in one write.

It is for the day on which gateway and sandbox die together, when no cgroup is left to tell. Nothing is read for it:
the watch on CPU time has looked at each sandbox within the last half second. Calls that end within a moment are never
noted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Protocol

from skillcell.core.clock import Clock
from skillcell.core.records import Checkpoint
from skillcell.core.types import SECOND_NS
from skillcell.live import Execution

_EVERY_SECONDS = 1.0
_LASTING_NS = SECOND_NS // 4


class CheckpointStore(Protocol):
    """Takes what is known of all running calls at once; never waits, never raises."""

    def checkpoint(self, batch: Sequence[Checkpoint]) -> None: ...


async def keep_checkpoints(live: Iterable[Execution], store: CheckpointStore, clock: Clock, boot_id: str) -> None:
    """For ever."""
    while True:
        await asyncio.sleep(_EVERY_SECONDS)
        now_ns = clock.monotonic_ns()
        noted = [checkpoint_of(execution, boot_id, now_ns) for execution in live]
        batch = [checkpoint for checkpoint in noted if checkpoint is not None]
        if batch:
            store.checkpoint(batch)


def checkpoint_of(execution: Execution, boot_id: str, now_ns: int) -> Checkpoint | None:
    """What is known of a call whose entrypoint runs; None of one that does not, or only just does."""
    report, lease, started_at = execution.report, execution.lease, execution.started_at
    if lease is None or started_at is None or execution.run_is_over or not report.began_ns:
        return None
    if now_ns - report.began_ns < _LASTING_NS or report.latest_ns <= report.began_ns:
        return None
    return Checkpoint(
        execution_id=execution.id,
        sandbox_id=lease.sandbox.sandbox_id,
        boot_id=boot_id,
        started_at=started_at,
        began_ns=report.began_ns,
        seen_ns=report.latest_ns,
        queue_ns=lease.queue_ns,
        startup_ns=lease.startup_ns,
        deliver_ns=report.deliver_ns,
        output_bytes=report.output_bytes,
        at_lease=report.before,
        latest=report.latest,
    )
