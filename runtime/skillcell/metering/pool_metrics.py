"""The warm pool in Prometheus: how often it served, how deep it is, and what it costs to keep so."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class PoolMetrics:
    """Of this process; `depth` and `age` are asked at each scrape."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._taken = Counter(
            "skillcell_pool_leases", "Sandboxes that calls wanted, by start.", ("start",), registry=registry
        )
        self._refill = Histogram(
            "skillcell_pool_refill_seconds", "Making of a warm sandbox.", buckets=_BUCKETS, registry=registry
        )
        self._discarded = Counter(
            "skillcell_pool_discarded", "Warm sandboxes that served nobody.", ("reason",), registry=registry
        )
        self._depth = Gauge("skillcell_pool_idle_sandboxes", "Warm sandboxes that wait.", registry=registry)
        self._age = Gauge("skillcell_pool_oldest_seconds", "Age of the oldest of them.", registry=registry)

    def show(self, depth: Callable[[], float], age: Callable[[], float]) -> None:
        """Where the gauges are read from."""
        self._depth.set_function(depth)
        self._age.set_function(age)

    def taken(self, warm: bool) -> None:
        self._taken.labels("warm" if warm else "cold").inc()

    def refilled(self, seconds: float) -> None:
        self._refill.observe(seconds)

    def discarded(self, reason: str) -> None:
        self._discarded.labels(reason).inc()
