"""What Prometheus sees: money from the ledger, speed from this process.

Counters of usage are read from the ledger's totals at every scrape, never kept in memory: they survive restarts, can't
fall, and are never behind a call whose end its caller has seen. They carry no label of this process, so where several
gateways share a ledger they are scraped once for it (`ledger_families` alone), and the histograms from each.

What a reader could get wrong: a counter here is the float64 nearest to an exact integer. Invoices use the integers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from prometheus_client import GC_COLLECTOR, PLATFORM_COLLECTOR, PROCESS_COLLECTOR, CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from skillcell.core.types import SECOND_NS, UsageRecord
from skillcell.metering.records import LedgerSnapshot, Sums

_LABELS = ("tenant", "skill", "publisher", "outcome")
_FAST = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SLOW = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)


@dataclass(frozen=True, slots=True)
class _Counter:
    """A counter over the totals: its value is `of(sums)` divided by `per`, rounded once."""

    name: str
    help: str
    of: Callable[[Sums], int]
    per: int = 1


_COUNTERS = (
    _Counter("skillcell_calls", "Calls that were admitted and have ended.", lambda sums: sums.calls),
    _Counter(
        "skillcell_billed_seconds", "Billed run time, each call rounded up to 1 ms.", lambda sums: sums.billed_ms, 1000
    ),
    _Counter("skillcell_cpu_seconds", "CPU time of whole sandboxes.", lambda sums: sums.cpu_ns, SECOND_NS),
    _Counter(
        "skillcell_memory_reserved_byte_seconds",
        "Memory limit times run time.",
        lambda sums: sums.memory_reserved_byte_ns,
        SECOND_NS,
    ),
    _Counter("skillcell_egress_bytes", "Bytes through the egress proxy, both ways.", lambda sums: sums.egress_bytes),
    _Counter("skillcell_output_bytes", "Bytes of stdout, stderr and events.", lambda sums: sums.output_bytes),
)


@dataclass(frozen=True, slots=True)
class LedgerState:
    """How the ledger is, besides what is in it."""

    writable: bool
    mismatches: int = 0
    """Defects that are known."""
    verified_sequence: int = 0
    verified_at: float | None = None
    """Unix seconds of the last verification that found nothing; None before the first."""


def ledger_families(snapshot: LedgerSnapshot | None, state: LedgerState) -> Iterator[Metric]:
    """The ledger's families; without a snapshot, since it can't be read, only that it can't."""
    if snapshot is not None:
        for counter in _COUNTERS:
            family = CounterMetricFamily(counter.name, counter.help, labels=_LABELS)
            for series in snapshot.series:
                labels = (series.tenant, series.skill, series.publisher, series.outcome.value)
                # Python divides integers with one correct rounding, however large they are.
                family.add_metric(labels, counter.of(series.sums) / counter.per)
            yield family
        yield from _corrections(snapshot)
        yield GaugeMetricFamily(
            "skillcell_ledger_last_sequence", "Sequence of the last usage record.", value=snapshot.head.sequence
        )
        yield GaugeMetricFamily(
            "skillcell_ledger_unsettled_executions", "Executions admitted and not ended.", value=snapshot.open.calls
        )
        yield GaugeMetricFamily(
            "skillcell_reserved_memory_bytes", "Memory limits of those together.", value=snapshot.open.memory_bytes
        )
        yield GaugeMetricFamily(
            "skillcell_reserved_milli_cpus", "CPU rate limits of those together.", value=snapshot.open.milli_cpus
        )
    yield GaugeMetricFamily(
        "skillcell_ledger_writable", "1 while the ledger keeps what is written.", value=int(state.writable)
    )
    yield GaugeMetricFamily(
        "skillcell_ledger_readable", "1 while the ledger can be read.", value=int(snapshot is not None)
    )
    yield GaugeMetricFamily(
        "skillcell_ledger_broken", "1 while new calls are refused for a defect.", value=int(state.mismatches > 0)
    )
    yield GaugeMetricFamily(
        "skillcell_ledger_mismatches", "Defects that verification knows of.", value=state.mismatches
    )
    yield GaugeMetricFamily(
        "skillcell_ledger_verified_sequence", "Record up to which all was verified.", value=state.verified_sequence
    )
    if state.verified_at is not None:
        yield GaugeMetricFamily(
            "skillcell_ledger_verified_timestamp_seconds",
            "When everything was last found whole.",
            value=state.verified_at,
        )


def _corrections(snapshot: LedgerSnapshot) -> Iterator[Metric]:
    """What corrections add to the counters: gauges, since most of them take something back."""
    for counter in _COUNTERS:
        name = counter.name.replace("skillcell_", "skillcell_correction_", 1)
        family = GaugeMetricFamily(name, f"Corrections of: {counter.help}", labels=_LABELS)
        for series in snapshot.corrections:
            labels = (series.tenant, series.skill, series.publisher, series.outcome.value)
            family.add_metric(labels, counter.of(series.sums) / counter.per)
        yield family


class CallMetrics:
    """Histograms of this process; `registry` is where further metrics of the process belong."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        for collector in (PROCESS_COLLECTOR, PLATFORM_COLLECTOR, GC_COLLECTOR):
            self.registry.register(collector)
        self._queue = self._histogram("skillcell_queue_seconds", "Wait for capacity.", _FAST)
        self._start = self._histogram(
            "skillcell_start_seconds", "Lease of a sandbox: from a warm pool, or made cold.", _FAST, "driver", "start"
        )
        self._run = self._histogram("skillcell_run_seconds", "Entrypoint's start to its last process' end.", _SLOW)
        self._overhead = self._histogram(
            "skillcell_overhead_seconds", "Admission to settlement, less queue and run.", _FAST
        )

    def observe(self, record: UsageRecord) -> None:
        """Counts a settled call, with its execution id as exemplar."""
        times = record.times
        exemplar = {"execution_id": record.execution_id}
        self._queue.observe(times.queue_ns / SECOND_NS, exemplar)
        if record.started_at is not None:
            start = "warm" if record.warm else "cold"
            self._start.labels(record.driver, start).observe(times.startup_ns / SECOND_NS, exemplar)
            self._run.observe(times.run_ns / SECOND_NS, exemplar)
        overhead_ns = max(0, record.wall_ns - times.queue_ns - times.run_ns)
        self._overhead.observe(overhead_ns / SECOND_NS, exemplar)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)


@dataclass(frozen=True, slots=True)
class Exposition:
    """Families of one scrape, in the shape that prometheus_client's encoders take."""

    families: tuple[Iterable[Metric], ...]

    def collect(self) -> Iterator[Metric]:
        for some in self.families:
            yield from some
