"""One file of a package seen as a script: is it one, what starts it, and does it look meant to be called?

A shebang decides when it names something we have, else the file's extension does. Contents are only looked at with line
patterns, never parsed: a package is a stranger's, and a compiler is no place for strangers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from skillcell.core.skills import Interpreter

READ_BYTES = 512 << 10
"""How much of a script is looked at."""

_EXTENSIONS = {
    ".py": Interpreter.PYTHON,
    ".sh": Interpreter.SHELL,
    ".bash": Interpreter.SHELL,
    ".js": Interpreter.NODE,
    ".mjs": Interpreter.NODE,
    ".cjs": Interpreter.NODE,
}
_TYPESCRIPT = (".ts", ".mts", ".cts", ".tsx")
_PYTHON = re.compile(r"(python|pypy)[0-9.]*")
_SHELLS = frozenset({"sh", "bash", "dash", "ash"})
_NODES = frozenset({"node", "nodejs"})
_SKIPPED_FOLDERS = frozenset({"node_modules", "__pycache__", "site-packages"})
_NOT_CALLED = frozenset({"__init__.py", "conftest.py", "setup.py"})
_CONFIGURATION = re.compile(r".*\.config\.[cm]?js|.*rc\.[cm]?js")
_SIDE_FOLDERS = frozenset(
    {"test", "tests", "__tests__", "examples", "example", "assets", "references", "reference", "templates", "fixtures"}
)
_TEST_NAME = re.compile(r"test_.*\.py|.*_test\.py|.*\.(test|spec)\.[cm]?js|test[-_.].*\.sh|conftest\.py")
_PYTHON_MAIN = re.compile(r"^if\s+__name__\s*==", re.M)
_PYTHON_CALL = re.compile(r"^[A-Za-z_][\w.]*\(", re.M)
_PYTHON_WORK = re.compile(r"^(for|while|with|print|sys\.exit)\b", re.M)
_NODE_LIBRARY = re.compile(r"^(module\.exports\b|exports\.|export\s+(default|const|function|class|async|\{))", re.M)
_NODE_MAIN = re.compile(
    r"require\.main\s*===?\s*module|process\.argv|import\.meta\.(url|main)|^(await\s+)?main\(",
    re.M,
)
_OTHER_LANGUAGES = frozenset({".command", ".zsh", ".ksh", ".pl", ".rb", ".php", ".lua"})


@dataclass(frozen=True, slots=True)
class Script:
    """A file that can be called."""

    path: str
    """Relative to the package, with slashes."""
    interpreter: Interpreter
    command: tuple[str, ...]
    """argv that starts it, `path` as its last element."""
    text: str
    """Its beginning, for what else is to be inferred."""
    primary: bool
    """Looks meant to be called by itself: no test, example or library module."""
    note: str = ""
    """What a publisher should know of how it is started; empty for nothing."""


@dataclass(frozen=True, slots=True)
class Unstartable:
    """A file that is a program in a language we have no image for."""

    path: str
    why: str


def scripts(root: Path) -> Iterator[Script | Unstartable]:
    """All scripts of a package, sorted by path. Links are not followed: what they point at is listed itself."""
    for path in _files(root):
        found = _look(root, path)
        if found is not None:
            yield found


def _files(root: Path) -> Iterator[str]:
    found: list[str] = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in _SKIPPED_FOLDERS]
        for name in names:
            path = os.path.join(folder, name)
            if not name.startswith(".") and not os.path.islink(path):
                found.append(os.path.relpath(path, root))
    return iter(sorted(found))


def _look(root: Path, path: str) -> Script | Unstartable | None:
    name = os.path.basename(path)
    extension = os.path.splitext(name)[1].lower()
    if name in _NOT_CALLED or _CONFIGURATION.fullmatch(name):
        return None
    by_extension = _EXTENSIONS.get(extension)
    if extension in _TYPESCRIPT:
        declares = name.endswith((".d.ts", ".d.mts", ".d.cts"))
        return None if declares else Unstartable(path, "TypeScript must be compiled")
    if by_extension is None and extension not in {"", *_OTHER_LANGUAGES}:
        return None
    with (root / path).open("rb") as file:
        data = file.read(READ_BYTES)
    if by_extension is None and not data.startswith(b"#!"):
        return None
    text = data.decode("utf-8", "replace").removeprefix("\ufeff").replace("\r\n", "\n")
    words = shebang(text)
    interpreter, command, note = _by_shebang(words)
    if interpreter is None and by_extension is not None:
        if words and not note:
            note = f"its #! line names {words[0]}, which is not in any image; started by its extension"
        interpreter, command = by_extension, (_default_program(by_extension),)
    if interpreter is None:
        return Unstartable(path, f"no image has {words[0] if words else 'what it needs'}")
    return Script(path, interpreter, (*command, path), text, _is_primary(path, interpreter, text), note)


def shebang(text: str) -> tuple[str, ...]:
    """The program a #! line names, without folder and `env`, and its arguments; empty when there is none."""
    if not text.startswith("#!"):
        return ()
    line = text[2:1024].split("\n", 1)[0].strip()
    words = line.split() if line.isprintable() else []
    if words and os.path.basename(words[0]) == "env":
        words = [word for word in words[1:] if word != "-S" and "=" not in word and word != "-"]
    if words[:2] == ["uv", "run"] or words[:2] == ["pipx", "run"]:
        return ("python3",)  # both run a script with its PEP 723 dependencies, which publishing resolves
    return (os.path.basename(words[0]), *words[1:]) if words else ()


def _by_shebang(words: tuple[str, ...]) -> tuple[Interpreter | None, tuple[str, ...], str]:
    if not words:
        return None, (), ""
    program, flags = words[0], words[1:]
    if _PYTHON.fullmatch(program):
        note = "its #! line asks for Python 2; it is started with Python 3" if program.startswith("python2") else ""
        # Output is unbuffered and byte code unwritten anyway; other flags need an interpreter of their own.
        needed = tuple(flag for flag in flags if flag not in {"-u", "-B"})
        return (Interpreter.EXECUTABLE if needed else Interpreter.PYTHON), ("python3", *needed), note
    if program in _SHELLS:
        return Interpreter.SHELL, ("sh" if program in {"sh", "dash", "ash"} else "bash", *flags), ""
    if program in _NODES:
        return Interpreter.NODE, ("node", *flags), ""
    return None, (), ""


def _default_program(interpreter: Interpreter) -> str:
    return {Interpreter.PYTHON: "python3", Interpreter.SHELL: "bash", Interpreter.NODE: "node"}[interpreter]


def lies_aside(path: str) -> bool:
    """A test, an example, a template, a fixture."""
    *folders, name = path.split("/")
    return any(folder in _SIDE_FOLDERS for folder in folders) or _TEST_NAME.fullmatch(name) is not None


def _is_primary(path: str, interpreter: Interpreter, text: str) -> bool:
    if lies_aside(path) or path.rpartition("/")[2].startswith("_"):
        return False
    if interpreter is Interpreter.PYTHON:
        return any(pattern.search(text) for pattern in (_PYTHON_MAIN, _PYTHON_CALL, _PYTHON_WORK))
    if interpreter is Interpreter.NODE:
        return not _NODE_LIBRARY.search(text) or bool(_NODE_MAIN.search(text))
    return True
