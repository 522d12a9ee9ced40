"""Ledger = totals = scrape = sink, in integers: adds up each, and names every difference. No I/O.

What a reader could get wrong: a sample of Prometheus is a float64, the one nearest to an exact integer total, so it is
the float that is compared, and an integer is shown for it where it is the right one. A sink holds events at least once
and later than the ledger has their records: duplicates count once, and what is newer than the compared record is left
out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from skillcell.core.types import SECOND_NS, UsageRecord

METERS = ("calls", "billed_ms", "cpu_ns", "memory_reserved_byte_ns", "egress_bytes", "output_bytes")
OTHER = "_other"
_SERIES = {
    "calls": ("calls", 1),
    "billed_ms": ("billed_seconds", 1000),
    "cpu_ns": ("cpu_seconds", SECOND_NS),
    "memory_reserved_byte_ns": ("memory_reserved_byte_seconds", SECOND_NS),
    "egress_bytes": ("egress_bytes", 1),
    "output_bytes": ("output_bytes", 1),
}
Key = tuple[str, str, str, str]
"""Tenant, publisher, Skill, outcome."""
Amounts = tuple[int, ...]
"""In the order of METERS."""
Sums = dict[Key, Amounts]
_NONE: Amounts = (0,) * len(METERS)


@dataclass(frozen=True, slots=True)
class Difference:
    """`where` is `ledger`, `totals`, `scrape` or `sink`."""

    where: str
    what: str


@dataclass(frozen=True, slots=True)
class Tally:
    """Records up to one of them, added up: calls apart from the corrections of calls."""

    usage: Sums = field(default_factory=dict)
    corrections: Sums = field(default_factory=dict)

    def add(self, key: Key, amounts: Amounts, *, correction: bool) -> None:
        sums = self.corrections if correction else self.usage
        sums[key] = plus(sums.get(key, _NONE), amounts)

    def copy(self) -> Tally:
        return Tally(dict(self.usage), dict(self.corrections))


@dataclass(frozen=True, slots=True)
class Event:
    """What a sink holds of one record. `digest` is the hash that its content gives, whatever hash it names."""

    event_id: str
    sequence: int
    key: Key
    amounts: Amounts
    correction: bool
    digest: bytes


def plus(left: Amounts, right: Amounts) -> Amounts:
    return tuple(map(int.__add__, left, right))


def total(sums: Sums) -> Amounts:
    """Over all keys."""
    result = _NONE
    for amounts in sums.values():
        result = plus(result, amounts)
    return result


def key_of(record: UsageRecord) -> Key:
    return record.tenant, record.publisher, record.skill, record.outcome.value


def amounts_of(record: UsageRecord) -> Amounts:
    return (
        record.calls,
        record.billed_ms,
        record.cpu_total_ns,
        record.memory_limit_byte_ns,
        record.egress_in_bytes + record.egress_out_bytes,
        record.output_bytes,
    )


def events_of(line: str) -> Iterator[Event]:
    """The events of a line: one CloudEvent, or a JSON array of them as a batch has it. ValueError, KeyError."""
    found = json.loads(line)
    for event in found if isinstance(found, list) else [found]:
        data = event["data"]
        named = {name: value for name, value in data.items() if name not in ("hash", "previous_hash")}
        document = {name: _number(name, value) for name, value in named.items()}
        body = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
        yield Event(
            str(event["id"]),
            int(data["sequence"]),
            (str(data["tenant"]), str(data["publisher"]), str(data["skill"]), str(data["outcome"])),
            (
                int(data["calls"]),
                int(data["billed_ms"]),
                int(data["cpu_total_ns"]),
                int(data["memory_limit_byte_ns"]),
                int(data["egress_in_bytes"]) + int(data["egress_out_bytes"]),
                int(data["output_bytes"]),
            ),
            bool(data["correction_of"]),
            hashlib.sha256(bytes.fromhex(data["previous_hash"]) + body).digest(),
        )


def _number(name: str, value: Any) -> Any:
    """Events hold nanoseconds as decimal text, records as integers."""
    return int(value) if name.endswith("_ns") and isinstance(value, str) else value


@dataclass(slots=True)
class Sink:
    """What a sink holds, each event once."""

    events: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    """Sequence and digest by id; the ledger takes out what it knows of."""
    tally: Tally = field(default_factory=Tally)
    received: int = 0
    duplicates: int = 0
    newer: int = 0
    differences: list[Difference] = field(default_factory=list)

    def take(self, event: Event, up_to: int) -> None:
        """Counts an event that is not newer than record `up_to`."""
        self.received += 1
        if event.sequence > up_to:
            self.newer += 1
            return
        before = self.events.get(event.event_id)
        if before is not None:
            self.duplicates += 1
            if before[1] != event.digest:
                self._differs(f"event {event.event_id} (record {event.sequence}) came twice with different content")
            return
        self.events[event.event_id] = (event.sequence, event.digest)
        self.tally.add(event.key, event.amounts, correction=event.correction)

    def match(self, record: UsageRecord) -> None:
        """Compares one record of the ledger with its event."""
        held = self.events.pop(record.event_id, None)
        if held is None:
            self._differs(f"event {record.event_id} (record {record.sequence}) is missing")
        elif held[1] != record.hash:
            self._differs(f"event {record.event_id} (record {record.sequence}) was altered: it does not give its hash")

    def close(self) -> None:
        """After the last record: what is left, the ledger does not know."""
        for event_id, (sequence, _) in sorted(self.events.items(), key=lambda item: item[1][0]):
            self._differs(f"event {event_id} (record {sequence}) is not in the ledger")

    def _differs(self, what: str) -> None:
        self.differences.append(Difference("sink", what))


def against_totals(ledger: Tally, totals: Mapping[Key, Amounts]) -> Iterator[Difference]:
    """The gateway's own sums have corrections counted in, though not as calls."""
    expected = {key: plus(ledger.usage.get(key, _NONE), (0, *ledger.corrections.get(key, _NONE)[1:]))
                for key in ledger.usage.keys() | ledger.corrections.keys()}  # fmt: skip
    for key in sorted(expected.keys() | totals.keys()):
        for meter, right, shown in zip(METERS, expected.get(key, _NONE), totals.get(key, _NONE), strict=True):
            if right != shown:
                yield Difference("totals", f"{'/'.join(key)}: {meter} is {shown}, the ledger's records give {right}")


