"""What `doctor` asks of a PostgreSQL before a gateway uses it. Only looks: nothing is made, nothing migrated."""

from __future__ import annotations

import time
from dataclasses import dataclass

from alembic.runtime.migration import MigrationContext
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError, SQLAlchemyError

from skillcell.storage.engines import make_engines
from skillcell.storage.failures import ledger_unavailable, refusal

_ASK = text(
    "SELECT current_setting('server_version_num')::int, current_setting('server_version'), "
    "coalesce(has_schema_privilege(current_schema(), 'CREATE'), false), "
    "extract(epoch FROM clock_timestamp()), pg_is_in_recovery()"
)


@dataclass(frozen=True, slots=True)
class StoreFacts:
    """A server that answered."""

    version_number: int
    """As `server_version_num`: 150018 is 15.18."""
    version: str
    may_create: bool
    replica: bool
    """A standby, which takes no writes."""
    revision: str
    """Schema that is there; empty before the first start."""
    ahead_seconds: float
    """Its clock less ours, to about half a round trip."""


def look(url: str) -> StoreFacts:
    """Blocking. Raises Fault: UNAVAILABLE when nobody answers, INVALID_ARGUMENT for a URL that makes no sense."""
    engines = make_engines(url, 1)
    try:
        with engines.reader.begin() as connection:
            before = time.time()
            number, version, may_create, epoch, replica = connection.execute(_ASK).one()
            ours = (before + time.time()) / 2
            revision = MigrationContext.configure(connection).get_current_revision() or ""
    except ProgrammingError as error:
        raise refusal(error) from None
    except SQLAlchemyError:
        raise ledger_unavailable() from None
    finally:
        engines.dispose()
    return StoreFacts(number, version, may_create, replica, revision, float(epoch) - ours)
