"""Our images as they truly are: built by mmdebstrap, run by Docker Engine. Needs root, mmdebstrap and an engine.

The images are built once into a store that outlives the run (`.data/test-images`, or `SKILLCELL_TEST_IMAGES`).
"""

from __future__ import annotations

import gc
import gzip
import hashlib
import importlib._bootstrap_external as importlib_external
import json
import os
import re
import shutil
import stat
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import docker
import pytest

from skillcell.core.errors import Fault
from skillcell.sandbox.images import MOUNT_POINTS, Image, ImageStore, machine_architecture
from skillcell.sandbox.images_archive import import_archive
from skillcell.sandbox.images_bootstrap import Drift, prepare
from skillcell.sandbox.images_docker import STAGE_LABEL, DockerImages
from skillcell.sandbox.images_npm import prepare_npm
from skillcell.sandbox.images_recipes import ALIASES, recipes_directory
from skillcell.sandbox.images_tree import pack, tree_digest

pytestmark = pytest.mark.timeout(600)

CHECKOUT = Path(__file__).parents[2]
AGENT_DIRECTORY = {"/run/skillcell": "uid=12345,gid=54321,mode=0755,size=64k"}


@pytest.fixture(scope="session")
def store() -> ImageStore:
    return ImageStore(Path(os.environ.get("SKILLCELL_TEST_IMAGES", CHECKOUT / ".data/test-images")))


@pytest.fixture(scope="session")
def images(store: ImageStore) -> dict[str, Image]:
    return {image.reference: image for image in prepare(ALIASES, store=store, progress=print)}


@pytest.fixture(scope="session")
def engine() -> Iterator[docker.DockerClient]:
    client = docker.from_env()
    client.ping()
    yield client
    client.close()


@pytest.fixture(scope="session")
def engine_images(engine: docker.DockerClient, store: ImageStore, images: dict[str, Image]) -> dict[str, Image]:
    held = DockerImages(engine, store)
    return {image.reference: image for image in held.prepare(images, print)}


def rootfs(image: Image) -> Path:
    assert image.rootfs is not None
    return image.rootfs


def run(engine: docker.DockerClient, image: Image, *command: str, **options: Any) -> str:
    settings: dict[str, Any] = {"network_mode": "none", "read_only": True, "mem_limit": "256m", "pids_limit": 64}
    container = engine.containers.create(image.engine_reference, list(command), **{**settings, **options})
    try:
        container.start()
        container.wait(timeout=60)
        return container.logs().decode()
    finally:
        container.remove(force=True)


# --- the bytes ------------------------------------------------------------------------------------------------------


def test_a_second_bootstrap_gives_the_same_bytes(images: dict[str, Image], tmp_path: Path) -> None:
    """Built apart from the larger images this time, which must not matter."""
    first = images["python-3.11"]
    drift = Drift.REFUSE if first.locked else Drift.FOLLOW
    (second,) = prepare(["python-3.11"], store=ImageStore(tmp_path), progress=print, drift=drift)
    assert second.digest == first.digest
    assert tree_digest(rootfs(first)) == first.digest


def test_a_locked_version_that_is_gone_refuses_a_locked_build_and_leaves_nothing(tmp_path: Path) -> None:
    recipes = tmp_path / "recipes"
    shutil.copytree(recipes_directory(), recipes)
    lock = recipes / f"bookworm.{machine_architecture()}.lock"
    lock.write_text(re.sub(r"^netbase=.*$", "netbase=0.0-gone", lock.read_text(), flags=re.MULTILINE))
    store = ImageStore(tmp_path / "images", recipes=recipes)
    with pytest.raises(Fault, match=r"netbase.*update the lock") as caught:
        prepare(["python-3.11"], store=store, progress=print, drift=Drift.REFUSE)
    assert caught.value.reason == "IMAGE_LOCK_STALE"
    assert [path.name for path in store.directory.iterdir()] == [".lock"]


def test_preparing_a_second_time_takes_milliseconds(store: ImageStore, images: dict[str, Image]) -> None:
    said: list[str] = []
    assert {image.reference: image for image in prepare(ALIASES, store=store, progress=said.append)} == images
    assert said == []


