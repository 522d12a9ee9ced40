"""Runs one call in one sandbox, and sees to it that it ends.

The agent inside is believed in nothing that matters: time runs on the gateway's clock, CPU and memory come from the
sandbox's counters, every byte is counted here, and the end is brought about by `Sandbox.kill` from outside. What a
reader could get wrong: a slow caller makes `emit` wait, and that must never delay a limit; so the limits are watched
beside the reading, and the first `Stop` wins. And what breaks after the Skill has exited changes no verdict: else a
Skill could do its work, break the collection, and not be billed.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from skillcell.agent import frames
from skillcell.agent.frames import FrameError
from skillcell.core import events
from skillcell.core.clock import Clock
from skillcell.core.completion import to_completion
from skillcell.core.errors import Fault
from skillcell.core.types import SECOND_NS, Counters, Measurement
from skillcell.sandbox.cancel import Canceled
from skillcell.sandbox.claims import agent_disk, json_object, parse_event, small_int, text
from skillcell.sandbox.driver import Sandbox
from skillcell.sandbox.framing import FrameReader
from skillcell.sandbox.job import ArtifactSink, ArtifactWriter, EventSink, Job, RunReport, SinkFull, Stop
from skillcell.sandbox.sending import send_job, send_stdin

_DRAIN_SECONDS = 2.0
"""After a kill, how long the bytes already written are still taken (a reader slower than that loses them)."""
_DELIVER_SECONDS = 60.0
_DELIVER_BYTES_PER_SECOND = 16 << 20
"""Below this pace a large delivery is given up; a loaded machine makes ten times as much."""
_COLLECT_SECONDS = 60.0
_CPU_POLL_SECONDS = (0.002, 0.5)
_YIELD_AFTER_FRAMES = 32
_REFUSALS = 1000
"""Refused artifacts that are passed on; an agent of ours names 200 and counts the rest."""


@dataclass(frozen=True, slots=True)
class Outlets:
    """Where a run's events and artifacts go."""

    events: EventSink
    artifacts: ArtifactSink


async def await_hello(reader: FrameReader, within_seconds: float) -> dict[str, Any]:
    """The agent's first word. Raises FrameError when it does not come, or speaks another protocol."""
    try:
        async with asyncio.timeout(within_seconds):
            frame = await reader.next()
    except TimeoutError as error:
        raise FrameError(f"the agent said nothing within {within_seconds:g} s") from error
    if frame is None or frame[0] != frames.HELLO:
        raise FrameError("the agent ended before it said hello")
    hello = json_object(frame[1])
    if hello.get("protocol") not in (frames.PROTOCOL, frames.PROTOCOL - 1):
        raise FrameError(f"the agent speaks protocol {hello.get('protocol')!r}, not {frames.PROTOCOL}")
    return hello


