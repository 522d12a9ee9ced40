"""From a plan in a file to a statement: real calls, rated by what they used, charged once, put right afterwards."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pyarrow.parquet
import pytest

from e2e.conftest import publish_lab
from e2e.gateway import SKILLCELL, Gateway, new_gateway, serving
from e2e.lab import run, spec
from skillcell.client import SkillcellClient
from skillcell.core import events
from skillcell.core.periods import Period
from skillcell.core.rate_plans import RatePlan
from skillcell.core.types import SECOND_NS, LimitRequest, Outcome, UsageRecord
from skillcell.metering.rating.cost import cost_of
from skillcell.metering.rating.payouts import payout
from skillcell.metering.rating.quantities import collect, most_of, sums_of
from skillcell.metering.rating.rate import statements

PLAN = """\
name: standard
currency: EUR
publisher_share: 0.7
components:
  - {meter: calls, unit_amount: 0.25}
  - meter: billed_seconds
    mode: graduated
    tiers: [{up_to: 0.05, unit_amount: 90}, {unit_amount: 3}]
  - {meter: memory_larger_gib_seconds, unit_amount: 11}
"""
PRINT = ("--entrypoint", "run", "--", "print(1)")
BROKEN = """\
name: standard
currency: Euro
components:
  - {meter: calls}
  - {meter: wishes, unit_amount: 1}
"""


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway of its own, since what others call on a shared one would be charged too: its calls have a plan."""
    home = tmp_path_factory.mktemp("bank")
    with serving(new_gateway(home, "oci")) as gateway:
        publish_lab(gateway, home)
        (home / "plan.yaml").write_text(PLAN)
        (home / "broken.yaml").write_text(BROKEN)
        (home / "unrated.json").write_text(typed(gateway, "call", "dev/lab", "--json", *PRINT).stdout)
        assert typed(gateway, "billing", "plan", "create", "plan.yaml").stdout == "standard/1\n"
        assert typed(gateway, "billing", "assign", "dev", "standard").stdout == "dev is rated by standard\n"
        yield gateway


@pytest.fixture
async def client(bank: Gateway) -> AsyncIterator[SkillcellClient]:
    async with bank.client() as client:
        yield client


