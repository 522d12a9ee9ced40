"""One thread that writes: whatever waits goes into one transaction, and one fsync serves everybody in it.

Each piece of work runs within its own savepoint, so that one's failure leaves the others; when the store itself fails,
all of the transaction fail alike and nothing of it is kept. Nobody is answered before the commit returned.

What a reader could get wrong: deferred work has no caller and no durability of its own. It rides along with a later
transaction, and only its delay running out makes the thread commit for its sake.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.engine.interfaces import DBAPICursor

from skillcell.storage.failures import is_storage_failure, ledger_unavailable

_log = logging.getLogger(__name__)

Work = Callable[[Connection], Any]


@dataclass(frozen=True, slots=True)
class _Job:
    work: Work
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    committed: Callable[[], None] | None = None


@dataclass(slots=True)
class _Result:
    value: Any = None
    error: BaseException | None = None


class GroupCommit:
    """Runs work on the writer's connection. `submit` and `defer` may be called from any thread."""

    def __init__(self, engine: Engine, max_batch: int) -> None:
        self._engine = engine
        self._max_batch = max_batch
        self._jobs: deque[_Job] = deque()
        self._deferred: dict[Hashable, tuple[float, Work]] = {}
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._serve, name="skillcell-writer", daemon=True)
        self.healthy = True
        """Whether the last transaction was committed."""
        self.commits = 0
        """Transactions committed so far; fewer than the writes in them is what a group commit is for."""
        self._thread.start()

    def submit(
        self, work: Work, loop: asyncio.AbstractEventLoop, committed: Callable[[], None] | None = None
    ) -> asyncio.Future[Any]:
        """A future of `loop` that resolves when the work is durable, or with its own or the store's error.

        `committed` is called on the writer's thread once it is durable, before anybody is told; it must be quick.
        """
        job = _Job(work, loop, loop.create_future(), committed)
        with self._wake:
            if self._closing:
                raise ledger_unavailable()
            self._jobs.append(job)
            self._wake.notify()
        return job.future

    def defer(self, key: Hashable, work: Work, delay_seconds: float) -> None:
        """Do `work` some time after `delay_seconds`, unless withdrawn before; the latest work of a key replaces it."""
        with self._wake:
            if not self._closing:
                self._deferred[key] = (time.monotonic() + delay_seconds, work)
                self._wake.notify()

    def withdraw(self, key: Hashable) -> None:
        """Forget deferred work that has not begun."""
        with self._wake:
            self._deferred.pop(key, None)

    def close(self) -> None:
        """Write what was submitted, then end the thread. Blocks; later submissions are refused."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def _serve(self) -> None:
        while True:
            with self._wake:
                while not (self._jobs or self._closing or self._due(time.monotonic())):
                    self._wake.wait(self._until_due())
                if self._closing and not self._jobs:
                    return
                jobs = [self._jobs.popleft() for _ in range(min(len(self._jobs), self._max_batch))]
                due = self._due(time.monotonic())
                deferred = [self._deferred.pop(key)[1] for key in due]
            results = self._commit([job.work for job in jobs] + deferred)
            for job, result in zip(jobs, results, strict=False):
                if job.committed is not None and result.error is None:
                    job.committed()
            for result in results[len(jobs) :]:
                if result.error is not None:
                    _log.error("deferred write failed", exc_info=result.error)
            _answer(jobs, results)

    def _due(self, now: float) -> list[Hashable]:
        return [key for key, (when, _) in self._deferred.items() if when <= now]

    def _until_due(self) -> float | None:
        if not self._deferred:
            return None
        return max(0.0, min(when for when, _ in self._deferred.values()) - time.monotonic())

    def _commit(self, batch: list[Work]) -> list[_Result]:
        try:
            with self._engine.connect() as connection, connection.begin():
                # The driver's own cursor: a savepoint has nothing to compile, and everybody pays for two statements.
                cursor = connection.connection.cursor()
                results = [_within_savepoint(connection, cursor, work) for work in batch]
                cursor.close()
        except Exception:  # noqa: BLE001 - logged; the thread must outlive any failure of the store
            if self.healthy:
                _log.exception("the store failed")
            else:
                _log.warning("the store still fails")
            self.healthy = False
            # A connection that saw a disk fail may hold half a state; the next transaction opens a new one.
            self._engine.dispose()
            return [_Result(error=ledger_unavailable()) for _ in batch]
        self.healthy = True
        self.commits += 1
        return results


def _within_savepoint(connection: Connection, cursor: DBAPICursor, work: Work) -> _Result:
    cursor.execute("SAVEPOINT work")
    try:
        value = work(connection)
    except Exception as error:  # not swallowed: it goes to the caller whose work this is
        if is_storage_failure(error):
            raise
        cursor.execute("ROLLBACK TO SAVEPOINT work")
        cursor.execute("RELEASE SAVEPOINT work")
        return _Result(error=error)
    cursor.execute("RELEASE SAVEPOINT work")
    return _Result(value)


def _answer(jobs: list[_Job], results: list[_Result]) -> None:
    """One wake-up per event loop, however many wait on it."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Job, _Result]]] = {}
    for job, result in zip(jobs, results, strict=False):
        by_loop.setdefault(job.loop, []).append((job, result))
    for loop, answers in by_loop.items():
        try:
            loop.call_soon_threadsafe(_resolve, answers)
        except RuntimeError:  # the loop is closed: nobody is left to hear it, and the write stands
            _log.debug("a writer's event loop ended before its answer")


def _resolve(answers: list[tuple[_Job, _Result]]) -> None:
    for job, result in answers:
        if job.future.done():
            continue
        if result.error is not None:
            job.future.set_exception(result.error)
        else:
            job.future.set_result(result.value)
