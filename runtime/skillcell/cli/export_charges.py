"""Charges as a FOCUS 1.2 dataset: CSV, or Parquet where the file's name ends so."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import IO, Any

from skillcell.metering.rating.focus_columns import COLUMNS, Column, Kind
from skillcell.metering.rating.focus_files import write_focus_csv, write_focus_parquet

_BATCH = 500


async def write_charges(rows: AsyncGenerator[Mapping[str, str], None], out: IO[bytes], *, parquet: bool) -> int:
    """Writes as they come, on a thread that waits for them; how many. Raises Fault where pyarrow isn't installed."""
    loop = asyncio.get_running_loop()
    async with aclosing(rows):

        def came() -> Iterator[Mapping[str, object]]:
            while batch := asyncio.run_coroutine_threadsafe(_take(rows), loop).result():
                yield from batch

        if parquet:
            return await asyncio.to_thread(write_focus_parquet, came(), Path(out.name))
        text = io.TextIOWrapper(out, encoding="utf-8", newline="")
        try:
            return await asyncio.to_thread(write_focus_csv, came(), text)
        finally:
            text.detach()  # flushes, and leaves the file its owner's to close


async def _take(rows: AsyncGenerator[Mapping[str, str], None]) -> list[Mapping[str, object]]:
    found: list[Mapping[str, object]] = []
    async for row in rows:
        found.append({column.name: _value(column, row) for column in COLUMNS})
        if len(found) == _BATCH:
            break
    return found


def _value(column: Column, row: Mapping[str, str]) -> Any:
    text = row.get(column.name)
    if text is None or column.kind is Kind.TEXT:
        return text
    return datetime.fromisoformat(text) if column.kind is Kind.TIME else Decimal(text)
