"""Trying a plan: the same rating, of usage that nobody had."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rating_examples import calls_plan, statement_of
from skillcell.cli.main import app
from skillcell.core.errors import Fault, FaultKind
from skillcell.core.rate_plans import RateMeter
from skillcell.metering.rating.preview import preview, read_quantities
from skillcell.metering.rating.quantities import UsageSums, quantity

STANDARD = Path(__file__).parents[2] / "deploy" / "plans" / "standard.yaml"


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["billing", "plan", "preview", *arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize("meter", RateMeter)
def test_a_quantity_is_the_usage_that_has_it(meter: RateMeter) -> None:
    assert quantity(meter, read_quantities([f"{meter.value.lower()}=-1234567"])) == -1234567


def test_quantities_have_the_places_of_what_is_counted() -> None:
    assert read_quantities(["billed_seconds=0.001", "memory_used_gib_seconds=0.000000001"]) == UsageSums(
        billed_ms=1, memory_used_byte_ns=2**30
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["gpu=1"], "gpu: is no meter; these are: calls"),
        (["calls"], "calls: is ''; a decimal number is needed, as calls=1000"),
        (["calls=1e9"], "calls: is '1e9'"),
        (["calls=NaN"], "calls: is 'NaN'"),
        (["calls=1.5"], "calls: is 1.5; it is counted in steps of 1"),
        (["billed_seconds=0.0001"], "billed_seconds: is 0.0001; it is counted in steps of 0.001"),
        (["calls=1", "calls=2"], "calls: is given twice"),
        (["x" * 999], "x: is no meter"),
    ],
)
def test_what_is_no_quantity_is_said(given: list[str], said: str) -> None:
    with pytest.raises(Fault) as refused:
        read_quantities(given)
    assert refused.value.kind is FaultKind.INVALID_ARGUMENT
    assert said in refused.value.message
    assert len(refused.value.message) < 300


def test_a_preview_is_what_a_statement_would_be() -> None:
    plan = calls_plan(
        "mode: package, unit_amount: 5, package_size: 100, free_allowance: 100", more="minimum_amount: 30"
    )
    made, real = preview(plan, UsageSums(calls=201)), statement_of(plan, UsageSums(calls=201))
    assert [line.amount for line in made.lines] == [line.amount for line in real.lines]
    assert made.total == real.total == 30


def test_the_command_needs_no_gateway() -> None:
    code, out, err = run(str(STANDARD), "calls=3000000", "egress_bytes=20000000000")
    assert (code, err.strip()) == (0, "total 5.00 EUR")
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["calls", "egress_bytes", "minimum"]


def test_the_command_answers_in_json() -> None:
    code, out, _ = run(str(STANDARD), "calls=51000000", "--json")
    found = json.loads(out)
    assert (code, found["total"], found["lines"][0]["amount"]) == (0, "10.00", "10.00")


def test_the_command_tells_each_mistake_in_a_plan_with_its_place(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("name: p\ncurrency: EURO\ncomponents: [{meter: calls, mode: package, unit_amount: 1}]\n")
    code, out, err = run(str(bad), "calls=1")
    assert (code, out) == (1, "")
    assert "currency: is 'EURO'" in err
    assert "components[0].package_size: is missing" in err
    assert run(str(STANDARD), "gpu=1")[0] == 1
