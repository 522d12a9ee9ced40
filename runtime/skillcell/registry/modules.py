"""Which Python scripts only work as a module of their package (`python3 -m scripts.run`), and under what name.

A script that imports relatively, or from the folder that it lies in, dies as `python3 scripts/run.py`; its SKILL.md
therefore says `-m`, and its entrypoint is started so. Only unindented imports count, since others may be behind `try`,
and a script that arranges `sys.path` or `__package__` itself is left as it is. Like the rest of discovery this matches
lines and parses nothing.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from skillcell.registry.scripts import Script

_RELATIVE = re.compile(r"^from[ \t]+(\.+)[\w.]*[ \t]+import\b", re.M)
_ABSOLUTE = re.compile(r"^(?:import[ \t]+|from[ \t]+)([A-Za-z_]\w*)(?:\.(\w+)|[ \t]+import[ \t]+\(?[ \t]*(\w+))", re.M)
_ARRANGED = re.compile(r"\bsys\.path\b|\b__package__[ \t]*=|\brunpy\b")
_TEXTS = re.compile(r"(?s)(\"\"\"|''').*?\1")


def module_name(root: Path, script: Script) -> str:
    """`scripts.run` for a script that needs to be one, else empty. The rest of its path is where that is found from."""
    path = PurePosixPath(script.path)
    parts = path.with_suffix("").parts
    if script.command != ("python3", script.path) or len(parts) < 2 or path.suffix != ".py":
        return ""
    text = _TEXTS.sub("", script.text)
    top = -1 if _ARRANGED.search(text) else _top(root, parts, text)
    names = parts[top:-1] if parts[-1] == "__main__" else parts[top:]
    return ".".join(names) if top >= 0 and all(name.isidentifier() for name in names) else ""


def _top(root: Path, parts: tuple[str, ...], text: str) -> int:
    """Index of the folder that is the top package, -1 where the script needs none."""
    folders = parts[:-1]
    imported = {(match[1], match[2] or match[3]) for match in _ABSOLUTE.finditer(text)}
    named = [i for i in range(len(folders)) if any(_holds(root, folders[: i + 1], *pair) for pair in imported)]
    if named:
        return named[0]
    dots = max((len(match[1]) for match in _RELATIVE.finditer(text)), default=0)
    if not dots or dots > len(folders):
        return -1
    top = len(folders) - dots
    while top > 0 and (root.joinpath(*folders[:top]) / "__init__.py").is_file():
        top -= 1
    return top


def _holds(root: Path, folders: tuple[str, ...], package: str, module: str) -> bool:
    """Whether the import is of a module in that very folder, as a library's of the same name is not."""
    place = root.joinpath(*folders)
    return folders[-1] == package and ((place / f"{module}.py").is_file() or (place / module).is_dir())
