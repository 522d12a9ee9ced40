"""`skillcell skills`: what is published."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from skillcell.cli import options
from skillcell.cli.connection import connection, run

if TYPE_CHECKING:
    from skillcell.client import SkillcellClient
    from skillcell.core.skills import SkillVersion

app = typer.Typer(help="Published Skills: list, show, alias, yank, download.", invoke_without_command=True)
_PAGE = 1000


@app.callback()
def default(
    context: typer.Context,
    *,
    as_json: options.Json = False,
    server: options.Server = None,
    api_key: options.ApiKey = None,
) -> None:
    """Published Skills; without a command, the list of them."""
    options.remember(server, api_key)
    if context.invoked_subcommand is None:
        listed(as_json=as_json, server=server, api_key=api_key)


@app.command("list")
def listed(
    *,
    search: Annotated[str, typer.Option("--search", "-s", metavar="WORDS", help="Best matches first.")] = "",
    publisher: Annotated[str, typer.Option("--publisher", metavar="NAME", help="Only this publisher's.")] = "",
    callable_only: Annotated[bool, typer.Option("--callable", help="Only what can be called.")] = False,
    limit: options.Limit = 100,
    as_json: options.Json = False,
    server: options.Server = None,
    api_key: options.ApiKey = None,
) -> None:
    """List Skills that you may see."""

    async def work(client: SkillcellClient) -> None:
        from skillcell.cli.present import print_json, table
        from skillcell.client import Skill

        found: list[Skill] = []
        token = ""
        while len(found) < limit:
            size = min(limit - len(found), _PAGE)
            if search:
                page = await client.registry.search(search, page_size=size, page_token=token)
            else:
                page = await client.registry.list(
                    publisher=publisher, callable_only=callable_only, page_size=size, page_token=token
                )
            found += page.items
            token = page.next_page_token
            if not token:
                break
        if as_json:
            print_json(found)
            return
        rows = [
            (
                skill.reference,
                skill.latest_version,
                "yes" if skill.callable else "no",
                skill.visibility.value.lower() if skill.visibility else "",
                " ".join(skill.description.split())[:80],
            )
            for skill in found
        ]
        table(("SKILL", "LATEST", "CALLABLE", "VISIBLE", "DESCRIPTION"), rows)

    run(connection(server, api_key), work, as_json=as_json)


@app.command()
def show(
    skill: options.SkillReference,
    *,
    as_json: options.Json = False,
    server: options.Server = None,
    api_key: options.ApiKey = None,
) -> None:
    """Show one version: entrypoints, schemas, limits, dependencies, warnings."""

    async def work(client: SkillcellClient) -> None:
        from skillcell.cli.present import print_json

        found, version = await client.registry.get(skill)
        if as_json:
            print_json({"skill": found, "version": version})
        else:
            _describe(version, dict(found.aliases))

    run(connection(server, api_key), work, as_json=as_json)


def _describe(version: SkillVersion, aliases: dict[str, str]) -> None:
    import json

    from skillcell.cli.present import duration, printable, size, when
    from skillcell.core.types import LimitRequest, Limits

    spec = version.spec
    asked = {name: getattr(spec.limits, name) for name in Limits.names()} if spec.limits != LimitRequest() else {}
    shown = {
        name: duration(value) if name.endswith("_ns") else size(value) if name.endswith("_bytes") else str(value)
        for name, value in asked.items()
        if value is not None
    }
    pointing = [alias for alias, target in aliases.items() if target == version.version]
    rows = {
        "skill": version.reference + (f" ({', '.join(pointing)})" if pointing else ""),
        "digest": version.digest,
        "state": version.state.value.lower() + (f": {version.state_reason}" if version.state_reason else ""),
        "published": when(version.created_at),
        "size": f"{size(version.size_bytes)} in {version.file_count} files",
        "license": spec.license,
        "image": spec.image,
        "network": ", ".join(spec.network.allowed_domains) or "none",
        "secrets": ", ".join(secret.name for secret in spec.secrets),
        "limits": ", ".join(f"{name} {value}" for name, value in shown.items()),
        "packages": ", ".join(f"{layer.kind}: {' '.join(layer.lock)}" for layer in version.layers),
        "about": " ".join(spec.description.split()),
    }
    for name, value in rows.items():
        if value:
            sys.stdout.write(f"{name:<11}{printable(value)}\n")
    for entrypoint in spec.entrypoints:
        default = " (default)" if entrypoint.name == spec.default_entrypoint else ""
        kind = "function" if entrypoint.handler else entrypoint.interpreter.value.lower()
        sys.stdout.write(printable(f"entrypoint {entrypoint.name}{default}  {kind}") + "\n")
        if entrypoint.description:
            sys.stdout.write(f"           {printable(' '.join(entrypoint.description.split()))}\n")
        for label, schema in (("input", entrypoint.input_schema), ("output", entrypoint.output_schema)):
            if schema is not None:
                sys.stdout.write(f"           {label} {json.dumps(schema)}\n")
    for finding in version.findings:
        place = finding.path + (f":{finding.line}" if finding.line else "")
        sys.stdout.write(printable(f"{finding.severity.value.lower():<11}{place}: {finding.message}") + "\n")


@app.command()
def versions(
    skill: options.SkillName,
    *,
    as_json: options.Json = False,
    server: options.Server = None,
    api_key: options.ApiKey = None,
) -> None:
    """List the versions of a Skill, newest first."""

    async def work(client: SkillcellClient) -> None:
        from skillcell.cli.present import print_json, size, table, when

        found: list[SkillVersion] = []
        token = ""
        while True:
            page = await client.registry.versions(skill, page_size=_PAGE, page_token=token)
            found += page.items
            token = page.next_page_token
            if not token:
                break
        if as_json:
            print_json(found)
            return
        rows = [(v.version, v.state.value.lower(), when(v.created_at), size(v.size_bytes), v.digest) for v in found]
        table(("VERSION", "STATE", "PUBLISHED", "SIZE", "DIGEST"), rows, right=("SIZE",))

    run(connection(server, api_key), work, as_json=as_json)


@app.command()
def yank(
    skill: options.SkillName,
    version: Annotated[str, typer.Argument(metavar="VERSION", help="As 1.2.0, or its digest.", show_default=False)],
    *,
    reason: Annotated[str, typer.Option("--reason", help="Callers read it.")] = "",
    undo: Annotated[bool, typer.Option("--undo", help="Give it back.")] = False,
    server: options.Server = None,
    api_key: options.ApiKey = None,
) -> None:
    """Take a version back: it can no longer be called."""

    async def work(client: SkillcellClient) -> None:
        found = await client.registry.yank(skill, version, reason=reason, undo=undo)
        sys.stdout.write(f"{found.reference} {found.state.value.lower()}\n")

    run(connection(server, api_key), work)


@app.command()
def alias(
    skill: options.SkillName,
    name: Annotated[str, typer.Argument(metavar="ALIAS", help="As stable.", show_default=False)],
    version: Annotated[
        str, typer.Argument(metavar="VERSION", help="Where it leads; left out with --delete.", show_default=False)
    ] = "",
    *,
    delete: Annotated[bool, typer.Option("--delete", help="Take the alias away.")] = False,
    server: options.Server = None,
    api_key: options.ApiKey = None,
) -> None:
    """Point an alias at a version."""
    if delete == bool(version):
        raise typer.BadParameter("give a VERSION, or --delete")

    async def work(client: SkillcellClient) -> None:
        found = await client.registry.set_alias(skill, name, version)
        for known, target in sorted(found.aliases.items()):
            sys.stdout.write(f"{found.reference}@{known} -> {target}\n")

    run(connection(server, api_key), work)


@app.command()
def download(
    skill: options.SkillReference,
    *,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Default: NAME-VERSION.tar.gz here.")
    ] = None,
    server: options.Server = None,
    api_key: options.ApiKey = None,
) -> None:
    """Download the package of a version as it was published."""

    async def work(client: SkillcellClient) -> None:
        found, version = await client.registry.get(skill)
        target = out or Path(f"{found.name}-{version.version}.tar.gz")
        header = await client.registry.download(f"{found.reference}@{version.digest}", target)
        sys.stdout.write(f"{target}\n")
        sys.stderr.write(f"{header.digest}\n")

    run(connection(server, api_key), work)
