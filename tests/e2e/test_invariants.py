"""The invariants as clients of a real gateway see them; and gateways that were broken on purpose, which must be found.

What breaks them replaces functions of ours in the gateway's own process, before it starts.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest

import invariants as inv
from e2e.faults import SteppedTime, broken, fill, gateway_of, small_disk
from e2e.gateway import Gateway
from e2e.lab import run, spec, until
from skillcell.client import SkillcellClient
from skillcell.core import events
from skillcell.core.events import Stdout
from skillcell.core.types import MEBIBYTE, UsageRecord
from skillcell.v1 import execution_pb2, execution_pb2_grpc

BURN = """
import os, time
begin = time.process_time()  # a warm interpreter has used some before
def burn():
    while time.process_time() - begin < 0.25: pass
held = bytearray(os.urandom(1 << 20) * 24)
children = []
for _ in range(2):
    child = os.fork()
    if not child:
        burn()
        os._exit(0)
    children.append(child)
burn()
spent = time.process_time() - begin
for child in children:
    _, _, used = os.wait4(child, 0)
    spent += used.ru_utime + used.ru_stime
print(spent)
"""
WATCHED = "import time; print('up', flush=True); time.sleep(0.5); print('end', flush=True)"


async def test_cpu_memory_and_processes_are_those_of_the_whole_sandbox(oci_client: SkillcellClient) -> None:
    idle = await run(oci_client, "import time; print(time.process_time())")
    result = await run(oci_client, BURN)
    assert figures(result.usage, float(result.stdout), idle.usage) == []


def figures(record: UsageRecord, spent_seconds: float, idle: UsageRecord) -> list[str]:
    """What a call of BURN must have been recorded with: what it spent itself, and what starting it costs."""
    spent_ns = int(spent_seconds * 1e9)
    return [
        # Starting costs differ from call to call, most of all on a busy machine.
        *inv.cpu_is_true(record, spent_ns, beside_ns=2 * idle.cpu_total_ns + 60_000_000),
        *inv.figures_are_plausible(record, touched_bytes=24 * MEBIBYTE, pids=4),
    ]


async def watched(client: SkillcellClient, in_mid_call: Callable[[], None]) -> list[str]:
    """Of a call that lasts half a second, by a stopwatch of ours."""
    began = time.monotonic_ns()
    async with aclosing(client.execute("dev/lab", **spec(WATCHED))) as stream:
        await until(stream, Stdout)
        in_mid_call()
        completed = [event async for event in stream][-1].kind
    assert isinstance(completed, events.Completed)
    around = time.monotonic_ns() - began - 500_000_000
    return inv.time_is_true(completed.usage, 500_000_000, around)


async def test_time_is_the_stopwatchs(oci_client: SkillcellClient) -> None:
    assert await watched(oci_client, lambda: None) == []


async def marked(gateway: Gateway, calls: int) -> tuple[list[tuple[str, str]], list[str]]:
    """Calls that each print a mark of their own: those seen, with the execution; and those that were refused.

    None is followed to its end, of which a broken gateway may never tell, since it can't settle.
    """
    ran, turned_away = [], []
    for _ in range(calls):
        mark = uuid.uuid4().hex
        message = execution_pb2.ExecuteRequest()
        message.spec.skill, message.spec.entrypoint = "dev/lab", "run"
        message.spec.args.append(f"print('{mark}', flush=True)")
        async with gateway.channel() as channel:
            call = execution_pb2_grpc.ExecutionServiceStub(channel).Execute(message, metadata=gateway.credentials)
            try:
                async for answer in call:
                    if answer.event.stdout.data.decode().strip() == mark:
                        ran.append((mark, answer.event.execution_id))
                        break
                call.cancel()
            except grpc.aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.UNAVAILABLE  # noqa: PT017 - only some are refused
                turned_away.append(mark)
    return ran, turned_away


async def unmetered(gateway: Gateway, disk: Path, patience_seconds: float) -> tuple[list[str], list[str]]:
    """What ran and is not recorded, although it was waited for; and the marks that ran while the disk was full."""
    async with gateway.client() as client:
        before, _ = await marked(gateway, 1)
        filler = fill(disk)
        ran, turned_away = await marked(gateway, 2)
        filler.unlink()
        async with asyncio.timeout(30):
            while True:
                after, still = await marked(gateway, 1)
                if not still:
                    break
        over = time.monotonic() + patience_seconds
        while True:
            records = [record async for record in client.usage.stream()]
            found = inv.nothing_ran_unmetered([*before, *ran, *after], turned_away, records)
            if not found or time.monotonic() > over:
                return found, [mark for mark, _ in ran]
            await asyncio.sleep(0.05)


@contextmanager
def on_a_small_disk(home: Path, env: dict[str, str]) -> Iterator[tuple[Gateway, Path]]:
    with (
        small_disk(home / "small") as disk,
        gateway_of(home, {"skillcell.db": disk / "skillcell.db"}, env, drain_seconds="0") as gateway,
    ):
        yield gateway, disk


async def test_nothing_runs_unmetered_while_the_ledger_can_not_be_written(tmp_path: Path) -> None:
    with on_a_small_disk(tmp_path, {}) as (gateway, disk):
        found, _ = await unmetered(gateway, disk, patience_seconds=30)
    assert found == []


ADMITS_ANYWAY = """
from skillcell.core.errors import Fault
from skillcell.core.records import StoredExecution
from skillcell.core.types import ExecutionState
from skillcell.metering.ledger import Ledger
from skillcell.metering.records import AdmitResult
durably = Ledger.admit

