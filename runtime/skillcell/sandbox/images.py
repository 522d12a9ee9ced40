"""The image store: which file tree a sandbox's root is, found by alias or by OCI reference with digest.

Layout of the store's directory: `<hex>/rootfs` (a read-only tree, made once, put in place by rename),
`<hex>/image.json`, and `references/<name>`, links from an alias or reference to its tree. A reader could get two
things wrong. For our own images the digest is the sha256 of the tree's canonical tar (`images_tree.pack`), for a
foreign one it is the digest its registry knows it by. And a tree is never changed once it is in place: a new build is
a new digest, and the link moves.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import re
import secrets
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import quote, unquote

from skillcell.core.errors import Fault, FaultKind, invalid, precondition
from skillcell.sandbox.images_recipes import ALIASES, Recipe, load_recipe, recipes_directory

MINIMUM_PYTHON = (3, 9)
"""What the agent needs inside a sandbox."""

MOUNT_POINTS = (
    ".skillcell",
    "dev",
    "home/skill",
    "input",
    "layers/npm",
    "layers/pip",
    "layers/tools",
    "output",
    "proc",
    "run/skillcell",
    "skill",
    "sys",
    "tmp",
    "workspace",
)
"""Directories that every tree has, relative to its root; drivers mount over them."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_FOREIGN = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._:/-]*[A-Za-z0-9])@(?P<digest>sha256:[0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Image:
    """One image that sandboxes can be made from."""

    reference: str
    """As asked for: an alias, or `repository@sha256:…`."""
    digest: str
    """`sha256:` and 64 hex digits."""
    rootfs: Path | None
    """The tree, for drivers that mount it; None where only the engine holds the image."""
    architecture: str
    """As OCI names it: `amd64`, `arm64`."""
    env: Mapping[str, str] = field(default_factory=dict)
    """What the image sets; PATH among them."""
    python: str = "/usr/bin/python3"
    """Absolute path, inside, of a Python of `MINIMUM_PYTHON` or newer."""
    engine_reference: str = ""
    """What an engine knows it by, once it holds it."""
    recipe: str = ""
    """Fingerprint of the recipe that built it; empty for a foreign image."""
    locked: bool = True
    """Whether every package had its locked version when it was built."""


def machine_architecture() -> str:
    """This machine's, as OCI names it."""
    names = {"x86_64": "amd64", "aarch64": "arm64"}
    machine = platform.machine()
    return names.get(machine, machine)


def parse_foreign(reference: str) -> tuple[str, str]:
    """(repository, digest) of an OCI reference with digest; INVALID_ARGUMENT for anything else."""
    match = _FOREIGN.fullmatch(reference)
    if match is None:
        known = ", ".join(sorted(ALIASES))
        raise invalid(
            "runtime.image",
            f"{reference!r} is neither an alias ({known}) nor an OCI reference with digest (repository@sha256:…)",
            reason="INVALID_IMAGE",
            value=reference,
        )
    return match["name"], match["digest"]


def require_python(reference: str, found: tuple[str, tuple[int, int]] | None) -> str:
    """The path of (path, version) found in an image. FAILED_PRECONDITION unless it is new enough for the agent."""
    if found is not None and found[1] >= MINIMUM_PYTHON:
        return found[0]
    wanted = ".".join(map(str, MINIMUM_PYTHON))
    seen = "none" if found is None else ".".join(map(str, found[1]))
    raise precondition(
        "IMAGE_WITHOUT_PYTHON",
        f"image {reference!r} needs a Python {wanted} or newer on its PATH, since the sandbox's agent is Python; "
        f"it has {seen}",
        image=reference,
        value=seen,
        limit=wanted,
    )


