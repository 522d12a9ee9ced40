"""Pages stay fast however long the ledger is: every question walks an index, and none sorts."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, event

from ledger_stores import ACME, NOON, admission, settlement
from skillcell.core.types import ExecutionState
from skillcell.metering import settling
from skillcell.metering.ledger import Ledger
from skillcell.metering.records import ExecutionFilter
from skillcell.storage.database import Database


async def test_finding_a_record_or_a_missing_one_reads_no_table_from_end_to_end(tmp_path: Path) -> None:
    async with await Database.open(f"sqlite:///{tmp_path}/ledger.db") as database:
        ledger, call = Ledger(database), admission()
        await ledger.admit(call)
        await ledger.settle(settlement(call))
        plans = watch(database, "FROM usage_records")
        missing = watch(database, "FROM executions LEFT OUTER JOIN usage_records")
        await ledger.get_record(ACME, call.execution_id)
        await ledger.verify()
    assert "uq_usage_records_execution_id" in plans[0]
    assert "uq_usage_records_execution_id" in missing[0]
    assert "TEMP B-TREE" not in missing[0]


def watch(database: Database, part: str) -> list[str]:
    """Fills with the query plan of each read whose statement contains `part`."""
    plans: list[str] = []

    @event.listens_for(database._engines.reader, "before_cursor_execute")
    def explain(connection: Connection, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if part in statement:
            cursor.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
            plans.append(" | ".join(row[3] for row in cursor.fetchall()))

    return plans


QUESTIONS: dict[str, tuple[ExecutionFilter, str]] = {
    "all": (ExecutionFilter(), "ix_executions_tenant_admitted_at_id"),
    "a time": (ExecutionFilter(since=NOON, until=NOON + timedelta(hours=1)), "ix_executions_tenant_admitted_at_id"),
    "a Skill": (
        ExecutionFilter(publisher="tools", skill="extract"),
        "ix_executions_tenant_publisher_skill_admitted_at_id",
    ),
    "what runs": (ExecutionFilter(states=(ExecutionState.RUNNING,)), "ix_executions_open"),
    "a label": (ExecutionFilter(labels={"team": "red"}), "ix_execution_labels_key_value_tenant_admitted_at"),
    "two labels": (
        ExecutionFilter(labels={"team": "red", "env": "x"}),
        "ix_execution_labels_key_value_tenant_admitted_at",
    ),
}


@pytest.mark.parametrize("name", QUESTIONS)
async def test_a_page_is_a_walk_along_an_index(tmp_path: Path, name: str) -> None:
    wanted, index = QUESTIONS[name]
    async with await Database.open(f"sqlite:///{tmp_path}/ledger.db") as database:

        def admit_some(connection: Connection) -> None:
            for number in range(30):
                at = NOON + timedelta(seconds=number)
                settling.admit(connection, admission(admitted_at=at, labels={"team": "red", "env": "x"}))

        await database.write(admit_some)
        plans = watch(database, "SELECT executions")
        ledger = Ledger(database)
        page = await ledger.list_executions(ACME, wanted, page_size=3)
        if page.next_page_token:
            await ledger.list_executions(ACME, wanted, page_size=3, page_token=page.next_page_token)
    assert plans
    for plan in plans:
        assert index in plan, plan
        assert "TEMP B-TREE" not in plan, plan
        assert "SCAN" not in plan, plan
