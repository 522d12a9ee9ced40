"""`skillcell call`: one call, live, with the Skill's exit code."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from skillcell.cli import exits, options
from skillcell.cli.connection import connection, run
from skillcell.cli.sending import json_input, source


def call(
    skill: options.SkillReference,
    *,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="-- ARGS…", help="Arguments of the entrypoint, behind `--`.", show_default=False),
    ] = None,
    entrypoint: Annotated[
        str, typer.Option("--entrypoint", "-e", metavar="NAME", help="Full or short name, where there are several.")
    ] = "",
    input_text: Annotated[
        str | None, typer.Option("--input", "-i", metavar="JSON|@FILE", help="JSON input; @- reads standard input.")
    ] = None,
    stdin: Annotated[
        str | None, typer.Option("--stdin", metavar="FILE|-", help="The Skill's standard input; by default empty.")
    ] = None,
    file: Annotated[
        list[str] | None,
        typer.Option("--file", "-f", metavar="PATH[:NAME]", help="File or folder for /workspace; repeatable."),
    ] = None,
    env: Annotated[
        list[str] | None, typer.Option("--env", metavar="K=V", help="Environment variable; K alone passes yours on.")
    ] = None,
    cwd: Annotated[
        options.Cwd | None, typer.Option("--cwd", help="Start in the workspace or in a copy of the package.")
    ] = None,
    timeout: Annotated[
        str | None, typer.Option("--timeout", metavar="S", help="Wall time limit: 2.5, 90s, 5m.")
    ] = None,
    cpu_time: Annotated[str | None, typer.Option("--cpu-time", metavar="S", help="CPU time limit.")] = None,
    memory: Annotated[str | None, typer.Option("--memory", metavar="SIZE", help="Memory limit: 256Mi.")] = None,
    cpu: Annotated[str | None, typer.Option("--cpu", metavar="CORES", help="CPU rate: 1, 0.5, 500m.")] = None,
    pids: Annotated[int | None, typer.Option("--pids", min=1, help="Processes and threads at once.")] = None,
    disk: Annotated[str | None, typer.Option("--disk", metavar="SIZE", help="Writable bytes: 64Mi.")] = None,
    output_limit: Annotated[str | None, typer.Option("--output-limit", metavar="SIZE", help="Bytes of output.")] = None,
    isolation: Annotated[options.IsolationClass | None, typer.Option("--isolation", help="Isolation class.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Save artifacts here, by name.", file_okay=False)
    ] = None,
    collect: Annotated[
        list[str] | None,
        typer.Option("--collect", metavar="GLOB", help="New or changed files of the working directory as artifacts."),
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option("--label", metavar="K=V", help="Label for the usage record; repeatable.")
    ] = None,
    request_id: Annotated[
        str | None, typer.Option("--request-id", metavar="UUID", help="Sending the same call again joins it.")
    ] = None,
    priority: Annotated[int, typer.Option("--priority", min=-100, max=100, help="Among your own queued calls.")] = 0,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Start it, print its id and leave.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No summary at the end.")] = False,
    as_json: options.Json = False,
    server: options.Server = None,
    api_key: options.ApiKey = None,
) -> None:
    """Call a Skill: its output live, its artifacts saved, its usage at the end.

    Input, standard input and files may be of any size: what is too large for a message is sent ahead.
    With --json, one JSON object on stdout and nothing else. Ctrl-C cancels the call; twice leaves at once.
    """
    from skillcell.cli.calling import Calling
    from skillcell.client import CallOptions
    from skillcell.core.types import Isolation, LimitRequest, WorkingDir

    call_options: CallOptions = {
        "entrypoint": entrypoint,
        "args": arguments or [],
        "files": options.input_files(file),
        "env": options.pairs("--env", env, from_environment=True),
        "labels": options.pairs("--label", label),
        "priority": priority,
        "collect": collect or [],
        "limits": LimitRequest(
            wall_ns=options.nanoseconds("--timeout", timeout),
            cpu_ns=options.nanoseconds("--cpu-time", cpu_time),
            memory_bytes=options.size("--memory", memory),
            milli_cpus=options.milli_cpus("--cpu", cpu),
            pids=pids,
            disk_bytes=options.size("--disk", disk),
            output_bytes=options.size("--output-limit", output_limit),
        ),
    }
    if input_text is not None:
        call_options["input_json"] = json_input(input_text)
    if stdin is not None:
        call_options["stdin"] = source("--stdin", stdin)
    if isolation is not None:
        call_options["isolation"] = Isolation[isolation.name]
    if cwd is not None:
        call_options["working_dir"] = WorkingDir[cwd.name]
    calling = Calling(skill, call_options, request_id, out=out, as_json=as_json, quiet=quiet)
    target = connection(server, api_key)
    run(target, calling.start if detach else calling.run, refused=exits.REFUSED, as_json=as_json)


call.__doc__ = f"{call.__doc__}\n\n    {exits.CALL_HELP}\n"
