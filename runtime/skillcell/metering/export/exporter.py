"""Delivers the ledger to one sink: in order, at least once, and with the same bytes when it has to be again.

One turn: look where the sink is; hold it where resending could count twice; mark what is going to be sent; send it,
splitting what is refused until the refused event is alone; move the cursor. Whatever dies in between, the next turn
sends what is marked and not acknowledged, and nothing else, before it sends anything new.

What a reader could get wrong: a turn never waits and never sleeps. It returns how long to wait, so that a test owns
the time.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import structlog

from skillcell.core.clock import Clock
from skillcell.core.errors import Fault
from skillcell.core.sinks import DeadLetter, HoldCause, SinkMode, SinkState
from skillcell.core.steps import ExportStep, ExportSteps, export_pass_by
from skillcell.metering.export.answers import Answer, Verdict, forgotten
from skillcell.metering.export.cursors import Cursor, Lease
from skillcell.metering.export.events import BATCH_TYPE, STRUCTURED_TYPE, Envelope, UsageEvent, batch
from skillcell.metering.export.http_sink import Post
from skillcell.metering.export.settings import SinkSettings
from skillcell.metering.export.store import BrokenRecord, SinkStore

log = structlog.get_logger("skillcell.export")
_AT_ONCE = timedelta()
_AFTER_A_DEFECT = 5.0
_LETTERS = 100
_LEASE = 3
"""How many timeouts a lease lasts; it is renewed after one."""

Counted = Callable[[str, Verdict], None]


@dataclass(frozen=True, slots=True)
class Delivery:
    """All that an exporter needs besides its sink's settings."""

    store: SinkStore
    post: Post
    clock: Clock
    owner: str
    """This gateway: of several that share a store one delivers to a sink at a time."""
    source: str
    """Of the ledger's events, where the settings name none."""
    counted: Counted = lambda name, verdict: None
    chance: Callable[[], float] = random.random
    steps: ExportSteps = export_pass_by


