"""Live input keeps order, loses nothing, writes nothing twice, and holds back whoever feeds too fast."""

from __future__ import annotations

import asyncio

import pytest

from skillcell.core.errors import Fault, FaultKind
from skillcell.sandbox.live_input import LiveInput


async def all_of(live: LiveInput) -> list[bytes | int | None]:
    return [item async for item in live.items()]


async def test_bytes_come_out_in_order_and_end_once() -> None:
    live = LiveInput()
    reading = asyncio.create_task(all_of(live))
    await live.feed(0, b"one", end=False)
    await live.feed(3, b"two", end=True)
    await live.end()
    while live._items or not live._ended:
        await asyncio.sleep(0)
    await live.signal(15)
    while live._items:
        await asyncio.sleep(0)
    await live.close()
    items = await reading
    assert b"".join(item for item in items if isinstance(item, bytes)) == b"onetwo"
    assert items.count(None) == 1
    assert items[-1] == 15


async def test_what_is_sent_again_is_written_once() -> None:
    live = LiveInput()
    await live.feed(0, b"abc", end=False)
    await live.feed(1, b"bcde", end=False)
    await live.feed(0, b"abcde", end=True)
    items = live.items()
    assert [await anext(items), await anext(items), await anext(items)] == [b"abc", b"de", None]


async def test_a_gap_is_refused_and_says_what_came() -> None:
    live = LiveInput()
    await live.feed(0, b"abc", end=False)
    with pytest.raises(Fault, match="3 bytes came before") as refused:
        await live.feed(5, b"x", end=False)
    assert refused.value.kind is FaultKind.OUT_OF_RANGE
    assert refused.value.metadata["received"] == "3"


async def test_bytes_after_the_end_are_refused() -> None:
    live = LiveInput()
    await live.feed(0, b"abc", end=True)
    await live.feed(0, b"abc", end=True)  # the same again is a client making sure
    with pytest.raises(Fault, match="after the end"):
        await live.feed(3, b"x", end=False)


async def test_a_skill_that_does_not_read_holds_back_its_client_until_the_call_is_over() -> None:
    live = LiveInput()
    await live.feed(0, bytes(1 << 20), end=False)
    waiting = asyncio.create_task(live.feed(1 << 20, b"more", end=False))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not waiting.done()
    await live.close()
    await asyncio.wait_for(waiting, 5)
    assert await all_of(live) == []


async def test_signals_go_ahead_of_bytes_and_are_bounded() -> None:
    live = LiveInput()
    await live.feed(0, b"abc", end=False)
    await live.signal(2)
    items = live.items()
    assert await anext(items) == 2
    for _ in range(64):
        await live.signal(10)
    with pytest.raises(Fault, match="64 signals"):
        await live.signal(10)


async def test_the_same_bytes_on_two_streams_that_both_wait_for_room_are_written_once() -> None:
    live = LiveInput()
    await live.feed(0, b"a" * (1 << 20), end=False)
    broken, back = (asyncio.create_task(live.feed(1 << 20, b"b" * (1 << 19), end=False)) for _ in range(2))
    await asyncio.sleep(0)
    assert not broken.done()
    assert not back.done()
    items = live.items()
    assert await anext(items) == b"a" * (1 << 20)
    await asyncio.gather(broken, back)
    await live.end()
    assert [await anext(items), await anext(items)] == [b"b" * (1 << 19), None]
