"""`skillcell billing plan preview`: what a plan of a file would charge, without a gateway."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from skillcell.cli import billing_plans, options
from skillcell.cli.connection import fail

app = billing_plans.app


@app.command()
def preview(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="A plan in YAML or JSON; - reads standard input.", show_default=False)
    ],
    quantities: Annotated[
        list[str],
        typer.Argument(metavar="METER=QUANTITY...", help="As calls=3000000 cpu_seconds=72.5.", show_default=False),
    ],
    *,
    as_json: options.Json = False,
) -> None:
    """Show what a plan would charge a tenant for a month's use; needs no gateway and makes no version."""
    from skillcell.cli.present import print_json, table
    from skillcell.core.decimals import decimal_text
    from skillcell.core.errors import Fault
    from skillcell.metering.rating.preview import preview as rated
    from skillcell.metering.rating.preview import read_quantities

    plan = billing_plans.plan_of_file(file)
    try:
        made = rated(plan, read_quantities(quantities))
    except Fault as fault:
        fail(fault.message)
    if as_json:
        print_json(made)
        return
    rows = [
        (
            line.meter.value.lower() if line.meter else "minimum",
            plan.components[line.component].mode.value.lower() if line.meter else "",
            decimal_text(line.quantity),
            line.unit,
            f"{line.amount:f}",
        )
        for line in made.lines
    ]
    table(("METER", "MODE", "QUANTITY", "UNIT", "AMOUNT"), rows, right=("QUANTITY", "AMOUNT"))
    sys.stderr.write(f"total {made.total:f} {made.currency}\n")
