"""The eight invariants of DESIGN.md section 7 as pure functions over what can be seen from outside.

Each returns violations, one sentence with the facts for each, and nothing when all is well. They look at records as
they were streamed, sums as they were answered, scrapes, the events that a sink got, and what clients saw with their own
eyes; none asks the ledger whether it is right. `tests/contract/test_invariants.py` and `tests/e2e/test_invariants.py`
show that each of them finds a gateway that was broken on purpose.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from fractions import Fraction
from random import Random
from types import MappingProxyType

from prometheus_client.parser import text_string_to_metric_families

from skillcell.client.types import UsageTotals
from skillcell.core.rate_plans import RateMeter, RatePlan, TierMode
from skillcell.core.statements import Statement
from skillcell.core.types import SECOND_NS, Measurement, UsageRecord
from skillcell.metering.canonical import GENESIS, canonical
from skillcell.metering.rating.payouts import Shares
from skillcell.metering.records import Sums

Sample = tuple[str, tuple[tuple[str, str], ...]]
Samples = Mapping[Sample, float]
"""A scrape: value by name and sorted labels."""

SCRAPED = {
    "skillcell_calls_total": ("calls", 1),
    "skillcell_billed_seconds_total": ("billed_ms", 1000),
    "skillcell_cpu_seconds_total": ("cpu_ns", SECOND_NS),
    "skillcell_memory_reserved_byte_seconds_total": ("memory_reserved_byte_ns", SECOND_NS),
    "skillcell_egress_bytes_total": ("egress_bytes", 1),
    "skillcell_output_bytes_total": ("output_bytes", 1),
}
"""Counters of the ledger: field of `Sums`, and how many of its units are one of the counter's."""
LABELS = {"tenant", "skill", "publisher", "outcome"}
_MILLISECOND_NS = 1_000_000


def parsed(text: str) -> dict[Sample, float]:
    """A scrape from its text."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


# 1. Every execution that was admitted has exactly one record.


def one_record_each(admitted: Collection[str], records: Iterable[UsageRecord]) -> list[str]:
    """`admitted`: every execution id that any client was told or any list shows, all of them ended by now."""
    found = Counter(record.execution_id for record in records if not record.correction_of)
    said = [f"execution {name} was admitted and has no record: lost" for name in sorted(set(admitted) - found.keys())]
    said += [f"execution {name} has {times} records: doubled" for name, times in sorted(found.items()) if times > 1]
    return said + [f"a record is of {name}, which nobody knows" for name in sorted(found.keys() - set(admitted))]


# 2. Ledger = totals = counters = sink, in integers.


def sums_of(records: Iterable[UsageRecord]) -> Sums:
    """What the records add up to, by arithmetic of its own."""
    added = Sums()
    for record in records:
        added = _plus(
            added,
            Sums(
                record.calls,
                record.billed_ms,
                record.cpu_total_ns,
                record.memory_limit_byte_ns,
                record.egress_in_bytes + record.egress_out_bytes,
                record.output_bytes,
            ),
        )
    return added


def answered_sums_agree(records: Iterable[UsageRecord], answered: Iterable[Sums], where: str) -> list[str]:
    """`answered`: groups that together hold all records, as of GetUsageSummary."""
    summed = Sums()
    for group in answered:
        summed = _plus(summed, group)
    return _differences(sums_of(records), summed, where)


def told(totals: UsageTotals) -> Sums:
    """What GetUsageSummary answered to a client, in the ledger's form."""
    return Sums(
        totals.calls,
        totals.billed_ms,
        totals.cpu_total_ns,
        totals.memory_limit_byte_ns,
        totals.egress_in_bytes + totals.egress_out_bytes,
        totals.output_bytes,
    )


