"""The image store, recipes and archives, without root or an engine."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from skillcell.core.errors import Fault, FaultKind
from skillcell.sandbox.images import MOUNT_POINTS, Image, ImageStore, machine_architecture
from skillcell.sandbox.images_archive import import_archive
from skillcell.sandbox.images_bootstrap import is_current, prepare
from skillcell.sandbox.images_layers import ArchiveLimits
from skillcell.sandbox.images_npm import fetch
from skillcell.sandbox.images_recipes import ALIASES, load_recipe, npm_package, recipes_directory
from skillcell.sandbox.images_tree import find_python, pack, resolve_inside, tree_digest

FOREIGN = f"example.org/base@sha256:{'a' * 64}"


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "images")


def make_tree(root: Path) -> Path:
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/python3.11").write_bytes(b"\x7fELF")
    (root / "usr/bin/python3.11").chmod(0o755)
    (root / "usr/bin/python3").symlink_to("python3.11")
    (root / "bin").symlink_to("usr/bin")
    (root / "etc").mkdir()
    (root / "etc/a").write_text("a")
    os.link(root / "etc/a", root / "etc/b")
    for path in [root, *root.rglob("*")]:
        os.utime(path, (1_700_000_000, 1_700_000_000), follow_symlinks=False)
    return root


def adopt(store: ImageStore, reference: str, content: str = "", recipe: str = "") -> Image:
    with store.building() as scratch:
        tree = scratch / "tree"
        tree.mkdir()
        (tree / "content").write_text(content)
        digest = tree_digest(tree)
        return store.adopt(tree, Image(reference, digest, None, "amd64", {"PATH": "/usr/bin"}, recipe=recipe))


# --- trees ----------------------------------------------------------------------------------------------------------


def test_equal_trees_have_equal_digests_whatever_the_order_they_were_made_in(tmp_path: Path) -> None:
    first = make_tree(tmp_path / "first")
    second = tmp_path / "second"
    shutil.copytree(first, second, symlinks=True)
    (second / "etc/b").unlink()
    os.link(second / "etc/a", second / "etc/b")
    for path in [second / "etc", second]:
        os.utime(path, (1_700_000_000, 1_700_000_000))
    assert tree_digest(first) == tree_digest(second)


def test_a_packed_tree_is_root_owned_and_keeps_links(tmp_path: Path) -> None:
    packed = io.BytesIO()
    pack(make_tree(tmp_path / "tree"), packed.write)
    packed.seek(0)
    with tarfile.open(fileobj=packed) as archive:
        members = {member.name: member for member in archive}
    assert {(member.uid, member.gid, member.uname) for member in members.values()} == {(0, 0, "")}
    assert members["etc/b"].islnk()
    assert members["etc/b"].linkname == "etc/a"
    assert members["bin"].issym()
    assert members["bin"].linkname == "usr/bin"
    assert list(members) == sorted(members)


@pytest.mark.parametrize("target", ["/etc", "../../../../etc", "/../etc", "loop"])
def test_no_link_in_a_tree_leads_out_of_it(tmp_path: Path, target: str) -> None:
    tree = tmp_path / "tree"
    (tree / "a").mkdir(parents=True)
    (tree / "a/link").symlink_to(target)
    (tree / "a/loop").symlink_to("loop")
    if target == "loop":
        with pytest.raises(OSError, match="symbolic links"):
            resolve_inside(tree, "a/link/passwd")
    else:
        assert resolve_inside(tree, "a/link/passwd") == tree / "etc/passwd"


def test_python_is_found_by_name_or_by_its_library(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    assert find_python(tree, "relative:/sbin:/bin") == ("/bin/python3", (3, 11))
    conda = tmp_path / "conda"
    (conda / "opt/bin").mkdir(parents=True)
    (conda / "opt/lib/python3.12").mkdir(parents=True)
    (conda / "opt/lib/python3.12/os.py").touch()
    (conda / "opt/bin/python").touch(mode=0o755)
    assert find_python(conda, "/usr/bin:/opt/bin") == ("/opt/bin/python", (3, 12))
    assert find_python(conda, "/usr/bin") is None


# --- the store ------------------------------------------------------------------------------------------------------


def test_an_adopted_image_resolves_by_alias_and_by_digest(store: ImageStore) -> None:
    made = adopt(store, "shell", "one")
    found = store.resolve("shell")
    assert found == made
    assert found.rootfs is not None
    assert (found.rootfs / "content").read_text() == "one"
    assert store.resolve(made.digest).rootfs == found.rootfs
    assert store.references() == ("shell",)


def test_a_new_build_moves_the_alias_and_leaves_the_old_tree_until_it_is_pruned(store: ImageStore) -> None:
    old, new = adopt(store, "shell", "one"), adopt(store, "shell", "two")
    assert store.resolve("shell").digest == new.digest
    assert old.rootfs is not None
    assert old.rootfs.is_dir()
    assert store.prune(in_use=[old.digest]) == ()
    assert store.prune() == (old.digest,)
    assert not old.rootfs.exists()
    assert store.resolve("shell").rootfs == new.rootfs


def test_an_alias_not_built_is_refused_with_what_to_do(store: ImageStore) -> None:
    with pytest.raises(Fault) as caught:
        store.resolve("python-3.11")
    assert (caught.value.kind, caught.value.reason) == (FaultKind.FAILED_PRECONDITION, "IMAGE_NOT_READY")
    assert "skillcell images prepare python-3.11" in caught.value.message


def test_a_foreign_image_not_imported_is_refused_with_what_to_do(store: ImageStore) -> None:
    with pytest.raises(Fault) as caught:
        store.resolve(FOREIGN)
    assert caught.value.reason == "IMAGE_NOT_IMPORTED"
    assert f"docker://{FOREIGN}" in caught.value.message


@pytest.mark.parametrize("reference", ["python-2.7", "debian:bookworm", "x@sha256:12", "", "../shell", f"-@{FOREIGN}"])
def test_a_reference_that_pins_nothing_is_invalid(store: ImageStore, reference: str) -> None:
    with pytest.raises(Fault) as caught:
        store.resolve(reference)
    assert caught.value.kind is FaultKind.INVALID_ARGUMENT
    assert caught.value.violations[0].field == "runtime.image"
    assert repr(reference) in caught.value.message


def test_a_broken_record_is_data_loss_not_a_missing_image(store: ImageStore) -> None:
    made = adopt(store, "shell")
    assert made.rootfs is not None
    (made.rootfs.parent / "image.json").write_text("{")
    with pytest.raises(Fault) as caught:
        store.resolve("shell")
    assert caught.value.kind is FaultKind.DATA_LOSS


def test_a_build_that_fails_leaves_nothing(store: ImageStore) -> None:
    def build() -> None:
        with store.building() as scratch:
            (scratch / "half").mkdir()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        build()
    assert [path.name for path in store.directory.iterdir()] == [".lock"]


def test_two_processes_never_build_at_once(store: ImageStore, tmp_path: Path) -> None:
    script = """
