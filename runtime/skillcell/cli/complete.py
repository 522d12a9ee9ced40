"""Shell completion of names. Offline it completes nothing, within a second, and never prints."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from skillcell.client import SkillcellClient

_SECONDS = 1.0


def skills(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """`publisher/name`, and behind an `@` its versions and aliases."""
    name, at, _ = incomplete.partition("@")

    async def ask(client: SkillcellClient) -> list[tuple[str, str]]:
        if at:
            page = await client.registry.versions(name, page_size=100)
            skill, _ = await client.registry.get(name)
            aliases = [(f"{name}@{alias}", version) for alias, version in skill.aliases.items()]
            return aliases + [(version.reference, version.state.value.lower()) for version in page.items]
        found = await client.registry.list(page_size=1000)
        return [(skill.reference, skill.description.partition("\n")[0][:60]) for skill in found.items]

    return [(value, text) for value, text in _ask(context, ask) if value.startswith(incomplete)]


def executions(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """The newest executions."""

    async def ask(client: SkillcellClient) -> list[tuple[str, str]]:
        page = await client.list(page_size=50)
        return [(execution.id, f"{execution.skill} {execution.state.value.lower()}") for execution in page.items]

    return [(value, text) for value, text in _ask(context, ask) if value.startswith(incomplete)]


def _ask(
    context: typer.Context, question: Callable[[SkillcellClient], Coroutine[Any, Any, list[tuple[str, str]]]]
) -> list[tuple[str, str]]:
    import asyncio

    from skillcell.cli.connection import connection
    from skillcell.client import RetryPolicy, SkillcellClient, SkillcellError

    target = connection(context.params.get("server"), context.params.get("api_key"))

    async def answered() -> list[tuple[str, str]]:
        once = RetryPolicy(before_admission=0)
        async with SkillcellClient(target.address, api_key=target.api_key, retry=once) as client:
            return await asyncio.wait_for(question(client), _SECONDS)

    try:
        return asyncio.run(answered())
    except (SkillcellError, TimeoutError, OSError):
        return []
