"""The store: blocking SQLAlchemy work, run off the event loop.

`write` answers when the work is durable. Work gets a Connection within a transaction that is not its own: it must not
commit, must be quick, and must touch nothing but the connection. Canceling the await does not undo a write.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from types import TracebackType
from typing import Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection, Engine, insert, update
from sqlalchemy.exc import ProgrammingError, SQLAlchemyError

from skillcell.core.errors import Fault
from skillcell.storage import tables
from skillcell.storage.engines import Engines, make_engines
from skillcell.storage.failures import is_storage_failure, ledger_unavailable, refusal
from skillcell.storage.group_commit import GroupCommit
from skillcell.storage.migrate import migrate

_log = logging.getLogger(__name__)
T = TypeVar("T")


class DatabaseSettings(BaseModel):
    """How a store is used; its URL comes from whoever opens it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    readers: int = Field(
        default=4, ge=1, le=64, description="Reads that may run at once, each a thread and a connection."
    )
    max_waiting: int = Field(
        default=4096, ge=1, description="Writes that may wait; further callers wait before they queue."
    )
    max_batch: int = Field(default=256, ge=1, le=4096, description="Writes in one transaction at the most.")


class Database:
    """`async with await Database.open(url) as database: …`"""

    def __init__(self, engines: Engines, settings: DatabaseSettings) -> None:
        self._engines = engines
        self._writer = GroupCommit(engines.writer, settings.max_batch)
        self._readers = ThreadPoolExecutor(settings.readers, thread_name_prefix="skillcell-reader")
        self._slots = asyncio.Semaphore(settings.max_waiting)
        self._prepared = False

    @classmethod
    def connect(cls, url: str, settings: DatabaseSettings | None = None) -> Self:
        """A store that was not asked yet: until `prepare` has succeeded, all else is LEDGER_UNAVAILABLE."""
        chosen = settings or DatabaseSettings()
        return cls(make_engines(url, chosen.readers), chosen)

    @classmethod
    async def open(cls, url: str, settings: DatabaseSettings | None = None) -> Self:
        """Opens and prepares `sqlite:///PATH` or `postgresql://…`. Raises what `prepare` does."""
        database = cls.connect(url, settings)
        try:
            await database.prepare()
        except BaseException:
            await database.close()
            raise
        return database

    async def prepare(self) -> None:
        """Brings the schema up to date; once it has, nothing more. Several processes may do it at once.

        LEDGER_UNAVAILABLE when it can't be reached or written, FAILED_PRECONDITION `STORE_NEWER` when a newer version
        of the program has migrated it.
        """
        if self._prepared:
            return
        try:
            await asyncio.to_thread(_translated, lambda: _migrate(self._engines.writer))
        except ProgrammingError as error:
            raise refusal(error) from None  # its text may quote the URL
        self._prepared = True

    @property
    def writable(self) -> bool:
        """Whether the last write was committed; `probe` finds out anew."""
        return self._prepared and self._writer.healthy

    @property
    def commits(self) -> int:
        """Transactions committed so far."""
        return self._writer.commits

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Runs `work` in one read-only transaction, so that all it sees is of one moment."""
        self._require_prepared()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._readers, _translated, lambda: self._read(work))

    async def write(self, work: Callable[[Connection], T], committed: Callable[[], None] | None = None) -> T:
        """Runs `work` and returns its result once it is durable; its exception undoes it and it alone.

        `committed` is called as soon as it is durable, on another thread. LEDGER_UNAVAILABLE when the store fails: then
        the write may or may not have been kept.
        """
        self._require_prepared()
        await self._slots.acquire()
        try:
            future = self._writer.submit(work, asyncio.get_running_loop(), committed)
        except BaseException:
            self._slots.release()
            raise
        future.add_done_callback(lambda _: self._slots.release())
        result: T = await asyncio.shield(future)
        return result

    def defer(self, key: Hashable, work: Callable[[Connection], None], delay_seconds: float) -> None:
        """Writes some time after `delay_seconds`, without an answer; a crash may lose it. A key's latest work wins."""
        if self._prepared:
            self._writer.defer(key, work, delay_seconds)

    def withdraw(self, key: Hashable) -> None:
        """Forgets deferred work that has not begun."""
        self._writer.withdraw(key)

    async def probe(self) -> bool:
        """Whether the store takes writes now, found out by writing; this is how `writable` recovers by itself."""

        def touch(connection: Connection) -> None:
            now = datetime.now(UTC)
            touched = connection.execute(update(tables.store_probe).values(probed_at=now))
            if not touched.rowcount:
                connection.execute(insert(tables.store_probe).values(id=1, probed_at=now))

        try:
            await self.write(touch)
        except Fault:
            return False
        return True

    def _require_prepared(self) -> None:
        if not self._prepared:
            raise ledger_unavailable()

    async def close(self) -> None:
        """Writes what waits, then lets go of threads and connections."""
        await asyncio.to_thread(self._writer.close)
        await asyncio.to_thread(self._readers.shutdown)
        self._engines.dispose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def _read(self, work: Callable[[Connection], T]) -> T:
        with self._engines.reader.connect() as connection, connection.begin():
            return work(connection)


def _migrate(engine: Engine) -> None:
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql("SET LOCAL statement_timeout = 0")  # a step over many rows takes its time
        migrate(connection)


def _translated(work: Callable[[], T]) -> T:
    try:
        return work()
    except SQLAlchemyError as error:
        if not is_storage_failure(error):
            raise
        _log.warning("the store failed: %s", error)
        raise ledger_unavailable() from error
