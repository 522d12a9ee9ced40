"""`skillcell publish` and `skillcell validate`."""

from __future__ import annotations

import re
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from skillcell.cli import options
from skillcell.cli.connection import connection, fail, run
from skillcell.cli.present import printable
from skillcell.cli.sending import sending

if TYPE_CHECKING:
    from skillcell.client import InvalidArgument, SkillcellClient
    from skillcell.core.skills import Finding

Source = Annotated[
    Path,
    typer.Argument(
        metavar="DIR_OR_ARCHIVE", help="A folder with a SKILL.md, or a zip or tar of one.", show_default=False
    ),
]
Name = Annotated[
    str, typer.Option("--as", metavar="PUBLISHER/NAME", help="Under this name; by default the SKILL.md's.")
]
Version = Annotated[
    str, typer.Option("--version", metavar="V", help="SemVer; by default the manifest's, else the next patch.")
]
Runtime = Annotated[
    Path | None,
    typer.Option("--runtime", metavar="FILE", help="A skill-runtime.yaml laid over the package.", show_default=False),
]
Lenient = Annotated[
    bool, typer.Option("--lenient", help="Import what a person would understand; doubts become warnings.")
]


def publish(
    source: Source,
    *,
    as_name: Name = "",
    version: Version = "",
    runtime: Runtime = None,
    lenient: Lenient = False,
    alias: Annotated[
        list[str] | None, typer.Option("--alias", metavar="NAME", help="Point this alias at it; repeatable.")
    ] = None,
    as_json: options.Json = False,
    server: options.Server = None,
    api_key: options.ApiKey = None,
) -> None:
    """Publish a Skill: one immutable version, named on stdout."""
    overlay = _prepare(source, runtime)

    async def work(client: SkillcellClient) -> int:
        from skillcell.cli.present import print_json
        from skillcell.client import InvalidArgument

        try:
            published = await client.publish(
                source,
                as_name=as_name,
                version=version,
                runtime=overlay,
                lenient=lenient,
                aliases=alias or (),
                on_progress=partial(sending, source.name),
            )
        except InvalidArgument as error:
            if error.reason != "SKILL_INVALID" or as_json:
                raise
            _refused(error)
            return 1
        if as_json:
            print_json(published)
            return 0
        for finding in published.version.findings:
            sys.stderr.write(f"{_line(finding)}\n")
        done = published.version
        sys.stdout.write(f"{done.reference}\n")
        what = "published" if published.created else "was published before, with the same content"
        sys.stderr.write(f"{what}  {done.digest}\n")
        for entrypoint in done.spec.entrypoints:
            default = " (default)" if entrypoint.name == done.spec.default_entrypoint else ""
            sys.stderr.write(printable(f"entrypoint {entrypoint.name}{default}") + "\n")
        if not done.spec.entrypoints:
            sys.stderr.write("it has nothing to run, so it is listed and can't be called\n")
        return 0

    run(connection(server, api_key), work, as_json=as_json)


def validate(
    source: Source,
    *,
    as_name: Name = "",
    version: Version = "",
    runtime: Runtime = None,
    lenient: Lenient = False,
    as_json: options.Json = False,
    server: options.Server = None,
    api_key: options.ApiKey = None,
) -> None:
    """Say everything that is wrong with a Skill, by file and line; publish nothing. Exit code 1 if it is not valid."""
    overlay = _prepare(source, runtime)

    async def work(client: SkillcellClient) -> int:
        from skillcell.cli.present import print_json

        found = await client.validate(
            source,
            as_name=as_name,
            version=version,
            runtime=overlay,
            lenient=lenient,
            on_progress=partial(sending, source.name),
        )
        if as_json:
            print_json(found)
            return 0 if found.valid else 1
        for finding in found.findings:
            sys.stdout.write(f"{_line(finding)}\n")
        if found.valid and found.version is not None:
            names = ", ".join(entrypoint.name for entrypoint in found.version.spec.entrypoints) or "none"
            sys.stderr.write(printable(f"valid; entrypoints: {names}") + "\n")
        else:
            sys.stderr.write("not valid: it would not publish\n")
        return 0 if found.valid else 1

    run(connection(server, api_key), work, as_json=as_json)


def _prepare(source: Path, runtime: Path | None) -> bytes:
    if not source.exists():
        fail(f"{source}: there is no such folder or archive")
    if source.is_dir() and not any(source.iterdir()):
        fail(f"{source}: the folder is empty; a Skill has a SKILL.md at least")
    if runtime is None:
        return b""
    try:
        return runtime.read_bytes()
    except OSError as error:
        fail(f"--runtime {runtime}: {error.strerror}")


def _line(finding: Finding) -> str:
    """`path:line: severity code message`, as compilers say it."""
    place = finding.path or "package"
    if finding.line:
        place += f":{finding.line}" + (f":{finding.column}" if finding.column else "")
    return printable(f"{place}: {finding.severity.value.lower()} {finding.code} {finding.message}")


def _refused(error: InvalidArgument) -> None:
    for violation in error.field_violations:
        said = re.fullmatch(r"(.*) \[([a-z0-9-]+)\]", violation.description, re.DOTALL)
        text = f"error {said[2]} {said[1]}" if said else f"error {violation.description}"
        sys.stderr.write(printable(f"{violation.field or 'package'}: {text}") + "\n")
    sys.stderr.write("error: nothing was published; mend the above, or import with --lenient\n")
