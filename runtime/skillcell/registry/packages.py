"""Dependencies become read-only layers, once, at publish: `SandboxedPackages` is the resolver of `publish.py`.

The order of a layer: what was asked for is checked → a layer this request came to before → a build, whose report is
the lock → a layer of that lock, or the tree of the build. What could surprise: a request that pins everything by hash
never touches the network once its layer is here, any other one asks the index again after `remember_seconds`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from skillcell.agent.frames import FrameError
from skillcell.core.errors import precondition, unavailable
from skillcell.core.skills import Layer, PackageRequest
from skillcell.core.types import MEBIBYTE, SECOND_NS, Limits
from skillcell.registry.findings import shown
from skillcell.registry.limits import PackageLimits
from skillcell.registry.packages_build import BuildSandboxes, Recipe
from skillcell.registry.packages_errors import explain
from skillcell.registry.packages_index import Index, npm_registry, python_index
from skillcell.registry.packages_layers import LayerStore, layer_digest, request_key
from skillcell.registry.packages_npm import npm_lock, npm_project, npm_recipe
from skillcell.registry.packages_pip import pinned, pip_lock, pip_recipe, requirement_lines
from skillcell.registry.packages_tools import npm_tool, pip_tool
from skillcell.sandbox.images import Image

BUILD_LIMITS = Limits(
    wall_ns=600 * SECOND_NS,
    cpu_ns=1200 * SECOND_NS,
    milli_cpus=2000,
    memory_bytes=3072 * MEBIBYTE,
    pids=256,
    disk_bytes=1536 * MEBIBYTE,
    disk_files=180_000,
    open_files=4096,
    output_bytes=2048 * MEBIBYTE,
    artifact_bytes=1,
    artifact_count=1,
    egress_bytes=2048 * MEBIBYTE,
)
"""Of one build; its output is the tree and what goes out to the index."""

LAYER_LIMITS = PackageLimits(
    packed_bytes=2048 * MEBIBYTE, unpacked_bytes=1024 * MEBIBYTE, entries=200_000, depth=64, name_bytes=4000
)
"""Of one layer."""

_LOCK_LINE = 4096
_Lock = Callable[[Sequence[Mapping[str, Any]]], tuple[str, ...]]


def build_limits(memory_bytes: int, milli_cpus: int) -> Limits:
    """`BUILD_LIMITS` on a machine that grants so much in all: half its memory at most, half of that for files."""
    memory = min(BUILD_LIMITS.memory_bytes, memory_bytes // 2)
    return replace(
        BUILD_LIMITS,
        memory_bytes=memory,
        disk_bytes=min(BUILD_LIMITS.disk_bytes, memory // 2),
        milli_cpus=min(BUILD_LIMITS.milli_cpus, milli_cpus),
    )


@dataclass(frozen=True, slots=True)
class PackageSettings:
    """Where packages come from and how long an answer stands."""

    tools: Path
    """Directory for pip and npm themselves."""
    recipes: Path
    """`sandbox_images/`, which pins npm."""
    package_index: str = ""
    """https:// address of the Python index; empty: pip's own configuration, else PyPI."""
    npm_registry: str = ""
    """https:// address of the npm registry; empty: npm's own configuration, else the public one."""
    remember_seconds: float = 600.0
    """How long a request that the index may answer otherwise tomorrow is not asked again."""
    builds_at_once: int = 2


@dataclass(frozen=True, slots=True)
class _Wish:
    """One layer that is wanted."""

    kind: str
    facts: Mapping[str, Any]
    pinned: bool
    index: Callable[[], Awaitable[Index]]
    recipe: Callable[[Index], Awaitable[Recipe]]
    lock: _Lock