@pytest.mark.parametrize("alias", list(ALIASES))
def test_nothing_in_an_image_is_privileged_writable_or_of_the_machine_it_was_made_on(
    images: dict[str, Image], alias: str
) -> None:
    root = rootfs(images[alias])
    dates = set()
    for path in [root, *root.rglob("*")]:
        status = path.lstat()
        mode, name = status.st_mode, str(path.relative_to(root))
        dates.add(status.st_mtime)
        assert (status.st_uid, status.st_gid) == (0, 0), name
        assert stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode), name
        if not stat.S_ISLNK(mode):
            assert not mode & (stat.S_ISUID | stat.S_ISGID), name
            assert not mode & 0o022 or name == "tmp", name
            assert mode & 0o004, name
            assert os.listxattr(path) == [], name
    assert len(dates) == 1
    for name in ("etc/machine-id", "etc/ssh", "etc/shadow", "etc/apt", "var/log", "var/cache", "var/lib/apt", "build"):
        assert not (root / name).exists(), name
    for point in set(MOUNT_POINTS) - {"run/skillcell"}:
        within = {str(path.relative_to(root)) for path in (root / point).iterdir()}
        assert within <= set(MOUNT_POINTS), point  # nothing but room for further mounts


def test_everything_python_imports_is_compiled_and_never_checked_again(images: dict[str, Image]) -> None:
    root = rootfs(images["python-3.11"]) / "usr/lib"
    sources = [
        path
        for folder in ("python3.11", "python3/dist-packages")
        for path in (root / folder).rglob("*.py")
        if "lib2to3/tests" not in str(path) and "/test/" not in str(path)
    ]
    compiled = [path.parent / "__pycache__" / f"{path.stem}.cpython-311.pyc" for path in sources]
    assert len(compiled) > 500
    for path in compiled:
        data = path.read_bytes()
        # PEP 552: flags 0b01 is hash-based and unchecked.
        assert importlib_external._classify_pyc(data, path.name, {}) == 0b01, path  # type: ignore[attr-defined]


def test_images_stay_small(images: dict[str, Image]) -> None:
    limits = {"python-3.11": 100, "shell": 210, "node-20": 310}
    for alias, limit in limits.items():
        size = 0

        def count(data: bytes) -> None:
            nonlocal size
            size += len(data)

        pack(rootfs(images[alias]), count)
        assert size >> 20 <= limit, alias


# --- inside ---------------------------------------------------------------------------------------------------------

WHO = (
    "whoami; id -un; id -gn; python3 -c 'import os, pwd; print(pwd.getpwuid(os.getuid()).pw_name)'; "
    "node -p 'os.userInfo().username'; python3 -c 'import getpass; print(getpass.getuser())'"
)


def test_an_arbitrary_user_is_known_once_the_agent_wrote_its_entry(
    engine: docker.DockerClient, engine_images: dict[str, Image]
) -> None:
    script = (
        "echo 'worker:x:12345:54321::/home/skill:/bin/sh' >/run/skillcell/passwd; "
        f"echo 'crew:x:54321:' >/run/skillcell/group; {WHO}; echo ~"
    )
    said = run(engine, engine_images["node-20"], "sh", "-c", script, user="12345:54321", tmpfs=AGENT_DIRECTORY)
    assert said.split() == ["worker", "worker", "crew", "worker", "worker", "worker", "/home/skill"]


def test_nothing_breaks_while_nobody_wrote_who_the_user_is(
    engine: docker.DockerClient, engine_images: dict[str, Image]
) -> None:
    script = (
        "set -e; id -u; python3 -c 'import os; print(os.path.expanduser(\"~\"))'; node -p 'os.homedir()'; "
        "git --version; ls -l /etc/hosts | cut -c1-3; curl --version | head -c4; tar -C / -cf /dev/null etc/hosts; "
        "bash -c 'echo; echo ok'"
    )
    said = run(engine, engine_images["node-20"], "sh", "-c", script, user="12345:54321", tmpfs=AGENT_DIRECTORY)
    assert said.splitlines()[:3] == ["12345", "/home/skill", "/home/skill"]
    assert said.rstrip().endswith("ok")


def test_without_an_agent_the_image_is_the_user_skill(
    engine: docker.DockerClient, engine_images: dict[str, Image]
) -> None:
    assert run(engine, engine_images["node-20"], "sh", "-c", WHO).split() == ["skill"] * 6


