"""Usage records as files: JSON Lines, lines of CloudEvents, Parquet. Memory stays bounded however many there are.

A file appears under its name when it is whole and on the disk, or not at all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from decimal import Decimal
from pathlib import Path
from typing import IO, Any, Protocol

from skillcell.core.types import UsageRecord
from skillcell.metering.canonical import FIELDS, SCHEMA_VERSION, TIMES, canonical, chain_hash
from skillcell.metering.export.events import Envelope, event_of

ROW_GROUP = 10_000
_INSTANTS = frozenset({"admitted_at", "started_at", "ended_at"})
_TEXTS = frozenset({
    "correction_of", "digest", "driver", "entrypoint", "event_id", "execution_id", "fault", "isolation", "measurement",
    "outcome", "parent_id", "plan_version", "publisher", "request_id", "root_id", "session_id", "skill", "tenant",
    "version",
})  # fmt: skip
_NULLABLE = frozenset({"exit_code", "started_at"})


class RecordWriter(Protocol):
    """Takes records one by one, in the ledger's order."""

    def add(self, record: UsageRecord) -> None:
        """ValueError for a record whose hash does not follow from it."""
        ...

    def finish(self) -> None:
        """Writes what is still held back."""
        ...


class JsonLines:
    """One record a line: the chained fields, hashes and labels. Integers are exact, however large they are."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out

    def add(self, record: UsageRecord) -> None:
        document = json.loads(_chained(record)) | {
            "hash": record.hash.hex(),
            "labels": dict(record.labels),
            "previous_hash": record.previous_hash.hex(),
        }
        line = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        self._out.write(line.encode() + b"\n")

    def finish(self) -> None:
        self._out.flush()


class CloudEvents:
    """One event a line, in the bytes that sinks get."""

    def __init__(self, out: IO[bytes], envelope: Envelope) -> None:
        self._out = out
        self._envelope = envelope

    def add(self, record: UsageRecord) -> None:
        event = event_of(_chained(record), record.previous_hash, record.hash, self._envelope)
        self._out.write(event.body + b"\n")

    def finish(self) -> None:
        self._out.flush()


class Parquet:
    """A column for each chained field, hashes and labels: times as UTC microseconds, byte-nanoseconds as decimal128.

    Raises ImportError where pyarrow isn't installed.
    """

    def __init__(self, out: IO[bytes]) -> None:
        import pyarrow
        import pyarrow.parquet

        self._arrow = pyarrow
        self._schema = _schema(pyarrow)
        self._writer = pyarrow.parquet.ParquetWriter(out, self._schema, compression="zstd")
        self._rows: list[dict[str, Any]] = []

    def add(self, record: UsageRecord) -> None:
        _chained(record)
        row = {name: getattr(record.times if name in TIMES else record, name) for name in FIELDS[SCHEMA_VERSION]}
        self._rows.append({
            **{name: _column(name, value) for name, value in row.items()},
            "hash": record.hash,
            "labels": sorted(record.labels.items()),
            "previous_hash": record.previous_hash,
        })  # fmt: skip
        if len(self._rows) == ROW_GROUP:
            self._write()

    def finish(self) -> None:
        if self._rows:
            self._write()
        self._writer.close()

    def _write(self) -> None:
        table = self._arrow.Table.from_pylist(self._rows, schema=self._schema)
        self._writer.write_table(table, row_group_size=ROW_GROUP)
        self._rows.clear()


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes its name when the block ends well, durably; else it is gone. OSError where it can't be."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with draft.open("xb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        draft.replace(path)
    except BaseException:
        with suppress(OSError):
            draft.unlink()
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _chained(record: UsageRecord) -> bytes:
    body = canonical(record)
    if chain_hash(record.previous_hash, body) != record.hash:
        raise ValueError(f"record {record.sequence} is not what was hashed; look at it with: skillcell usage verify")
    return body


def _schema(pyarrow: Any) -> Any:
    names = sorted((*FIELDS[SCHEMA_VERSION], "hash", "labels", "previous_hash"))
    return pyarrow.schema([pyarrow.field(name, _type(pyarrow, name), nullable=name in _NULLABLE) for name in names])


def _type(pyarrow: Any, name: str) -> Any:
    if name in _INSTANTS:
        return pyarrow.timestamp("us", tz="UTC")
    if name in _TEXTS:
        return pyarrow.string()
    if name in ("hash", "previous_hash"):
        return pyarrow.binary(32)
    if name == "labels":
        return pyarrow.map_(pyarrow.string(), pyarrow.string())
    if name in ("billable", "warm"):
        return pyarrow.bool_()
    # Ten seconds of a GiB pass 63 bits.
    return pyarrow.decimal128(38, 0) if name.endswith("_byte_ns") else pyarrow.int64()


def _column(name: str, value: Any) -> Any:
    if name.endswith("_byte_ns"):
        return Decimal(value)
    return value.value if name in _TEXTS and not isinstance(value, str) else value
