"""One call in one sandbox, whatever the sandbox does."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from scripted_sandbox import LIMITS, STARTED, Script, ScriptedAgent, ScriptedSandbox, job
from skillcell.agent import frames
from skillcell.agent.frames import FrameError
from skillcell.core import events
from skillcell.core.clock import SystemClock
from skillcell.core.content import StoredContent
from skillcell.core.errors import unavailable
from skillcell.core.types import CancelReason, Counters, FaultParty, Limits, Measurement, Outcome
from skillcell.sandbox import supervisor
from skillcell.sandbox.cancel import Canceled
from skillcell.sandbox.driver import DiskUsage
from skillcell.sandbox.framing import FrameReader
from skillcell.sandbox.job import Delivery, Job, RunReport, SinkFull
from skillcell.sandbox.supervisor import Outlets, Run, await_hello
from skillcell.sandbox.verdict import Rules, Verdict, judge
from skillcell.storage.artifacts import ArtifactStore

MILLISECOND_NS = 1_000_000


@dataclass
class Sink:
    """Keeps events; `before` may wait or raise, as a slow or absent reader makes the spool do."""

    taken: list[events.Event] = field(default_factory=list)
    before: Callable[[events.Event], Awaitable[None]] | None = None

    async def emit(self, event: events.Event) -> None:
        if self.before is not None:
            await self.before(event)
        self.taken.append(event)

    def of(self, kind: type) -> list[events.Event]:
        return [event for event in self.taken if isinstance(event, kind)]

    @property
    def stdout(self) -> bytes:
        return b"".join(event.data for event in self.taken if isinstance(event, events.Stdout))


@dataclass
class Setting:
    """A run that is ready to go, and what can be seen of it afterwards."""

    run: Run
    sandbox: ScriptedSandbox
    sink: Sink
    canceled: Canceled
    store: ArtifactStore
    limits: Limits

    async def execute(self) -> tuple[RunReport, Verdict]:
        report = await asyncio.wait_for(self.run.execute(), 10)
        return report, judge(report, Rules(self.limits))


@pytest.fixture
def short_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_DRAIN_SECONDS", 0.1)


@pytest.fixture
def stage(tmp_path: Path) -> Callable[..., object]:
    @asynccontextmanager
    async def setting(
        script: Script, *, work: Job | None = None, sink: Sink | None = None, **sandbox: object
    ) -> AsyncIterator[Setting]:
        work = work or job()
        before = asyncio.all_tasks()
        parts = ScriptedSandbox(script, **sandbox)  # type: ignore[arg-type]
        sink, canceled, store = sink or Sink(), Canceled(), ArtifactStore(tmp_path / "artifacts")
        run = Run(
            parts,
            FrameReader(parts.channel),
            work,
            outlets=Outlets(sink, store.sink("exe_1")),
            canceled=canceled,
            clock=SystemClock(),
            started_event=STARTED,
        )
        try:
            yield Setting(run, parts, sink, canceled, store, work.limits)
            assert parts.kills, "the sandbox was not killed"
            assert parts.counted_after_kill, "the counters were not read after the kill"
        finally:
            await parts.gone()
        assert asyncio.all_tasks() == before, "tasks are left over"

    return setting


async def test_a_run_passes_on_everything_in_order(stage) -> None:
    async def script(agent: ScriptedAgent) -> None:
        taken = await agent.start()
        assert [kind for kind, _ in taken] == [frames.JOB, frames.FILE, frames.DATA, frames.RUN]
        await agent.send(frames.STDOUT, b"one")
        await agent.send(frames.STDERR, b"two")
        await agent.send(frames.EVENT, {"type": "progress", "fraction": 0.5, "message": "half"})
        await agent.send(frames.EVENT, {"type": "output", "value": {"n": 1}})
        await agent.exit(0)
        await agent.send(frames.RESULT, b'{"r": 2}')
        await agent.artifact("out/a.txt", b"artifact")
        await agent.send(frames.ARTIFACT_REFUSED, {"name": "link", "reason": "is a link"})
        await agent.send(frames.DONE)

    used = iter((1000, 1000, 1500))
    work = job(files=(Delivery("workspace", "in.txt", b"input"),))
    async with stage(script, work=work, count=lambda: Counters(cpu_total_ns=next(used, 1500))) as it:
        report, verdict = await it.execute()
        started, *rest = it.sink.taken
        assert isinstance(started, events.Started)
        assert started.times.deliver_ns == report.deliver_ns > 0
        assert rest[:4] == [
            events.Stdout(b"one"),
            events.Stderr(b"two"),
            events.Progress(0.5, "half"),
            events.Output(b'{"n":1}'),
        ]
        artifact, refused = rest[4:]
        assert isinstance(artifact, events.Artifact)
        assert (artifact.name, artifact.size_bytes) == ("out/a.txt", 8)
        assert refused == events.ArtifactRefused("link", "is a link")
        assert report.result_json == b'{"r": 2}'
        assert verdict == Verdict(Outcome.SUCCEEDED, FaultParty.NONE)
        assert report.after.cpu_total_ns - report.before.cpu_total_ns == 500
        assert report.run_ns > 0
        assert report.output_bytes > len(b"onetwo")
        _, chunks = await it.store.read("exe_1", "out/a.txt")
        assert b"".join([chunk async for chunk in chunks]) == b"artifact"


@pytest.mark.parametrize(
    ("defect", "says"),
    [
        (lambda agent: agent.stall(), "said nothing within"),
        (lambda agent: agent.raw(b""), "ended before it said hello"),
        (lambda agent: agent.raw(b"\x40\x00"), "ended amid a frame"),
        (lambda agent: agent.send(frames.STDOUT, b"hello"), "ended before it said hello"),
        (lambda agent: agent.send(frames.HELLO, {"protocol": 99}), "speaks protocol 99"),
        (lambda agent: agent.send(frames.HELLO, {}), "speaks protocol None"),
        (lambda agent: agent.send(frames.HELLO, b"hi"), "not JSON"),
        (lambda agent: agent.send(frames.HELLO, b"[" * 60_000), "nested"),
        (lambda agent: agent.raw(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "announces"),
    ],
)
async def test_an_agent_that_says_no_hello_is_not_waited_for(defect, says: str) -> None:
    sandbox = ScriptedSandbox(defect)
    with pytest.raises(FrameError, match=says):
        await await_hello(FrameReader(sandbox.channel), 0.05)
    await sandbox.gone()


async def test_an_agent_of_this_protocol_is_greeted() -> None:
    sandbox = ScriptedSandbox(lambda agent: agent.send(frames.HELLO, {"protocol": frames.PROTOCOL}))
    assert await await_hello(FrameReader(sandbox.channel), 5) == {"protocol": frames.PROTOCOL}
    await sandbox.gone()


@pytest.mark.parametrize(
    "defect",
    [
        lambda agent: agent.raw(b"\x42\x00\x00\x00\x09half"),
        lambda agent: agent.raw(b"\x42\x00"),
        lambda agent: agent.raw(b""),
        lambda agent: agent.send(frames.EVENT, bytes(9 << 20)),
        lambda agent: agent.send(frames.STDOUT, bytes(frames.CHUNK_BYTES + 1)),
        lambda agent: agent.raw(frames.HEADER.pack(frames.STDOUT, 0xFFFFFFFF)),
        lambda agent: agent.send(200, b"?"),
        lambda agent: agent.send(frames.STARTED),
        lambda agent: agent.send(frames.HELLO, {"protocol": 1}),
        lambda agent: agent.send(frames.DATA, b"no artifact yet"),
        lambda agent: agent.send(frames.EXITED, b"garbage"),
    ],
)
async def test_a_sandbox_that_breaks_the_protocol_before_the_exit_is_lost(stage, defect) -> None:
    async def script(agent: ScriptedAgent) -> None:
        await agent.start()
        await defect(agent)

    async with stage(script) as it:
        report, verdict = await it.execute()
        assert report.lost
        assert (verdict.outcome, verdict.fault, verdict.retryable) == (
            Outcome.PLATFORM_ERROR,
            FaultParty.PLATFORM,
            True,
        )


@pytest.mark.parametrize("defect", [lambda agent: agent.raw(b""), lambda agent: agent.send(frames.STDOUT, b"early")])
async def test_a_sandbox_that_goes_before_the_start_never_ran(stage, defect) -> None:
    async def script(agent: ScriptedAgent) -> None:
        await agent.take_job()
        await defect(agent)

    async with stage(script) as it:
        report, verdict = await it.execute()
        assert (verdict.outcome, report.run_ns, it.sink.taken) == (Outcome.NEVER_RAN, 0, [])


async def test_a_job_that_the_agent_refuses_never_ran(stage) -> None:
    async def script(agent: ScriptedAgent) -> None:
        await agent.take_job()
        await agent.send(frames.FAILED, {"message": "no such program"})

    async with stage(script) as it:
        _, verdict = await it.execute()
        assert (verdict.outcome, verdict.message) == (Outcome.NEVER_RAN, "no such program")


@pytest.mark.parametrize("seen_by", ["gateway", "agent"])
async def test_input_that_fills_the_disk_is_the_callers_fault(stage, seen_by: str) -> None:
    full = {"bytes_used": 1 << 20, "bytes_limit": 1 << 20, "files_used": 1, "files_limit": 9}

    async def script(agent: ScriptedAgent) -> None:
        await agent.take_job()
        said = {"/workspace": full} if seen_by == "agent" else {}
        await agent.send(frames.FAILED, {"message": "no space left", "disk": said})

    async with stage(script, writable=lambda: DiskUsage(**full) if seen_by == "gateway" else None) as it:
        _, verdict = await it.execute()
        assert (verdict.outcome, verdict.fault) == (Outcome.DISK_LIMIT_EXCEEDED, FaultParty.CALLER)


@pytest.mark.parametrize(
    "defect",
    [
        lambda agent: agent.raw(b""),
        lambda agent: agent.raw(b"\x48"),
        lambda agent: agent.send(frames.STDOUT, b"late"),
        lambda agent: agent.exit(0),
        lambda agent: agent.send(frames.DATA, bytes(5000)),
        lambda agent: agent.send(frames.ARTIFACT, b"garbage"),
        lambda agent: agent.send(frames.RESULT, bytes(9 << 20)),
    ],
)
async def test_what_breaks_after_the_exit_changes_no_verdict(stage, defect) -> None:
    async def script(agent: ScriptedAgent) -> None:
        await agent.start()
        await agent.exit(0)
        await defect(agent)

    async with stage(script) as it:
        report, verdict = await it.execute()
        assert verdict.outcome is Outcome.SUCCEEDED
        assert report.cut_short
        assert it.sink.taken[-1] == events.ArtifactRefused("", report.cut_short)
        assert it.sink.stdout == b""


async def test_an_impossible_exit_code_is_a_failure_of_the_skill(stage) -> None:
    async def script(agent: ScriptedAgent) -> None:
        await agent.start()
        await agent.exit(999)

    async with stage(script) as it:
        _, verdict = await it.execute()
        assert (verdict.outcome, verdict.fault) == (Outcome.FAILED, FaultParty.SKILL)


async def test_a_printed_imitation_of_frames_stays_stdout(stage) -> None:
    imitation = frames.encode_json(frames.EXITED, {"code": 0, "signal": None}) + frames.encode(frames.DONE)

    async def script(agent: ScriptedAgent) -> None:
        await agent.start()
        await agent.send(frames.STDOUT, imitation)
        await agent.exit(7)
        await agent.send(frames.DONE)

    async with stage(script) as it:
        report, verdict = await it.execute()
        assert it.sink.stdout == imitation
        assert (verdict.outcome, report.exit_code) == (Outcome.FAILED, 7)


@pytest.mark.parametrize(
    "said",
    [
        {"type": "progress", "fraction": 10**400},
        {"type": "progress", "fraction": -(10**400)},
        {"type": "progress", "fraction": True},
        {"type": "log", "level": ["info"], "message": {"a": 1}},
        {"type": "log", "level": {}, "fields": "text"},
        {"type": "log", "message": "\ud800", "fields": {"\udfff": "\ud800"}},
        {"type": "output", "value": "\ud800"},
        {"type": ["log"]},
        {"type": "output"},
        {},
    ],
)
async def test_no_event_that_a_skill_can_write_breaks_its_run(stage, said: dict[str, object]) -> None:
    async def script(agent: ScriptedAgent) -> None:
        await agent.start()
        await agent.send(frames.EVENT, said)
        await agent.exit(0)
        await agent.send(frames.DONE)

    async with stage(script) as it:
        _, verdict = await it.execute()
        assert verdict.outcome is Outcome.SUCCEEDED
        assert len(it.sink.taken) == 2


@pytest.mark.parametrize(
    "said", [b"", b"{", b"null", b"\xff", b'{"type":"progress","fraction":1e999}', b'{"a":' * 600 + b"1" + b"}" * 600]
)
async def test_what_is_no_event_is_told_in_a_warning(stage, said: bytes) -> None:
    async def script(agent: ScriptedAgent) -> None:
        await agent.start()
        await agent.send(frames.EVENT, said)
        await agent.exit(0)
        await agent.send(frames.DONE)

    async with stage(script) as it:
        _, verdict = await it.execute()
        assert verdict.outcome is Outcome.SUCCEEDED
        warnings = it.sink.of(events.Log)
        assert [w.level for w in warnings] == (["warning"] if said else [])  # type: ignore[attr-defined]


async def test_output_past_its_limit_ends_the_call_with_exactly_the_limit_delivered(stage) -> None:
    async def script(agent: ScriptedAgent) -> None:
        await agent.start()
        while True:
            await agent.send(frames.STDOUT, b"x" * 1000)

    async with stage(script) as it:
        _, verdict = await it.execute()
        assert verdict.outcome is Outcome.OUTPUT_LIMIT_EXCEEDED
        assert verdict.evidence is not None
        assert verdict.evidence.limit_value == LIMITS.output_bytes < verdict.evidence.observed
        assert len(it.sink.stdout) == LIMITS.output_bytes


async def test_output_just_at_its_limit_is_fine(stage) -> None:
    async def script(agent: ScriptedAgent) -> None:
        await agent.start()
        await agent.send(frames.STDOUT, b"x" * LIMITS.output_bytes)
        await agent.exit(0)
        await agent.send(frames.DONE)

    async with stage(script) as it:
        report, verdict = await it.execute()
        assert (verdict.outcome, report.output_bytes) == (Outcome.SUCCEEDED, LIMITS.output_bytes)


async def test_empty_frames_make_no_events(stage) -> None:
    async def script(agent: ScriptedAgent) -> None:
        await agent.start()
        await agent.raw((frames.encode(frames.STDOUT) + frames.encode(frames.EVENT)) * 1000)
        await agent.exit(0)
        await agent.send(frames.DONE)

    async with stage(script) as it:
        await it.execute()
        assert len(it.sink.taken) == 1


async def test_a_flood_of_small_frames_leaves_other_calls_their_turns(stage) -> None:
    count = 20_000
    limits = replace(LIMITS, output_bytes=1 << 20)

    async def script(agent: ScriptedAgent) -> None:
        await agent.start()
        await agent.raw(frames.encode(frames.STDERR, b"!") * count)
        await agent.exit(0)
        await agent.send(frames.DONE)

    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with stage(script, work=job(limits)) as it:
        task = asyncio.create_task(other())
        await it.execute()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert len(it.sink.of(events.Stderr)) == count
        assert turns > count / 100


async def test_a_skill_that_hangs_is_timed_out(stage) -> None:
    async def script(agent: ScriptedAgent) -> None:
        await agent.start()
        await agent.stall()

    limits = replace(LIMITS, wall_ns=30 * MILLISECOND_NS)
    async with stage(script, work=job(limits)) as it:
        report, verdict = await it.execute()
        assert verdict.outcome is Outcome.TIMED_OUT
        assert verdict.evidence is not None
        assert verdict.evidence.observed >= limits.wall_ns
        assert limits.wall_ns <= report.run_ns < 2_000 * MILLISECOND_NS


async def test_a_sandbox_that_takes_no_input_is_given_up(stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_DELIVER_SECONDS", 0.05)
    work = job(files=(Delivery("workspace", "big", bytes(8 << 20)),))
    async with stage(lambda agent: agent.stall(), work=work) as it:
        _, verdict = await it.execute()
        assert verdict.outcome is Outcome.NEVER_RAN
        assert "did not take its input" in verdict.message


async def test_standard_input_that_cannot_be_read_is_our_failure_and_not_the_skills_time(stage, tmp_path: Path) -> None:
    (tmp_path / "held").write_bytes(b"half")

    async def script(agent: ScriptedAgent) -> None:
        await agent.start()
        await agent.stall()

    work = job(stdin=StoredContent(tmp_path / "held", 8))
    async with stage(script, work=work) as it:
        report, verdict = await it.execute()
        assert (verdict.outcome, verdict.fault) == (Outcome.PLATFORM_ERROR, FaultParty.PLATFORM)
        assert "ended 4 bytes early" in report.lost


async def test_an_agent_that_never_finishes_collecting_keeps_the_exits_verdict(
    stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_COLLECT_SECONDS", 0.03)

    async def script(agent: ScriptedAgent) -> None:
        await agent.start()
        await agent.exit(3)
        await agent.send(frames.ARTIFACT, {"name": "half", "size": 10})
        await agent.send(frames.DATA, b"12345")
        await agent.stall()

    async with stage(script) as it:
        report, verdict = await it.execute()
        assert (verdict.outcome, report.exit_code) == (Outcome.FAILED, 3)
        assert "collecting" in report.cut_short
        assert await it.store.list("exe_1") == ()
        assert report.run_ns < report.collect_ns


async def test_bytes_written_before_the_kill_still_arrive(stage) -> None:
    ready = asyncio.Event()

    async def script(agent: ScriptedAgent) -> None:
        await agent.start()
        for number in range(10):
            await agent.send(frames.STDOUT, b"%d" % number)
        ready.set()
        await agent.stall()

    async def wait_for_kill(event: events.Event) -> None:
        if isinstance(event, events.Stdout) and event.data == b"0":
            await ready.wait()
            it.canceled.cancel(CancelReason.CLIENT)
            while not it.sandbox.kills:
                await asyncio.sleep(0)

    async with stage(script, sink=Sink(before=wait_for_kill)) as it:
        _, verdict = await it.execute()
        assert verdict.outcome is Outcome.CANCELED
        assert it.sink.stdout == b"0123456789"


@pytest.mark.usefixtures("short_drain")
async def test_a_reader_that_stalls_for_ever_delays_no_limit_and_is_charged_for_the_time(stage) -> None:
    async def script(agent: ScriptedAgent) -> None:
        await agent.start()
        await agent.send(frames.STDOUT, b"never read")
        await agent.stall()

    async def never(event: events.Event) -> None:
        if isinstance(event, events.Stdout):
            await asyncio.Event().wait()

    limits = replace(LIMITS, wall_ns=60 * MILLISECOND_NS)
    async with stage(script, work=job(limits), sink=Sink(before=never)) as it:
        report, verdict = await it.execute()
        assert verdict.outcome is Outcome.TIMED_OUT
        assert report.run_ns * 0.5 < report.stalled_ns <= report.run_ns


@pytest.mark.usefixtures("short_drain")
async def test_a_stalled_reader_does_not_delay_the_end_of_a_flood(stage) -> None:
    async def script(agent: ScriptedAgent) -> None:
        await agent.start()
        await agent.send(frames.STDOUT, bytes(LIMITS.output_bytes + 1))
        await agent.stall()

    async def never(event: events.Event) -> None:
        if isinstance(event, events.Stdout):
            await asyncio.Event().wait()

    async with stage(script, sink=Sink(before=never)) as it:
        report, verdict = await it.execute()
        assert verdict.outcome is Outcome.OUTPUT_LIMIT_EXCEEDED
        assert report.run_ns < LIMITS.wall_ns / 10


@pytest.mark.usefixtures("short_drain")
async def test_a_reader_that_stalls_after_the_exit_does_not_keep_the_call_from_its_end(
    stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_COLLECT_SECONDS", 0.03)

    async def script(agent: ScriptedAgent) -> None:
        await agent.start()
        await agent.exit(0)
        await agent.artifact("a", b"a")
        await agent.send(frames.DONE)

    async def never(event: events.Event) -> None:
        if isinstance(event, events.Artifact | events.ArtifactRefused):
            await asyncio.Event().wait()

    async with stage(script, sink=Sink(before=never)) as it:
        report, verdict = await it.execute()
        assert verdict.outcome is Outcome.SUCCEEDED
        assert report.stalled_ns <= report.run_ns


async def test_cpu_time_past_its_limit_ends_the_call(stage) -> None:
    async def script(agent: ScriptedAgent) -> None:
        await agent.start()
        await agent.stall()

    limits = replace(LIMITS, cpu_ns=100 * MILLISECOND_NS)
    began = time.monotonic_ns()

    def busy() -> Counters:
        return Counters(cpu_total_ns=7_000 * MILLISECOND_NS + 20 * (time.monotonic_ns() - began))

    async with stage(script, work=job(replace(limits, milli_cpus=20_000)), count=busy) as it:
        it.limits = replace(limits, milli_cpus=20_000)
        _, verdict = await it.execute()
        assert verdict.outcome is Outcome.CPU_LIMIT_EXCEEDED
        assert verdict.evidence is not None
        assert limits.cpu_ns <= verdict.evidence.observed < 20 * limits.cpu_ns


async def test_a_full_log_that_nobody_reads_ends_the_call_and_names_the_room(stage) -> None:
    async def script(agent: ScriptedAgent) -> None:
        await agent.start()
        while True:
            await agent.send(frames.STDOUT, b"x")

    async def full(event: events.Event) -> None:
        if isinstance(event, events.Stdout):
            raise SinkFull(1234)

    async with stage(script, sink=Sink(before=full)) as it:
        _, verdict = await it.execute()
        assert verdict.outcome is Outcome.OUTPUT_LIMIT_EXCEEDED
        assert verdict.evidence is not None
        assert verdict.evidence.limit_value == 1234


async def test_a_log_that_is_full_after_the_exit_cuts_the_collecting_short(stage) -> None:
    async def script(agent: ScriptedAgent) -> None:
        await agent.start()
        await agent.exit(0)
        await agent.artifact("a", b"a")
        await agent.stall()

    async def full(event: events.Event) -> None:
        if isinstance(event, events.Artifact | events.ArtifactRefused):
            raise SinkFull(1234)

    async with stage(script, sink=Sink(before=full)) as it:
        report, verdict = await it.execute()
        assert verdict.outcome is Outcome.SUCCEEDED
        assert "1234" in report.cut_short


async def test_a_store_that_fails_loses_the_call_but_not_its_report(stage) -> None:
    async def script(agent: ScriptedAgent) -> None:
        await agent.start()
        await agent.send(frames.STDOUT, b"x")
        await agent.stall()

    async def broken(event: events.Event) -> None:
        if isinstance(event, events.Stdout):
            raise unavailable("STORAGE_UNAVAILABLE", "no space left")

    async with stage(script, sink=Sink(before=broken)) as it:
        report, verdict = await it.execute()
        assert (verdict.outcome, verdict.message) == (Outcome.PLATFORM_ERROR, "no space left")
        assert report.run_ns > 0


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../b", "", "a\\b", "a\nb", "x" * 2000])
async def test_an_artifact_with_an_odd_name_is_refused_and_the_next_one_kept(stage, name: str, tmp_path: Path) -> None:
    async def script(agent: ScriptedAgent) -> None:
        await agent.start()
        await agent.exit(0)
        await agent.artifact(name, b"evil")
        await agent.artifact("good", b"good")
        await agent.artifact("good", b"twice")
        await agent.send(frames.DONE)

    async with stage(script) as it:
        report, verdict = await it.execute()
        assert verdict.outcome is Outcome.SUCCEEDED
        assert not report.cut_short
        assert [a.name for a in await it.store.list("exe_1")] == ["good"]
        assert [event.name for event in it.sink.of(events.ArtifactRefused)] == [name[:1024], "good"]  # type: ignore[attr-defined]
        kept = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert len(kept) == 2
        assert all(path.parent.name == "exe_1" for path in kept)


@pytest.mark.parametrize(
    "sizes", [[LIMITS.artifact_bytes + 1], [LIMITS.artifact_bytes, 1], [1] * (LIMITS.artifact_count + 1)]
)
async def test_artifacts_past_their_limits_are_cut_off_and_leave_nothing_half(
    stage, sizes: list[int], tmp_path: Path
) -> None:
    async def script(agent: ScriptedAgent) -> None:
        await agent.start()
        await agent.exit(0)
        for number, size in enumerate(sizes):
            await agent.artifact(f"a{number}", bytes(size))
        await agent.send(frames.DONE)

    async with stage(script) as it:
        report, verdict = await it.execute()
        assert verdict.outcome is Outcome.SUCCEEDED
        assert "past their" in report.cut_short
        assert len(await it.store.list("exe_1")) == len(sizes) - 1
        assert len(list(tmp_path.rglob("*.data"))) == len(sizes) - 1


async def test_a_flood_of_refusals_is_cut_off(stage) -> None:
    async def script(agent: ScriptedAgent) -> None:
        await agent.start()
        await agent.exit(0)
        while True:
            await agent.send(frames.ARTIFACT_REFUSED, {"name": "x", "reason": "y" * 5000})

    async with stage(script) as it:
        report, verdict = await it.execute()
        assert verdict.outcome is Outcome.SUCCEEDED
        assert "refused" in report.cut_short
        assert len(it.sink.taken) < 1100


@pytest.mark.parametrize(
    ("reason", "fault"),
    [
        (CancelReason.CLIENT, FaultParty.CALLER),
        (CancelReason.DEADLINE, FaultParty.CALLER),
        (CancelReason.DISCONNECT, FaultParty.CALLER),
        (CancelReason.DRAIN, FaultParty.PLATFORM),
        (CancelReason.OPERATOR, FaultParty.PLATFORM),
    ],
)
async def test_a_cancel_ends_the_call_and_the_first_reason_stands(
    stage, reason: CancelReason, fault: FaultParty
) -> None:
    async def script(agent: ScriptedAgent) -> None:
        await agent.start()
        it.canceled.cancel(reason)
        it.canceled.cancel(CancelReason.CLIENT)
        await agent.stall()

    async with stage(script) as it:
        report, verdict = await it.execute()
        assert (verdict.outcome, verdict.fault) == (Outcome.CANCELED, fault)
        assert report.stop is not None
        assert report.stop.cancel is reason
        assert report.run_ns < LIMITS.wall_ns / 10


async def test_a_cancel_before_the_start_bills_no_time(stage) -> None:
    async def script(agent: ScriptedAgent) -> None:
        await agent.take_job()
        it.canceled.cancel(CancelReason.CLIENT)
        await agent.stall()

    async with stage(script) as it:
        report, verdict = await it.execute()
        assert (verdict.outcome, report.started, report.run_ns) == (Outcome.CANCELED, False, 0)


async def test_a_cancel_while_artifacts_are_collected_ends_at_once_with_the_exits_verdict(stage) -> None:
    async def script(agent: ScriptedAgent) -> None:
        await agent.start()
        await agent.exit(0)
        await agent.artifact("a", b"a")
        await agent.stall()

    async def cancel_at_artifact(event: events.Event) -> None:
        if isinstance(event, events.Artifact):
            it.canceled.cancel(CancelReason.CLIENT)

    async with stage(script, sink=Sink(before=cancel_at_artifact)) as it:
        report, verdict = await it.execute()
        assert verdict.outcome is Outcome.SUCCEEDED
        assert "canceled" in report.cut_short


@pytest.mark.parametrize("cancels", [1, 3])
async def test_a_run_whose_task_is_canceled_is_dead_and_measured_before_it_lets_go(stage, cancels: int) -> None:
    running, dying = asyncio.Event(), asyncio.Event()

    async def script(agent: ScriptedAgent) -> None:
        await agent.start()
        running.set()
        try:
            await agent.stall()
        finally:
            dying.set()
            for _ in range(50):  # a kill that takes a while
                await asyncio.sleep(0)

    async with stage(script) as it:
        task = asyncio.create_task(it.run.execute())
        await running.wait()
        task.cancel()
        if cancels > 1:
            await dying.wait()
            for _ in range(cancels - 1):
                task.cancel()
                await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert it.sandbox.kills
        assert it.sandbox.counted_after_kill


async def test_a_skill_that_exits_without_reading_its_stdin_ends_normally(stage) -> None:
    async def script(agent: ScriptedAgent) -> None:
        await agent.start()
        await agent.exit(0)
        await agent.send(frames.DONE)
        await agent.stall()

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(1 << 20)

    async with stage(script, work=job(stdin=bytes(8 << 20), live_stdin=endless())) as it:
        _, verdict = await it.execute()
        assert verdict.outcome is Outcome.SUCCEEDED


async def test_a_caller_that_keeps_its_stdin_open_keeps_nothing_else(stage) -> None:
    async def script(agent: ScriptedAgent) -> None:
        await agent.start()
        await agent.exit(0)
        await agent.send(frames.DONE)

    async def silent() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b"never"

    async with stage(script, work=job(live_stdin=silent())) as it:
        _, verdict = await it.execute()
        assert verdict.outcome is Outcome.SUCCEEDED


async def test_stdin_arrives_whole_and_ends(stage) -> None:
    async def script(agent: ScriptedAgent) -> None:
        taken = await agent.start()
        assert json.loads(taken[0][1])["stdin"] is True
        got = bytearray()
        while (frame := await agent.reader.next()) is not None and frame[0] == frames.STDIN:
            got += frame[1]
        assert frame is not None
        assert frame[0] == frames.STDIN_EOF
        await agent.exit(0 if bytes(got) == bytes(600_000) + b"ab" else 1)
        await agent.send(frames.DONE)

    async def live() -> AsyncIterator[bytes]:
        yield b"a"
        yield b""
        yield b"b"

    async with stage(script, work=job(stdin=bytes(600_000), live_stdin=live())) as it:
        _, verdict = await it.execute()
        assert verdict.outcome is Outcome.SUCCEEDED


async def test_an_engine_that_is_lost_amid_the_run_leaves_the_last_figures_as_a_lower_bound(stage) -> None:
    readings = iter((Counters(cpu_total_ns=5), Counters(cpu_total_ns=9)))

    def count() -> Counters:
        try:
            return next(readings)
        except StopIteration:
            raise unavailable("DRIVER_UNAVAILABLE", "the engine is gone") from None

    async def script(agent: ScriptedAgent) -> None:
        await agent.start()
        await agent.stall()

    # So little CPU time is left that the next reading comes at once.
    limits = replace(LIMITS, cpu_ns=1000)
    async with stage(script, work=job(limits), count=count) as it:
        report, verdict = await it.execute()
        assert (verdict.outcome, verdict.retryable) == (Outcome.PLATFORM_ERROR, True)
        assert "the engine is gone" in verdict.message
        assert report.after == Counters(cpu_total_ns=9, measurement=Measurement.LOWER_BOUND)


async def test_an_engine_that_is_lost_after_the_exit_changes_no_verdict(stage) -> None:
    def gone() -> DiskUsage:
        raise unavailable("DRIVER_UNAVAILABLE", "the engine is gone")

    async def script(agent: ScriptedAgent) -> None:
        await agent.start()
        await agent.exit(1)
        await agent.send(frames.DONE)

    async with stage(script, writable=gone) as it:
        report, verdict = await it.execute()
        assert (verdict.outcome, report.exit_code) == (Outcome.FAILED, 1)
        assert report.run_ns > 0


async def test_figures_of_a_disk_that_no_record_could_hold_are_left_out(stage) -> None:
    huge = {"bytes_used": 10**30, "bytes_limit": 10**30, "files_used": 0, "files_limit": 0}

    async def script(agent: ScriptedAgent) -> None:
        await agent.start()
        await agent.exit(1, disk={"/workspace": huge, "/tmp": "?", "/x": {"bytes_used": -1}})
        await agent.send(frames.DONE)

    async with stage(script) as it:
        report, verdict = await it.execute()
        assert (verdict.outcome, report.agent_disk) == (Outcome.FAILED, {})
