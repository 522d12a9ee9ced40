"""What needs no sink: the bytes of events, the settings, the meaning of answers, the sums of what was received."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_structured_event
from hypothesis import given
from hypothesis import strategies as st

from ledger_stores import admission, ending
from received import DifferentDuplicate, received
from skillcell.core.errors import Fault
from skillcell.core.types import StageTimes
from skillcell.metering.canonical import FIELDS, GENESIS, canonical, chain_hash
from skillcell.metering.export import events
from skillcell.metering.export.answers import Answer, BackOff, Verdict, forgotten, retry_after
from skillcell.metering.export.events import BATCH_TYPE, STRUCTURED_TYPE, Envelope, batch, event_of
from skillcell.metering.export.settings import SinkSettings, read_sinks
from skillcell.metering.usage import usage_record

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
SCHEMA = json.loads(resources.files("skillcell.metering.export").joinpath("usage.schema.json").read_text())


def body(sequence: int = 1, **changes: Any) -> bytes:
    """An event of a record with fixed ids."""
    admitted = admission(execution_id="exe_1", request_id="4b0de5b2-0d5c-4a2f-8c7e-3a6d2c9f1e77", labels={"a": "b"})
    record = usage_record(admitted, ending(event_id=f"evt_{sequence}"))
    chained = canonical(replace(record, sequence=sequence, **changes))
    return event_of(chained, GENESIS, chain_hash(GENESIS, chained), Envelope("/ledger")).body


def test_the_bytes_of_an_event_never_change() -> None:
    """A resend after an upgrade must have the same bytes: if this fails, sinks will count twice."""
    assert hashlib.sha256(body()).hexdigest() == "0e6048bc18ecd8c8d0d25c1ebee1ec58cccf3812e04fe3fecf57a2de953b5267"


def test_an_event_is_a_cloudevent_for_the_official_sdk() -> None:
    event = from_structured_event(HTTPMessage({"content-type": STRUCTURED_TYPE}, body()))
    assert (event.get_id(), event.get_source(), event.get_type()) == ("evt_1", "/ledger", "skillcell.usage.v1")
    assert (event.get_specversion(), event.get_subject()) == ("1.0", "acme")
    assert event.get_time() == ending().ended_at
    assert (event.get_datacontenttype(), event.get_dataschema()) == ("application/json", SCHEMA["$id"])
    assert event.get_extension("sequence") == "00000000000000000001"
    assert all(re.fullmatch("[a-z0-9]{1,20}", name) for name in json.loads(body()))


def test_the_data_is_what_the_published_schema_says_and_holds_every_chained_field() -> None:
    data = json.loads(body())["data"]
    jsonschema_rs.validator_for(SCHEMA, validate_formats=True).validate(data)
    assert set(data) == {*FIELDS[1], "hash", "previous_hash"}
    assert "labels" not in data
    huge = json.loads(body(memory_limit_byte_ns=1 << 70, times=StageTimes(run_ns=(1 << 53) + 1)))["data"]
    assert (huge["memory_limit_byte_ns"], huge["run_ns"]) == (str(1 << 70), str((1 << 53) + 1))
    numbers = [value for value in huge.values() if isinstance(value, int)]
    assert max(numbers) < 1 << 53
    correction = json.loads(body(correction_of="evt_0", calls=-1, billed_ms=-71, cpu_total_ns=-5))["data"]
    jsonschema_rs.validator_for(SCHEMA).validate(correction)


def test_a_batch_is_an_array_of_the_same_bytes() -> None:
    bodies = [body(1), body(2)]
    assert BATCH_TYPE == "application/cloudevents-batch+json"
    assert batch(bodies) == b"[" + bodies[0] + b"," + bodies[1] + b"]"
    assert json.loads(batch(bodies)) == [json.loads(one) for one in bodies]
    assert batch([]) == b"[]"


def test_a_record_of_an_unknown_layout_has_no_event() -> None:
    with pytest.raises(ValueError, match="schema_version 9"):
        event_of(json.dumps({"schema_version": 9}).encode(), b"", b"", Envelope("/"))


def test_every_layout_of_the_ledger_has_a_published_schema() -> None:
    assert set(events.DATA_SCHEMAS) == set(FIELDS)


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        *((status, Verdict.ACCEPTED) for status in (200, 201, 202, 204)),
        *((status, Verdict.REFUSED) for status in (400, 409, 413, 415, 422)),
        *((status, Verdict.RETRY) for status in (408, 425, 429, 500, 502, 503, 504, 599)),
        *((status, Verdict.HOLD) for status in (301, 302, 307, 308, 401, 402, 403, 404, 405, 407, 410, 418, 451)),
        (None, Verdict.UNREACHED),
    ],
)
def test_what_an_answer_means(status: int | None, verdict: Verdict) -> None:
    assert Answer(status).verdict is verdict


def test_waits_double_to_their_bound_and_spread_over_their_upper_half() -> None:
    off = BackOff(timedelta(seconds=1), timedelta(seconds=60))
    assert [off.wait(n, 1.0).total_seconds() for n in (0, 1, 2, 3, 7, 8, 10_000)] == [1, 1, 2, 4, 60, 60, 60]
    assert off.wait(3, 0.0) == timedelta(seconds=2)
    assert off.wait(1, 0.5, timedelta(seconds=90)) == timedelta(seconds=90)
    assert off.wait(1, 0.5, timedelta(days=365)) == timedelta(days=1)


@given(st.text(max_size=40))
def test_no_retry_after_can_hurt(header: str) -> None:
    wish = retry_after(header, NOW)
    assert wish is None or timedelta() <= wish


def test_retry_after_is_seconds_or_a_date() -> None:
    assert retry_after(" 120 ", NOW) == timedelta(minutes=2)
    assert retry_after("Sun, 22 Nov 2026 12:01:00 GMT", NOW) == timedelta(minutes=1)
    assert retry_after("Sun, 22 Nov 2026 11:00:00 GMT", NOW) == timedelta()
    assert retry_after("soon", NOW) is None
    assert retry_after("9" * 400, NOW) is not None


def test_a_sink_forgets_when_its_window_ends_before_a_request_can_arrive() -> None:
    window, timeout = timedelta(days=32), timedelta(seconds=30)
    last = NOW + window - timeout
    assert forgotten(NOW, last, window, timeout)
    assert not forgotten(NOW, last - timedelta(microseconds=1), window, timeout)
    assert not forgotten(None, last, window, timeout)
    assert not forgotten(NOW, last, None, timeout)


ONE: dict[str, Any] = {"name": "meter", "url": "https://meter.example/api/v1/events"}


def test_sinks_come_from_json_or_from_a_file(tmp_path: Path) -> None:
    assert read_sinks("") == read_sinks("[]") == ()
    text = json.dumps(
        [ONE | {"headers": {"Authorization": "Bearer s3cret"}}, ONE | {"name": "b", "mode": "structured"}]
    )
    file = tmp_path / "sinks.json"
    file.write_text(text)
    first, second = read_sinks(str(file))
    assert (first, second) == read_sinks(text)
    assert (first.batch_events, first.dedup_window_seconds, second.mode.value) == (100, 32 * 86400, "structured")
    assert "s3cret" not in repr(first)


@pytest.mark.parametrize(
    ("given_", "path", "words"),
    [
        ([ONE, ONE | {"batch_event": 5}], "sinks[1].batch_event", "not permitted"),
        ([ONE | {"headers": {"a": 1}}], "sinks[0].headers.a", "string"),
        ([ONE | {"name": "Meter"}], "sinks[0].name", "pattern"),
        ([{"name": "meter"}], "sinks[0].url", "required"),
        ([ONE, ONE], "sinks[1].name", "twice"),
        ([ONE | {"url": "ftp://x"}], "sinks[0].url", "https://HOST/PATH"),
        ([ONE | {"url": "https://u:s3cret@x/"}], "sinks[0].url", "credentials"),
        ([ONE | {"batch_events": 0}], "sinks[0].batch_events", "greater"),
        ([ONE | {"mode": "binary"}], "sinks[0].mode", "structured"),
        ([ONE | {"headers": {"Content-Type": "s3cret"}}], "sinks[0].headers", "Content-Type"),
        ([ONE | {"headers": {"X": "s3cret\r\nY: 1"}}], "sinks[0].headers", "no header may have"),
        ([ONE | {"dedup_window_seconds": 30}], "sinks[0]", "twice timeout_seconds"),
        ([ONE | {"source": "a b"}], "sinks[0].source", "URI"),
        ({"name": "meter"}, "sinks", "tuple"),
        ([ONE | {"name": f"m{n}"} for n in range(33)], "sinks", "32"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_path_and_never_quoted(given_: Any, path: str, words: str) -> None:
    with pytest.raises(Fault) as caught:
        read_sinks(json.dumps(given_))
    assert caught.value.violations[0].field == path
    assert words in caught.value.message
    assert "s3cret" not in caught.value.message


@pytest.mark.parametrize("text", ["/there/is/none", "[", "{nonsense"])
def test_settings_that_cannot_be_read_are_refused(text: str) -> None:
    with pytest.raises(Fault) as caught:
        read_sinks(text)
    assert caught.value.violations[0].field == "sinks"


def test_every_setting_of_a_sink_is_explained_in_the_readme() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    missing = [name for name in SinkSettings.model_fields if f"| `{name}` |" not in readme]
    assert missing == []


def test_duplicates_count_once_and_gaps_show() -> None:
    got = received([body(1), body(4), body(1), body(2)])
    assert (got.events, got.duplicates, got.last_sequence, got.missing) == (3, 1, 4, (3,))
    ((key, sums),) = got.sums.items()
    assert key == ("acme", "tools", "extract", "SUCCEEDED")
    assert (sums.calls, sums.billed_ms) == (3, 3 * 71)


def test_two_different_events_of_one_id_are_no_duplicates() -> None:
    with pytest.raises(DifferentDuplicate, match="evt_1"):
        received([body(1), body(1).replace(b"acme", b"evil")])


def test_corrections_are_summed_apart() -> None:
    got = received([body(1), body(2, correction_of="evt_1", calls=-1, billed_ms=-71)])
    assert [sums.calls for sums in got.sums.values()] == [1]
    assert [(sums.calls, sums.billed_ms) for sums in got.corrections.values()] == [(-1, -71)]
