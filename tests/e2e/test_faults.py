"""Disks that fill up or turn read-only, clocks that are stepped, and processes that are killed by the machine: what
becomes of the calls, and of their bills.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, aclosing, closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import invariants as inv
from e2e.conftest import Fresh
from e2e.faults import SteppedTime, fill, gateway_of, loop_disk, ready, small_disk
from e2e.gateway import Gateway
from e2e.lab import SMALL, gone, run, spec, until
from skillcell.client import Event, SkillcellClient, Unavailable
from skillcell.core import events
from skillcell.core.events import Started, Stdout
from skillcell.core.types import MEBIBYTE, SECOND_NS, FaultParty, Outcome, UsageRecord
from skillcell.v1 import execution_pb2, execution_pb2_grpc

SLEEPER = "import time; print('up', flush=True); time.sleep(60)"
TOLD = "import signal; signal.pthread_sigmask(0, [10]); print('up', flush=True); signal.sigwait([10])\n"
"""Goes on when `go_on` says so, however slow the machine is."""


async def true_soon(look: Callable[[], object], seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not await asyncio.to_thread(look):
            await asyncio.sleep(0.02)


async def ended(stream: AsyncIterator[Event]) -> events.Completed:
    """The last event of a call that is being followed."""
    last = [event async for event in stream][-1].kind
    assert isinstance(last, events.Completed)
    return last


def processes_of(gateway: Gateway, sandbox: str) -> dict[int, int]:
    """Ids of a sandbox's processes on the host, by their ids inside."""
    found = {}
    for path in gateway.cgroups():
        if sandbox in str(path):
            for line in (path / "cgroup.procs").read_text().split():
                status = Path(f"/proc/{line}/status").read_text()
                inside = next(one for one in status.splitlines() if one.startswith("NSpid")).split()[-1]
                found[int(inside)] = int(line)
    return found


def go_on(gateway: Gateway, begun: list[Event]) -> None:
    """Tells a call of TOLD that it may."""
    pids = processes_of(gateway, next(event.kind.sandbox_id for event in begun if isinstance(event.kind, Started)))
    os.kill(pids[max(pids)], signal.SIGUSR1)


async def everything(client: SkillcellClient) -> list[UsageRecord]:
    return [record async for record in client.usage.stream()]


async def all_is_well(client: SkillcellClient, gateway: Gateway) -> list[UsageRecord]:
    """Every execution has its one record, and the places that tell of them agree."""
    records = await everything(client)
    listed = (await client.list(page_size=1000)).items
    sums = [inv.told(group.totals) for group in (await client.usage.summary()).groups]
    samples = await asyncio.to_thread(gateway.samples)
    assert [
        *inv.one_record_each({execution.id for execution in listed}, records),
        *inv.answered_sums_agree(records, sums, "the summary"),
        *inv.scrape_agrees(records, samples),
        *inv.chain_is_whole(records),
    ] == []
    assert (await client.usage.verify()).intact
    return records


async def refused(client: SkillcellClient) -> int:
    """Calls until one is refused because the ledger takes no more; how many ran before that."""
    for number in range(100):
        try:
            await run(client, f"print({number})")
        except Unavailable as error:
            if error.reason != "STORE_UNAVAILABLE":
                raise
            return number
    raise AssertionError("a hundred calls were admitted")


async def test_a_full_disk_refuses_calls_and_settles_the_running_ones_once_there_is_room(tmp_path: Path) -> None:
    with (
        small_disk(tmp_path / "small") as disk,
        gateway_of(tmp_path, {"skillcell.db": disk / "skillcell.db"}) as gateway,
    ):
        async with gateway.client() as client:
            assert (await run(client, "print(1)")).ok
            assert ready(gateway)
            async with aclosing(client.execute("dev/lab", **spec(TOLD))) as stream:
                begun = await until(stream, Stdout)
                filler = fill(disk)
                ran = await refused(client)
                assert not ready(gateway)
                go_on(gateway, begun)
                await true_soon(lambda: gateway.logged("settle_waits"))
                # What ended is not told before it is billed, and what was kept can be read.
                assert len(await everything(client)) == 1 + ran
                for _ in range(3):
                    with pytest.raises(Unavailable):
                        await run(client, "print(2)")
                filler.unlink()
                completed = await ended(stream)
            assert (completed.outcome, completed.billable) == (Outcome.SUCCEEDED, True)
            assert completed.usage.billed_ms > 0
            assert completed.usage.execution_id == begun[0].execution_id
            await true_soon(lambda: ready(gateway))
            assert (await run(client, "print(3)")).ok
            records = await all_is_well(client, gateway)
            assert len(records) == 3 + ran


