"""Plan documents: what is read of them, and that each mistake is told with its place."""

from __future__ import annotations

import contextlib
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rating_examples import plan_of
from skillcell.core.errors import Fault, FaultKind
from skillcell.core.rate_plans import RateMeter, TierMode, version_number
from skillcell.metering.rating.currencies import MINOR_DIGITS
from skillcell.metering.rating.plan_document import plan_document, plan_from_document, plan_schema, read_plan
from skillcell.metering.rating.plan_reader import MAX_VIOLATIONS

SAMPLES = sorted((Path(__file__).parents[2] / "deploy" / "plans").glob("*.yaml"))
GOOD: dict[str, Any] = {"name": "p", "currency": "EUR", "components": [{"meter": "calls", "unit_amount": "1"}]}
TIERS = [{"up_to": "10", "unit_amount": "2"}, {"unit_amount": "1"}]


def with_component(**given: Any) -> dict[str, Any]:
    return GOOD | {"components": [{"meter": "calls"} | given]}


def with_tiers(*tiers: dict[str, str], **given: Any) -> dict[str, Any]:
    return with_component(mode="graduated", tiers=list(tiers), **given)


def violations(data: bytes) -> dict[str, str]:
    with pytest.raises(Fault) as refused:
        read_plan(data)
    assert (refused.value.kind, refused.value.reason) == (FaultKind.INVALID_ARGUMENT, "INVALID_FIELD")
    first = refused.value.violations[0]
    assert first.description in refused.value.message
    assert first.field == "plan" or first.field in refused.value.message
    return {violation.field: violation.description for violation in refused.value.violations}


