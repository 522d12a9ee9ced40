"""The durable side of delivery: cursors, what is under way, dead letters. Every write returns when it is durable.

The order is what makes resends safe. `mark` is kept before the first byte is sent, so that after any crash it is known
what the sink may have, since when, and under which envelope. `acknowledge` and `bury` move the cursor after the answer.
A cursor never goes back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import Connection, Delete, Update, and_, delete, func, insert, select, update

from skillcell.core.sinks import DeadLetter, HoldCause, SinkState
from skillcell.metering.canonical import chain_hash
from skillcell.metering.export.cursors import Cursor, Lease, cursor_of, letter_of
from skillcell.metering.export.events import Envelope, UsageEvent, event_of
from skillcell.storage.database import Database
from skillcell.storage.tables import ledger_head, usage_records
from skillcell.storage.tables_export import export_dead_letters, export_sinks, ledger_identity

_LONGEST_TEXT = 2000


class BrokenRecord(Exception):
    """The ledger's next record is not what was hashed; its message names the row."""


class SinkStore:
    """Over one `Database`, which stays its owner's to close. Raises Fault when the store fails."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def ledger_id(self) -> str:
        """Made with the store, the same for ever."""
        return await self._database.read(
            lambda connection: str(connection.execute(select(ledger_identity.c.ledger_id)).scalar_one())
        )

    async def register(self, name: str, *, at_head: bool) -> None:
        """Makes a sink that is new, at the ledger's beginning or at its head; one that is known stays as it is."""

        def work(connection: Connection) -> None:
            if _find(connection, name) is None:
                at = _head(connection) if at_head else 0
                connection.execute(
                    insert(export_sinks).values(
                        name=name, state=SinkState.RUNNING.value, hold_cause="", hold_reason="", cursor=at,
                        sent_sequence=at, source="", event_type="", attempts=0, last_result="", refused_in_a_row=0,
                        owner="",
                    )
                )  # fmt: skip

        await self._database.write(work)

    async def cursors(self) -> tuple[tuple[Cursor, ...], int, dict[str, int]]:
        """Every sink there ever was, the ledger's head, and how many dead letters each has; all of one moment."""

        def look(connection: Connection) -> tuple[tuple[Cursor, ...], int, dict[str, int]]:
            rows = connection.execute(select(export_sinks).order_by(export_sinks.c.name)).all()
            counts = select(export_dead_letters.c.sink, func.count()).group_by(export_dead_letters.c.sink)
            dead = {str(sink): int(count) for sink, count in connection.execute(counts)}
            return tuple(cursor_of(row) for row in rows), _head(connection), dead

        return await self._database.read(look)

    async def load(self, name: str) -> Cursor:
        """KeyError for a sink that was never registered."""
        found = await self._database.read(lambda connection: _find(connection, name))
        if found is None:
            raise KeyError(name)
        return found

    async def events(
        self, after: int, through: int | None, envelope: Envelope, *, count: int, size: int
    ) -> tuple[UsageEvent, ...]:
        """The next records as events, in order, up to `through`; at most `count` of them and `size` bytes, but one.

        BrokenRecord when the first of them isn't what was hashed; what comes before a broken one is returned.
        """
        columns = usage_records.c
        query = select(columns.sequence, columns.body, columns.previous_hash, columns.hash)
        query = query.where(columns.sequence > after).order_by(columns.sequence).limit(count)
        if through is not None:
            query = query.where(columns.sequence <= through)

        def look(connection: Connection) -> tuple[UsageEvent, ...]:
            found: list[UsageEvent] = []
            total = 0
            for number, row in enumerate(connection.execute(query), start=after + 1):
                try:
                    event = _event(row, number, envelope)
                except BrokenRecord:
                    if found:
                        break
                    raise
                total += len(event.body) + 1
                if found and total > size:
                    break
                found.append(event)
            return tuple(found)

        return await self._database.read(look)

    async def mark(self, name: str, through: int, envelope: Envelope, lease: Lease) -> bool:
        """Keeps that everything up to `through` may be at the sink from now on. False: don't send; another gateway
        delivers, or the sink is held."""

        def work(connection: Connection) -> bool:
            at = _leased(connection, name, lease)
            if at is None:
                return False
            values: dict[str, Any] = {"attempts": at.attempts + 1, "last_attempt_at": lease.now}
            if through > at.sent_sequence:
                values["sent_sequence"] = through
            if not at.unacknowledged:
                values |= {"sent_at": lease.now, "source": envelope.source, "event_type": envelope.type}
            _set(connection, name, values)
            return True

        return await self._database.write(work)

    async def acknowledge(self, name: str, through: int, result: str) -> None:
        """The sink has everything up to `through`."""

        def work(connection: Connection) -> None:
            _set(connection, name, _advanced(connection, name, through) | {
                "attempts": 0, "last_result": result[:_LONGEST_TEXT], "refused_in_a_row": 0
            })  # fmt: skip

        await self._database.write(work)

    async def bury(self, letter: DeadLetter) -> int:
        """Keeps a refused event and moves past it, in one transaction; how many were refused in a row by now."""

        def work(connection: Connection) -> int:
            _put(connection, letter)
            values = _advanced(connection, letter.sink, letter.sequence)
            at = _find(connection, letter.sink)
            in_a_row = (at.refused_in_a_row if at is not None else 0) + 1
            _set(connection, letter.sink, values | {
                "attempts": 0, "last_result": letter.reason[:_LONGEST_TEXT], "refused_in_a_row": in_a_row
            })  # fmt: skip
            return in_a_row

        return await self._database.write(work)

    async def note(self, name: str, result: str) -> None:
        """What came of the last attempt."""
        await self._database.write(lambda connection: _set(connection, name, {"last_result": result[:_LONGEST_TEXT]}))

    async def hold(self, name: str, cause: HoldCause, reason: str) -> None:
        """Nothing is sent until `release`."""
        values = {"state": SinkState.HELD.value, "hold_cause": cause.value, "hold_reason": reason[:_LONGEST_TEXT]}
        await self._database.write(lambda connection: _set(connection, name, values))

    async def release(self, name: str, decide: Callable[[Cursor], Cursor]) -> tuple[Cursor, Cursor] | None:
        """Ends a hold: `decide` gets the sink as it is and returns what `cursor` and `sent_at` shall be, or raises.

        Before and after; None for a sink that is not there.
        """

        def work(connection: Connection) -> tuple[Cursor, Cursor] | None:
            before = _find(connection, name)
            if before is None:
                return None
            wanted = decide(before)
            values = {
                "state": SinkState.RUNNING.value, "hold_cause": "", "hold_reason": "", "cursor": wanted.cursor,
                "sent_at": wanted.sent_at, "attempts": 0, "refused_in_a_row": 0,
            }  # fmt: skip
            _set(connection, name, values)
            after = _find(connection, name)
            assert after is not None
            return before, after

        return await self._database.write(work)

    async def hand_over(self, name: str, owner: str) -> None:
        """Lets go of a lease, so that another gateway need not wait for its end."""
        await self._database.write(
            lambda connection: connection.execute(
                update(export_sinks)
                .where(export_sinks.c.name == name, export_sinks.c.owner == owner)
                .values(owner="", owned_until=None)
            ).close()
        )

    async def dead_letters(
        self, name: str, after: int = 0, limit: int = 50, *, redrive: bool | None = None
    ) -> tuple[DeadLetter, ...]:
        """In the ledger's order; only those that wait to be sent again, or don't, where that is asked."""
        columns = export_dead_letters.c
        query = select(export_dead_letters).where(columns.sink == name, columns.sequence > after)
        if redrive is not None:
            query = query.where(columns.state == _letter_state(redrive))
        query = query.order_by(columns.sequence).limit(limit)
        return await self._database.read(lambda connection: tuple(letter_of(row) for row in connection.execute(query)))

    async def redrive(self, name: str, sequences: Sequence[int]) -> tuple[int, ...]:
        """Has dead letters sent again, all of a sink's where none are named; the missing ones of those named."""
        again = update(export_dead_letters).values(state=_letter_state(True))
        return await self._database.write(partial(_each, name=name, sequences=sequences, change=again))

    async def discard(self, name: str, sequences: Sequence[int]) -> tuple[int, ...]:
        """Forgets dead letters; the missing ones of those named, and then none is forgotten."""
        return await self._database.write(
            partial(_each, name=name, sequences=sequences, change=delete(export_dead_letters))
        )

    async def mark_letter(self, letter: DeadLetter, lease: Lease) -> datetime | None:
        """Keeps that a letter may be at the sink; since when, or None where it must not be sent, as for `mark`."""
        mine = _is(letter.sink, letter.sequence)

        def work(connection: Connection) -> datetime | None:
            if _leased(connection, letter.sink, lease) is None:
                return None
            columns = export_dead_letters.c
            sent_at = connection.execute(select(columns.sent_at).where(mine)).scalar_one_or_none() or lease.now
            connection.execute(
                update(export_dead_letters)
                .where(mine)
                .values(sent_at=sent_at, last_at=lease.now, attempts=columns.attempts + 1)
            )
            return sent_at

        return await self._database.write(work)

    async def delivered(self, letter: DeadLetter, result: str) -> None:
        """The sink has it after all."""

        def work(connection: Connection) -> None:
            connection.execute(delete(export_dead_letters).where(_is(letter.sink, letter.sequence)))
            _set(connection, letter.sink, {"attempts": 0, "last_result": result[:_LONGEST_TEXT]})

        await self._database.write(work)

    async def refused_again(self, letter: DeadLetter) -> None:
        """It stays dead, with the new reason."""
        values = {"state": _letter_state(False), "status": letter.status, "reason": letter.reason[:_LONGEST_TEXT],
                  "sent_at": None}  # fmt: skip
        await self._database.write(
            lambda connection: connection.execute(
                update(export_dead_letters).where(_is(letter.sink, letter.sequence)).values(values)
            ).close()
        )


