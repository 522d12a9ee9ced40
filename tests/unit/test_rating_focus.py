"""The FOCUS 1.2 dataset: judged by the FinOps Foundation's own validator, and by what that can't see."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from xml.etree import ElementTree

import pyarrow.parquet
import pytest

from rating_examples import MS, NOW, PERIOD, plan_of, record
from skillcell.core.types import Outcome, UsageRecord
from skillcell.metering.rating.focus import FocusSource, billed_sum, focus_rows, period_bounds
from skillcell.metering.rating.focus_columns import COLUMNS, NAMES, Kind
from skillcell.metering.rating.focus_files import write_focus_csv, write_focus_parquet
from skillcell.metering.rating.quantities import collect, tagged_key_of
from skillcell.metering.rating.rate import statements

PLAN = plan_of("""
name: p
currency: EUR
publisher_share: 0.7
minimum_amount: 50
components:
- {meter: calls, unit_amount: 0.0002, free_allowance: 10}
- {meter: cpu_seconds, mode: graduated, tiers: [{up_to: 5, unit_amount: 0.09, flat_amount: 1}, {unit_amount: 0.05}]}
- {meter: memory_larger_gib_seconds, unit_amount: 0.0000166667}
- {meter: egress_bytes, mode: package, package_size: 1073741824, unit_amount: 0.09}
- {meter: output_bytes, mode: volume, tiers: [{up_to: 1000, unit_amount: 0.001}, {unit_amount: 0.0000001}]}
""")
SOURCE = FocusSource(
    provider="Example Cloud",
    region_id="eu-1",
    region_name="Frankfurt",
    account_names={"acme": 'Acme, "Labs" Inc.'},
    invoiced=True,
)
NOT_OURS = {"CAPACITY_RESERVATION_SUPPORTED", "COMMITMENT_DISCOUNT_SUPPORTED"}
APPLICABLE = ",".join(
    f"{name}_SUPPORTED"
    for name in (
        *("ACCOUNT_NAMING", "AVAILABILITY_ZONE", "MULTIPLE_PRICING_CATEGORIES", "MULTIPLE_SUB_ACCOUNT_TYPES"),
        *("MULTIPLE_BILLING_ACCOUNT_TYPES", "NEGOTIATED_PRICING", "PUBLIC_PRICE_LIST", "USAGE_MEASUREMENT"),
        *("UNIT_PRICING", "SUB_ACCOUNT", "BILLING_BASED_ON_PROVISIONED_RESOURCES", "RESOURCE_TYPE_ASSIGNMENT"),
        *("PRICING_BILLING_CURRENCY_DIFFERENCES", "VIRTUAL_CURRENCY", "REGION", "TAGGING"),
    )
)
"""Every criterion of the validator but the two for commitments, of which there are none here."""


def calls() -> list[UsageRecord]:
    made = [
        record(
            skill=("tool", "other")[n % 2],
            publisher=("pub", "alice")[n % 2],
            version=("1.0.0", "1.1.0")[n % 3 == 0],
            cpu_total_ns=n * 7_000_123,
            egress_out_bytes=n * 1000,
            output_bytes=n,
            labels={"team": "a", "note": 'say "hi", ü'} if n % 3 else {},
            outcome=Outcome.SUCCEEDED if n % 5 else Outcome.FAILED,
            ended_at=NOW.replace(day=1 + n % 20),
        )
        for n in range(120)
    ]
    earlier = datetime(2026, 10, 3, tzinfo=UTC)
    made.append(record(correction_of="q", calls=-1, billed_ms=-5, cpu_total_ns=-5 * MS, admitted_at=earlier))
    made.append(record(tenant="zeta", plan_version="p/1"))
    return made


@pytest.fixture(scope="module")
def rows() -> list[Mapping[str, object]]:
    usage = collect(calls(), key=tagged_key_of)
    plans = {PLAN.version: PLAN}
    made = [one for tenant in ("acme", "zeta") for one in statements(tenant, PERIOD, usage, plans, PLAN)]
    found = list(focus_rows(made, usage, plans, SOURCE))
    assert billed_sum(found) == sum(statement.total for statement in made)
    return found


# What the validator says


def validator() -> Path:
    """Its program, in a virtual environment of its own: it wants other versions of what we use."""
    venv = Path(os.environ.get("SKILLCELL_FOCUS_VALIDATOR", f"{sys.prefix}-focus"))
    program = venv / "bin" / "focus-validator"
    if not program.exists():
        pytest.skip(f"no {program}: deploy/one-machine/setup.sh test installs it")
    return program


def judged(data: Path) -> dict[str, str]:
    """Every rule that was looked at: `passed`, or the tag of what the validator said instead."""
    program = validator()
    result = data.with_suffix(".xml")
    command = [program, "--data-file", data, "--validate-version", "1.2.0.1", "--block-download"]
    command += ["--focus-dataset", "CostAndUsage", "--applicability-criteria", APPLICABLE]
    command += ["--output-type", "unittest", "--output-destination", result]
    (package,) = (program.parents[1] / "lib").glob("python*/site-packages/focus_validator")
    if not (data.parent / package.name).exists():
        (data.parent / package.name).symlink_to(package)  # it opens its list of currencies by a relative path
    run = subprocess.run(
        [*map(str, command)],
        cwd=data.parent,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    if not result.exists():
        raise AssertionError(run.stderr[-2000:])
    cases = ElementTree.parse(result).iter("testcase")
    return {str(case.get("name")).split(" ")[0]: case[0].tag if len(case) else "passed" for case in cases}


CONTRADICTORY = {"InvoiceId-C-004-C", "InvoiceId-C-005-C"}
"""The validator's model 1.2.0.1 has both without their conditions: an invoice id must be null, and must not."""


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_the_open_validator_finds_nothing(rows: list[Mapping[str, object]], form: str, tmp_path: Path) -> None:
    found = judged(written(rows, form, tmp_path))
    assert {rule for rule, said in found.items() if said not in {"passed", "skipped"}} - CONTRADICTORY == set()
    assert sum(said == "passed" for said in found.values()) > 280


