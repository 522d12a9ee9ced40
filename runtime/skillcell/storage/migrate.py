"""Brings a store to the schema of this program, in the caller's transaction: all of it or nothing.

A store that a newer program migrated is refused, since writing it with old rules could break what the new ones promise.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from skillcell.core.errors import precondition

_SCRIPTS = Path(__file__).parent / "migrations"


def alembic_config(connection: Connection) -> Config:
    """Alembic's settings, without a file, upon an open connection."""
    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def revisions() -> frozenset[str]:
    """All that this program knows."""
    return frozenset(script.revision for script in _directory().walk_revisions())


def newest_revision() -> str:
    return _directory().get_current_head() or ""


def _directory() -> ScriptDirectory:
    return ScriptDirectory(str(_SCRIPTS))


def migrate(connection: Connection) -> None:
    """Upgrades to the newest revision; does nothing when already there. FAILED_PRECONDITION `STORE_NEWER`."""
    config = alembic_config(connection)
    scripts = ScriptDirectory.from_config(config)
    known = {script.revision for script in scripts.walk_revisions()}
    current = MigrationContext.configure(connection).get_current_heads()
    unknown = sorted(set(current) - known)
    if unknown:
        raise precondition(
            "STORE_NEWER",
            f"the store is at schema {unknown[0]}, unknown to this version; run the one that wrote it",
            revision=unknown[0],
        )
    if set(current) != set(scripts.get_heads()):
        command.upgrade(config, "head")