def scrape_agrees(records: Iterable[UsageRecord], samples: Samples) -> list[str]:
    """Each series against its own records, to the one rounding of a float64; all of them together against all.

    Series of `_other` have no records of their own to be compared with: they count in the sums alone.
    """
    usage = [record for record in records if not record.correction_of]
    said = []
    by_series: dict[tuple[tuple[str, str], ...], list[UsageRecord]] = {}
    for record in usage:
        labels = (
            ("outcome", record.outcome.value),
            ("publisher", record.publisher),
            ("skill", record.skill),
            ("tenant", record.tenant),
        )
        by_series.setdefault(labels, []).append(record)
    for name, (field, per) in SCRAPED.items():
        shown = {labels: value for (of, labels), value in samples.items() if of == name}
        other = any(("skill", "_other") in labels for labels in shown)
        for labels, of_series in by_series.items():
            due = getattr(sums_of(of_series), field) / per
            if not other and shown.get(labels) != due:
                said.append(f"{name}{dict(labels)} shows {shown.get(labels)}, its records make {due}")
        total = sum((Fraction(value) for value in shown.values()), Fraction(0)) * per
        roundings = sum((Fraction(math.ulp(value)) for value in shown.values()), Fraction(0)) * per / 2
        due = getattr(sums_of(usage), field)
        if abs(total - due) > roundings:
            said.append(f"{name} shows {float(total)} in all, the records make {due}")
    return said


def sink_agrees(records: Iterable[UsageRecord], events: Iterable[bytes]) -> list[str]:
    """`events`: every body that the sink ever got, resent ones included, in CloudEvents' JSON form."""
    first: dict[str, bytes] = {}
    said = []
    for body in events:
        event = json.loads(body)
        name = event["id"]
        if first.setdefault(name, body) != body:
            said.append(f"event {name} was sent again with other bytes")
    wanted = {record.event_id: record for record in records}
    said += [f"event {name} is of no record" for name in sorted(first.keys() - wanted.keys())]
    for name, record in wanted.items():
        if name not in first:
            said.append(f"record {record.sequence} never came to the sink")
            continue
        data = json.loads(first[name])["data"]
        of_event = Sums(
            int(data["calls"]),
            int(data["billed_ms"]),
            int(data["cpu_total_ns"]),
            int(data["memory_limit_byte_ns"]),
            int(data["egress_in_bytes"]) + int(data["egress_out_bytes"]),
            int(data["output_bytes"]),
        )
        said += _differences(sums_of([record]), of_event, f"the event of record {record.sequence}")
    return said


# 3. Counters never fall, and carry no label of a process.


def counters_never_fall(scrapes: Sequence[Samples]) -> list[str]:
    """`scrapes` in the order of time, over restarts. A series that is gone has fallen to nothing."""
    said = []
    for before, after in itertools.pairwise(scrapes):
        for (name, labels), value in before.items():
            if name in SCRAPED and after.get((name, labels), 0.0) < value:
                said.append(f"{name}{dict(labels)} fell from {value} to {after.get((name, labels), 'nothing')}")
    return said


def counters_name_no_process(samples: Samples) -> list[str]:
    """The ledger's counters have the four labels and no other."""
    return [
        f"{name} has labels {sorted(dict(labels))}"
        for name, labels in samples
        if name in SCRAPED and set(dict(labels)) != LABELS
    ]


# 4. What was used is what the kernel counted, and time is the monotonic clock's.


def cpu_is_true(record: UsageRecord, true_ns: int, beside_ns: int = 0) -> list[str]:
    """Within 1 % + 2 ms of `true_ns`, and at most `beside_ns` more: what the sandbox used that the truth leaves out."""
    allowed = true_ns // 100 + 2 * _MILLISECOND_NS
    if true_ns - allowed <= record.cpu_total_ns <= true_ns + allowed + beside_ns:
        return []
    return [f"{record.execution_id} is recorded with {record.cpu_total_ns} ns of CPU, it used {true_ns} ns"]


