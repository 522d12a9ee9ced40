"""Clean-up that must be over before anything else goes on, however often the one who waits for it is canceled.

`asyncio.shield` alone is not that: it saves the work from the cancel, but the one who waited goes on at once, while
the sandbox still lives and its memory is given to the next call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def to_completion(work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns or raises. A cancel that comes meanwhile is raised once the work is over, never into it."""
    task = asyncio.create_task(work)
    canceled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            canceled = error
    if canceled is not None:
        raise canceled from (None if task.cancelled() else task.exception())
    return task.result()
