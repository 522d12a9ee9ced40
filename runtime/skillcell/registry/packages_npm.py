"""npm dependencies as a build: what may be asked for, how npm is called, what its lock is.

With a package-lock.json the versions are its versions (`npm ci`). Scripts never run, neither a package's nor Git's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skillcell.core.errors import Fault, invalid, precondition
from skillcell.registry.findings import shown
from skillcell.registry.package_builder import PROXY_HOST, PROXY_PORT
from skillcell.registry.packages_build import TREE_DIR, WORK, Recipe
from skillcell.registry.packages_index import Index
from skillcell.registry.packages_tools import TOOLS
from skillcell.sandbox.driver import PackageMount
from skillcell.sandbox.images import Image

_FIELD = "runtime.packages.npm"
_NAME = re.compile(r"(@[a-z0-9._~-]{1,100}/)?[A-Za-z0-9._~-]{1,214}")
_RANGE = re.compile(r"[A-Za-z0-9.^~<>=|*+ _-]{1,256}")
_MOST = 500
_LOCK_BYTES = 8 << 20
_SECTIONS = ("dependencies", "devDependencies", "optionalDependencies", "peerDependencies", "overrides")


@dataclass(frozen=True, slots=True)
class Project:
    """What npm is to install."""

    package: bytes
    """package.json."""
    lock: bytes = b""
    """package-lock.json, if there is one."""
    pinned: bool = False
    """Whether the lock fixes everything by hash."""


def npm_project(wanted: Sequence[str], lock: str, package: Path) -> Project:
    """From `name@range`s, or from the lock in the unpacked Skill. Blocking. Raises Fault for what can't be served."""
    if lock:
        return _locked(package, lock)
    if len(wanted) > _MOST:
        raise invalid(_FIELD, f"has {len(wanted)} dependencies; the limit is {_MOST}", limit=str(_MOST))
    found: dict[str, str] = {}
    for number, item in enumerate(wanted, 1):
        at = item.rfind("@")
        name, versions = (item[:at], item[at + 1 :]) if at > 0 else (item, "*")
        if not _NAME.fullmatch(name) or not _RANGE.fullmatch(versions):
            why = "is not name@range; addresses, paths and Git are not taken"
            raise invalid(f"{_FIELD}[{number}]", f"entry {number}, {shown(item)!r}, {why}", line=str(number))
        if found.setdefault(name, versions) != versions:
            raise invalid(f"{_FIELD}[{number}]", f"entry {number}, {shown(item)!r}, names {name} a second time")
    return Project(_package_json({"dependencies": found}))


def npm_recipe(project: Project, image: Image, index: Index, tool: PackageMount) -> Recipe:
    """The build of a project."""
    proxy = f"http://{PROXY_HOST}:{PROXY_PORT}"
    argv = [
        "node", f"{TOOLS}/bin/npm-cli.js", "ci" if project.lock else "install", "--ignore-scripts", "--no-audit",
        "--no-fund", "--omit=dev", "--no-update-notifier", "--no-progress", "--loglevel=error", "--no-color",
        "--fetch-retries=1", "--fetch-retry-mintimeout=500", "--fetch-timeout=30000", "--git=/nonexistent/git",
        f"--registry={index.url}", f"--proxy={proxy}", f"--https-proxy={proxy}", "--noproxy=",
        f"--cafile={WORK}/ca.pem", f"--cache={WORK}/cache", f"--userconfig={WORK}/npmrc",
        "--globalconfig=/nonexistent/npmrc",
    ]  # fmt: skip
    task = {
        "kind": "npm",
        "argv": argv,
        "env": {
            "PATH": image.env.get("PATH", "/usr/bin:/bin"),
            "HOME": "/home/skill",
            "TMPDIR": "/tmp",  # noqa: S108 - a private tmpfs of the sandbox, not the host's
            "LANG": "C.UTF-8",
            "NODE_ENV": "production",
        },
        "cwd": TREE_DIR,
        "tree": TREE_DIR,
        "report": f"{TREE_DIR}/node_modules/.package-lock.json",
        "log": [],
        # npm's own notes name the registry's addresses: no part of what was resolved
        "remove": ["package.json", "package-lock.json", "node_modules/.package-lock.json"],
        "compile": [],
        "programs": [],
    }
    files = {
        "tree/package.json": project.package,
        "npmrc": "".join(f"{line}\n" for line in index.npmrc).encode(),
        "ca.pem": index.certificates,
    }
    if project.lock:
        files["tree/package-lock.json"] = project.lock
    return Recipe(task, files, tool, index.hosts)


def npm_lock(resolved: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """`name@version integrity`, and ` at <place>` where a package lies below another one; sorted."""
    lines = []
    for item in resolved:
        line = f"{item['name']}@{item['version']} {item.get('integrity', '')}".rstrip()
        plain = item["place"] == f"node_modules/{item['name']}"
        lines.append(line if plain else f"{line} at {item['place']}")
    return tuple(sorted(lines))


def _locked(package: Path, lock: str) -> Project:
    document = _read(package, lock)
    manifest = _read(package, (Path(lock).parent / "package.json").as_posix())
    listed = document.get("packages")
    if not isinstance(listed, dict) or document.get("lockfileVersion") not in (2, 3):
        raise _unusable(lock, "is of an old form; write it anew with npm 7 or newer: npm install --package-lock-only")
    hashed = True
    for place, entry in listed.items():
        if not isinstance(entry, dict):
            raise _unusable(lock, f"has an entry {shown(place)!r} that is not an object")
        if not place:
            continue
        source = entry.get("resolved", "")
        if entry.get("link") or not place.startswith("node_modules/"):
            raise _unusable(lock, f"links {shown(place)!r} to a local folder; only the registry's packages are taken")
        if not isinstance(source, str) or not source.startswith(("https://", "http://", *([] if source else [""]))):
            raise _unusable(lock, f"takes {shown(place)!r} from outside the registry")
        hashed = hashed and bool(entry.get("integrity") or entry.get("inBundle"))
    sections = {name: manifest[name] for name in _SECTIONS if isinstance(manifest.get(name), dict)}
    return Project(_package_json(sections), json.dumps(document).encode(), hashed)


def _read(package: Path, name: str) -> dict[str, Any]:
    try:
        with (package / name).open("rb") as file:
            data = file.read(_LOCK_BYTES + 1)
    except OSError as problem:
        raise _unusable(name, "can't be read") from problem
    if len(data) > _LOCK_BYTES:
        raise _unusable(name, f"has more than {_LOCK_BYTES} bytes")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as problem:
        raise _unusable(name, "is not JSON") from problem
    if not isinstance(document, dict):
        raise _unusable(name, "is not a JSON object")
    return document


def _package_json(sections: Mapping[str, Any]) -> bytes:
    return json.dumps({"name": "skill", "version": "0.0.0", "private": True, **sections}).encode()


def _unusable(name: str, why: str) -> Fault:
    return precondition("DEPENDENCY_UNRESOLVED", f"{shown(name)} {why}", kind="npm")
