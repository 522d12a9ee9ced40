"""What delivery to a sink promises, over either store and a real sink: nothing lost, doubled or reordered."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from ledger_stores import NOON, admission, settlement
from received import received
from sink import Sink, sink
from skillcell.core.errors import Fault
from skillcell.core.sinks import HoldCause, ResumeChoice, SinkState, SinkStatus
from skillcell.core.types import UsageRecord
from skillcell.metering.export.answers import Verdict
from skillcell.metering.export.exporter import Delivery, Exporter
from skillcell.metering.export.http_sink import HttpSink
from skillcell.metering.export.settings import SinkSettings
from skillcell.metering.export.sinks import Sinks
from skillcell.metering.export.store import SinkStore
from skillcell.metering.ledger import Ledger
from skillcell.metering.totals import sums_of
from skillcell.storage.database import Database

KEY = "Bearer s3cret-of-the-sink"
AT_ONCE = timedelta()


@dataclass
class Hands:
    """A clock that a test moves."""

    when: datetime = NOON
    ns: int = 0

    def now(self) -> datetime:
        return self.when

    def monotonic_ns(self) -> int:
        return self.ns


@dataclass
class Scene:
    """A ledger, a sink, and whatever delivers from the one to the other."""

    database: Database
    ledger: Ledger
    sink: Sink
    stack: AsyncExitStack
    clock: Hands = field(default_factory=Hands)
    counted: list[Verdict] = field(default_factory=list)

    async def settle(self, count: int = 1, **of: Any) -> list[UsageRecord]:
        made = []
        for _ in range(count):
            given = admission(**of)
            await self.ledger.admit(given)
            made.append(await self.ledger.settle(settlement(given)))
        return made

    def settings(self, **changes: Any) -> SinkSettings:
        given = {"name": "meter", "url": self.sink.url, "headers": {"Authorization": KEY}, "batch_events": 10}
        return SinkSettings.model_validate(given | changes)

    async def exporter(self, owner: str = "gateway-1", **changes: Any) -> Exporter:
        settings = self.settings(**changes)
        store = SinkStore(self.database)
        await store.register(settings.name, at_head=settings.start == "next")
        post = await self.stack.enter_async_context(HttpSink(settings))
        counted = lambda name, verdict: self.counted.append(verdict)  # noqa: E731
        delivery = Delivery(store, post, self.clock, owner, "/ledger", counted, lambda: 0.0)
        return Exporter(settings, delivery)

    async def sinks(self, **changes: Any) -> Sinks:
        return Sinks(SinkStore(self.database), [self.settings(**changes)], self.clock, "/ledger")

    async def status(self) -> SinkStatus:
        (status,) = await (await self.sinks()).statuses()
        return status


@pytest.fixture
def meter(tmp_path: Path) -> Iterator[Sink]:
    (tmp_path / "sink").mkdir()
    with sink(tmp_path / "sink") as made:
        yield made


@pytest.fixture
async def scene(database: Database, ledger: Ledger, meter: Sink) -> AsyncIterator[Scene]:
    async with AsyncExitStack() as stack:
        yield Scene(database, ledger, meter, stack)


async def drained(exporter: Exporter) -> None:
    """Turns until one waits."""
    for _ in range(50):
        if await exporter.turn() != AT_ONCE:
            return
    raise AssertionError("it never waits")


@pytest.mark.parametrize("mode", ["batch", "structured"])
async def test_a_sink_gets_every_record_once_in_order_and_can_sum_them(scene: Scene, mode: str) -> None:
    records = await scene.settle(23, labels={"team": "red"})
    scene.sink.tell(key=KEY)
    await drained(await scene.exporter(mode=mode))
    got = received(scene.sink.bodies)
    assert scene.sink.sequences == list(range(1, 24))
    assert (got.events, got.duplicates, got.missing) == (23, 0, ())
    (sums,) = got.sums.values()
    assert sums.memory_reserved_byte_ns == sum(sums_of(record).memory_reserved_byte_ns for record in records)
    assert sums.cpu_ns == sum(record.cpu_total_ns for record in records)
    sizes = [request["events"] for request in scene.sink.requests]
    assert sizes == ([10, 10, 3] if mode == "batch" else [1] * 23)
    status = await scene.status()
    assert (status.last_sequence, status.lag_records, status.unacknowledged, status.attempts) == (23, 0, 0, 0)
    assert (status.state, status.unacknowledged_since) == (SinkState.RUNNING, None)


async def test_a_body_is_bounded_in_bytes_and_one_large_event_still_goes(scene: Scene) -> None:
    await scene.settle(6)
    await drained(await scene.exporter(batch_bytes=4500))
    assert [request["events"] for request in scene.sink.requests] == [2, 2, 2]
    await scene.settle(2)
    await drained(await scene.exporter(batch_bytes=1024))
    assert [request["events"] for request in scene.sink.requests][3:] == [1, 1]


@pytest.mark.parametrize("mode", ["batch", "structured"])
async def test_one_refused_event_is_buried_alone_and_redriven_with_the_same_bytes(scene: Scene, mode: str) -> None:
    await scene.settle(10)
    scene.sink.tell(refuse=[4])
    exporter = await scene.exporter(mode=mode)
    await drained(exporter)
    assert scene.sink.sequences == [1, 2, 3, 5, 6, 7, 8, 9, 10]
    sinks = await scene.sinks()
    (letter,) = await sinks.dead_letters("meter", 0, 10)
    assert (letter.sequence, letter.status, letter.attempts) == (4, 400, 1)
    assert letter.reason == "400 Bad Request: the sink says 400"
    assert json.loads(letter.body)["id"] == letter.event_id
    status = await scene.status()
    assert (status.dead_letters, status.lag_records, status.state) == (1, 0, SinkState.RUNNING)
    assert await sinks.redrive("meter", [4]) == 1
    await drained(exporter)  # it is refused again, and stays
    (letter,) = await sinks.dead_letters("meter", 0, 10)
    assert (letter.attempts, letter.redrive) == (2, False)
    scene.sink.tell()
    assert await sinks.redrive("meter", []) == 1
    await drained(exporter)
    assert await sinks.dead_letters("meter", 0, 10) == ()
    assert scene.sink.bodies[-1] == letter.body
    assert received(scene.sink.bodies).missing == ()


async def test_a_request_too_large_for_the_sink_is_split_and_nothing_is_buried(scene: Scene) -> None:
    await scene.settle(10)
    scene.sink.tell(most=3)
    await drained(await scene.exporter())
    assert scene.sink.sequences == list(range(1, 11))
    assert (await scene.status()).dead_letters == 0


async def test_failures_are_tried_for_ever_with_back_off_and_retry_after(scene: Scene) -> None:
    await scene.settle(3)
    answers = [[500, {}], [502, {}], [503, {"Retry-After": "77"}], [429, {}], [408, {}]]
    scene.sink.tell(answers=answers)
    exporter = await scene.exporter(back_off_seconds=2, back_off_max_seconds=10)
    waits = [(await exporter.turn()).total_seconds() for _ in answers]
    assert waits == [1, 2, 77, 5, 5]  # the lower half of 2, 4, 8 (but for the sink's wish), 10, 10
    status = await scene.status()
    assert (status.attempts, status.last_sequence, status.unacknowledged) == (5, 0, 3)
    assert status.last_result == "408 Request Timeout: the sink says 408"
    await drained(exporter)
    assert scene.sink.sequences == [1, 2, 3]
    assert scene.counted == [Verdict.RETRY] * 5 + [Verdict.ACCEPTED]
    assert (await scene.status()).attempts == 0


async def test_a_date_as_retry_after_is_a_wait_until_then(scene: Scene) -> None:
    await scene.settle()
    in_an_hour = (datetime.now(UTC) + timedelta(hours=1)).strftime("%a, %d %b %Y %H:%M:%S GMT")
    scene.sink.tell(answers=[[503, {"Retry-After": in_an_hour}]])
    wait = await (await scene.exporter()).turn()
    assert timedelta(minutes=59) < wait <= timedelta(hours=1)


@pytest.mark.parametrize("status", [401, 410, 307])
async def test_an_answer_about_us_holds_the_sink_and_buries_nothing(scene: Scene, status: int) -> None:
    await scene.settle(4)
    elsewhere = f"http://127.0.0.1:{scene.sink.port}/elsewhere"
    scene.sink.tell(answers=[[status, {"Location": elsewhere}]])
    exporter = await scene.exporter()
    await drained(exporter)
    await drained(exporter)
    held = await scene.status()
    assert (held.state, held.hold_cause, held.dead_letters) == (SinkState.HELD, HoldCause.SINK_REFUSED, 0)
    assert str(status) in held.hold_reason
    assert len(scene.sink.requests) == 1
    sinks = await scene.sinks()
    with pytest.raises(Fault) as caught:
        await sinks.resume("meter", ResumeChoice.SKIP)
    assert caught.value.reason == "SINK_CHOICE_NEEDED"
    await sinks.resume("meter")
    await drained(exporter)
    assert scene.sink.sequences == [1, 2, 3, 4]
    with pytest.raises(Fault) as caught:
        await sinks.resume("meter")
    assert caught.value.reason == "SINK_NOT_HELD"


async def test_a_sink_that_refuses_everything_is_held_before_the_ledger_is_buried(scene: Scene) -> None:
    await scene.settle(40)
    scene.sink.tell(refuse=list(range(1, 41)))
    exporter = await scene.exporter(refused_in_a_row=5)
    await drained(exporter)
    status = await scene.status()
    assert (status.state, status.hold_cause, status.dead_letters) == (SinkState.HELD, HoldCause.EVERYTHING_REFUSED, 5)
    scene.sink.tell()
    sinks = await scene.sinks()
    await sinks.resume("meter")
    await sinks.redrive("meter", [])
    await drained(exporter)
    assert received(scene.sink.bodies).events == 40
    assert (await scene.status()).dead_letters == 0


async def test_what_was_sent_and_not_acknowledged_is_resent_alike_after_labels_and_settings_changed(
    scene: Scene,
) -> None:
    records = await scene.settle(5, labels={"team": "red", "person": "somebody"})
    scene.sink.tell(drop=1)
    assert await (await scene.exporter()).turn() != AT_ONCE
    first = scene.sink.bodies
    assert len(first) == 5
    await scene.ledger.erase_labels(tuple(record.execution_id for record in records))
    await scene.settle(2)
    # Another process, set otherwise: smaller batches, another source.
    again = await scene.exporter(batch_events=2, source="/another", mode="structured")
    await drained(again)
    assert scene.sink.bodies[5:10] == first
    got = received(scene.sink.bodies)
    assert (got.events, got.duplicates, got.missing) == (7, 5, ())
    assert [json.loads(body)["source"] for body in scene.sink.bodies[10:]] == ["/another"] * 2
    assert b"red" not in b"".join(scene.sink.bodies)


async def test_no_answer_in_time_is_tried_again(scene: Scene) -> None:
    await scene.settle()
    scene.sink.tell(slow=30)
    exporter = await scene.exporter(timeout_seconds=0.2)
    assert await exporter.turn() != AT_ONCE
    assert (await scene.status()).last_result == "no answer within 0.2 s"
    scene.sink.tell()
    await drained(exporter)
    assert scene.sink.sequences == [1, 1]
    assert received(scene.sink.bodies).events == 1


async def test_a_sink_that_dies_after_keeping_events_gets_them_again_alike(scene: Scene) -> None:
    await scene.settle(3)
    scene.sink.tell(die=True)
    exporter = await scene.exporter()
    assert await exporter.turn() != AT_ONCE
    assert scene.sink.ended() == 9
    assert await exporter.turn() != AT_ONCE  # nobody listens
    scene.sink.start()
    await drained(exporter)
    got = received(scene.sink.bodies)
    assert (got.events, got.duplicates) == (3, 3)


async def test_past_the_window_what_may_have_arrived_is_held_for_a_decision(scene: Scene) -> None:
    await scene.settle(4)
    scene.sink.tell(drop=1)
    exporter = await scene.exporter(batch_events=3)
    await exporter.turn()
    scene.clock.when += timedelta(days=32, seconds=-31)
    scene.sink.tell(answers=[[503, {}]])
    await exporter.turn()  # within the window it is tried
    assert len(scene.sink.requests) == 2
    scene.clock.when += timedelta(seconds=1)
    await exporter.turn()  # a request sent now could arrive after it
    held = await scene.status()
    assert (held.state, held.hold_cause) == (SinkState.HELD, HoldCause.DEDUPLICATION_WINDOW)
    assert held.hold_reason.startswith(f"records 1 to 3 were sent at {NOON.isoformat()} and never acknowledged")
    assert (held.unacknowledged, held.unacknowledged_since) == (3, NOON)
    assert len(scene.sink.requests) == 2
    with pytest.raises(Fault) as caught:
        await (await scene.sinks()).resume("meter")
    assert caught.value.reason == "SINK_CHOICE_NEEDED"


@pytest.mark.parametrize(("choice", "then"), [(ResumeChoice.SKIP, [4]), (ResumeChoice.RESEND, [1, 2, 3, 4])])
async def test_an_operator_decides_whether_it_is_sent_again(
    scene: Scene, choice: ResumeChoice, then: list[int]
) -> None:
    await scene.settle(4)
    scene.sink.tell(drop=1)
    exporter = await scene.exporter(batch_events=3)
    await exporter.turn()
    scene.clock.when += timedelta(days=33)
    await exporter.turn()
    status, moved = await (await scene.sinks()).resume("meter", choice)
    assert (status.state, moved) == (SinkState.RUNNING, (1, 3))
    await drained(exporter)
    assert scene.sink.sequences == [1, 2, 3, *then]


async def test_old_records_that_were_never_sent_are_not_held(scene: Scene) -> None:
    await scene.settle(4)
    scene.clock.when += timedelta(days=400)
    await drained(await scene.exporter())
    assert scene.sink.sequences == [1, 2, 3, 4]


async def test_a_dead_letter_sent_again_without_an_answer_is_not_sent_past_the_window(scene: Scene) -> None:
    await scene.settle(2)
    scene.sink.tell(refuse=[1])
    exporter = await scene.exporter()
    await drained(exporter)
    sinks = await scene.sinks()
    await sinks.redrive("meter", [1])
    scene.sink.tell(drop=1)
    assert await exporter.turn() != AT_ONCE
    scene.clock.when += timedelta(days=32)
    await drained(exporter)
    (letter,) = await sinks.dead_letters("meter", 0, 10)
    assert (letter.redrive, letter.status) == (False, 0)
    assert "may have forgotten" in letter.reason
    assert scene.sink.sequences == [2, 1]


async def test_of_two_gateways_one_delivers_until_its_lease_ends(scene: Scene) -> None:
    await scene.settle(2)
    one, two = await scene.exporter("one"), await scene.exporter("two")
    scene.sink.tell(answers=[[503, {}]])
    await one.turn()
    await drained(two)
    assert len(scene.sink.requests) == 1
    scene.clock.when += timedelta(seconds=91)
    await drained(two)
    assert scene.sink.sequences == [1, 2]
    await scene.settle()
    await drained(one)
    assert scene.sink.sequences == [1, 2]
    await SinkStore(scene.database).hand_over("meter", "two")
    await drained(one)
    assert scene.sink.sequences == [1, 2, 3]


async def test_a_record_that_was_edited_is_never_sent(scene: Scene) -> None:
    await scene.settle(3)
    forge = text(
        "UPDATE usage_records SET body = (SELECT body FROM usage_records WHERE sequence = 1) WHERE sequence = 2"
    )
    await scene.database.write(lambda connection: connection.execute(forge).close())
    exporter = await scene.exporter()
    await drained(exporter)
    assert scene.sink.sequences == [1]
    status = await scene.status()
    assert (status.state, status.hold_cause) == (SinkState.HELD, HoldCause.LEDGER_BROKEN)
    assert "record 2" in status.hold_reason


async def test_a_new_sink_may_begin_with_what_comes_next(scene: Scene) -> None:
    await scene.settle(3)
    exporter = await scene.exporter(start="next")
    await scene.settle(1)
    await drained(exporter)
    assert scene.sink.sequences == [4]


async def test_a_sink_that_left_the_settings_keeps_its_place(scene: Scene) -> None:
    await scene.settle(3)
    await drained(await scene.exporter())
    (gone,) = await Sinks(SinkStore(scene.database), [], scene.clock, "/ledger").statuses()
    assert (gone.state, gone.last_sequence, gone.url) == (SinkState.REMOVED, 3, "")
    await scene.settle(1)
    await drained(await scene.exporter(start="next"))
    assert scene.sink.sequences == [1, 2, 3, 4]


async def test_secrets_come_from_a_file_too_and_are_shown_nowhere(scene: Scene, tmp_path: Path) -> None:
    file = tmp_path / "headers"
    file.write_text("# of the meter\nAuthorization: Bearer old\n")
    scene.sink.tell(key=KEY)
    await scene.settle(1)
    exporter = await scene.exporter(headers={}, headers_file=str(file))
    await drained(exporter)
    assert (await scene.status()).state is SinkState.HELD
    file.write_text(f"Authorization: {KEY}\n")
    await (await scene.sinks()).resume("meter")
    await drained(exporter)
    assert scene.sink.sequences == [1]
    assert "s3cret" not in repr(scene.settings()) + repr(await scene.status())


@pytest.mark.parametrize("ask", [
    lambda sinks: sinks.resume("nobody"),
    lambda sinks: sinks.dead_letters("nobody", 0, 10),
    lambda sinks: sinks.redrive("nobody", []),
])  # fmt: skip
async def test_an_unknown_sink_is_not_found(scene: Scene, ask: Callable[[Sinks], Any]) -> None:
    with pytest.raises(Fault) as caught:
        await ask(await scene.sinks())
    assert caught.value.reason == "SINK_NOT_FOUND"


async def test_an_unknown_dead_letter_is_not_found_and_none_is_redriven(scene: Scene) -> None:
    await scene.settle(2)
    scene.sink.tell(refuse=[1])
    await drained(await scene.exporter())
    sinks = await scene.sinks()
    with pytest.raises(Fault) as caught:
        await sinks.redrive("meter", [1, 2])
    assert (caught.value.reason, caught.value.resource) == ("DEAD_LETTER_NOT_FOUND", ("dead_letter", "meter/2"))
    assert [letter.redrive for letter in await sinks.dead_letters("meter", 0, 10)] == [False]


async def test_a_discarded_dead_letter_is_forgotten_and_its_record_stays(scene: Scene) -> None:
    await scene.settle(3)
    scene.sink.tell(refuse=[1, 2])
    exporter = await scene.exporter()
    await drained(exporter)
    sinks = await scene.sinks()
    with pytest.raises(Fault) as caught:
        await sinks.discard("meter", [1, 3])
    assert caught.value.reason == "DEAD_LETTER_NOT_FOUND"
    assert len(await sinks.dead_letters("meter", 0, 10)) == 2
    await sinks.discard("meter", [1])
    assert [letter.sequence for letter in await sinks.dead_letters("meter", 0, 10)] == [2]
    scene.sink.tell()
    await sinks.redrive("meter", [])
    await drained(exporter)
    assert scene.sink.sequences == [3, 2]
    assert (await scene.ledger.head()).sequence == 3
