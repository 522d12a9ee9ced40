"""Python requirements as a build: what may be asked for, how pip is called, what its lock is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from skillcell.core.errors import Fault, invalid
from skillcell.registry.findings import shown
from skillcell.registry.package_builder import PROXY_HOST, PROXY_PORT
from skillcell.registry.packages_build import TREE_DIR, WORK, Recipe
from skillcell.registry.packages_index import Index
from skillcell.registry.packages_tools import TOOLS
from skillcell.sandbox.driver import PackageMount
from skillcell.sandbox.images import Image

_FIELD = "runtime.packages.pip"
_LINE_BYTES = 4096
_MOST = 500
_HASH = re.compile(r"sha(256:[0-9a-f]{64}|384:[0-9a-f]{96}|512:[0-9a-f]{128})")
_TARGET = "/layers/pip"
_SCRATCH = "scratch"


def requirement_lines(requirements: Sequence[str]) -> tuple[str, ...]:
    """Lines for a requirements file. Raises Fault INVALID_ARGUMENT for whatever is not a name with versions."""
    if len(requirements) > _MOST:
        raise invalid(_FIELD, f"has {len(requirements)} requirements; the limit is {_MOST}", limit=str(_MOST))
    return tuple(_line(index, line) for index, line in enumerate(requirements, 1))


def pinned(lines: Sequence[str]) -> bool:
    """Whether hashes fix everything, so that no index can change what comes of it."""
    return all(" --hash=" in line for line in lines)


def pip_recipe(lines: Sequence[str], image: Image, index: Index, tool: PackageMount) -> Recipe:
    """The build of validated lines."""
    report = f"{WORK}/report.json"
    proxy = f"http://{PROXY_HOST}:{PROXY_PORT}"
    argv = [
        image.python, "-I", f"{TOOLS}/pip", "install", "--isolated", "--no-input", "--no-cache-dir", "--no-color",
        "--disable-pip-version-check", "--progress-bar=off", "--root-user-action=ignore", "--retries=1", "--timeout=30",
        "--only-binary=:all:", "--no-compile", "--ignore-installed", f"--target={TREE_DIR}", f"--report={report}",
        f"--log={WORK}/pip.log",
        f"--proxy={proxy}", f"--cert={WORK}/ca.pem", f"--requirement={WORK}/requirements.txt",
    ]  # fmt: skip
    task = {
        "kind": "pip",
        "argv": argv,
        "env": _environment(image),
        "cwd": f"{WORK}/run",
        "tree": TREE_DIR,
        "report": report,
        # what pip could not fetch it tells its log alone, and then that there is no such package
        "log": [f"{WORK}/pip.log", "Could not fetch URL"],
        "remove": [],
        # as the Skill will see them, and without times: the same sources give the same bytes
        "compile": [
            image.python, "-I", "-m", "compileall", "-q", "-q", "-j1", "--invalidation-mode=unchecked-hash",
            "-s", TREE_DIR, "-p", _TARGET, TREE_DIR,
        ],
        "programs": [],
    }  # fmt: skip
    text = "\n".join([f"--index-url {index.url}", *lines]) + "\n"
    files = {"requirements.txt": text.encode(), "ca.pem": index.certificates, f"{_SCRATCH}/.keep": b""}
    return Recipe(task, files, tool, index.hosts)


def pip_lock(resolved: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """`name==version --hash=sha256:…`, sorted."""
    lines = []
    for item in resolved:
        line = f"{canonicalize_name(str(item['name']))}=={item['version']}"
        lines.append(f"{line} --hash=sha256:{item['sha256']}" if item.get("sha256") else line)
    return tuple(sorted(lines))


def _environment(image: Image) -> dict[str, str]:
    # the same mount as the tree, so that what was unpacked is moved by renaming
    return {
        "PATH": image.env.get("PATH", "/usr/bin:/bin"),
        "HOME": "/home/skill",
        "TMPDIR": f"{WORK}/{_SCRATCH}",
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",
        "SOURCE_DATE_EPOCH": "315532800",
    }


def _line(number: int, line: str) -> str:
    requirement, *hashes = [part.strip() for part in line.split(" --hash=")]
    if len(line) > _LINE_BYTES or any(not c.isprintable() for c in line):
        raise _refused(number, line, f"has a control character or more than {_LINE_BYTES} characters")
    if requirement.startswith("-"):
        raise _refused(number, line, "is an option of pip; only names with versions are taken")
    try:
        parsed = Requirement(requirement)
    except (InvalidRequirement, RecursionError) as error:
        raise _refused(number, line, "is not a requirement such as `name>=1.2` (PEP 508)") from error
    if parsed.url is not None:
        raise _refused(number, line, "names an address; only names with versions are taken")
    for value in hashes:
        if not _HASH.fullmatch(value):
            raise _refused(number, line, "has a hash that is not sha256:, sha384: or sha512: with its hex digits")
    return " ".join([str(parsed), *(f"--hash={value}" for value in hashes)])


def _refused(number: int, line: str, why: str) -> Fault:
    return invalid(f"{_FIELD}[{number}]", f"line {number}, {shown(line)!r}, {why}", line=str(number))