def figures_are_plausible(record: UsageRecord, *, touched_bytes: int = 0, pids: int = 1) -> list[str]:
    """An exactly measured call that held so much memory and so many processes at once, within its limits."""
    said = []
    name, times = record.execution_id, record.times
    if record.measurement is not Measurement.EXACT:
        said.append(f"{name} was measured as {record.measurement.value}")
    if not touched_bytes <= record.memory_peak_bytes <= record.memory_limit_bytes:
        said.append(f"{name} peaked at {record.memory_peak_bytes} of {record.memory_limit_bytes}, held {touched_bytes}")
    if record.pids_peak < pids:
        said.append(f"{name} had {pids} processes at once, its record says {record.pids_peak}")
    if record.cpu_user_ns + record.cpu_system_ns > record.cpu_total_ns + 50 * _MILLISECOND_NS:
        said.append(f"{name}: user and system CPU are more than the total")
    billed = -(-times.run_ns // _MILLISECOND_NS) if record.billable else 0
    if record.billed_ms != billed:
        said.append(f"{name} is billed {record.billed_ms} ms for {times.run_ns} ns")
    if record.memory_limit_byte_ns != record.memory_limit_bytes * times.run_ns:
        said.append(f"{name}: memory x time is not its limit x its run")
    return said


def time_is_true(record: UsageRecord, ran_ns: int, within_ns: int) -> list[str]:
    """Run time against what a stopwatch beside the call saw, which includes getting there and back (`within_ns`);
    and the record's own times against each other: nothing ends before it begins, or lasts longer than the whole.
    """
    said = []
    name, times = record.execution_id, record.times
    for what, lasted in (("run", times.run_ns), ("billed", record.billed_ms * _MILLISECOND_NS)):
        if not ran_ns - _MILLISECOND_NS <= lasted <= ran_ns + within_ns:
            said.append(f"{name}: {what} {lasted} ns, a stopwatch saw {ran_ns} ns")
    parts = times.queue_ns + times.startup_ns + times.deliver_ns + times.run_ns + times.collect_ns
    if parts > record.wall_ns:
        said.append(f"{name}: its stages take {parts} ns of {record.wall_ns} ns")
    began = record.started_at or record.admitted_at
    if not record.admitted_at <= began <= record.ended_at:
        said.append(f"{name} was admitted {record.admitted_at}, started {began}, ended {record.ended_at}")
    elif abs(round((record.ended_at - record.admitted_at).total_seconds() * SECOND_NS) - record.wall_ns) > within_ns:
        said.append(f"{name} lasted {record.wall_ns} ns, but from {record.admitted_at} to {record.ended_at}")
    return said


# 5. No row is edited, deleted or reordered unseen.


def chain_is_whole(records: Sequence[UsageRecord], published: Mapping[int, bytes] = MappingProxyType({})) -> list[str]:
    """`records` as streamed from the first on; `published`: hashes by sequence that a witness kept."""
    said = []
    previous = GENESIS
    for place, record in enumerate(records, start=1):
        if record.sequence != place:
            said.append(f"in place {place} is record {record.sequence}")
        if record.previous_hash != previous:
            said.append(f"record {record.sequence} does not continue the one before it")
        if hashlib.sha256(record.previous_hash + canonical(record)).digest() != record.hash:
            said.append(f"record {record.sequence} is not what its hash was made of")
        previous = record.hash
    by_sequence = {record.sequence: record.hash for record in records}
    for sequence, digest in published.items():
        if by_sequence.get(sequence) != digest:
            said.append(
                f"record {sequence} is {'another' if sequence in by_sequence else 'gone'} since it was published"
            )
    return said


# 6. Nothing runs unmetered.


def nothing_ran_unmetered(
    ran: Iterable[tuple[str, str]], refused: Iterable[str], records: Iterable[UsageRecord]
) -> list[str]:
    """`ran`: marks that code left, each with the execution it was seen in; `refused`: marks of calls that were refused.

    Every mark must be of one execution with a record that says it ran, and no refused call may have left one.
    """
    recorded = {record.execution_id: record for record in records if not record.correction_of}
    said, owners = [], {}
    turned_away = set(refused)
    for mark, execution_id in ran:
        if owners.setdefault(mark, execution_id) != execution_id:
            said.append(f"{mark} ran in {owners[mark]} and in {execution_id}")
        if mark in turned_away:
            said.append(f"{mark} was refused and ran")
        if execution_id not in recorded:
            said.append(f"{mark} ran in {execution_id or 'nowhere'}, which has no record: unmetered")
        elif recorded[execution_id].started_at is None:
            said.append(f"{mark} ran in {execution_id}, whose record says that it never started")
    return said


# 7. Rating is pure, independent of order, rounded once per line; shares sum to the charge.


def rating_ignores_order(
    rate: Callable[[Sequence[UsageRecord]], Sequence[Statement]], records: Sequence[UsageRecord]
) -> list[str]:
    """The same records in other orders give the same statements."""
    first, shuffled = rate(records), list(records)
    for seed in range(8):
        Random(seed).shuffle(shuffled)
        if rate(shuffled) != first:
            return [f"in another order (seed {seed}) the same records are charged otherwise"]
    return []


def lines_are_exact(records: Iterable[UsageRecord], plan: RatePlan, statement: Statement) -> list[str]:
    """Against fractions: each component's charge is its exact price, rounded once, half away from zero; the lines
    sum to the total. For plans of unit prices with allowances, over one Skill and one version of the plan.
    """
    said = []
    billable = [record for record in records if record.billable and record.plan_version == plan.version]
    for place, component in enumerate(plan.components):
        assert component.mode is TierMode.FLAT, component.mode
        used = sum((_quantity(component.meter, record) for record in billable), Fraction(0))
        beyond = max(Fraction(0), used - Fraction(component.free_allowance))
        due = _round_half_up(beyond * Fraction(component.unit_amount), plan.minor_digits)
        asked = sum((Fraction(line.amount) for line in statement.lines if line.component == place), Fraction(0))
        if asked != due:
            said.append(f"{component.meter.value} is charged {float(asked)}, exactly it is {float(due)}")
    summed = sum((Fraction(line.amount) for line in statement.lines), Fraction(0))
    if summed != Fraction(statement.total):
        said.append(f"the lines sum to {float(summed)}, the total says {statement.total}")
    return said


def shares_sum_up(split: Shares, statements: Iterable[Statement]) -> list[str]:
    """Publishers' payouts and the platform's fee are the charges, to the last unit; so is each Skill's line."""
    said = []
    charged = sum((Fraction(one.total) for one in statements if one.currency == split.currency), Fraction(0))
    paid = sum((Fraction(payout.total) for payout in split.payouts), Fraction(0)) + Fraction(split.platform_fee)
    if not charged == paid == Fraction(split.charged):
        said.append(f"{split.charged} {split.currency} were charged, {float(paid)} paid out, {float(charged)} stated")
    for payout in split.payouts:
        for line in payout.lines:
            if Fraction(line.publisher_share) + Fraction(line.platform_fee) != Fraction(line.charged):
                said.append(
                    f"{line.publisher}/{line.skill}: {line.publisher_share} + {line.platform_fee} != {line.charged}"
                )
        if sum((Fraction(line.publisher_share) for line in payout.lines), Fraction(0)) != Fraction(payout.total):
            said.append(f"the lines of {payout.publisher} do not sum to {payout.total}")
    return said


# 8. A closed period never changes.


def closed_is_unchanged(before: Mapping[str, object], after: Mapping[str, object]) -> list[str]:
    """Answers about closed periods (statements, payouts), by a name, as they were and as they are."""
    return [
        f"{name} was {value!r} and is {after.get(name)!r}" for name, value in before.items() if after.get(name) != value
    ]


def _plus(one: Sums, other: Sums) -> Sums:
    return Sums(*(getattr(one, field.name) + getattr(other, field.name) for field in fields(Sums)))


def _differences(due: Sums, told: Sums, where: str) -> list[str]:
    return [
        f"{where} says {getattr(told, field.name)} {field.name}, the records make {getattr(due, field.name)}"
        for field in fields(Sums)
        if getattr(told, field.name) != getattr(due, field.name)
    ]


def _quantity(meter: RateMeter, record: UsageRecord) -> Fraction:
    gib_second = SECOND_NS << 30
    match meter:
        case RateMeter.CALLS:
            return Fraction(record.calls)
        case RateMeter.BILLED_SECONDS:
            return Fraction(record.billed_ms, 1000)
        case RateMeter.CPU_SECONDS:
            return Fraction(record.cpu_total_ns, SECOND_NS)
        case RateMeter.MEMORY_RESERVED_GIB_SECONDS:
            return Fraction(record.memory_limit_byte_ns, gib_second)
        case RateMeter.EGRESS_BYTES:
            return Fraction(record.egress_in_bytes + record.egress_out_bytes)
    raise AssertionError(f"no reference for {meter}")


def _round_half_up(amount: Fraction, digits: int) -> Fraction:
    unit = Fraction(1, 10**digits)
    return int(amount / unit + Fraction(1, 2)) * unit if amount >= 0 else -_round_half_up(-amount, digits)
