"""The agent as a read-only tree for sandboxes: its sources, compiled, under a name that is their content's.

It holds nothing else of this project. The compiled files carry no dates (unchecked hash), so equal sources give equal
trees; they serve sandboxes whose Python is of the gateway's minor version, and others compile in memory.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import py_compile
import shutil
import tempfile
from pathlib import Path

import skillcell.agent
from skillcell.sandbox.driver import PackageMount

AGENT_TARGET = "/.skillcell"
_SOURCES = Path(next(iter(skillcell.agent.__path__)))


def agent_command(python: str = "/usr/bin/python3") -> tuple[str, ...]:
    """argv of the agent for an image whose interpreter is at `python`.

    No flags: a Skill's script inherits the interpreter, and `sys.flags` are its to see.
    """
    start = f"import sys; sys.path.insert(0, {AGENT_TARGET!r}); from skillcell.agent.main import main; main()"
    return (python, "-c", start)


AGENT_COMMAND = agent_command()


def build_agent_package(directory: Path) -> PackageMount:
    """The tree below `directory`, built when it is not there yet; several processes may do this at once."""
    files = {"skillcell/__init__.py": b""}
    for source in sorted(_SOURCES.iterdir()):
        if source.suffix in (".py", ".mjs"):
            files[f"skillcell/agent/{source.name}"] = source.read_bytes()
    digest = _digest(files)
    final = directory / digest
    if not final.is_dir():
        directory.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".agent-", dir=directory))
        try:
            _write(staging, files)
            _publish(staging, final)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return PackageMount(digest, final, AGENT_TARGET)


def _digest(files: dict[str, bytes]) -> str:
    hashed = hashlib.sha256(importlib.util.MAGIC_NUMBER)
    for name, content in files.items():
        hashed.update(f"{name}\0{len(content)}\0".encode() + content)
    return hashed.hexdigest()


def _write(root: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        if path.suffix == ".py":
            py_compile.compile(
                str(path),
                dfile=f"{AGENT_TARGET}/{name}",
                doraise=True,
                invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
            )
    # Whatever the umask: a sandbox's user must read this, and nobody write it.
    for path in (root, *root.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o444)


def _publish(staging: Path, final: Path) -> None:
    try:
        os.rename(staging, final)
    except OSError:
        if not final.is_dir():  # else another process was first, with the same content
            raise
