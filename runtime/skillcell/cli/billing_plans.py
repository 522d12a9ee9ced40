"""`skillcell billing plan`: make, list and show rate plans."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from skillcell.cli import options
from skillcell.cli.connection import connection, fail, run
from skillcell.cli.present import printable

if TYPE_CHECKING:
    from skillcell.client import PlanVersion, SkillcellClient
    from skillcell.core.rate_plans import RateComponent, RatePlan

app = typer.Typer(help="Rate plans: try, make, list, show.", no_args_is_help=True)
_PAGE = 100


@app.command()
def create(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="A plan in YAML or JSON; - reads standard input.", show_default=False)
    ],
    *,
    as_json: options.Json = False,
    server: options.Server = None,
    api_key: options.ApiKey = None,
) -> None:
    """Make a version of a plan: what its tenants' new calls are rated by. Versions never change."""
    plan = plan_of_file(file)

    async def work(client: SkillcellClient) -> None:
        from skillcell.cli.present import print_json

        made = await client.admin.create_rate_plan(plan)
        if as_json:
            print_json(made)
        else:
            sys.stdout.write(f"{made.plan.version}\n")
            sys.stderr.write(f"rate a tenant by it with: skillcell billing assign TENANT {made.plan.name}\n")

    run(connection(server, api_key), work, as_json=as_json)


def plan_of_file(file: str) -> RatePlan:
    """The plan of a file; what is wrong with it is told line by line, each with its place in the document."""
    from skillcell.core.errors import Fault
    from skillcell.metering.rating.plan_document import read_plan

    try:
        data = typer.get_binary_stream("stdin").read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        fail(f"{file}: {error.strerror}")
    try:
        return read_plan(data)
    except Fault as fault:
        for violation in fault.violations:
            typer.echo(printable(f"{violation.field}: {violation.description}"), err=True)
        count = len(fault.violations)
        fail(f"{file} is no valid rate plan: {count} {'thing is' if count == 1 else 'things are'} wrong with it")


@app.command("list")
def listed(
    *,
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="Versions of this one.")] = "",
    limit: options.Limit = 100,
    as_json: options.Json = False,
    server: options.Server = None,
    api_key: options.ApiKey = None,
) -> None:
    """List rate plans, newest first; a star marks what rates new calls."""

    async def work(client: SkillcellClient) -> None:
        from skillcell.cli.present import print_json, table, when

        found: list[PlanVersion] = []
        token = ""
        while len(found) < limit:
            size = min(limit - len(found), _PAGE)
            page = await client.admin.rate_plans(name=name, page_size=size, page_token=token)
            found += page.items
            token = page.next_page_token
            if not token:
                break
        if as_json:
            print_json(found)
            return
        rows = [
            (
                f"{one.plan.version}{' *' if one.current else ''}",
                one.plan.currency,
                ", ".join(component.meter.value.lower() for component in one.plan.components),
                when(one.plan.created_at),
            )
            for one in found
        ]
        table(("PLAN", "CURRENCY", "METERS", "CREATED"), rows)

    run(connection(server, api_key), work, as_json=as_json)


@app.command()
def show(
    plan: Annotated[
        str, typer.Argument(metavar="NAME[/NUMBER]", help="A version, or the current one.", show_default=False)
    ],
    *,
    as_json: options.Json = False,
    server: options.Server = None,
    api_key: options.ApiKey = None,
) -> None:
    """Show a rate plan and its prices."""

    async def work(client: SkillcellClient) -> None:
        from skillcell.cli.present import print_json

        found = await _find(client, plan)
        if as_json:
            print_json(found)
        else:
            _describe(found)

    run(connection(server, api_key), work, as_json=as_json)


async def _find(client: SkillcellClient, plan: str) -> PlanVersion:
    name, _, number = plan.partition("/")
    token = ""
    while True:
        page = await client.admin.rate_plans(name=name, page_size=_PAGE, page_token=token)
        for one in page.items:
            if one.plan.version == plan or (not number and one.current):
                return one
        token = page.next_page_token
        if not token:
            fail(f"there is no rate plan {plan!r}; `skillcell billing plan list` shows what there is")


def _describe(found: PlanVersion) -> None:
    from skillcell.cli.present import table, when
    from skillcell.core.decimals import decimal_text

    plan = found.plan
    state = "rates new calls" if found.current else "rates calls that pinned it"
    sys.stdout.write(f"{plan.version}  {plan.currency}, {plan.minor_digits} decimal places, {state}\n")
    sys.stdout.write(f"created {when(plan.created_at)}\n")
    sys.stdout.write(f"publisher's share {decimal_text(plan.publisher_share)}\n")
    sys.stdout.write(f"minimum {decimal_text(plan.minimum_amount)}\n")
    rows = [row for component in plan.components for row in _prices(component)]
    columns = ("METER", "MODE", "FREE", "UP TO", "UNIT AMOUNT", "FLAT AMOUNT")
    table(columns, rows, right=columns[2:])


def _prices(component: RateComponent) -> list[tuple[str, ...]]:
    from skillcell.core.decimals import decimal_text as text

    head = (component.meter.value.lower(), component.mode.value.lower(), text(component.free_allowance))
    if not component.tiers:
        per = f" per {text(component.package_size)}" if component.package_size else ""
        return [(*head, "", text(component.unit_amount) + per, "")]
    return [
        (
            *(head if place == 0 else ("", "", "")),
            "" if tier.up_to is None else text(tier.up_to),
            text(tier.unit_amount),
            text(tier.flat_amount),
        )
        for place, tier in enumerate(component.tiers)
    ]
