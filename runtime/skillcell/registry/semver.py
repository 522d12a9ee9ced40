"""Semantic Versioning 2.0.0: order and next. Build metadata is refused: two versions must never differ only in it."""

from __future__ import annotations

import re

_VERSION = re.compile(
    r"(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})"
    r"(?:-((?:0|[1-9][0-9]{0,8}|[0-9]*[A-Za-z-][0-9A-Za-z-]*)(?:\.(?:0|[1-9][0-9]{0,8}|[0-9]*[A-Za-z-][0-9A-Za-z-]*))*))?"
)
_MAX_LENGTH = 64


def valid(text: str) -> bool:
    """At most 64 characters of `major.minor.patch[-prerelease]`."""
    return len(text) <= _MAX_LENGTH and _VERSION.fullmatch(text) is not None


def is_prerelease(version: str) -> bool:
    return "-" in version


def sort_key(version: str) -> str:
    """ASCII text whose byte order is SemVer's precedence (its section 11). Raises ValueError when not valid."""
    match = _VERSION.fullmatch(version)
    if match is None:
        raise ValueError("not a SemVer version")
    core = ".".join(f"{int(match[i]):09d}" for i in (1, 2, 3))
    if match[4] is None:
        return core + "~"  # after every prerelease
    # Numbers before words, a shorter list before a longer one. "!" ends a part and sorts below all that may be in one.
    parts = (f"0{int(p):09d}" if p.isdigit() else f"1{p}" for p in match[4].split("."))
    return core + "-" + "!".join(parts) + "!"


def next_patch(version: str) -> str:
    """The release after `version`: a prerelease's own release, else patch + 1."""
    core, _, prerelease = version.partition("-")
    if prerelease:
        return core
    major, minor, patch = core.split(".")
    return f"{major}.{minor}.{int(patch) + 1}"
