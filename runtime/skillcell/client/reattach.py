"""One call's events across broken connections.

A stream that breaks before the execution's id has come may not have started anything: with a request id the same
request is sent again, which joins the same execution. One that breaks later is taken up by WatchExecution after the
last sequence that was seen. Refusals of the gateway (those with a reason) are never retried here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from skillcell.client import convert
from skillcell.client.channel import known_values
from skillcell.client.errors import DataLoss, SkillcellError, Unavailable, from_rpc
from skillcell.client.types import Event
from skillcell.core.events import Completed

EXECUTION_ID = "skillcell-execution-id"
_BROKEN = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED}
"""What a lost connection looks like, when it comes without a reason."""
_GOING_AWAY = {"DRAINING", "STORE_UNAVAILABLE"}


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long a broken stream is tried to be taken up again."""

    before_admission: int = 2
    """Times that a call is sent again when no gateway answered; 0 for none."""
    reattach_seconds: float = 30.0
    """How long after a break, without one new event; a gateway waits as long for its client by default."""
    first_pause_seconds: float = 0.1
    longest_pause_seconds: float = 2.0


class Reattaching:
    """Iterate `events` once; `execution_id` and `last_sequence` are known as soon as they have come."""

    def __init__(
        self,
        watch: Callable[[str, int], Any],
        policy: RetryPolicy,
        *,
        execute: Callable[[], Any] | None = None,
        repeatable: bool = False,
        on_admitted: Callable[[str], None] | None = None,
        execution_id: str = "",
        after_sequence: int = 0,
    ) -> None:
        """`execute` and `watch` make RPCs; `repeatable` says that `execute` may be sent again."""
        self._watch = watch
        self._execute = execute
        self._policy = policy
        self._repeatable = repeatable
        self._on_admitted = on_admitted
        self.execution_id = execution_id
        self.last_sequence = after_sequence
        self.completed = False
        self.reattached = 0

    async def events(self) -> AsyncGenerator[Event, None]:
        """Every event once and in order, until `Completed`. Raises SkillcellError."""
        failures, broken_since = 0, 0.0
        while not self.completed:
            seen = self.last_sequence
            try:
                async with aclosing(self._attempt()) as events:
                    async for event in events:
                        yield event
                if self.completed:
                    return
                error: SkillcellError = Unavailable("the stream of events ended before the call did")
            except grpc.aio.AioRpcError as rpc_error:
                error = from_rpc(rpc_error)
                if not self._may_retry(rpc_error, error):
                    raise error from rpc_error
            if self.last_sequence != seen or not failures:
                failures, broken_since = 0, time.monotonic()
            failures += 1
            if self._exhausted(failures, broken_since):
                raise error
            self.reattached += bool(self.execution_id)
            await asyncio.sleep(
                min(self._policy.longest_pause_seconds, self._policy.first_pause_seconds * 2 ** (failures - 1))
            )

    async def _attempt(self) -> AsyncGenerator[Event, None]:
        if self.execution_id:
            call = self._watch(self.execution_id, self.last_sequence)
        else:
            assert self._execute is not None
            call = self._execute()
            for key, value in await call.initial_metadata() or ():
                if key == EXECUTION_ID:
                    self.execution_id = str(value)
                    if self._on_admitted is not None:
                        self._on_admitted(self.execution_id)
        try:
            async for response in call:
                message = response.event
                if message.sequence <= self.last_sequence:
                    continue
                if message.sequence != self.last_sequence + 1:
                    raise DataLoss(f"event {self.last_sequence + 1} of {message.execution_id} is missing")
                self.last_sequence = message.sequence
                with known_values():
                    event = convert.event(message)
                if event is not None:
                    self.completed = isinstance(event.kind, Completed)
                    yield event
        finally:
            call.cancel()

    def _may_retry(self, rpc_error: grpc.aio.AioRpcError, error: SkillcellError) -> bool:
        if error.reason:
            return bool(self.execution_id) and error.reason in _GOING_AWAY
        if self.execution_id:
            return rpc_error.code() in _BROKEN
        return self._repeatable and rpc_error.code() is grpc.StatusCode.UNAVAILABLE

    def _exhausted(self, failures: int, broken_since: float) -> bool:
        if self.execution_id:
            return time.monotonic() - broken_since > self._policy.reattach_seconds
        return failures > self._policy.before_admission
