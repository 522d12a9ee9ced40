"""Alembic's entry: runs on the connection and in the transaction of whoever called, see `storage/migrate.py`."""

from __future__ import annotations

from alembic import context

from skillcell.storage import schema

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=schema.metadata,
    render_as_batch=True,
    compare_type=True,
)
with context.begin_transaction():
    context.run_migrations()
