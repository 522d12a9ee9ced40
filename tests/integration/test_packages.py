"""Dependencies resolved in real sandboxes: from the configured registries, and from an index that means harm."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from package_index import Index, serving, wheel
from sandbox_fixtures import image
from skillcell.core import events
from skillcell.core.clock import SystemClock
from skillcell.core.errors import Fault, FaultKind
from skillcell.core.ids import sandbox_id
from skillcell.core.skills import Layer, PackageRequest
from skillcell.core.types import MEBIBYTE, SECOND_NS, Isolation, Limits, StageTimes
from skillcell.registry.packages import BUILD_LIMITS, LAYER_LIMITS, PackageSettings, SandboxedPackages
from skillcell.registry.packages_build import BuildSandboxes, Built
from skillcell.registry.packages_dial import dial
from skillcell.registry.packages_layers import LayerStore
from skillcell.sandbox.agent_package import agent_command, build_agent_package
from skillcell.sandbox.cancel import Canceled
from skillcell.sandbox.driver import PackageMount, SandboxSpec
from skillcell.sandbox.drivers.oci import OciDriver, OciSettings
from skillcell.sandbox.framing import FrameReader
from skillcell.sandbox.images import Image
from skillcell.sandbox.images_recipes import recipes_directory
from skillcell.sandbox.job import Delivery, Job
from skillcell.sandbox.supervisor import Outlets, Run, await_hello

SETTINGS = OciSettings(Path("/run/skillcell-test"), "skillcell-test-packages")
NOWHERE = "https://localhost:1"
IS_NUMBER = "sha512-41Cifkg6e8TylSpdtTpeLVMqvSBEVzTttHvERD741+pnZ8ANv0004MRL43QKPDlK9cGvNp6NZWZUBlbGXYxxng=="


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tools and certificates, made once."""
    return tmp_path_factory.mktemp("packages")


@pytest.fixture
async def driver() -> AsyncIterator[OciDriver]:
    async with OciDriver(SETTINGS) as driver:
        yield driver
        assert await driver.list() == [], "a build left a sandbox"


class Counting(BuildSandboxes):
    """The real thing, with a count."""

    builds = 0

    async def build(self, *arguments: Any) -> Built:
        self.builds += 1
        return await super().build(*arguments)


class _Room:
    """Always there."""

    async def __aenter__(self) -> None: ...
    async def __aexit__(self, *_: object) -> None: ...

    def held(self, limits: Limits, on_queued: object) -> _Room:
        return self


class Workbench:
    """A resolver with a store of its own."""

    def __init__(self, driver: OciDriver, shared: Path, root: Path) -> None:
        self.driver, self.shared, self.root = driver, shared, root
        self.agent = build_agent_package(shared / "agent")
        self.layers, self.staging = root / "layers", root / "staging"
        self.skill = root / "skill"
        self.skill.mkdir()
        self.builds: Counting

    def packages(self, index: str = "", npm: str = "", limits: Limits = BUILD_LIMITS, **more: Any) -> SandboxedPackages:
        self.builds = Counting(self.driver, self.agent, _Room(), SystemClock(), limits=limits, dial=dial)
        settings = PackageSettings(
            tools=self.shared / "tools", recipes=recipes_directory(), package_index=index, npm_registry=npm, **more
        )
        return SandboxedPackages(self.builds, LayerStore(self.layers, self.staging, LAYER_LIMITS), _found, settings)

    async def pip(self, *requirements: str, **more: Any) -> Layer:
        (layer,) = await self.packages(**more).resolve(PackageRequest(pip=requirements), "python-3.11", self.skill)
        return layer

    async def refused(self, *requirements: str, **more: Any) -> Fault:
        """The fault; and nothing of the failed build is anywhere."""
        with pytest.raises(Fault) as caught:
            await self.pip(*requirements, **more)
        assert list(self.staging.iterdir()) == []
        assert [path.name for path in self.layers.iterdir()] == ["requests"]
        assert list((self.layers / "requests").iterdir()) == []
        return caught.value

    async def run(self, alias: str, layers: tuple[Layer, ...], argv: list[str], **files: str) -> str:
        """stdout of a command in a sandbox with these layers."""
        found = image(alias)
        mounts = [PackageMount(layer.digest, self.layers / layer.digest, f"/layers/{layer.kind}") for layer in layers]
        limits = Limits()
        name = sandbox_id()
        spec = SandboxSpec(name, found, Isolation.STANDARD, limits, (*mounts, self.agent), agent_command(found.python))
        sandbox = await self.driver.create(spec)
        try:
            reader = FrameReader(sandbox.channel)
            await await_hello(reader, 10)
            sink = _Output()
            env = {**found.env, "PYTHONPATH": "/layers/pip", "NODE_PATH": "/layers/npm/node_modules"}
            deliveries = tuple(
                Delivery("workspace", name.replace("__", "."), text.encode()) for name, text in files.items()
            )
            job = Job("exec", tuple(argv), env, "/workspace", limits, files=deliveries)
            started = events.Started(name, False, "oci", Isolation.STANDARD, limits, StageTimes())
            outlets = Outlets(sink, sink)  # type: ignore[arg-type] # nothing is written to /output
            run = Run(
                sandbox, reader, job, outlets=outlets, canceled=Canceled(), clock=SystemClock(), started_event=started
            )
            report = await run.execute()
            assert report.exit_code == 0, sink.errors.decode()
            return sink.out.decode()
        finally:
            await self.driver.destroy(name)


