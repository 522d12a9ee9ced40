"""A driver whose sandboxes do what a script says; `stubborn` ones refuse to go, and making or ending may be held up."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from scripted_sandbox import ScriptedAgent, ScriptedSandbox
from skillcell.agent import frames
from skillcell.core.errors import unavailable
from skillcell.core.types import Isolation
from skillcell.sandbox.driver import Found, Guarantee, SandboxSpec
from skillcell.sandbox.images import Image
from skillcell.scheduler.leases import Furnishing


async def greet(agent: ScriptedAgent) -> None:
    await agent.send(frames.HELLO, {"protocol": frames.PROTOCOL})
    await agent.stall()


class ScriptedDriver:
    """Makes scripted sandboxes; `stubborn` ones refuse to go, and making or ending may be held up."""

    name = "scripted"

    def __init__(self, script: object = greet) -> None:
        self._script = script
        self.existing: dict[str, ScriptedSandbox] = {}
        self.stubborn: set[str] = set()
        self.creating: BaseException | None = None
        self.may_destroy = asyncio.Event()
        self.may_destroy.set()
        self.destroying = asyncio.Event()
        self.tries = 0

    def guarantees(self, isolation: Isolation) -> frozenset[Guarantee]:
        return frozenset()

    async def ready(self) -> None: ...

    async def create(self, spec: SandboxSpec) -> ScriptedSandbox:
        if self.creating is not None:
            raise self.creating
        sandbox = ScriptedSandbox(self._script, spec.sandbox_id)  # type: ignore[arg-type]
        self.existing[spec.sandbox_id] = sandbox
        return sandbox

    async def destroy(self, sandbox_id: str) -> None:
        self.tries += 1
        self.destroying.set()
        await self.may_destroy.wait()
        if sandbox_id in self.stubborn:
            raise unavailable("DRIVER_UNAVAILABLE", "it won't go")
        sandbox = self.existing.pop(sandbox_id, None)
        if sandbox is not None:
            await sandbox.gone()

    async def list(self) -> Sequence[Found]:
        return [Found(name, None) for name in self.existing]


async def _images(_reference: str) -> Image:
    return Image("shell", "sha256:" + "c" * 64, None, "amd64", {"A": "1"})


FURNISHING = Furnishing(_images, mounts=lambda _: (), agent_command=lambda _: ("agent",))