def test_python_has_its_whole_standard_library_and_what_skills_import_most(
    engine: docker.DockerClient, engine_images: dict[str, Image]
) -> None:
    script = """
import importlib, sys, warnings, zoneinfo, locale, ctypes.util, mimetypes, socket
warnings.simplefilter("ignore")
absent = {"idlelib", "tkinter", "turtle", "turtledemo", "ensurepip", "antigravity", "this"}
windows = {"msilib", "msvcrt", "nt", "winreg", "winsound"}
failed = []
for name in sorted(sys.stdlib_module_names - absent - windows | {"yaml", "requests", "urllib3", "certifi"}):
    if not name.startswith("_"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            failed.append(f"{name}: {error}")
print(failed)
print(zoneinfo.ZoneInfo("Europe/Berlin"), locale.getpreferredencoding(), ctypes.util.find_library("c"))
print(mimetypes.guess_type("a.png")[0], socket.getservbyname("https"), sys.executable)
"""
    said = run(engine, engine_images["python-3.11"], "python", "-c", script)
    assert said.splitlines() == ["[]", "Europe/Berlin UTF-8 libc.so.6", "image/png 443 /usr/bin/python"]


def test_shell_scripts_find_what_they_call(engine: docker.DockerClient, engine_images: dict[str, Image]) -> None:
    commands = (
        "awk bash bc column curl file find gawk git grep gzip hexdump jq less openssl patch perl pgrep ps python "
        "python3 sed sha256sum shasum sh tar tree unzip xargs xxd xz zip"
    )
    script = (
        f"for c in {commands}; do command -v $c >/dev/null || echo missing $c; done; readlink -f /bin/sh; "
        "echo '{\"a\": 1}' | jq -c .a; git --version; echo 2^10 | bc; printf a | shasum -a 256 | cut -c1-4; "
        "file /bin/sh"
    )
    said = run(engine, engine_images["shell"], "bash", "-c", script).splitlines()
    assert said[:2] == ["/usr/bin/dash", "1"]
    assert said[2].startswith("git version")
    assert said[3:5] == ["1024", "ca97"]


