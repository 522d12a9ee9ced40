"""The sinks of one ledger as an operator sees and steers them, and as Prometheus does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import GaugeMetricFamily, Metric

from skillcell.core.clock import Clock
from skillcell.core.errors import Fault, FaultKind, not_found, precondition
from skillcell.core.sinks import DeadLetter, HoldCause, ResumeChoice, SinkState, SinkStatus
from skillcell.metering.export.answers import Verdict
from skillcell.metering.export.cursors import Cursor
from skillcell.metering.export.events import EVENT_TYPE
from skillcell.metering.export.settings import SinkSettings
from skillcell.metering.export.store import SinkStore

_MOST_NAMED = 1000


class Sinks:
    """Those of the settings, and those that were there before. Raises Fault when the store fails."""

    def __init__(self, store: SinkStore, settings: Sequence[SinkSettings], clock: Clock, source: str) -> None:
        self._store = store
        self._settings = {sink.name: sink for sink in settings}
        self._clock = clock
        self.source = source
        """Of the ledger's events, where a sink's settings name no other."""

    async def register(self) -> None:
        """Makes the cursors of sinks that are new."""
        for sink in self._settings.values():
            await self._store.register(sink.name, at_head=sink.start == "next")

    async def statuses(self) -> tuple[SinkStatus, ...]:
        """By name, all of one moment."""
        cursors, head, dead = await self._store.cursors()
        return tuple(self._status(at, head, dead.get(at.name, 0)) for at in cursors)

    async def resume(self, name: str, choice: ResumeChoice | None = None) -> tuple[SinkStatus, tuple[int, int]]:
        """Ends a hold. The sink as it is now, and first and last sequence of what was skipped or will be sent again.

        FAILED_PRECONDITION `SINK_NOT_HELD`, or `SINK_CHOICE_NEEDED` where going on as it is could count twice.
        """
        found = await self._store.release(name, lambda at: self._released(at, choice))
        if found is None:
            raise not_found("sink", name)
        before, after = found
        moved = (before.cursor + 1, before.sent_sequence) if before.unacknowledged else (0, 0)
        _, head, dead = await self._store.cursors()
        return self._status(after, head, dead.get(name, 0)), moved

    async def dead_letters(self, name: str, after: int, limit: int) -> tuple[DeadLetter, ...]:
        """In the ledger's order."""
        await self._known(name)
        return await self._store.dead_letters(name, after, limit)

    async def redrive(self, name: str, sequences: Sequence[int]) -> int:
        """Has dead letters sent again, in the bytes they had; all of the sink's where none are named. How many."""
        await self._known(name)
        missing = await self._store.redrive(name, sequences)
        if missing:
            raise not_found("dead_letter", f"{name}/{missing[0]}")
        return len(await self._store.dead_letters(name, limit=_MOST_NAMED + 1, redrive=True))

    async def discard(self, name: str, sequences: Sequence[int]) -> None:
        """Forgets dead letters for good: the sink never gets them, and the ledger keeps their records."""
        await self._known(name)
        missing = await self._store.discard(name, sequences)
        if missing:
            raise not_found("dead_letter", f"{name}/{missing[0]}")

    async def families(self) -> tuple[Metric, ...]:
        """What belongs to the ledger; empty while the store can't be read."""
        try:
            statuses = await self.statuses()
        except Fault:
            return ()
        return tuple(_families([status for status in statuses if status.state is not SinkState.REMOVED]))

    async def _known(self, name: str) -> None:
        try:
            await self._store.load(name)
        except KeyError:
            raise not_found("sink", name) from None

    def _released(self, at: Cursor, choice: ResumeChoice | None) -> Cursor:
        if at.state is not SinkState.HELD:
            raise precondition("SINK_NOT_HELD", f"sink {at.name} is not held, so there is nothing to resume")
        over_window = at.hold_cause is HoldCause.DEDUPLICATION_WINDOW
        if over_window and choice is None:
            raise precondition("SINK_CHOICE_NEEDED", f"sink {at.name}: {at.hold_reason}", sink=at.name)
        if not over_window and choice is not None:
            raise Fault(
                FaultKind.FAILED_PRECONDITION,
                "SINK_CHOICE_NEEDED",
                f"sink {at.name} is held for another reason than its de-duplication window ({at.hold_reason}); "
                "resume it without a choice",
                metadata={"sink": at.name},
            )
        if choice is ResumeChoice.SKIP:
            return replace(at, cursor=at.sent_sequence, sent_at=None)
        if choice is ResumeChoice.RESEND:
            return replace(at, sent_at=self._clock.now())
        return at

    def _status(self, at: Cursor, head: int, dead: int) -> SinkStatus:
        settings = self._settings.get(at.name)
        status = SinkStatus(
            name=at.name,
            state=at.state,
            last_sequence=at.cursor,
            sent_sequence=at.sent_sequence,
            lag_records=max(0, head - at.cursor),
            dead_letters=dead,
            source=at.sent_as.source or self.source,
            event_type=at.sent_as.type or EVENT_TYPE,
            hold_cause=at.hold_cause,
            hold_reason=at.hold_reason,
            unacknowledged_since=at.sent_at,
            attempts=at.attempts,
            last_attempt_at=at.last_attempt_at,
            last_result=at.last_result,
        )
        if settings is None:
            return replace(status, state=SinkState.REMOVED)
        status = replace(status, url=settings.shown_url, mode=settings.wire_mode)
        if not at.unacknowledged:  # what is under way keeps the envelope it was sent in
            status = replace(status, source=settings.source or self.source, event_type=settings.type)
        return status


class AttemptCounter:
    """Requests of this process by sink and result."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._counter = Counter(
            "skillcell_export_attempts", "Requests to sinks of usage events.", ("sink", "result"), registry=registry
        )

    def count(self, name: str, verdict: Verdict) -> None:
        self._counter.labels(name, verdict.value).inc()


def _families(statuses: Sequence[SinkStatus]) -> Iterator[Metric]:
    for name, text, value in (
        ("skillcell_export_lag_records", "Usage records that a sink has not acknowledged.", _lag),
        ("skillcell_export_last_sequence", "Last usage record that a sink is done with.", _last),
        ("skillcell_export_dead_letters", "Usage events that a sink refused.", _dead),
        ("skillcell_export_held", "1 while a sink waits for an operator's decision.", _held),
    ):
        family = GaugeMetricFamily(name, text, labels=("sink",))
        for status in statuses:
            family.add_metric((status.name,), value(status))
        yield family


def _lag(status: SinkStatus) -> int:
    return status.lag_records


def _last(status: SinkStatus) -> int:
    return status.last_sequence


def _dead(status: SinkStatus) -> int:
    return status.dead_letters


def _held(status: SinkStatus) -> int:
    return int(status.state is SinkState.HELD)
