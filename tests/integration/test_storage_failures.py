"""What the ledger keeps when its process or its disk dies: all that was acknowledged, once."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ledger_stores import BILLER, postgresql, postgresql_installed
from skillcell.metering.ledger import Ledger
from skillcell.storage.database import Database

TESTS = Path(__file__).resolve().parents[1]
CHILD = [sys.executable, str(TESTS / "ledger_child.py")]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{TESTS.parent / 'runtime'}:{TESTS}"}
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")


async def kill_while_writing(url: str, lines: int) -> list[dict[str, Any]]:
    """Starts a storm, kills it with SIGKILL once it said so many lines; all that it said."""
    child = await asyncio.create_subprocess_exec(*CHILD, "storm", url, stdout=asyncio.subprocess.PIPE, env=ENVIRONMENT)
    assert child.stdout is not None
    heard = [await child.stdout.readline() for _ in range(lines)]
    child.send_signal(signal.SIGKILL)
    heard += (await child.stdout.read()).splitlines(keepends=True)
    assert await child.wait() == -signal.SIGKILL
    return [json.loads(line) for line in heard if line.endswith(b"\n")]


async def check_nothing_lost_or_doubled(url: str, kills: int, lines: int) -> None:
    rng = random.Random(7)
    admitted: set[str] = set()
    settled: dict[str, tuple[int, str]] = {}
    for _ in range(kills):
        for said in await kill_while_writing(url, rng.randrange(1, lines)):
            if "admitted" in said:
                admitted.add(said["admitted"])
            else:
                settled[said["settled"]] = (said["sequence"], said["hash"])
        async with await Database.open(url) as database:
            ledger = Ledger(database)
            await ledger.check()
            found = await ledger.verify()
            assert found.whole, found.problems
            stored: dict[str, tuple[int, str]] = {}
            records = await ledger.list_usage_records(BILLER, 0, 1000)
            while records:
                for record in records:
                    assert record.execution_id not in stored
                    stored[record.execution_id] = (record.sequence, record.hash.hex())
                records = await ledger.list_usage_records(BILLER, records[-1].sequence, 1000)
            open_calls = {execution.admission.execution_id for execution in await ledger.unsettled()}
            assert settled.items() <= stored.items()
            assert admitted <= stored.keys() | open_calls
            assert not stored.keys() & open_calls
    assert settled


@pytest.mark.timeout(180)
async def test_kill_9_loses_nothing_acknowledged_and_doubles_nothing_on_sqlite(tmp_path: Path) -> None:
    await check_nothing_lost_or_doubled(f"sqlite:///{tmp_path}/ledger.db", kills=12, lines=200)


@pytest.mark.timeout(180)
async def test_kill_9_loses_nothing_acknowledged_and_doubles_nothing_on_postgresql() -> None:
    if not postgresql_installed():
        pytest.skip("PostgreSQL is not installed (package: postgresql)")
    with postgresql() as cluster:
        await check_nothing_lost_or_doubled(cluster.new_url(), kills=5, lines=200)


def on_a_small_disk(tmp_path: Path, what: str, prepare: str = "true") -> list[dict[str, Any]]:
    """Runs the child on a 2 MB disk that exists in a mount namespace of its own alone."""
    script = f'mount -t tmpfs -o size=2m none "$0" && {prepare} && exec "$@"'
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, str(tmp_path), *CHILD, what]
    ended = subprocess.run(
        [*command, f"sqlite:///{tmp_path}/ledger.db"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return [json.loads(line) for line in ended.stdout.splitlines()]


@AS_ROOT
def test_a_full_disk_refuses_new_calls_and_recovers_when_it_is_freed(tmp_path: Path) -> None:
    refused, full, readable, freed, after = on_a_small_disk(tmp_path, "full_disk")
    assert (refused["refused"], refused["kind"]) == ("LEDGER_UNAVAILABLE", "UNAVAILABLE")
    assert str(tmp_path) not in refused["message"]
    assert full == {"writable": False, "probe": False}
    assert readable == {"readable": 1}
    assert freed == {"probe": True, "writable": True}
    assert after == {"whole": True, "records": 1, "kept": True}


@AS_ROOT
def test_a_read_only_disk_refuses_to_open(tmp_path: Path) -> None:
    assert on_a_small_disk(tmp_path, "read_only", prepare='mount -o remount,ro "$0"') == [
        {"refused": "LEDGER_UNAVAILABLE"}
    ]