async def test_a_log_that_can_not_be_written_costs_nothing_but_its_lines(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small") as disk:
        (tmp_path / "serve.log").symlink_to(disk / "serve.log")
        fill(disk)
        with gateway_of(tmp_path) as gateway:
            async with gateway.client() as client:
                assert (await run(client, "print(1)")).stdout == b"1\n"
                assert len(await everything(client)) == 1
            assert gateway.log == ""
            gateway.stop()


async def test_a_disk_that_takes_no_events_or_artifacts_costs_the_caller_nothing(tmp_path: Path) -> None:
    flood = TOLD + "for _ in range(40): print('x' * 65000, flush=True)"
    with (
        small_disk(tmp_path / "events", 1) as of_events,
        small_disk(tmp_path / "artifacts", 1) as of_artifacts,
        gateway_of(tmp_path, {"events": of_events, "artifacts": of_artifacts}) as gateway,
    ):
        async with gateway.client() as client:
            async with aclosing(client.execute("dev/lab", **spec(flood))) as stream:
                begun = await until(stream, Stdout)
                filler = fill(of_events)
                go_on(gateway, begun)
                lost = await ended(stream)
            assert (lost.outcome, lost.fault, lost.retryable) == (Outcome.PLATFORM_ERROR, FaultParty.PLATFORM, True)
            assert (lost.billable, lost.usage.billed_ms) == (False, 0)
            assert "can't keep the call's events: No space left" in lost.message
            whole = await client.get(lost.usage.execution_id)
            assert whole.completed == lost
            later = await run(client, "print(1)")
            assert (later.outcome, later.usage.billable) == (Outcome.PLATFORM_ERROR, False)
            filler.unlink()
            assert (await run(client, "print(2)")).stdout == b"2\n"
            fill(of_artifacts)
            made = await run(client, "open('/output/made.bin', 'wb').write(b'x' * 300000); print('did it')")
            assert (made.outcome, made.usage.billable, made.stdout) == (Outcome.SUCCEEDED, True, b"did it\n")
            assert made.artifacts == ()
            (told,) = made.refused_artifacts
            assert "can't keep an artifact: No space left" in told.reason
            assert len(await all_is_well(client, gateway)) == 4


async def test_a_ledger_that_turns_read_only_refuses_calls_and_is_whole_when_it_can_be_written_again(
    tmp_path: Path,
) -> None:
    with (
        loop_disk(tmp_path) as disk,
        ExitStack() as stack,
        gateway_of(tmp_path, {"skillcell.db": disk.path / "skillcell.db"}) as gateway,
    ):
        async with gateway.client() as client:
            first = await run(client, "print(1)")
            async with aclosing(client.execute("dev/lab", **spec(TOLD))) as stream:
                begun = await until(stream, Stdout)
                disk.break_it()
                assert await refused(client) == 0
                assert not ready(gateway)
                go_on(gateway, begun)
                await true_soon(lambda: gateway.logged("settle_waits"))
                assert len(await everything(client)) == 1
                gateway.kill()
        saved = stack.enter_context(closing(disk.saved()))
        saved.mount("ro")
        with pytest.raises(AssertionError, match=r"the ledger can't be (read|written)"):
            await asyncio.to_thread(gateway.start)
        assert gateway.wait(10) != 0
        saved.mount("remount,rw")
        await asyncio.to_thread(gateway.start)
        async with gateway.client() as client:
            records = await all_is_well(client, gateway)
            assert [record.execution_id for record in records] == [first.execution_id, begun[0].execution_id]
            assert (records[1].outcome, records[1].billable) == (Outcome.PLATFORM_ERROR, False)
            assert (await run(client, "print(2)")).ok


def to_next_month() -> int:
    """Seconds from now to an hour into the next month."""
    now = datetime.now(UTC)
    return int(((now.replace(day=1) + timedelta(days=32)).replace(day=1, hour=1) - now).total_seconds())


@pytest.mark.timeout(120)
async def test_stepping_the_clock_in_mid_call_changes_nothing_that_is_billed(tmp_path: Path) -> None:
    clock = SteppedTime(tmp_path)
    # From its own start: a warm interpreter has used some before.
    spin = "import time; t = time.process_time(); print('up', flush=True)\nwhile time.process_time() - t < 0.5: pass"
    hour, day = 3600, 86400
    with gateway_of(tmp_path, env=clock.env, reconnect_seconds="1") as gateway:
        async with gateway.client() as client:
            offset = 0
            for step in (hour, -hour, -day, to_next_month(), -2 * to_next_month()):
                began = time.monotonic_ns()
                async with aclosing(client.execute("dev/lab", **spec(spin))) as stream:
                    begun = await until(stream, Stdout)
                    offset += step
                    clock.step_to(offset)
                    rest = [event async for event in stream]
                lasted = time.monotonic_ns() - began
                completed = rest[-1].kind
                assert isinstance(completed, events.Completed)
                record = completed.usage
                times = [event.time for event in (*begun, *rest)]
                assert times == sorted(times)
                assert inv.time_is_true(record, 500_000_000, lasted - 500_000_000) == []
                assert 500_000_000 <= record.cpu_total_ns <= record.times.run_ns + 100_000_000
                # The month that it is billed in is the one that it was admitted in.
                assert record.ended_at - record.admitted_at <= timedelta(microseconds=lasted // 1000)
            limited = replace(SMALL, wall_ns=SECOND_NS)
            async with aclosing(client.execute("dev/lab", **spec(SLEEPER, limits=limited))) as stream:
                await until(stream, Stdout)
                clock.step_to(-7 * hour)
                late = await ended(stream)
            assert late.outcome is Outcome.TIMED_OUT
            assert SECOND_NS <= late.usage.times.run_ns <= 10 * SECOND_NS
            # A client that went away is waited for as long as ever, and no longer.
            async with gateway.channel() as channel:
                message = execution_pb2.ExecuteRequest(request_id=str(uuid.uuid4()))
                message.spec.skill, message.spec.entrypoint = "dev/lab", "run"
                message.spec.args.append(SLEEPER)
                call = execution_pb2_grpc.ExecutionServiceStub(channel).Execute(message, metadata=gateway.credentials)
                async for answer in call:
                    left = answer.event.execution_id
                    if answer.event.HasField("stdout"):
                        break
                call.cancel()
            clock.step_to(400 * day)
            async with asyncio.timeout(30):
                while (found := await client.get(left)).completed is None:
                    await asyncio.sleep(0.05)
            assert found.completed.outcome is Outcome.CANCELED
            assert found.completed.usage.times.run_ns >= SECOND_NS
            # Pages hold every call once, though their times are in no order; what is kept can be read.
            token, listed = "", []
            while True:
                page = await client.list(page_size=2, page_token=token)
                listed += [execution.id for execution in page.items]
                token = page.next_page_token
                if not token:
                    break
            records = await all_is_well(client, gateway)
            assert sorted(listed) == sorted(record.execution_id for record in records)
            assert len(records) == 7
            for record in records:
                kept = await client.get(record.execution_id)
                assert kept.expires_at is not None
                assert kept.expires_at > record.ended_at
                assert [event async for event in client.watch(record.execution_id)][-1].kind.usage == record  # type: ignore[union-attr]


async def started(stream: AsyncIterator[Event]) -> str:
    """The sandbox of a call, once it says something."""
    return next(event.kind.sandbox_id for event in await until(stream, Stdout) if isinstance(event.kind, Started))


async def test_a_skill_killed_from_the_host_was_signaled_and_pays(oci: Gateway, oci_client: SkillcellClient) -> None:
    async with aclosing(oci_client.execute("dev/lab", **spec(SLEEPER))) as stream:
        pids = processes_of(oci, await started(stream))
        os.kill(pids[max(pids)], signal.SIGKILL)
        completed = await ended(stream)
    # Whoever sent it: a Skill can send it to itself, so that it must not make a call free.
    assert (completed.outcome, completed.fault, completed.signal) == (Outcome.SIGNALED, FaultParty.SKILL, 9)
    assert completed.billable
    assert completed.usage.billed_ms > 0
    await all_is_well(oci_client, oci)


async def test_an_agent_killed_from_the_host_is_the_platforms_loss(oci: Gateway, oci_client: SkillcellClient) -> None:
    async with aclosing(oci_client.execute("dev/lab", **spec(SLEEPER))) as stream:
        pids = processes_of(oci, await started(stream))
        os.kill(pids[1], signal.SIGKILL)
        completed = await ended(stream)
    assert (completed.outcome, completed.fault) == (Outcome.PLATFORM_ERROR, FaultParty.PLATFORM)
    assert (completed.billable, completed.usage.billed_ms, completed.retryable) == (False, 0, True)
    assert completed.usage.times.run_ns > 0
    assert all(gone(pid) for pid in pids.values())
    await all_is_well(oci_client, oci)


async def test_calls_of_a_dead_launcher_are_settled_and_the_next_ones_work(
    oci: Gateway, oci_client: SkillcellClient
) -> None:
    streams = [oci_client.execute("dev/lab", **spec(SLEEPER)) for _ in range(3)]
    sandboxes = [await started(stream) for stream in streams]
    (launcher,) = launchers(oci)
    os.kill(launcher, signal.SIGKILL)
    for stream in streams:
        completed = await ended(stream)
        assert (completed.outcome, completed.fault) == (Outcome.PLATFORM_ERROR, FaultParty.PLATFORM)
        assert not completed.billable
    await true_soon(lambda: not any(name in str(path) for path in oci.cgroups() for name in sandboxes))
    results = await asyncio.gather(*(run(oci_client, f"print({number})") for number in range(3)))
    assert [result.stdout for result in results] == [b"0\n", b"1\n", b"2\n"]
    await all_is_well(oci_client, oci)


def launchers(gateway: Gateway) -> list[int]:
    """Children of the gateway that make its sandboxes."""
    children = Path(f"/proc/{gateway.pid}/task/{gateway.pid}/children").read_text().split()
    return [int(pid) for pid in children if b"sandbox.launcher" in Path(f"/proc/{pid}/cmdline").read_bytes()]


EATER = (
    "import time\nprint('up', flush=True)\nheld = bytearray()\nwhile True: held += bytes(1 << 20); time.sleep(0.001)"
)


@pytest.mark.parametrize("whose", ["its own", "the machine's"])
async def test_memory_that_the_machine_lacks_is_not_the_skills_fault(
    whose: str, oci: Gateway, oci_client: SkillcellClient
) -> None:
    """The kernel counts both kills against the sandbox. The machine here is the cgroup around all of ours."""
    around = [path for path in memory_roots(oci) if path.exists()]
    assert around
    if whose == "the machine's":
        write_limit(around[0], str(40 * MEBIBYTE))
    try:
        result = await run(oci_client, EATER, limits=replace(SMALL, memory_bytes=96 * MEBIBYTE))
    finally:
        write_limit(around[0], "-1" if around[0].name == "memory.limit_in_bytes" else "max")
    if whose == "its own":
        assert (result.outcome, result.usage.billable) == (Outcome.OUT_OF_MEMORY, True)
        assert result.usage.memory_peak_bytes > 90 * MEBIBYTE
    else:
        assert (result.outcome, result.usage.billable) == (Outcome.PLATFORM_ERROR, False)
        assert result.completed.retryable
        assert "machine ran out of memory" in result.completed.message
        assert result.usage.memory_peak_bytes <= 40 * MEBIBYTE
    await all_is_well(oci_client, oci)


def memory_roots(gateway: Gateway) -> list[Path]:
    """Where a limit on all sandboxes of a gateway together can be set, on v1 or v2."""
    root = f"skillcell-{gateway.instance}"
    top = Path("/sys/fs/cgroup")
    found = [top / "memory" / root / "memory.limit_in_bytes", top / root / "memory.max"]
    return found + [path / "memory.max" for path in top.glob(f"*/{root}") if (path / "memory.max").exists()]


def write_limit(path: Path, value: str) -> None:
    path.write_text(value)


@pytest.mark.timeout(120)
async def test_a_container_that_lost_its_shim_is_settled_and_nothing_is_left(engine: str, fresh: Fresh) -> None:
    gateway = fresh("docker", engine)
    async with gateway.client() as client:
        async with aclosing(client.execute("dev/lab", **spec(SLEEPER))) as stream:
            sandbox = await started(stream)
            pids = processes_of(gateway, sandbox)
            os.kill(parent_of(pids[1]), signal.SIGKILL)
            completed = await ended(stream)
        assert (completed.outcome, completed.fault) == (Outcome.PLATFORM_ERROR, FaultParty.PLATFORM)
        assert not completed.billable
        assert (await run(client, "print(1)")).ok
        await true_soon(lambda: not any(sandbox in str(path) for path in gateway.cgroups()))
        # Nobody but the machine's first process is left to collect their exit codes.
        await true_soon(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids.values()))
        assert len(await all_is_well(client, gateway)) == 2


def parent_of(pid: int) -> int:
    status: Any = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("PPid")).split()[1])
