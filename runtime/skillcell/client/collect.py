"""A stream of events as one result."""

from __future__ import annotations

from collections.abc import AsyncIterator

from skillcell.client.errors import DataLoss
from skillcell.client.types import CallResult, Event
from skillcell.core import events

_STREAMED = (events.Stdout, events.Stderr, events.Output, events.Log)


class Collector:
    """Keeps what comes; `result` is there once the last event was.

    Without `keep_streams` stdout, stderr, outputs and logs are passed over, for whoever shows them as they come.
    """

    def __init__(self, *, keep_streams: bool = True) -> None:
        self._keep_streams = keep_streams
        self._execution_id = ""
        self._stdout = bytearray()
        self._stderr = bytearray()
        self._outputs: list[bytes] = []
        self._logs: list[events.Log] = []
        self._artifacts: list[events.Artifact] = []
        self._refused: list[events.ArtifactRefused] = []
        self._started: events.Started | None = None
        self._completed: events.Completed | None = None

    def add(self, event: Event) -> None:
        self._execution_id = event.execution_id
        if not self._keep_streams and isinstance(event.kind, _STREAMED):
            return
        match event.kind:
            case events.Stdout(data):
                self._stdout += data
            case events.Stderr(data):
                self._stderr += data
            case events.Output(value):
                self._outputs.append(value)
            case events.Log() as log:
                self._logs.append(log)
            case events.Artifact() as artifact:
                self._artifacts.append(artifact)
            case events.ArtifactRefused() as refused:
                self._refused.append(refused)
            case events.Started() as started:
                self._started = started
            case events.Completed() as completed:
                self._completed = completed
            case events.Queued() | events.Progress():
                pass

    def result(self) -> CallResult:
        """Raises DataLoss when the last event never came."""
        if self._completed is None:
            raise DataLoss("the events of the call ended without its outcome")
        return CallResult(
            execution_id=self._execution_id,
            completed=self._completed,
            stdout=bytes(self._stdout),
            stderr=bytes(self._stderr),
            outputs_json=tuple(self._outputs),
            logs=tuple(self._logs),
            artifacts=tuple(self._artifacts),
            refused_artifacts=tuple(self._refused),
            started=self._started,
        )


async def collect(stream: AsyncIterator[Event]) -> CallResult:
    collector = Collector()
    async for event in stream:
        collector.add(event)
    return collector.result()