class _Output:
    def __init__(self) -> None:
        self.out, self.errors = b"", b""

    async def emit(self, event: events.Event) -> None:
        if isinstance(event, events.Stdout):
            self.out += event.data
        elif isinstance(event, events.Stderr):
            self.errors += event.data


async def _found(alias: str) -> Image:
    return await asyncio.to_thread(image, alias)


@pytest.fixture
def bench(driver: OciDriver, shared: Path, tmp_path: Path) -> Workbench:
    return Workbench(driver, shared, tmp_path)


@pytest.fixture
async def index(shared: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Index]:
    async with serving(shared) as index:
        monkeypatch.setenv("PIP_CERT", str(index.certificate))
        yield index


class TestFromTheConfiguredRegistries:
    async def test_a_requirement_becomes_a_read_only_compiled_layer_that_skills_import(self, bench: Workbench) -> None:
        layer = await bench.pip("six==1.17.0")
        (line,) = layer.lock
        assert line.startswith("six==1.17.0 --hash=sha256:")
        tree = bench.layers / layer.digest
        assert not [path for path in (tree, *tree.rglob("*")) if path.stat().st_mode & 0o222]
        (compiled,) = tree.glob("__pycache__/six.*.pyc")
        assert compiled.read_bytes()[4:8] == b"\x01\0\0\0", "must be an unchecked hash, since a layer has no times"
        code = "import six; print(six.__version__, six.__file__, six.add_metaclass.__code__.co_filename)"
        said = await bench.run("python-3.11", (layer,), ["python3", "-c", code])
        assert said.split() == ["1.17.0", "/layers/pip/six.py", "/layers/pip/six.py"]

    async def test_the_same_lock_gives_the_same_bytes_and_pinned_requests_need_no_network(
        self, bench: Workbench, driver: OciDriver, shared: Path, tmp_path: Path
    ) -> None:
        first = await bench.pip("six==1.17.0")
        again = await bench.pip(*first.lock)  # asked otherwise: resolved again, but the layer is there
        assert again == first
        assert await bench.pip(*first.lock, index=f"{NOWHERE}/simple") == first
        assert bench.builds.builds == 0
        (tmp_path / "other").mkdir()
        other = Workbench(driver, shared, tmp_path / "other")
        assert await other.pip("six==1.17.0") == first
        assert _content(other, first) == _content(bench, first)

    async def test_npm_packages_are_required_and_imported_from_anywhere(self, bench: Workbench) -> None:
        request = PackageRequest(npm=("is-number@^7.0.0", "semver@7.6.3"))
        (layer,) = await bench.packages().resolve(request, "node-20", bench.skill)
        assert [line.split(" ")[0] for line in layer.lock] == ["is-number@7.0.0", "semver@7.6.3"]
        assert (bench.layers / layer.digest / "node_modules/.bin/semver").is_symlink()
        common = "console.log(require('is-number')(7))"
        module = "import is from 'is-number'; import semver from 'semver'; console.log(is('x'), semver.major('2.1.0'))"
        files = {"a__cjs": common, "b__mjs": module}
        argv = ["sh", "-c", "node a.cjs && node b.mjs && /layers/npm/node_modules/.bin/semver 1.2.3"]
        assert (await bench.run("node-20", (layer,), argv, **files)).split() == ["true", "false", "2", "1.2.3"]

    async def test_a_package_lock_decides_and_its_layer_needs_no_network_again(self, bench: Workbench) -> None:
        _write_lock(bench.skill, IS_NUMBER)
        request = PackageRequest(npm=("is-number@>=6",), npm_lock="package-lock.json")
        (layer,) = await bench.packages().resolve(request, "node-20", bench.skill)
        assert layer.lock == (f"is-number@7.0.0 {IS_NUMBER}",)
        (again,) = await bench.packages(npm=NOWHERE).resolve(request, "node-20", bench.skill)
        assert again == layer
        assert bench.builds.builds == 0

    async def test_a_package_lock_with_another_hash_is_refused(self, bench: Workbench) -> None:
        _write_lock(bench.skill, IS_NUMBER.replace("41Cifkg", "51Cifkg"))
        request = PackageRequest(npm=("is-number@>=6",), npm_lock="package-lock.json")
        with pytest.raises(Fault, match=r"EINTEGRITY|integrity") as caught:
            await bench.packages().resolve(request, "node-20", bench.skill)
        assert caught.value.reason == "DEPENDENCY_UNRESOLVED"

    async def test_npm_without_node_is_told_so(self, bench: Workbench) -> None:
        with pytest.raises(Fault, match=r"no node.*node-20"):
            await bench.packages().resolve(PackageRequest(npm=("is-number",)), "python-3.11", bench.skill)

    async def test_an_unknown_npm_package_is_named(self, bench: Workbench) -> None:
        with pytest.raises(Fault, match="is-number@99") as caught:
            await bench.packages().resolve(PackageRequest(npm=("is-number@99",)), "node-20", bench.skill)
        assert (caught.value.kind, caught.value.reason) == (FaultKind.FAILED_PRECONDITION, "DEPENDENCY_UNRESOLVED")
        assert caught.value.metadata["requirement"] == "is-number@99"

    async def test_programs_are_looked_for_in_the_image(self, bench: Workbench) -> None:
        packages = bench.packages()
        assert await packages.resolve(PackageRequest(bins=("python3", "sh")), "python-3.11", bench.skill) == ()
        with pytest.raises(Fault, match=r"'python-3\.11' has no nosuch") as caught:
            await packages.resolve(PackageRequest(bins=("sh", "nosuch")), "python-3.11", bench.skill)
        assert caught.value.reason == "PROGRAM_MISSING"