def _event(row: Any, number: int, envelope: Envelope) -> UsageEvent:
    if row.sequence != number or chain_hash(row.previous_hash, row.body) != row.hash:
        raise BrokenRecord(f"record {number} is not what was settled; verify the ledger")
    try:
        return event_of(row.body, row.previous_hash, row.hash, envelope)
    except (ValueError, KeyError, TypeError) as error:
        raise BrokenRecord(f"record {number} has no event: {error}") from error


def _find(connection: Connection, name: str) -> Cursor | None:
    row = connection.execute(select(export_sinks).where(export_sinks.c.name == name)).one_or_none()
    return None if row is None else cursor_of(row)


def _leased(connection: Connection, name: str, lease: Lease) -> Cursor | None:
    """Takes or keeps the lease, and returns the sink as it was; None where another has it, or the sink is held."""
    at = _find(connection, name)
    if at is None or at.state is not SinkState.RUNNING or at.owned_by_another(lease.owner, lease.now):
        return None
    _set(connection, name, {"owner": lease.owner, "owned_until": lease.until})
    return at


def _advanced(connection: Connection, name: str, through: int) -> dict[str, Any]:
    at = _find(connection, name)
    if at is None or through <= at.cursor:
        return {}
    after = replace(at, cursor=through, sent_sequence=max(through, at.sent_sequence))
    values: dict[str, Any] = {"cursor": after.cursor, "sent_sequence": after.sent_sequence}
    return values if after.unacknowledged else values | {"sent_at": None}