import os, sys
from pathlib import Path
from skillcell.sandbox.images import ImageStore
with ImageStore(Path(sys.argv[1])).building() as scratch:
    log = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for step in range(200):
        os.write(log, f"{os.getpid()}\\n".encode())
        (scratch / str(step)).touch()
"""
    log = tmp_path / "log"
    command = [sys.executable, "-c", script, str(store.directory), str(log)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "runtime")}
    processes = [subprocess.Popen(command, env=environment) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    writers = log.read_text().split()
    turns = [pid for index, pid in enumerate(writers) if index == 0 or writers[index - 1] != pid]
    assert len(writers) == 600
    assert len(turns) == 3


# --- recipes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["amd64", "arm64"])
def test_each_image_is_a_superset_of_the_one_before_and_fully_locked(architecture: str) -> None:
    recipes = recipes_directory()
    locked = {
        line.partition("=")[0]
        for line in (recipes / f"bookworm.{architecture}.lock").read_text().splitlines()
        if not line.startswith("#")
    }
    chains = [load_recipe(recipes, alias, architecture).chain for alias in ALIASES]
    assert chains == [("python",), ("python", "shell"), ("python", "shell", "node")]
    for folder in chains[-1]:
        lines = (recipes / folder / "packages.txt").read_text().splitlines()
        assert {line for line in lines if not line.startswith("#")} <= locked


@pytest.mark.parametrize("alias", list(ALIASES))
def test_an_image_runs_as_nobody_with_a_sane_environment(alias: str) -> None:
    recipe = load_recipe(recipes_directory(), alias, "amd64")
    assert recipe.user == "65532:65532"
    assert recipe.working_dir == "/workspace"
    assert recipe.env["LANG"] == "C.UTF-8"
    assert "/usr/local/bin" in recipe.env["PATH"].split(":")


def test_changing_any_file_of_a_recipe_makes_its_image_stale(tmp_path: Path) -> None:
    recipes = tmp_path / "recipes"
    shutil.copytree(recipes_directory(), recipes)
    store = ImageStore(tmp_path / "images", recipes=recipes)
    for alias in ALIASES:
        adopt(store, alias, recipe=store.recipe(alias).fingerprint)
    # The three share one tree here, and so one record: the last written is the largest image's.
    assert is_current(store, "node-20")
    with (recipes / "shell/packages.txt").open("a") as file:
        file.write("hello\n")
    assert not is_current(store, "node-20")
    assert store.recipe("python-3.11").fingerprint == ImageStore(tmp_path).recipe("python-3.11").fingerprint


def test_preparing_what_is_there_builds_nothing(store: ImageStore) -> None:
    made = adopt(store, "shell", recipe=store.recipe("shell").fingerprint)
    said: list[str] = []
    assert prepare(["shell"], store=store, progress=said.append) == (made,)
    assert said == []


def test_an_architecture_without_a_lock_is_refused_by_name() -> None:
    with pytest.raises(Fault, match=r"'s390x'.*amd64, arm64"):
        load_recipe(recipes_directory(), "shell", "s390x")


def test_a_package_that_is_not_what_the_lock_pins_is_refused_and_removed(tmp_path: Path) -> None:
    package = npm_package(recipes_directory(), "npm")
    (tmp_path / package.archive).write_bytes(b"something else")
    with pytest.raises(Fault) as caught:
        fetch(package, tmp_path)
    assert caught.value.reason == "IMAGE_INTEGRITY"
    assert package.integrity in caught.value.message
    assert not (tmp_path / package.archive).exists()


# --- archives -------------------------------------------------------------------------------------------------------

Entry = tuple[str, str | bytes | None] | tarfile.TarInfo
PYTHON: list[Entry] = [("usr/bin/python3.11", b"\x7fELF"), ("usr/bin/python3", "python3.11")]


def link(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type = kind
    entry.linkname = target
    return entry


def layer(entries: Iterable[Entry]) -> bytes:
    """(name, bytes) is a file, (name, text) a symbolic link, (name, None) a directory."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                archive.addfile(entry)
                continue
            name, content = entry
            info = tarfile.TarInfo(name)
            info.mode = 0o4777
            if content is None:
                info.type = tarfile.DIRTYPE
            elif isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
            else:
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return data.getvalue()


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def write_archive(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def config_of(layers: list[bytes], **changes: Any) -> bytes:
    document: dict[str, Any] = {
        "architecture": machine_architecture(),
        "os": "linux",
        "config": {"Env": ["PATH=/usr/bin", "GREETING=a=b"]},
        "rootfs": {"type": "layers", "diff_ids": [sha256(data) for data in layers]},
    }
    return json.dumps({**document, **changes}).encode()


def docker_save(path: Path, layers: list[bytes], **changes: Any) -> tuple[Path, str]:
    config = config_of(layers, **changes)
    names = [f"layer{index}/layer.tar" for index in range(len(layers))]
    manifest = [{"Config": "config.json", "RepoTags": ["example.org/base:1"], "Layers": names}]
    files = {"manifest.json": json.dumps(manifest).encode(), "config.json": config}
    return write_archive(path, {**files, **dict(zip(names, layers, strict=True))}), sha256(config)


def oci_layout(
    path: Path, layers: list[bytes], pack_layer: Callable[[bytes], bytes] = gzip.compress
) -> tuple[Path, str]:
    """The layers behind an index for several architectures; the digest is the index's."""
    blobs: dict[str, bytes] = {}

    def put(data: bytes) -> dict[str, Any]:
        blobs[f"blobs/sha256/{sha256(data).removeprefix('sha256:')}"] = data
        return {"digest": sha256(data), "size": len(data)}

    manifest = {"config": put(config_of(layers)), "layers": [put(pack_layer(data)) for data in layers]}
    here = {**put(json.dumps(manifest).encode()), "platform": {"architecture": machine_architecture(), "os": "linux"}}
    elsewhere = {"digest": f"sha256:{'0' * 64}", "size": 1, "platform": {"architecture": "riscv64", "os": "linux"}}
    index = put(json.dumps({"manifests": [elsewhere, here]}).encode())
    top = {"manifests": [{**index, "annotations": {"org.opencontainers.image.ref.name": "example.org/base:1"}}]}
    files = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}', "index.json": json.dumps(top).encode(), **blobs}
    return write_archive(path, files), index["digest"]