def test_no_program_lacks_a_library(images: dict[str, Image]) -> None:
    for image in images.values():
        root = rootfs(image)
        files = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
        programs = ["/" + str(path.relative_to(root)) for path in files if is_program(path)]
        assert len(programs) > 200
        found = subprocess.run(
            ["chroot", root, "/usr/bin/python3", "-I", "-S", "-c", _MISSING_LIBRARIES],
            input="\n".join(programs),
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        assert found.stdout == "", image.reference


def is_program(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


_MISSING_LIBRARIES = """
import subprocess, sys
for program in sys.stdin.read().split():
    asked = subprocess.run(["/lib64/ld-linux-x86-64.so.2", "--list", program], stdin=0, capture_output=True, text=True)
    if "not found" in asked.stdout:
        print(program, asked.stdout)
"""


def test_npm_runs_from_a_tree_of_its_own(
    engine: docker.DockerClient, engine_images: dict[str, Image], tmp_path: Path
) -> None:
    tree = prepare_npm(tmp_path / "tools", recipes_directory())
    assert prepare_npm(tmp_path / "tools", recipes_directory()) == tree
    assert [path.name for path in (tmp_path / "tools").iterdir()] == [tree.name]
    mounts = {str(tree): {"bind": "/layers", "mode": "ro"}}
    said = run(
        engine,
        engine_images["node-20"],
        "node",
        "/layers/bin/npm-cli.js",
        "--version",
        volumes=mounts,
        tmpfs={"/home/skill": ""},
    )
    assert said.split() == [tree.name.removeprefix("npm-")]


# --- the engine -----------------------------------------------------------------------------------------------------


def test_the_engine_holds_the_very_bytes_of_the_store(
    engine: docker.DockerClient, store: ImageStore, engine_images: dict[str, Image]
) -> None:
    for alias, image in engine_images.items():
        held = engine.images.get(image.engine_reference)
        assert held.attrs["RootFS"]["Layers"] == [image.digest]
        assert held.attrs["Config"]["User"] == "65532:65532"
        assert f"skillcell/{alias}:{image.digest[7:19]}" in held.tags
        assert DockerImages(engine, store).ensure(alias).engine_reference == image.engine_reference


def test_an_image_saved_by_the_engine_comes_back_file_for_file(
    engine: docker.DockerClient, engine_images: dict[str, Image], tmp_path: Path
) -> None:
    image = engine_images["python-3.11"]
    with (tmp_path / "saved.tar").open("wb") as file:
        for block in engine.images.get(image.engine_reference).save(named=True):
            file.write(block)
    imported = import_archive(ImageStore(tmp_path / "images"), tmp_path / "saved.tar")
    assert imported.reference == f"skillcell/python-3.11@{image.engine_reference}"
    assert (imported.python, imported.env) == (image.python, image.env)
    assert listing(rootfs(imported)) == listing(rootfs(image))


def listing(root: Path) -> dict[str, tuple[int, str]]:
    """Mode and content of everything, but for what an engine puts into each container itself."""
    files = {}
    for path in root.rglob("*"):
        name = str(path.relative_to(root))
        mode = path.lstat().st_mode
        if name in (".dockerenv", "etc/hosts", "etc/hostname", "etc/resolv.conf", "etc/mtab", "tmp") or name.startswith(
            "dev"
        ):
            continue
        content = os.readlink(path) if path.is_symlink() else ""
        if stat.S_ISREG(mode):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        files[name] = (mode, content)
    return files


def test_the_dockerfile_builds_the_same_files_as_the_bootstrap(
    engine: docker.DockerClient, images: dict[str, Image], tmp_path: Path
) -> None:
    """On the base that a machine without a registry has: README.md of sandbox_images/ gives this very command."""
    base = tmp_path / "base.tar"
    mirror = "http://deb.debian.org/debian"
    subprocess.run(
        [
            *("mmdebstrap", "--variant=minbase", "--mode=root", "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr"),
            *("--quiet", "bookworm", base, f"deb {mirror} bookworm main", f"deb {mirror} bookworm-updates main"),
            "deb http://deb.debian.org/debian-security bookworm-security main",
        ],
        check=True,
        timeout=300,
        capture_output=True,
    )
    tag = "skillcell/test-base:bookworm"
    engine.api.import_image_from_file(str(base), repository="skillcell/test-base", tag="bookworm")
    built = container = None
    try:
        built, _ = engine.images.build(
            path=str(recipes_directory()),
            dockerfile="python/Dockerfile",
            buildargs={"BASE": tag, "DRIFT": "refuse" if images["python-3.11"].locked else "follow"},
            network_mode="host",
            rm=True,
            forcerm=True,
            labels={"skillcell.test": "1"},
        )
        container = engine.containers.create(str(built.id))
        exported, tree = tmp_path / "exported.tar", tmp_path / "tree"
        with exported.open("wb") as file:
            for block in container.export():
                file.write(block)
        with tarfile.open(exported) as archive:
            archive.extractall(tree, filter="tar")
        assert listing(tree) == listing(rootfs(images["python-3.11"]))
    finally:
        if container is not None:
            container.remove(force=True)
        if built is not None:
            engine.images.remove(str(built.id), force=True)
        engine.images.remove(tag, force=True)
        engine.images.prune(filters={"dangling": True, "label": STAGE_LABEL})


class Registry(ThreadingHTTPServer):
    """A registry of one blob store, as much of the distribution specification as a pull needs."""

    blobs: dict[str, bytes]
    types: dict[str, str]


class RegistryHandler(BaseHTTPRequestHandler):
    server: Registry

    def do_GET(self) -> None:
        digest = self.path.rpartition("/")[2]
        body = b"{}" if self.path == "/v2/" else self.server.blobs.get(digest)
        self.send_response(200 if body is not None else 404)
        if body is None:
            body = b'{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}'
        self.send_header("Content-Type", self.server.types.get(digest, "application/octet-stream"))
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Docker-Content-Digest", digest)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def registry() -> Iterator[Registry]:
    server = Registry(("127.0.0.1", 0), RegistryHandler)
    server.blobs, server.types = {}, {}
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def publish(registry: Registry, tree: Path, name: str) -> str:
    """The tree as a one-layer image; returns its reference."""

    def put(data: bytes, media_type: str) -> dict[str, Any]:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        registry.blobs[digest], registry.types[digest] = data, media_type
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    layer = bytearray()
    pack(tree, layer.extend)
    prefix = "application/vnd.docker"
    diff_id = f"sha256:{hashlib.sha256(layer).hexdigest()}"
    config = {
        "architecture": machine_architecture(),
        "os": "linux",
        "config": {"Env": ["PATH=/usr/local/bin:/usr/bin:/bin", "GREETING=hello"], "User": "0"},
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created": "2024-01-01T00:00:00Z"}],
        "created": "2024-01-01T00:00:00Z",
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{prefix}.distribution.manifest.v2+json",
        "config": put(json.dumps(config).encode(), f"{prefix}.container.image.v1+json"),
        "layers": [put(gzip.compress(layer, 1), f"{prefix}.image.rootfs.diff.tar.gzip")],
    }
    made = put(json.dumps(manifest).encode(), str(manifest["mediaType"]))
    return f"127.0.0.1:{registry.server_address[1]}/{name}@{made['digest']}"


def test_a_foreign_image_is_pulled_by_digest_and_asked_for_its_python(
    engine: docker.DockerClient, store: ImageStore, images: dict[str, Image], registry: Registry
) -> None:
    reference = publish(registry, rootfs(images["python-3.11"]), "foreign")
    try:
        image = DockerImages(engine, store).ensure(reference)
        assert (image.python, image.rootfs) == ("/usr/bin/python3", None)
        assert image.env["GREETING"] == "hello"
        assert image.digest == reference.rpartition("@")[2]
        assert engine.containers.list(all=True, filters={"label": "skillcell.probe"}) == []
    finally:
        engine.images.remove(reference, force=True)


def test_a_foreign_image_without_python_is_refused(
    engine: docker.DockerClient, store: ImageStore, registry: Registry, tmp_path: Path
) -> None:
    (tmp_path / "tree/etc").mkdir(parents=True)
    (tmp_path / "tree/etc/os-release").write_text("NAME=empty\n")
    reference = publish(registry, tmp_path / "tree", "empty")
    try:
        with pytest.raises(Fault) as caught:
            DockerImages(engine, store).ensure(reference)
        assert caught.value.reason == "IMAGE_WITHOUT_PYTHON"
        assert engine.containers.list(all=True, filters={"label": "skillcell.probe"}) == []
    finally:
        engine.images.remove(reference, force=True)


def test_an_image_its_registry_does_not_have_is_told_from_a_registry_that_is_gone(
    engine: docker.DockerClient, store: ImageStore, registry: Registry
) -> None:
    digest = f"sha256:{'0' * 64}"
    with pytest.raises(Fault) as caught:
        DockerImages(engine, store).ensure(f"127.0.0.1:{registry.server_address[1]}/none@{digest}")
    assert caught.value.reason == "IMAGE_NOT_PULLED"
    with pytest.raises(Fault) as caught:
        DockerImages(engine, store).ensure(f"127.0.0.1:1/none@{digest}")
    assert caught.value.reason == "IMAGE_PULL_FAILED"


def test_a_tree_that_was_changed_is_never_given_to_the_engine(
    engine: docker.DockerClient, store: ImageStore, images: dict[str, Image], tmp_path: Path
) -> None:
    tampered = ImageStore(tmp_path)
    with tampered.building() as scratch:
        (scratch / "tree").mkdir()
        (scratch / "tree/extra").touch()
        tampered.adopt(
            scratch / "tree", Image("shell", f"sha256:{'1' * 64}", None, machine_architecture(), {"PATH": "/"})
        )
    with pytest.raises(Fault) as caught:
        DockerImages(engine, tampered).ensure("shell")
    assert caught.value.reason == "IMAGE_INTEGRITY"
    assert engine.images.list(name="skillcell/shell:111111111111") == []


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_an_engine_that_is_gone_is_unavailable(store: ImageStore, tmp_path: Path) -> None:
    client = docker.DockerClient(base_url=f"unix://{tmp_path}/gone.sock", version="1.41")
    try:
        with pytest.raises(Fault) as caught:
            DockerImages(client, store).ensure("shell")
    finally:
        client.close()
        # The SDK drops a socket that could not connect without closing it; collected here, it fails no later test.
        del client
        reason = caught.value.reason
        del caught
        gc.collect()
    assert reason == "ENGINE_UNAVAILABLE"


def test_a_machine_that_can_not_bootstrap_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shutil.which("mmdebstrap") is None
    with pytest.raises(Fault, match="apt-get install mmdebstrap"):
        prepare(["shell"], store=ImageStore(tmp_path / "images"), progress=print)
