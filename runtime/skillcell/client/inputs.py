"""What a call is given, made ready to be sent: small things go along, large ones ahead.

What a reader could get wrong: which is which follows from the sizes alone, so that the same options make the same
request, and a `request_id` sent again with them is the same request.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from skillcell.client.types import CallOptions
from skillcell.client.uploads import Source, pieces, read
from skillcell.core.types import InputFile

FIELD_BYTES = 4 << 20
"""The most that one field of a request may have."""
REQUEST_BYTES = 16 << 20
"""The most that all of them have together: half of what a gateway takes by default."""
_FILE = "file "
Upload = Callable[[str, Source], Awaitable[str]]
"""Sends one thing ahead, by the name it has for people, and returns its digest."""


@dataclass(frozen=True, slots=True)
class _Item:
    """One thing to be sent, along or ahead. `size_bytes` is None for a stream that has not ended yet."""

    name: str
    source: bytes | Path | AsyncIterable[bytes]
    size_bytes: int | None
    executable: bool = False
    upload: str = ""
    """The digest of what was uploaded before."""


def sent_ahead(sizes: Mapping[str, int | None]) -> frozenset[str]:
    """Names of what does not go along: what is too large by itself, then the largest until the rest fits. Pure."""
    ahead = {name for name, size in sizes.items() if size is None or size > FIELD_BYTES}
    along = sorted(((size or 0, name) for name, size in sizes.items() if name not in ahead), reverse=True)
    total = sum(size for size, _ in along)
    for size, name in along:
        if total <= REQUEST_BYTES:
            break
        ahead.add(name)
        total -= size
    return frozenset(ahead)


async def resolved(options: CallOptions, upload: Upload) -> CallOptions:
    """The same options with nothing in them that is not at hand. Raises ValueError for two inputs, OSError, and
    whatever `upload` does.
    """
    items: dict[str, _Item] = {}
    if "input" in options and "input_json" in options:
        raise ValueError("give input or input_json, not both")
    if "input" in options:
        items["input"] = _item("input", json.dumps(options["input"], ensure_ascii=False, allow_nan=False).encode())
    elif options.get("input_json") is not None:
        items["input"] = await _looked_at("input", options["input_json"])
    if "stdin" in options:
        items["stdin"] = await _looked_at("stdin", options["stdin"])
    files = options.get("files", ())
    if isinstance(files, Mapping):
        for number, (name, source) in enumerate(files.items()):
            items[_file(number)] = await _looked_at(name, source)
    else:
        for number, file in enumerate(files):
            items[_file(number)] = _Item(file.name, file.content, len(file.content), file.executable, file.upload)
    ahead = sent_ahead({key: item.size_bytes for key, item in items.items()})
    given = cast("dict[str, Any]", {k: v for k, v in options.items() if k not in ("input", "input_json", "stdin")})
    given["files"] = []
    for key, item in items.items():
        digest = await upload(item.name, item.source) if key in ahead else item.upload
        content = b"" if digest else await _whole(item.source)
        if key.startswith(_FILE):
            given["files"].append(InputFile(item.name, content, item.executable, digest))
        elif digest:
            given[f"{key}_upload"] = digest
        else:
            given["input_json" if key == "input" else key] = content
    return cast("CallOptions", given)


def _file(number: int) -> str:
    """Files are told apart by number: that no two have one name is the gateway's to say."""
    return f"{_FILE}{number:05}"


def _item(name: str, content: bytes, executable: bool = False) -> _Item:
    return _Item(name, content, len(content), executable)


async def _looked_at(name: str, source: Source) -> _Item:
    """With its size; a stream, a pipe for instance, is read as far as it may go along."""
    if isinstance(source, bytes):
        return _item(name, source)
    if not isinstance(source, AsyncIterable):
        path = Path(source)
        status = await asyncio.to_thread(path.stat)
        if await asyncio.to_thread(path.is_file):
            return _Item(name, path, status.st_size, executable=bool(status.st_mode & 0o100))
        source = read(path)
    stream, begun = aiter(pieces(source)), bytearray()
    async for data in stream:
        begun += data
        if len(begun) > FIELD_BYTES:
            return _Item(name, _rest(bytes(begun), stream), None)
    return _item(name, bytes(begun))


async def _rest(begun: bytes, stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield begun
    async for data in stream:
        yield data


async def _whole(source: Source) -> bytes:
    if isinstance(source, bytes):
        return source
    assert isinstance(source, Path)
    return await asyncio.to_thread(source.read_bytes)
