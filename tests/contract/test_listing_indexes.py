"""Pages of either store walk along an index, whatever is asked for, and give what a plain search gives."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, event

from ledger_fill import RARE, fill, of_number
from ledger_stores import ACME, BILLER, NOON
from skillcell.core.types import ExecutionState, Outcome, Principal
from skillcell.metering.ledger import Ledger
from skillcell.metering.records import ExecutionFilter, UsageFilter
from skillcell.storage.database import Database

COUNT = RARE + 2_000
HOUR = {"since": NOON + timedelta(hours=1), "until": NOON + timedelta(hours=1, minutes=10)}
NEEDLE = f"exe_{RARE:026d}"


@dataclass(frozen=True)
class Question:
    """`index` is one of those that may serve it; `who` asks."""

    wanted: Any
    index: tuple[str, ...]
    who: Principal = BILLER


OPEN_ONES = ("ix_executions_open", "ix_executions_unsettled")
SINGLE = ("uq_usage_records_execution_id",)
FEW = (OPEN_ONES, SINGLE)
"""Of these a page may be sorted: what is open, and what some executions have, is never much."""
EXECUTIONS = {
    "version": Question(
        ExecutionFilter(publisher="tools", skill="rare", version="1.0.0"),
        ("ix_executions_tenant_publisher_skill_admitted_at_id",),
        ACME,
    ),
    "all": Question(ExecutionFilter(), ("ix_executions_tenant_admitted_at_id",), ACME),
    "completed": Question(
        ExecutionFilter(states=(ExecutionState.COMPLETED,)), ("ix_executions_tenant_admitted_at_id",), ACME
    ),
    "running": Question(ExecutionFilter(states=(ExecutionState.RUNNING,)), OPEN_ONES, ACME),
    "one outcome": Question(
        ExecutionFilter(outcomes=(Outcome.OUT_OF_MEMORY,)), ("ix_executions_tenant_outcome_admitted_at_id",), ACME
    ),
    "some outcomes": Question(
        ExecutionFilter(outcomes=(Outcome.FAILED, Outcome.TIMED_OUT)),
        ("ix_executions_tenant_outcome_admitted_at_id",),
        ACME,
    ),
    "rare Skill": Question(
        ExecutionFilter(publisher="tools", skill="rare"), ("ix_executions_tenant_publisher_skill_admitted_at_id",), ACME
    ),
    "common label": Question(
        ExecutionFilter(labels={"team": "red"}), ("ix_execution_labels_key_value_tenant_admitted_at",), ACME
    ),
    "rare label": Question(
        ExecutionFilter(labels={"case": "needle"}), ("ix_execution_labels_key_value_tenant_admitted_at",), ACME
    ),
    "time": Question(ExecutionFilter(**HOUR), ("ix_executions_tenant_admitted_at_id",), ACME),
}
USAGE = {
    "all": Question(UsageFilter(), ("PRIMARY KEY", "pk_usage_records")),
    # Six records of ten are its own, so that PostgreSQL, which counts, may as well walk along all.
    "own": Question(UsageFilter(), ("ix_usage_records_tenant_sequence", "pk_usage_records"), ACME),
    "a tenant's": Question(UsageFilter(tenant="tenant-3"), ("ix_usage_records_tenant_sequence",)),
    "a publisher's": Question(
        UsageFilter(publisher="tools"), ("ix_usage_records_publisher_sequence", "PRIMARY KEY", "pk_usage_records")
    ),
    "no publisher's": Question(UsageFilter(publisher="nobody"), ("ix_usage_records_publisher_",)),
    "rare Skill": Question(
        UsageFilter(publisher="tools", skill="rare"), ("ix_usage_records_publisher_skill_sequence",)
    ),
    "own rare Skill": Question(
        UsageFilter(publisher="tools", skill="rare"), ("ix_usage_records_tenant_publisher_skill_sequence",), ACME
    ),
    "one execution": Question(UsageFilter(execution_id=NEEDLE), SINGLE),
    "own execution": Question(UsageFilter(execution_id=NEEDLE), SINGLE, ACME),
    "rare label": Question(UsageFilter(labels={"case": "needle"}), SINGLE),
    "own rare label": Question(UsageFilter(labels={"case": "needle"}), SINGLE, ACME),
    "common label": Question(UsageFilter(labels={"team": "red"}), ("PRIMARY KEY", "pk_usage_records")),
    "time": Question(UsageFilter(**HOUR), ("PRIMARY KEY", "pk_usage_records")),
    "own time": Question(
        UsageFilter(**HOUR), ("ix_usage_records_tenant_sequence", "PRIMARY KEY", "pk_usage_records"), ACME
    ),
}


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def filled_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path_factory.mktemp('filled')}/ledger.db"
    return str(request.getfixturevalue("cluster").new_url())


@pytest.fixture
async def ledger(filled_url: str) -> AsyncIterator[Ledger]:
    async with await Database.open(filled_url) as database:
        ledger = Ledger(database)
        if not (await ledger.head()).sequence:
            await fill(database, COUNT)
        yield ledger


@asynccontextmanager
async def explained(ledger: Ledger, table: str) -> AsyncIterator[list[str]]:
    """Fills with the plan of every page that is read from a table."""
    plans: list[str] = []
    engine = ledger._database._engines.reader
    explain = "EXPLAIN" if engine.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN"

    def before(connection: Connection, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if f"SELECT {table}." in statement and "ORDER BY" in statement:
            beside = cursor.connection.cursor()
            beside.execute(f"{explain} {statement}", parameters)
            plans.append(" | ".join(str(row[-1]) for row in beside.fetchall()))
            beside.close()

    event.listen(engine, "before_cursor_execute", before)
    try:
        yield plans
    finally:
        event.remove(engine, "before_cursor_execute", before)


def check(plans: list[str], question: Question) -> None:
    assert plans
    for plan in plans:
        assert any(index in plan for index in question.index), plan
        assert "Seq Scan" not in plan, plan
        if question.index not in FEW:
            assert "TEMP B-TREE" not in plan, plan
            assert "Sort " not in plan, plan


@pytest.mark.parametrize("name", EXECUTIONS)
async def test_a_page_of_executions_is_a_walk_along_an_index(name: str, ledger: Ledger) -> None:
    question = EXECUTIONS[name]
    async with explained(ledger, "executions") as plans:
        page = await ledger.list_executions(question.who, question.wanted, page_size=20)
        if page.next_page_token:
            await ledger.list_executions(question.who, question.wanted, 20, page.next_page_token)
    check(plans, question)


@pytest.mark.parametrize("name", USAGE)
async def test_a_page_of_records_is_a_walk_along_an_index(name: str, ledger: Ledger) -> None:
    question = USAGE[name]
    async with explained(ledger, "usage_records") as plans:
        for after in (0, COUNT // 2):
            await ledger.list_usage_records(question.who, after, 20, question.wanted)
    check(plans, question)


def fits(number: int, question: Question) -> bool:
    """As one would search through all of them."""
    record, wanted = of_number(number), question.wanted
    at, labels = NOON + timedelta(seconds=number), {}
    if number % 2 == 0:
        labels["team"] = "red"
    if number % RARE == 0:
        labels["case"] = "needle"
    return (
        (question.who is BILLER or record.tenant == "acme")
        and wanted.tenant in ("", record.tenant)
        and wanted.publisher in ("", record.publisher)
        and wanted.skill in ("", record.skill)
        and wanted.execution_id in ("", record.execution_id)
        and wanted.labels.items() <= labels.items()
        and (wanted.since is None or at >= wanted.since)
        and (wanted.until is None or at < wanted.until)
    )


@pytest.mark.parametrize("name", USAGE)
async def test_pages_of_records_together_are_what_a_plain_search_finds(name: str, ledger: Ledger) -> None:
    question = USAGE[name]
    found: list[int] = []
    while True:
        page = await ledger.list_usage_records(question.who, found[-1] if found else 0, 1000, question.wanted)
        if not page:
            break
        found += [record.sequence for record in page]
    assert found == [number for number in range(1, COUNT + 1) if fits(number, question)]


async def test_executions_of_several_outcomes_come_once_each_and_newest_first(ledger: Ledger) -> None:
    wanted = ExecutionFilter(outcomes=(Outcome.FAILED, Outcome.TIMED_OUT))
    seen: list[str] = []
    token = ""
    while True:
        page = await ledger.list_executions(ACME, wanted, 700, token)
        seen += [execution.admission.execution_id for execution in page.executions]
        token = page.next_page_token
        if not token:
            break
    records = [of_number(number) for number in range(COUNT, 0, -1) if number % 10 >= 8]
    assert seen == [record.execution_id for record in records if record.tenant == "acme"]


async def test_what_was_filled_is_a_ledger_as_calls_would_leave_it(ledger: Ledger) -> None:
    found = await ledger.verify()
    assert found.whole, found.problems
    assert found.records == COUNT