def typed(bank: Gateway, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """The real console script against the gateway."""
    env = {"PATH": os.environ["PATH"], "HOME": str(bank.data.parent), "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    env |= {"SKILLCELL_ADDRESS": bank.address, "SKILLCELL_API_KEY": bank.key}
    done = subprocess.run(
        [SKILLCELL, *arguments],
        check=False,
        env=env,
        cwd=bank.data.parent,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "Traceback" not in done.stderr
    assert done.returncode == code, done.stderr
    return done


async def command(bank: Gateway, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(typed, bank, *arguments, code=code)


async def told(bank: Gateway, *arguments: str) -> Any:
    return json.loads((await command(bank, *arguments, "--json")).stdout)


async def everything(client: SkillcellClient) -> list[UsageRecord]:
    return [record async for record in client.usage.stream()]


async def the_plan(client: SkillcellClient) -> RatePlan:
    return (await client.admin.rate_plans(name="standard")).items[0].plan


async def test_a_plan_that_is_not_valid_is_refused_with_each_place_in_the_document(bank: Gateway) -> None:
    done = await command(bank, "billing", "plan", "create", "broken.yaml", code=1)
    places = [line.partition(":")[0] for line in done.stderr.splitlines()]
    assert places == ["currency", "components[0].unit_amount", "components[1].meter", "error"]
    assert "3 things are wrong with it" in done.stderr
    missing = await command(bank, "billing", "plan", "create", "nowhere.yaml", code=1)
    assert "nowhere.yaml: No such file" in missing.stderr


async def test_a_plan_is_made_once_listed_and_shown(bank: Gateway) -> None:
    assert (await command(bank, "billing", "plan", "create", "plan.yaml")).stdout == "standard/1\n"
    assert "standard/1 *" in (await command(bank, "billing", "plan", "list")).stdout
    shown = (await command(bank, "billing", "plan", "show", "standard")).stdout
    assert "publisher's share 0.7" in shown
    assert "0.05" in shown
    assert (await told(bank, "billing", "plan", "show", "standard/1"))["plan"]["components"][0]["unit_amount"] == "0.25"
    nothing = await command(bank, "billing", "plan", "show", "gold", code=1)
    assert "there is no rate plan 'gold'" in nothing.stderr
    refused = await command(bank, "billing", "assign", "dev", "gold", code=1)
    assert "billing plan list" in refused.stderr


async def test_each_calls_cost_is_told_at_its_end_and_kept(bank: Gateway, client: SkillcellClient) -> None:
    plan = await the_plan(client)
    results = [await run(client, f"print({number} * 'x')") for number in range(3)]
    for result in results:
        assert result.usage.plan_version == "standard/1"
        assert result.completed.cost == cost_of(result.usage, plan)
        stored = (await client.get(result.execution_id)).completed
        assert stored == result.completed
        kinds = [event.kind async for event in client.watch(result.execution_id)]
        assert kinds[-1] == result.completed
    estimate = await client.estimate("dev/lab", **spec("print(1)"))
    assert estimate.max_cost is not None
    cost = results[0].completed.cost
    assert cost is not None
    assert estimate.max_cost.amount > cost.amount > 0
    assert (estimate.max_cost.currency, estimate.max_cost.plan_version) == ("EUR", "standard/1")


async def test_the_command_line_tells_the_cost(bank: Gateway) -> None:
    assert json.loads((bank.data.parent / "unrated.json").read_text())["cost"] is None
    done = await command(bank, "call", "dev/lab", *PRINT)
    assert "EUR, plan standard/1: calls 0.25, billed seconds " in done.stderr
    found = json.loads((await command(bank, "call", "dev/lab", "--json", *PRINT)).stdout)
    parts = [Decimal(line["amount"]) for line in found["cost"]["lines"]]
    assert sum(parts) == Decimal(found["cost"]["amount"])
    assert found["cost"]["plan_version"] == found["usage"]["plan_version"] == "standard/1"


async def test_a_statement_is_what_rating_makes_of_the_streamed_records(bank: Gateway, client: SkillcellClient) -> None:
    await run(client, "print(1)")
    records, plan = await everything(client), await the_plan(client)
    month = str(Period.of(records[0].ended_at))
    (expected,) = statements("dev", month, collect(records), {plan.version: plan}, plan)
    found = await client.billing.statement(month)
    assert (found.total, found.open, found.as_of_sequence) == (expected.total, True, len(records))
    assert [(line.skill, line.meter, line.quantity, line.amount) for line in found.lines] == [
        (f"{line.publisher}/{line.skill}", line.meter.value.lower() if line.meter else "minimum", line.quantity,
         line.amount)
        for line in expected.lines
    ]  # fmt: skip
    shown = (await command(bank, "billing", "statement")).stdout
    assert f"total {found.total:f} EUR for dev, {month}" in shown
    assert (await told(bank, "billing", "statement", "--tenant", "dev", "--period", month))["total"] == str(found.total)
    earned = await client.billing.payout(month, publisher="dev")
    (same,) = payout("dev", month, [expected], {plan.version: plan})
    assert earned.total == same.total
    assert [line.publisher_share + line.platform_fee for line in earned.lines] == [found.total]
    assert "dev/lab" in (await command(bank, "billing", "payout", "--publisher", "dev")).stdout


async def test_a_focus_dataset_sums_to_the_statement_in_csv_and_parquet(bank: Gateway, client: SkillcellClient) -> None:
    await run(client, "print(1)")
    month = str(Period.of(datetime.now(UTC)))
    export = ("billing", "export", "--format", "focus", "--period", month)
    text = (await command(bank, *export, "--provider", "Acme Cloud")).stdout
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    total = (await client.billing.statement(month)).total
    assert sum(Decimal(row["BilledCost"]) for row in rows) == total
    assert {(row["ProviderName"], row["BillingAccountId"]) for row in rows} == {("Acme Cloud", "dev")}
    done = await command(bank, *export, "--tenant", "dev", "--out", "charges.parquet")
    assert done.stderr == f"{len(rows)} charges in charges.parquet\n"
    table = pyarrow.parquet.read_table(bank.data.parent / "charges.parquet")
    assert sum(table.column("BilledCost").to_pylist()) == total
    assert table.num_rows == len(rows)
    wrong = await command(bank, "billing", "export", "--format", "focus", code=2)
    assert "takes a month" in wrong.stderr
    assert not [path for path in bank.data.parent.iterdir() if path.suffix == ".part"]


async def test_a_correction_takes_back_and_shows_in_statement_and_reconciliation(
    bank: Gateway, client: SkillcellClient
) -> None:
    record = (await run(client, "print(1)")).usage
    before = await client.billing.statement(str(Period.of(record.ended_at)))
    arguments = ("billing", "correct", record.event_id, "--billed-ms", "-1", "--calls", "-1", "--reason", "by mistake")
    done = await command(bank, *arguments)
    assert f"corrects {record.event_id} of dev" in done.stdout
    after = await client.billing.statement(before.period)
    calls = [sum(line.quantity for line in one.lines if line.meter == "calls") for one in (before, after)]
    assert calls[0] - calls[1] == 1
    assert before.total > after.total
    again = await command(bank, *arguments, code=1)
    assert "only 0 is left to take back" in again.stderr
    unknown = await command(bank, "billing", "correct", "evt_none", "--calls", "-1", "--reason", "x", code=1)
    assert "usage list --json" in unknown.stderr
    samples = bank.samples()
    labels = tuple(sorted({"tenant": "dev", "publisher": "dev", "skill": "lab", "outcome": "SUCCEEDED"}.items()))
    assert samples["skillcell_correction_calls", labels] == -1
    assert samples["skillcell_calls_total", labels] == len([r for r in await everything(client) if not r.correction_of])
    assert (await told(bank, "usage", "reconcile", "--metrics", bank.metrics))["equal"] is True


async def test_usage_adds_up_by_every_dimension(bank: Gateway) -> None:
    by = "tenant,publisher,skill,version,entrypoint,outcome,isolation,label:team"
    found = await told(bank, "usage", "summary", "--by", by, "--bucket", "month")
    (group,) = found["groups"]
    assert group["keys"]["entrypoint"] == "run"
    assert group["totals"]["run_ns"] > 0
    shown = (await command(bank, "usage", "summary", "--by", "entrypoint,isolation")).stdout
    assert "ENTRYPOINT" in shown
    assert "ARTIFACTS" in shown


async def test_a_month_is_closed_when_it_is_over(bank: Gateway, client: SkillcellClient) -> None:
    now = Period.of(datetime.now(UTC))
    early = await command(bank, "billing", "close", str(now), code=1)
    assert "is not over before" in early.stderr
    last = Period(now.year - (now.month == 1), now.month - 1 or 12)
    for _ in range(2):
        assert (await told(bank, "billing", "close", str(last)))["last_sequence"] == 0
    wrong = await command(bank, "billing", "close", "November", code=2)
    assert "is not a month such as 2026-11" in wrong.stderr


async def test_a_call_that_the_gateway_lost_costs_nothing_and_says_so(bank: Gateway) -> None:
    async with bank.client() as client:
        started = await client.start("dev/lab", **spec("import time; time.sleep(60)"))
        async for event in client.watch(started.id):
            if isinstance(event.kind, events.Started):
                break
    await asyncio.to_thread(bank.kill)
    await asyncio.to_thread(bank.start)
    async with bank.client() as client:
        lost = (await client.get(started.id)).completed
        assert lost is not None
        assert lost.cost is not None
        assert (lost.billable, lost.cost.amount, lost.cost.plan_version) == (False, 0, "standard/1")
        assert (await client.usage.verify()).intact


@pytest.mark.parametrize(
    ("code", "limits", "outcome"),
    [
        ("import time; time.sleep(30)", LimitRequest(wall_ns=SECOND_NS // 4), Outcome.TIMED_OUT),
        (
            "while True: pass",
            LimitRequest(wall_ns=SECOND_NS // 4, cpu_ns=SECOND_NS // 4, milli_cpus=1000),
            Outcome.TIMED_OUT,
        ),
        (
            "while True: print('x' * 1000)",
            LimitRequest(output_bytes=10_500, artifact_bytes=1),
            Outcome.OUTPUT_LIMIT_EXCEEDED,
        ),
    ],
)
async def test_a_call_that_is_stopped_costs_no_more_than_was_estimated(
    client: SkillcellClient, code: str, limits: LimitRequest, outcome: Outcome
) -> None:
    """The last ones here: the others count what was called so far, and all of it succeeded."""
    estimate = await client.estimate("dev/lab", **spec(code, limits=limits))
    completed = (await run(client, code, limits=limits)).completed
    assert completed.outcome in (outcome, Outcome.CPU_LIMIT_EXCEEDED)
    assert estimate.max_cost is not None
    assert completed.cost is not None
    assert completed.cost.amount <= estimate.max_cost.amount
    used, most = asdict(sums_of(completed.usage)), asdict(most_of(estimate.limits))
    assert {name: (used[name], most[name]) for name in used if used[name] > most[name]} == {}
