"""The agent alone, side by side with what it replaces: `python -m bench_agent` with runtime/ and tests/ on the path.

Latency: JOB to DONE of `print(1)` in a waiting agent, against `python3 -c 'print(1)'` started and read here.
Throughput: what a Skill can push through the agent, against the same bytes through a bare pipe.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2] / "runtime"), str(Path(__file__).parents[1])]

from agent_harness import SYSTEM_PYTHON, Agent, start_agent  # noqa: E402
from skillcell.agent import frames  # noqa: E402

ROUNDS = 100
FLOOD_BYTES = 1 << 30
FLOOD = ["head", "-c", str(FLOOD_BYTES), "/dev/zero"]


def measure(agent: Agent) -> None:
    script = Path(agent.places["skill"], "one.py")
    script.write_text("print(1)\n")

    def warm() -> None:
        assert agent.run(kind="python-script", script=str(script)).stdout == b"1\n"

    def plain() -> None:
        assert subprocess.run([SYSTEM_PYTHON, "-c", "print(1)"], stdout=subprocess.PIPE, check=True).stdout == b"1\n"

    samples: dict[Callable[[], None], list[float]] = {warm: [], plain: []}
    for _ in range(ROUNDS):  # interleaved, so that both see the same machine
        for work, times in samples.items():
            began = time.perf_counter()
            work()
            times.append(time.perf_counter() - began)
    for work, times in samples.items():
        times.sort()
        print(
            f"{work.__name__:>6}: p50 {statistics.median(times) * 1e3:.2f} ms, "
            f"p99 {times[int(ROUNDS * 0.99)] * 1e3:.2f} ms"
        )
    print(f"ratio of medians warm / plain: {statistics.median(samples[warm]) / statistics.median(samples[plain]):.2f}")
    through, bare = flood(agent), pipe()
    print(
        f"output: {through / 1e6:.0f} MB/s through the agent, {bare / 1e6:.0f} MB/s through a bare pipe, "
        f"ratio {through / bare:.2f}"
    )


def flood(agent: Agent) -> float:
    began = time.perf_counter()
    agent.deliver(agent.job(argv=FLOOD))
    size = sum(len(payload) for kind, payload in agent.frames() if kind == frames.STDOUT)
    assert size == FLOOD_BYTES
    return size / (time.perf_counter() - began)


def pipe() -> float:
    began = time.perf_counter()
    with subprocess.Popen(FLOOD, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdout is not None
        size = 0
        while data := process.stdout.read(frames.CHUNK_BYTES):
            size += len(data)
    assert size == FLOOD_BYTES
    return size / (time.perf_counter() - began)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        agent = start_agent(Path(directory))
        measure(agent)
        agent.close()
