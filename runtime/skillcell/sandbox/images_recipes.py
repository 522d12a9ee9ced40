"""Recipes of our own images, as `sandbox_images/` holds them: what stands on what, configuration, locks.

The Dockerfile's last stage is the one place that says an image's environment and user; it is read here, not repeated.
A reader could forget that a fingerprint covers every file that shapes the tree: change one, and the image is rebuilt.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from skillcell.core.errors import Fault, FaultKind, precondition

ALIASES: Mapping[str, str] = {"python-3.11": "python", "shell": "shell", "node-20": "node"}
"""Alias of a manifest → folder in `sandbox_images/`, each image a superset of the one before."""

_SHARED = ("common/install.sh", "common/finalize.sh", "common/stages.sh", "common/pins.sh", "common/remove.txt")
_PINNED = re.compile(r"(?P<name>[a-z0-9@/._+-]+)=(?P<version>\S+) (?P<integrity>sha512-[A-Za-z0-9+/]+=*)")


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one alias is built for one architecture."""

    alias: str
    folder: str
    chain: tuple[str, ...]
    """Folders installed one after another, this image's own the last."""
    fingerprint: str
    """sha256 hex over every file that shapes the tree."""
    env: Mapping[str, str]
    user: str
    working_dir: str
    epoch: int
    """SOURCE_DATE_EPOCH: the one date in the tree."""


@dataclass(frozen=True, slots=True)
class NpmPackage:
    """A package of the npm registry at one version, with the integrity the registry's clients check."""

    name: str
    version: str
    integrity: str
    """`sha512-` and base64."""

    @property
    def archive(self) -> str:
        return f"{self.name}-{self.version}.tgz"


def recipes_directory() -> Path:
    """`sandbox_images/` of the checkout, or the copy inside an installed package."""
    here = Path(__file__).resolve()
    for place in (here.parents[1] / "sandbox_images", here.parents[3] / "sandbox_images"):
        if (place / "npm.lock").is_file():
            return place
    raise precondition(
        "IMAGE_RECIPES_MISSING",
        "sandbox_images/ is neither in the installed package nor beside runtime/ in the checkout",
    )


def lock_path(recipes: Path, architecture: str) -> Path:
    return recipes / f"bookworm.{architecture}.lock"


def load_recipe(recipes: Path, alias: str, architecture: str) -> Recipe:
    """Read an alias's recipe. FAILED_PRECONDITION when no lock exists for the architecture."""
    folders = tuple(ALIASES.values())
    folder = ALIASES[alias]
    chain = folders[: folders.index(folder) + 1]
    lock = lock_path(recipes, architecture)
    if not lock.is_file():
        raise precondition(
            "IMAGE_ARCHITECTURE",
            f"image {alias!r} has no package lock for architecture {architecture!r}; there are: "
            + ", ".join(sorted(p.name.split(".")[1] for p in recipes.glob("bookworm.*.lock"))),
            architecture=architecture,
        )
    digest = hashlib.sha256()
    files = [recipes / name for name in _SHARED] + [lock, recipes / "npm.lock"]
    for name in chain:
        files += sorted((recipes / name).iterdir())
    for file in files:
        digest.update(f"{file.relative_to(recipes)}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    env, user, working_dir = _configuration((recipes / folder / "Dockerfile").read_text())
    found = re.search(r"^# epoch (\d+)$", lock.read_text(), re.MULTILINE)
    if found is None:
        raise Fault(FaultKind.INTERNAL, "IMAGE_RECIPE_BROKEN", f"{lock.name} has no `# epoch` line")
    return Recipe(alias, folder, chain, digest.hexdigest(), env, user, working_dir, int(found[1]))


def npm_package(recipes: Path, name: str) -> NpmPackage:
    """A package as `npm.lock` pins it."""
    for line in (recipes / "npm.lock").read_text().splitlines():
        match = _PINNED.fullmatch(line.strip())
        if match is not None and match["name"] == name:
            return NpmPackage(name, match["version"], match["integrity"])
    raise Fault(FaultKind.INTERNAL, "IMAGE_RECIPE_BROKEN", f"npm.lock does not pin {name}")


def _configuration(dockerfile: str) -> tuple[dict[str, str], str, str]:
    last_stage = re.split(r"^FROM ", dockerfile, flags=re.MULTILINE)[-1]
    env: dict[str, str] = {}
    values = {"USER": "", "WORKDIR": "/"}
    for line in last_stage.splitlines():
        instruction, _, rest = line.partition(" ")
        if instruction == "ENV":
            env.update((name, value) for name, _, value in (pair.partition("=") for pair in shlex.split(rest)))
        elif instruction in values:
            values[instruction] = rest.strip()
    return env, values["USER"], values["WORKDIR"]
