"""Whether pages stay fast at a million records: each kind of page on a small ledger and on a large one, in one run.

    python tests/benchmarks/bench_listing.py [--records 1000000] [--small 10000] [--url sqlite:///PATH] [--repeat 20]

Fills both (some minutes for a million), asks for the first, a middle and the last page of each question, and prints p50
and p99 of the large one, its ratio to the small one, and the index that serves it. `--url` names the store of the large
one, empty or filled by an earlier run: `postgresql://…` measures PostgreSQL. The small one is then SQLite still, so
ratios mean something for SQLite alone.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sqlalchemy import Connection, event

from ledger_fill import fill
from ledger_stores import ACME, BILLER, NOON
from skillcell.core.types import ExecutionState, Outcome, Principal
from skillcell.metering.ledger import Ledger
from skillcell.metering.records import ExecutionFilter, Grouping, UsageFilter
from skillcell.storage.columns import to_microseconds
from skillcell.storage.database import Database
from skillcell.storage.pages import encode_token, fingerprint

PAGE = 50
Ask = Callable[[Ledger, int], Awaitable[Any]]
"""Asks once; the number is how many records there are."""
HOUR = timedelta(hours=1)
EXECUTIONS = {
    "all": ExecutionFilter(),
    "completed": ExecutionFilter(states=(ExecutionState.COMPLETED,)),
    "running": ExecutionFilter(states=(ExecutionState.RUNNING,)),
    "rare outcome": ExecutionFilter(outcomes=(Outcome.OUT_OF_MEMORY,)),
    "common Skill": ExecutionFilter(publisher="tools", skill="extract"),
    "rare Skill": ExecutionFilter(publisher="tools", skill="rare"),
    "common label": ExecutionFilter(labels={"team": "red"}),
    "rare label": ExecutionFilter(labels={"case": "needle"}),
    "an hour": ExecutionFilter(since=NOON + HOUR, until=NOON + 2 * HOUR),
}
USAGE: dict[str, tuple[Principal, UsageFilter]] = {
    "all": (BILLER, UsageFilter()),
    "own": (ACME, UsageFilter()),
    "publisher": (BILLER, UsageFilter(publisher="tools")),
    "common Skill": (BILLER, UsageFilter(publisher="tools", skill="extract")),
    "own rare Skill": (ACME, UsageFilter(publisher="tools", skill="rare")),
    "common label": (ACME, UsageFilter(labels={"team": "red"})),
    "rare label": (ACME, UsageFilter(labels={"case": "needle"})),
    "an hour": (BILLER, UsageFilter(since=NOON + HOUR, until=NOON + 2 * HOUR)),
    "one execution": (BILLER, UsageFilter(execution_id=f"exe_{777:026d}")),
}


def token(wanted: ExecutionFilter, number: int) -> str:
    """The token of a page that begins below the call with this number, made as the service makes it."""
    question = fingerprint("executions", ACME.tenant, wanted.states, wanted.outcomes, wanted.publisher, wanted.skill,
                           sorted(wanted.labels.items()), wanted.since, wanted.until)  # fmt: skip
    return encode_token(question, to_microseconds(NOON + timedelta(seconds=number)), f"exe_{number:026d}")


def questions() -> dict[str, Ask]:
    asked: dict[str, Ask] = {}
    places: tuple[tuple[str, Callable[[int], int]], ...] = (
        ("first", lambda _: 0),
        ("middle", lambda count: count // 2),
        ("last", lambda count: count - PAGE),
    )
    for name, wanted in EXECUTIONS.items():
        for place, of in places:

            async def executions(ledger: Ledger, count: int, wanted: Any = wanted, of: Any = of) -> Any:
                at = of(count)
                return await ledger.list_executions(ACME, wanted, PAGE, token(wanted, count - at) if at else "")

            asked[f"executions, {name}, {place}"] = executions
    for name, (who, usage) in USAGE.items():
        for place, of in places:

            async def records(ledger: Ledger, count: int, who: Any = who, usage: Any = usage, of: Any = of) -> Any:
                return await ledger.list_usage_records(who, of(count), PAGE, usage)

            asked[f"records, {name}, {place}"] = records

    async def hour(ledger: Ledger, _: int) -> Any:
        where = UsageFilter(since=NOON + HOUR, until=NOON + 2 * HOUR)
        return await ledger.usage_summary(BILLER, Grouping(by=("tenant",), where=where))

    async def everything(ledger: Ledger, _: int) -> Any:
        return await ledger.usage_summary(BILLER, Grouping(by=("tenant",)))

    async def scrape(ledger: Ledger, _: int) -> Any:
        ledger._snapshot = None  # else an idle ledger's totals are not read again
        return await ledger.snapshot()

    return asked | {"summary, an hour": hour, "summary, everything": everything, "scrape": scrape}


async def plan_of(ledger: Ledger, ask: Ask, count: int) -> str:
    """The indexes of the page's query."""
    engine = ledger._database._engines.reader
    explain = "EXPLAIN" if engine.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN"
    plans: list[str] = []

    def before(connection: Connection, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.startswith(("SELECT executions.", "SELECT usage_records.")):
            beside = cursor.connection.cursor()
            beside.execute(f"{explain} {statement}", parameters)
            plans.append(" ".join(str(row[-1]) for row in beside.fetchall()))
            beside.close()

    event.listen(engine, "before_cursor_execute", before)
    try:
        await ask(ledger, count)
    finally:
        event.remove(engine, "before_cursor_execute", before)
    found = dict.fromkeys(re.findall(r"(?:ix|uq|pk)_\w+|PRIMARY KEY|SCAN \w+|Seq Scan|TEMP B-TREE", " ".join(plans)))
    return ", ".join(found) or "-"


async def measure(ledger: Ledger, ask: Ask, count: int, repeat: int) -> list[float]:
    """Milliseconds of each, after one that fills the caches; what takes seconds is asked three times."""
    taken = []
    began = time.perf_counter()
    await ask(ledger, count)
    slow = time.perf_counter() - began > 0.5
    for _ in range(3 if slow else repeat):
        start = time.perf_counter()
        await ask(ledger, count)
        taken.append((time.perf_counter() - start) * 1000)
    return taken


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--small", type=int, default=10_000)
    parser.add_argument("--url", default="")
    parser.add_argument("--repeat", type=int, default=20)
    options = parser.parse_args()
    async with AsyncExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-"))
        ledgers = []
        for name, count, url in (("small", options.small, ""), ("large", options.records, options.url)):
            database = await stack.enter_async_context(await Database.open(url or f"sqlite:///{directory}/{name}.db"))
            ledger = Ledger(database)
            if not (await ledger.head()).sequence:
                start = time.perf_counter()
                await fill(database, count, lambda at, of=count: print(f"\r{at}/{of}", end="", file=sys.stderr))
                print(f"\rfilled {count} records in {time.perf_counter() - start:.0f} s", file=sys.stderr)
            ledgers.append((ledger, (await ledger.head()).sequence))
        (small, few), (large, many) = ledgers
        print(f"{'':<36} {f'{many} records':>20}   ratio to {few}   served by")
        print(f"{'':<36} {'p50 ms':>9} {'p99 ms':>10}   {'of p50':>12}")
        for name, ask in questions().items():
            base = statistics.median(await measure(small, ask, few, options.repeat))
            taken = sorted(await measure(large, ask, many, options.repeat))
            middle, worst = statistics.median(taken), taken[min(len(taken) - 1, int(len(taken) * 0.99))]
            served = await plan_of(large, ask, many)
            print(f"{name:<36} {middle:>9.2f} {worst:>10.2f}   {middle / base:>12.1f}   {served}", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
