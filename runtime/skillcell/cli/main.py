"""The entry point. Only names and help live here: each command imports what it needs when it runs."""

from __future__ import annotations

import os
from enum import Enum
from typing import Annotated

import typer

from skillcell.cli import billing, call, executions, options, publishing, serve, skills, upload, usage


class Shell(Enum):
    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


app = typer.Typer(
    name="skillcell",
    help="Run third-party Skills in isolated containers, and meter every call.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def for_every_command(server: options.Server = None, api_key: options.ApiKey = None) -> None:
    """Run third-party Skills in isolated containers, and meter every call."""
    options.remember(server, api_key)


def version(*, short: Annotated[bool, typer.Option("--short", help="The number alone.")] = False) -> None:
    """Print the version."""
    from importlib.metadata import version as installed

    number = installed("skillcell")
    typer.echo(number if short else f"skillcell {number}")


def completion(
    shell: Annotated[Shell, typer.Argument(help="Which shell's script.", show_default=False)],
) -> None:
    """Print the script that completes commands and Skill names: source <(skillcell completion bash)."""
    os.environ["_SKILLCELL_COMPLETE"] = f"source_{shell.value}"
    app(prog_name="skillcell")


app.command()(serve.serve)
app.command()(publishing.publish)
app.command()(publishing.validate)
app.command()(call.call)
app.command()(upload.upload)
app.add_typer(skills.app, name="skills")
app.add_typer(executions.app, name="executions")
app.command()(executions.watch)
app.command()(executions.logs)
app.command()(executions.cancel)
app.add_typer(usage.app, name="usage")
app.add_typer(billing.app, name="billing")
app.command()(serve.doctor)
app.add_typer(serve.images_app, name="images")
app.command()(completion)
app.command()(version)


def main() -> None:
    """The `skillcell` console script."""
    app()
