"""Column types that mean the same on every database.

Times are integers because an index over integers sorts and compares alike everywhere, and text times do not. Totals are
decimal digits because byte-nanoseconds leave 64 bits after 17 seconds of one GiB, and SQLite would then silently add in
floats.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import BigInteger, Dialect, Numeric, String
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import GenericFunction
from sqlalchemy.types import TypeDecorator, TypeEngine

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def to_microseconds(when: datetime) -> int:
    """Whole microseconds since 1970 in UTC; a naive time is a bug and raises TypeError."""
    return (when - _EPOCH) // _MICROSECOND


def from_microseconds(value: int) -> datetime:
    return _EPOCH + value * _MICROSECOND


class Instant(TypeDecorator[datetime]):
    """An aware datetime, kept as microseconds since 1970 in UTC."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        return None if value is None else to_microseconds(value)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> datetime | None:
        return None if value is None else from_microseconds(int(value))


class Bytewise(TypeDecorator[str]):
    """Text that sorts by its bytes, as SQLite's does, whatever locale the database was made with.

    Where order means something: SemVer's sort keys need it, and pages by name come in the same order on every store.
    """

    impl = String
    cache_ok = True

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.length = length

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        collation = "C" if dialect.name == "postgresql" else None
        return dialect.type_descriptor(String(self.length, collation=collation))


class Exact(TypeDecorator[int]):
    """An integer without a practical bound. Add in Python, or sum with `exact_sum`: SQLite keeps it as text."""

    impl = String
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "postgresql":
            return dialect.type_descriptor(Numeric(60, 0))
        return dialect.type_descriptor(String(60))

    def process_bind_param(self, value: int | None, dialect: Dialect) -> str | Decimal | None:
        if value is None:
            return None
        return Decimal(value) if dialect.name == "postgresql" else str(value)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> int | None:
        return None if value is None else int(value)


class exact_sum(GenericFunction[int]):
    """`sum` that never rounds and never overflows; `engines.py` gives SQLite the function."""

    type = Exact()
    inherit_cache = True


@compiles(exact_sum, "postgresql")
def _numeric_sum(element: exact_sum, compiler: SQLCompiler, **options: Any) -> str:
    """PostgreSQL's own `sum` over NUMERIC is exact already."""
    return f"sum({compiler.process(element.clauses, **options)})"


class ExactSum:
    """SQLite's side of `exact_sum`, one row at a time."""

    def __init__(self) -> None:
        self._total = 0

    def step(self, value: str | int | None) -> None:
        self._total += int(value or 0)

    def finalize(self) -> str:
        return str(self._total)
