"""What a Skill's scripts import and nothing will bring: told at publish, where a line in the manifest mends it.

Lines are matched, nothing is parsed (see `scripts.py`), so these findings are never errors. An unindented Python import
is run whenever the script is; an indented one may be behind `try`, so it is a note alone. Names of imports are not
names of packages: where some are declared, one that is not recognised may come with another, and is left alone.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from skillcell.core.skills import Interpreter, PackageRequest
from skillcell.registry.findings import Report
from skillcell.registry.scripts import Script, lies_aside

IMAGES = frozenset({"python-3.11", "shell", "node-20"})
"""The images that what follows is true of."""
IMAGE_MODULES = frozenset(
    {"certifi", "chardet", "charset_normalizer", "idna", "pkg_resources", "requests", "six", "urllib3", "yaml"}
)
"""Top-level Python modules of the images beside the standard library."""
ABSENT_MODULES = frozenset({"ensurepip", "msilib", "msvcrt", "tkinter", "turtle", "turtledemo", "winreg", "winsound"})
"""Of the standard library, but not in the images."""
_LATER_REMOVED = frozenset({"asynchat", "asyncore", "distutils", "imp", "lib2to3", "smtpd"})
"""In the images' Python 3.11 and perhaps no longer in the gateway's own."""
NODE_MODULES = frozenset(
    {
        "assert", "async_hooks", "buffer", "child_process", "cluster", "console", "constants", "crypto", "dgram",
        "diagnostics_channel", "dns", "domain", "events", "fs", "http", "http2", "https", "inspector", "module", "net",
        "os", "path", "perf_hooks", "process", "punycode", "querystring", "readline", "repl", "stream",
        "string_decoder", "sys", "timers", "tls", "trace_events", "tty", "url", "util", "v8", "vm", "wasi",
        "worker_threads", "zlib",
    }
)  # fmt: skip
"""Node's own, each also as `node:name`."""
_PACKAGE_OF = {
    "attr": "attrs", "bs4": "beautifulsoup4", "cv2": "opencv-python-headless", "dateutil": "python-dateutil",
    "docx": "python-docx", "dotenv": "python-dotenv", "fitz": "pymupdf", "jwt": "pyjwt", "magic": "python-magic",
    "OpenSSL": "pyopenssl", "PIL": "pillow", "pptx": "python-pptx", "serial": "pyserial", "skimage": "scikit-image",
    "sklearn": "scikit-learn",
}  # fmt: skip
"""Imports whose package has another name, of those that Skills use most."""
_TEXTS = re.compile(r"(?s)(\"\"\"|''').*?\1")
_PYTHON_IMPORT = re.compile(
    r"^([ \t]*)(?:import[ \t]+([A-Za-z_][\w.]*(?:[ \t]*,[ \t]*[A-Za-z_][\w.]*)*)"
    r"|from[ \t]+([A-Za-z_]\w*)(?:\.[\w.]*)?[ \t]+import\b)",
    re.M,
)
_NODE_IMPORT = re.compile(
    r"""^(?:import|export)\b[^'";]{0,1000}+["']([^'"\n]+)["']"""
    r"""|^(?:const|let|var)\b[^\n]*?\brequire\(["']([^'"\n]+)["']\)""",
    re.M,
)
_NPM_NAME = re.compile(r"(@[a-z0-9._~-]+/)?[a-z0-9._~-]+")
_MAX_TOLD = 20


def report_undeclared(
    root: Path, found: Iterable[Script], packages: PackageRequest, image: str, report: Report
) -> None:
    """One finding for each import that the image lacks, the package does not hold and no dependency is named like."""
    if image not in IMAGES:
        return
    local = _local_names(root)
    told: set[tuple[Interpreter, str]] = set()
    for script in found:
        if lies_aside(script.path):
            continue
        for name, text, offset, sure in _imports(script):
            if len(told) >= _MAX_TOLD:
                return
            key = (script.interpreter, name)
            if key not in told and _missing(name, script.interpreter, packages, local):
                told.add(key)
                add = report.warning if sure and script.primary else report.note
                add("import-undeclared", _message(name, script), script.path, text.count("\n", 0, offset) + 1)


def _message(name: str, script: Script) -> str:
    if script.interpreter is Interpreter.NODE:
        how = f"add runtime.packages.npm: [{name}], or a package.json"
    elif name in ABSENT_MODULES:
        how = "no image has this part of the standard library"
    else:
        how = f"add runtime.packages.pip: [{_PACKAGE_OF.get(name, name)}], or a PEP 723 block"
    return f"imports {name}, which the image lacks and nothing declares: {how}"


def _missing(name: str, interpreter: Interpreter, packages: PackageRequest, local: frozenset[str]) -> bool:
    if name in local:
        return False
    if interpreter is Interpreter.NODE:
        return name not in NODE_MODULES and not packages.npm
    if name in ABSENT_MODULES:
        return True
    known = name in sys.stdlib_module_names or name in IMAGE_MODULES or name in _LATER_REMOVED
    return not known and not packages.pip


def _imports(script: Script) -> Iterator[tuple[str, str, int, bool]]:
    """Top-level name, the text and the offset in it, and whether the line is run for certain."""
    if script.interpreter is Interpreter.NODE:
        for match in _NODE_IMPORT.finditer(script.text):
            if name := _npm_package(match[1] or match[2]):
                yield name, script.text, match.start(), True
    elif script.command[0] == "python3":
        text = _TEXTS.sub(lambda string: "\n" * string[0].count("\n"), script.text)
        for match in _PYTHON_IMPORT.finditer(text):
            for name in [match[3]] if match[3] else re.split(r"[ \t]*,[ \t]*", match[2]):
                yield name.partition(".")[0], text, match.start(), not match[1]


def _npm_package(specifier: str) -> str:
    """`lodash` of `lodash/fp`, `@scope/name` of what lies below it; empty for files, URLs and `node:`."""
    if specifier.startswith((".", "/", "#", "node:")) or ":" in specifier:
        return ""
    name = "/".join(specifier.split("/")[: 2 if specifier.startswith("@") else 1])
    return name if _NPM_NAME.fullmatch(name) else ""


def _local_names(root: Path) -> frozenset[str]:
    """Stems of all files and names of all folders: a script may have any of them on its path."""
    names: set[str] = set()
    for _, folders, files in os.walk(root):
        names.update(folders)
        names.update(name.partition(".")[0] for name in files)
    return frozenset(names)