def _set(connection: Connection, name: str, values: dict[str, Any]) -> None:
    connection.execute(update(export_sinks).where(export_sinks.c.name == name).values(values))


def _head(connection: Connection) -> int:
    return int(connection.execute(select(ledger_head.c.sequence)).scalar_one())


def _letter_state(redrive: bool) -> str:
    return "REDRIVE" if redrive else "DEAD"


def _is(sink: str, sequence: int) -> Any:
    return and_(export_dead_letters.c.sink == sink, export_dead_letters.c.sequence == sequence)


def _each(connection: Connection, name: str, sequences: Sequence[int], change: Update | Delete) -> tuple[int, ...]:
    """Changes the letters that are named, or all; what is missing of them, and then nothing is changed."""
    columns = export_dead_letters.c
    mine = columns.sink == name
    if sequences:
        mine = and_(mine, columns.sequence.in_(list(sequences)))
        there = set(connection.execute(select(columns.sequence).where(mine)).scalars())
        missing = tuple(sequence for sequence in sequences if sequence not in there)
        if missing:
            return missing
    connection.execute(change.where(mine))
    return ()


def _put(connection: Connection, letter: DeadLetter) -> None:
    connection.execute(delete(export_dead_letters).where(_is(letter.sink, letter.sequence)))
    connection.execute(
        insert(export_dead_letters).values(
            sink=letter.sink,
            sequence=letter.sequence,
            event_id=letter.event_id,
            body=letter.body,
            status=letter.status,
            reason=letter.reason[:_LONGEST_TEXT],
            attempts=letter.attempts,
            first_at=letter.first_at,
            last_at=letter.last_at,
            state=_letter_state(False),
        )
    )
