"""Frames come out as they went in, however the bytes are cut."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skillcell.agent import frames
from skillcell.agent.frames import FrameError
from skillcell.sandbox.framing import FrameReader

KINDS = (frames.STDOUT, frames.STDERR, frames.EVENT, frames.EXITED, frames.DATA, frames.DONE)
FRAMES = st.lists(st.tuples(st.sampled_from(KINDS), st.binary(max_size=200)), max_size=8)


@dataclass
class Pieces:
    """A byte channel that hands out what it was given, piece by piece."""

    pieces: list[bytes]
    taken: int = field(default=0)

    async def read(self, limit: int) -> bytes:
        self.taken += 1
        return self.pieces.pop(0) if self.pieces else b""

    async def write(self, data: bytes) -> None:
        raise ConnectionError

    async def close(self) -> None: ...


def cut(data: bytes, places: list[int]) -> list[bytes]:
    at = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(at) if b > a]


async def read_all(reader: FrameReader) -> list[tuple[int, bytes]]:
    got = []
    while (frame := await reader.next()) is not None:
        got.append(frame)
    return got


@given(FRAMES, st.lists(st.integers(0, 10_000), max_size=20))
def test_any_cutting_of_the_bytes_gives_the_same_frames(sent: list[tuple[int, bytes]], places: list[int]) -> None:
    data = b"".join(frames.encode(kind, payload) for kind, payload in sent)
    assert asyncio.run(read_all(FrameReader(Pieces(cut(data, places))))) == sent


@given(FRAMES.filter(bool), st.integers(1, 10_000), st.lists(st.integers(0, 10_000), max_size=5))
def test_an_end_amid_a_frame_is_an_error_and_one_between_frames_is_not(
    sent: list[tuple[int, bytes]], short: int, places: list[int]
) -> None:
    data = b"".join(frames.encode(kind, payload) for kind, payload in sent)
    kept = data[: len(data) - short % len(data)]
    ends = {0}
    for kind, payload in sent:
        ends.add(max(ends) + len(frames.encode(kind, payload)))
    reader = FrameReader(Pieces(cut(kept, places)))
    if len(kept) in ends:
        assert asyncio.run(read_all(reader)) == sent[: sorted(ends).index(len(kept))]
    else:
        with pytest.raises(FrameError, match="amid a frame"):
            asyncio.run(read_all(reader))


@pytest.mark.parametrize("kind", [*KINDS, frames.HELLO, frames.RESULT, frames.ARTIFACT])
async def test_a_length_over_its_types_limit_is_refused_before_a_byte_of_it_is_read(kind: int) -> None:
    channel = Pieces([frames.HEADER.pack(kind, frames.maximum(kind) + 1), b"x"])
    with pytest.raises(FrameError, match=str(frames.maximum(kind))):
        await FrameReader(channel).next()
    assert channel.taken == 1


@pytest.mark.parametrize("kind", [0, 8, 63, 76, 255])
async def test_an_unknown_type_is_refused(kind: int) -> None:
    with pytest.raises(FrameError, match="unknown frame type"):
        await FrameReader(Pieces([frames.HEADER.pack(kind, 0)])).next()


@given(st.binary(max_size=64))
def test_no_bytes_make_the_reader_raise_anything_but_a_frame_error(data: bytes) -> None:
    try:
        asyncio.run(read_all(FrameReader(Pieces([data]))))
    except FrameError:
        pass
