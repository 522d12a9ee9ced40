"""`skillcell usage reconcile`: the ledger's records, the gateway's sums, a scrape and a sink, side by side."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from skillcell.cli import exits, options
from skillcell.cli.connection import connection, fail, metrics_of, run
from skillcell.cli.present import printable

if TYPE_CHECKING:
    from skillcell.cli.reconciliation import Amounts, Difference, Key, Samples, Sink, Tally
    from skillcell.client import SkillcellClient

_TRIES = 20
_SHOWN = 100


def reconcile(
    *,
    metrics: Annotated[
        str,
        typer.Option(
            "--metrics", metavar="URL", help="Where /metrics is; by default of the gateway started last here."
        ),
    ] = "",
    sink_file: Annotated[
        str,
        typer.Option(
            "--sink-file",
            metavar="FILE",
            help="What a sink holds: CloudEvents or batches, one JSON a line; - is stdin.",
        ),
    ] = "",
    as_json: options.Json = False,
    server: options.Server = None,
    api_key: options.ApiKey = None,
) -> None:
    """Compare ledger, totals, scrape and sink in integers; exit code 1 when anything differs.

    All are compared as of one record, while calls go on. Needs the role biller.
    """
    target = connection(server, api_key)
    url = _url(metrics or metrics_of(target))

    async def work(client: SkillcellClient) -> int:
        found = await _compare(client, url, sink_file)
        if as_json:
            from skillcell.cli.present import print_json

            print_json(found)
        else:
            _show(found)
        return exits.FAILED if found.differences else 0

    run(target, work, as_json=as_json)


@dataclass(frozen=True, slots=True)
class Column:
    """One source, as of a record: what it says of calls and of corrections."""

    name: str
    as_of_sequence: int
    usage: Amounts
    corrections: Amounts | None = None
    """None where it has them in its sums, though not as calls."""


@dataclass(frozen=True, slots=True)
class Reconciliation:
    equal: bool
    meters: tuple[str, ...]
    columns: tuple[Column, ...]
    sink: dict[str, int] | None
    differences: tuple[Difference, ...]


async def _compare(client: SkillcellClient, url: str, sink_file: str) -> Reconciliation:
    from skillcell.cli import reconciliation as pure

    totals, totals_at, samples, scrape_at = await _one_moment(client, url)
    sink = await asyncio.to_thread(_read_sink, sink_file, totals_at) if sink_file else None
    at, differences = await _records(client, {totals_at, scrape_at}, sink, totals_at)
    columns = [Column("ledger", totals_at, pure.total(at[totals_at].usage), pure.total(at[totals_at].corrections))]
    columns.append(Column("totals", totals_at, pure.total(totals)))
    differences += pure.against_totals(at[totals_at], totals)
    if samples is not None:
        (usage, corrections), found = pure.against_scrape(at[scrape_at], samples)
        if scrape_at != totals_at:
            ledger = at[scrape_at]
            columns.append(Column("ledger", scrape_at, pure.total(ledger.usage), pure.total(ledger.corrections)))
        columns.append(Column("scrape", scrape_at, usage, corrections))
        differences += found
    counts = None
    if sink is not None:
        columns.append(Column("sink", totals_at, pure.total(sink.tally.usage), pure.total(sink.tally.corrections)))
        differences += [*pure.against_sink(at[totals_at], sink.tally), *sink.differences]
        counts = {"received": sink.received, "duplicates": sink.duplicates, "newer": sink.newer}
    return Reconciliation(not differences, pure.METERS, tuple(columns), counts, tuple(differences))


async def _one_moment(client: SkillcellClient, url: str) -> tuple[dict[Key, Amounts], int, Samples | None, int]:
    """Totals and a scrape of one record, tried again while calls end between the two. Where they never meet, each is
    compared with the ledger as it was at its own record."""
    for attempt in range(_TRIES):
        totals, totals_at = await _totals(client)
        if not url:
            return totals, totals_at, None, totals_at
        samples, scrape_at = await asyncio.to_thread(_scrape, url)
        if totals_at == scrape_at:
            break
        await asyncio.sleep(0.01 * attempt)
    return totals, totals_at, samples, scrape_at


async def _totals(client: SkillcellClient) -> tuple[dict[Key, Amounts], int]:
    summary = await client.usage.summary(by=("tenant", "publisher", "skill", "outcome"))
    totals: dict[Key, Amounts] = {}
    for group in summary.groups:
        keys, sums = group.keys, group.totals
        skill = keys["skill"].partition("/")[2]
        totals[keys["tenant"], keys["publisher"], skill, keys["outcome"]] = (
            sums.calls,
            sums.billed_ms,
            sums.cpu_total_ns,
            sums.memory_limit_byte_ns,
            sums.egress_in_bytes + sums.egress_out_bytes,
            sums.output_bytes,
        )
    return totals, summary.as_of_sequence


def _scrape(url: str) -> tuple[Samples, int]:
    """Usage by series, and the record that it counts up to."""
    import urllib.error
    import urllib.request

    from prometheus_client.parser import text_string_to_metric_families

    try:
        with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310 - http and https alone, see _url
            text = answer.read().decode()
        families = list(text_string_to_metric_families(text))
    except (urllib.error.URLError, OSError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"no metrics at {url}: {getattr(error, 'reason', None) or error}") from error
    samples: dict[tuple[str, Key], float] = {}
    sequence = None
    for sample in (sample for family in families for sample in family.samples):
        labels = sample.labels
        if sample.name == "skillcell_ledger_last_sequence":
            sequence = int(sample.value)
        elif set(labels) == {"tenant", "publisher", "skill", "outcome"}:
            samples[sample.name, (labels["tenant"], labels["publisher"], labels["skill"], labels["outcome"])] = (
                sample.value
            )
    if sequence is None:
        raise ValueError(f"no metrics of a ledger at {url}: skillcell_ledger_last_sequence is not there")
    return samples, sequence


def _read_sink(file: str, up_to: int) -> Sink:
    from skillcell.cli.reconciliation import Sink, events_of

    sink = Sink()

    def take(lines: Iterable[str]) -> None:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                for event in events_of(line):
                    sink.take(event, up_to)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{file}:{number}: is not a CloudEvent of a usage record: {error!r}") from error

    if file == "-":
        take(sys.stdin)
    else:
        with Path(file).open(encoding="utf-8", errors="replace") as lines:
            take(lines)
    return sink


async def _records(
    client: SkillcellClient, marks: set[int], sink: Sink | None, sink_at: int
) -> tuple[dict[int, Tally], list[Difference]]:
    """Adds up the ledger's records as they are streamed, each once, and keeps what there was at each mark."""
    from skillcell.cli.reconciliation import Difference, Tally, amounts_of, key_of

    tally, last, until = Tally(), 0, max(marks)
    at: dict[int, Tally] = {}
    differences: list[Difference] = []
    async with aclosing(client.usage.stream()) as records:
        async for record in records:
            for mark in sorted(mark for mark in marks - at.keys() if mark < record.sequence):
                at[mark] = tally.copy()
            if record.sequence > until:
                break
            if record.sequence <= last:
                differences.append(Difference("ledger", f"record {record.sequence} came again"))
                continue
            if record.sequence > last + 1:
                gone = (
                    f"record {last + 1} is"
                    if record.sequence == last + 2
                    else f"records {last + 1} to {record.sequence - 1} are"
                )
                differences.append(Difference("ledger", f"{gone} missing"))
            last = record.sequence
            tally.add(key_of(record), amounts_of(record), correction=bool(record.correction_of))
            if sink is not None and record.sequence <= sink_at:
                sink.match(record)
    for mark in marks - at.keys():
        at[mark] = tally
    if last < until:
        differences.append(Difference("ledger", f"record {until} was counted, and the records end at {last}"))
    if sink is not None:
        sink.close()
    return at, differences


