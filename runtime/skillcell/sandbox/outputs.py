"""A sink between the supervisor and the caller that finds the outputs in what a Skill says, and checks them.

Outputs come as events (functions), as stdout of entrypoints that declare JSON or NDJSON, or as result.json. One that
breaks the declared schema is not passed on as an output: callers may rely on the schema. It is told in a log event,
and decides the outcome.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from skillcell.agent.frames import VALUE_BYTES
from skillcell.core.events import Event, Log, Output, Stdout
from skillcell.core.json_text import json_problem
from skillcell.core.skills import Entrypoint, StdoutMode
from skillcell.sandbox.job import EventSink

_YIELD_AFTER_OUTPUTS = 32
_PROBLEMS = 5
_PROBLEM_CHARACTERS = 500
"""What is told of a breach: checkers quote the value, which may be megabytes."""

Check = Callable[[bytes], Collection[str]]
"""Given JSON bytes, what of the schema they break, in words; empty when nothing."""


class CheckedOutputs:
    """Wraps the caller's sink for one call. `violation` tells afterwards whether the result is invalid, and why."""

    def __init__(self, sink: EventSink, entrypoint: Entrypoint, check: Check | None) -> None:
        self._sink = sink
        self._mode = entrypoint.stdout
        self._check = check
        self._pending = bytearray()
        self._seen = 0
        self.violation = ""

    async def emit(self, event: Event) -> None:
        if isinstance(event, Output):
            await self._output(event.json)
            return
        await self._sink.emit(event)
        if isinstance(event, Stdout) and self._mode in (StdoutMode.JSON, StdoutMode.NDJSON):
            await self._stdout(event.data)

    async def finish(self, result_json: bytes | None) -> None:
        """After the run: what is still pending becomes outputs, and a schema that got no output at all is a breach."""
        if self._pending.strip():
            await self._output(bytes(self._pending))
        self._pending.clear()
        if result_json is not None:
            await self._output(result_json)
        if self._check is not None and not self._seen:
            self._breach("the entrypoint declares an output schema, and there was no output")

    async def _stdout(self, data: bytes) -> None:
        lines: list[bytes] = []
        self._pending += data
        if self._mode is StdoutMode.NDJSON and b"\n" in data:
            *lines, rest = bytes(self._pending).split(b"\n")
            self._pending = bytearray(rest)
        for number, line in enumerate(lines, 1):
            if number % _YIELD_AFTER_OUTPUTS == 0:
                await asyncio.sleep(0)  # one read may bring thousands of small outputs
            if len(line) > VALUE_BYTES:
                self._too_long()
            elif line.strip():
                await self._output(line)
        if len(self._pending) > VALUE_BYTES:
            self._too_long()

    def _too_long(self) -> None:
        """From here on stdout is only bytes: where the next output would begin can't be known."""
        self._pending.clear()
        self._mode = StdoutMode.TEXT
        self._breach(f"an output on stdout is over {VALUE_BYTES} bytes")

    async def _output(self, value: bytes) -> None:
        self._seen += 1
        problems = [f"is not JSON: {problem}"] if (problem := json_problem(value)) else []
        if not problems and self._check is not None:
            problems = list(self._check(value))
        if problems:
            what = "; ".join(problem[:_PROBLEM_CHARACTERS] for problem in problems[:_PROBLEMS])
            self._breach(f"output {self._seen}: {what}")
            await self._sink.emit(Log("error", f"output {self._seen} was withheld: {what}"))
            return
        await self._sink.emit(Output(value.strip()))

    def _breach(self, what: str) -> None:
        self.violation = self.violation or what
