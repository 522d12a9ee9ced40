"""Options that several commands have, and the forms of their values."""

from __future__ import annotations

import os
import re
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skillcell.cli import complete

if TYPE_CHECKING:
    from datetime import datetime

Server = Annotated[
    str | None,
    typer.Option(
        "--server",
        envvar="SKILLCELL_ADDRESS",
        metavar="HOST:PORT",
        help="Gateway; by default the one that `skillcell serve` started last.",
        show_default=False,
    ),
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        "--api-key", envvar="SKILLCELL_API_KEY", metavar="KEY", help="API key for that gateway.", show_default=False
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
SkillReference = Annotated[
    str,
    typer.Argument(
        metavar="REF",
        help="publisher/name, with @version, @alias or @sha256:… behind it if wanted.",
        autocompletion=complete.skills,
        show_default=False,
    ),
]
SkillName = Annotated[
    str, typer.Argument(metavar="SKILL", help="publisher/name", autocompletion=complete.skills, show_default=False)
]
ExecutionId = Annotated[
    str,
    typer.Argument(
        metavar="ID", help="As `skillcell executions` lists it.", autocompletion=complete.executions, show_default=False
    ),
]
Labels = Annotated[list[str] | None, typer.Option("--label", metavar="K=V", help="Only with this label; repeatable.")]
After = Annotated[
    str | None, typer.Option("--after", metavar="TIME", help="Not before this: 2026-11-22T10:00, or 2h, 7d ago.")
]
Before = Annotated[str | None, typer.Option("--before", metavar="TIME", help="Before this, in the same forms.")]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, help="How many at most.")]


def remember(server: str | None, api_key: str | None) -> None:
    """An option given before a subcommand means what the environment variable means, for the subcommand."""
    if server:
        os.environ["SKILLCELL_ADDRESS"] = server
    if api_key:
        os.environ["SKILLCELL_API_KEY"] = api_key


class IsolationClass(Enum):
    """As on the wire, in the small letters of a command line."""

    STANDARD = "standard"
    GVISOR = "gvisor"
    VM = "vm"


class Cwd(Enum):
    WORKSPACE = "workspace"
    SKILL = "skill"


def pairs(option: str, given: list[str] | None, *, from_environment: bool = False) -> dict[str, str]:
    """`K=V`, and for environment variables `K` alone, whose value is this process's."""
    found: dict[str, str] = {}
    for pair in given or ():
        key, equals, value = pair.partition("=")
        if not equals and from_environment and key in os.environ:
            value = os.environ[key]
        elif not equals or not key:
            raise typer.BadParameter(f"{option} {pair!r}: is not K=V")
        found[key] = value
    return found


def size(option: str, text: str | None) -> int | None:
    """Bytes from a Kubernetes quantity."""
    return _quantity(option, text, "size_bytes")


def milli_cpus(option: str, text: str | None) -> int | None:
    """Thousandths of a core from a Kubernetes quantity."""
    return _quantity(option, text, "milli_cpus")


def _quantity(option: str, text: str | None, reader: str) -> int | None:
    if text is None:
        return None
    from skillcell.registry import quantities

    read: Any = getattr(quantities, reader)
    try:
        value: int = read(text)
    except ValueError as error:
        raise typer.BadParameter(f"{option} {text!r}: {error}") from error
    return value


_SPAN = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)?")
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(option: str, text: str | None) -> float | None:
    """`1.5`, `90s`, `2m`, `1h`."""
    if text is None:
        return None
    match = _SPAN.fullmatch(text)
    if match is None or float(match[1]) <= 0:
        raise typer.BadParameter(f"{option} {text!r}: is not a positive time such as 1.5, 90s, 2m or 1h")
    return float(match[1]) * _SECONDS[match[2] or "s"]


def nanoseconds(option: str, text: str | None) -> int | None:
    value = seconds(option, text)
    return None if value is None else round(value * 1e9)


def moment(option: str, text: str | None) -> datetime | None:
    """An ISO time (local where it names no zone), or a span back from now."""
    if text is None:
        return None
    from datetime import UTC, datetime, timedelta

    if _SPAN.fullmatch(text):
        return datetime.now(UTC) - timedelta(seconds=seconds(option, text) or 0)
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError:
        raise typer.BadParameter(f"{option} {text!r}: is not a time such as 2026-11-22T10:00 or 2h") from None


def month(option: str, text: str) -> str:
    """A billing period, `2026-11`; the one that is running, in UTC, where none is given."""
    from datetime import UTC, datetime

    from skillcell.core.periods import Period

    try:
        return str(Period.parse(text) if text else Period.of(datetime.now(UTC)))
    except ValueError as error:
        raise typer.BadParameter(f"{option}: {error}") from error


def input_files(given: list[str] | None) -> dict[str, Path]:
    """`PATH` or `PATH:NAME`, name in the workspace to local file. A folder brings the files below it."""
    found: dict[str, Path] = {}
    for text in given or ():
        path, name = Path(text), Path(text).name
        if not path.exists() and ":" in text:
            head, _, name = text.rpartition(":")
            path = Path(head)
        if not path.exists():
            raise typer.BadParameter(f"--file {text!r}: there is no such file")
        if path.is_dir():
            base = name or path.resolve().name
            files = sorted(below for below in path.rglob("*") if below.is_file())
            found |= {f"{base}/{below.relative_to(path).as_posix()}": below for below in files}
        else:
            found[name or path.name] = path
    return found
