"""Which gateway a command talks to, and what its user reads when that goes wrong.

An address and a key come from options, then from the environment (`SKILLCELL_ADDRESS`, `SKILLCELL_API_KEY`), then from
the note that `skillcell serve` leaves. The note's key goes to the note's address only: a key for one machine must not
reach another.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from skillcell.cli import exits
from skillcell.cli.present import json_line, printable
from skillcell.local import note_path

if TYPE_CHECKING:
    from skillcell.client import SkillcellClient, SkillcellError

DEFAULT_ADDRESS = "127.0.0.1:7433"


@dataclass(frozen=True, slots=True)
class Connection:
    """Where to, and with which key."""

    address: str
    api_key: str


def connection(server: str | None, api_key: str | None) -> Connection:
    note = _note()
    noted = note.get("address", "")
    address = server or noted or DEFAULT_ADDRESS
    return Connection(address, api_key or (note.get("api_key", "") if address == noted else ""))


def metrics_of(target: Connection) -> str:
    """HOST:PORT of the metrics of the gateway that left the note; empty for another gateway."""
    note = _note()
    return note.get("metrics", "") if note.get("address") == target.address else ""


def _note() -> dict[str, str]:
    try:
        note = json.loads(note_path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(key): str(value) for key, value in note.items()} if isinstance(note, dict) else {}


def run(
    target: Connection,
    work: Callable[[SkillcellClient], Coroutine[Any, Any, int | None]],
    *,
    refused: int = exits.FAILED,
    as_json: bool = False,
) -> None:
    """Runs `work` with a client and ends the command with its exit code; errors become lines on stderr."""
    from skillcell.client import SkillcellClient, SkillcellError

    async def connected() -> int | None:
        async with SkillcellClient(target.address, api_key=target.api_key) as client:
            return await work(client)

    try:
        code = asyncio.run(connected())
    except SkillcellError as error:
        _tell(error, target, refused, as_json)
    except BrokenPipeError:
        code = exits.BROKEN_PIPE
    except OSError as error:
        fail(f"{error.filename or 'files'}: {error.strerror or error}")
    except ValueError as error:
        fail(str(error))
    except (KeyboardInterrupt, asyncio.CancelledError):
        code = exits.INTERRUPTED
    raise typer.Exit(code or 0)


def fail(message: str, code: int = exits.FAILED) -> NoReturn:
    """One line on stderr, and the end."""
    typer.echo(f"error: {printable(message)}", err=True)
    raise typer.Exit(code)


def _tell(error: SkillcellError, target: Connection, refused: int, as_json: bool) -> NoReturn:
    unreachable = error.code == "UNAVAILABLE" and not error.reason
    message = error.message
    if unreachable:
        refused = exits.REFUSED
        message = (
            f"no gateway answers at {target.address}: start one with `skillcell serve`, or name another with --server"
        )
    if as_json:
        typer.echo(json_line({"error": _as_json(error, message)}))
    typer.echo(f"error: {printable(message)}", err=True)
    if not unreachable:
        for line in _details(error):
            typer.echo(f"  {printable(line)}", err=True)
    raise typer.Exit(refused)


def _details(error: SkillcellError) -> list[str]:
    lines = [f"{v.field}: {v.description}" if v.field else v.description for v in error.field_violations]
    lines += [f"quota of {v.subject}: {v.description}" if v.subject else v.description for v in error.quota_violations]
    if error.retry_after is not None:
        lines.append(f"try again in {error.retry_after.total_seconds():g} s")
    hint = _HINTS.get(error.reason)
    if hint is not None:
        lines.append(hint)
    lines.append(f"({error.code}{f' / {error.reason}' if error.reason else ''})")
    said = _words(error.message)
    return [line for line in lines if _words(line) not in said]


def _words(text: str) -> str:
    """A message often repeats its only violation, but for the punctuation."""
    return " ".join(re.findall(r"\w+", text))


_HINTS = {
    "CREDENTIALS_MISSING": "give a key with --api-key or SKILLCELL_API_KEY",
    "CREDENTIALS_INVALID": "check the key in --api-key or SKILLCELL_API_KEY",
    "SKILL_NOT_FOUND": "`skillcell skills` lists what there is",
    "SKILL_VERSION_NOT_FOUND": "`skillcell skills versions PUBLISHER/NAME` lists what there is",
    "ENTRYPOINT_NOT_FOUND": "`skillcell skills show REF` lists what can be called",
    "EXECUTION_NOT_FOUND": "`skillcell executions` lists what there is",
    "RATE_PLAN_NOT_FOUND": "`skillcell billing plan list` lists what there is, `skillcell billing assign` gives one",
    "USAGE_RECORD_NOT_FOUND": "`skillcell usage list --json` lists records with their event_id",
    "ETAG_MISMATCH": "someone else changed it meanwhile: look at it, then try again",
    "LEDGER_BROKEN": "`skillcell usage verify` shows an operator what is wrong, deploy/RUNBOOK.md what to do about it",
    "VERSION_EXISTS": "versions never change: publish with another --version",
}


def _as_json(error: SkillcellError, message: str) -> dict[str, Any]:
    return {
        "code": error.code,
        "reason": error.reason,
        "message": message,
        "field_violations": [{"field": v.field, "description": v.description} for v in error.field_violations],
        "quota_violations": [{"subject": v.subject, "description": v.description} for v in error.quota_violations],
        "retry_after_seconds": None if error.retry_after is None else error.retry_after.total_seconds(),
        "metadata": dict(error.metadata),
    }
