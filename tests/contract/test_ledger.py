"""What every store must keep of the ledger's promises: SQLite and PostgreSQL alike."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, select, text

from ledger_stores import (
    ACME,
    BILLER,
    NOON,
    admission,
    last_event,
    settlement,
)
from skillcell.core.errors import Fault, FaultKind
from skillcell.core.types import ExecutionState, FaultParty, Outcome, Principal, StageTimes
from skillcell.metering.canonical import GENESIS, canonical, chain_hash
from skillcell.metering.defects import Defect
from skillcell.metering.ledger import Ledger, LedgerSettings
from skillcell.metering.records import Bucket, ExecutionFilter, Grouping, Head, Sums
from skillcell.storage.database import Database
from skillcell.storage.tables import executions, totals, usage_records


async def complete(ledger: Ledger, *, run_ns: int = 70_000_001, outcome: Outcome = Outcome.SUCCEEDED, **of: Any) -> str:
    """Admits and settles one call; its execution id."""
    given = admission(**of)
    await ledger.admit(given)
    fault = FaultParty.NONE if outcome is Outcome.SUCCEEDED else FaultParty.SKILL
    times = StageTimes(run_ns=run_ns)
    await ledger.settle(settlement(given, outcome=outcome, fault=fault, times=times, ended_at=given.admitted_at))
    return given.execution_id


async def tamper(database: Database, statement: str, **values: Any) -> None:
    await database.write(lambda connection: connection.execute(text(statement), values).close())


async def test_an_admitted_call_is_open_until_it_is_settled(ledger: Ledger) -> None:
    given = admission(labels={"team": "red"})
    result = await ledger.admit(given)
    assert result.created
    assert [open_call.admission for open_call in await ledger.unsettled("gateway-1")] == [given]
    assert await ledger.unsettled("gateway-2") == ()
    record = await ledger.settle(settlement(given))
    assert await ledger.unsettled() == ()
    stored = await ledger.get_execution(ACME, given.execution_id)
    assert stored.admission == given
    assert (stored.state, stored.outcome, stored.exit_code) == (ExecutionState.COMPLETED, Outcome.SUCCEEDED, 0)
    assert record.sequence == 1
    assert record.previous_hash == GENESIS
    assert record.hash == chain_hash(GENESIS, canonical(record))


async def test_the_stored_last_event_carries_the_ledger_sequence(ledger: Ledger) -> None:
    given = admission()
    await ledger.admit(given)
    record = await ledger.settle(settlement(given))
    stored = await ledger.get_execution(ACME, given.execution_id)
    assert stored.completed_event == last_event(record)
    assert stored.last_event_sequence == 4


async def test_settling_twice_returns_the_first_record_and_changes_nothing(ledger: Ledger) -> None:
    given = admission(labels={"team": "red"})
    await ledger.admit(given)
    results = await asyncio.gather(*[ledger.settle(settlement(given, wall_ns=1000 + i)) for i in range(20)])
    assert len({result.hash for result in results}) == 1
    assert all(result.labels == {"team": "red"} for result in results)
    again = await ledger.settle(settlement(given, outcome=Outcome.FAILED, fault=FaultParty.SKILL))
    assert again == results[0]
    assert (await ledger.head()).sequence == 1
    assert (await ledger.verify()).whole


async def test_a_call_that_was_never_admitted_cannot_be_settled(ledger: Ledger) -> None:
    with pytest.raises(Fault) as caught:
        await ledger.settle(settlement(admission()))
    assert caught.value.reason == "EXECUTION_NOT_ADMITTED"
    given = admission()
    await ledger.admit(given)
    with pytest.raises(Fault, match="never admitted"):
        await ledger.settle(settlement(admission(execution_id=given.execution_id, tenant="mallory")))
    assert (await ledger.head()).sequence == 0


async def test_a_settlement_whose_last_event_cannot_be_made_leaves_nothing_behind(ledger: Ledger) -> None:
    given = admission()
    await ledger.admit(given)
    broken = settlement(given)

    def refuse(_: object) -> bytes:
        raise ValueError("no event")

    object.__setattr__(broken, "last_event", refuse)
    with pytest.raises(ValueError, match="no event"):
        await ledger.settle(broken)
    assert (await ledger.head()).sequence == 0
    assert len(await ledger.unsettled()) == 1


async def test_a_hundred_concurrent_duplicates_of_one_request_are_one_execution(ledger: Ledger) -> None:
    request_id = "7c9e6679-7425-40de-944b-e07fc1f90ae7"
    results = await asyncio.gather(*[ledger.admit(admission(request_id=request_id)) for _ in range(100)])
    assert sum(result.created for result in results) == 1
    assert len({result.execution.admission.execution_id for result in results}) == 1
    assert len(await ledger.unsettled()) == 1


async def test_the_same_request_id_with_another_request_is_refused(ledger: Ledger) -> None:
    first = admission()
    await ledger.admit(first)
    with pytest.raises(Fault) as caught:
        await ledger.admit(admission(request_id=first.request_id, request_hash=b"x" * 32))
    assert caught.value.kind is FaultKind.ALREADY_EXISTS
    assert caught.value.metadata["execution_id"] == first.execution_id
    assert (await ledger.admit(admission(request_id=first.request_id, tenant="other"))).created


async def test_calls_without_a_request_id_never_collide(ledger: Ledger) -> None:
    results = await asyncio.gather(*[ledger.admit(admission(request_id="")) for _ in range(5)])
    assert all(result.created for result in results)


async def test_a_retry_after_the_end_gets_the_settled_execution(ledger: Ledger) -> None:
    first = admission()
    await ledger.admit(first)
    record = await ledger.settle(settlement(first))
    retried = await ledger.admit(admission(request_id=first.request_id))
    assert not retried.created
    assert retried.execution.completed_event == last_event(record)


async def test_the_ledger_outlives_its_process(url: str) -> None:
    async with await Database.open(url) as database:
        given = admission()
        await Ledger(database).admit(given)
        record = await Ledger(database).settle(settlement(given))
    async with await Database.open(url) as database:
        ledger = Ledger(database)
        assert await ledger.check() == Head(1, record.hash)
        assert await ledger.list_usage_records(BILLER) == (record,)
        assert (await ledger.verify()).whole


async def test_writes_that_wait_share_commits(ledger: Ledger, database: Database) -> None:
    before = database.commits
    await asyncio.gather(*[ledger.admit(admission()) for _ in range(200)])
    assert database.commits - before < 100


async def test_running_is_seen_for_calls_that_last_and_never_overwrites_the_end(ledger: Ledger) -> None:
    lasting, brief = admission(), admission()
    await asyncio.gather(ledger.admit(lasting), ledger.admit(brief))
    ledger.mark_running(lasting.execution_id, "sbx_1", NOON)
    ledger.mark_running(brief.execution_id, "sbx_2", NOON)
    await ledger.settle(settlement(brief))
    async with asyncio.timeout(10):
        while (stored := await ledger.get_execution(ACME, lasting.execution_id)).state is ExecutionState.QUEUED:
            await asyncio.sleep(0.01)
    assert (stored.state, stored.sandbox_id, stored.started_at) == (ExecutionState.RUNNING, "sbx_1", NOON)
    assert (await ledger.get_execution(ACME, brief.execution_id)).state is ExecutionState.COMPLETED


async def test_nobody_sees_another_tenants_calls(ledger: Ledger) -> None:
    execution_id = await complete(ledger)
    stranger = Principal("other")
    for question in (ledger.get_execution(stranger, execution_id), ledger.get_record(stranger, execution_id)):
        with pytest.raises(Fault) as caught:
            await question
        assert caught.value.kind is FaultKind.NOT_FOUND
    assert (await ledger.list_executions(stranger)).executions == ()
    assert await ledger.list_usage_records(stranger) == ()
    assert await ledger.usage_summary(stranger) == ()
    assert len(await ledger.list_usage_records(BILLER)) == 1
    assert (await ledger.get_record(BILLER, execution_id)).execution_id == execution_id


async def test_pages_give_every_execution_once_newest_first_while_more_arrive(ledger: Ledger) -> None:
    expected = [await complete(ledger, admitted_at=NOON + timedelta(milliseconds=number // 3)) for number in range(17)]
    seen: list[str] = []
    token = ""
    while True:
        page = await ledger.list_executions(ACME, page_size=5, page_token=token)
        seen += [execution.admission.execution_id for execution in page.executions]
        await complete(ledger, admitted_at=NOON + timedelta(hours=1))
        token = page.next_page_token
        if not token:
            break
    assert sorted(seen) == sorted(expected)
    times = [(await ledger.get_execution(ACME, execution_id)).admission.admitted_at for execution_id in seen]
    assert times == sorted(times, reverse=True)


async def test_lists_filter_by_state_skill_label_and_time(ledger: Ledger) -> None:
    red = await complete(ledger, labels={"team": "red", "env": "prod"})
    other = await complete(ledger, skill="convert", admitted_at=NOON + timedelta(hours=1))
    waiting = admission(admitted_at=NOON + timedelta(hours=2))
    await ledger.admit(waiting)

    async def listed(**wanted: Any) -> set[str]:
        page = await ledger.list_executions(ACME, ExecutionFilter(**wanted))
        return {execution.admission.execution_id for execution in page.executions}

    assert await listed(states=(ExecutionState.QUEUED,)) == {waiting.execution_id}
    assert await listed(publisher="tools", skill="convert") == {other}
    assert await listed(labels={"team": "red", "env": "prod"}) == {red}
    assert await listed(labels={"team": "red", "env": "dev"}) == set()
    assert await listed(since=NOON + timedelta(hours=1), until=NOON + timedelta(hours=2)) == {other}


@pytest.mark.parametrize("token", ["x", "é", "bm90IGpzb24", "W10", "WzEsICJhIiwgMSwgImIiXQ", "[" * 4000])
async def test_an_unknown_page_token_is_refused(ledger: Ledger, token: str) -> None:
    with pytest.raises(Fault) as caught:
        await ledger.list_executions(ACME, page_token=token)
    assert caught.value.reason == "PAGE_TOKEN_INVALID"


async def test_a_page_token_serves_only_the_question_it_came_from(ledger: Ledger) -> None:
    for _ in range(2):
        await complete(ledger)
    token = (await ledger.list_executions(ACME, page_size=1)).next_page_token
    with pytest.raises(Fault, match="another filter"):
        await ledger.list_executions(ACME, ExecutionFilter(skill="convert"), page_token=token)
    with pytest.raises(Fault, match="another filter"):
        await ledger.list_executions(Principal("other"), page_token=token)


async def test_records_come_by_cursor_with_the_same_bytes_every_time(ledger: Ledger) -> None:
    for _ in range(7):
        await complete(ledger)
    once = [await ledger.list_usage_records(BILLER, after, 3) for after in (0, 3, 6)]
    assert [record.sequence for page in once for record in page] == [1, 2, 3, 4, 5, 6, 7]
    again = await ledger.list_usage_records(BILLER, 0, 100)
    assert [canonical(record) for page in once for record in page] == [canonical(record) for record in again]


async def test_summaries_add_up_exactly_by_every_group(ledger: Ledger) -> None:
    long_run = 40_000_000_000_000_001
    await complete(ledger, labels={"team": "red"}, run_ns=long_run)
    await complete(ledger, labels={"team": "blue"}, run_ns=long_run, admitted_at=NOON + timedelta(days=1))
    await complete(ledger, outcome=Outcome.FAILED, tenant="other", admitted_at=NOON + timedelta(days=40))
    everything = await ledger.usage_summary(BILLER)
    assert everything[0].sums.calls == 3
    memory = (256 << 20) * (2 * long_run + 70_000_001)
    assert memory > 1 << 64
    assert everything[0].sums.memory_reserved_byte_ns == memory
    assert everything[0].billable_calls == 3
    await complete(ledger, outcome=Outcome.PLATFORM_ERROR, tenant="other", admitted_at=NOON + timedelta(days=40))
    platform = await ledger.usage_summary(BILLER, Grouping(by=("outcome",)))
    assert {group.key["outcome"]: (group.sums.calls, group.billable_calls) for group in platform} == {
        "SUCCEEDED": (2, 2),
        "FAILED": (1, 1),
        "PLATFORM_ERROR": (1, 0),
    }
    by_label = await ledger.usage_summary(BILLER, Grouping(labels=("team",)))
    assert {group.key["label:team"]: group.sums.calls for group in by_label} == {"": 2, "blue": 1, "red": 1}
    by_month = await ledger.usage_summary(BILLER, Grouping(by=("tenant",), bucket=Bucket.MONTH))
    assert [(group.key["tenant"], group.start, group.sums.calls) for group in by_month] == [
        ("acme", NOON.replace(hour=0), 2),
        ("other", NOON.replace(hour=0, month=4), 2),
    ]
    by_hour = await ledger.usage_summary(ACME, Grouping(bucket=Bucket.HOUR, until=NOON + timedelta(hours=1)))
    assert [(group.start, group.sums.billed_ms) for group in by_hour] == [(NOON, -(-long_run // 1_000_000))]
    with pytest.raises(Fault, match="group_by"):
        await ledger.usage_summary(ACME, Grouping(by=("body",)))


async def test_erasing_labels_keeps_the_chain_whole(ledger: Ledger) -> None:
    first, second = await complete(ledger, labels={"user": "ada"}), await complete(ledger, labels={"user": "bob"})
    assert await ledger.erase_labels((first,)) == 1
    assert (await ledger.get_record(ACME, first)).labels == {}
    assert (await ledger.get_record(ACME, second)).labels == {"user": "bob"}
    assert (await ledger.verify()).whole


TAMPERINGS = {
    "an edited body": ("UPDATE usage_records SET body = :body WHERE sequence = 3", Defect.EDITED, 3),
    "an edited column": ("UPDATE usage_records SET billed_ms = 1 WHERE sequence = 3", Defect.EDITED, 3),
    "an edited tenant": ("UPDATE usage_records SET tenant = 'x' WHERE sequence = 4", Defect.EDITED, 4),
    "an edited hash": ("UPDATE usage_records SET hash = :body WHERE sequence = 3", Defect.EDITED, 3),
    "a deleted row": ("DELETE FROM usage_records WHERE sequence = 3", Defect.DELETED, 3),
    "a deleted first row": ("DELETE FROM usage_records WHERE sequence = 1", Defect.DELETED, 1),
    "reordered rows": (
        "UPDATE usage_records SET sequence = CASE sequence WHEN 2 THEN 102 ELSE 2 END WHERE sequence IN (2, 4)",
        Defect.REORDERED,
        2,
    ),
    "a truncated end": ("DELETE FROM usage_records WHERE sequence > 3", Defect.TRUNCATED, 4),
    "a truncated start": ("DELETE FROM usage_records", Defect.TRUNCATED, 1),
    "a head set back": ("UPDATE ledger_head SET sequence = 2", Defect.HEAD_DIFFERS, 2),
    "edited totals": ("UPDATE totals SET calls = '7'", Defect.TOTALS_DIFFER, 0),
    "deleted totals": ("DELETE FROM totals", Defect.TOTALS_DIFFER, 0),
}


@pytest.mark.parametrize("tampering", TAMPERINGS)
async def test_verification_finds(tampering: str, ledger: Ledger, database: Database) -> None:
    for _ in range(5):
        await complete(ledger)
    assert (await ledger.verify()).whole
    statement, defect, sequence = TAMPERINGS[tampering]
    if "totals SET" in statement and database._engines.writer.dialect.name == "postgresql":
        statement = statement.replace("'7'", "7")
    values = {"body": b"{}"} if ":body" in statement else {}
    await tamper(database, statement, **values)
    found = await ledger.verify()
    assert not found.whole
    assert (defect, sequence) in [(problem.defect, problem.sequence) for problem in found.problems]


async def test_a_chain_rewritten_together_with_its_head_is_caught_by_a_witness(
    ledger: Ledger, database: Database
) -> None:
    for _ in range(5):
        await complete(ledger)
    witness = await ledger.head()

    def cut(connection: Connection) -> None:
        connection.execute(text("DELETE FROM usage_records WHERE sequence > 3"))
        last = connection.execute(select(usage_records.c.hash).where(usage_records.c.sequence == 3)).scalar_one()
        connection.execute(text("UPDATE ledger_head SET sequence = 3, hash = :hash"), {"hash": last})
        connection.execute(text("DELETE FROM totals"))
        connection.execute(text("DELETE FROM executions"))

    await database.write(cut)
    found = await ledger.verify(witness)
    assert Defect.TRUNCATED in [problem.defect for problem in found.problems]
    assert "was published" in found.problems[0].detail


async def test_a_completed_execution_without_its_record_is_found(ledger: Ledger, database: Database) -> None:
    execution_id = await complete(ledger)
    await tamper(database, "UPDATE usage_records SET execution_id = 'exe_other'")
    assert (Defect.RECORD_MISSING, f"of execution {execution_id}") in [
        (problem.defect, problem.detail) for problem in (await ledger.verify()).problems
    ]


async def test_the_store_itself_refuses_a_second_record_of_one_execution(ledger: Ledger, database: Database) -> None:
    await complete(ledger)
    with pytest.raises(Exception, match=r"UNIQUE|unique"):
        await tamper(
            database,
            "INSERT INTO usage_records SELECT 2, 'evt_2', execution_id, correction_of, tenant, publisher, skill,"
            " version, entrypoint, isolation, outcome, billable, ended_at, calls, billed_ms, run_ns, cpu_ns,"
            " memory_reserved_byte_ns, egress_in_bytes, egress_out_bytes, input_bytes, output_bytes, artifact_bytes,"
            " plan_version, rated_cpu_milli_ns, rated_memory_used_byte_ns, rated_memory_larger_byte_ns,"
            " body, previous_hash, hash FROM usage_records",
        )


async def test_series_past_the_bound_count_under_other_for_ever_and_still_sum_right(database: Database) -> None:
    bounded = Ledger(database, LedgerSettings(max_tenants=2, max_series=3))
    for tenant, skill in [("a", "x"), ("a", "y"), ("b", "x"), ("b", "y"), ("c", "x"), ("a", "x"), ("c", "z")]:
        await complete(bounded, tenant=tenant, skill=skill)
    roomier = Ledger(database, LedgerSettings(max_tenants=9, max_series=9))
    for tenant, skill in [("c", "x"), ("c", "new"), ("b", "y"), ("d", "x")]:
        await complete(roomier, tenant=tenant, skill=skill, outcome=Outcome.FAILED)

    def series(connection: Connection) -> dict[tuple[str, str], int]:
        counted: dict[tuple[str, str], int] = {}
        for row in connection.execute(select(totals)):
            key = (row.series_tenant, row.series_skill)
            counted[key] = counted.get(key, 0) + row.calls
        return counted

    assert await database.read(series) == {
        ("a", "x"): 2,
        ("a", "y"): 1,
        ("b", "x"): 1,
        ("b", "_other"): 2,
        ("_other", "_other"): 4,
        ("d", "x"): 1,
    }
    assert sum((await database.read(series)).values()) == (await bounded.usage_summary(BILLER))[0].sums.calls == 11


async def test_totals_equal_the_sum_of_records(ledger: Ledger) -> None:
    await asyncio.gather(
        *[complete(ledger, run_ns=number * 1_000_003, tenant=f"t{number % 3}") for number in range(60)]
    )
    groups = await ledger.usage_summary(BILLER, Grouping(by=("tenant",)))
    assert sum(group.sums.calls for group in groups) == 60
    assert (await ledger.verify()).whole
    assert groups[0].sums != Sums()


async def test_one_broken_write_leaves_the_others_of_its_transaction(ledger: Ledger, database: Database) -> None:
    def break_it(connection: Connection) -> None:
        connection.execute(text("UPDATE executions SET state = 'NONSENSE'"))

    given = [admission() for _ in range(10)]
    await asyncio.gather(*[ledger.admit(one) for one in given])
    results = await asyncio.gather(
        *[work for one in given for work in (ledger.settle(settlement(one)), database.write(break_it))],
        return_exceptions=True,
    )
    assert [isinstance(result, BaseException) for result in results] == [False, True] * 10
    assert (await ledger.verify()).whole
    states = await database.read(lambda connection: connection.execute(select(executions.c.state)).scalars().all())
    assert set(states) == {"COMPLETED"}
