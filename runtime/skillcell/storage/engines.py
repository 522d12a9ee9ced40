"""Makes the two engines of a store, one for the single writer and one for readers, with the promises each keeps.

Writes are one at a time on every database: SQLite by its lock, PostgreSQL by an advisory lock that lasts as long as the
transaction. A chain of hashes is serial anyway, several gateways can't deadlock, and what holds on one holds on both.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError

from skillcell.core.errors import invalid
from skillcell.storage.columns import ExactSum
from skillcell.storage.failures import ledger_unavailable

_BUSY_SECONDS = 5
_WRITER_LOCK = 0x534B494C4C
"""PostgreSQL advisory lock of whoever writes; any constant will do, as long as it never changes."""


@dataclass(frozen=True, slots=True)
class Engines:
    """`writer` has one connection, and its transactions exclude all other writers; `reader` can't write."""

    writer: Engine
    reader: Engine

    def dispose(self) -> None:
        self.writer.dispose()
        self.reader.dispose()


def make_engines(url: str, readers: int) -> Engines:
    """Of `sqlite:///PATH` or `postgresql://…`; else INVALID_ARGUMENT. Makes a missing SQLite file, mode 0600."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # their texts quote pieces of the URL, of which one may be the password
        raise invalid("database.url", "is not a URL such as sqlite:///PATH or postgresql://HOST/NAME") from None
    backend = parsed.get_backend_name()
    if backend == "sqlite":
        return _sqlite(parsed, readers)
    if backend == "postgresql":
        return _postgresql(parsed.set(drivername="postgresql+psycopg"), readers)
    raise invalid("database.url", f"names {backend!r}; sqlite and postgresql are supported")


def _sqlite(url: URL, readers: int) -> Engines:
    if not url.database or url.database == ":memory:":
        raise invalid("database.url", "needs a file: a ledger in memory would not survive its process")
    _create_private(Path(url.database))
    arguments = {"timeout": _BUSY_SECONDS, "check_same_thread": False}
    writer = _engine(url, 1, arguments)
    reader = _engine(url, readers, arguments)

    @event.listens_for(writer, "connect")
    def _writer_connects(connection: Any, _record: object) -> None:
        _pragmas(connection, "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON")

    @event.listens_for(reader, "connect")
    def _reader_connects(connection: Any, _record: object) -> None:
        _pragmas(connection, "query_only=ON")
        connection.create_aggregate("exact_sum", 1, ExactSum)

    # sqlite3 would begin transactions by its own, older rules; these are ours.
    @event.listens_for(writer, "begin")
    def _writer_begins(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    @event.listens_for(reader, "begin")
    def _reader_begins(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    return Engines(writer, reader)


def _engine(url: URL, connections: int, arguments: dict[str, Any], *, ping: bool = False) -> Engine:
    """`ping` looks whether a pooled connection outlived the server. Errors never show callers' values."""
    return create_engine(
        url,
        pool_size=connections,
        max_overflow=0,
        pool_timeout=30,
        pool_pre_ping=ping,
        connect_args=arguments,
        hide_parameters=True,
    )


def _pragmas(connection: Any, *pragmas: str) -> None:
    connection.isolation_level = None
    for pragma in pragmas:
        connection.execute(f"PRAGMA {pragma}").close()


def _create_private(path: Path) -> None:
    """SQLite gives its -wal and -shm files the mode of the database, so this is the one place that decides it."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise ledger_unavailable() from error


def _postgresql(url: URL, readers: int) -> Engines:
    session = "-c statement_timeout=60s -c idle_in_transaction_session_timeout=60s -c timezone=UTC"
    given = url.query.get("options", "")
    if given:  # the operator's come first, so that ours hold
        session = f"{given if isinstance(given, str) else ' '.join(given)} {session}"
    arguments: dict[str, Any] = {} if "connect_timeout" in url.query else {"connect_timeout": _BUSY_SECONDS}
    # A server that vanished without a word is noticed within seconds, not within TCP's quarter of an hour.
    for name, value in {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}.items():
        arguments |= {name: value} if name not in url.query else {}
    arguments |= {"tcp_user_timeout": 20_000} if "tcp_user_timeout" not in url.query else {}
    arguments |= {"application_name": "skillcell"} if "application_name" not in url.query else {}
    durable = arguments | {"options": f"{session} -c lock_timeout=10s -c synchronous_commit=on"}
    writer = _engine(url, 1, durable)
    snapshot = arguments | {"options": f"{session} -c default_transaction_read_only=on"}
    reader = _engine(url, readers, snapshot, ping=True).execution_options(isolation_level="REPEATABLE READ")

    @event.listens_for(writer, "begin")
    def _writer_begins(connection: Connection) -> None:
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITER_LOCK})")

    return Engines(writer, reader)
