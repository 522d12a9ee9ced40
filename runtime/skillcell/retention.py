"""Collects what has been kept long enough: the events and artifacts of calls that have ended."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from skillcell.core.errors import Fault
from skillcell.core.types import SECOND_NS
from skillcell.core.wall_history import WallHistory

log = structlog.get_logger("skillcell.retention")


@dataclass(frozen=True, slots=True)
class Retention:
    """Directories named by execution, below each of `roots`; those of live calls are left alone."""

    roots: tuple[Path, ...]
    kept_seconds: float
    is_live: Callable[[str], bool]
    history: WallHistory
    """Tells ages, whatever is done to the machine's clock."""

    async def run(self, every_seconds: float) -> None:
        """Collects for ever."""
        while True:
            await asyncio.sleep(every_seconds)
            await asyncio.to_thread(self.collect)

    def collect(self) -> int:
        """Removes what ended over `kept_seconds` ago, and returns how much."""
        self.history.look()
        removed = 0
        for root in self.roots:
            with suppress(FileNotFoundError):
                for directory in root.iterdir():
                    if not self.is_live(directory.name) and self._age_ns(directory) > self.kept_seconds * SECOND_NS:
                        shutil.rmtree(directory, ignore_errors=True)
                        removed += 1
        if removed:
            log.info("retention", removed=removed)
        return removed

    def _age_ns(self, directory: Path) -> int:
        """Since something in it was last written; 0 where that can't be told."""
        with suppress(OSError):
            stamps = (entry.stat().st_mtime_ns for entry in directory.iterdir())
            return self.history.age_ns(max(stamps, default=directory.stat().st_mtime_ns))
        return 0


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