def test_the_open_validator_would_find_something(rows: list[Mapping[str, object]], tmp_path: Path) -> None:
    wrong = [
        dict(row) | {"ChargeCategory": "Usages", "ListUnitPrice": Decimal(-1), "ProviderName": None} for row in rows
    ]
    found = judged(written(wrong, "csv", tmp_path))
    broken = {rule for rule, said in found.items() if said not in {"passed", "skipped"}}
    assert {"ChargeCategory-C-003-M", "ListUnitPrice-C-008-M", "ProviderName-C-003-M"} <= broken


def written(rows: list[Mapping[str, object]], form: str, folder: Path) -> Path:
    path = folder / f"focus.{form}"
    if form == "parquet":
        assert write_focus_parquet(rows, path) == len(rows)
    else:
        with path.open("w", newline="", encoding="utf-8") as out:
            assert write_focus_csv(rows, out) == len(rows)
    return path


# What it can't see


def test_price_times_quantity_is_the_cost_to_the_last_digit(rows: list[Mapping[str, object]]) -> None:
    for row in rows:
        if row["ChargeCategory"] == "Usage":
            price, quantity = row["ListUnitPrice"], row["PricingQuantity"]
            assert isinstance(price, Decimal)
            assert isinstance(quantity, Decimal)
            assert row["ListCost"] == row["ContractedCost"] == price * quantity


def test_a_row_costs_near_its_unit_price_before_rounding_of_the_line(rows: list[Mapping[str, object]]) -> None:
    for name in ("acme", "zeta"):
        own = [row for row in rows if row["BillingAccountId"] == name and row["ChargeCategory"] == "Usage"]
        listed = sum(Decimal(str(row["ListCost"])) for row in own)
        assert abs(listed - billed_sum(own)) < Decimal("0.01") * len(PLAN.components)


def test_only_the_correction_of_an_earlier_month_is_one(rows: list[Mapping[str, object]]) -> None:
    corrections = [row for row in rows if row["ChargeClass"] == "Correction"]
    assert {row["ConsumedQuantity"] for row in corrections if row["SkuId"] == "calls"} == {Decimal(-1)}
    assert all(str(row["ListUnitPrice"])[0] != "-" for row in corrections)


