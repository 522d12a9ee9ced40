"""Tells a store that fails (disk full, read-only, gone) from a statement that fails.

The first spoils everybody's work and passes when the disk or server returns; the second is its own caller's alone.
"""

from __future__ import annotations

import sqlite3
from datetime import timedelta

from sqlalchemy.exc import DBAPIError, PendingRollbackError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from skillcell.core.errors import Fault, invalid, precondition, unavailable

_SQLITE_STORAGE = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_READONLY,
    }
)
# Connection, resources (53100 disk full), operator intervention, system error, and a transaction that others aborted.
_SQLSTATE_STORAGE = ("08", "53", "57", "58", "40", "XX")
_SQLSTATE_FORBIDDEN = "42501"
_SQLSTATE_READ_ONLY = "25006"
_SQLSTATE_LOCK_TIMEOUT = "55P03"


def is_storage_failure(error: BaseException) -> bool:
    """Whether the store itself failed, so that nothing else of the same transaction can be trusted either."""
    if isinstance(error, PoolTimeout | PendingRollbackError):
        return True
    if not isinstance(error, DBAPIError):
        return False
    cause = error.orig
    if isinstance(cause, sqlite3.Error):
        code = getattr(cause, "sqlite_errorcode", None)
        return code is not None and code & 0xFF in _SQLITE_STORAGE
    if error.connection_invalidated:
        return True
    state = getattr(cause, "sqlstate", None)
    if state is None:  # psycopg could not even ask: no server, or a broken connection
        return type(cause).__name__ in ("OperationalError", "InterfaceError")
    return state.startswith(_SQLSTATE_STORAGE) or state in (_SQLSTATE_READ_ONLY, _SQLSTATE_LOCK_TIMEOUT)


def refusal(error: ProgrammingError) -> Fault:
    """Why a store can't be opened that answers, or whose URL makes no sense: waiting won't help."""
    state = getattr(error.orig, "sqlstate", None)
    if state is None:
        return invalid("database.url", "has a parameter that PostgreSQL's client doesn't know")
    if state == _SQLSTATE_FORBIDDEN:
        return precondition(
            "STORE_FORBIDDEN",
            "the role of the database's URL may not make or use the tables; as the database's owner: "
            "GRANT CREATE, USAGE ON SCHEMA public TO role",
        )
    return precondition("STORE_FOREIGN", f"the database holds tables that aren't this program's (SQLSTATE {state})")


def ledger_unavailable() -> Fault:
    """What a caller hears; the cause goes to the log, since it may name paths of the host."""
    return unavailable(
        "LEDGER_UNAVAILABLE",
        "the ledger can't be read or written now, so no call is accepted; retry with the same request_id",
        retry_after=timedelta(seconds=1),
    )
