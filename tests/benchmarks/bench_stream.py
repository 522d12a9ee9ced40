"""How soon a byte that a Skill wrote is in its caller's hands, and how fast bytes go through one call.

Run as root: `python tests/benchmarks/bench_stream.py [oci|docker]`. A Skill writes the machine's monotonic clock, which
the sandbox shares, every 20 ms; the caller compares it with its own on arrival, in the same run with a bare grpc.aio
stream whose server does the same. The rate is that of 256 MiB through one call, beside as much through a bare stream.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "runtime")]

import grpc  # noqa: E402

from e2e.gateway import Gateway, new_gateway, serving  # noqa: E402
from one_machine import write_skill  # noqa: E402
from skillcell.core.events import Stdout  # noqa: E402
from skillcell.core.types import LimitRequest  # noqa: E402

TICKS = 200
CHUNK = 65_536
TOTAL = 256 << 20
SKILL = {
    "SKILL.md": "---\nname: stream\ndescription: Writes.\n---\n",
    "ticks.py": f"""\
import os, time
for _ in range({TICKS}):
    os.write(1, b"%d\\n" % time.monotonic_ns())
    time.sleep(0.02)
""",
    "flood.py": f"import os\nblock = bytes({CHUNK})\nfor _ in range({TOTAL // CHUNK}):\n    os.write(1, block)\n",
}


async def ticks(_: bytes, __: object) -> AsyncIterator[bytes]:
    for _ in range(TICKS):
        yield b"%d\n" % time.monotonic_ns()
        await asyncio.sleep(0.02)


async def flood(_: bytes, __: object) -> AsyncIterator[bytes]:
    block = bytes(CHUNK)
    for _ in range(TOTAL // CHUNK):
        yield block


async def bare(method: str) -> list[tuple[int, bytes]]:
    """(arrival, bytes) of a stream that nothing of ours is in."""
    server = grpc.aio.server()
    handlers = {name: grpc.unary_stream_rpc_method_handler(work) for name, work in (("t", ticks), ("f", flood))}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bare", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call: Any = channel.unary_stream(f"/bare/{method}")(b"")
        got = [(time.monotonic_ns(), len(data) if method == "f" else data) async for data in call]
    await server.stop(None)
    return got


async def through(gateway: Gateway, entrypoint: str) -> list[tuple[int, bytes]]:
    limits = LimitRequest(output_bytes=2 * TOTAL)
    async with gateway.client() as client:
        return [
            (time.monotonic_ns(), len(event.kind.data) if entrypoint == "flood" else event.kind.data)
            async for event in client.execute("dev/stream", entrypoint=entrypoint, limits=limits)
            if isinstance(event.kind, Stdout)
        ]


def delays(got: list[tuple[int, Any]]) -> str:
    """Milliseconds from the write to its arrival."""
    late = sorted((arrived - int(data.split()[0])) / 1e6 for arrived, data in got)
    return f"p50 {statistics.median(late):6.2f} ms   p99 {late[int(len(late) * 0.99)]:6.2f} ms"


def rate(got: list[tuple[int, Any]]) -> float:
    """MB a second, from the first arrival to the last."""
    return sum(size for _, size in got[1:]) / 1e6 / ((got[-1][0] - got[0][0]) / 1e9)


async def main(driver: str) -> None:
    with tempfile.TemporaryDirectory() as home, serving(new_gateway(Path(home), driver)) as gateway:
        write_skill(Path(home) / "stream", SKILL)
        async with gateway.client() as client:
            await client.publish(Path(home) / "stream", as_name="dev/stream")
        await through(gateway, "ticks")
        print(f"first byte, {driver}:  {delays(await through(gateway, 'ticks'))}")
        print(f"first byte, bare: {delays(await bare('t'))}")
        ours, theirs = rate(await through(gateway, "flood")), rate(await bare("f"))
        print(f"rate: {driver} {ours:.0f} MB/s, bare {theirs:.0f} MB/s, ratio {ours / theirs:.2f}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "oci"))