class Exporter:
    """One sink's deliveries."""

    def __init__(self, settings: SinkSettings, delivery: Delivery) -> None:
        self._settings = settings
        self._name = settings.name
        self._by = delivery
        self._store = delivery.store
        self._envelope = Envelope(settings.source or delivery.source, settings.type)
        self._seen: tuple[datetime, int] | None = None
        """What is not acknowledged since when, and when this process saw that first, on a clock that never steps."""

    async def run(self, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Takes turns until canceled, whatever goes wrong in one."""
        try:
            while True:
                try:
                    pause = (await self.turn()).total_seconds()
                except Fault as fault:
                    log.warning("export_waits", sink=self._name, reason=fault.reason, why=fault.message)
                    pause = self._settings.back_off_seconds
                except Exception:
                    log.exception("export_failed", sink=self._name)
                    pause = _AFTER_A_DEFECT
                await sleep(pause)
        finally:
            try:
                await asyncio.shield(self._store.hand_over(self._name, self._by.owner))
            except Fault as fault:
                log.warning("export_lease_kept", sink=self._name, reason=fault.reason)

    async def turn(self) -> timedelta:
        """Delivers one run of events, if there is one; how long to wait before the next turn."""
        at = await self._store.load(self._name)
        poll = timedelta(seconds=self._settings.poll_seconds)
        if at.state is SinkState.HELD or at.owned_by_another(self._by.owner, self._by.clock.now()):
            return poll
        waiting = await self._redrive(at)
        if waiting is not None:
            return waiting
        if self._too_old(at.sent_at):
            await self._hold(HoldCause.DEDUPLICATION_WINDOW, _window_reason(at, self._settings))
            return poll
        # What is marked goes first, alone, and as it went before.
        envelope, through = (at.sent_as, at.sent_sequence) if at.unacknowledged else (self._envelope, None)
        try:
            events = await self._store.events(
                at.cursor, through, envelope, count=self._settings.batch_events, size=self._settings.batch_bytes
            )
        except BrokenRecord as error:
            await self._hold(HoldCause.LEDGER_BROKEN, str(error))
            return poll
        if not events:
            return poll
        if not await self._store.mark(self._name, events[-1].sequence, envelope, self._lease()):
            return poll
        self._by.steps(ExportStep.MARKED)
        return await self._deliver(events, at, envelope)

    async def _deliver(self, events: tuple[UsageEvent, ...], at: Cursor, envelope: Envelope) -> timedelta:
        """Sends a marked run. Parts that are still to be sent lie on a stack, the next one on top."""
        one_by_one = self._settings.wire_mode is SinkMode.STRUCTURED
        parts = [(event,) for event in reversed(events)] if one_by_one else [events]
        first_at = at.sent_at or self._by.clock.now()
        began = self._by.clock.monotonic_ns()
        while parts:
            part = parts.pop()
            if self._by.clock.monotonic_ns() - began > self._settings.timeout_seconds * 1e9:
                if not await self._store.mark(self._name, events[-1].sequence, envelope, self._lease()):
                    return timedelta(seconds=self._settings.poll_seconds)
                began = self._by.clock.monotonic_ns()
            answer = await self._send(tuple(event.body for event in part))
            match answer.verdict:
                case Verdict.ACCEPTED:
                    self._by.steps(ExportStep.ACCEPTED)
                    await self._store.acknowledge(self._name, part[-1].sequence, str(answer))
                    self._by.steps(ExportStep.ACKNOWLEDGED)
                case Verdict.REFUSED if len(part) > 1:
                    middle = len(part) // 2
                    parts += [part[middle:], part[:middle]]
                case Verdict.REFUSED:
                    now = self._by.clock.now()
                    letter = DeadLetter(
                        self._name, part[0].sequence, part[0].event_id, part[0].body, answer.status or 0, str(answer),
                        at.attempts + 1, first_at, now,
                    )  # fmt: skip
                    in_a_row = await self._store.bury(letter)
                    log.warning("export_refused", sink=self._name, sequence=letter.sequence, answer=str(answer))
                    if in_a_row >= self._settings.refused_in_a_row:
                        reason = f"{in_a_row} events in a row were refused, the last one with: {answer}"
                        await self._hold(HoldCause.EVERYTHING_REFUSED, reason)
                        return timedelta(seconds=self._settings.poll_seconds)
                case _:
                    return await self._wait_or_hold(answer, at.attempts + 1)
        return _AT_ONCE

    async def _redrive(self, at: Cursor) -> timedelta | None:
        """Sends dead letters that an operator has asked for; a wait where the sink takes nothing now."""
        for letter in await self._store.dead_letters(self._name, limit=_LETTERS, redrive=True):
            sent_at = await self._store.mark_letter(letter, self._lease())
            if sent_at is None:
                return timedelta(seconds=self._settings.poll_seconds)
            if self._too_old(sent_at):
                reason = f"sent again at {sent_at.isoformat()} without an answer, and the sink may have forgotten it"
                await self._store.refused_again(replace(letter, status=0, reason=reason))
                continue
            answer = await self._send((letter.body,))
            match answer.verdict:
                case Verdict.ACCEPTED:
                    await self._store.delivered(letter, str(answer))
                case Verdict.REFUSED:
                    await self._store.refused_again(replace(letter, status=answer.status or 0, reason=str(answer)))
                case _:
                    return await self._wait_or_hold(answer, letter.attempts + 1)
        return None

    async def _send(self, bodies: tuple[bytes, ...]) -> Answer:
        if self._settings.wire_mode is SinkMode.STRUCTURED:
            answer = await self._by.post.send(STRUCTURED_TYPE, bodies[0])
        else:
            answer = await self._by.post.send(BATCH_TYPE, batch(bodies))
        self._by.counted(self._name, answer.verdict)
        return answer

    async def _wait_or_hold(self, answer: Answer, attempts: int) -> timedelta:
        if answer.verdict is Verdict.HOLD:
            await self._hold(HoldCause.SINK_REFUSED, f"the sink answered {answer}")
            return timedelta(seconds=self._settings.poll_seconds)
        wait = self._settings.back_off.wait(attempts, self._by.chance(), answer.retry_after)
        log.warning(
            "export_retries", sink=self._name, answer=str(answer), attempts=attempts, seconds=wait.total_seconds()
        )
        await self._store.note(self._name, str(answer))
        return wait

    async def _hold(self, cause: HoldCause, reason: str) -> None:
        await self._store.hold(self._name, cause, reason)
        log.error("export_held", sink=self._name, cause=cause.value, why=reason)

    def _too_old(self, sent_at: datetime | None) -> bool:
        """By the wall clock, which outlives this process, or by the monotonic one, whichever says older."""
        now, ns = self._by.clock.now(), self._by.clock.monotonic_ns()
        if sent_at is not None:
            if self._seen is None or self._seen[0] != sent_at:
                self._seen = sent_at, ns
            now = max(now, sent_at + timedelta(microseconds=(ns - self._seen[1]) // 1000))
        return forgotten(sent_at, now, self._settings.window, self._settings.timeout)

    def _lease(self) -> Lease:
        now = self._by.clock.now()
        return Lease(self._by.owner, now, now + _LEASE * self._settings.timeout)


def _window_reason(at: Cursor, settings: SinkSettings) -> str:
    sent_at = at.sent_at.isoformat() if at.sent_at is not None else ""
    return (
        f"records {at.cursor + 1} to {at.sent_sequence} were sent at {sent_at} and never acknowledged; the sink "
        f"remembers ids for {settings.dedup_window_seconds:g} s, so sent again they could count twice. Look whether it "
        f"has them, then resume with --skip if so, and with --resend if not"
    )