BAD = {
    "name missing": ({**GOOD, "name": ""}, "name", "is missing"),
    "name upper": ({**GOOD, "name": "Std"}, "name", "a-z, 0-9 and '-'"),
    "name long": ({**GOOD, "name": "a" * 64}, "name", "1 to 63"),
    "name a list": ({**GOOD, "name": ["a"]}, "name", "is a list; text is needed"),
    "currency missing": ({"name": "p", "components": GOOD["components"]}, "currency", "is missing"),
    "currency lower": ({**GOOD, "currency": "eur"}, "currency", "ISO 4217"),
    "currency unknown": ({**GOOD, "currency": "XXX"}, "currency", "is 'XXX'; an active ISO 4217 code"),
    "minor digits": ({**GOOD, "minor_digits": "10"}, "minor_digits", "from 0 to 9"),
    "minor digits float": ({**GOOD, "minor_digits": "2.0"}, "minor_digits", "an integer"),
    "unknown key": ({**GOOD, "colour": "red"}, "colour", "is no key of a plan's top level; these are: name"),
    "version": ({**GOOD, "version": "p/1"}, "version", "given by the gateway"),
    "no components": ({**GOOD, "components": []}, "components", "is empty; a list of 1 to 64"),
    "components missing": ({"name": "p", "currency": "EUR"}, "components", "is missing"),
    "components a mapping": ({**GOOD, "components": {}}, "components", "is a mapping"),
    "65 components": ({**GOOD, "components": GOOD["components"] * 65}, "components", "has 65 components; at most 64"),
    "component text": ({**GOOD, "components": ["calls"]}, "components[0]", "is text; a mapping is needed"),
    "minimum finer than cents": ({**GOOD, "minimum_amount": "0.001"}, "minimum_amount", "2 decimal places"),
    "minimum negative": ({**GOOD, "minimum_amount": "-1"}, "minimum_amount", "is -1; 0 or more"),
    "share above 1": ({**GOOD, "publisher_share": "1.01"}, "publisher_share", "from 0 to 1"),
    "share negative": ({**GOOD, "publisher_share": "-0.1"}, "publisher_share", "0 or more"),
    "hints": ({**GOOD, "accept_price_hints": True}, "accept_price_hints", "not served"),
    "hints a word": ({**GOOD, "accept_price_hints": "maybe"}, "accept_price_hints", "true or false"),
    "meter missing": (GOOD | {"components": [{"unit_amount": "1"}]}, "components[0].meter", "is missing; one of calls"),
    "meter unknown": (with_component(meter="gpu", unit_amount="1"), "components[0].meter", "is 'gpu'; one of calls"),
    "mode unknown": (with_component(mode="tiered", unit_amount="1"), "components[0].mode", "one of flat, graduated"),
    "price missing": (with_component(), "components[0].unit_amount", "is missing; a decimal number"),
    "price a word": (with_component(unit_amount="free"), "components[0].unit_amount", "is 'free'; a decimal number"),
    "price NaN": (with_component(unit_amount="NaN"), "components[0].unit_amount", "is 'NaN'"),
    "price infinite": (with_component(unit_amount=".inf"), "components[0].unit_amount", "is '.inf'"),
    "price true": (with_component(unit_amount=True), "components[0].unit_amount", "is True"),
    "price negative": (with_component(unit_amount="-0.1"), "components[0].unit_amount", "is -0.1; 0 or more"),
    "price a comma": (with_component(unit_amount="0,1"), "components[0].unit_amount", "is '0,1'"),
    "price grouped": (with_component(unit_amount="1_000"), "components[0].unit_amount", "is '1_000'"),
    "price fine": (with_component(unit_amount="1e-19"), "components[0].unit_amount", "at most 18 decimal places"),
    "price large": (
        with_component(unit_amount="1" + "0" * 18),
        "components[0].unit_amount",
        "at most 18 digits before",
    ),
    "exponent": (with_component(unit_amount="1e999"), "components[0].unit_amount", "at most 18 digits before"),
    "exponent bomb": (with_component(unit_amount="1e999999999"), "components[0].unit_amount", "a decimal number"),
    "many digits": (with_component(unit_amount="0." + "1" * 5000), "components[0].unit_amount", "a decimal number"),
    "allowance": (with_component(unit_amount="1", free_allowance="x"), "components[0].free_allowance", "is 'x'"),
    "flat with tiers": (with_component(unit_amount="1", tiers=TIERS), "components[0].tiers", "mode flat has none"),
    "component key": (with_component(unit_amount="1", price="2"), "components[0].price", "of a plan's component"),
    "package without size": (
        with_component(mode="package", unit_amount="1"),
        "components[0].package_size",
        "is missing; a decimal number",
    ),
    "package of nothing": (
        with_component(mode="package", unit_amount="1", package_size="0"),
        "components[0].package_size",
        "is 0; a number above 0",
    ),
    "size without package": (
        with_component(unit_amount="1", package_size="5"),
        "components[0].package_size",
        "goes with mode package alone",
    ),
    "tiers missing": (with_component(mode="volume"), "components[0].tiers", "is missing; a list of 1 to 32 tiers"),
    "tiers empty": (with_component(mode="volume", tiers=[]), "components[0].tiers", "is empty"),
    "33 tiers": (
        with_tiers(*({"up_to": str(n), "unit_amount": "1"} for n in range(1, 33)), {"unit_amount": "1"}),
        "components[0].tiers",
        "has 33 tiers; at most 32",
    ),
    "tier price": (with_tiers(TIERS[0], {}), "components[0].tiers[1].unit_amount", "is missing"),
    "tier and price": (with_tiers(*TIERS, unit_amount="1"), "components[0].unit_amount", "has its prices in tiers"),
    "tiers fall": (
        with_tiers({"up_to": "10", "unit_amount": "1"}, {"up_to": "5", "unit_amount": "1"}, {"unit_amount": "1"}),
        "components[0].tiers[1].up_to",
        "is 5; more than 10 is needed",
    ),
    "tiers stay": (with_tiers(TIERS[0], *TIERS), "components[0].tiers[1].up_to", "is 10; more than 10 is needed"),
    "first tier holds nothing": (
        with_tiers({"up_to": "0", "unit_amount": "1"}, {"unit_amount": "1"}),
        "components[0].tiers[0].up_to",
        "is 0; more than 0 is needed",
    ),
    "last tier ends": (
        with_tiers({"up_to": "10", "unit_amount": "1"}),
        "components[0].tiers[0].up_to",
        "the last tier has no end",
    ),
    "early tier open": (
        with_tiers({"unit_amount": "1"}, {"unit_amount": "1"}),
        "components[0].tiers[0].up_to",
        "is missing",
    ),
    "tier key": (with_tiers({"upto": "5", **TIERS[0]}, TIERS[1]), "components[0].tiers[0].upto", "of a plan's tier"),
}
NOT_IN_A_SCHEMA = {
    *("currency unknown", "minimum finer than cents", "price fine"),
    *("tiers fall", "tiers stay", "last tier ends", "early tier open"),
}
"""What a JSON Schema can't say: order, lists of currencies, arithmetic on exponents."""


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("form", ["json", "yaml"])
def test_a_bad_plan_is_refused_with_the_place(case: str, form: str) -> None:
    document, path, said = BAD[case]
    data = json.dumps(document)
    data = yaml.safe_dump(json.loads(data)) if form == "yaml" else data  # loaded anew, or it would have aliases
    found = violations(data.encode())
    assert said in found[path].replace("is 'True'", "is True").replace("is 'true'", "is True")


@pytest.mark.parametrize("case", BAD)
def test_the_published_schema_refuses_what_a_schema_can(case: str) -> None:
    valid = jsonschema_rs.Draft202012Validator(plan_schema()).is_valid(BAD[case][0])
    assert valid == (case in NOT_IN_A_SCHEMA)


def test_everything_wrong_is_told_at_once_in_the_order_of_the_document() -> None:
    found = violations(
        b"""
name: p
currency: EURO
components:
- {meter: calls, unit_amount: -1}
- meter: cpu_seconds
  mode: graduated
  tiers: [{up_to: 0, unit_amount: x}, {unit_amount: 1}]
publisher_share: 2
"""
    )
    assert list(found) == [
        "currency",
        "components[0].unit_amount",
        "components[1].tiers[0].up_to",
        "components[1].tiers[0].unit_amount",
        "publisher_share",
    ]


