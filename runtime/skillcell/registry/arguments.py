"""From a JSON input to argv and stdin, as the entrypoint declares it.

`x-binding` has the meaning of CWL's inputBinding: bound properties are sorted by position, then by name; a prefix
stands before its value; true is the prefix alone, false and null are nothing; an array repeats prefix and value for
each item. A prefix that ends in `=` is joined with its value.
Source: Common Workflow Language v1.2, section 4.1.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from skillcell.core.errors import invalid
from skillcell.core.skills import ArgumentBinding, Entrypoint

MAX_ARGUMENTS = 10_000
MAX_ARGUMENT_BYTES = 128 << 10
"""What Linux takes in one argument (MAX_ARG_STRLEN), less its final NUL."""


def command_line(entrypoint: Entrypoint, package_root: str) -> tuple[str, ...]:
    """argv before the caller's arguments, with the package's script under `package_root` (as `/skill`)."""
    script = entrypoint.script
    return tuple(f"{package_root}/{part}" if script and part == script else part for part in entrypoint.command)


def bind_arguments(entrypoint: Entrypoint, value: Any) -> tuple[tuple[str, ...], bytes | None]:
    """Arguments that follow the command, and stdin, or None where the entrypoint leaves stdin to the caller.

    `value` is the parsed, validated input; None when the call has none. Raises Fault INVALID_ARGUMENT.
    """
    properties: Mapping[str, Any] = value if isinstance(value, dict) else {}
    arguments: list[str] = []
    for binding in sorted(entrypoint.bindings, key=lambda item: (item.position, item.property)):
        for text in _bound(binding, properties.get(binding.property)):
            if "\0" in text:
                raise invalid(f"input/{binding.property}", "has a NUL character, which no argument can carry")
            if len(text.encode()) >= MAX_ARGUMENT_BYTES:
                raise invalid(f"input/{binding.property}", f"is longer than {MAX_ARGUMENT_BYTES - 1} bytes")
            arguments.append(text)
            if len(arguments) > MAX_ARGUMENTS:
                raise invalid(f"input/{binding.property}", f"makes more than {MAX_ARGUMENTS} arguments")
    return tuple(arguments), _stdin(entrypoint.stdin, value, properties)


def _stdin(source: str, value: Any, properties: Mapping[str, Any]) -> bytes | None:
    if not source:
        return None
    chosen = value if source == "$" else properties.get(source)
    if chosen is None and source != "$":
        return b""
    return chosen.encode() if isinstance(chosen, str) and source != "$" else _json(chosen).encode()


def _bound(binding: ArgumentBinding, value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for item in value:
            yield from _bound(binding, item)
        return
    if value is None or value is False:
        return
    if value is True:
        if binding.prefix:
            yield binding.prefix
        return
    text = value if isinstance(value, str) else _json(value)
    if binding.prefix.endswith("="):
        yield binding.prefix + text
        return
    if binding.prefix:
        yield binding.prefix
    yield text


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
