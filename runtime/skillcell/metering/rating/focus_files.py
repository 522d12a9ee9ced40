"""FOCUS rows as files: CSV, and Parquet where pyarrow is installed (`pip install 'skillcell[export]'`).

Numbers in CSV always have a point, `3.0`: a reader that guesses types takes a column of whole numbers for integers,
which FOCUS' decimals are not. Null is an empty field.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from datetime import datetime
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from skillcell.core.decimals import decimal_text
from skillcell.core.errors import precondition
from skillcell.metering.rating.focus_columns import COLUMNS, NAMES, Column, Kind
from skillcell.metering.rating.money import rounded

_BATCH = 10_000


def write_focus_csv(rows: Iterable[Mapping[str, object]], out: TextIO) -> int:
    """Header and rows into a file opened with `newline=""`. Returns how many rows."""
    writer = csv.writer(out, lineterminator="\r\n")  # RFC 4180
    writer.writerow(NAMES)
    count = 0
    for row in rows:
        writer.writerow([_text(row[name]) for name in NAMES])
        count += 1
    return count


def _text(value: object) -> str:
    if isinstance(value, Decimal):
        text = decimal_text(value)
        return text if "." in text else f"{text}.0"
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%dT%H:%M:%SZ")
    return "" if value is None else str(value)


def write_focus_parquet(rows: Iterable[Mapping[str, object]], path: Path) -> int:
    """A Parquet file: decimals as decimal128, times as UTC timestamps. Returns how many rows.

    FAILED_PRECONDITION where pyarrow isn't installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise precondition(
            "WRONG_STATE", "Parquet needs the package pyarrow: pip install 'skillcell[export]', or export as CSV"
        ) from error
    schema = pyarrow.schema([_field(pyarrow, column) for column in COLUMNS])
    remaining = iter(rows)
    count = 0
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        while batch := list(islice(remaining, _BATCH)):
            columns = [[_scaled(row[column.name], column) for row in batch] for column in COLUMNS]
            arrays = [pyarrow.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
            writer.write_table(pyarrow.Table.from_arrays(arrays, schema=schema))
            count += len(batch)
    return count


def _field(pyarrow: Any, column: Column) -> Any:
    if column.kind is Kind.TEXT:
        of_type = pyarrow.string()
    elif column.kind is Kind.TIME:
        of_type = pyarrow.timestamp("s", tz="UTC")
    else:
        of_type = pyarrow.decimal128(38, column.kind.value)
    return pyarrow.field(column.name, of_type, nullable=column.nullable)


def _scaled(value: object, column: Column) -> object:
    """A decimal with exactly the places of its column, which pyarrow wants."""
    return rounded(value, column.kind.value) if isinstance(value, Decimal) else value