class Run:
    """One call in one sandbox whose agent has said hello. Use once: `report = await Run(...).execute()`."""

    def __init__(
        self,
        sandbox: Sandbox,
        reader: FrameReader,
        job: Job,
        *,
        outlets: Outlets,
        canceled: Canceled,
        clock: Clock,
        started_event: events.Started,
    ) -> None:
        self._sandbox = sandbox
        self._reader = reader
        self._job = job
        self._outlets = outlets
        self._canceled = canceled
        self._clock = clock
        self._started_event = started_event
        self._report = RunReport()
        self._artifact_count = 0
        self._refusals = 0
        self._stopping = asyncio.Event()
        self._began = asyncio.Event()
        self._exited = asyncio.Event()
        self._run_ended_ns = 0
        self._artifact: ArtifactWriter | None = None
        self._stdin_task: asyncio.Task[None] | None = None

    @property
    def report(self) -> RunReport:
        """What was seen so far; `execute` returns the same object."""
        return self._report

    async def execute(self) -> RunReport:
        """Runs to the end, whatever that is; an engine or store that fails is in the report, not raised. The sandbox's
        processes are dead when this returns, also when it is canceled (unless the engine can't be reached any more).
        """
        report = self._report
        try:
            report.before = report.latest = await self._sandbox.begin()
            await self._converse()
        except Fault as fault:
            self._lose(str(fault))
        finally:
            await to_completion(self._finish())
        return report

    async def _converse(self) -> None:
        """Reads until DONE, the end of the channel, or some time after a stop."""
        talk = asyncio.create_task(self._talk(), name="run-talk")
        watches: list[asyncio.Task[Any]] = [
            asyncio.create_task(self._watch_cancel(), name="run-cancel"),
            asyncio.create_task(self._watch_wall(), name="run-wall"),
            asyncio.create_task(self._watch_cpu(), name="run-cpu"),
        ]
        try:
            stopping = asyncio.create_task(self._stopping.wait())
            watches.append(stopping)
            await asyncio.wait({talk, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not talk.done():
                await self._sandbox.kill()
                self._mark_exit()
                await asyncio.wait({talk}, timeout=_DRAIN_SECONDS)
        finally:
            for task in (talk, *watches):
                task.cancel()
            results = await asyncio.gather(talk, *watches, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _talk(self) -> None:
        try:
            await self._deliver()
            handled = 0
            while not await self._next_frame():
                handled += 1
                if handled % _YIELD_AFTER_FRAMES == 0:
                    await asyncio.sleep(0)  # one read may bring thousands of small frames
        except (FrameError, ConnectionError) as error:
            self._lose(f"the sandbox's channel broke: {error}")

    async def _deliver(self) -> None:
        began = self._clock.monotonic_ns()
        channel = self._sandbox.channel
        await send_job(channel, self._job)
        await channel.write(frames.encode(frames.RUN))
        frame_or_end = await self._reader.next()
        self._report.deliver_ns = self._clock.monotonic_ns() - began
        if frame_or_end is None:
            self._lose("the sandbox ended before the Skill started")
            return
        kind, payload = frame_or_end
        if kind == frames.FAILED:
            said = json_object(payload)
            self._report.failed = text(said.get("message", ""))[:4096] or "the agent refused the job"
            self._report.agent_disk = agent_disk(said.get("disk"))
            self._report.disk = await self._sandbox.disk()
            return
        if kind != frames.STARTED:
            raise FrameError(f"frame type {kind} came where STARTED was due")
        self._report.began_ns = self._clock.monotonic_ns()
        self._report.started = True
        self._began.set()
        times = replace(self._started_event.times, deliver_ns=self._report.deliver_ns)
        await self._emit(replace(self._started_event, times=times))
        self._send_stdin()

    def _send_stdin(self) -> None:
        """Stdin goes beside the reading: a Skill that writes before it reads must not deadlock with us."""
        if self._job.has_stdin:
            self._stdin_task = asyncio.create_task(self._pump_stdin(), name="run-stdin")

    async def _pump_stdin(self) -> None:
        try:
            await send_stdin(self._sandbox.channel, self._job)
        except ConnectionError:
            pass  # it has ended, or the reading will say why not
        except Fault as fault:  # else the Skill would wait for the rest until its time is up, and pay for that
            if not self._exited.is_set():
                self._lose(str(fault))
                self._stopping.set()

    async def _next_frame(self) -> bool:
        """Handles one frame; True when there is no more to come."""
        if not self._report.started or self._report.lost:
            return True
        frame = await self._reader.next()
        if frame is None:
            self._lose("the sandbox ended before it said all")
            return True
        kind, payload = frame
        if kind == frames.DONE:
            return True
        await self._handle(kind, payload)
        return self._report.stop is not None and self._report.stop.limit == "output_bytes"

    async def _handle(self, kind: int, payload: bytes) -> None:
        if self._report.exited:
            await self._handle_collected(kind, payload)
        elif kind in (frames.STDOUT, frames.STDERR, frames.EVENT):
            await self._handle_output(kind, payload)
        elif kind == frames.EXITED:
            await self._handle_exit(json_object(payload))
        else:
            raise FrameError(f"frame type {kind} came while the Skill ran")

    async def _handle_output(self, kind: int, payload: bytes) -> None:
        limit = self._job.limits.output_bytes
        room = limit - self._report.output_bytes
        self._report.output_bytes += len(payload)
        if len(payload) > room:
            self._stop(Stop("output_bytes", self._report.output_bytes))  # before `emit`, which may have to wait
            if kind == frames.STDOUT and room > 0:
                await self._emit(events.Stdout(payload[:room]))
            elif kind == frames.STDERR and room > 0:
                await self._emit(events.Stderr(payload[:room]))
        elif not payload:
            pass  # costs the Skill nothing, so it must cost nobody an event
        elif kind == frames.STDOUT:
            await self._emit(events.Stdout(payload))
        elif kind == frames.STDERR:
            await self._emit(events.Stderr(payload))
        else:
            await self._emit(parse_event(payload))

    async def _handle_exit(self, said: dict[str, Any]) -> None:
        self._mark_exit()
        self._report.exited = True
        self._report.exit_code = small_int(said.get("code"))
        self._report.signal = small_int(said.get("signal"))
        if self._report.exit_code is None and self._report.signal is None:
            raise FrameError("EXITED named neither a code nor a signal")
        self._report.agent_disk = agent_disk(said.get("disk"))
        if self._report.stop is None:  # else everything is dead, and the verdict given
            self._report.disk = await self._sandbox.disk()

    async def _handle_collected(self, kind: int, payload: bytes) -> None:
        limits = self._job.limits
        if kind == frames.RESULT:
            self._report.result_json = payload
        elif kind == frames.ARTIFACT and self._artifact is None:
            await self._open_artifact(json_object(payload))
        elif kind == frames.DATA:
            self._report.artifact_bytes += len(payload)
            if self._report.artifact_bytes > limits.artifact_bytes:
                raise FrameError("artifacts went past their limit")
            if self._artifact is not None:
                await self._artifact.write(payload)
        elif kind == frames.ARTIFACT_END:
            if self._artifact is not None:
                artifact = await self._artifact.finish()
                self._artifact = None
                await self._emit(artifact)
        elif kind == frames.ARTIFACT_REFUSED:
            self._refusals += 1
            if self._refusals > _REFUSALS:
                raise FrameError(f"more than {_REFUSALS} artifacts were refused")
            said = json_object(payload)
            await self._emit(events.ArtifactRefused(text(said.get("name"))[:1024], text(said.get("reason"))[:1024]))
        else:
            raise FrameError(f"frame type {kind} came while artifacts were collected")

    async def _open_artifact(self, said: dict[str, Any]) -> None:
        name = text(said.get("name"))
        self._artifact_count += 1
        if self._artifact_count > self._job.limits.artifact_count:
            raise FrameError("artifacts went past their number")
        try:
            self._artifact = await self._outlets.artifacts.open(name)
        except ValueError as error:
            await self._emit(events.ArtifactRefused(name[:1024], str(error)))

    async def _emit(self, event: events.Event) -> None:
        began = self._clock.monotonic_ns()
        try:
            await self._outlets.events.emit(event)
        except SinkFull as full:
            self._stop(Stop("output_bytes", self._report.output_bytes, bound=full.bound))
            self._break_off(str(full))
        finally:  # also when the wait was cut off by the end of the run, of which it was a part
            ended = self._run_ended_ns or self._clock.monotonic_ns()
            self._report.stalled_ns += max(0, ended - began)

    def _mark_exit(self) -> None:
        if self._report.began_ns and not self._run_ended_ns:
            self._run_ended_ns = max(self._report.began_ns + 1, self._clock.monotonic_ns())
            self._report.run_ns = self._run_ended_ns - self._report.began_ns
        self._exited.set()

    def _stop(self, stop: Stop) -> None:
        if self._report.stop is None and not self._exited.is_set():
            self._report.stop = stop
            self._stopping.set()

    def _lose(self, why: str) -> None:
        if self._report.exited:
            self._report.cut_short = self._report.cut_short or why
        elif self._report.stop is None and not self._report.lost:
            self._report.lost = why

    def _break_off(self, why: str) -> None:
        """Ends the collecting of a run whose Skill has exited; no effect before."""
        if self._exited.is_set():
            self._lose(why)
            self._stopping.set()

    async def _watch_cancel(self) -> None:
        reason = await self._canceled.wait()
        self._stop(Stop(cancel=reason, detail=self._canceled.detail))
        self._break_off(f"canceled while artifacts were collected: {reason.value.lower()}")

    async def _watch_wall(self) -> None:
        patience = _DELIVER_SECONDS + self._job.delivered_bytes / _DELIVER_BYTES_PER_SECOND
        try:  # not `wait_for`: that of Python 3.11 swallows a cancel which comes with the event
            async with asyncio.timeout(patience):
                await self._began.wait()
        except TimeoutError:
            self._lose(f"the sandbox did not take its input within {patience:g} s")
            self._stopping.set()
            return
        limit_ns = self._job.limits.wall_ns
        try:
            async with asyncio.timeout(limit_ns / SECOND_NS):
                await self._exited.wait()
        except TimeoutError:
            self._stop(Stop("wall_ns", max(limit_ns, self._clock.monotonic_ns() - self._report.began_ns)))
            return
        await asyncio.sleep(_COLLECT_SECONDS)
        self._break_off(f"collecting artifacts took over {_COLLECT_SECONDS:g} s")

    async def _watch_cpu(self) -> None:
        """Polls as often as the limit could be near: all cores granted, from what is left."""
        limits = self._job.limits
        while not self._exited.is_set():
            try:
                asked_ns = self._clock.monotonic_ns()
                self._report.latest = await self._sandbox.counters()
                self._report.latest_ns = asked_ns
                used = cpu_since(self._report.before, self._report.latest)
            except Fault as fault:
                self._lose(f"the engine was lost: {fault}")
                self._stopping.set()
                return
            left_ns = limits.cpu_ns - used
            if left_ns <= 0:
                self._stop(Stop("cpu_ns", used))
                return
            soonest = left_ns / SECOND_NS / (limits.milli_cpus / 1000)
            await asyncio.sleep(min(max(soonest, _CPU_POLL_SECONDS[0]), _CPU_POLL_SECONDS[1]))

    async def _finish(self) -> None:
        """Everything dead, every figure read, nothing half-kept."""
        try:
            await self._sandbox.kill()
            self._mark_exit()
            self._report.after = await self._sandbox.counters()
        except Fault as fault:
            self._mark_exit()
            self._report.after = replace(self._report.latest, measurement=Measurement.LOWER_BOUND)
            self._lose(f"the engine was lost: {fault}")
        if self._stdin_task is not None:
            self._stdin_task.cancel()
            await asyncio.gather(self._stdin_task, return_exceptions=True)
        if self._artifact is not None:
            await self._artifact.discard()
        if self._report.exited:
            self._report.collect_ns = max(0, self._clock.monotonic_ns() - self._run_ended_ns)
        if self._report.cut_short:
            with suppress(TimeoutError, Fault):  # a reader that stalls for ever must not keep the call from its end
                async with asyncio.timeout(_DRAIN_SECONDS):
                    await self._emit(events.ArtifactRefused("", self._report.cut_short))


def cpu_since(before: Counters, after: Counters) -> int:
    """CPU time between two readings of one sandbox, nanoseconds."""
    return max(0, after.cpu_total_ns - before.cpu_total_ns)