def test_a_docker_save_archive_is_imported_without_its_privileges(store: ImageStore, tmp_path: Path) -> None:
    device = link("dev/sda", tarfile.BLKTYPE)
    archive, digest = docker_save(tmp_path / "a.tar", [layer([*PYTHON, device, link("fifo", tarfile.FIFOTYPE)])])
    image = import_archive(store, archive)
    assert image.reference == f"example.org/base@{digest}"
    assert image == store.resolve(image.reference)
    assert (image.python, image.env["GREETING"]) == ("/usr/bin/python3", "a=b")
    assert image.rootfs is not None
    assert stat.S_IMODE((image.rootfs / "usr/bin/python3.11").stat().st_mode) == 0o755
    assert not (image.rootfs / "dev/sda").exists()
    assert not (image.rootfs / "fifo").exists()
    assert all((image.rootfs / point).is_dir() for point in MOUNT_POINTS)


def test_an_oci_archive_is_imported_by_the_digest_of_its_index(store: ImageStore, tmp_path: Path) -> None:
    archive, digest = oci_layout(tmp_path / "a.tar", [layer(PYTHON)])
    reference = f"example.org/base@{digest}"
    assert import_archive(store, archive, reference=reference).digest == digest
    assert store.resolve(reference).python == "/usr/bin/python3"


