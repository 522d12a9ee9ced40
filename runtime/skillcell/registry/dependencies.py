"""What a folder says of its dependencies: PEP 723 blocks, requirements.txt, package.json. Read, never installed, here.

Requirements that the sandboxed resolver can't serve (paths, VCS addresses, index options) are left out with a warning,
as the Skill may do without them; the manifest's own are errors instead (`manifest.py`).
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet

from skillcell.core.skills import Interpreter, PackageRequest
from skillcell.registry.findings import Report, shown
from skillcell.registry.scripts import Script

PYTHON_VERSION = "3.11.2"
"""Of the images; only major and minor are promised."""
_MAX_BYTES = 512 << 10
_MAX_REQUIREMENTS = 500
_BLOCK_START = re.compile(r"# /// ([A-Za-z0-9-]+)")
_NPM_NAME = re.compile(r"(@[a-z0-9._~-]{1,100}/)?[A-Za-z0-9._~-]{1,214}")
_PLACES = ("", "scripts/")


def inferred_packages(root: Path, found: Iterable[Script], report: Report) -> PackageRequest:
    """All dependencies that the folder itself declares, each once, in the order they were found."""
    pip: dict[str, None] = {}
    for script in found:
        if script.interpreter in {Interpreter.PYTHON, Interpreter.EXECUTABLE}:
            pip |= dict.fromkeys(_inline(script, report))
    for place in _PLACES:
        if _is_file(root, place + "requirements.txt"):
            pip |= dict.fromkeys(requirements_file(root, place + "requirements.txt", report))
    npm: tuple[str, ...] = ()
    lock = ""
    for place in _PLACES:
        if not npm and _is_file(root, place + "package.json"):
            npm, lock = package_json(root, place + "package.json", report)
    return PackageRequest(pip=tuple(pip)[:_MAX_REQUIREMENTS], npm=npm, npm_lock=lock)


def requirements_file(root: Path, path: str, report: Report, depth: int = 0) -> tuple[str, ...]:
    """The requirements of a file and of the files it includes with `-r`, hashes kept as ` --hash=…` behind them."""
    found: list[str] = []
    for number, line in _logical_lines(_read(root, path, report)):
        included = re.fullmatch(r"(?:-r|--requirement)[ =]+(\S+)", line)
        if included:
            below = (Path(path).parent / included[1]).as_posix()
            if depth < 4 and ".." not in below.split("/") and _is_file(root, below):
                found.extend(requirements_file(root, below, report, depth + 1))
            else:
                report.warning("requirements-include", f"{shown(included[1])!r} can't be included", path, number)
            continue
        requirement, *hashes = re.split(r" --hash[= ]", line)
        if line.startswith("-") or not _is_plain(requirement):
            message = f"{shown(line)!r} is left out: only names with versions can be resolved"
            report.warning("requirements-unsupported", message, path, number)
        else:
            found.append(" --hash=".join([requirement.strip(), *(part.strip() for part in hashes)]))
    if found and depth == 0:
        report.note("requirements-read", f"{len(found)} Python requirements", path)
    return tuple(found[:_MAX_REQUIREMENTS])


def package_json(root: Path, path: str, report: Report) -> tuple[tuple[str, ...], str]:
    """`dependencies` as `name@range`, and the path of the lock file beside it, if there is one."""
    try:
        document = json.loads(_read(root, path, report) or "{}")
    except (ValueError, RecursionError):
        report.warning("package-json-invalid", "is not JSON; its dependencies are not read", path)
        return (), ""
    listed: Any = document.get("dependencies", {}) if isinstance(document, dict) else {}
    found: list[str] = []
    for name, wanted in listed.items() if isinstance(listed, dict) else ():
        if not isinstance(wanted, str) or len(wanted) > 256 or set(":/") & set(wanted) or not _NPM_NAME.fullmatch(name):
            message = f"{shown(name)!r} is left out: only versions from the registry can be resolved"
            report.warning("package-json-unsupported", message, path)
        else:
            found.append(f"{name}@{wanted or '*'}")
    if not found:
        return (), ""
    lock = (Path(path).parent / "package-lock.json").as_posix()
    report.note("package-json-read", f"{len(found)} npm dependencies", path)
    return tuple(found[:_MAX_REQUIREMENTS]), lock if _is_file(root, lock) else ""


def _inline(script: Script, report: Report) -> Iterator[str]:
    """PEP 723's script block. Raises nothing."""
    blocks = [(line, body) for line, kind, body in _blocks(script.text) if kind == "script"]
    if not blocks:
        return
    line, body = blocks[0]
    if len(blocks) > 1:
        report.warning("pep723-twice", "has more than one `script` block; none is read", script.path, line)
        return
    try:
        table = tomllib.loads(body)
    except (tomllib.TOMLDecodeError, RecursionError):
        report.warning("pep723-invalid", "the `script` block is not TOML", script.path, line)
        return
    _check_python(table.get("requires-python"), script, line, report)
    listed = table.get("dependencies", [])
    count = 0
    for item in listed if isinstance(listed, list) else ():
        if isinstance(item, str) and _is_plain(item):
            count += 1
            yield item.strip()
        else:
            message = f"{shown(str(item))!r} is left out: only names with versions can be resolved"
            report.warning("pep723-unsupported", message, script.path, line)
    if count:
        report.note("pep723-read", f"{count} Python requirements", script.path, line)


def _blocks(text: str) -> Iterator[tuple[int, str, str]]:
    """(line, type, content) of each block, in one pass: the standard's regular expression is quadratic on bad input."""
    lines = text.split("\n")
    at = 0
    while at < len(lines):
        match = _BLOCK_START.fullmatch(lines[at])
        end = at + 1
        if match:
            while end < len(lines) and (lines[end] == "#" or lines[end].startswith("# ")):
                end += 1
            last = next((i for i in range(end - 1, at, -1) if lines[i] == "# ///"), -1)
            if last > at:
                yield at + 1, match[1], "\n".join(line[2:] for line in lines[at + 1 : last])
        at = end


def _check_python(wanted: object, script: Script, line: int, report: Report) -> None:
    if not isinstance(wanted, str):
        return
    try:
        satisfied = SpecifierSet(wanted).contains(PYTHON_VERSION)
    except InvalidSpecifier:
        satisfied = False
    if not satisfied:
        message = f"requires-python {shown(wanted)!r} is not met: the images have Python 3.11"
        report.warning("pep723-python", message, script.path, line)


def _is_plain(requirement: str) -> bool:
    try:
        return Requirement(requirement).url is None
    except (InvalidRequirement, RecursionError):
        return False


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines without comments, those that end in a backslash joined with the next."""
    pending, first = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        bare = re.sub(r"(^|\s)#.*$", "", line).rstrip()
        first = first if pending else number
        if bare.endswith("\\"):
            pending += bare[:-1] + " "
            continue
        whole, pending = " ".join((pending + bare).split()), ""
        if whole:
            yield first, whole
    if pending.strip():
        yield first, " ".join(pending.split())


def _is_file(root: Path, path: str) -> bool:
    return (root / path).is_file()


def _read(root: Path, path: str, report: Report) -> str:
    with (root / path).open("rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        report.warning("dependencies-too-large", f"has more than {_MAX_BYTES} bytes; it is not read", path)
        return ""
    return data.decode("utf-8-sig", "replace")
