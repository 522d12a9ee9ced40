"""In the background: verifies the ledger again and again, and publishes its head.

After the start everything is verified once, then what came since, and everything again now and then. What a reader
could get wrong: it must cost callers nothing, so it reads in small chunks, rests several times as long as it worked,
and never goes near the writer but to keep what it found; and while a defect is known everything is verified each
time, since that alone can show that the ledger is whole again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Protocol

import structlog
from pydantic import BaseModel, ConfigDict, Field

from skillcell.core.errors import Fault
from skillcell.metering.heads import HeadFile, written
from skillcell.metering.records import Head
from skillcell.metering.soundness import Soundness
from skillcell.metering.verification import Verification, Walk

log = structlog.get_logger("skillcell.ledger")
_REST = 4
"""Resting for four times as long as it worked leaves four fifths of a core to others, and of a reader's time."""
_MOST_REST_SECONDS = 1.0
_BY = "the verification in the background"


class Audited(Protocol):
    """What is verified."""

    @property
    def soundness(self) -> Soundness: ...

    async def check(self) -> Head:
        """Looks at the ends and at what others found, and returns the head."""
        ...

    async def compare(self, published: Head | None) -> None:
        """Looks whether it still holds a head that was published; what that says stops new calls."""
        ...

    async def resume(self, walk: Walk) -> None:
        """Makes a walk that found nothing ready to go on."""
        ...

    async def examine(self, walk: Walk, by: str, progress: Callable[[int], Awaitable[None] | None]) -> Verification:
        """Carries the walk to the end; what it finds stops new calls."""
        ...


class AuditSettings(BaseModel):
    """How often."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seconds: float = Field(default=60.0, gt=0, description="Between two verifications of what is new.")
    full_seconds: float = Field(default=86_400.0, gt=0, description="Between two verifications of everything.")


class Auditor:
    """`await auditor.begin()` before calls are taken, then `run` in a task of its own."""

    def __init__(self, ledger: Audited, settings: AuditSettings, file: HeadFile | None = None) -> None:
        self._ledger = ledger
        self._settings = settings
        self._file = file
        self._walk: Walk | None = None
        self._full_due = 0.0
        self._published = Head(0, b"")

    async def begin(self) -> None:
        """The quick look, and what was published against it. FAILED_PRECONDITION for a file that holds no heads."""
        await self._ledger.check()
        await self._compare()

    async def run(self) -> None:
        """For ever; a store that can't be read is tried again the next time."""
        while True:
            try:
                await self.look()
            except Fault as fault:
                log.warning("verification_waits", reason=fault.reason, why=fault.message)
            except Exception:
                log.exception("verification_failed")
                self._walk = None
            await asyncio.sleep(self._settings.seconds)

    async def look(self) -> None:
        """One round: the ends, what was published, what is new or everything, and then the head is published."""
        head = await self._ledger.check()
        await self._compare()
        await self._verify()
        if not self._ledger.soundness.problems:
            await self._publish(head)

    async def _verify(self) -> None:
        walk, now = self._walk, time.monotonic()
        if walk is None or now >= self._full_due or self._ledger.soundness.problems:
            walk, self._full_due = Walk(), now + self._settings.full_seconds
        else:
            await self._ledger.resume(walk)
        self._walk = None
        result = await self._ledger.examine(walk, _BY, _Pace())
        if not result.own:
            self._walk = walk

    async def _compare(self) -> None:
        await self._ledger.compare(await self._last())

    async def _last(self) -> Head | None:
        if self._file is None:
            return None
        try:
            return await asyncio.to_thread(self._file.last)
        except OSError as error:
            log.error("ledger_head_unread", file=str(self._file.path), why=error.strerror)
            return None

    async def _publish(self, head: Head) -> None:
        if head == self._published or not head.sequence:
            return
        log.info("ledger_head", sequence=head.sequence, hash=head.hash.hex(), head=written(head))
        self._published = head
        if self._file is None:
            return
        try:
            await asyncio.to_thread(self._file.append, head, datetime.now(UTC))
        except OSError as error:
            log.error("ledger_head_unpublished", file=str(self._file.path), why=error.strerror)
            self._published = Head(0, b"")


class _Pace:
    """Called after each chunk: rests in proportion to what the chunk took."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    async def __call__(self, _records: int) -> None:
        await asyncio.sleep(min((time.monotonic() - self._began) * _REST, _MOST_REST_SECONDS))
        self._began = time.monotonic()
