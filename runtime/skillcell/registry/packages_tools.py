"""pip and npm as read-only trees for the sandboxes that resolve dependencies; no image holds either.

pip is the gateway's own, copied and compiled once, under a name that is its content's: its version is what the
gateway was installed with. npm is the one that `sandbox_images/npm.lock` pins.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import py_compile
import shutil
import tempfile
from pathlib import Path

from skillcell.core.errors import precondition
from skillcell.sandbox.driver import PackageMount
from skillcell.sandbox.images_npm import prepare_npm
from skillcell.sandbox.images_recipes import npm_package

TOOLS = "/layers/tools"
"""Where a tool appears inside."""


def pip_tool(tools: Path) -> PackageMount:
    """pip below `TOOLS/pip`. Blocking, seconds the first time. Raises Fault when the gateway has no pip."""
    source = _installed("pip")
    names = sorted(
        path.relative_to(source).as_posix()
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".exe"
    )
    digest = hashlib.sha256(importlib.util.MAGIC_NUMBER)
    for name in names:
        digest.update(f"{name}\0{hashlib.sha256((source / name).read_bytes()).hexdigest()}\n".encode())
    final = tools / f"pip-{digest.hexdigest()}"
    if not final.is_dir():
        tools.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".pip-", dir=tools) as scratch:
            tree = Path(scratch) / "tree"
            _copy(source, tree / "pip", names)
            _put(tree, final)
    return PackageMount(digest.hexdigest(), final, TOOLS)


def npm_tool(tools: Path, recipes: Path) -> PackageMount:
    """npm at `TOOLS`, with `bin/npm-cli.js`. Blocking; fetched the first time. Raises Fault."""
    place = prepare_npm(tools, recipes)
    integrity = npm_package(recipes, "npm").integrity
    return PackageMount(hashlib.sha256(integrity.encode()).hexdigest(), place, TOOLS)


def _installed(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        return Path(place)
    raise precondition("PACKAGE_TOOL_MISSING", f"the gateway's Python has no {name}; install it: python -m ensurepip")


def _copy(source: Path, target: Path, names: list[str]) -> None:
    for name in names:
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, path)
        if path.suffix == ".py":
            py_compile.compile(
                str(path),
                dfile=f"{TOOLS}/pip/{name}",
                quiet=2,  # pip carries templates that are not Python
                invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
            )
    for path in (target.parent, *target.parent.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o444)


def _put(tree: Path, final: Path) -> None:
    try:
        os.rename(tree, final)
    except OSError:
        if not final.is_dir():  # else another process was first, with the same content
            raise
