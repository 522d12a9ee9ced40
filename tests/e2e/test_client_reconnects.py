"""A client whose connection is cut, again and again, sees every event of its call once and in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress

import pytest

from one_machine import Machine, one_machine, write_skill
from skillcell.client import RetryPolicy, SkillcellClient, Unavailable
from skillcell.core.events import Stdout
from skillcell.core.types import Outcome

LINES = 60
SKILL = {
    "SKILL.md": "---\nname: ticks\ndescription: Counts aloud.\n---\n",
    "scripts/count.py": f"""\
import time
for number in range({LINES}):
    print(number, "." * 500, flush=True)
    time.sleep(0.03)
""",
}


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with one_machine(tmp_path_factory.mktemp("home")) as served:
        write_skill(served.home / "ticks", SKILL)
        served.run("publish", "ticks", "--as", "dev/ticks")
        yield served


class Cable:
    """A TCP proxy that cuts its next connections after so many bytes of the gateway's."""

    def __init__(self, target: str) -> None:
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self.cut_after: list[int] = []
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        left = self.cut_after.pop(0) if self.cut_after else 1 << 60
        there, back = await asyncio.open_connection(self._host, self._port)
        outward = asyncio.create_task(_pump(reader, back, 1 << 60))
        try:
            await _pump(there, writer, left)
        finally:
            outward.cancel()
            writer.transport.abort()
            back.transport.abort()
            with suppress(asyncio.CancelledError):
                await outward


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, left: int) -> None:
    with suppress(ConnectionError):
        while left > 0 and (data := await source.read(min(left, 65536))):
            left -= len(data)
            sink.write(data)
            await sink.drain()


@asynccontextmanager
async def cable(target: str) -> AsyncIterator[tuple[Cable, str]]:
    proxy = Cable(target)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    try:
        yield proxy, f"{host}:{port}"
    finally:
        server.close()


async def test_a_cut_connection_loses_and_doubles_nothing(machine: Machine) -> None:
    note = machine.note
    async with cable(note["address"]) as (proxy, address):
        proxy.cut_after = [4000, 9000, 700, 6000]
        async with SkillcellClient(address, api_key=note["api_key"]) as client:
            events = [event async for event in client.execute("dev/ticks")]
    assert proxy.connections == 5
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    said = b"".join(event.kind.data for event in events if isinstance(event.kind, Stdout))
    assert [int(line.split()[0]) for line in said.splitlines()] == list(range(LINES))
    assert len({event.execution_id for event in events}) == 1
    assert len(machine.json("usage", "list", "--execution", events[0].execution_id, "--json")) == 1


async def test_a_cut_before_the_first_answer_starts_one_call(machine: Machine) -> None:
    note = machine.note
    before = len(machine.json("executions", "list", "--json"))
    async with cable(note["address"]) as (proxy, address):
        proxy.cut_after = [60]
        async with SkillcellClient(address, api_key=note["api_key"]) as client:
            result = await client.call("dev/ticks")
    assert result.outcome is Outcome.SUCCEEDED
    assert proxy.connections == 2
    assert len(machine.json("executions", "list", "--json")) == before + 1


async def test_without_a_request_id_a_cut_ends_the_call(machine: Machine) -> None:
    note = machine.note
    policy = RetryPolicy(reattach_seconds=0)
    async with cable(note["address"]) as (proxy, address):
        proxy.cut_after = [4000, 0, 0, 0, 0, 0, 0, 0]
        async with SkillcellClient(address, api_key=note["api_key"], retry=policy) as client:
            with pytest.raises(Unavailable):
                await client.call("dev/ticks", request_id="")
    async with SkillcellClient(note["address"], api_key=note["api_key"]) as client:
        (newest,) = (await client.list(page_size=1)).items
        events = [event async for event in client.watch(newest.id)]
        ended = (await client.get(newest.id)).completed
    assert ended is not None
    assert events[-1].kind == ended
    assert ended.outcome is Outcome.CANCELED
