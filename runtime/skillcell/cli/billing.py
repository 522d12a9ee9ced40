"""`skillcell billing`: statements, payouts, rate plans, who has which, closing months and correcting usage.

`export` and `sink` join this group from modules of their own.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from skillcell.cli import billing_export, billing_preview, billing_sinks, options
from skillcell.cli.connection import connection, run
from skillcell.cli.present import printable

if TYPE_CHECKING:
    from skillcell.client import SkillcellClient

app = typer.Typer(help="What tenants owe, what publishers earn, and by which plans.", no_args_is_help=True)
app.add_typer(billing_preview.app, name="plan")
app.add_typer(billing_sinks.app, name="sink")
app.command()(billing_export.export)
Month = Annotated[str, typer.Option("--period", metavar="MONTH", help="As 2026-11, in UTC; default: this month.")]
Currency = Annotated[
    str, typer.Option("--currency", metavar="CODE", help="As EUR; where plans of several rated the month.")
]


@app.callback()
def billing(server: options.Server = None, api_key: options.ApiKey = None) -> None:
    """What tenants owe, what publishers earn, and by which plans."""
    options.remember(server, api_key)


@app.command()
def statement(
    *,
    tenant: Annotated[str, typer.Option("--tenant", metavar="ID", help="Default: your own.")] = "",
    period: Month = "",
    currency: Currency = "",
    as_json: options.Json = False,
    server: options.Server = None,
    api_key: options.ApiKey = None,
) -> None:
    """Show a tenant's charges of a month, line by line; a preview while the month is open."""
    month = options.month("--period", period)

    async def work(client: SkillcellClient) -> None:
        from skillcell.cli.present import print_json, table
        from skillcell.core.decimals import decimal_text

        found = await client.billing.statement(month, tenant=tenant, currency=currency)
        if as_json:
            print_json(found)
            return
        rows = [
            (
                line.skill or "(all)",
                line.meter.replace("_", " "),
                decimal_text(line.quantity),
                line.unit,
                f"{line.amount:f}",
                line.plan_version,
            )
            for line in found.lines
        ]
        table(("SKILL", "METER", "QUANTITY", "UNIT", "AMOUNT", "PLAN"), rows, right=("QUANTITY", "AMOUNT"))
        state = "open" if found.open else "closed"
        _say(f"total {found.total:f} {found.currency} for {found.tenant}, {found.period}")
        _say(f"{state}, up to record {found.as_of_sequence}{_others(found.currency, found.currencies)}")

    run(connection(server, api_key), work, as_json=as_json)


@app.command()
def payout(
    *,
    publisher: Annotated[str, typer.Option("--publisher", metavar="NAME", help="Default: your only one.")] = "",
    period: Month = "",
    currency: Currency = "",
    as_json: options.Json = False,
    server: options.Server = None,
    api_key: options.ApiKey = None,
) -> None:
    """Show a publisher's share of a month's charges, Skill by Skill."""
    month = options.month("--period", period)

    async def work(client: SkillcellClient) -> None:
        from skillcell.cli.present import print_json, table

        found = await client.billing.payout(month, publisher=publisher, currency=currency)
        if as_json:
            print_json(found)
            return
        rows = [
            (
                line.skill,
                str(line.calls),
                f"{line.charged:f}",
                f"{line.platform_fee:f}",
                f"{line.publisher_share:f}",
            )
            for line in found.lines
        ]
        columns = ("SKILL", "CALLS", "CHARGED", "FEE", "SHARE")
        table(columns, rows, right=columns[1:])
        _say(f"total {found.total:f} {found.currency} for {found.publisher}, {found.period}")
        _say(f"{'open' if found.open else 'closed'}{_others(found.currency, found.currencies)}")

    run(connection(server, api_key), work, as_json=as_json)


