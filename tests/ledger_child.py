"""A process that uses a ledger until it is killed, or while its disk fills; run by tests, never imported."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
from pathlib import Path

from ledger_stores import admission, settlement
from skillcell.core.errors import Fault
from skillcell.metering.ledger import Ledger
from skillcell.storage.database import Database


def say(**facts: object) -> None:
    """One line at once: what is said here was acknowledged, even if the next instruction never runs."""
    os.write(1, json.dumps(facts).encode() + b"\n")


async def storm(url: str) -> None:
    """Admits and settles from eight tasks for ever, saying each acknowledgement."""
    async with await Database.open(url) as database:
        ledger = Ledger(database)
        numbers = itertools.count()

        async def calls() -> None:
            for _ in numbers:
                given = admission()
                await ledger.admit(given)
                say(admitted=given.execution_id)
                record = await ledger.settle(settlement(given))
                say(settled=given.execution_id, sequence=record.sequence, hash=record.hash.hex())

        await asyncio.gather(*[calls() for _ in range(8)])


async def admits(url: str) -> None:
    """Admits for ever, saying each acknowledgement."""
    async with await Database.open(url) as database:
        ledger = Ledger(database)
        while True:
            given = admission()
            await ledger.admit(given)
            say(admitted=given.execution_id)
            await asyncio.sleep(0)


async def full_disk(url: str) -> None:
    """On a tiny disk: works, is filled, refuses, is freed, works again."""
    filler = Path(url.removeprefix("sqlite:///")).with_name("filler")
    async with await Database.open(url) as database:
        ledger = Ledger(database)
        before = admission()
        await ledger.admit(before)
        with filler.open("wb", buffering=0) as file:
            while True:
                try:
                    file.write(b"x" * 4096)
                except OSError:
                    break
        admitted = []
        for _ in range(2000):
            given = admission(labels={"padding": "x" * 2000})
            try:
                await ledger.admit(given)
            except Fault as fault:
                say(refused=fault.reason, kind=fault.kind.value, message=fault.message, admitted=len(admitted))
                break
            admitted.append(given.execution_id)
        say(writable=ledger.writable, probe=await ledger.probe())
        say(readable=len(await ledger.unsettled()) - len(admitted))
        filler.unlink()
        say(probe=await ledger.probe(), writable=ledger.writable)
        await ledger.settle(settlement(before))
        found = await ledger.verify()
        open_calls = {execution.admission.execution_id for execution in await ledger.unsettled()}
        say(whole=found.whole, records=found.records, kept=open_calls == set(admitted))


async def read_only(url: str) -> None:
    """Says how opening ends."""
    try:
        async with await Database.open(url) as database:
            say(opened=True, probe=await database.probe())
    except Fault as fault:
        say(refused=fault.reason)


if __name__ == "__main__":
    asyncio.run({"storm": storm, "full_disk": full_disk, "read_only": read_only}[sys.argv[1]](sys.argv[2]))
