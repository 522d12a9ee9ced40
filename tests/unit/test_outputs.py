"""What a Skill says becomes outputs only when it is JSON within the schema; all else stays what it was."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Collection
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plans import ENTRYPOINT
from skillcell.agent.frames import VALUE_BYTES
from skillcell.core.events import Event, Log, Output, Progress, Stderr, Stdout
from skillcell.core.skills import StdoutMode
from skillcell.sandbox.outputs import Check, CheckedOutputs


class Kept:
    def __init__(self) -> None:
        self.taken: list[Event] = []

    async def emit(self, event: Event) -> None:
        self.taken.append(event)

    @property
    def outputs(self) -> list[bytes]:
        return [event.json for event in self.taken if isinstance(event, Output)]


def outputs(mode: StdoutMode = StdoutMode.TEXT, check: Check | None = None) -> tuple[Kept, CheckedOutputs]:
    kept = Kept()
    return kept, CheckedOutputs(kept, replace(ENTRYPOINT, stdout=mode), check)


def numbers(value: bytes) -> Collection[str]:
    return () if isinstance(json.loads(value), int) else ("must be a number",)


async def test_everything_but_outputs_passes_as_it_is() -> None:
    kept, checked = outputs()
    events = [Stdout(b"{}"), Stderr(b"x"), Progress(0.5), Log("info", "x")]
    for event in events:
        await checked.emit(event)
    await checked.finish(None)
    assert (kept.taken, checked.violation) == (events, "")


async def test_stdout_that_is_json_is_streamed_and_becomes_one_output() -> None:
    kept, checked = outputs(StdoutMode.JSON)
    for piece in (b' {"a":', b" 1}", b"\n"):
        await checked.emit(Stdout(piece))
    assert kept.outputs == []
    await checked.finish(None)
    assert kept.outputs == [b'{"a": 1}']
    assert b"".join(event.data for event in kept.taken if isinstance(event, Stdout)) == b' {"a": 1}\n'


@given(st.lists(st.integers() | st.text(), max_size=10), st.lists(st.integers(0, 200), max_size=10), st.booleans())
def test_each_line_of_ndjson_is_an_output_however_it_is_cut(
    values: list[int | str], cuts: list[int], ended: bool
) -> None:
    lines = [json.dumps(value).encode() for value in values]
    data = b"\n".join(lines) + (b"\n\n" if ended else b"")
    at = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})

    async def scenario() -> None:
        kept, checked = outputs(StdoutMode.NDJSON)
        for begin, end in itertools.pairwise(at):
            await checked.emit(Stdout(data[begin:end]))
        await checked.finish(None)
        assert (kept.outputs, checked.violation) == (lines, "")

    asyncio.run(scenario())


async def test_lines_of_ndjson_come_while_the_skill_runs() -> None:
    kept, checked = outputs(StdoutMode.NDJSON)
    await checked.emit(Stdout(b"1\n2\n3"))
    assert kept.outputs == [b"1", b"2"]


async def test_an_output_that_breaks_the_schema_is_withheld_and_told() -> None:
    kept, checked = outputs(check=numbers)
    for value in (b"1", b'"two"', b"3"):
        await checked.emit(Output(value))
    await checked.finish(None)
    assert kept.outputs == [b"1", b"3"]
    assert checked.violation == "output 2: must be a number"
    assert [event.level for event in kept.taken if isinstance(event, Log)] == ["error"]


async def test_a_schema_without_any_output_is_broken() -> None:
    _, checked = outputs(StdoutMode.JSON, numbers)
    await checked.finish(None)
    assert "no output" in checked.violation


async def test_the_result_file_is_an_output_like_any_other() -> None:
    kept, checked = outputs(check=numbers)
    await checked.finish(b" 5\n")
    assert (kept.outputs, checked.violation) == ([b"5"], "")


@pytest.mark.parametrize(
    "value", [b"", b"{", b"NaN", b"1 2", b"\xff", b"[" * 5000, b"-Infinity", b"1e999", b'"\\udc00"']
)
async def test_what_is_not_json_never_reaches_the_schema_nor_the_caller(value: bytes) -> None:
    def unreachable(_value: bytes) -> Collection[str]:
        raise AssertionError

    kept, checked = outputs(check=unreachable)
    await checked.finish(value)
    assert kept.outputs == []
    assert "is not JSON" in checked.violation


async def test_a_breach_is_told_without_the_megabytes_that_made_it() -> None:
    kept, checked = outputs(check=lambda value: [value.decode()] * 100)
    await checked.finish(b'"' + b"x" * (1 << 20) + b'"')
    assert len(checked.violation) < 4000
    assert all(len(event.message) < 4000 for event in kept.taken if isinstance(event, Log))


@pytest.mark.parametrize("mode", [StdoutMode.JSON, StdoutMode.NDJSON])
async def test_an_output_on_stdout_past_what_one_value_may_have_is_a_breach_and_no_memory(mode: StdoutMode) -> None:
    kept, checked = outputs(mode)
    chunk = b"1" * (256 << 10)
    for _ in range(VALUE_BYTES // len(chunk) + 2):
        await checked.emit(Stdout(chunk))
    await checked.emit(Stdout(b"\n2\n"))
    await checked.finish(None)
    assert "over" in checked.violation
    assert kept.outputs == []
    assert len(kept.taken) == VALUE_BYTES // len(chunk) + 3


async def test_many_lines_in_few_chunks_are_not_taken_for_one_long_value() -> None:
    kept, checked = outputs(StdoutMode.NDJSON)
    long = b'"' + b"x" * (VALUE_BYTES - 10) + b'"'
    await checked.emit(Stdout(long))
    await checked.emit(Stdout(b"\n" + b"2\n" * 100))
    await checked.finish(None)
    assert checked.violation == ""
    assert len(kept.outputs) == 101


async def test_thousands_of_outputs_in_one_read_let_others_go_on() -> None:
    kept, checked = outputs(StdoutMode.NDJSON)
    task = asyncio.create_task(checked.emit(Stdout(b"1\n" * 10_000)))
    await asyncio.sleep(0)
    seen = [len(kept.outputs)]
    while not task.done():
        await asyncio.sleep(0)
        seen.append(len(kept.outputs))
    assert seen[-1] == 10_000
    assert max(after - before for before, after in itertools.pairwise([0, *seen])) <= 64
