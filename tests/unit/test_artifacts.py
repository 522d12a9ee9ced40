"""Artifacts: kept whole under their names, or not at all; a name never becomes a path."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import threading
from pathlib import Path

import pytest

from skillcell.core.errors import Fault, FaultKind
from skillcell.storage import artifacts as artifacts_module
from skillcell.storage.artifacts import CHUNK_BYTES, ArtifactStore


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


def files(path: Path) -> list[str]:
    return sorted(item.name for item in path.rglob("*") if item.is_file())


async def content(store: ArtifactStore, name: str) -> bytes:
    _, chunks = await store.read("exe_1", name)
    return b"".join([chunk async for chunk in chunks])


async def test_an_artifact_comes_back_as_it_was_with_its_facts(store: ArtifactStore) -> None:
    data = os.urandom(CHUNK_BYTES * 2 + 17)
    writer = await store.sink("exe_1").open("charts/ä b.png")
    for start in range(0, len(data), 100_000):
        await writer.write(data[start : start + 100_000])
    artifact = await writer.finish()
    assert (artifact.name, artifact.size_bytes, artifact.media_type) == ("charts/ä b.png", len(data), "image/png")
    assert artifact.sha256 == hashlib.sha256(data).hexdigest()
    assert await content(store, "charts/ä b.png") == data
    assert await store.list("exe_1") == (artifact,)


async def test_an_empty_artifact_of_unknown_kind_is_one_too(store: ArtifactStore) -> None:
    artifact = await (await store.sink("exe_1").open("nothing")).finish()
    assert (artifact.size_bytes, artifact.media_type) == (0, "application/octet-stream")
    assert await content(store, "nothing") == b""


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "", "a//b", "\0", "x" * 300, "\ud800"])
async def test_a_name_that_leads_anywhere_is_refused_with_a_reason(
    store: ArtifactStore, name: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="the name"):
        await store.sink("exe_1").open(name)
    assert files(tmp_path) == []


async def test_a_name_is_taken_once(store: ArtifactStore) -> None:
    sink = store.sink("exe_1")
    await (await sink.open("a")).finish()
    with pytest.raises(ValueError, match="before"):
        await sink.open("a")


async def test_what_is_not_finished_is_not_there(store: ArtifactStore, tmp_path: Path) -> None:
    writer = await store.sink("exe_1").open("half")
    await writer.write(b"half")
    with pytest.raises(Fault) as fault:
        await store.read("exe_1", "half")
    assert fault.value.kind is FaultKind.NOT_FOUND
    await writer.discard()
    await writer.discard()
    assert files(tmp_path) == []


async def test_a_finished_artifact_survives_a_late_discard(store: ArtifactStore) -> None:
    writer = await store.sink("exe_1").open("a")
    await writer.write(b"whole")
    await writer.finish()
    await writer.discard()
    assert await content(store, "a") == b"whole"


async def test_executions_do_not_see_each_others_artifacts_and_go_alone(store: ArtifactStore) -> None:
    for execution in ("exe_1", "exe_2"):
        writer = await store.sink(execution).open("a")
        await writer.write(execution.encode())
        await writer.finish()
    await store.delete("exe_2")
    await store.delete("exe_2")
    assert await content(store, "a") == b"exe_1"
    with pytest.raises(Fault):
        await store.read("exe_2", "a")


class FullDisk:
    """The `os` module, whose writes take so many bytes and then no more."""

    def __init__(self, room: int) -> None:
        self._room = room

    def write(self, fd: int, data: memoryview) -> int:
        if not self._room:
            raise OSError(errno.ENOSPC, "full")
        taken = os.write(fd, data[: self._room])
        self._room -= taken
        return taken

    def __getattr__(self, name: str) -> object:
        return getattr(os, name)


@pytest.mark.parametrize("room", [5, 20])  # full amid the content, full amid the index
async def test_a_full_disk_is_a_fault_and_leaves_nothing_half(
    store: ArtifactStore, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = store.sink("exe_1")
    good = await sink.open("good")
    await good.write(b"good")
    await good.finish()
    with monkeypatch.context() as patch:
        patch.setattr(artifacts_module, "os", FullDisk(room))
        writer = await sink.open("lost")
        with pytest.raises(Fault, match="No space left") as fault:  # noqa: PT012 - one of the two, by `room`
            await writer.write(b"0123456789")
            await writer.finish()
        assert fault.value.reason == "STORAGE_UNAVAILABLE"
        await writer.discard()
    later = await sink.open("later")
    await later.finish()
    assert [artifact.name for artifact in await store.list("exe_1")] == ["good", "later"]


async def test_a_discard_amid_a_write_waits_for_it_so_that_no_other_file_gets_its_bytes(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing, go_on = threading.Event(), threading.Event()

    class SlowDisk(FullDisk):
        def write(self, fd: int, data: memoryview) -> int:
            writing.set()
            assert go_on.wait(5)
            return os.write(fd, data)

    writer = await store.sink("exe_1").open("a")
    monkeypatch.setattr(artifacts_module, "os", SlowDisk(0))
    task = asyncio.create_task(writer.write(b"secret"))
    await asyncio.to_thread(writing.wait)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    discard = asyncio.create_task(writer.discard())
    opened = []
    for _ in range(20):  # what takes the descriptor's number, were it free
        opened.append(os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT))
        await asyncio.sleep(0)
    assert not discard.done()
    go_on.set()
    await discard
    for fd in opened:
        os.close(fd)
    assert files(tmp_path) == ["other"]
    assert (tmp_path / "other").read_bytes() == b""
