"""What metering costs, beside the bare fsync rate of the same disk in the same run.

    python tests/benchmarks/bench_settle.py [--url sqlite:///PATH] [--writers 64] [--seconds 5]

- bare: one thread that writes 4 KiB and calls fdatasync, again and again: the most single commits this disk gives.
- one writer: ADMIT and SETTLE alone, one after the other; what each adds beyond a bare commit of the same store.
- many writers: all at once; group commit lets them share fsyncs.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sqlalchemy import Connection, text

from ledger_stores import admission, settlement
from skillcell.metering.ledger import Ledger
from skillcell.storage.database import Database


def bare_fsyncs(directory: Path, seconds: float) -> list[float]:
    """Milliseconds of each write and fdatasync of one page, appended to one file."""
    taken = []
    with (directory / "bare").open("wb", buffering=0) as file:
        until = time.perf_counter() + seconds
        while (start := time.perf_counter()) < until:
            file.write(bytes(4096))
            os.fdatasync(file.fileno())
            taken.append((time.perf_counter() - start) * 1000)
    return taken


async def alone(database: Database, seconds: float) -> dict[str, list[float]]:
    """Milliseconds of each kind of write with nobody beside it."""
    ledger = Ledger(database)

    def smallest(connection: Connection) -> None:
        connection.execute(text("UPDATE ledger_head SET id = 1"))

    taken: dict[str, list[float]] = {"bare commit": [], "ADMIT": [], "SETTLE": []}
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        given = admission()
        end = settlement(given)
        for kind, write in (
            ("bare commit", lambda: database.write(smallest)),
            ("ADMIT", lambda given=given: ledger.admit(given)),
            ("SETTLE", lambda end=end: ledger.settle(end)),
        ):
            start = time.perf_counter()
            await write()
            taken[kind].append((time.perf_counter() - start) * 1000)
    return taken


async def together(database: Database, writers: int, seconds: float) -> tuple[float, float, list[float]]:
    """Settles a second, settles per commit, and milliseconds of each settle, with all writers at once."""
    ledger = Ledger(database)
    given = [admission(request_id="") for _ in range(int(seconds * 4000))]
    ends = iter([settlement(one) for one in given])
    for start in range(0, len(given), 1000):
        await asyncio.gather(*[ledger.admit(one) for one in given[start : start + 1000]])
    taken: list[float] = []
    commits = database.commits
    begin = time.perf_counter()

    async def settle() -> None:
        for end in ends:
            start = time.perf_counter()
            await ledger.settle(end)
            now = time.perf_counter()
            taken.append((now - start) * 1000)
            if now - begin > seconds:
                return

    await asyncio.gather(*[settle() for _ in range(writers)])
    elapsed = time.perf_counter() - begin
    assert (await ledger.head()).sequence >= len(taken)
    return len(taken) / elapsed, len(taken) / (database.commits - commits), taken


def show(name: str, taken: list[float]) -> None:
    quantiles = statistics.quantiles(taken, n=100)
    print(f"{name:<14} p50 {quantiles[49]:7.2f} ms   p99 {quantiles[98]:7.2f} ms   n={len(taken)}")


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url")
    parser.add_argument("--writers", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as name:
        directory = Path(name)
        bare = bare_fsyncs(directory, options.seconds / 2)
        show("fdatasync", bare)
        async with await Database.open(options.url or f"sqlite:///{directory}/ledger.db") as database:
            singles = await alone(database, options.seconds)
            for kind, taken in singles.items():
                show(kind, taken)
            floor = statistics.median(singles["bare commit"])
            for kind in ("ADMIT", "SETTLE"):
                print(f"{kind} adds {statistics.median(singles[kind]) - floor:.2f} ms beyond a bare commit (p50)")
            rate, shared, taken = await together(database, options.writers, options.seconds)
            show(f"{options.writers} writers", taken)
            bare_rate = 1000 / statistics.fmean(bare)
            print(f"{rate:.0f} settles/s in commits of {shared:.1f}; bare fsyncs {bare_rate:.0f}/s")


if __name__ == "__main__":
    asyncio.run(main())
