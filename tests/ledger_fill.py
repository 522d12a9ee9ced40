"""Fills a ledger with many settled calls at once: a valid chain, right totals, the same rows that calls would leave.

One call a second from `NOON` on, in the order of the chain. Of every ten calls six are of tenant `acme`; the rest are
of `tenant-1` to `tenant-9`. Of `acme`'s, the Skill `tools/extract` has most, `tools/rare` one in ten thousand. Every
second call has the label `team=red`, every ten-thousandth `case=needle`. The last hundred have not ended.
"""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, insert, text, update

from ledger_stores import NOON, admission, ending
from skillcell.core.types import FaultParty, Outcome, UsageRecord
from skillcell.metering import rows
from skillcell.metering.canonical import GENESIS, canonical, chain_hash
from skillcell.metering.records import Sums
from skillcell.metering.totals import kind_of, plus, sums_of
from skillcell.metering.usage import usage_record
from skillcell.storage.database import Database
from skillcell.storage.tables import execution_labels, executions, ledger_head, totals, usage_records

RARE = 10_000
OPEN = 100
_CHUNK = 5_000
_OUTCOMES = (Outcome.SUCCEEDED,) * 8 + (Outcome.FAILED, Outcome.TIMED_OUT)


def of_number(number: int) -> UsageRecord:
    """The record of the call with this number, from 1, not yet chained."""
    tenant = "acme" if number % 10 < 6 else f"tenant-{number % 9 + 1}"
    skill = "rare" if number % RARE == 0 else "extract" if number % 3 else f"skill-{number % 40}"
    at = NOON + timedelta(seconds=number)
    outcome = _OUTCOMES[number % len(_OUTCOMES)]
    fault = FaultParty.NONE if outcome is Outcome.SUCCEEDED else FaultParty.SKILL
    given = admission(
        execution_id=f"exe_{number:026d}", tenant="acme" if skill == "rare" else tenant, skill=skill,
        admitted_at=at, request_id=""
    )  # fmt: skip
    ended = ending(event_id=f"evt_{number:026d}", outcome=outcome, fault=fault, started_at=at, ended_at=at)
    return usage_record(given, ended)


class _Template:
    """Makes rows of one kind of call by putting in what differs: a hundred times quicker than settling."""

    def __init__(self, number: int) -> None:
        record = replace(of_number(number), sequence=number)
        self.record = record
        body = canonical(record).decode()
        self._columns = rows.record_values(record, b"")
        self._execution = rows.admission_values(admission(tenant=record.tenant, skill=record.skill, request_id=""))
        at = json.loads(body)["ended_at"]
        parts = body.replace("%", "%%").replace(f"{number:026d}", "%(id)s").replace(at, "%(at)s")
        self._body = parts.replace(f'"sequence":{number},', '"sequence":%(sequence)d,')

    def row(self, number: int, previous: bytes) -> dict[str, Any]:
        at = NOON + timedelta(seconds=number)
        said = {"id": f"{number:026d}", "at": at.strftime("%Y-%m-%dT%H:%M:%S.%fZ"), "sequence": number}
        body = (self._body % said).encode()
        return self._columns | {
            "sequence": number,
            "event_id": f"evt_{number:026d}",
            "execution_id": f"exe_{number:026d}",
            "ended_at": at,
            "body": body,
            "previous_hash": previous,
            "hash": chain_hash(previous, body),
        }

    def execution(self, number: int, *, ended: bool) -> dict[str, Any]:
        at = NOON + timedelta(seconds=number)
        outcome = self.record.outcome.value
        return self._execution | {
            "id": f"exe_{number:026d}",
            "admitted_at": at,
            "state": "COMPLETED" if ended else "RUNNING",
            "outcome": outcome if ended else None,
            "fault": self.record.fault.value if ended else None,
            "ended_at": at if ended else None,
            "completed_event": b"x" * 400 if ended else None,
        }


async def fill(database: Database, count: int, progress: Any = None) -> None:
    """Adds `count` settled calls and the open ones to an empty ledger."""
    templates: dict[tuple[str, str, str], _Template] = {}
    sums: dict[tuple[str, ...], Sums] = {}
    previous = GENESIS
    for first in range(1, count + OPEN + 1, _CHUNK):
        numbers = range(first, min(first + _CHUNK, count + OPEN + 1))
        records, calls, labels = [], [], []
        for number in numbers:
            kind = (number % 9, number % 10, number % 120, number % RARE == 0)
            template = templates.get(kind)  # type: ignore[call-overload]
            if template is None:
                template = templates[kind] = _Template(number)  # type: ignore[index]
            ended = number <= count
            calls.append(template.execution(number, ended=ended))
            of = {"execution_id": f"exe_{number:026d}", "tenant": template.record.tenant,
                  "admitted_at": NOON + timedelta(seconds=number)}  # fmt: skip
            if number % 2 == 0:
                labels.append(of | {"key": "team", "value": "red"})
            if number % RARE == 0:
                labels.append(of | {"key": "case", "value": "needle"})
            if ended:
                row = template.row(number, previous)
                previous = row["hash"]
                records.append(row)
                record = template.record
                key = (record.tenant, record.publisher, record.skill, record.outcome.value, kind_of(record).value)
                sums[key] = plus(sums.get(key, Sums()), sums_of(record))

        def write(connection: Connection, chunk: Any = (calls, records, labels)) -> None:
            for table, values in zip((executions, usage_records, execution_labels), chunk, strict=True):
                if values:
                    connection.execute(insert(table), values)

        await database.write(write)
        if progress is not None:
            progress(numbers[-1])

    def close(connection: Connection) -> None:
        connection.execute(update(ledger_head).values(sequence=count, hash=previous))
        for (tenant, publisher, skill, outcome, kind), added in sums.items():
            connection.execute(
                insert(totals).values(
                    tenant=tenant,
                    publisher=publisher,
                    skill=skill,
                    outcome=outcome,
                    kind=kind,
                    series_tenant=tenant,
                    series_publisher=publisher,
                    series_skill=skill,
                    **{column: getattr(added, column) for column in Sums.__dataclass_fields__},
                )
            )

    await database.write(close)
    await analyze(database)


async def analyze(database: Database) -> None:
    """As PostgreSQL does by itself, some time after rows came; SQLite never does unless it is asked, and isn't here."""
    if database._engines.writer.dialect.name == "postgresql":
        await database.write(lambda connection: connection.execute(text("ANALYZE")).close())
