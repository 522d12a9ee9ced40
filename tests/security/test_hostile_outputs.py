"""What a Skill leaves in /output for the collector: regular files are taken, all else is refused one by one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from security.programs import LIMITS, hostile
from skillcell.client import CallResult, SkillcellClient
from skillcell.core.types import MEBIBYTE, Outcome


def refused(result: CallResult) -> dict[str, str]:
    return {each.name: each.reason for each in result.refused_artifacts}


async def content(client: SkillcellClient, result: CallResult, folder: Path) -> dict[str, bytes]:
    """What the caller gets of each artifact."""
    found = {}
    for number, artifact in enumerate(result.artifacts):
        path = folder / str(number)
        await client.save_artifact(result.execution_id, artifact, path)
        found[artifact.name] = path.read_bytes()
    return found


async def test_all_but_regular_files_is_refused_one_by_one(client: SkillcellClient, tmp_path: Path) -> None:
    source = r"""
    os.chdir("/output")
    open("good.txt", "w").write("good")
    os.symlink("/etc/passwd", "link")
    os.symlink("/etc", "directory-link")
    os.symlink("nowhere", "dangling")
    open("/tmp/original", "w").write("x")
    open("one", "w").write("x")
    os.link("one", "two")
    os.mkfifo("fifo")
    socket.socket(socket.AF_UNIX).bind("socket")
    open("new\nline", "w").close()
    open("esc\x1b[2J", "w").close()
    open(b"not-utf8-\xff", "w").close()
    os.mkdir("closed"); open("closed/x", "w").close(); os.chmod("closed", 0)
    os.mkdir("unsearchable"); open("unsearchable/x", "w").close(); os.chmod("unsearchable", 0o400)
    open("unreadable", "w").close(); os.chmod("unreadable", 0)
    os.symlink("/proc/1/environ", "result.json")
    """
    result = await hostile(client, source)
    assert result.outcome is Outcome.SUCCEEDED
    assert await content(client, result, tmp_path) == {"good.txt": b"good"}
    reasons = refused(result)
    for name, why in {
        "link": "symbolic link",
        "directory-link": "symbolic link",
        "dangling": "symbolic link",
        "result.json": "symbolic link",
        "one": "2 hard links",
        "two": "2 hard links",
        "fifo": "FIFO",
        "socket": "socket",
        "new\nline": "control characters",
        "esc\x1b[2J": "control characters",
        r"not-utf8-\xff": "not UTF-8",
        "closed": "can't be entered",
        "unsearchable": "can't be entered",
        "unreadable": "can't be read",
    }.items():
        assert why in reasons.pop(name), name
    assert reasons == {}
    assert result.outputs == ()


async def test_the_output_directory_itself_can_not_be_turned_into_another(
    client: SkillcellClient, tmp_path: Path
) -> None:
    source = """
    result = [attempt(os.rmdir, "/output"), attempt(os.rename, "/output", "/tmp/o"),
              attempt(os.symlink, "/etc", "/output"), attempt(os.unlink, "/output")]
    print(result)
    """
    result = await hostile(client, source)
    assert result.outcome is Outcome.SUCCEEDED
    assert b"done" not in result.stdout
    assert (result.artifacts, result.refused_artifacts) == ((), ())


async def test_a_directory_swapped_for_a_link_leads_nowhere(client: SkillcellClient, tmp_path: Path) -> None:
    """The swapping goes on in the background, and would during the collection if anything of the Skill lived then."""
    source = """
    os.makedirs("/output/real"); open("/output/real/passwd", "w").write("mine")
    os.symlink("/etc", "/output/link")
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.setsid()
        os.chdir("/output")
        while True:
            for old, new in (("real", "a"), ("link", "real"), ("real", "link"), ("a", "real")):
                os.rename(old, new)
            os.write(writing, b"x") if writing else None
    os.read(reading, 2000)
    os.read(reading, 2000)
    """
    for _ in range(3):
        result = await hostile(client, source)
        assert result.outcome is Outcome.SUCCEEDED
        found = await content(client, result, tmp_path)
        assert set(found.values()) <= {b"mine"}
        assert all("link" in why for why in refused(result).values())


async def test_a_tree_of_any_depth_is_collected_and_ends(client: SkillcellClient) -> None:
    """5,000 deep, or as deep as this driver's limit of files lets it be; names are 1,024 bytes long at most."""
    source = """
    os.chdir("/output")
    open("first", "w").close()
    depth = 0
    try:
        while depth < 5000:
            os.mkdir("d")
            os.chdir("d")
            depth += 1
    except OSError as error:
        assert error.errno == errno.ENOSPC
    print(depth)
    """
    result = await hostile(client, source)
    assert result.outcome is Outcome.SUCCEEDED
    assert int(result.stdout) > 1024
    assert [artifact.name for artifact in result.artifacts] == ["first"]
    assert len(refused(result)) == 1


async def test_too_many_files_are_counted_and_not_sent(client: SkillcellClient) -> None:
    source = """
    try:
        for number in range(20_000):
            os.mknod(f"/output/{number}")
    except OSError as error:
        print(number, error.errno)
    """
    result = await hostile(client, source, limits=replace(LIMITS, artifact_count=10))
    assert result.outcome is Outcome.SUCCEEDED
    assert len(result.artifacts) == 10
    reasons = refused(result)
    assert len(reasons) == 201
    assert "more files were refused" in reasons["(more)"]


async def test_what_is_large_or_sparse_is_refused_by_its_size(client: SkillcellClient) -> None:
    source = """
    with open("/output/sparse", "wb") as file:
        file.truncate(12 << 20)
    with open("/output/result.json", "wb") as file:
        file.truncate(9 << 20)
    open("/output/small", "w").write("x")
    """
    result = await hostile(client, source, limits=replace(LIMITS, artifact_bytes=MEBIBYTE))
    assert result.outcome is Outcome.SUCCEEDED
    assert [artifact.name for artifact in result.artifacts] == ["small"]
    assert {name: "over the limit" in why for name, why in refused(result).items()} == {
        "sparse": True,
        "result.json": True,
    }
    assert result.usage.artifact_bytes == 1
