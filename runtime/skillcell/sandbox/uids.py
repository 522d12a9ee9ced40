"""Host user ids for sandboxes: a pair of its own for each live one, over all gateways of the machine.

A pair is held by a symbolic link, made atomically, in a directory that every gateway of the machine shares; it names
the gateway and the sandbox that hold it, so that the gateway can give back what a crash left, and no other one does.
The default range lies above those that systemd's list of user ids assigns (1879048192..2147352575 is marked unused)
and below 2³¹.
"""

from __future__ import annotations

import os
import random
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from skillcell.core.errors import unavailable

DEFAULT_BASE = 0x7000_0000
DEFAULT_PAIRS = 65_536


@dataclass(frozen=True, slots=True)
class IdPair:
    """Uid and gid alike: `root` stands for the inside's 0, which only the runtime uses; `skill` for the Skill's."""

    root: int
    skill: int


@dataclass(frozen=True, slots=True)
class IdRange:
    """`pairs` pairs from `base` on; `directory` holds the links of those in use."""

    directory: Path
    base: int = DEFAULT_BASE
    pairs: int = DEFAULT_PAIRS
    owner: str = ""
    """Whose sandboxes these are: pairs of other owners are neither listed nor given back. No `/` in it."""

    def allocate(self, sandbox_id: str) -> IdPair:
        """A pair that no live sandbox of this machine has. UNAVAILABLE when all are in use."""
        self.directory.mkdir(parents=True, exist_ok=True)
        start = random.randrange(self.pairs)  # noqa: S311 - only spreads gateways apart
        for step in range(self.pairs):
            slot = (start + step) % self.pairs
            try:
                os.symlink(self._holder(sandbox_id), self.directory / str(slot))
            except FileExistsError:
                continue
            return IdPair(self.base + 2 * slot, self.base + 2 * slot + 1)
        raise unavailable("UIDS_EXHAUSTED", f"all {self.pairs} pairs of user ids are in use", timedelta(seconds=1))

    def release(self, sandbox_id: str, pair: IdPair | None = None) -> None:
        """Give back what the sandbox holds; without `pair` it is searched for. Idempotent."""
        if pair is not None:
            link = self.directory / str((pair.root - self.base) // 2)
            with suppress(OSError):
                if os.readlink(link) == self._holder(sandbox_id):
                    os.unlink(link)
            return
        for name, holder in self._links():
            if holder == self._holder(sandbox_id):
                with suppress(FileNotFoundError):
                    os.unlink(self.directory / name)

    def owners(self) -> frozenset[str]:
        """Ids of all sandboxes of this owner that hold a pair."""
        mine = self._holder("")
        found = (holder.removeprefix(mine) for _, holder in self._links() if holder.startswith(mine))
        return frozenset(sandbox_id for sandbox_id in found if "/" not in sandbox_id)

    def _holder(self, sandbox_id: str) -> str:
        return f"{self.owner}/{sandbox_id}" if self.owner else sandbox_id

    def _links(self) -> list[tuple[str, str]]:
        links = []
        with suppress(FileNotFoundError):
            for name in os.listdir(self.directory):
                with suppress(OSError):
                    links.append((name, os.readlink(self.directory / name)))
        return links
