"""What a sandbox's side claims, read without being believed: events, exits, figures.

All of it may be a hostile Skill's words. Every function here takes any bytes and either returns values that later
stages can hold (text that UTF-8 can carry, integers of 64 bits, JSON that is finite and not too deep) or raises
FrameError and nothing else: an exception of another kind would turn a run that happened into a failure of ours, which
is not billed.
"""

from __future__ import annotations

import json
from typing import Any

from skillcell.agent.frames import FrameError
from skillcell.core import events
from skillcell.core.json_text import NotJson, parse_json
from skillcell.sandbox.driver import DiskUsage

_LEVELS = frozenset({"debug", "info", "warning", "error"})
_INT64 = 1 << 63


def parse_event(payload: bytes) -> events.Event:
    """A line that the Skill wrote to SKILLCELL_EVENTS; what it is not, it is told in a log event."""
    try:
        said = json_object(payload)
    except FrameError as error:
        return events.Log("warning", f"an event was not understood: {error}")
    match said.get("type"):
        case "log":
            level = said.get("level", "info")
            fields = said.get("fields", {})
            return events.Log(
                level if isinstance(level, str) and level in _LEVELS else "info",
                text(said.get("message", "")),
                fields if isinstance(fields, dict) else {"fields": fields},
            )
        case "progress":
            fraction = said.get("fraction")
            if isinstance(fraction, bool) or not isinstance(fraction, int | float):
                fraction = None
            return events.Progress(
                None if fraction is None else float(min(1, max(0, fraction))), text(said.get("message", ""))
            )
        case "output" if "value" in said:
            return events.Output(json.dumps(said["value"], separators=(",", ":")).encode())
        case other:
            return events.Log("warning", f"an event of unknown type {text(other)[:64]!r} was ignored")


def json_object(payload: bytes) -> dict[str, Any]:
    """A payload that is one JSON object. Raises FrameError."""
    try:
        value = parse_json(payload, half_pairs=True)  # Python writes file names that are not UTF-8 so
    except NotJson as error:
        raise FrameError(f"a payload is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise FrameError("a payload is not a JSON object")
    return value


def text(said: object) -> str:
    """Whatever was said, as text that UTF-8 can hold; nothing for null."""
    if said is None:
        return ""
    return (said if isinstance(said, str) else json.dumps(said)).encode("utf-8", "replace").decode()


def small_int(value: object) -> int | None:
    """An exit code or a signal number, None when it is neither."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 255:
        return None
    return value


def agent_disk(said: object) -> dict[str, DiskUsage]:
    """Writable mounts by path; what is malformed is left out."""
    found: dict[str, DiskUsage] = {}
    if not isinstance(said, dict):
        return found
    for target, usage in list(said.items())[:16]:
        if isinstance(usage, dict):
            said_of = [usage.get(key) for key in ("bytes_used", "bytes_limit", "files_used", "files_limit")]
            figures = [figure for figure in said_of if isinstance(figure, int) and 0 <= figure < _INT64]
            if len(figures) == len(said_of):
                found[text(target)[:256]] = DiskUsage(figures[0], figures[1], figures[2], figures[3])
    return found
