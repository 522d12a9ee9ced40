"""Stores for the ledger's contract suite, and calls to put into them."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg

from skillcell.core import ids
from skillcell.core.records import Admission
from skillcell.core.types import (
    Counters,
    FaultParty,
    Isolation,
    Limits,
    Outcome,
    Principal,
    StageTimes,
    UsageRecord,
)
from skillcell.metering.records import Settlement
from skillcell.metering.usage import Ending, Traffic, usage_record

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
ACME = Principal("acme")
BILLER = Principal("billing", roles=frozenset({"biller"}))


def admission(**changes: Any) -> Admission:
    """One of tenant acme, with a request_id of its own unless changed."""
    return replace(
        Admission(
            execution_id=ids.execution_id(),
            tenant="acme",
            request_hash=b"h" * 32,
            publisher="tools",
            skill="extract",
            version="1.2.0",
            digest="sha256:" + "ab" * 32,
            entrypoint="scripts/extract.py",
            isolation=Isolation.STANDARD,
            driver="oci",
            limits=Limits(),
            admitted_at=NOON,
            instance_id="gateway-1",
            boot_id="boot-1",
            request_id=str(uuid.uuid4()),
        ),
        **changes,
    )


def ending(**changes: Any) -> Ending:
    return replace(
        Ending(
            event_id=ids.event_id(),
            outcome=Outcome.SUCCEEDED,
            fault=FaultParty.NONE,
            started_at=NOON + timedelta(milliseconds=5),
            ended_at=NOON + timedelta(milliseconds=75),
            wall_ns=80_000_000,
            exit_code=0,
            times=StageTimes(queue_ns=1_000, startup_ns=4_000_000, run_ns=70_000_001),
            at_end=Counters(40_000_000, 12_000_000, 52_000_000, 11_000_000, 3),
            traffic=Traffic(output_bytes=17, egress_in_bytes=5, egress_out_bytes=3),
        ),
        **changes,
    )


def settlement(of: Admission, **changes: Any) -> Settlement:
    return Settlement(usage_record(of, ending(**changes)), last_event=last_event, last_event_sequence=4)


def last_event(record: UsageRecord) -> bytes:
    """Shows what it was given, so that a test sees whether the ledger's sequence was in it."""
    return f"{record.execution_id} {record.sequence} {record.hash.hex()}".encode()


class PostgreSQL:
    """A cluster of its own in a temporary directory, without a network, gone at the end."""

    def __init__(self) -> None:
        binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1]
        self._root = Path(tempfile.mkdtemp(prefix="skillcell-pg-"))
        data = self._root / "data"
        self._user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        if self._user:
            shutil.chown(self._root, "postgres")
        self._run(str(binaries / "initdb"), "-D", str(data), "-A", "trust", "-U", "postgres", "--no-sync", "-E", "UTF8")
        self._control = [str(binaries / "pg_ctl"), "-D", str(data), "-w"]
        self.start()
        self._databases = 0

    def _run(self, *command: str) -> None:
        subprocess.run([*self._user, *command], check=True, cwd="/", capture_output=True, timeout=60)

    def start(self) -> None:
        options = f"-c listen_addresses= -c unix_socket_directories={self._root} -c shared_buffers=16MB"
        self._run(*self._control, "-l", str(self._root / "log"), "-o", options, "start")

    def stop(self) -> None:
        self._run(*self._control, "-m", "immediate", "stop")

    def new_url(self) -> str:
        """Of a fresh, empty database, whose locale sorts otherwise than bytes do."""
        self._databases += 1
        name = f"ledger_{self._databases}"
        with psycopg.connect(host=str(self._root), user="postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'en-US'")
        return f"postgresql://postgres@/{name}?host={self._root}"

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self._root)


def postgresql_installed() -> bool:
    return bool(list(Path("/usr/lib/postgresql").glob("*/bin/initdb")))


@contextmanager
def postgresql() -> Iterator[PostgreSQL]:
    cluster = PostgreSQL()
    try:
        yield cluster
    finally:
        cluster.close()
