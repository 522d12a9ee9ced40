"""`skillcell usage`: records, sums, and the check of the ledger."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from skillcell.cli import exits, options, reconcile
from skillcell.cli.connection import connection, fail, run
from skillcell.cli.present import printable

if TYPE_CHECKING:
    from skillcell.client import SkillcellClient
    from skillcell.core.types import UsageRecord

_BY = "tenant, publisher, skill, version, entrypoint, outcome, isolation, label:KEY; several with commas."
app = typer.Typer(help="What calls used: records, sums, the check of the ledger.", invoke_without_command=True)
Tenant = Annotated[str, typer.Option("--tenant", metavar="ID", help="Only this tenant's calls.")]
Publisher = Annotated[str, typer.Option("--publisher", metavar="NAME", help="Only calls of this publisher's Skills.")]
Skill = Annotated[str, typer.Option("--skill", metavar="PUBLISHER/NAME", help="Only calls of this Skill.")]


@app.callback()
def default(
    context: typer.Context,
    *,
    as_json: options.Json = False,
    server: options.Server = None,
    api_key: options.ApiKey = None,
) -> None:
    """What calls used; without a command, the newest records."""
    options.remember(server, api_key)
    if context.invoked_subcommand is None:
        listed(as_json=as_json, server=server, api_key=api_key)


@app.command("list")
def listed(
    *,
    tenant: Tenant = "",
    publisher: Publisher = "",
    skill: Skill = "",
    execution: Annotated[str, typer.Option("--execution", metavar="ID", help="One call's record.")] = "",
    label: options.Labels = None,
    after: options.After = None,
    before: options.Before = None,
    limit: options.Limit = 1000,
    as_json: options.Json = False,
    server: options.Server = None,
    api_key: options.ApiKey = None,
) -> None:
    """List usage records in the order of the ledger."""
    labels = options.pairs("--label", label)
    since, until = options.moment("--after", after), options.moment("--before", before)

    async def work(client: SkillcellClient) -> None:
        from skillcell.cli.present import print_json, table

        found: list[UsageRecord] = []
        token = ""
        while len(found) < limit:
            page = await client.usage.records(
                tenant=tenant,
                publisher=publisher,
                skill=skill,
                execution_id=execution,
                labels=labels,
                after=since,
                before=until,
                page_size=min(limit - len(found), 1000),
                page_token=token,
            )
            found += page.items
            token = page.next_page_token
            if not token:
                break
        if as_json:
            print_json(found)
        else:
            table(_COLUMNS, [_row(record) for record in found], right=_RIGHT)

    run(connection(server, api_key), work, as_json=as_json)


_COLUMNS = ("SEQ", "ENDED", "TENANT", "SKILL", "OUTCOME", "BILLED", "CPU", "PEAK MEMORY", "EXECUTION")
_RIGHT = ("SEQ", "BILLED", "CPU", "PEAK MEMORY")


def _row(record: UsageRecord) -> tuple[str, ...]:
    from skillcell.cli.present import duration, size, when

    return (
        str(record.sequence),
        when(record.ended_at),
        record.tenant,
        f"{record.publisher}/{record.skill}@{record.version}",
        record.outcome.value.lower(),
        f"{record.billed_ms} ms",
        duration(record.cpu_total_ns),
        size(record.memory_peak_bytes),
        record.execution_id,
    )


@app.command()
def summary(
    *,
    by: Annotated[
        str,
        typer.Option(
            "--by",
            metavar="KEYS",
            help=_BY,
        ),
    ] = "skill",
    bucket: Annotated[str, typer.Option("--bucket", metavar="SPAN", help="hour, day or month.")] = "",
    tenant: Tenant = "",
    publisher: Publisher = "",
    skill: Skill = "",
    label: options.Labels = None,
    after: options.After = None,
    before: options.Before = None,
    as_json: options.Json = False,
    server: options.Server = None,
    api_key: options.ApiKey = None,
) -> None:
    """Sum usage over groups; the numbers are the ledger's integers."""
    keys = [key.strip() for key in by.split(",") if key.strip()]
    labels = options.pairs("--label", label)
    since, until = options.moment("--after", after), options.moment("--before", before)

    async def work(client: SkillcellClient) -> None:
        from skillcell.cli.present import duration, print_json, size, table

        found = await client.usage.summary(
            by=keys,
            bucket=bucket,
            tenant=tenant,
            publisher=publisher,
            skill=skill,
            labels=labels,
            after=since,
            before=until,
        )
        if as_json:
            print_json(found)
            return
        shown = [*(["time"] if bucket else []), *keys]
        rows = [
            (
                *(group.keys.get(key, "") for key in shown),
                str(group.totals.calls),
                str(group.totals.billable_calls),
                f"{group.totals.billed_ms / 1000:.3f} s",
                duration(group.totals.run_ns),
                duration(group.totals.cpu_total_ns),
                f"{group.totals.memory_limit_byte_ns / (1 << 30) / 1e9:.3f}",
                size(group.totals.egress_in_bytes + group.totals.egress_out_bytes),
                size(group.totals.input_bytes),
                size(group.totals.output_bytes),
                size(group.totals.artifact_bytes),
            )
            for group in found.groups
        ]
        columns = (*(key.upper() for key in shown), *_SUMS)
        table(columns, rows, right=_SUMS)

    run(connection(server, api_key), work, as_json=as_json)