def test_a_later_layer_replaces_hides_and_empties_what_a_lower_one_put(store: ImageStore, tmp_path: Path) -> None:
    lower = layer([*PYTHON, ("a/gone", b"1"), ("a/kept", b"1"), ("b/old", b"1"), ("c", b"file"), ("d/x", b"1")])
    upper = layer(
        [("a/.wh.gone", b""), ("b/new", b"2"), ("b/.wh..wh..opq", b""), ("c", None), ("c/x", b"2"), ("d", "a")]
    )
    image = import_archive(store, docker_save(tmp_path / "a.tar", [lower, upper])[0])
    assert image.rootfs is not None
    names = {str(path.relative_to(image.rootfs)) for folder in "abcd" for path in (image.rootfs / folder).glob("*")}
    assert names == {"a/kept", "b/new", "c/x", "d/kept"}
    assert (image.rootfs / "d").is_symlink()


@pytest.mark.parametrize(
    "entries",
    [
        [("../out", b"x")],
        [("a/../../out", b"x")],
        [(".wh...", b"")],
        [link("a", tarfile.LNKTYPE, "../../../secret")],
        [link("a", tarfile.LNKTYPE, "/etc/hostname")],
    ],
)
def test_an_entry_that_leads_out_refuses_the_archive_and_leaves_nothing(
    store: ImageStore, tmp_path: Path, entries: list[Entry]
) -> None:
    (tmp_path / "secret").write_text("secret")
    with pytest.raises(Fault) as caught:
        import_archive(store, docker_save(tmp_path / "a.tar", [layer([*PYTHON, *entries])])[0])
    assert caught.value.reason == "INVALID_IMAGE_ARCHIVE"
    assert [path.name for path in store.directory.iterdir()] == [".lock"]
    assert not (tmp_path / "out").exists()


