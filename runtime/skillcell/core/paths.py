"""Names of files that cross the border of a sandbox: relative POSIX paths, nothing clever."""

from __future__ import annotations

MAX_PATH_BYTES = 1024
MAX_COMPONENT_BYTES = 255


def path_problem(name: str) -> str:
    """Why `name` can't be a relative file name in or from a sandbox; empty when it can."""
    if not name:
        return "is empty"
    try:
        encoded = name.encode("utf-8")
    except UnicodeEncodeError:
        return "is not UTF-8"
    if len(encoded) > MAX_PATH_BYTES:
        return f"is over {MAX_PATH_BYTES} bytes"
    if any(ord(character) < 32 or ord(character) == 127 for character in name) or "\\" in name:
        return "has a control character or backslash"
    parts = name.split("/")
    if any(part in {"", ".", ".."} for part in parts):
        return "must be relative, without empty, `.` or `..` parts"
    if any(len(part.encode()) > MAX_COMPONENT_BYTES for part in parts):
        return f"has a part over {MAX_COMPONENT_BYTES} bytes"
    return ""