_SUMS = ("CALLS", "BILLABLE", "BILLED", "RUN", "CPU", "GIB·S", "EGRESS", "INPUT", "OUTPUT", "ARTIFACTS")


@app.command()
def verify(
    *,
    from_sequence: Annotated[int, typer.Option("--from", min=0, help="First record; 0 for the first of all.")] = 0,
    to_sequence: Annotated[int, typer.Option("--to", min=0, help="Last record; 0 for the head.")] = 0,
    witness: Annotated[
        str,
        typer.Option(
            "--witness",
            metavar="SEQ:HASH|@FILE",
            help="A head that `usage head` printed before, or a file whose last line is one.",
        ),
    ] = "",
    as_json: options.Json = False,
    server: options.Server = None,
    api_key: options.ApiKey = None,
) -> None:
    """Check the ledger's hash chain, head, totals and executions; exit code 1 when something is wrong.

    What is found stops new calls, and nothing found in the whole ledger lets them in again.
    """
    seen = _witness(witness) if witness else None

    async def work(client: SkillcellClient) -> int:
        from skillcell.cli.present import print_json

        found = await client.usage.verify(from_sequence=from_sequence, to_sequence=to_sequence, witness=seen)
        if as_json:
            print_json(found)
        else:
            for defect in found.defects:
                where = f"record {defect.sequence}" if defect.sequence else "ledger"
                sys.stdout.write(printable(f"{where}: {defect.kind.lower()} {defect.detail}") + "\n")
            state = "intact" if found.intact else "NOT intact"
            sys.stdout.write(f"{state}: {found.records_checked} records checked\n")
            if found.head_sequence:
                sys.stdout.write(f"head {found.head_sequence}:{found.head_hash.hex()}\n")
        return 0 if found.intact else exits.FAILED

    run(connection(server, api_key), work, as_json=as_json)


@app.command()
def head(
    *,
    as_json: options.Json = False,
    server: options.Server = None,
    api_key: options.ApiKey = None,
) -> None:
    """Print the ledger's head as SEQUENCE:HASH, to be kept elsewhere as a witness for `usage verify --witness`."""

    async def work(client: SkillcellClient) -> int:
        from skillcell.cli.present import print_json

        found = await client.usage.head()
        if as_json:
            print_json({"sequence": found.head_sequence, "hash": found.head_hash.hex()})
        elif found.head_sequence:
            sys.stdout.write(f"{found.head_sequence}:{found.head_hash.hex()}\n")
        return 0 if found.intact else exits.FAILED

    run(connection(server, api_key), work, as_json=as_json)


def _witness(text: str) -> tuple[int, bytes]:
    """Of `SEQ:HASH`, or the last line of `@FILE` that is one."""
    lines = [text]
    if text.startswith("@"):
        try:
            lines = Path(text[1:]).read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError as error:
            fail(f"--witness {text}: {error.strerror}", 2)
    heads = [match for match in (_HEAD.fullmatch(line.strip()) for line in lines) if match]
    if not heads:
        fail(f"--witness {text}: is not SEQUENCE:HASH with 64 hexadecimal digits, nor @ and a file that ends in one", 2)
    return int(heads[-1][1]), bytes.fromhex(heads[-1][2])


_HEAD = re.compile(r"([0-9]{1,18}):([0-9A-Fa-f]{64})(?:\s.*)?")

app.command()(reconcile.reconcile)