@app.command()
def assign(
    tenant: Annotated[str, typer.Argument(metavar="TENANT", help="Its id.", show_default=False)],
    plan: Annotated[
        str, typer.Argument(metavar="PLAN", help="A plan's name; left out with --clear.", show_default=False)
    ] = "",
    *,
    clear: Annotated[bool, typer.Option("--clear", help="Take its plan away: the gateway's default holds.")] = False,
    server: options.Server = None,
    api_key: options.ApiKey = None,
) -> None:
    """Rate a tenant's new calls by a plan."""
    if clear == bool(plan):
        raise typer.BadParameter("give a PLAN, or --clear")

    async def work(client: SkillcellClient) -> None:
        there = await client.admin.tenant(tenant)
        changed = await client.admin.update_tenant(replace(there, rate_plan=plan))
        _say(f"{changed.id} is rated by {changed.rate_plan or 'the default plan, if there is one'}")

    run(connection(server, api_key), work)


@app.command()
def close(
    period: Annotated[str, typer.Argument(metavar="MONTH", help="As 2026-11.", show_default=False)],
    *,
    as_json: options.Json = False,
    server: options.Server = None,
    api_key: options.ApiKey = None,
) -> None:
    """Close a month for good: late usage and corrections are billed in the open one."""
    month = options.month("MONTH", period)

    async def work(client: SkillcellClient) -> None:
        from skillcell.cli.present import print_json, when

        closed = await client.admin.close_period(month)
        if as_json:
            print_json(closed)
        else:
            _say(f"{closed.period} closed at {when(closed.closed_at)}, last record {closed.last_sequence}")

    run(connection(server, api_key), work, as_json=as_json)


Delta = typer.Option(metavar="±N", help="Difference to the record, in its unit.")


@app.command()
def correct(
    event_id: Annotated[
        str, typer.Argument(metavar="EVENT_ID", help="As `skillcell usage list --json` has it.", show_default=False)
    ],
    *,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; kept.", show_default=False)],
    billed_ms: Annotated[int, Delta] = 0,
    cpu_total_ns: Annotated[int, Delta] = 0,
    memory_limit_byte_ns: Annotated[int, Delta] = 0,
    memory_used_byte_ns: Annotated[int, Delta] = 0,
    egress_in_bytes: Annotated[int, Delta] = 0,
    egress_out_bytes: Annotated[int, Delta] = 0,
    output_bytes: Annotated[int, Delta] = 0,
    artifact_bytes: Annotated[int, Delta] = 0,
    calls: Annotated[int, typer.Option(min=-1, max=1, metavar="±1", help="-1 takes the charge for the call back.")] = 0,
    request_id: Annotated[
        str | None, typer.Option("--request-id", metavar="UUID", help="Sending the same again changes nothing.")
    ] = None,
    as_json: options.Json = False,
    server: options.Server = None,
    api_key: options.ApiKey = None,
) -> None:
    """Write a correction of a usage record into the open month: differences, the record stays."""
    from skillcell.core.corrections import UsageDelta

    delta = UsageDelta(
        billed_ms=billed_ms,
        cpu_total_ns=cpu_total_ns,
        memory_limit_byte_ns=memory_limit_byte_ns,
        memory_used_byte_ns=memory_used_byte_ns,
        egress_in_bytes=egress_in_bytes,
        egress_out_bytes=egress_out_bytes,
        output_bytes=output_bytes,
        artifact_bytes=artifact_bytes,
        calls=calls,
    )

    async def work(client: SkillcellClient) -> None:
        from skillcell.cli.present import print_json

        record = await client.admin.correct(event_id, delta, reason=reason, request_id=request_id)
        if as_json:
            print_json(record)
        else:
            _say(f"record {record.sequence} {record.event_id} corrects {record.correction_of} of {record.tenant}")

    run(connection(server, api_key), work, as_json=as_json)


def _others(shown: str, all_of_them: tuple[str, ...]) -> str:
    others = [currency for currency in all_of_them if currency != shown]
    return f"; also in {', '.join(others)} (--currency)" if others else ""


def _say(text: str) -> None:
    sys.stdout.write(printable(text) + "\n")
