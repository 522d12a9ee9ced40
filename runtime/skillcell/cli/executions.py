"""`skillcell executions`, and `watch`, `logs`, `cancel`: calls that run or have run."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from skillcell.cli import exits, options
from skillcell.cli.connection import connection, run

if TYPE_CHECKING:
    from skillcell.client import Execution, SkillcellClient

Member = TypeVar("Member", bound=Enum)
app = typer.Typer(help="Calls that run or have run: list, show, fetch artifacts.", invoke_without_command=True)


@app.callback()
def default(
    context: typer.Context,
    *,
    as_json: options.Json = False,
    server: options.Server = None,
    api_key: options.ApiKey = None,
) -> None:
    """Calls that run or have run; without a command, the newest of them."""
    options.remember(server, api_key)
    if context.invoked_subcommand is None:
        listed(as_json=as_json, server=server, api_key=api_key)


@app.command("list")
def listed(
    *,
    state: Annotated[
        list[str] | None, typer.Option("--state", metavar="STATE", help="queued, running or completed; repeatable.")
    ] = None,
    outcome: Annotated[
        list[str] | None, typer.Option("--outcome", metavar="OUTCOME", help="As succeeded, timed-out; repeatable.")
    ] = None,
    skill: Annotated[str, typer.Option("--skill", metavar="REF", help="Only calls of this Skill.")] = "",
    label: options.Labels = None,
    after: options.After = None,
    before: options.Before = None,
    limit: options.Limit = 50,
    as_json: options.Json = False,
    server: options.Server = None,
    api_key: options.ApiKey = None,
) -> None:
    """List executions, newest first."""
    from skillcell.core.types import ExecutionState, Outcome

    states = [_member(ExecutionState, "--state", text) for text in state or ()]
    outcomes = [_member(Outcome, "--outcome", text) for text in outcome or ()]
    labels = options.pairs("--label", label)
    since, until = options.moment("--after", after), options.moment("--before", before)

    async def work(client: SkillcellClient) -> None:
        from skillcell.cli.present import print_json, table

        found: list[Execution] = []
        token = ""
        while len(found) < limit:
            page = await client.list(
                states=states,
                outcomes=outcomes,
                skill=skill,
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
            table(_COLUMNS, [_row(execution) for execution in found], right=("RUN",))

    run(connection(server, api_key), work, as_json=as_json)


_COLUMNS = ("ID", "SKILL", "ENTRYPOINT", "STATE", "EXIT", "CREATED", "RUN")


def _row(execution: Execution) -> tuple[str, ...]:
    from skillcell.cli.present import duration, when

    end = execution.completed
    return (
        execution.id,
        f"{execution.skill}@{execution.version}",
        execution.entrypoint,
        (end.outcome if end else execution.state).value.lower(),
        "" if end is None or end.exit_code is None else str(end.exit_code),
        when(execution.created_at),
        duration(end.usage.times.run_ns) if end else "",
    )


def _member(kind: type[Member], option: str, text: str) -> Member:
    try:
        return kind[text.upper().replace("-", "_")]
    except KeyError:
        known = ", ".join(member.name.lower() for member in kind)
        raise typer.BadParameter(f"{option} {text!r}: take one of {known}") from None


@app.command()
def show(
    execution_id: options.ExecutionId,
    *,
    as_json: options.Json = False,
    server: options.Server = None,
    api_key: options.ApiKey = None,
) -> None:
    """Show one execution: outcome, evidence, artifacts, usage."""

    async def work(client: SkillcellClient) -> None:
        from skillcell.cli.present import print_json

        execution = await client.get(execution_id)
        if as_json:
            print_json(execution)
        else:
            _describe(execution)

    run(connection(server, api_key), work, as_json=as_json)


def _describe(execution: Execution) -> None:
    from skillcell.cli.present import duration, printable, size, when

    rows = {
        "execution": execution.id,
        "request": execution.request_id,
        "skill": f"{execution.skill}@{execution.version} {execution.entrypoint}",
        "digest": execution.digest,
        "state": execution.state.value.lower(),
        "isolation": execution.isolation.value.lower(),
        "labels": ", ".join(f"{key}={value}" for key, value in execution.labels.items()),
        "created": when(execution.created_at),
        "started": when(execution.started_at),
        "ended": when(execution.ended_at),
        "kept until": when(execution.expires_at),
    }
    end = execution.completed
    if end is not None:
        usage = end.usage
        rows |= {
            "outcome": end.outcome.value + (f": {end.message}" if end.message else ""),
            "exit code": "" if end.exit_code is None else str(end.exit_code),
            "fault": end.fault.value.lower(),
            "run": f"{duration(usage.times.run_ns)}, billed {usage.billed_ms} ms",
            "cpu": duration(usage.cpu_total_ns),
            "memory": f"peak {size(usage.memory_peak_bytes)} of {size(usage.memory_limit_bytes)}",
        }
        if end.evidence is not None:
            seen = end.evidence
            rows["evidence"] = (
                f"{seen.limit}: {seen.observed} of {seen.limit_value} {seen.unit} ({seen.source}) {seen.detail}".strip()
            )
    for artifact in execution.artifacts:
        rows[f"artifact {artifact.name}"] = size(artifact.size_bytes)
    for name, value in rows.items():
        if value:
            sys.stdout.write(f"{printable(name):<11} {printable(value)}\n")


@app.command()
def artifacts(
    execution_id: options.ExecutionId,
    *,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Save them here, by name.", file_okay=False)
    ] = None,
    as_json: options.Json = False,
    server: options.Server = None,
    api_key: options.ApiKey = None,
) -> None:
    """List the artifacts of an execution, or save them."""

    async def work(client: SkillcellClient) -> None:
        from skillcell.cli.present import print_json, size, table
        from skillcell.cli.saving import save_artifacts

        execution = await client.get(execution_id)
        saved: dict[str, Path] = {}
        if out is not None:
            saved = await save_artifacts(client, execution_id, execution.artifacts, out)
        if as_json:
            print_json(execution.artifacts)
            return
        rows = [
            (artifact.name, size(artifact.size_bytes), artifact.media_type, str(saved.get(artifact.name, "")))
            for artifact in execution.artifacts
        ]
        table(("NAME", "SIZE", "TYPE", "SAVED"), rows, right=("SIZE",))

    run(connection(server, api_key), work, as_json=as_json)


def watch(
    execution_id: options.ExecutionId,
    *,
    after_sequence: Annotated[int, typer.Option("--after-sequence", min=0, help="Only what comes after this.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line for each event.")] = False,
    server: options.Server = None,
    api_key: options.ApiKey = None,
) -> None:
    """Follow an execution to its end, from its first event; exits as `call` does. Leaving it cancels nothing."""

    async def work(client: SkillcellClient) -> int:
        from contextlib import aclosing

        from skillcell.cli import report
        from skillcell.cli.live import Live
        from skillcell.cli.present import json_line, plain
        from skillcell.client.collect import Collector
        from skillcell.core.events import Completed

        live, collector, code = Live(), Collector(keep_streams=False), 0
        async with aclosing(client.watch(execution_id, after_sequence=after_sequence)) as stream:
            async for event in stream:
                if isinstance(event.kind, Completed):
                    code = exits.exit_code(event.kind)
                if as_json:
                    line = {
                        "sequence": event.sequence,
                        "time": event.time.isoformat(),
                        "kind": type(event.kind).__name__,
                        **plain_event(plain(event.kind), event.kind),
                    }
                    sys.stdout.write(json_line(line) + "\n")
                    sys.stdout.flush()
                else:
                    collector.add(event)
                    await live.show(event.kind)
        if not as_json:
            await live.finish()
            report.summary(collector.result(), {})
        return code

    run(connection(server, api_key), work, as_json=as_json)


def plain_event(fields: dict[str, object], kind: object) -> dict[str, object]:
    """Bytes as base64, so that a line of JSON holds what the Skill wrote."""
    import base64

    from skillcell.core.events import Output, Stderr, Stdout

    if isinstance(kind, (Stdout, Stderr)):
        return {"data_base64": base64.b64encode(kind.data).decode()}
    if isinstance(kind, Output):
        return {"json": kind.json.decode("utf-8", "replace")}
    return fields


def logs(
    execution_id: options.ExecutionId,
    *,
    server: options.Server = None,
    api_key: options.ApiKey = None,
) -> None:
    """Print what a call wrote: stdout to stdout, stderr and log lines to stderr; follows while it runs."""

    async def work(client: SkillcellClient) -> None:
        from contextlib import aclosing

        from skillcell.cli.live import Live
        from skillcell.core.events import Log, Stderr, Stdout

        live = Live()
        async with aclosing(client.watch(execution_id)) as stream:
            async for event in stream:
                if isinstance(event.kind, (Stdout, Stderr, Log)):
                    await live.show(event.kind)
        await live.finish()

    run(connection(server, api_key), work)


def cancel(
    execution_id: options.ExecutionId,
    *,
    reason: Annotated[str, typer.Option("--reason", help="Kept with the outcome.")] = "",
    as_json: options.Json = False,
    server: options.Server = None,
    api_key: options.ApiKey = None,
) -> None:
    """Cancel an execution, and wait until it is settled. One that has ended stays as it is."""

    async def work(client: SkillcellClient) -> None:
        from skillcell.cli.present import print_json

        execution = await client.cancel(execution_id, reason=reason)
        if as_json:
            print_json(execution)
        else:
            ended = execution.completed.outcome if execution.completed else execution.state
            sys.stdout.write(f"{execution.id} {ended.value.lower()}\n")

    run(connection(server, api_key), work, as_json=as_json)
