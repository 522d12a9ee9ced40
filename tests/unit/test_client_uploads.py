"""What a client sends ahead, and what along: by size alone, once, and only when it is wanted."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from scripted_gateway import KEY, NOW, ScriptedGateway, scripted_gateway
from skillcell.client import InvalidArgument, SkillcellClient, Unavailable, Uploaded
from skillcell.client.inputs import FIELD_BYTES, REQUEST_BYTES, sent_ahead
from skillcell.core.types import InputFile
from skillcell.v1 import execution_pb2 as ex

LARGE = b"large" * (1 << 20)


@pytest.fixture
async def gateway() -> AsyncIterator[ScriptedGateway]:
    async with scripted_gateway() as script:
        yield script


@pytest.fixture
async def client(gateway: ScriptedGateway) -> AsyncIterator[SkillcellClient]:
    async with SkillcellClient(gateway.address, api_key=KEY) as connected:
        yield connected


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


async def stream(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


def test_what_is_too_large_alone_goes_ahead_then_the_largest_until_the_rest_fits() -> None:
    assert sent_ahead({}) == frozenset()
    assert sent_ahead({"a": FIELD_BYTES, "b": 0}) == frozenset()
    assert sent_ahead({"a": FIELD_BYTES + 1, "b": FIELD_BYTES}) == {"a"}
    assert sent_ahead({"endless": None, "b": 1}) == {"endless"}
    full = {f"f{number}": FIELD_BYTES for number in range(REQUEST_BYTES // FIELD_BYTES)}
    assert sent_ahead(full) == frozenset()
    assert sent_ahead(full | {"one": 1, "two": 2}) == {"f3"}
    many = {f"f{number:04}": 1 << 20 for number in range(1000)}
    assert len(sent_ahead(many)) == 1000 - 16


@pytest.mark.parametrize("kind", ["bytes", "path", "str", "stream", "empty"])
async def test_bytes_files_and_streams_are_uploaded_whole(
    gateway: ScriptedGateway, client: SkillcellClient, tmp_path: Path, kind: str
) -> None:
    data = b"" if kind == "empty" else LARGE
    path = tmp_path / "file"
    path.write_bytes(data)
    source = {"path": path, "str": str(path), "stream": stream(data[:3], data[3:])}.get(kind, data)
    heard: list[tuple[int, int]] = []
    done = await client.upload(source, on_progress=lambda sent, total: heard.append((sent, total)))
    assert done == Uploaded(digest_of(data), len(data), NOW)
    assert gateway.uploads == {done.digest: data}
    (header,) = gateway.requests(ex.UploadInputHeader)
    assert (header.digest, header.size_bytes) == (("", 0) if kind == "stream" else (done.digest, len(data)))
    assert heard[-1] == (len(data), len(data))
    assert [sent for sent, _ in heard] == sorted(sent for sent, _ in heard)


async def test_what_the_gateway_has_is_not_sent_again(gateway: ScriptedGateway, client: SkillcellClient) -> None:
    gateway.uploads[digest_of(LARGE)] = LARGE
    heard: list[int] = []
    for _ in range(20):  # the answer comes while the stream is still open
        assert (await client.upload(LARGE, on_progress=lambda sent, _: heard.append(sent))).digest == digest_of(LARGE)
    assert set(heard) == {len(LARGE)}


async def test_a_refusal_before_or_amid_the_bytes_keeps_its_reason(
    gateway: ScriptedGateway, client: SkillcellClient
) -> None:
    gateway.upload_bound = 2 << 20
    for _ in range(10):
        for source in (LARGE, stream(LARGE)):
            with pytest.raises(InvalidArgument) as raised:
                await client.upload(source)
            assert (raised.value.reason, raised.value.field_violations[0].field) == ("INVALID_FIELD", "chunk")


async def test_a_broken_connection_costs_a_second_try_where_that_can_be(
    gateway: ScriptedGateway, client: SkillcellClient
) -> None:
    gateway.upload_breaks = 2
    assert (await client.upload(LARGE)).digest == digest_of(LARGE)
    gateway.upload_breaks = 1
    with pytest.raises(Unavailable):
        await client.upload(stream(LARGE))
    assert gateway.upload_breaks == 0


async def test_what_goes_wrong_with_the_source_is_told_as_it_is(client: SkillcellClient, tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"some"
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        await client.upload(broken())
    for missing in (tmp_path / "missing", tmp_path):
        with pytest.raises(OSError, match=r"missing|directory"):
            await client.upload(missing)


async def test_a_call_sends_along_what_is_small_and_ahead_what_is_large(
    gateway: ScriptedGateway, client: SkillcellClient, tmp_path: Path
) -> None:
    for name, data in (("large", LARGE), ("small", b"small")):
        (tmp_path / name).write_bytes(data)
    (tmp_path / "large").chmod(0o755)
    heard: dict[str, tuple[int, int]] = {}
    for _ in range(2):
        await client.call("acme/tool", stdin=b"in", files={"a": tmp_path / "small", "b": tmp_path / "large"})
        async for _event in client.execute(
            "acme/tool",
            stdin=stream(LARGE, b"more"),
            input={"x": "y" * FIELD_BYTES},
            files=[InputFile("c", LARGE), InputFile("d", upload="sha256:" + "d" * 64)],
            on_upload=lambda name, sent, total: heard.__setitem__(name, (sent, total)),
        ):
            pass
    value = b'{"x": "' + b"y" * FIELD_BYTES + b'"}'
    assert set(gateway.uploads) == {digest_of(LARGE), digest_of(LARGE + b"more"), digest_of(value)}
    first, second, *again = [request.spec for request in gateway.requests(ex.ExecuteRequest)]
    assert (first.stdin, first.files[0].content) == (b"in", b"small")
    assert (first.files[1].upload, first.files[1].executable) == (digest_of(LARGE), True)
    assert (second.stdin_upload, second.input_upload) == (digest_of(LARGE + b"more"), digest_of(value))
    assert [file.upload for file in second.files] == [digest_of(LARGE), "sha256:" + "d" * 64]
    assert again == [first, second]  # so that a request id sent again finds the same request
    assert set(heard) == {"stdin", "input", "c"}


async def test_a_short_stream_and_a_pipe_go_along(
    gateway: ScriptedGateway, client: SkillcellClient, tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(b"piped",))
    writer.start()
    await client.call("acme/tool", stdin=stream(b"a", b"b"), input_json=pipe)
    await asyncio.to_thread(writer.join)
    (request,) = gateway.requests(ex.ExecuteRequest)
    assert (request.spec.stdin, request.spec.input_json, gateway.uploads) == (b"ab", b"piped", {})
