"""A ledger that somebody changed by plain SQL admits nothing, names the row, settles what runs, and comes back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, text

from ledger_stores import BILLER, NOON, admission, settlement
from skillcell.core.corrections import Correction, UsageDelta
from skillcell.core.errors import Fault, FaultKind
from skillcell.metering.auditing import Auditor, AuditSettings
from skillcell.metering.defects import Defect
from skillcell.metering.heads import HeadFile
from skillcell.metering.ledger import Ledger
from skillcell.metering.records import Head
from skillcell.metering.verification import Span
from skillcell.storage.database import Database

OFTEN = AuditSettings(seconds=0.01)


@pytest.fixture
async def ledger(url: str) -> Any:
    async with await Database.open(url) as database:
        opened = Ledger(database)
        for _ in range(5):
            await settle_one(opened)
        yield opened


async def settle_one(ledger: Ledger) -> Head:
    given = admission()
    await ledger.admit(given)
    record = await ledger.settle(settlement(given))
    return Head(record.sequence, record.hash)


async def sql(ledger: Ledger, *statements: str, **values: Any) -> None:
    """By somebody who can write everything."""

    def run(connection: Connection) -> None:
        for statement in statements:
            connection.execute(text(statement), values if ":" in statement else {})

    await ledger._database.write(run)


async def refused(ledger: Ledger) -> tuple[str, str]:
    """Sequence and defect that a new call is refused with."""
    with pytest.raises(Fault) as caught:
        await ledger.admit(admission())
    fault = caught.value
    assert (fault.kind, fault.reason) == (FaultKind.DATA_LOSS, "LEDGER_BROKEN")
    assert f"at record {fault.metadata['sequence']}" in fault.message or fault.metadata["sequence"] == "0"
    assert "acme" not in fault.message
    return fault.metadata["sequence"], fault.metadata["defect"]


@dataclass(frozen=True)
class Attack:
    """`undo` puts the ledger right again."""

    statements: tuple[str, ...]
    found: tuple[Defect, int]
    undo: tuple[str, ...] = ()


KEEP = "CREATE TABLE kept AS SELECT * FROM usage_records"
CUT = "DELETE FROM usage_records WHERE sequence > 3"
HEAD_TOO = (
    "UPDATE ledger_head SET sequence = 3, hash = (SELECT hash FROM usage_records WHERE sequence = 3)",
    "UPDATE ledger_head SET sequence = 5, hash = (SELECT hash FROM kept WHERE sequence = 5)",
)
BACK = "INSERT INTO usage_records SELECT * FROM kept WHERE sequence NOT IN (SELECT sequence FROM usage_records)"
RESTORED = (
    "UPDATE usage_records SET {0} = (SELECT kept.{0} FROM kept WHERE kept.sequence = usage_records.sequence)"
    " WHERE sequence IN (SELECT sequence FROM kept)"
)
ATTACKS = {
    "edited body": Attack(
        ("UPDATE usage_records SET body = :junk WHERE sequence = 3",), (Defect.EDITED, 3), (RESTORED.format("body"),)
    ),
    "edited column": Attack(
        ("UPDATE usage_records SET billed_ms = 0 WHERE sequence = 2",),
        (Defect.EDITED, 2),
        (RESTORED.format("billed_ms"),),
    ),
    "deleted": Attack(("DELETE FROM usage_records WHERE sequence = 2",), (Defect.DELETED, 2), (BACK,)),
    "deleted first": Attack(("DELETE FROM usage_records WHERE sequence = 1",), (Defect.DELETED, 1), (BACK,)),
    "reordered": Attack(
        (
            "UPDATE usage_records SET sequence = 102 WHERE sequence = 2",
            "UPDATE usage_records SET sequence = 2 WHERE sequence = 4",
            "UPDATE usage_records SET sequence = 4 WHERE sequence = 102",
        ),
        (Defect.REORDERED, 2),
        ("DELETE FROM usage_records", BACK),
    ),
    "truncated": Attack((CUT,), (Defect.TRUNCATED, 4), (BACK,)),
    "truncated with its head": Attack((CUT, HEAD_TOO[0]), (Defect.TOTALS_DIFFER, 0), (BACK, HEAD_TOO[1])),
    "truncated with head and totals": Attack(
        (
            CUT,
            HEAD_TOO[0],
            "CREATE TABLE sums AS SELECT * FROM totals",
            f"UPDATE totals SET calls = 3, billed_ms = 213, cpu_ns = 156000000, egress_bytes = 24, output_bytes = 51,"
            f" memory_reserved_byte_ns = {3 * (256 << 20) * 70_000_001}",
        ),
        (Defect.RECORD_MISSING, 0),
        (BACK, HEAD_TOO[1], "DELETE FROM totals", "INSERT INTO totals SELECT * FROM sums"),
    ),
    "head set back": Attack((HEAD_TOO[0],), (Defect.HEAD_DIFFERS, 3), (HEAD_TOO[1],)),
    "edited head": Attack(("UPDATE ledger_head SET hash = :junk",), (Defect.HEAD_DIFFERS, 5), (HEAD_TOO[1],)),
    "edited totals": Attack(
        ("UPDATE totals SET calls = 6",), (Defect.TOTALS_DIFFER, 0), ("UPDATE totals SET calls = 5",)
    ),
    "a completed call without its record": Attack(
        ("UPDATE usage_records SET execution_id = 'exe_other' WHERE sequence = 5",),
        (Defect.RECORD_MISSING, 0),
        (RESTORED.format("execution_id"),),
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
async def test_what_sql_did_is_found_and_refused_also_after_a_restart_until_it_is_mended(
    name: str, ledger: Ledger
) -> None:
    attack = ATTACKS[name]
    await sql(ledger, KEEP, *attack.statements, junk=b"{}")
    found = await ledger.verify()
    assert attack.found in [(problem.defect, problem.sequence) for problem in found.problems]
    first = str(found.problems[0].sequence), found.problems[0].defect.value
    assert await refused(ledger) == first
    assert ledger.soundness.count == found.found
    restarted = Ledger(ledger._database)
    await Auditor(restarted, OFTEN).begin()
    assert await refused(restarted) == first
    await sql(ledger, *attack.undo)
    mended = await restarted.verify()
    assert mended.whole, mended.problems
    await settle_one(restarted)
    await refused(ledger)  # until it looks
    await ledger.check()
    await settle_one(ledger)


@pytest.mark.parametrize("name", ["truncated", "deleted", "edited column", "edited totals", "edited head"])
async def test_a_call_that_runs_is_settled_in_a_broken_ledger_and_stays_when_it_is_mended(
    name: str, ledger: Ledger
) -> None:
    running = admission()
    await ledger.admit(running)
    await sql(ledger, KEEP, *ATTACKS[name].statements, junk=b"{}")
    await ledger.verify()
    record = await ledger.settle(settlement(running))
    assert record.sequence == 6
    await refused(ledger)
    if name == "edited totals":
        return  # its undo knows of five calls
    if name != "edited head":  # the record has put that right
        await sql(ledger, *ATTACKS[name].undo)
    assert (await ledger.verify()).whole
    assert (await ledger.list_usage_records(BILLER, 5))[0] == record


async def test_a_settlement_finds_that_the_record_before_it_is_gone(ledger: Ledger) -> None:
    running = admission()
    await ledger.admit(running)
    await sql(ledger, CUT)
    await ledger.settle(settlement(running))
    assert await refused(ledger) == ("4", "TRUNCATED")
    restarted = Ledger(ledger._database)
    await restarted.check()
    assert await refused(restarted) == ("4", "TRUNCATED")


async def test_a_correction_is_not_written_to_a_broken_ledger(ledger: Ledger) -> None:
    record = (await ledger.list_usage_records(BILLER))[0]
    await sql(ledger, CUT)
    for _ in range(2):  # found by the write itself, then refused before it
        with pytest.raises(Fault) as caught:
            await ledger.record_correction(BILLER, Correction(record.event_id, UsageDelta(billed_ms=-1), "x"), NOON)
        assert caught.value.reason == "LEDGER_BROKEN"
        await ledger.check()


async def test_the_background_finds_what_is_new_and_at_times_what_is_old(ledger: Ledger) -> None:
    auditor = Auditor(ledger, AuditSettings(full_seconds=3600))
    await auditor.look()
    assert ledger.soundness.verified is not None
    assert ledger.soundness.verified.sequence == 5
    await settle_one(ledger)
    await sql(ledger, "UPDATE usage_records SET billed_ms = 0 WHERE sequence = 2")
    await auditor.look()
    assert not ledger.soundness.problems  # an old row waits for the full verification
    assert ledger.soundness.verified.sequence == 6
    await settle_one(ledger)
    await sql(ledger, "UPDATE usage_records SET billed_ms = 0 WHERE sequence = 7")
    await auditor.look()
    assert await refused(ledger) == ("7", "EDITED")
    await auditor.look()  # everything, now that something is wrong
    assert [problem.sequence for problem in ledger.soundness.problems] == [2, 7]
    await sql(ledger, "UPDATE usage_records SET billed_ms = 71")
    await auditor.look()
    await settle_one(ledger)


async def test_a_ledger_cut_behind_what_was_verified_is_found_at_once(ledger: Ledger) -> None:
    auditor = Auditor(ledger, AuditSettings(full_seconds=3600))
    await auditor.look()
    await sql(ledger, KEEP, CUT, HEAD_TOO[0], "DELETE FROM totals", "DELETE FROM executions")
    await auditor.look()
    assert (Defect.TRUNCATED, 5) in [(problem.defect, problem.sequence) for problem in ledger.soundness.problems]


async def test_a_ledger_cut_with_everything_that_knows_of_it_is_found_by_the_published_head(
    ledger: Ledger, tmp_path: Path
) -> None:
    file = HeadFile(tmp_path / "heads")
    await Auditor(ledger, OFTEN, file).look()
    published = file.last()
    assert published == await ledger.head()
    await sql(ledger, KEEP, CUT, HEAD_TOO[0], "DELETE FROM executions WHERE id NOT IN (SELECT execution_id FROM"
              " usage_records)", "DELETE FROM totals", "DELETE FROM usage_records", "DELETE FROM executions",
              "UPDATE ledger_head SET sequence = 0, hash = :none", none=bytes(32))  # fmt: skip
    unaware = Ledger(ledger._database)
    assert (await unaware.verify()).whole
    told = await unaware.verify(published)
    assert [(problem.defect, problem.sequence) for problem in told.problems] == [(Defect.TRUNCATED, 1)]
    assert not unaware.soundness.problems  # a witness only tells: it may be wrong itself
    restarted = Ledger(ledger._database)
    auditor = Auditor(restarted, OFTEN, file)
    await auditor.begin()
    assert await refused(restarted) == ("1", "TRUNCATED")
    assert not (await restarted.verify()).whole
    await auditor.look()
    assert await refused(restarted) == ("1", "TRUNCATED")
    assert file.last() == published
    file.path.rename(tmp_path / "accepted")
    await auditor.look()
    await settle_one(restarted)
    await sql(restarted, "UPDATE usage_records SET hash = hash")
    assert [problem.defect for problem in (await restarted.verify(Head(1, bytes(32)))).problems] == [
        Defect.WITNESS_DIFFERS
    ]


async def test_a_range_is_checked_alone_and_one_that_is_not_there_is_refused(ledger: Ledger) -> None:
    await sql(ledger, "UPDATE usage_records SET billed_ms = 0 WHERE sequence = 2")
    assert (await ledger.verify(span=Span(3, 5))).records == 3
    assert (await ledger.verify(span=Span(3))).whole
    await settle_one(ledger)
    found = await ledger.verify(span=Span(2, 3))
    assert [(problem.defect, problem.sequence) for problem in found.problems] == [(Defect.EDITED, 2)]
    assert await refused(ledger) == ("2", "EDITED")
    assert (await ledger.verify(span=Span(4, 6))).whole
    await refused(ledger)  # a part can't show that the whole is mended
    for span, name in ((Span(7), "from_sequence"), (Span(1, 7), "to_sequence")):
        with pytest.raises(Fault) as caught:
            await ledger.verify(span=span)
        assert (caught.value.kind, caught.value.metadata["field"]) == (FaultKind.OUT_OF_RANGE, name)


async def test_a_record_that_cannot_be_read_is_named(ledger: Ledger) -> None:
    await sql(ledger, "UPDATE usage_records SET body = :junk WHERE sequence = 3", junk=b"{}")
    with pytest.raises(Fault) as caught:
        await ledger.list_usage_records(BILLER)
    assert (caught.value.reason, caught.value.metadata["sequence"]) == ("LEDGER_BROKEN", "3")
    assert len(await ledger.list_usage_records(BILLER, 3)) == 2


async def test_values_of_a_wrong_type_are_found_and_break_nothing_else(tmp_path: Path) -> None:
    """SQLite lets anybody write anything into any column."""
    async with await Database.open(f"sqlite:///{tmp_path}/ledger.db") as database:
        ledger = Ledger(database)
        for _ in range(4):
            await settle_one(ledger)
        await sql(
            ledger,
            "UPDATE usage_records SET body = 'text' WHERE sequence = 1",
            "UPDATE usage_records SET ended_at = 'never' WHERE sequence = 2",
            "UPDATE usage_records SET hash = 7 WHERE sequence = 3",
            "UPDATE totals SET calls = 'many'",
        )
        found = await ledger.verify()
        assert {(problem.defect, problem.sequence) for problem in found.problems} >= {
            (Defect.EDITED, 1),
            (Defect.EDITED, 2),
            (Defect.EDITED, 3),
            (Defect.TOTALS_DIFFER, 0),
        }
        with pytest.raises(Fault) as caught:
            await ledger.snapshot()
        assert caught.value.reason == "LEDGER_BROKEN"


def test_a_head_file_survives_a_line_cut_by_a_crash_and_refuses_to_be_something_else(tmp_path: Path) -> None:
    file = HeadFile(tmp_path / "heads")
    assert file.last() is None
    file.append(Head(1, bytes(32)), NOON)
    with file.path.open("a") as half:
        half.write("2:0000")
    assert file.last() == Head(1, bytes(32))
    file.append(Head(3, b"\1" * 32), NOON)
    assert file.last() == Head(3, b"\1" * 32)
    file.path.write_text("something else\n")
    with pytest.raises(Fault, match="no heads"):
        file.last()
