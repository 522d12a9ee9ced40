"""`skillcell upload`: bytes sent ahead, for calls that name them."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from skillcell.cli import options
from skillcell.cli.connection import connection, run
from skillcell.cli.sending import sending, source

if TYPE_CHECKING:
    from skillcell.client import SkillcellClient


def upload(
    file: Annotated[str, typer.Argument(metavar="FILE|-", help="What to send.", show_default=False)],
    *,
    as_json: options.Json = False,
    server: options.Server = None,
    api_key: options.ApiKey = None,
) -> None:
    """Send input ahead, and print the digest by which calls name it.

    The gateway keeps it for this tenant alone, and for a while after its last use. `call` does this by itself for
    what is large; the digest is for requests that other programs make, or that many calls share.
    """
    content = source("FILE", file)

    async def work(client: SkillcellClient) -> int:
        from skillcell.cli.present import print_json

        done = await client.upload(content, on_progress=partial(sending, file))
        if as_json:
            print_json(done)
        else:
            sys.stdout.write(f"{done.digest}\n")
            sys.stderr.write(f"{done.size_bytes} bytes, kept until {done.expires_at:%Y-%m-%d %H:%M} UTC\n")
        return 0

    run(connection(server, api_key), work, as_json=as_json)
