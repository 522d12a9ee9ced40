"""What `doctor` says of the store."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from skillcell.core.errors import Fault
from skillcell.local import DataDirectory
from skillcell.sandbox.driver import Check
from skillcell.settings import Settings
from skillcell.storage.diagnosis import StoreFacts, look
from skillcell.storage.migrate import newest_revision, revisions

_OLDEST = 120000
_CLOCK_SECONDS = 5.0


async def check_store(settings: Settings, data: DataDirectory) -> Sequence[Check]:
    """Never raises."""
    if not settings.database or settings.database.startswith("sqlite"):
        return (Check("database", True, f"SQLite in {data.path}" if not settings.database else "SQLite"),)
    try:
        facts = await asyncio.to_thread(look, settings.database)
    except Fault as fault:
        return (
            Check(
                "database",
                False,
                "PostgreSQL can't be asked" if fault.reason == "LEDGER_UNAVAILABLE" else fault.message,
                "start it; check host, role and password in SKILLCELL_DATABASE, and pg_hba.conf there",
            ),
        )
    return checks_of(facts)


def checks_of(facts: StoreFacts) -> Sequence[Check]:
    """Pure."""
    old, skew = facts.version_number < _OLDEST, abs(facts.ahead_seconds)
    schema, fix = f"at {facts.revision or 'nothing yet'}, {newest_revision()} is due", ""
    if facts.revision and facts.revision not in revisions():
        schema, fix = f"at {facts.revision}, unknown to this version", "run the version that wrote it"
    elif facts.replica:
        schema, fix = "a standby, which takes no writes", "name the primary in SKILLCELL_DATABASE"
    elif facts.revision != newest_revision() and not facts.may_create:
        fix = "as the database's owner: GRANT CREATE, USAGE ON SCHEMA public TO role"
    return (
        Check("database", not old, f"PostgreSQL {facts.version}", "upgrade to PostgreSQL 12 or newer" if old else ""),
        Check("database schema", not fix, schema, fix),
        Check(
            "database clock",
            skew <= _CLOCK_SECONDS,
            f"{facts.ahead_seconds:+.3f} s from this machine's",
            "synchronise both clocks (chrony, systemd-timesyncd)" if skew > _CLOCK_SECONDS else "",
        ),
    )
