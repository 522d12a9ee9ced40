"""Calls without a pause against a gateway that is killed again and again, and the account of what became of them.

Run by `make storm` with hundreds of kills, and by `tests/e2e/test_storm.py` with some dozens. A client here is as
stubborn as billing needs it: it sends the same request, under the same id, until it has seen the call's last event.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import random
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio

import invariants
from e2e.conftest import publish_lab
from e2e.gateway import Gateway, new_gateway, serving
from ledger_stores import postgresql
from sink import Sink, sink
from skillcell.core.steps import ExportStep, Step
from skillcell.core.types import Outcome
from skillcell.metering.records import Sums
from skillcell.v1 import event_pb2, execution_pb2, execution_pb2_grpc

NONCE = "import os; nonce = os.urandom(8).hex()\n"
KINDS = {
    "quick": "print(nonce)",
    "talk": "import time\nprint(nonce, flush=True)\nfor n in range(4):\n  time.sleep(0.05); print(n, flush=True)",
    "spin": "import time\nprint(nonce, flush=True)\nwhile time.process_time() < 0.25: pass",
    "fail": "print(nonce); raise SystemExit(3)",
}
WORKERS = 4
_REACHED_SECONDS = 40.0
"""By when a step is done that every call does."""


@dataclass(slots=True)
class Call:
    """One request, however often it was sent."""

    request_id: str
    kind: str
    execution_ids: set[str] = field(default_factory=set)
    events: dict[int, bytes] = field(default_factory=dict)
    sent: int = 0
    altered: list[int] = field(default_factory=list)
    """Sequences whose event came twice with other bytes."""
    last: event_pb2.ExecutionEvent | None = None

    def saw(self, event: event_pb2.ExecutionEvent) -> None:
        self.execution_ids.add(event.execution_id)
        data = event.SerializeToString(deterministic=True)
        if self.events.setdefault(event.sequence, data) != data:
            self.altered.append(event.sequence)
        if event.HasField("completed"):
            self.last = event


@dataclass(slots=True)
class Account:
    """What the storm came to; `violations` must be empty."""

    kills: collections.Counter[str] = field(default_factory=collections.Counter)
    requests: int = 0
    sent: int = 0
    executions: int = 0
    records: int = 0
    recovered: int = 0
    lost: int = 0
    doubled: int = 0
    delivered: int = 0
    """Events that the sink got, those that came again too."""
    violations: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        yield f"kills {self.kills.total()}: " + ", ".join(f"{name} {n}" for name, n in sorted(self.kills.items()))
        yield f"requests {self.requests}, sent {self.sent} times (retries {self.sent - self.requests})"
        yield f"executions {self.executions}, records {self.records}, recovered {self.recovered}"
        yield f"sink: {self.delivered} events, {self.delivered - self.records} of them again"
        yield f"lost {self.lost}, doubled {self.doubled}, violations {len(self.violations)}"
        yield from self.violations


class Storm:
    """`run` it once."""

    def __init__(self, gateway: Gateway, meter: Sink) -> None:
        self._gateway = gateway
        self._meter = meter
        self._up = asyncio.Event()
        self._stopping = False
        self.calls: list[Call] = []
        self.kills: collections.Counter[str] = collections.Counter()
        self._scrapes: list[invariants.Samples] = []

    async def run(self, places: Sequence[str]) -> Account:
        """Kills at each place: a step's label, or `random`. The gateway must be serving, and serves at the end."""
        self._gateway.listen = self._gateway.address
        self._gateway.kill()
        async with asyncio.TaskGroup() as group:
            workers = [group.create_task(self._work()) for _ in range(WORKERS)]
            for place in places:
                await self.kill(place)
            await self._start("")
            self._stopping = True
            await asyncio.wait(workers)
        return await self._account()

    async def kill(self, place: str) -> None:
        """One start and its death. A step of the recovery dies in the start after another death in mid-call."""
        recovery = place.startswith("recovery")
        if recovery:
            await self.kill(Step.STARTED.value)
        times = random.randint(1, 1 if recovery else 6)
        serves = await self._start("" if place == "random" else f"{place}:{times}")
        assert not (recovery and serves), f"{place} was not reached"
        if serves:
            self._scrape()
            await self._death(place)
        self._up.clear()
        self.kills[place] += 1

    async def _death(self, place: str) -> None:
        if place == "random":
            await asyncio.sleep(random.uniform(0, 1.2))
            self._gateway.kill()
            return
        patience = time.monotonic() + _REACHED_SECONDS
        while self._process_lives():
            assert time.monotonic() < patience, f"{place} was not reached; kills so far: {dict(self.kills)}"
            await asyncio.sleep(0.01)
        assert self._gateway.wait(10) == -signal.SIGKILL

    async def _start(self, crash_at: str) -> bool:
        """Whether it came so far as to serve: what it recovers counts as calls that are settled."""
        self._gateway.settings = {**self._gateway.settings, "SKILLCELL_UNSAFE_CRASH_AT": crash_at}
        try:
            await asyncio.to_thread(self._gateway.start)
        except (AssertionError, grpc.RpcError):
            if not crash_at or self._gateway.wait(10) != -signal.SIGKILL:
                raise
            return False
        self._up.set()
        return True

    def _process_lives(self) -> bool:
        return self._gateway.process is not None and self._gateway.process.poll() is None

    async def _work(self) -> None:
        while not self._stopping:
            call = Call(str(uuid.uuid4()), random.choice(list(KINDS)))
            self.calls.append(call)
            while call.last is None:
                await self._up.wait()
                try:
                    await self._send(call)
                except grpc.aio.AioRpcError as error:
                    if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                        raise
                    await asyncio.sleep(0.02)

    async def _send(self, call: Call) -> None:
        message = execution_pb2.ExecuteRequest(request_id=call.request_id)
        message.spec.skill, message.spec.entrypoint = "dev/lab", "run"
        message.spec.args.append(NONCE + KINDS[call.kind])
        message.spec.limits.memory_bytes = 64 << 20
        call.sent += 1
        async with self._gateway.channel() as channel:
            stub = execution_pb2_grpc.ExecutionServiceStub(channel)
            async for answer in stub.Execute(message, metadata=self._gateway.credentials):
                call.saw(answer.event)

    def _scrape(self) -> None:
        """Kept, over all processes: no counter may be below what an earlier one has shown."""
        try:
            samples = self._gateway.samples()
        except OSError:  # it died first
            return
        self._scrapes.append(samples)

    async def _account(self) -> Account:
        account = Account(kills=self.kills, requests=len(self.calls), sent=sum(call.sent for call in self.calls))
        async with self._gateway.client() as client:
            records = [record async for record in client.usage.stream()]
            executions, token = [], ""
            while True:
                page = await client.list(page_size=1000, page_token=token)
                executions += page.items
                token = page.next_page_token
                if not token:
                    break
            summary = (await client.usage.summary()).groups
            verified = await client.usage.verify()
        found = collections.Counter(record.execution_id for record in records)
        admitted = {execution.id for execution in executions} | {
            execution_id for call in self.calls for execution_id in call.execution_ids
        }
        await self._exported(len(records))
        self._scrape()
        account.executions, account.records = len(admitted), len(records)
        account.recovered = sum(record.outcome in (Outcome.PLATFORM_ERROR, Outcome.NEVER_RAN) for record in records)
        account.lost = len(admitted - found.keys())
        account.doubled = sum(count - 1 for count in found.values())
        account.delivered = len(self._meter.bodies)
        answered = [
            Sums(
                group.totals.calls,
                group.totals.billed_ms,
                group.totals.cpu_total_ns,
                group.totals.memory_limit_byte_ns,
                group.totals.egress_in_bytes + group.totals.egress_out_bytes,
                group.totals.output_bytes,
            )
            for group in summary
        ]
        account.violations += [
            *([] if verified.intact else [f"the ledger is not whole: {verified.defects}"]),
            *invariants.one_record_each(admitted, records),
            *invariants.answered_sums_agree(records, answered, "the summary"),
            *invariants.scrape_agrees(records, self._scrapes[-1]),
            *invariants.counters_never_fall(self._scrapes),
            *invariants.counters_name_no_process(self._scrapes[-1]),
            *invariants.chain_is_whole(records),
            *invariants.sink_agrees(records, self._meter.bodies),
            *(f"{execution.id} is not settled" for execution in executions if execution.completed is None),
        ]
        for call in self.calls:
            self._check(call, account.violations.append)
        return account

    async def _exported(self, count: int) -> None:
        """The sink has as many different events, or never will: then the account says so."""
        patience = time.monotonic() + _REACHED_SECONDS
        while len(set(self._meter.bodies)) < count and time.monotonic() < patience:
            await asyncio.sleep(0.05)

    def _check(self, call: Call, say: Callable[[str], None]) -> None:
        name = f"{call.request_id} ({call.kind})"
        if len(call.execution_ids) != 1:
            say(f"{name} became {len(call.execution_ids)} executions")
        if call.altered:
            say(f"{name}: events {call.altered} were sent again with other bytes")
        if sorted(call.events) != list(range(1, len(call.events) + 1)):
            say(f"{name}: events {sorted(call.events)} have gaps")
        messages = [event_pb2.ExecutionEvent.FromString(data) for _, data in sorted(call.events.items())]
        started = sum(message.HasField("started") for message in messages)
        text = b"".join(message.stdout.data for message in messages if message.HasField("stdout"))
        nonces = [line for line in text.split() if len(line) == 16]
        if started > 1 or len(nonces) > 1:
            say(f"{name}: started {started} times, with {len(nonces)} side effects")


