"""Collects what has been kept long enough: the events and artifacts of calls that have ended."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from skillcell.core.errors import Fault

log = structlog.get_logger("skillcell.retention")


@dataclass(frozen=True, slots=True)
class Retention:
    """Directories named by execution, below each of `roots`; those of live calls are left alone."""

    roots: tuple[Path, ...]
    kept_seconds: float
    is_live: Callable[[str], bool]

    async def run(self, every_seconds: float) -> None:
        """Collects for ever."""
        while True:
            await asyncio.sleep(every_seconds)
            await asyncio.to_thread(self.collect, time.time())

    def collect(self, now: float) -> int:
        """Removes what ended over `kept_seconds` before `now` (seconds, wall clock), and returns how much."""
        removed = 0
        for root in self.roots:
            with suppress(FileNotFoundError):
                for directory in root.iterdir():
                    if not self.is_live(directory.name) and now - _newest(directory) > self.kept_seconds:
                        shutil.rmtree(directory, ignore_errors=True)
                        removed += 1
        if removed:
            log.info("retention", removed=removed)
        return removed


async def clean_for_ever(clean: Callable[[], Awaitable[int]], every_seconds: float) -> None:
    """Runs a collector at once and then again and again; one that can't now is tried the next time."""
    while True:
        try:
            removed = await clean()
            if removed:
                log.info("cleaned", removed=removed)
        except Fault as fault:
            log.warning("clean_waits", reason=fault.reason, why=fault.message)
        await asyncio.sleep(every_seconds)


def _newest(directory: Path) -> float:
    """When something in it was last written."""
    with suppress(OSError):
        return max((entry.stat().st_mtime for entry in directory.iterdir()), default=directory.stat().st_mtime)
    return time.time()
