"""Records as files: exact in every format, whole or not there, bounded in memory."""

from __future__ import annotations

import io
import json
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import IO

import pyarrow
import pyarrow.parquet
import pytest

from ledger_stores import NOON, admission, ending
from skillcell.cli.export_files import ROW_GROUP, CloudEvents, JsonLines, Parquet, whole_file
from skillcell.core.types import StageTimes, UsageRecord
from skillcell.metering.canonical import FIELDS, GENESIS, canonical, chain_hash, parse
from skillcell.metering.export.events import Envelope, event_of
from skillcell.metering.usage import usage_record

HUGE = (1 << 64) + 1


def record(sequence: int = 1, **changes: object) -> UsageRecord:
    made = usage_record(admission(labels={"team": "röd"}), ending(event_id=f"evt_{sequence}"))
    made = replace(made, sequence=sequence, previous_hash=GENESIS, **changes)
    return replace(made, hash=chain_hash(GENESIS, canonical(made)))


def test_json_lines_hold_exact_integers_labels_and_what_the_chain_needs() -> None:
    out = io.BytesIO()
    writer = JsonLines(out)
    given = [record(1), record(2, memory_limit_byte_ns=HUGE, times=StageTimes(run_ns=HUGE))]
    for one in given:
        writer.add(one)
    writer.finish()
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert (lines[1]["memory_limit_byte_ns"], lines[1]["run_ns"]) == (HUGE, HUGE)
    for line, one in zip(lines, given, strict=True):
        assert line["labels"] == {"team": "röd"}
        document = {name: line[name] for name in FIELDS[1]}
        body = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
        assert parse(body).event_id == one.event_id
        assert chain_hash(bytes.fromhex(line["previous_hash"]), body).hex() == line["hash"]


def test_lines_of_events_are_the_bytes_that_sinks_get() -> None:
    out = io.BytesIO()
    writer = CloudEvents(out, Envelope("/ledger"))
    one = record()
    writer.add(one)
    writer.finish()
    assert out.getvalue() == event_of(canonical(one), one.previous_hash, one.hash, Envelope("/ledger")).body + b"\n"


def test_parquet_has_a_typed_column_for_every_field(tmp_path: Path) -> None:
    path = tmp_path / "usage.parquet"
    never_ran = record(2, started_at=None, exit_code=None, memory_limit_byte_ns=HUGE)
    with whole_file(path) as out:
        writer = Parquet(out)
        writer.add(record(1))
        writer.add(never_ran)
        writer.finish()
    table = pyarrow.parquet.read_table(path)
    assert set(table.column_names) == {*FIELDS[1], "hash", "previous_hash", "labels"}
    first, second = table.to_pylist()
    assert (first["ended_at"], first["labels"], first["outcome"]) == (ending().ended_at, [("team", "röd")], "SUCCEEDED")
    assert (second["memory_limit_byte_ns"], second["started_at"], second["exit_code"]) == (HUGE, None, None)
    assert second["hash"] == never_ran.hash
    assert str(table.schema.field("admitted_at").type) == "timestamp[us, tz=UTC]"
    assert first["admitted_at"] == NOON
    metadata = pyarrow.parquet.ParquetFile(path).metadata
    assert metadata.row_group(0).column(0).compression == "ZSTD"


def half_written(out: IO[bytes]) -> None:
    writer = JsonLines(out)
    writer.add(record())
    writer.add(replace(record(7), billed_ms=0))


@pytest.mark.parametrize("form", [JsonLines, Parquet])
def test_no_records_make_a_file_that_can_be_read(form: type, tmp_path: Path) -> None:
    with whole_file(tmp_path / "none") as out:
        form(out).finish()
    if form is Parquet:
        assert pyarrow.parquet.read_table(tmp_path / "none").num_rows == 0
    else:
        assert (tmp_path / "none").read_bytes() == b""


def test_a_record_that_is_not_what_was_hashed_ends_the_export() -> None:
    for form in (JsonLines(io.BytesIO()), CloudEvents(io.BytesIO(), Envelope("/")), Parquet(io.BytesIO())):
        with pytest.raises(ValueError, match="record 7 is not what was hashed"):
            form.add(replace(record(7), billed_ms=0))


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "usage.jsonl"
    path.write_bytes(b"before")
    with pytest.raises(ValueError, match="record 7"), whole_file(path) as out:
        half_written(out)
    assert [(one.name, one.read_bytes()) for one in tmp_path.iterdir()] == [("usage.jsonl", b"before")]
    with whole_file(path) as out:
        out.write(b"after")
    assert [(one.name, one.read_bytes()) for one in tmp_path.iterdir()] == [("usage.jsonl", b"after")]


def test_memory_does_not_grow_with_the_number_of_records(tmp_path: Path) -> None:
    one, groups = record(), []
    with whole_file(tmp_path / "many.parquet") as out:
        writer = Parquet(out)
        tracemalloc.start()
        try:
            for _ in range(3):
                tracemalloc.reset_peak()
                for _ in range(ROW_GROUP):
                    writer.add(one)
                groups.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        writer.finish()
    assert max(groups[1:]) < 1.2 * groups[0]
    assert pyarrow.parquet.ParquetFile(tmp_path / "many.parquet").metadata.num_row_groups == 3
