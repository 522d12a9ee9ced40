"""Hostile and ordinary archives, made here byte by byte where no tool would make them."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import shutil
import socket
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skillcell.core.errors import Fault, FaultKind
from skillcell.registry.archive import StagedPackage, Staging
from skillcell.registry.limits import PackageLimits

SMALL = PackageLimits(
    packed_bytes=10_000_000, unpacked_bytes=30_000_000, entries=500, depth=8, ratio_from_bytes=1 << 20
)
SKILL = b"---\nname: demo\ndescription: d\n---\n"


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    (tmp_path / "staging").mkdir()
    return Staging(tmp_path / "staging", SMALL)


def unpack(staging: Staging, tmp_path: Path, data: bytes) -> StagedPackage:
    file = tmp_path / "archive"
    file.write_bytes(data)
    return staging.read_blocking(file)


def refusal(staging: Staging, tmp_path: Path, data: bytes) -> Fault:
    with pytest.raises(Fault) as caught:
        unpack(staging, tmp_path, data)
    assert caught.value.kind is FaultKind.INVALID_ARGUMENT
    assert caught.value.reason == "ARCHIVE_INVALID"
    assert list((tmp_path / "staging").iterdir()) == [], "something was kept"
    return caught.value


Member = tuple[str, bytes | str | None, bytes]
"""name, content (bytes), link target (str) or None for a folder, tar type"""


def tar(*members: Member | tarfile.TarInfo, kind: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=kind) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member, io.BytesIO(b"x" * member.size))
                continue
            name, content, entry_type = member
            info = tarfile.TarInfo(name)
            info.type = entry_type
            info.mode = 0o755
            if isinstance(content, str):
                info.linkname = content
            info.size = len(content) if isinstance(content, bytes) and entry_type == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return out.getvalue()


def file(name: str, content: bytes = b"x") -> Member:
    return name, content, tarfile.REGTYPE


def link(name: str, target: str) -> Member:
    return name, target, tarfile.SYMTYPE


def zipped(*entries: tuple[str, bytes] | tuple[zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return out.getvalue()


def unix(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = mode << 16
    return info


@pytest.mark.parametrize("pack", ["zip", "stored", "tar", "gz", "xz", "gnu"])
def test_every_accepted_form_unpacks_to_the_same_tree(staging: Staging, tmp_path: Path, pack: str) -> None:
    contents = {"demo/SKILL.md": SKILL, "demo/scripts/run.py": b"print(1)\n", "demo/" + "n" * 150 + "/é.txt": b""}
    packed = {
        "zip": lambda: zipped(*contents.items()),
        "stored": lambda: zipped(*contents.items(), method=zipfile.ZIP_STORED),
        "tar": lambda: tar(*(file(*item) for item in contents.items())),
        "gnu": lambda: tar(*(file(*item) for item in contents.items()), kind=tarfile.GNU_FORMAT),
        "gz": lambda: gzip.compress(tar(*(file(*item) for item in contents.items()))),
        "xz": lambda: lzma.compress(tar(*(file(*item) for item in contents.items()))),
    }[pack]()
    package = unpack(staging, tmp_path, packed)
    assert package.folder == "demo"
    assert package.root.name == "demo"
    found = {f"demo/{p.relative_to(package.root)}": p.read_bytes() for p in package.root.rglob("*") if p.is_file()}
    assert found == contents


def test_a_streamed_zip_with_data_descriptors_unpacks(staging: Staging, tmp_path: Path) -> None:
    class Unseekable(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def seek(self, *_: int) -> int:
            raise io.UnsupportedOperation

        def tell(self) -> int:
            raise io.UnsupportedOperation

    out = Unseekable()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("SKILL.md", SKILL)
        with archive.open("big.txt", "w", force_zip64=True) as entry:
            entry.write(b"hello")
    package = unpack(staging, tmp_path, out.getvalue())
    assert (package.root / "big.txt").read_bytes() == b"hello"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("../evil", "`..`"),
        ("a/../../evil", "`..`"),
        ("/etc/evil", "absolute"),
        ("C:/evil", "drive"),
        ("a\\evil", "backslash"),
        ("a/new\nline", "control"),
        ("a/\u202etxt.exe", "control"),
        ("a/" + "x" * 256, "255"),
        ("/".join("abcdefghijk"), "deep"),
    ],
)
@pytest.mark.parametrize("form", ["tar", "zip"])
def test_a_hostile_name_is_refused_by_name(staging: Staging, tmp_path: Path, name: str, why: str, form: str) -> None:
    data = tar(file("SKILL.md", SKILL), file(name)) if form == "tar" else zipped(("SKILL.md", SKILL), (name, b"x"))
    fault = refusal(staging, tmp_path, data)
    assert why in fault.message
    assert fault.metadata["entry"]


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ([link("a", "/etc/passwd")], "leads out"),
        ([link("a", "../../etc/passwd")], "leads out"),
        ([("d", None, tarfile.DIRTYPE), link("d/a", "b"), link("d/b", "../..")], "leads out"),
        ([link("a", "b"), link("b", "a")], "circle"),
        ([link("a", "."), file("a/b")], "link and a folder"),
        ([file("a"), file("a/b")], "file and a folder"),
        ([file("a"), file("a")], "twice"),
        ([file("Readme"), file("README")], "case"),
        ([file("caf\u00e9"), file("cafe\u0301")], "Unicode"),
        ([file("A/x"), file("a/y")], "case"),
        ([("a", "SKILL.md", tarfile.LNKTYPE)], "hard links"),
        ([("a", None, tarfile.CHRTYPE)], "devices"),
        ([("a", None, tarfile.BLKTYPE)], "devices"),
        ([("a", None, tarfile.FIFOTYPE)], "FIFO"),
    ],
)
def test_a_hostile_tar_entry_is_refused(staging: Staging, tmp_path: Path, members: list[Member], why: str) -> None:
    fault = refusal(staging, tmp_path, tar(file("SKILL.md", SKILL), *members))
    assert why in fault.message
    assert fault.metadata["entry"]


def test_links_that_stay_inside_are_kept(staging: Staging, tmp_path: Path) -> None:
    package = unpack(staging, tmp_path, tar(file("s/SKILL.md", SKILL), file("s/d/x"), link("s/d/up", "../SKILL.md")))
    assert os.readlink(package.root / "d" / "up") == "../SKILL.md"


def test_a_link_may_not_reach_past_the_folder_that_wraps_the_skill(staging: Staging, tmp_path: Path) -> None:
    assert "leads out" in refusal(staging, tmp_path, tar(file("s/SKILL.md", SKILL), link("s/x", "../s2"))).message


def test_set_id_bits_are_dropped_and_the_exec_bit_kept(staging: Staging, tmp_path: Path) -> None:
    info = tarfile.TarInfo("run")
    info.mode, info.size = 0o6755, 1
    package = unpack(staging, tmp_path, tar(file("SKILL.md", SKILL), info))
    assert stat.S_IMODE((package.root / "run").stat().st_mode) == 0o755


def test_what_desktops_leave_in_archives_is_left_out(staging: Staging, tmp_path: Path) -> None:
    junk = ["__MACOSX/s/._SKILL.md", "s/.DS_Store", "s/.git/config", "s/._x"]
    package = unpack(staging, tmp_path, zipped(("s/SKILL.md", SKILL), *((name, b"x") for name in junk)))
    assert sorted(package.left_out) == sorted(junk)
    assert [p.name for p in package.root.rglob("*")] == ["SKILL.md"]


def corrupt(data: bytes, at: int, value: int) -> bytes:
    return data[:at] + bytes([value]) + data[at + 1 :]


def broken_zips() -> dict[str, Callable[[], bytes]]:
    good = zipped(("SKILL.md", SKILL), ("b", b"hello" * 100))
    central = good.index(b"PK\1\2")
    local = good.index(b"PK\3\4", 4)
    return {
        "cut": lambda: good[:-30],
        "trailing": lambda: good + b"x",
        "leading": lambda: b"PK\3\4" + good,
        "another name inside": lambda: good[: local + 30] + b"c" + good[local + 31 :],
        "encrypted": lambda: corrupt(corrupt(good, 6, good[6] | 1), central + 8, good[central + 8] | 1),
        "other method": lambda: corrupt(corrupt(good, 8, 12), central + 10, 12),
        "bad checksum": lambda: corrupt(corrupt(good, 14, good[14] ^ 1), central + 16, good[central + 16] ^ 1),
        "larger than told": lambda: corrupt(corrupt(good, 22, 5), central + 24, 5),
        "overlap": overlapping,
    }


def overlapping() -> bytes:
    """Two names in the directory for one entry."""
    good = zipped(("a", b"hello"))
    start = good.index(b"PK\1\2")
    end = good.index(b"PK\5\6")
    directory = good[start:end] * 2
    tail = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 2, 2, len(directory), start, 0)
    return good[:start] + directory + tail


@pytest.mark.parametrize("name", list(broken_zips()))
def test_a_zip_that_two_readers_could_read_in_two_ways_is_refused(staging: Staging, tmp_path: Path, name: str) -> None:
    refusal(staging, tmp_path, broken_zips()[name]())


@pytest.mark.parametrize("mode", [stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK])
def test_special_files_in_a_zip_are_refused(staging: Staging, tmp_path: Path, mode: int) -> None:
    fault = refusal(staging, tmp_path, zipped(("SKILL.md", SKILL), (unix("dev", mode | 0o644), b"")))
    assert fault.metadata["entry"] == "dev"


def test_a_zip_link_that_leads_out_is_refused(staging: Staging, tmp_path: Path) -> None:
    entry = (unix("l", stat.S_IFLNK | 0o777), b"../../etc")
    assert refusal(staging, tmp_path, zipped(("SKILL.md", SKILL), entry)).metadata["entry"] == "l"


@pytest.mark.parametrize(
    "mangle",
    [
        lambda t: gzip.compress(t)[:-12],
        lambda t: gzip.compress(t) + b"garbage",
        lambda t: lzma.compress(t)[:-12],
        lambda t: lzma.compress(t) + b"garbage",
        lambda t: t[: len(t) // 2],
        lambda t: t[:1024],
        lambda t: t + b"garbage",
        lambda t: corrupt(t, 0, 0x58),
        lambda t: t[:124] + b"\x80" + b"\0" * 10 + b"\x05" + t[136:],
        lambda t: b"",
        lambda t: b"BZh91AY" + t,
        lambda t: b"\x28\xb5\x2f\xfd" + t,
        lambda t: gzip.compress(b"") * 5000,
    ],
)
def test_a_damaged_stream_is_refused(staging: Staging, tmp_path: Path, mangle: Callable[[bytes], bytes]) -> None:
    refusal(staging, tmp_path, mangle(tar(file("SKILL.md", SKILL), file("b", b"y" * 5000))))


def test_decompression_bombs_are_stopped_early(staging: Staging, tmp_path: Path) -> None:
    zeros = b"\0" * 25_000_000
    for data in (zipped(("SKILL.md", SKILL), ("zeros", zeros)), gzip.compress(tar(file("zeros", zeros)))):
        fault = refusal(staging, tmp_path, data)
        assert fault.metadata["problem"] == "bomb"
        assert fault.metadata["entry"] == "zeros"


def test_a_bomb_of_tar_headers_is_stopped(staging: Staging, tmp_path: Path) -> None:
    header = tar(file("././@LongLink"))[:512]
    header = header[:156] + b"x" + header[157:]
    body = b"30 path=" + b"a" * 21 + b"\n"
    block = bytearray(header[:124] + b"%011o\0" % len(body) + header[136:])
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    one = bytes(block) + body.ljust(512, b"\0")
    refusal(staging, tmp_path, gzip.compress(one * 40_000))


def test_a_lying_zip_size_is_stopped(staging: Staging, tmp_path: Path) -> None:
    raw = zlib.compressobj(wbits=-15)
    packed = raw.compress(b"\0" * 5_000_000) + raw.flush()
    crc = zlib.crc32(b"\0")
    local = struct.pack("<4sHHHHHIIIHH", b"PK\3\4", 20, 0, 8, 0, 0, crc, len(packed), 1, 1, 0) + b"a" + packed
    central = (
        struct.pack("<4sHHHHHHIIIHHHHHII", b"PK\1\2", 20, 20, 0, 8, 0, 0, crc, len(packed), 1, 1, 0, 0, 0, 0, 0, 0)
        + b"a"
    )
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 1, 1, len(central), len(local), 0)
    assert "more than the 1 bytes" in refusal(staging, tmp_path, local + central + end).message


def test_too_many_entries_are_refused(staging: Staging, tmp_path: Path) -> None:
    data = tar(file("SKILL.md", SKILL), *(file(f"f{i}") for i in range(600)))
    assert refusal(staging, tmp_path, data).metadata["problem"] == "too-many-entries"


def test_what_must_be_accepted_is(staging: Staging, tmp_path: Path) -> None:
    size = 29_000_000 // 490
    noise = os.urandom(size // 3)
    members = [file(f"a/b/c/d/e/f/g{i}", noise + bytes(size - len(noise))) for i in range(490)]
    package = unpack(staging, tmp_path, gzip.compress(tar(file("SKILL.md", SKILL), *members), 1))
    assert package.file_count == 491


def test_a_folder_with_a_socket_or_a_link_out_is_refused(staging: Staging, tmp_path: Path) -> None:
    folder = tmp_path / "skill"
    folder.mkdir()
    (folder / "SKILL.md").write_bytes(SKILL)
    (folder / "out").symlink_to("/etc/passwd")
    with pytest.raises(Fault, match="out"):
        staging.read_blocking(folder)
    (folder / "out").unlink()
    os.mkfifo(folder / "fifo")
    with pytest.raises(Fault, match="fifo"):
        staging.read_blocking(folder)
    (folder / "fifo").unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "sock"))
        with pytest.raises(Fault, match="sock"):
            staging.read_blocking(folder)
    assert list((tmp_path / "staging").iterdir()) == []


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_bytes_make_a_reader_do_anything_but_unpack_or_refuse(
    staging: Staging, tmp_path: Path, data: st.DataObject
) -> None:
    good = data.draw(
        st.sampled_from(
            [
                zipped(("SKILL.md", SKILL), ("d/b", b"hello" * 9)),
                tar(file("SKILL.md", SKILL), file("d/" + "n" * 120), link("l", "d")),
                gzip.compress(tar(file("SKILL.md", SKILL))),
                lzma.compress(tar(file("SKILL.md", SKILL))),
                b"",
            ]
        )
    )
    edits = data.draw(st.lists(st.tuples(st.integers(0, max(len(good), 1)), st.binary(max_size=8)), max_size=4))
    for at, new in edits:
        good = good[:at] + new + good[at + len(new) * data.draw(st.booleans()) :]
    refused: Fault | None = None
    try:
        package = unpack(staging, tmp_path, good)
    except Fault as fault:
        refused = fault
    else:
        for path in package.staging.rglob("*"):
            assert path.resolve().is_relative_to(package.staging.resolve())
    assert refused is None or refused.kind is FaultKind.INVALID_ARGUMENT
    for left in (tmp_path / "staging").iterdir():
        shutil.rmtree(left)
