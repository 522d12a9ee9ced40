"""`skillcell billing sink`: how far each sink of usage events is, why one is held, what it refused."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from skillcell.cli import options
from skillcell.cli.connection import connection, fail, run
from skillcell.cli.present import printable

if TYPE_CHECKING:
    from skillcell.client import SkillcellClient
    from skillcell.core.sinks import DeadLetter, SinkStatus

app = typer.Typer(help="HTTP sinks of usage events: cursors, holds, dead letters.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(metavar="NAME", help="As the settings name it.", show_default=False)]
_PAGE = 1000


@app.callback()
def sink(server: options.Server = None, api_key: options.ApiKey = None) -> None:
    """HTTP sinks of usage events: cursors, holds, dead letters."""
    options.remember(server, api_key)


@app.command("list")
def listed(*, as_json: options.Json = False, server: options.Server = None, api_key: options.ApiKey = None) -> None:
    """List sinks, and how far behind each is."""

    async def work(client: SkillcellClient) -> None:
        from skillcell.cli.present import print_json, table

        found = await client.sinks.list()
        if as_json:
            print_json(found)
            return
        rows = [
            (
                one.name,
                one.state.value.lower(),
                str(one.last_sequence),
                str(one.lag_records),
                str(one.unacknowledged),
                str(one.dead_letters),
                one.hold_reason or one.last_result,
            )
            for one in found
        ]
        table(("SINK", "STATE", "SEQUENCE", "LAG", "UNACKNOWLEDGED", "DEAD", "LAST"), rows, right=_NUMBERS)

    run(connection(server, api_key), work, as_json=as_json)


_NUMBERS = ("SEQUENCE", "LAG", "UNACKNOWLEDGED", "DEAD")


@app.command()
def show(
    name: Name, *, as_json: options.Json = False, server: options.Server = None, api_key: options.ApiKey = None
) -> None:
    """Show all that is known of a sink."""

    async def work(client: SkillcellClient) -> None:
        from skillcell.cli.present import print_json

        found = next((one for one in await client.sinks.list() if one.name == name), None)
        if found is None:
            fail(f"there is no sink {name!r}: `skillcell billing sink list` lists what there is")
        if as_json:
            print_json(found)
        else:
            _describe(found)

    run(connection(server, api_key), work, as_json=as_json)


def _describe(one: SinkStatus) -> None:
    from skillcell.cli.present import when

    facts = {
        "url": one.url,
        "mode": one.mode.value.lower() if one.mode else "",
        "state": one.state.value.lower(),
        "held because": one.hold_reason,
        "done up to": str(one.last_sequence),
        "sent up to": f"{one.sent_sequence}, since {when(one.unacknowledged_since)}" if one.unacknowledged else "",
        "behind": f"{one.lag_records} records",
        "dead letters": str(one.dead_letters),
        "last attempt": when(one.last_attempt_at),
        "failures": str(one.attempts) if one.attempts else "",
        "last result": one.last_result,
        "source": one.source,
        "type": one.event_type,
    }
    for fact, value in facts.items():
        if value:
            sys.stdout.write(printable(f"{fact:<14}{value}") + "\n")


@app.command()
def resume(
    name: Name,
    *,
    skip: Annotated[
        bool, typer.Option("--skip", help="What was sent and not acknowledged is at the sink: don't send it again.")
    ] = False,
    resend: Annotated[
        bool, typer.Option("--resend", help="It is not there, or will not count twice: send it again.")
    ] = False,
    as_json: options.Json = False,
    server: options.Server = None,
    api_key: options.ApiKey = None,
) -> None:
    """End the hold of a sink. One over the de-duplication window needs --skip or --resend."""
    if skip and resend:
        raise typer.BadParameter("--skip and --resend exclude each other")

    async def work(client: SkillcellClient) -> None:
        from skillcell.cli.present import print_json
        from skillcell.core.sinks import ResumeChoice

        choice = ResumeChoice.SKIP if skip else ResumeChoice.RESEND if resend else None
        found = await client.sinks.resume(name, choice)
        if as_json:
            print_json(found)
            return
        what = "taken as delivered" if skip else "sent again"
        moved = f"; records {found.from_sequence} to {found.to_sequence} are {what}" if found.to_sequence else ""
        sys.stdout.write(printable(f"{name} goes on after record {found.sink.last_sequence}{moved}") + "\n")

    run(connection(server, api_key), work, as_json=as_json)


@app.command("dead-letters")
def dead_letters(
    name: Name,
    *,
    limit: options.Limit = 100,
    as_json: options.Json = False,
    server: options.Server = None,
    api_key: options.ApiKey = None,
) -> None:
    """List the events that a sink refused, and why."""

    async def work(client: SkillcellClient) -> None:
        from skillcell.cli.present import print_json, table, when

        found: list[DeadLetter] = []
        token = ""
        while len(found) < limit:
            page = await client.sinks.dead_letters(name, page_size=min(limit - len(found), _PAGE), page_token=token)
            found += page.items
            token = page.next_page_token
            if not token:
                break
        if as_json:
            import json

            print_json([
                {"sequence": one.sequence, "event_id": one.event_id, "status": one.status, "reason": one.reason,
                 "attempts": one.attempts, "first_at": one.first_at, "last_at": one.last_at, "redrive": one.redrive,
                 "event": json.loads(one.body)}
                for one in found
            ])  # fmt: skip
            return
        rows = [
            (
                str(one.sequence),
                one.event_id,
                "waits" if one.redrive else "dead",
                str(one.attempts),
                when(one.last_at),
                one.reason,
            )
            for one in found
        ]
        table(("SEQUENCE", "EVENT", "STATE", "ATTEMPTS", "LAST", "REASON"), rows, right=("SEQUENCE", "ATTEMPTS"))

    run(connection(server, api_key), work, as_json=as_json)


@app.command()
def redrive(
    name: Name,
    sequences: Annotated[
        list[int] | None, typer.Argument(metavar="[SEQUENCE]…", help="Which; default: all.", show_default=False)
    ] = None,
    *,
    as_json: options.Json = False,
    server: options.Server = None,
    api_key: options.ApiKey = None,
) -> None:
    """Have dead letters sent again, in the bytes they had; those that are refused again stay."""

    async def work(client: SkillcellClient) -> None:
        from skillcell.cli.present import print_json

        waiting = await client.sinks.redrive(name, sequences or [])
        if as_json:
            print_json({"waiting": waiting})
        else:
            sys.stdout.write(f"{waiting} wait to be sent again\n")

    run(connection(server, api_key), work, as_json=as_json)


@app.command()
def discard(
    name: Name,
    sequences: Annotated[list[int], typer.Argument(metavar="SEQUENCE…", help="Which.", show_default=False)],
    *,
    server: options.Server = None,
    api_key: options.ApiKey = None,
) -> None:
    """Forget dead letters for good: the sink never gets them. The ledger keeps their records."""

    async def work(client: SkillcellClient) -> None:
        await client.sinks.discard(name, sequences)
        sys.stdout.write(f"forgot {len(sequences)}\n")

    run(connection(server, api_key), work)
