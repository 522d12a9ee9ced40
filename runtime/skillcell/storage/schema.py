"""All tables of the store together: import this, not `metadata` alone, where the whole schema matters."""

from __future__ import annotations

from skillcell.storage import (
    tables,
    tables_billing,
    tables_export,
    tables_registry,
    tables_running,
    tables_soundness,
    tables_uploads,
)
from skillcell.storage.metadata import metadata

__all__ = [
    "metadata",
    "tables",
    "tables_billing",
    "tables_export",
    "tables_registry",
    "tables_running",
    "tables_soundness",
    "tables_uploads",
]
