"""Which names an entry of a package may have, and which two entries are too alike to live together."""

from __future__ import annotations

import re
import unicodedata

from skillcell.core.errors import Fault, FaultKind, FieldViolation
from skillcell.registry.findings import shown
from skillcell.registry.limits import PackageLimits

_DRIVE = re.compile(r"[A-Za-z]:")
_UNSAFE_CATEGORIES = frozenset({"Cc", "Cs", "Zl", "Zp"})
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_JUNK_FOLDERS = frozenset({"__MACOSX", ".git", ".svn", ".hg"})
_JUNK_FILES = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})


def refused(entry: str, why: str, problem: str = "entry", **metadata: str) -> Fault:
    """INVALID_ARGUMENT `ARCHIVE_INVALID` that names the entry; `problem` is a word for programs."""
    name = shown(entry)
    return Fault(
        FaultKind.INVALID_ARGUMENT,
        "ARCHIVE_INVALID",
        f"archive entry {name!r} was refused: {why}",
        violations=(FieldViolation(f"archive/{name}", why),),
        metadata={"entry": name, "problem": problem, **metadata},
    )


def unreadable(why: str, problem: str = "unreadable", **metadata: str) -> Fault:
    """INVALID_ARGUMENT `ARCHIVE_INVALID` about the archive as a whole."""
    return Fault(
        FaultKind.INVALID_ARGUMENT,
        "ARCHIVE_INVALID",
        f"the archive was refused: {why}",
        violations=(FieldViolation("archive", why),),
        metadata={"problem": problem, **metadata},
    )


def split_name(name: str, limits: PackageLimits) -> tuple[str, ...]:
    """The parts of an entry's path; empty for the root itself. Raises Fault for a name that no entry may have."""
    if name.startswith("/"):
        raise refused(name, "the path is absolute")
    if _DRIVE.match(name):
        raise refused(name, "the path begins with a drive letter")
    if "\\" in name:
        raise refused(name, "the path has a backslash")
    if any(c in _BIDI or unicodedata.category(c) in _UNSAFE_CATEGORIES for c in name):
        raise refused(name, "the path has a control character or is not Unicode")
    size = len(name.encode("utf-8"))
    if size > limits.name_bytes:
        raise refused(
            name, f"the path has {size} bytes; the limit is {limits.name_bytes}", limit=str(limits.name_bytes)
        )
    parts = tuple(part for part in name.split("/") if part not in {"", "."})
    if ".." in parts:
        raise refused(name, "the path has a `..`")
    if any(len(part.encode("utf-8")) > 255 for part in parts):
        raise refused(name, "a part of the path has more than 255 bytes", limit="255")
    if len(parts) > limits.depth:
        raise refused(name, f"the path is {len(parts)} deep; the limit is {limits.depth}", limit=str(limits.depth))
    return parts


def collision_key(parts: tuple[str, ...]) -> str:
    """Equal for names that some file system takes for one: other case, other Unicode normalisation."""
    folded = unicodedata.normalize("NFKC", "/".join(parts)).casefold()
    return unicodedata.normalize("NFKC", folded)


def is_junk(parts: tuple[str, ...]) -> bool:
    """What tools and desktops leave in archives and nobody means to publish."""
    return any(part in _JUNK_FOLDERS for part in parts) or (
        bool(parts) and (parts[-1] in _JUNK_FILES or parts[-1].startswith("._"))
    )