async def admit(self, admission):
    try:
        return await durably(self, admission)
    except Fault:
        return AdmitResult(StoredExecution(admission, ExecutionState.QUEUED), created=True)

Ledger.admit = admit
"""


async def test_a_gateway_that_runs_what_its_ledger_refused_is_found(tmp_path: Path) -> None:
    with on_a_small_disk(tmp_path, broken(tmp_path, ADMITS_ANYWAY)) as (gateway, disk):
        found, ran = await unmetered(gateway, disk, patience_seconds=1)
        gateway.kill()  # it can settle nothing of what it ran, and would wait for that
        gateway.start()
    assert ran
    for mark in ran:
        assert [line for line in found if mark in line and "unmetered" in line], found


BILLS_BY_THE_WALL_CLOCK = """
import time
from skillcell.sandbox.supervisor import Run
made = Run.__init__

class WallClock:
    monotonic_ns = staticmethod(time.time_ns)

def make(self, *args, **options):
    made(self, *args, **{**options, "clock": WallClock()})

Run.__init__ = make
"""
ENDS_BY_THE_WALL_CLOCK = """
from skillcell.live import Execution
Execution.now = lambda self: self.clock.now()
"""
READS_COUNTERS_TOO_EARLY = """
from skillcell.sandbox.drivers.oci import OciSandbox
read = OciSandbox.counters

async def counters(self):
    if not hasattr(type(self), "seen"):
        type(self).seen = {}
    if self.sandbox_id not in type(self).seen:
        type(self).seen[self.sandbox_id] = await read(self)
    return type(self).seen[self.sandbox_id]

OciSandbox.counters = counters
"""
READS_ONE_PROCESS = """
from dataclasses import replace
from skillcell.sandbox.drivers.oci import OciSandbox
read = OciSandbox.counters

async def counters(self):
    whole = await read(self)
    return replace(whole, cpu_total_ns=whole.cpu_total_ns // 3, memory_peak_bytes=1 << 20, pids_peak=1)

OciSandbox.counters = counters
"""
CLOCKS = {"billed by the wall clock": BILLS_BY_THE_WALL_CLOCK, "ended by the wall clock": ENDS_BY_THE_WALL_CLOCK}


@pytest.mark.parametrize("how", CLOCKS)
async def test_a_gateway_that_trusts_the_wall_clock_is_found(how: str, tmp_path: Path) -> None:
    clock = SteppedTime(tmp_path)
    mixed = broken(tmp_path, (tmp_path / "site" / "sitecustomize.py").read_text() + CLOCKS[how])
    with gateway_of(tmp_path, env=clock.env | mixed) as gateway:
        async with gateway.client() as client:
            assert await watched(client, lambda: None) == []
            assert await watched(client, lambda: clock.step_to(-86400)) != []
            assert await watched(client, lambda: clock.step_to(86400)) != []


@pytest.mark.parametrize("code", [READS_COUNTERS_TOO_EARLY, READS_ONE_PROCESS], ids=["too early", "one process alone"])
async def test_a_gateway_that_reads_the_wrong_counters_is_found(code: str, tmp_path: Path) -> None:
    with gateway_of(tmp_path, env=broken(tmp_path, code)) as gateway:
        async with gateway.client() as client:
            idle = await run(client, "print(1)")
            result = await run(client, BURN)
    found = figures(result.usage, float(result.stdout), idle.usage)
    assert [line for line in found if "of CPU" in line], found
    assert [line for line in found if "peaked" in line], found
