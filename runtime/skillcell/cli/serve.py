"""`skillcell serve`, `doctor` and `images`: the commands that work on this machine, not on a gateway.

Options left out fall back to the environment (`SKILLCELL_DATA`, …), then to the defaults in `skillcell.settings`.
"""

from __future__ import annotations

import asyncio
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skillcell.cli import exits, options
from skillcell.cli.connection import fail

if TYPE_CHECKING:
    from skillcell.settings import Settings


class Driver(Enum):
    """Which engine runs sandboxes."""

    AUTO = "auto"
    DOCKER = "docker"
    OCI = "oci"


DriverOption = Annotated[
    Driver | None, typer.Option("--driver", help="Engine; auto: Docker where one answers, else oci.")
]
Data = Annotated[Path | None, typer.Option("--data", metavar="DIR", help="Directory of everything that lasts.")]
Database = Annotated[
    str | None,
    typer.Option(
        "--database",
        metavar="URL",
        help="postgresql://HOST/NAME instead of SQLite in DIR. A password belongs in SKILLCELL_DATABASE: options show "
        "in the list of processes.",
        show_default=False,
    ),
]
images_app = typer.Typer(help="Images that sandboxes start from.", no_args_is_help=True)


def serve(
    *,
    driver: DriverOption = None,
    isolation: Annotated[
        options.IsolationClass | None, typer.Option("--isolation", help="Class of calls that ask for none.")
    ] = None,
    data: Data = None,
    database: Database = None,
    listen: Annotated[str | None, typer.Option("--listen", metavar="HOST:PORT", help="gRPC API.")] = None,
    metrics: Annotated[
        str | None, typer.Option("--metrics", metavar="HOST:PORT", help="/metrics, /healthz and /readyz.")
    ] = None,
) -> None:
    """Serve a gateway on this machine, until SIGTERM or Ctrl-C; then calls may finish, and all are settled."""
    settings = _settings(
        driver=driver, isolation=isolation, data=data, database=database, listen=listen, metrics=metrics
    )

    from skillcell import app
    from skillcell.core.errors import Fault

    def announce(running: app.Running) -> None:
        sys.stdout.write(
            f"serving on {running.address} with driver {running.driver}\n"
            f"metrics at http://{running.metrics}/metrics\n"
            f"data in {running.data.path}\n"
            f"development key {running.data.development_key}\n"
            + (f"not ready: {running.waits_for}\n" if running.waits_for else "")
            + "try: skillcell publish DIR, then skillcell call PUBLISHER/NAME\n"
        )
        sys.stdout.flush()

    try:
        asyncio.run(app.serve(settings, announce))
    except Fault as fault:
        fail(fault.message)


def doctor(
    *, driver: DriverOption = None, data: Data = None, database: Database = None, as_json: options.Json = False
) -> None:
    """Check everything that this machine needs, and say the exact fix for what it lacks."""
    settings = _settings(driver=driver, data=data, database=database)

    from skillcell import app
    from skillcell.cli.present import print_json, printable
    from skillcell.core.errors import Fault

    try:
        checks = asyncio.run(app.doctor(settings))
    except Fault as fault:
        fail(fault.message)
    if as_json:
        print_json(list(checks))
    else:
        color = sys.stdout.isatty()
        for check in checks:
            mark = "ok  " if check.ok else "FAIL"
            painted = f"\x1b[{32 if check.ok else 31}m{mark}\x1b[0m" if color else mark
            sys.stdout.write(f"{painted}  {check.name}: {printable(check.detail)}\n")
            if not check.ok and check.fix:
                sys.stdout.write(f"      fix: {printable(check.fix)}\n")
    raise typer.Exit(0 if all(check.ok for check in checks) else exits.FAILED)


@images_app.callback()
def images() -> None:
    """Images that sandboxes start from."""


@images_app.command()
def prepare(
    aliases: Annotated[
        list[str] | None, typer.Argument(metavar="[ALIAS]…", help="As python-3.11; by default all.", show_default=False)
    ] = None,
    *,
    driver: DriverOption = None,
    data: Data = None,
) -> None:
    """Make the sandbox images that are missing."""
    settings = _settings(driver=driver, data=data)

    from skillcell import app
    from skillcell.core.errors import Fault

    try:
        app.prepare(settings, aliases or [], lambda line: typer.echo(line, err=True))
    except Fault as fault:
        fail(fault.message)


def _settings(**given: Any) -> Settings:
    from pydantic import ValidationError

    from skillcell.core.types import Isolation
    from skillcell.settings import DriverChoice, Settings

    chosen = {name: value for name, value in given.items() if value is not None}
    if "driver" in chosen:
        chosen["driver"] = DriverChoice[chosen["driver"].name]
    if "isolation" in chosen:
        chosen["isolation"] = Isolation[chosen["isolation"].name]
    try:
        return Settings(**chosen)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        option = f"--{name}" if name in chosen else f"SKILLCELL_{name.upper()}"
        problem = "is not HOST:PORT" if first["type"] == "string_pattern_mismatch" else first["msg"]
        fail(f"{option} {first['input']!r}: {problem}", 2)
