"""Publishes one new version after the other and says so, until it is killed. Run as `python registry_child.py ROOT`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from skillcell.core.clock import SystemClock
from skillcell.core.skills import Layer, PackageRequest
from skillcell.core.types import Principal
from skillcell.registry.catalog import Catalog
from skillcell.registry.catalog_changes import CatalogChanges
from skillcell.registry.limits import PackageLimits
from skillcell.registry.package_store import PackageStore
from skillcell.registry.publish import Publication, SkillPublisher
from skillcell.storage.database import Database

ACME = Principal("acme", frozenset({"acme"}), frozenset({"publisher"}))


class NoDependencies:
    async def resolve(self, request: PackageRequest, image: str, package: Path) -> tuple[Layer, ...]:
        return ()


async def main(root: Path) -> None:
    async with await Database.open(f"sqlite:///{root}/store.db") as database:
        publisher = SkillPublisher(
            PackageStore(root / "data"),
            Catalog(database),
            CatalogChanges(database, SystemClock()),
            NoDependencies(),
            PackageLimits(),
        )

        async def publish(lane: int) -> None:
            for number in range(10_000):
                folder = root / f"skill-{lane}" / "demo"
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "SKILL.md").write_text("---\nname: demo\ndescription: d\n---\n")
                (folder / "run.py").write_text(f"print({lane}, {number})\n" * 200)
                published = await publisher.publish(ACME, Publication(folder, "acme"))
                print(published.version.version, published.version.digest, flush=True)

        await asyncio.gather(*(publish(lane) for lane in range(3)))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
