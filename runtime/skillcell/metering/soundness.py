"""Whether the ledger may be added to: what is known to be wrong with it, in this process and in the store.

Any defect that is found, by whom ever, stops new calls; only a verification of the whole ledger that finds none lets
them in again. What a reader could get wrong: calls that were admitted before are settled all the same, since what
they used was used; and the store may be too broken to keep what was found, so this process remembers it besides.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import structlog
from sqlalchemy import Connection, delete, insert, select

from skillcell.core.errors import Fault
from skillcell.metering.defects import Defect, Problem, ledger_broken
from skillcell.metering.records import Head
from skillcell.metering.verification import MOST_PROBLEMS, Verification
from skillcell.storage.database import Database
from skillcell.storage.tables_soundness import ledger_defects

log = structlog.get_logger("skillcell.ledger")


class Soundness:
    """Over one store. Its state is read on the event loop and changed there alone."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._problems: tuple[Problem, ...] = ()
        self._stored = False
        self._count = 0
        self._claimed: tuple[Problem, ...] = ()
        self.published: Head | None = None
        """What the last claim was made by."""
        self.verified: Head | None = None
        """Up to where the ledger was found whole, and when; None before the first verification has ended."""
        self.verified_at: datetime | None = None

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What is wrong, about a hundred at most; the first is the one that callers hear of."""
        return (*self._claimed, *self._problems)

    @property
    def claimed(self) -> tuple[Problem, ...]:
        """What the published head says of it, which no verification of what is there can overrule."""
        return self._claimed

    @property
    def count(self) -> int:
        """How much is wrong in all."""
        return max(self._count, len(self._problems)) + len(self._claimed)

    def refuse_if_broken(self) -> None:
        """DATA_LOSS `LEDGER_BROKEN` naming the row and what is wrong with it."""
        if self._claimed or self._problems:
            raise ledger_broken(self.problems[0], self.count)

    def claim(self, published: Head | None, problem: Problem | None) -> None:
        """Takes what the published head says now for all that it says."""
        self.published = published
        claimed = () if problem is None else (problem,)
        if problem is not None and claimed != self._claimed:
            self._tell(problem, 1, "the published head")
        self._claimed = claimed

    def whole_up_to(self, head: Head) -> None:
        """Notes a verification that found nothing."""
        self.verified, self.verified_at = head, datetime.now(UTC)

    async def found(self, problems: Sequence[Problem], by: str) -> None:
        """Adds what was come across."""
        new = tuple(problem for problem in problems if problem not in self._problems)
        if new:
            self._tell(new[0], len(new), by)
            self._problems = (*self._problems, *new)[:MOST_PROBLEMS]
            self._count = max(self._count, len(self._problems))
            await self._keep()

    async def conclude(self, verification: Verification, by: str, known: Sequence[Problem]) -> None:
        """Takes the result of a verification of the whole ledger for what is true of it.

        `known` was known when it began: what else was found meanwhile may lie behind it, and stays.
        """
        problems = verification.own
        if not problems:
            self.whole_up_to(verification.head)
        meanwhile = (problem for problem in self._problems if problem not in known and problem not in problems)
        problems = (*problems, *meanwhile)[:MOST_PROBLEMS]
        if problems == self._problems:
            return
        if problems:
            self._tell(problems[0], verification.found, by)
        else:
            log.warning("ledger_whole_again", records=verification.records, by=by)
        self._problems, self._count = problems, verification.found
        await self._keep()

    async def refresh(self) -> None:
        """Learns what other processes, or earlier ones, have found or found to be mended."""

        def look(connection: Connection) -> tuple[Problem, ...]:
            columns = ledger_defects.c
            query = select(columns.defect, columns.sequence, columns.detail).order_by(columns.number)
            return tuple(Problem(Defect(row.defect), row.sequence, row.detail) for row in connection.execute(query))

        stored = await self._database.read(look)
        if stored and stored != self._problems:
            self._tell(stored[0], len(stored), "an earlier verification")
            self._problems, self._count, self._stored = stored, len(stored), True
        elif not stored and self._stored:
            self._problems, self._count, self._stored = (), 0, False

    async def _keep(self) -> None:
        problems, now = self._problems, datetime.now(UTC)

        def replace(connection: Connection) -> None:
            connection.execute(delete(ledger_defects))
            if problems:
                connection.execute(
                    insert(ledger_defects),
                    [
                        {
                            "number": number,
                            "defect": problem.defect.value,
                            "sequence": problem.sequence,
                            "detail": problem.detail,
                            "found_at": now,
                        }
                        for number, problem in enumerate(problems, 1)
                    ],
                )

        try:
            await self._database.write(replace)
            self._stored = bool(problems)
        except Fault as fault:
            log.warning("ledger_defects_unwritten", reason=fault.reason)

    def _tell(self, problem: Problem, count: int, by: str) -> None:
        log.error(
            "ledger_broken",
            sequence=problem.sequence,
            defect=problem.defect.value,
            detail=problem.detail,
            defects=count,
            by=by,
        )