class TestAgainstAnIndexThatMeansHarm:
    async def test_only_wheels_of_the_right_hash_are_taken(self, bench: Workbench, index: Index) -> None:
        index.add("good", "good-1.0-py3-none-any.whl", wheel("good", {"good.py": b"x = 1\n"}))
        index.add("source", "source-1.0.tar.gz", b"no archive")
        index.add("lie", "lie-1.0-py3-none-any.whl", wheel("lie", {"lie.py": b""}), digest="0" * 64)
        address = f"{index.address}/simple"
        source = await bench.refused("source", index=address)
        assert source.reason == "DEPENDENCY_UNRESOLVED"
        assert "only wheels" in source.message
        assert "hash" in (await bench.refused("lie", index=address)).message.lower()
        wrong = f"good==1.0 --hash=sha256:{'1' * 64}"
        assert "hash" in (await bench.refused(wrong, index=address)).message.lower()
        unknown = await bench.refused("nothere", index=address)
        assert unknown.metadata["requirement"] == "nothere"
        assert "nothere" in unknown.message
        assert "conflict" in (await bench.refused("good==1.0", "good>1", index=address)).message.lower()
        layer = await bench.pip("good", index=address)
        assert layer.lock[0].startswith("good==1.0 --hash=sha256:")

    async def test_a_wheel_can_put_nothing_outside_its_layer(self, bench: Workbench, index: Index) -> None:
        index.add("evil", "evil-1.0-py3-none-any.whl", wheel("evil", {"../../../evil.py": b"", "evil.py": b""}))
        fault = await bench.refused("evil", index=f"{index.address}/simple")
        assert (fault.kind, fault.reason) == (FaultKind.FAILED_PRECONDITION, "DEPENDENCY_UNRESOLVED")

    async def test_nothing_of_a_wheel_runs_in_the_build(self, bench: Workbench, index: Index) -> None:
        hook = b"import sys; sys.stdout.write('x' * 99); open('/workspace/tree/ran', 'w')\n"
        files = {"hook.pth": b"import hook\n", "hook.py": hook, "sitecustomize.py": hook, "broken.py": b"def (:\n"}
        index.add("hook", "hook-1.0-py3-none-any.whl", wheel("hook", files))
        layer = await bench.pip("hook", index=f"{index.address}/simple")
        assert not (bench.layers / layer.digest / "ran").exists()

    async def test_another_host_is_never_asked(self, bench: Workbench, index: Index, shared: Path) -> None:
        content = wheel("away", {"away.py": b""})
        async with serving(shared) as other:
            index.add("away", "away-1.0-py3-none-any.whl", content, host=other.address)
            index.redirects["/simple/moved/"] = f"{other.address}/simple/moved/"
            for name in ("away", "moved"):
                fault = await bench.refused(name, index=f"{index.address}/simple")
                assert fault.reason == "DEPENDENCY_UNRESOLVED"
                assert f"{other.address.removeprefix('https://')} is not a host of the package index" in fault.message
            assert other.seen == []

    async def test_credentials_reach_the_index_and_nobody_else(self, bench: Workbench, index: Index) -> None:
        index.add("good", "good-1.0-py3-none-any.whl", wheel("good", {"good.py": b"x = 1\n"}))
        address = f"{index.address.replace('://', '://me:s3cr%40t@')}/simple"
        fault = await bench.refused("nothere", index=address)
        assert "s3cr" not in fault.message
        layer = await bench.pip("good", index=address)
        assert len(index.authorizations) == 1
        kept = b"".join(path.read_bytes() for path in bench.layers.rglob("*") if path.is_file())
        assert b"s3cr" not in kept + repr(layer).encode()

    async def test_an_index_that_fails_is_unavailable(
        self, bench: Workbench, index: Index, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        index.failing = True
        faults = [await bench.refused("x", index=f"{index.address}/simple"), await bench.refused("x", index=NOWHERE)]
        monkeypatch.delenv("PIP_CERT")
        faults.append(await bench.refused("x", index=f"{index.address}/simple"))  # of an unknown authority now
        assert {(fault.kind, fault.reason) for fault in faults} == {
            (FaultKind.UNAVAILABLE, "PACKAGE_INDEX_UNAVAILABLE")
        }

    async def test_a_build_ends_at_its_time_and_its_disk(self, bench: Workbench, index: Index) -> None:
        index.add("big", "big-1.0-py3-none-any.whl", wheel("big", {"big.py": b"#" * (30 << 20)}))
        small = replace(BUILD_LIMITS, disk_bytes=12 * MEBIBYTE, memory_bytes=512 * MEBIBYTE)
        assert (
            f"disk of {12 * MEBIBYTE} bytes"
            in (await bench.refused("big", index=f"{index.address}/simple", limits=small)).message
        )
        index.stalls = True
        short = replace(BUILD_LIMITS, wall_ns=2 * SECOND_NS)
        fault = await bench.refused("big", index=f"{index.address}/simple", limits=short)
        assert (fault.kind, fault.reason) == (FaultKind.FAILED_PRECONDITION, "DEPENDENCY_UNRESOLVED")
        assert "wall_ns" in fault.message

    async def test_more_bytes_than_a_build_may_move_are_refused(self, bench: Workbench, index: Index) -> None:
        content = wheel("big", {"big.bin": os.urandom(1 << 20)})
        index.add("big", "big-1.0-py3-none-any.whl", content)
        limits = replace(BUILD_LIMITS, egress_bytes=500_000)
        fault = await bench.refused("big", index=f"{index.address}/simple", limits=limits)
        assert "500000 bytes were moved" in fault.message

    async def test_a_canceled_publication_leaves_nothing(self, bench: Workbench, index: Index) -> None:
        index.stalls = True
        building = asyncio.create_task(bench.pip("x", index=f"{index.address}/simple"))
        await index.asked.wait()
        assert bench.builds.live
        building.cancel()
        with pytest.raises(asyncio.CancelledError):
            await building
        assert not bench.builds.live
        assert list(bench.staging.iterdir()) == []

    async def test_equal_requests_at_once_are_built_once(self, bench: Workbench, index: Index) -> None:
        index.add("good", "good-1.0-py3-none-any.whl", wheel("good", {"good.py": b"x = 1\n"}))
        packages = bench.packages(index=f"{index.address}/simple")
        request = PackageRequest(pip=("good",))
        found = await asyncio.gather(*(packages.resolve(request, "python-3.11", bench.skill) for _ in range(5)))
        assert len(set(found)) == 1
        assert bench.builds.builds == 1

    async def test_an_unpinned_answer_stands_for_a_while_only(self, bench: Workbench, index: Index) -> None:
        index.add("good", "good-1.0-py3-none-any.whl", wheel("good", {"good.py": b"x = 1\n"}))
        address = f"{index.address}/simple"
        one = await bench.pip("good", index=address, remember_seconds=0.0)
        index.add("good", "good-2.0-py3-none-any.whl", wheel("good", {"good.py": b"x = 2\n"}, "2.0"))
        two = await bench.pip("good", index=address)
        assert [layer.lock[0].split(" ")[0] for layer in (one, two)] == ["good==1.0", "good==2.0"]
        assert await bench.pip("good", index=address) == two
        assert bench.builds.builds == 0


def _content(bench: Workbench, layer: Layer) -> str:
    return str(json.loads((bench.layers / f"{layer.digest}.json").read_bytes())["content"])


def _write_lock(skill: Path, integrity: str) -> None:
    root = {"dependencies": {"is-number": ">=6"}}
    entry = {
        "version": "7.0.0",
        "resolved": "https://registry.npmjs.org/is-number/-/is-number-7.0.0.tgz",
        "integrity": integrity,
    }
    (skill / "package.json").write_text(json.dumps(root))
    (skill / "package-lock.json").write_text(
        json.dumps({"lockfileVersion": 3, "packages": {"": root, "node_modules/is-number": entry}})
    )
