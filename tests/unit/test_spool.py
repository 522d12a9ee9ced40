"""Every reader sees every record once, in order, whatever happens beside it, and disk stays bounded."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import struct
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skillcell.core.errors import Fault
from skillcell.storage import spool as spool_module
from skillcell.storage.spool import Expired, Spool, SpoolFull

SEGMENT = 256


def record(number: int, size: int = 50) -> bytes:
    return (b"%06d " % number).ljust(size, b".")


async def read_all(spool: Spool, after: int = 0) -> list[tuple[int, bytes]]:
    return [item async for item in spool.read(after)]


async def settle() -> None:
    """Lets everything that can go on do so."""
    for _ in range(20):
        await asyncio.sleep(0)


def small(path: Path, limit: int = 1024) -> Spool:
    return Spool(path / "spool", limit_bytes=limit, segment_bytes=SEGMENT)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 400), min_size=1, max_size=40),
    limit=st.integers(450, 2000),
    segment=st.integers(1, 600),
    pauses=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=10), min_size=1, max_size=3),
    leaves=st.lists(st.integers(1, 60), max_size=2),
)
def test_every_attached_reader_gets_every_record_once_in_order(
    sizes: list[int], limit: int, segment: int, pauses: list[list[int]], leaves: list[int]
) -> None:
    sent = [record(number, size) for number, size in enumerate(sizes, 1)]

    async def follow(spool: Spool, waits: list[int], until: int | None) -> list[tuple[int, bytes]]:
        got = []
        rhythm = itertools.cycle(waits)
        reading = spool.read()
        async for item in reading:
            got.append(item)
            if item[0] == until:
                break
            for _ in range(next(rhythm)):
                await asyncio.sleep(0)
        await reading.aclose()
        return got

    async def scenario(directory: Path) -> None:
        spool = Spool(directory / "spool", limit_bytes=limit, segment_bytes=segment)
        await spool.expect_reader(True)
        whole = [asyncio.create_task(follow(spool, waits, None)) for waits in pauses]
        partial = [asyncio.create_task(follow(spool, [1], until)) for until in leaves]
        await settle()
        for number, data in enumerate(sent, 1):
            assert await spool.append(data, final=number == len(sent)) == number
            kept = sum(path.stat().st_size for path in (directory / "spool").iterdir())
            assert kept <= limit or number == len(sent)
        spool.release()
        for task in whole:
            assert await task == list(enumerate(sent, 1))
        for task, until in zip(partial, leaves, strict=True):
            assert await task == list(enumerate(sent, 1))[:until]
        assert not spool.attached

    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(asyncio.wait_for(scenario(Path(directory)), 10))


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(0, 400), min_size=1, max_size=30), lost=st.integers(0, 500), more=st.booleans())
def test_what_a_lost_process_wrote_is_read_up_to_its_last_whole_record(sizes: list[int], lost: int, more: bool) -> None:
    sent = [record(number, size) for number, size in enumerate(sizes, 1)]

    async def scenario(directory: Path) -> None:
        spool = Spool(directory, limit_bytes=1 << 20, segment_bytes=SEGMENT)
        for data in sent:
            await spool.append(data)
        spool.release()
        newest = max(directory.iterdir())
        os.truncate(newest, max(0, newest.stat().st_size - lost))
        kept = Spool.reopen(directory, limit_bytes=1 << 20, closed=not more)
        whole = list(enumerate(sent, 1))[: kept.last_sequence]
        if more:
            assert await kept.append(b"after the crash", final=True) == len(whole) + 1
            whole.append((len(whole) + 1, b"after the crash"))
        assert await read_all(kept) == whole
        kept.release()

    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(asyncio.wait_for(scenario(Path(directory)), 10))


async def test_a_hole_in_the_files_ends_what_is_read_instead_of_being_skipped(tmp_path: Path) -> None:
    spool = small(tmp_path, 1 << 20)
    for number in range(1, 21):
        await spool.append(record(number))
    spool.release()
    first, second, *_ = sorted((tmp_path / "spool").iterdir())
    os.truncate(second, 0)
    os.truncate(second, 100)  # zeros, as a machine that lost power leaves them
    kept = Spool.reopen(tmp_path / "spool", limit_bytes=1 << 20, closed=True)
    got = await read_all(kept)
    assert [number for number, _ in got] == list(range(1, len(got) + 1))
    assert 0 < len(got) < 5
    assert list((tmp_path / "spool").iterdir()) == [first]
    kept.release()


async def test_a_full_spool_that_nobody_reads_refuses_but_takes_the_last_record(tmp_path: Path) -> None:
    spool = small(tmp_path)

    async def fill() -> None:
        for number in itertools.count(1):
            await spool.append(record(number))

    with pytest.raises(SpoolFull):
        await fill()
    kept = spool.last_sequence
    assert await spool.append(b"the end", final=True) == kept + 1
    assert [number for number, _ in await read_all(spool)] == list(range(1, kept + 2))
    spool.release()


async def test_a_full_spool_waits_for_a_reader_that_is_expected_until_it_no_longer_is(tmp_path: Path) -> None:
    spool = small(tmp_path)
    await spool.expect_reader(True)

    async def fill() -> None:
        for number in itertools.count(1):
            await spool.append(record(number))

    task = asyncio.create_task(fill())
    await settle()
    assert not task.done()
    await spool.expect_reader(False)
    with pytest.raises(SpoolFull):
        await task
    spool.release()


async def test_a_reader_that_stops_for_ever_holds_the_writer_until_it_leaves(tmp_path: Path) -> None:
    spool = small(tmp_path)
    stopped = spool.read()
    live: list[int] = []

    async def follow() -> None:
        async for number, _ in spool.read():
            live.append(number)

    async def fill() -> None:
        for number in range(1, 101):
            await spool.append(record(number), final=number == 100)

    following = asyncio.create_task(follow())
    filling = asyncio.create_task(fill())
    assert (await anext(stopped))[0] == 1
    await settle()
    assert not filling.done()
    assert live == list(range(1, spool.last_sequence + 1))
    await stopped.aclose()
    await asyncio.wait_for(asyncio.gather(filling, following), 5)
    assert live == list(range(1, 101))
    spool.release()


async def test_who_comes_too_late_is_told_where_the_records_begin(tmp_path: Path) -> None:
    spool = small(tmp_path)
    reading = asyncio.create_task(read_all(spool))
    await settle()
    for number in range(1, 101):
        await spool.append(record(number), final=number == 100)
    assert len(await reading) == 100
    with pytest.raises(Expired) as expired:
        await read_all(spool)
    first = expired.value.first
    assert 1 < first == spool.first_sequence <= 100
    assert [number for number, _ in await read_all(spool, first - 1)] == list(range(first, 101))
    spool.release()


async def test_who_reads_after_the_release_gets_all_and_leaves_no_descriptor(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    spool = small(tmp_path, 1 << 20)
    for number in range(1, 31):
        await spool.append(record(number), final=number == 30)
    slow = spool.read()
    await anext(slow)
    spool.release()
    assert len([item async for item in slow]) == 29
    assert len(await read_all(spool)) == 30
    assert set(os.listdir("/proc/self/fd")) == before


async def test_who_still_reads_what_is_deleted_is_told(tmp_path: Path) -> None:
    spool = small(tmp_path, 1 << 20)
    for number in range(1, 31):
        await spool.append(record(number), final=number == 30)
    reading = spool.read()
    await anext(reading)
    spool.delete()
    with pytest.raises(Expired):
        _ = [item async for item in reading]
    assert not (tmp_path / "spool").exists()


async def test_nothing_follows_the_last_record(tmp_path: Path) -> None:
    spool = small(tmp_path)
    await spool.append(b"end", final=True)
    with pytest.raises(RuntimeError):
        await spool.append(b"more")
    assert await read_all(spool) == [(1, b"end")]
    spool.release()


async def test_a_disk_that_fills_amid_a_record_leaves_no_trace_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = small(tmp_path)
    await spool.append(b"one")
    full = True
    # What lies on the disk behind `two`, which is written over its beginning, looks like a record.
    lost = b"..." + struct.pack(">QI", 3, 4) + b"evil" + b"." * 50

    def pwrite(fd: int, data: memoryview, offset: int) -> int:
        if not full:
            return os.pwrite(fd, data, offset)
        if len(data) > 50:
            return os.pwrite(fd, data[:-50], offset)
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(spool_module, "os", OsWith(pwrite))
    with pytest.raises(Fault, match="No space left") as fault:
        await spool.append(lost)
    assert fault.value.reason == "STORAGE_UNAVAILABLE"
    full = False
    assert await spool.append(b"two") == 2
    reading = spool.read()
    assert [await anext(reading), await anext(reading)] == [(1, b"one"), (2, b"two")]
    full = True
    with pytest.raises(Fault):
        await spool.append(b"also lost" * 10, final=True)
    assert [item async for item in reading] == []
    assert await asyncio.wait_for(read_all(spool), 5) == [(1, b"one"), (2, b"two")]
    spool.release()


class OsWith:
    """The `os` module with another `pwrite`: a disk that is full at the byte we choose."""

    def __init__(self, pwrite: object) -> None:
        self.pwrite = pwrite

    def __getattr__(self, name: str) -> object:
        return getattr(os, name)


async def test_a_canceled_writer_or_reader_leaves_the_spool_usable(tmp_path: Path) -> None:
    spool = small(tmp_path)
    await spool.expect_reader(True)
    for number in range(1, 17):
        await spool.append(record(number))
    stuck = asyncio.create_task(spool.append(record(99)))
    await settle()
    stuck.cancel()
    await asyncio.gather(stuck, return_exceptions=True)
    reader = asyncio.create_task(read_all(spool))
    await settle()
    reader.cancel()
    await asyncio.gather(reader, return_exceptions=True)
    assert spool.attached == 0
    assert await spool.append(b"end", final=True) == 17
    assert [number for number, _ in await read_all(spool)] == list(range(1, 18))
    spool.release()


async def test_records_far_over_a_batch_come_whole(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", limit_bytes=64 << 20)
    large = os.urandom(3 << 20)
    for data in (b"a", large, b"b", large, b"c"):
        await spool.append(data, final=data == b"c")
    assert [data for _, data in await read_all(spool)] == [b"a", large, b"b", large, b"c"]
    assert [data for _, data in await read_all(spool, 3)] == [large, b"c"]
    spool.delete()


async def test_reading_what_is_kept_does_not_put_its_expiry_off(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "x", limit_bytes=SEGMENT)
    await spool.append(record(1), final=True)
    (segment,) = (tmp_path / "x").iterdir()
    os.utime(segment, ns=(0, 0))
    again = Spool.reopen(tmp_path / "x", limit_bytes=SEGMENT, closed=True)
    assert await read_all(again) == [(1, record(1))]
    assert segment.stat().st_mtime_ns == 0