def test_a_plan_of_mistakes_does_not_make_an_answer_of_any_size() -> None:
    document = (
        GOOD | {"components": [{"meter": "calls", f"k{n}": 1} for n in range(64)]} | {f"x{n}": 1 for n in range(99)}
    )
    assert len(violations(json.dumps(document).encode())) == MAX_VIOLATIONS


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty; a mapping is needed"),
        (b"- 1", "is a list; a mapping is needed"),
        (b"just words", "is text; a mapping is needed"),
        (b"name: [", "can't be read as YAML or JSON: expected"),
        (b'{"name": "p",}', "a mapping"),
        (b"\xff", "is not UTF-8 at byte 0"),
        (b"name: &a p", "anchors"),
        (b"name: !!python/object:os.system p", "tags"),
        (b"x" * (1 << 18) + b"x", "the limit is 262144"),
        (b"[" * 5000, "deep"),
        (b'{"a":' * 5000, "deep"),
        (b"name: p\nname: q", "key 'name' is given twice (line 2)"),
        (b'{"name": "p",\n "name": "q"}', "key 'name' is given twice (line 2)"),
    ],
)
def test_what_is_no_document_is_refused(data: bytes, said: str) -> None:
    if said == "a mapping":  # a comma too many is fine in YAML, which JSON is tried as
        assert "currency" in violations(data)
        return
    assert said in violations(data)["plan"]


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("0.1234567890123456789e1", "1.234567890123456789"),
        ("2e-7", "0.0000002"),
        ("0.100000000000000001", "0.100000000000000001"),
        ("'0.20'", "0.20"),
        ("999999999999999999.999999999999999999", "999999999999999999.999999999999999999"),
        (".5", "0.5"),
        ("+3", "3"),
        ("0e-400", "0"),
        ("1.00000000000000000000", "1"),
    ],
)
def test_no_digit_is_lost(written: str, value: str) -> None:
    plan = plan_of(f"name: p\ncurrency: USD\ncomponents: [{{meter: calls, unit_amount: {written}}}]")
    assert plan.components[0].unit_amount == Decimal(value)
    if not written.startswith(("'", ".", "+")):
        components = f'[{{"meter": "calls", "unit_amount": {written}}}]'
        same = read_plan(f'{{\n\t"name": "p", "currency": "USD", "components": {components}}}'.encode())
        assert same.components[0].unit_amount == Decimal(value)


def test_a_float_in_a_parsed_document_is_refused() -> None:
    with pytest.raises(Fault, match=r"components\[0\]\.unit_amount"):
        plan_from_document(with_component(unit_amount=0.1))


def test_words_of_either_case_and_an_unquoted_no_are_understood() -> None:
    plan = plan_of("name: no\ncurrency: NOK\ncomponents: [{meter: CPU_SECONDS, mode: FLAT, unit_amount: 1}]")
    assert (plan.name, plan.currency) == ("no", "NOK")
    assert (plan.components[0].meter, plan.components[0].mode) == (RateMeter.CPU_SECONDS, TierMode.FLAT)


@pytest.mark.parametrize(("currency", "digits"), [("EUR", 2), ("JPY", 0), ("KWD", 3), ("CLF", 4)])
def test_minor_digits_are_the_currencys_own_unless_given(currency: str, digits: int) -> None:
    assert read_plan(json.dumps(GOOD | {"currency": currency}).encode()).minor_digits == digits
    assert read_plan(json.dumps(GOOD | {"currency": currency, "minor_digits": 6}).encode()).minor_digits == 6


def test_the_currencies_are_well_formed_and_none_is_listed_twice() -> None:
    assert len(MINOR_DIGITS) == 165
    assert all(len(code) == 3 and code.isupper() for code in MINOR_DIGITS)


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_the_sample_plans_are_valid_and_survive_being_written_again(path: Path) -> None:
    plan = read_plan(path.read_bytes())
    assert plan_from_document(plan_document(plan)) == plan
    assert read_plan(json.dumps(plan_document(plan)).encode()) == plan
    jsonschema_rs.Draft202012Validator(plan_schema()).validate(yaml.safe_load(path.read_text()))
    jsonschema_rs.Draft202012Validator(plan_schema()).validate(plan_document(plan))


def test_there_are_sample_plans() -> None:
    assert {"standard", "volume"} <= {path.stem for path in SAMPLES}


amounts = st.decimals(min_value=0, max_value=10**17, places=18, allow_nan=False).map(lambda d: format(d, "f"))


@given(amounts, amounts)
def test_any_price_in_bounds_survives_being_written_again(price: str, allowance: str) -> None:
    plan = plan_from_document(with_component(unit_amount=price, free_allowance=allowance))
    assert plan.components[0].unit_amount == Decimal(price)
    assert plan_from_document(plan_document(plan)) == plan


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_whatever_is_sent_is_a_plan_or_a_refusal(data: bytes) -> None:
    with contextlib.suppress(Fault):
        read_plan(data)


def test_versions_count_by_number() -> None:
    assert version_number("standard/12") == 12
