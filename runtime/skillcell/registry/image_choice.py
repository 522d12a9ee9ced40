"""Which image a folder needs when its manifest names none: the smallest that has what its sources name.

The images are supersets of each other, python-3.11 ⊂ shell ⊂ node-20, so a wrong guess upwards costs some milliseconds
and a wrong guess downwards a "command not found"; hence a program that is merely named in a Python string counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from skillcell.core.skills import Interpreter
from skillcell.registry.scripts import Script

_NODE_PROGRAMS = ("node", "npm", "npx")
_SHELL_PROGRAMS = (
    "awk", "bash", "bc", "curl", "gawk", "git", "jq", "pgrep", "pkill", "sh", "unzip", "xz", "zip", "zipinfo",
)  # fmt: skip
_STARTS_PROGRAMS = re.compile(r"\b(subprocess|os\.system|os\.popen|os\.exec|shutil\.which|pexpect|asyncio\.create_sub)")


def _quoted(programs: tuple[str, ...]) -> re.Pattern[str]:
    """In a list, a call or an assignment: `["git", …`, `which("jq")`, `command = "curl …"`."""
    return re.compile(r"""[\[(=]\s?[rf]?["'](?:/usr/bin/|/bin/)?(""" + "|".join(programs) + r""")["' ]""")


def _commanded(programs: tuple[str, ...]) -> re.Pattern[str]:
    """Where a shell expects a command."""
    before = r"(?:^|[|&;(`]|\b(?:then|do|else|exec|command|which|command -v)\b)[ \t]*"
    return re.compile(before + "(" + "|".join(programs) + r")\b(?!=)", re.M)


_QUOTED_NODE, _QUOTED_SHELL = _quoted(_NODE_PROGRAMS), _quoted(_SHELL_PROGRAMS)
_COMMANDED_NODE = _commanded(_NODE_PROGRAMS)


def choose_image(scripts: Iterable[Script], bins: Iterable[str] = ()) -> tuple[str, str]:
    """The image's alias, and why, as a sentence for the publisher; no reason where nothing asked for more."""
    image, reason = "python-3.11", ""
    for name in bins:
        if name in _NODE_PROGRAMS:
            return "node-20", f"the manifest names {name}"
        image, reason = "shell", f"the manifest names {name}"
    for script in scripts:
        if script.interpreter is Interpreter.NODE:
            return "node-20", f"{script.path} is JavaScript"
        if script.interpreter is Interpreter.SHELL:
            found = _COMMANDED_NODE.search(script.text)
            if found:
                return "node-20", f"{script.path} calls {found[1]}"
            if image != "shell":
                image, reason = "shell", f"{script.path} is a shell script"
        elif _STARTS_PROGRAMS.search(script.text):
            if found := _QUOTED_NODE.search(script.text):
                return "node-20", f"{script.path} calls {found[1]}"
            found = _QUOTED_SHELL.search(script.text)
            if found and image != "shell":
                image, reason = "shell", f"{script.path} calls {found[1]}"
    return image, reason