def _show(found: Reconciliation) -> None:
    from skillcell.cli.present import table

    heads = tuple(f"{column.name.upper()} @{column.as_of_sequence}" for column in found.columns)
    rows = [
        (meter, *(str(column.usage[number]) for column in found.columns)) for number, meter in enumerate(found.meters)
    ]
    if any(any(column.corrections or ()) for column in found.columns):
        rows += [
            (
                f"corrections of {meter}",
                *(
                    str(column.corrections[number]) if column.corrections else "in the above"
                    for column in found.columns
                ),
            )
            for number, meter in enumerate(found.meters)
        ]
    table(("METER", *heads), rows, right=heads)
    if found.sink is not None:
        counts = found.sink
        sys.stdout.write(
            f"sink: {counts['received']} events, {counts['duplicates']} of them again, {counts['newer']} newer\n"
        )
    for difference in found.differences[:_SHOWN]:
        sys.stdout.write(printable(f"DIFFERS {difference.where}: {difference.what}") + "\n")
    if len(found.differences) > _SHOWN:
        sys.stdout.write(f"and {len(found.differences) - _SHOWN} more\n")
    names = list(dict.fromkeys(column.name for column in found.columns))
    sys.stdout.write(f"{' = '.join(names)}\n" if found.equal else f"{len(found.differences)} differences\n")


def _url(text: str) -> str:
    """`HOST:PORT` and addresses without a path are taken for their /metrics."""
    if not text:
        return ""
    from urllib.parse import urlsplit

    url = text if "://" in text else f"http://{text}"
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        fail(f"--metrics {text}: is no http or https URL", 2)
    return url if parts.path.strip("/") else f"{url.rstrip('/')}/metrics"