@contextmanager
def storm_gateway(home: Path, store: str) -> Iterator[tuple[Gateway, Sink]]:
    """A gateway with the lab Skill over `sqlite` or `postgresql`, and the sink that it delivers to."""
    with ExitStack() as stack:
        (home / "sink").mkdir()
        meter = stack.enter_context(sink(home / "sink"))
        settings = {"sinks": json.dumps([{"name": "meter", "url": meter.url, "poll_seconds": 0.05}])}
        if store == "postgresql":
            settings["database"] = stack.enter_context(postgresql()).new_url()
        with serving(new_gateway(home, "oci", **settings)) as gateway:
            publish_lab(gateway, home)
            yield gateway, meter


STEPS = (*(step.value for step in Step), *(step.value for step in ExportStep))
"""Every place with a name."""


def places_of(kills: int) -> list[str]:
    """So many places to kill at: each step in turn, and one at a random time after each three."""
    places: list[str] = []
    while len(places) < kills:
        for number, step in enumerate(STEPS):
            places += [step] if number % 3 else ["random", step]
    return places[:kills]


def main(arguments: Sequence[str]) -> int:
    """`python tests/storm.py --kills 300 --store sqlite --store postgresql`; exit code 1 on any violation."""
    parser = argparse.ArgumentParser(description="Kills a gateway under load and checks the ledger.")
    parser.add_argument("--kills", type=int, default=200, help="for each store")
    parser.add_argument("--store", action="append", choices=["sqlite", "postgresql"])
    parser.add_argument("--seed", type=int, default=int(time.time()))
    chosen = parser.parse_args(arguments)
    random.seed(chosen.seed)
    wrong = 0
    for store in chosen.store or ["sqlite", "postgresql"]:
        with (
            tempfile.TemporaryDirectory(prefix="skillcell-storm-") as home,
            storm_gateway(Path(home), store) as (gateway, meter),
        ):
            began = time.monotonic()
            account = asyncio.run(Storm(gateway, meter).run(places_of(chosen.kills)))
            print(f"== {store}, seed {chosen.seed}, {time.monotonic() - began:.0f} s")
            print("\n".join(account.lines()), flush=True)
            wrong += len(account.violations)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    sys.exit(main(sys.argv[1:]))