class ImageStore:
    """Trees on this machine. Several processes may use one directory at once."""

    def __init__(self, directory: Path, *, recipes: Path | None = None) -> None:
        self.directory = directory
        self.recipes = recipes if recipes is not None else recipes_directory()

    def recipe(self, alias: str) -> Recipe:
        """How an alias is built; INVALID_ARGUMENT when there is no such alias."""
        if alias not in ALIASES:
            parse_foreign(alias)
        return load_recipe(self.recipes, alias, machine_architecture())

    def resolve(self, reference: str) -> Image:
        """The image a manifest or a call names. FAILED_PRECONDITION, with what to do, when its tree is not here."""
        found = self.find(reference)
        if found is not None:
            return found
        if reference in ALIASES:
            raise precondition(
                "IMAGE_NOT_READY",
                f"image {reference!r} is not built on this machine: run `skillcell images prepare {reference}` as root",
                image=reference,
            )
        repository, digest = parse_foreign(reference)
        raise precondition(
            "IMAGE_NOT_IMPORTED",
            f"image {reference!r} is not on this machine and this driver pulls nothing: fetch it with "
            f"`skopeo copy docker://{repository}@{digest} oci-archive:image.tar` and run "
            f"`skillcell images import image.tar`, or use the docker driver",
            image=reference,
        )

    def find(self, reference: str) -> Image | None:
        """The image whose tree is here, by alias, reference or `sha256:…`; or None.

        An alias whose recipe has changed since it was built still resolves.
        """
        if _DIGEST.fullmatch(reference):
            place = self.directory / reference.removeprefix("sha256:")
        else:
            # Resolved once: the link may move to a newer tree at any time.
            place = (self.directory / "references" / quote(reference, safe="")).resolve()
        try:
            record = json.loads((place / "image.json").read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            message = f"the record of image {reference!r} can't be read"
            raise Fault(FaultKind.DATA_LOSS, "IMAGE_BROKEN", message) from error
        return Image(
            reference=reference,
            digest=record["digest"],
            rootfs=place / "rootfs",
            architecture=record["architecture"],
            env=record["env"],
            python=record["python"],
            recipe=record["recipe"],
            locked=record["locked"],
        )

    def references(self) -> tuple[str, ...]:
        """Every alias and reference that resolves, sorted."""
        folder = self.directory / "references"
        return tuple(sorted(unquote(name) for name in os.listdir(folder))) if folder.is_dir() else ()

    @contextmanager
    def building(self) -> Iterator[Path]:
        """A scratch directory on the store's file system, under its lock: one builder at a time over all processes."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with open(self.directory / ".lock", "a+b") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for left_over in self.directory.glob(".build-*"):
                shutil.rmtree(left_over)
            scratch = self.directory / f".build-{secrets.token_hex(8)}"
            scratch.mkdir(mode=0o755)
            try:
                yield scratch
            finally:
                shutil.rmtree(scratch, ignore_errors=True)

    def prune(self, in_use: Collection[str] = ()) -> tuple[str, ...]:
        """Remove trees that no reference leads to and whose digest is not in use; return their digests."""
        removed = []
        with self.building():
            kept = {(self.directory / "references" / quote(name, safe="")).resolve().name for name in self.references()}
            kept |= {digest.removeprefix("sha256:") for digest in in_use}
            for place in sorted(self.directory.iterdir()):
                if re.fullmatch(r"[0-9a-f]{64}", place.name) and place.name not in kept:
                    shutil.rmtree(place)
                    removed.append(f"sha256:{place.name}")
        return tuple(removed)

    def adopt(self, tree: Path, image: Image) -> Image:
        """Take over a finished tree (from `building`'s scratch) and point the image's reference at it."""
        if _DIGEST.fullmatch(image.digest) is None:
            raise ValueError(f"not a sha256 digest: {image.digest!r}")
        name = image.digest.removeprefix("sha256:")
        place = self.directory / name
        if not (place / "image.json").exists():
            shutil.rmtree(place, ignore_errors=True)
            staged = tree.with_name(f"{tree.name}.staged")
            staged.mkdir(mode=0o755)
            tree.rename(staged / "rootfs")
            _write_record(staged, image)
            staged.rename(place)
        else:
            _write_record(place, image)
        references = self.directory / "references"
        references.mkdir(exist_ok=True)
        link = references / quote(image.reference, safe="")
        fresh = references.parent / f".link-{secrets.token_hex(8)}"
        fresh.symlink_to(f"../{name}")
        fresh.rename(link)
        return replace(image, rootfs=place / "rootfs")


def _write_record(folder: Path, image: Image) -> None:
    record = {
        "digest": image.digest,
        "architecture": image.architecture,
        "env": dict(image.env),
        "python": image.python,
        "recipe": image.recipe,
        "locked": image.locked,
    }
    fresh = folder / ".image.json"
    fresh.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")
    fresh.rename(folder / "image.json")
