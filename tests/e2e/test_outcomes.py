"""Every way a call can end, told apart from every other, with the limit and what was seen."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import aclosing
from dataclasses import replace

import pytest

from e2e.conftest import Fresh
from e2e.gateway import Gateway
from e2e.lab import SMALL, gone, run, spec, until
from skillcell.client import CallResult, Canceled, DeadlineExceeded, SkillcellClient
from skillcell.core import events
from skillcell.core.types import (
    MEBIBYTE,
    SECOND_NS,
    CancelReason,
    ExecutionState,
    FaultParty,
    Measurement,
    OnDisconnect,
    Outcome,
)


def told(result: CallResult) -> tuple[Outcome, FaultParty, bool, bool]:
    """Outcome, fault, billable, retryable; and what holds of every end."""
    completed = result.completed
    assert completed.usage.outcome is completed.outcome
    assert completed.usage.billable is completed.billable
    assert completed.usage.billed_ms == (-(-completed.usage.times.run_ns // 1_000_000) if completed.billable else 0)
    return completed.outcome, completed.fault, completed.billable, completed.retryable


async def test_success_says_so_and_nothing_else(client: SkillcellClient) -> None:
    result = await run(client, "print('hello')")
    assert told(result) == (Outcome.SUCCEEDED, FaultParty.NONE, True, False)
    assert (result.stdout, result.exit_code, result.completed.evidence) == (b"hello\n", 0, None)
    assert result.usage.measurement is Measurement.EXACT


async def test_a_failed_exit_keeps_its_code(client: SkillcellClient) -> None:
    result = await run(client, "sys.exit(7)")
    assert told(result) == (Outcome.FAILED, FaultParty.SKILL, True, False)
    assert result.exit_code == 7
    evidence = result.completed.evidence
    assert evidence is not None
    assert (evidence.limit, evidence.observed) == ("exit_code", 7)


async def test_a_signal_is_no_exit_code(client: SkillcellClient) -> None:
    result = await run(client, "import os, signal; os.kill(os.getpid(), signal.SIGUSR1)")
    assert told(result) == (Outcome.SIGNALED, FaultParty.SKILL, True, False)
    assert (result.exit_code, result.completed.signal) == (None, signal.SIGUSR1)


async def test_the_wall_limit_ends_a_sleeper(client: SkillcellClient) -> None:
    code = "import time; print('before', flush=True); time.sleep(30)"
    result = await run(client, code, limits=replace(SMALL, wall_ns=SECOND_NS // 2))
    assert told(result) == (Outcome.TIMED_OUT, FaultParty.CALLER, True, False)
    evidence = result.completed.evidence
    assert evidence is not None
    assert (evidence.limit, evidence.limit_value) == ("wall_ns", SECOND_NS // 2)
    assert SECOND_NS // 2 <= evidence.observed < SECOND_NS
    assert result.completed.usage.times.run_ns == SECOND_NS // 2  # however long stopping it took
    assert result.stdout == b"before\n"


async def test_the_cpu_limit_ends_a_burner_and_not_a_sleeper(client: SkillcellClient) -> None:
    limits = replace(SMALL, cpu_ns=SECOND_NS // 2)
    burnt, slept = await asyncio.gather(
        run(client, "while True: pass", limits=limits), run(client, "import time; time.sleep(0.8)", limits=limits)
    )
    assert told(burnt) == (Outcome.CPU_LIMIT_EXCEEDED, FaultParty.CALLER, True, False)
    evidence = burnt.completed.evidence
    assert evidence is not None
    assert (evidence.limit, evidence.limit_value) == ("cpu_ns", SECOND_NS // 2)
    assert SECOND_NS // 2 <= evidence.observed <= burnt.usage.cpu_total_ns < SECOND_NS
    assert slept.ok


async def test_memory_past_the_limit_is_told_with_its_peak(client: SkillcellClient) -> None:
    result = await run(client, "print('before', flush=True); held = bytearray(256 << 20)")
    assert told(result) == (Outcome.OUT_OF_MEMORY, FaultParty.CALLER, True, False)
    evidence = result.completed.evidence
    assert evidence is not None
    assert (evidence.limit, evidence.limit_value) == ("memory_bytes", 64 * MEBIBYTE)
    assert 60 * MEBIBYTE < evidence.observed <= 65 * MEBIBYTE
    assert result.stdout == b"before\n"


async def test_a_limit_that_the_caller_did_not_lower_is_the_skills_fault(client: SkillcellClient) -> None:
    result = await run(client, "held = bytearray(1 << 30)", limits=replace(SMALL, memory_bytes=None))
    assert told(result) == (Outcome.OUT_OF_MEMORY, FaultParty.SKILL, True, False)


async def test_output_past_the_limit_keeps_what_came_before(client: SkillcellClient) -> None:
    code = "import os\nwhile True: os.write(1, b'x' * 1000)"
    result = await run(client, code, limits=replace(SMALL, output_bytes=10_500))
    assert told(result) == (Outcome.OUTPUT_LIMIT_EXCEEDED, FaultParty.CALLER, True, False)
    evidence = result.completed.evidence
    assert evidence is not None
    assert (evidence.limit, evidence.limit_value) == ("output_bytes", 10_500)
    assert evidence.observed > 10_500
    assert result.stdout == b"x" * 10_500
    assert result.completed.usage.output_bytes == 10_500


async def test_a_full_disk_is_told_by_bytes(client: SkillcellClient) -> None:
    code = "with open('big', 'wb') as file:\n    while True: file.write(b'x' * 65536)"
    result = await run(client, code, limits=replace(SMALL, disk_bytes=4 * MEBIBYTE))
    assert told(result) == (Outcome.DISK_LIMIT_EXCEEDED, FaultParty.CALLER, True, False)
    evidence = result.completed.evidence
    assert evidence is not None
    assert evidence.limit == "disk_bytes"
    assert b"No space left" in result.stderr


async def test_a_full_disk_is_told_by_files(client: SkillcellClient) -> None:
    code = "for n in range(100000): open(f'f{n}', 'w').close()"
    result = await run(client, code, limits=replace(SMALL, disk_files=500))
    assert told(result) == (Outcome.DISK_LIMIT_EXCEEDED, FaultParty.CALLER, True, False)
    evidence = result.completed.evidence
    assert evidence is not None
    assert evidence.limit == "disk_files"


async def test_a_skill_that_handles_a_full_disk_has_succeeded(client: SkillcellClient) -> None:
    code = """
    try:
        open('big', 'wb').write(b'x' * (8 << 20))
    except OSError:
        print('full')
    """
    result = await run(client, code, limits=replace(SMALL, disk_bytes=4 * MEBIBYTE))
    assert (result.outcome, result.stdout) == (Outcome.SUCCEEDED, b"full\n")


@pytest.mark.parametrize(
    ("entrypoint", "code", "why"),
    [
        ("one", "print('{')", "is not JSON"),
        ("one", "print('{}')", "n"),
        ("one", "pass", "there was no output"),
        ("lines", "print('1\\n\"two\"\\n3')", "output 2"),
        ("run", "open('/output/result.json', 'w').write('nonsense')", "is not JSON"),
    ],
    ids=["not-json", "breaks-the-schema", "missing", "one-line-of-many", "result-file"],
)
async def test_an_invalid_output_is_withheld_and_named(
    client: SkillcellClient, entrypoint: str, code: str, why: str
) -> None:
    result = await run(client, code, entrypoint=entrypoint)
    assert told(result) == (Outcome.INVALID_OUTPUT, FaultParty.SKILL, True, False)
    assert why in result.completed.message
    assert result.outputs == ((1, 3) if entrypoint == "lines" else ())


async def test_a_functions_output_against_its_schema(client: SkillcellClient) -> None:
    good = await client.call("dev/lab", entrypoint="typed", input={"n": 3}, limits=SMALL)
    bad = await client.call("dev/lab", entrypoint="typed", input={"n": 0}, limits=SMALL)
    assert (good.outcome, good.output) == (Outcome.SUCCEEDED, {"n": 3})
    assert (bad.outcome, bad.outputs) == (Outcome.INVALID_OUTPUT, ())


SLEEPER = "import os, time; print('up', flush=True); time.sleep(60)"


async def test_a_canceled_call_is_billed_and_destroyed(client: SkillcellClient, gateway: Gateway) -> None:
    events_of = client.execute("dev/lab", **spec(SLEEPER))
    async with aclosing(events_of) as stream:
        seen = await until(stream, events.Stdout)
        execution = await client.cancel(seen[0].execution_id, reason="enough")
        rest = [event async for event in stream]
    completed = rest[-1].kind
    assert isinstance(completed, events.Completed)
    assert execution.state is ExecutionState.COMPLETED
    assert (completed.outcome, completed.fault, completed.billable) == (Outcome.CANCELED, FaultParty.CALLER, True)
    assert (completed.canceled_by, "enough" in completed.message) == (CancelReason.CLIENT, True)
    assert completed.usage.billed_ms > 0
    sandbox = next(event.kind.sandbox_id for event in seen if isinstance(event.kind, events.Started))
    assert not [path for path in gateway.cgroups() if sandbox in path.name and (path / "cgroup.procs").read_text()]


async def test_a_client_that_cancels_its_call_ends_it(client: SkillcellClient) -> None:
    async with aclosing(client.execute("dev/lab", request_id="", **spec(SLEEPER))) as stream:
        seen = await until(stream, events.Stdout)
    execution = await client.cancel(seen[0].execution_id)  # waits for the end; without effect on how it ended
    assert execution.completed is not None
    assert execution.completed.outcome is Outcome.CANCELED
    assert execution.completed.canceled_by is CancelReason.CLIENT


async def test_a_deadline_that_passes_ends_the_call(client: SkillcellClient) -> None:
    assert (await run(client, "print(1)")).ok  # an engine's first call brings it the image, which takes a while
    admitted: list[str] = []
    stream = client.execute("dev/lab", deadline_seconds=2.0, on_admitted=admitted.append, **spec(SLEEPER))
    with pytest.raises((DeadlineExceeded, Canceled)):
        await until(stream, events.Completed)
    completed = [event async for event in client.watch(admitted[0])][-1].kind
    assert isinstance(completed, events.Completed)
    assert (completed.outcome, completed.fault) == (Outcome.CANCELED, FaultParty.CALLER)
    assert completed.canceled_by is CancelReason.DEADLINE


async def test_a_call_canceled_in_the_queue_never_had_a_sandbox(fresh: Fresh) -> None:
    gateway = fresh(cpu_overcommit="0.5")
    async with gateway.client() as client:
        first = client.execute("dev/lab", **spec(SLEEPER))
        second = client.execute("dev/lab", **spec(SLEEPER))
        async with aclosing(first) as holding, aclosing(second) as waiting:
            await until(holding, events.Stdout)
            (queued,) = await until(waiting, events.Queued)
            assert isinstance(queued.kind, events.Queued)
            assert queued.kind.position == 1
            await client.cancel(queued.execution_id)
            (ended,) = [event async for event in waiting]
    completed = ended.kind
    assert isinstance(completed, events.Completed)
    assert completed.outcome is Outcome.CANCELED
    assert (completed.usage.started_at, completed.usage.times.run_ns, completed.usage.billed_ms) == (None, 0, 0)
    assert completed.usage.times.queue_ns > 0


async def test_a_sandbox_killed_by_the_host_is_the_platforms_fault(client: SkillcellClient, gateway: Gateway) -> None:
    async with aclosing(client.execute("dev/lab", **spec(SLEEPER))) as stream:
        seen = await until(stream, events.Stdout)
        sandbox = next(event.kind.sandbox_id for event in seen if isinstance(event.kind, events.Started))
        killed = _kill_sandbox(gateway, sandbox)
        rest = [event async for event in stream]
    completed = rest[-1].kind
    assert isinstance(completed, events.Completed)
    assert (completed.outcome, completed.fault) == (Outcome.PLATFORM_ERROR, FaultParty.PLATFORM)
    assert (completed.billable, completed.retryable, completed.usage.billed_ms) == (False, True, 0)
    assert all(gone(pid) for pid in killed)


def _kill_sandbox(gateway: Gateway, sandbox: str) -> list[int]:
    """Ends every process of one sandbox from the host, as an operator's mistake would."""
    pids = {
        int(line)
        for path in gateway.cgroups()
        if sandbox in str(path)
        for line in (path / "cgroup.procs").read_text().split()
    }
    assert pids
    for pid in pids:
        if not gone(pid):
            os.kill(pid, signal.SIGKILL)
    return list(pids)


async def test_a_reader_that_goes_and_detaches_lets_the_call_go_on(client: SkillcellClient) -> None:
    code = "import time; print('up', flush=True); time.sleep(1); print('done')"
    stream = client.execute("dev/lab", on_disconnect=OnDisconnect.DETACH, **spec(code))
    async with aclosing(stream):
        seen = await until(stream, events.Stdout)
    rest = [event async for event in client.watch(seen[0].execution_id, after_sequence=seen[-1].sequence)]
    completed = rest[-1].kind
    assert isinstance(completed, events.Completed)
    assert completed.outcome is Outcome.SUCCEEDED
    assert b"done\n" in [event.kind.data for event in rest if isinstance(event.kind, events.Stdout)]
