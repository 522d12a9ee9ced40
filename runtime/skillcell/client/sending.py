"""A stream of messages to a gateway, of which all but the first go only when they are wanted.

What a reader could get wrong: grpc.aio takes a write that fails for the end of the call, and drops the status with
which the gateway ended it. So nothing is written to a gateway that has refused or answered the first message already:
it says by initial metadata that it wants the rest.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Generic, TypeVar

from skillcell.client.channel import ask
from skillcell.client.errors import SkillcellError

Message = TypeVar("Message")
_SEND = ("skillcell-upload", "send")


async def send(
    rpc: Callable[..., Any], metadata: Sequence[tuple[str, str]], first: Message, rest: AsyncIterator[Message]
) -> Any:
    """The answer. Raises SkillcellError, and what `rest` raises."""
    sending = _Sending(first, rest)
    sending.call = rpc(sending.messages(), metadata=metadata)
    sending.call.add_done_callback(lambda _: sending.over.set())
    try:
        return await ask(sending.call)
    except (SkillcellError, asyncio.CancelledError):
        if sending.broken is not None:
            raise sending.broken from None
        raise
    finally:
        sending.call.cancel()


class _Sending(Generic[Message]):
    def __init__(self, first: Message, rest: AsyncIterator[Message]) -> None:
        self._first = first
        self._rest = rest
        self.call: Any = None
        self.over = asyncio.Event()
        """Set when the call has ended."""
        self.broken: Exception | None = None
        """What went wrong with the source: gRPC would tell it as its own failure."""

    async def messages(self) -> AsyncIterator[Message]:
        yield self._first
        if _SEND not in tuple(await self.call.initial_metadata() or ()):
            await self.over.wait()  # to end the stream amid its end would cancel the call, and lose the answer
            return
        try:
            async for message in self._rest:
                yield message
        except Exception as error:
            self.broken = error
            raise
