"""Values as JSON and as text: dataclasses, times, sizes, tables."""

from __future__ import annotations

import dataclasses
import json
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from enum import Enum
from typing import Any

_EXACT_IN_JSON = 1 << 53


def plain(value: Any) -> Any:
    """What `json` can take. Integers that a reader in doubles would round become text, as in protobuf's JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > _EXACT_IN_JSON:
        return str(value)
    return value


def print_json(value: Any) -> None:
    """One JSON value on stdout, indented for people where they look."""
    text = json_line(plain(value), indent=2 if sys.stdout.isatty() else None)
    sys.stdout.buffer.write(text.encode("utf-8", "replace") + b"\n")
    sys.stdout.buffer.flush()


def json_line(value: Any, *, indent: int | None = None) -> str:
    """JSON that is read by people too: letters as they are, and what could steer a terminal escaped."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    if text.isprintable():
        return text
    return "".join(
        character if character == "\n" or _harmless(character) else json.dumps(character)[1:-1] for character in text
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> None:
    """A table on stdout; without borders, and never cut off where no terminal is."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text(_printable(cell)) for cell in row))
    width = None if sys.stdout.isatty() else 10_000
    console = Console(width=width, highlight=False)
    with console.capture() as capture:
        console.print(made)
    sys.stdout.write("\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n")


def _printable(text: str) -> str:
    """Names and messages come from strangers: what could steer a terminal is shown as an escape, `\\x1b`."""
    if text.isprintable():
        return text
    return "".join(
        character if _harmless(character) else character.encode("unicode_escape").decode() for character in text
    )


def _harmless(character: str) -> bool:
    """Neither a control, nor a change of direction, nor half of a pair; spaces of every script are."""
    return character.isprintable() or unicodedata.category(character) == "Zs"


def printable(text: str) -> str:
    """The same for a line outside a table."""
    return _printable(text)


def duration(nanoseconds: int) -> str:
    """`840 µs`, `12.3 ms`, `4.21 s`, `3 min 5 s`."""
    if nanoseconds < 1_000_000:
        return f"{nanoseconds / 1e3:.0f} µs"
    if nanoseconds < 1_000_000_000:
        return f"{nanoseconds / 1e6:.1f} ms"
    if nanoseconds < 120_000_000_000:
        return f"{nanoseconds / 1e9:.2f} s"
    minutes, rest = divmod(nanoseconds // 1_000_000_000, 60)
    return f"{minutes} min {rest} s"


def size(count: int) -> str:
    """`512 B`, `9.0 MiB`."""
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024:
            break
        value, unit = value / 1024, larger
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"


def when(moment: datetime | None) -> str:
    """Local time, to the second."""
    return "" if moment is None else moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")