def against_sink(ledger: Tally, sink: Tally) -> Iterator[Difference]:
    for kind, right, shown in (
        ("", ledger.usage, sink.usage),
        ("corrections of ", ledger.corrections, sink.corrections),
    ):
        for key in sorted(right.keys() | shown.keys()):
            for meter, of_ledger, of_sink in zip(METERS, right.get(key, _NONE), shown.get(key, _NONE), strict=True):
                if of_ledger != of_sink:
                    what = f"{kind}{'/'.join(key)}: {meter} is {of_sink}, the ledger's records give {of_ledger}"
                    yield Difference("sink", what)


Samples = Mapping[tuple[str, Key], float]
"""By name and (tenant, publisher, skill, outcome)."""


def against_scrape(ledger: Tally, samples: Samples) -> tuple[tuple[Amounts, Amounts], list[Difference]]:
    """The integers that the samples stand for, of calls and of corrections, and where they stand for others."""
    named = {key for _, key in samples}
    shown: list[Amounts] = []
    differences: list[Difference] = []
    for sums, name in ((ledger.usage, "skillcell_{}_total"), (ledger.corrections, "skillcell_correction_{}")):
        expected = _as_shown(sums, named)
        amounts = []
        for number, meter in enumerate(METERS):
            series, per = _SERIES[meter]
            metric = name.format(series)
            keys = expected.keys() | {key for of, key in samples if of == metric}
            amount = 0
            for key in sorted(keys):
                right = expected.get(key, _NONE)[number]
                value = samples.get((metric, key))
                if value is None and right == 0:
                    continue
                if value == right / per:
                    amount += right
                    continue
                amount += round(Fraction(value) * per) if value is not None else 0
                labels = ",".join(
                    f'{label}="{part}"'
                    for label, part in zip(("tenant", "publisher", "skill", "outcome"), key, strict=True)
                )
                is_what = "is not there" if value is None else f"is {value!r}"
                what = f"{metric}{{{labels}}} {is_what}, the ledger's records give {right / per!r} ({meter} {right})"
                differences.append(Difference("scrape", what))
            amounts.append(amount)
        shown.append(tuple(amounts))
    return (shown[0], shown[1]), differences


def _as_shown(sums: Sums, named: Iterable[Key]) -> Sums:
    """Under the names of the scrape: what has no series of its own counts under its tenant's `_other`, or all's."""
    own = {key[:3] for key in named}
    merged: Sums = {}
    for (tenant, publisher, skill, outcome), amounts in sums.items():
        shown = (tenant, publisher, skill)
        if shown not in own:
            shown = (tenant, OTHER, OTHER) if (tenant, OTHER, OTHER) in own else (OTHER, OTHER, OTHER)
        if shown not in own:
            shown = (tenant, publisher, skill)
        key = (*shown, outcome)
        merged[key] = plus(merged.get(key, _NONE), amounts)
    return merged
