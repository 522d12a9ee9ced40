"""`skillcell billing export`: usage records as they are, and a month's charges as a FOCUS dataset."""

from __future__ import annotations

import sys
from contextlib import ExitStack, aclosing
from enum import Enum
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from skillcell.cli import options
from skillcell.cli.connection import connection, fail, run

if TYPE_CHECKING:
    from datetime import datetime

    from skillcell.cli.export_files import RecordWriter
    from skillcell.client import SkillcellClient


class Format(Enum):
    JSONL = "jsonl"
    PARQUET = "parquet"
    CLOUDEVENTS = "cloudevents"
    FOCUS = "focus"


def export(
    *,
    form: Annotated[
        Format,
        typer.Option(
            "--format",
            help="jsonl: a record a line; cloudevents: an event a line, as sinks get it; focus: a month's "
            "charges (CSV, or Parquet by the name of --out).",
        ),
    ] = Format.JSONL,
    period: Annotated[
        str, typer.Option("--period", metavar="MONTH", help="What ended in 2026-11, in UTC; default: all.")
    ] = "",
    after_sequence: Annotated[
        int, typer.Option("--after-sequence", metavar="N", min=0, help="What comes after this record.")
    ] = 0,
    tenant: Annotated[
        str, typer.Option("--tenant", metavar="ID", help="Of one tenant; default: all you may see.")
    ] = "",
    out: Annotated[str, typer.Option("--out", "-o", metavar="FILE", help="Where to; - is stdout.")] = "-",
    provider: Annotated[
        str, typer.Option("--provider", metavar="NAME", help="ProviderName of FOCUS: who runs the gateway.")
    ] = "",
    source: Annotated[
        str, typer.Option("--source", metavar="URI", help="`source` of CloudEvents; default: the ledger's own.")
    ] = "",
    server: options.Server = None,
    api_key: options.ApiKey = None,
) -> None:
    """Write usage records to a file, which appears when it is whole; then say how many, and where to go on."""
    if form is Format.PARQUET and out == "-":
        raise typer.BadParameter("--out: Parquet needs a file")
    since, until = _month(period)
    if form is Format.FOCUS:
        if not period or after_sequence:
            raise typer.BadParameter("--format focus takes a month, --period 2026-11, and no --after-sequence")
        run(connection(server, api_key), partial(_charges, out=out, period=period, tenant=tenant, provider=provider))

    async def work(client: SkillcellClient) -> None:
        with ExitStack() as stack:
            file = _open(out, stack)
            writer = await _writer(form, file, client, source)
            count, last = 0, after_sequence
            records = client.usage.stream(after_sequence=after_sequence, tenant=tenant, after=since, before=until)
            async with aclosing(records) as found:
                async for record in found:
                    writer.add(record)
                    count, last = count + 1, record.sequence
            writer.finish()
        where = "" if out == "-" else f" in {out}"
        typer.echo(f"{count} records{where}; go on with --after-sequence {last}", err=True)

    run(connection(server, api_key), work)


async def _charges(client: SkillcellClient, *, out: str, period: str, tenant: str, provider: str) -> None:
    from skillcell.cli.export_charges import write_charges
    from skillcell.core.errors import Fault

    rows = client.billing.charges(period, tenant=tenant, provider=provider)
    try:
        with ExitStack() as stack:
            count = await write_charges(rows, _open(out, stack), parquet=out.endswith(".parquet"))
    except Fault as fault:
        fail(fault.message)
    typer.echo(f"{count} charges{'' if out == '-' else f' in {out}'}", err=True)


def _open(out: str, stack: ExitStack) -> IO[bytes]:
    from skillcell.cli.export_files import whole_file

    return sys.stdout.buffer if out == "-" else stack.enter_context(whole_file(Path(out)))


async def _writer(form: Format, file: IO[bytes], client: SkillcellClient, source: str) -> RecordWriter:
    from skillcell.cli.export_files import CloudEvents, JsonLines, Parquet
    from skillcell.metering.export.events import Envelope

    match form:
        case Format.JSONL:
            return JsonLines(file)
        case Format.CLOUDEVENTS:
            return CloudEvents(file, Envelope(source or await client.sinks.source()))
        case _:
            try:
                return Parquet(file)
            except ImportError:
                fail("Parquet needs the package pyarrow: pip install 'skillcell[export]', or take --format jsonl")


def _month(text: str) -> tuple[datetime | None, datetime | None]:
    if not text:
        return None, None
    from skillcell.core.periods import Period

    try:
        period = Period.parse(text)
    except ValueError as error:
        raise typer.BadParameter(f"--period {text!r}: {error}") from error
    return period.start, period.end