def test_a_link_planted_by_one_layer_does_not_lead_the_next_one_out(store: ImageStore, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_text("untouched")
    lower = layer([*PYTHON, ("escape", str(outside)), ("up", "../../../../.."), ("file", str(outside / "victim"))])
    upper = layer(
        [("escape/new", b"x"), ("escape/.wh.victim", b""), (f"up{outside}/new", b"x"), ("file", b"x"), ("escape", None)]
    )
    image = import_archive(store, docker_save(tmp_path / "a.tar", [lower, upper])[0])
    assert [path.name for path in outside.iterdir()] == ["victim"]
    assert (outside / "victim").read_text() == "untouched"
    assert image.rootfs is not None
    assert (image.rootfs / "file").read_bytes() == b"x"


@pytest.mark.parametrize(
    ("limits", "what"),
    [(ArchiveLimits(entries=4), "entries"), (ArchiveLimits(bytes=1000), "bytes"), (ArchiveLimits(depth=5), "depth")],
)
def test_an_archive_beyond_a_limit_is_refused_with_the_limit(
    store: ImageStore, tmp_path: Path, limits: ArchiveLimits, what: str
) -> None:
    deep: list[Entry] = [("deep", "a/b/c"), ("a/b/c/d", None), ("deep/d/e/f", b"x" * 2000), ("one", b""), ("two", b"")]
    with pytest.raises(Fault, match=f"{what}, the limit is"):
        import_archive(store, docker_save(tmp_path / "a.tar", [layer([*PYTHON, *deep])])[0], limits=limits)


def test_a_gzip_bomb_is_cut_off(store: ImageStore, tmp_path: Path) -> None:
    archive, _ = oci_layout(tmp_path / "a.tar", [layer(PYTHON) + bytes(64 << 20)])
    with pytest.raises(Fault, match="bytes, the limit is 1048576"):
        import_archive(store, archive, limits=ArchiveLimits(bytes=1 << 20))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"architecture": "s390x"}, "IMAGE_ARCHITECTURE"),
        ({"rootfs": {"diff_ids": [f"sha256:{'0' * 64}"]}}, "INVALID_IMAGE_ARCHIVE"),
        ({"rootfs": {"diff_ids": []}}, "INVALID_IMAGE_ARCHIVE"),
        ({"rootfs": None}, "INVALID_IMAGE_ARCHIVE"),
        ({"config": {"Env": ["PATH=/opt"]}}, "IMAGE_WITHOUT_PYTHON"),
    ],
)
def test_an_image_that_can_not_serve_is_refused(
    store: ImageStore, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(Fault) as caught:
        import_archive(store, docker_save(tmp_path / "a.tar", [layer(PYTHON)], **changes)[0])
    assert caught.value.reason == reason
    assert store.references() == ()


def test_an_image_with_too_old_a_python_is_refused_with_both_versions(store: ImageStore, tmp_path: Path) -> None:
    old: list[Entry] = [("usr/bin/python3.8", b""), ("usr/bin/python3", "python3.8")]
    with pytest.raises(Fault, match=r"Python 3\.9 or newer.*it has 3\.8"):
        import_archive(store, docker_save(tmp_path / "a.tar", [layer(old)])[0])


def test_an_archive_of_another_digest_than_asked_for_is_refused(store: ImageStore, tmp_path: Path) -> None:
    for archive in (docker_save(tmp_path / "a", [layer(PYTHON)])[0], oci_layout(tmp_path / "b", [layer(PYTHON)])[0]):
        with pytest.raises(Fault) as caught:
            import_archive(store, archive, reference=FOREIGN)
        assert caught.value.reason == "IMAGE_DIGEST_MISMATCH"


def test_a_changed_blob_is_refused(store: ImageStore, tmp_path: Path) -> None:
    archive, _ = oci_layout(tmp_path / "a.tar", [layer(PYTHON)], pack_layer=lambda data: gzip.compress(data[:-512]))
    with pytest.raises(Fault, match="its configuration says"):
        import_archive(store, archive)


@pytest.mark.parametrize("content", [b"", b"no tar", layer([("x", b"")]), gzip.compress(layer(PYTHON))[:-20]])
def test_what_is_no_image_archive_is_refused(store: ImageStore, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(Fault) as caught:
        import_archive(store, tmp_path / "a.tar")
    assert caught.value.reason == "INVALID_IMAGE_ARCHIVE"


def test_a_zstd_layer_is_refused_with_what_to_do(store: ImageStore, tmp_path: Path) -> None:
    archive, _ = oci_layout(tmp_path / "a.tar", [layer(PYTHON)], pack_layer=lambda data: b"\x28\xb5\x2f\xfd" + data)
    with pytest.raises(Fault, match="gzip"):
        import_archive(store, archive)