@dataclass(slots=True)
class _Turn:
    """A lock for one request, for as long as somebody waits for it."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


class SandboxedPackages:
    """Resolves in sandboxes, into a `LayerStore`."""

    def __init__(
        self,
        sandboxes: BuildSandboxes,
        layers: LayerStore,
        images: Callable[[str], Awaitable[Image]],
        settings: PackageSettings,
    ) -> None:
        self._sandboxes = sandboxes
        self._layers = layers
        self._images = images
        self._settings = settings
        self._turns: dict[str, _Turn] = {}
        self._building = asyncio.Semaphore(settings.builds_at_once)
        self._has: set[tuple[str, str]] = set()

    @property
    def live(self) -> frozenset[str]:
        """Sandboxes that the reaper must leave alone."""
        return self._sandboxes.live

    async def resolve(self, request: PackageRequest, image: str, package: Path) -> tuple[Layer, ...]:
        """As `publish.PackageResolver` says."""
        lines = requirement_lines(request.pip)
        if not (lines or request.npm or request.bins):
            return ()
        found = await self._images(image)
        await self._check_programs(request.bins, found, package)
        wishes = []
        if lines:
            wishes.append(self._pip(lines, found))
        if request.npm:
            wishes.append(await self._npm(request, found, package))
        return tuple([await self._layer(wish, found) for wish in wishes])

    def _pip(self, lines: tuple[str, ...], image: Image) -> _Wish:
        settings = self._settings

        async def recipe(index: Index) -> Recipe:
            return pip_recipe(lines, image, index, await asyncio.to_thread(pip_tool, settings.tools))

        return _Wish(
            kind="pip",
            facts={"requirements": list(lines)},
            pinned=pinned(lines),
            index=lambda: python_index(settings.package_index),
            recipe=recipe,
            lock=pip_lock,
        )

    async def _npm(self, request: PackageRequest, image: Image, package: Path) -> _Wish:
        settings = self._settings
        project = await asyncio.to_thread(npm_project, request.npm, request.npm_lock, package)

        async def recipe(index: Index) -> Recipe:
            return npm_recipe(
                project, image, index, await asyncio.to_thread(npm_tool, settings.tools, settings.recipes)
            )

        return _Wish(
            kind="npm",
            facts={"package": project.package.decode(), "lock": project.lock.decode()},
            pinned=project.pinned,
            index=lambda: npm_registry(settings.npm_registry),
            recipe=recipe,
            lock=npm_lock,
        )

    async def _layer(self, wish: _Wish, image: Image) -> Layer:
        facts = {"kind": wish.kind, "image": image.digest, "architecture": image.architecture, **wish.facts}
        index: Index | None = None
        if not wish.pinned:
            index = await wish.index()
            facts["index"] = index.public
        key = request_key(facts)
        async with self._turn(key):
            known = await self._layers.recall(key)
            if known is not None:
                return known
            async with self._building:
                layer = await self._build(wish, image, index or await wish.index())
            await self._layers.remember(key, layer, None if wish.pinned else self._settings.remember_seconds)
            return layer

    async def _build(self, wish: _Wish, image: Image, index: Index) -> Layer:
        recipe = await wish.recipe(index)
        scratch = self._layers.scratch()
        found: list[Layer] = []

        async def wanted(report: Mapping[str, Any]) -> bool:
            lock = _checked(wish.lock, report)
            digest = layer_digest(wish.kind, lock, image.digest, image.architecture)
            found.append(Layer(wish.kind, digest, lock))
            return await self._layers.find(digest) is None

        try:
            archive = scratch / "tree.tar"
            built = await self._sandboxes.build(image, recipe, archive, wanted)
            if not found or built.run.exit_code != 0 or built.run.lost or built.run.stop:
                raise explain(wish.kind, built, self._sandboxes.limits, index, image.reference)
            layer = found[0]
            if built.whole:
                await self._layers.add(layer, archive, scratch)
            elif await self._layers.find(layer.digest) is None:
                raise unavailable("DEPENDENCY_BUILD_LOST", f"the {wish.kind} packages were lost on their way")
            return layer
        finally:
            await asyncio.shield(self._layers.discard(scratch))

    async def _check_programs(self, programs: Sequence[str], image: Image, package: Path) -> None:
        """Raises Fault when the image lacks one. Asked inside, since only there PATH and links mean what they will."""
        unknown = [name for name in dict.fromkeys(programs) if (image.digest, name) not in self._has]
        if not unknown:
            return
        built = await self._sandboxes.build(image, _programs_recipe(unknown), package, _never)
        missing = (built.said or {}).get("missing")
        if not isinstance(missing, list):
            raise unavailable("DEPENDENCY_BUILD_LOST", "the image's programs could not be looked at now")
        lacking = [name for name in unknown if name in missing]
        self._has |= {(image.digest, name) for name in unknown if name not in lacking}
        if lacking:
            names = ", ".join(shown(name) for name in lacking)
            raise precondition(
                "PROGRAM_MISSING",
                f"runtime.bins: image {image.reference!r} has no {names}",
                image=image.reference,
                value=lacking[0],
            )

    @asynccontextmanager
    async def _turn(self, key: str) -> AsyncIterator[None]:
        """One build for equal requests at once; those who waited find its layer."""
        turn = self._turns.setdefault(key, _Turn())
        turn.users += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.users -= 1
            if not turn.users:
                del self._turns[key]


def _checked(lock: _Lock, report: Mapping[str, Any]) -> tuple[str, ...]:
    """The lock of a builder's report, which is no more than its claim. Raises FrameError, which ends the build."""
    resolved = report.get("resolved")
    if not isinstance(resolved, list) or not all(isinstance(item, dict) for item in resolved):
        raise FrameError("a report without a list of packages")
    try:
        lines = lock(resolved)
    except KeyError as missing:
        raise FrameError(f"a package in the report has no {missing}") from missing
    if any(len(line) > _LOCK_LINE or not line.isprintable() for line in lines):
        raise FrameError("a package in the report has an odd name")
    return lines


def _programs_recipe(programs: Sequence[str]) -> Recipe:
    return Recipe({"kind": "programs", "programs": list(programs)})


async def _never(_report: Mapping[str, Any]) -> bool:
    return False