def test_a_row_tells_who_what_when_and_how(rows: list[Mapping[str, object]]) -> None:
    (row,) = [
        row
        for row in rows
        if (row["SkuId"], row["ResourceId"], row["x_Outcome"], row["x_SkillVersion"], row["ChargePeriodStart"])
        == ("calls", "alice/other", "FAILED", "1.1.0", datetime(2026, 11, 16, tzinfo=UTC))
    ]
    assert row["BillingAccountName"] == 'Acme, "Labs" Inc.'
    assert row["ChargePeriodEnd"] == datetime(2026, 11, 17, tzinfo=UTC)
    assert (row["BillingPeriodStart"], row["BillingPeriodEnd"]) == period_bounds(PERIOD)
    assert (row["PricingUnit"], row["ConsumedUnit"]) == ("Requests", "Requests")
    assert (row["PublisherName"], row["ProviderName"]) == ("alice", "Example Cloud")
    assert (row["SkuPriceId"], row["x_PlanVersion"]) == ("p/1/0", "p/1")
    assert row["SkuPriceDetails"] == '{"x_Mode": "flat", "x_FreeAllowance": "10", "x_UnitAmount": "0.0002"}'
    assert row["InvoiceId"] == "2026-11-acme-EUR"
    assert row["Tags"] is None


def test_a_minimum_is_an_adjustment_of_the_platforms(rows: list[Mapping[str, object]]) -> None:
    made = {row["BillingAccountId"]: row for row in rows if row["ChargeCategory"] == "Adjustment"}
    assert set(made) == {"acme", "zeta"}
    assert made["zeta"]["PublisherName"] == "Example Cloud"
    assert all(row["ConsumedQuantity"] is None and row["ResourceId"] is None for row in made.values())


def test_an_open_period_has_no_invoice() -> None:
    usage = collect([record()], key=tagged_key_of)
    made = statements("acme", PERIOD, usage, {PLAN.version: PLAN})
    found = focus_rows(made, usage, {PLAN.version: PLAN}, replace(SOURCE, invoiced=False))
    assert {row["InvoiceId"] for row in found} == {None}


@pytest.mark.parametrize(("period", "end"), [("2026-12", "2027-01-01"), ("2028-02", "2028-03-01")])
def test_a_period_ends_where_the_next_begins(period: str, end: str) -> None:
    assert period_bounds(period)[1] == datetime.fromisoformat(end).replace(tzinfo=UTC)


def test_csv_numbers_have_a_point_times_a_z_and_null_is_empty(rows: list[Mapping[str, object]], tmp_path: Path) -> None:
    with written(rows, "csv", tmp_path).open(newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert list(read[0]) == list(NAMES)
    kinds = {column.name: column for column in COLUMNS}
    for row in read:
        for name, text in row.items():
            assert text or kinds[name].nullable, name
            if text and kinds[name].kind is Kind.TIME:
                datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ")
            if text and kinds[name].kind.value >= 0:
                assert "." in text
                assert "E" not in text
    assert sum(Decimal(row["BilledCost"]) for row in read) == billed_sum(rows)
    assert {row["Tags"] for row in read} == {"", '{"note": "say \\"hi\\", ü", "team": "a"}'}


def test_parquet_keeps_decimals_and_times(rows: list[Mapping[str, object]], tmp_path: Path) -> None:
    table = pyarrow.parquet.read_table(written(rows, "parquet", tmp_path))
    types = {column.name: str(table.schema.field(column.name).type) for column in COLUMNS}
    assert types["BilledCost"] == "decimal128(38, 24)"
    assert types["ChargePeriodStart"].startswith("timestamp[")
    assert types["ChargePeriodStart"].endswith("tz=UTC]")
    assert sum(table["BilledCost"].to_pylist()) == billed_sum(rows)
    assert table["ChargePeriodStart"].to_pylist()[0] == rows[0]["ChargePeriodStart"]


def test_an_empty_dataset_has_its_columns(tmp_path: Path) -> None:
    assert pyarrow.parquet.read_table(written([], "parquet", tmp_path)).column_names == list(NAMES)
    assert written([], "csv", tmp_path).read_text().strip() == ",".join(NAMES)
