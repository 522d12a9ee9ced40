"""Publishing into a real store and a real database, and what every other caller then sees of it."""

from __future__ import annotations

import asyncio
import io
import os
import stat
import sys
import tarfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from skillcell.core.clock import SystemClock
from skillcell.core.errors import Fault, FaultKind
from skillcell.core.skills import Layer, PackageRequest, VersionState, Visibility
from skillcell.core.types import Principal
from skillcell.registry.archive import Staging
from skillcell.registry.catalog import Catalog
from skillcell.registry.catalog_changes import CatalogChanges
from skillcell.registry.limits import PackageLimits
from skillcell.registry.package_store import PackageStore, seal
from skillcell.registry.publish import Publication, SkillPublisher
from skillcell.storage.database import Database

ACME = Principal("acme", frozenset({"acme"}), frozenset({"caller", "publisher"}))
RIVAL = Principal("rival", frozenset({"rival"}), frozenset({"caller", "publisher"}))
CALLER = Principal("acme", frozenset({"acme"}), frozenset({"caller"}))
OPERATOR = Principal("ops", frozenset(), frozenset({"operator"}))


class Resolver:
    """Resolves nothing but what is on its list, as an index would."""

    def __init__(self) -> None:
        self.asked: list[PackageRequest] = []
        self.down = False

    async def resolve(self, request: PackageRequest, image: str, package: Path) -> tuple[Layer, ...]:
        self.asked.append(request)
        if self.down:
            raise Fault(FaultKind.UNAVAILABLE, "INDEX_UNAVAILABLE", "the index does not answer")
        if "missing" in request.pip:
            raise Fault(FaultKind.FAILED_PRECONDITION, "DEPENDENCY_UNRESOLVED", "missing is not in the index")
        return (Layer("pip", "d" * 64, tuple(f"{name}==1" for name in request.pip)),)


class Registry:
    """The parts together, as app.py puts them."""

    def __init__(self, root: Path, database: Database) -> None:
        self.root = root
        self.store = PackageStore(root)
        self.catalog = Catalog(database)
        self.changes = CatalogChanges(database, SystemClock())
        self.resolver = Resolver()
        self.publisher = SkillPublisher(self.store, self.catalog, self.changes, self.resolver, PackageLimits())

    async def publish(self, source: Path, principal: Principal = ACME, **options: Any) -> Any:
        publication = Publication(source, options.pop("publisher", "acme"), **options)
        return (await self.publisher.publish(principal, publication)).version

    def kept(self) -> tuple[list[str], list[str]]:
        return os.listdir(self.root / "packages"), os.listdir(self.root / "staging")


@pytest.fixture(params=["sqlite", "postgresql"])
async def registry(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Registry]:
    stored = request.param == "postgresql"
    url = request.getfixturevalue("cluster").new_url() if stored else f"sqlite:///{tmp_path}/store.db"
    async with await Database.open(url) as database:
        yield Registry(tmp_path / "data", database)


def skill(tmp_path: Path, body: str = "print(1)\n", name: str = "demo", **files: str) -> Path:
    folder = tmp_path / "skills" / name
    (folder / "scripts").mkdir(parents=True, exist_ok=True)
    (folder / "SKILL.md").write_text(f"---\nname: {name}\ndescription: Shows how {name} works.\n---\n# Hi\n")
    (folder / "scripts" / "run.py").write_text(body)
    for path, text in files.items():
        (folder / path).write_text(text)
    return folder


async def refused(awaitable: Any) -> Fault:
    with pytest.raises(Fault) as caught:
        await awaitable
    return caught.value


async def test_a_folder_and_an_archive_of_it_are_the_same_version(registry: Registry, tmp_path: Path) -> None:
    folder = skill(tmp_path)
    first = await registry.publish(folder)
    assert (first.version, first.state, first.visibility) == ("0.1.0", VersionState.PUBLISHED, Visibility.PRIVATE)
    assert first.spec.entrypoints[0].name == "scripts/run.py"
    archive = tmp_path / "demo.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(folder, "demo")
    again = await registry.publisher.publish(ACME, Publication(archive, "acme"))
    assert (again.created, again.version.digest, again.version.version) == (False, first.digest, "0.1.0")
    packages, staging = registry.kept()
    assert (packages, staging) == ([first.package_digest], [])


async def test_the_stored_tree_is_read_only_and_downloads_the_same_bytes_for_ever(
    registry: Registry, tmp_path: Path
) -> None:
    version = await registry.publish(skill(tmp_path))
    tree = registry.store.path(version.package_digest)
    modes = {p.relative_to(tree).as_posix(): stat.S_IMODE(p.stat().st_mode) for p in [tree, *tree.rglob("*")]}
    assert modes == {".": 0o555, "SKILL.md": 0o444, "scripts": 0o555, "scripts/run.py": 0o444}
    with await registry.store.to_archive(version.package_digest) as first:
        data = first.read()
    with await registry.store.to_archive(version.package_digest) as second:
        assert data == second.read()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tar.getnames() == ["SKILL.md", "scripts", "scripts/run.py"]
    download = tmp_path / "download.tar.gz"
    download.write_bytes(data)
    again = await registry.publisher.publish(ACME, Publication(download, "acme"))
    assert (again.created, again.version.digest) == (False, version.digest)


async def test_versions_count_up_and_latest_follows_the_highest_release(registry: Registry, tmp_path: Path) -> None:
    for body, version in (("1", ""), ("2", ""), ("3", "2.0.0"), ("4", "1.5.0"), ("5", "3.0.0-rc.1"), ("6", "10.0.0")):
        await registry.publish(skill(tmp_path, body), version=version)
    page = await registry.catalog.versions(ACME, "acme/demo")
    assert [v.version for v in page.items] == ["10.0.0", "3.0.0-rc.1", "1.5.0", "2.0.0", "0.1.1", "0.1.0"]
    assert (await registry.catalog.get(ACME, "acme/demo")).version == "10.0.0"
    await registry.changes.set_state(ACME, "acme/demo", "10.0.0", VersionState.YANKED, "broken")
    assert (await registry.catalog.resolve(ACME, "acme/demo@latest")).version == "2.0.0"
    fault = await refused(registry.catalog.resolve(ACME, "acme/demo@10.0.0"))
    assert (fault.kind, fault.reason) == (FaultKind.FAILED_PRECONDITION, "VERSION_YANKED")
    assert "broken" in fault.message
    assert (await registry.publish(skill(tmp_path, "7"))).version == "10.0.1"


async def test_a_version_never_changes(registry: Registry, tmp_path: Path) -> None:
    first = await registry.publish(skill(tmp_path, "1"), version="1.0.0")
    fault = await refused(registry.publish(skill(tmp_path, "2"), version="1.0.0"))
    assert (fault.kind, fault.reason) == (FaultKind.ALREADY_EXISTS, "VERSION_EXISTS")
    assert first.digest in fault.message
    assert fault.metadata["digest"] in fault.message
    assert registry.kept() == ([first.package_digest], [])
    assert await registry.catalog.get(ACME, "acme/demo@1.0.0") == first


async def test_an_overlay_makes_another_version_of_the_same_package(registry: Registry, tmp_path: Path) -> None:
    plain = await registry.publish(skill(tmp_path))
    overlay = b"apiVersion: skillcell/v1\nkind: SkillRuntime\nversion: 2.0.0\ntimeoutSeconds: 3\n"
    laid = await registry.publish(skill(tmp_path), overlay=overlay)
    assert laid.package_digest == plain.package_digest
    assert laid.digest != plain.digest
    assert (laid.version, laid.spec.limits.wall_ns) == ("2.0.0", 3_000_000_000)


async def test_references_name_versions_aliases_and_digests(registry: Registry, tmp_path: Path) -> None:
    one = await registry.publish(skill(tmp_path, "1"), version="1.0.0", aliases=("stable",))
    two = await registry.publish(skill(tmp_path, "2"), version="2.0.0")
    for reference, expected in (
        ("acme/demo@1.0.0", one),
        ("acme/demo@stable", one),
        (f"acme/demo@{one.digest}", one),
        (f"acme/demo@{two.digest[:19]}", two),
        ("acme/demo", two),
    ):
        assert (await registry.catalog.get(ACME, reference)).digest == expected.digest
    moved = await registry.changes.set_alias(ACME, "acme/demo", "stable", "2.0.0", expected_version="1.0.0")
    assert moved.aliases == {"stable": "2.0.0"}
    fault = await refused(registry.changes.set_alias(ACME, "acme/demo", "stable", "1.0.0", expected_version="1.0.0"))
    assert (fault.kind, fault.reason) == (FaultKind.ABORTED, "ETAG_MISMATCH")
    assert (await registry.changes.set_alias(ACME, "acme/demo", "stable", "")).aliases == {}
    assert (await refused(registry.changes.set_alias(ACME, "acme/demo", "stable", ""))).reason == "ALIAS_NOT_FOUND"


@pytest.mark.parametrize(
    "reference",
    ["demo", "acme/", "Acme/demo", "acme/demo@", "acme/demo@sha256:12", "acme/demo@1.0.0+b", "a/b/c", "a/b@V"],
)
async def test_a_malformed_reference_is_an_invalid_argument(registry: Registry, reference: str) -> None:
    assert (await refused(registry.catalog.get(ACME, reference))).kind is FaultKind.INVALID_ARGUMENT


async def test_what_is_not_there_comes_with_close_matches(registry: Registry, tmp_path: Path) -> None:
    await registry.publish(skill(tmp_path), version="1.0.0")
    fault = await refused(registry.catalog.get(ACME, "acme/dmo"))
    assert (fault.kind, fault.reason) == (FaultKind.NOT_FOUND, "SKILL_NOT_FOUND")
    assert "acme/demo" in fault.message
    fault = await refused(registry.catalog.get(ACME, "acme/demo@1.0.1"))
    assert (fault.reason, fault.metadata["close"]) == ("SKILL_VERSION_NOT_FOUND", "acme/demo@1.0.0")


async def test_what_is_not_yours_looks_as_if_it_never_was(registry: Registry, tmp_path: Path) -> None:
    await registry.publish(skill(tmp_path))
    hidden = await refused(registry.catalog.get(RIVAL, "acme/demo"))
    absent = await refused(registry.catalog.get(RIVAL, "acme/nemo"))
    assert hidden.message.replace("demo", "nemo") == absent.message
    assert (hidden.kind, hidden.reason, hidden.metadata) == (absent.kind, absent.reason, absent.metadata)
    assert (await registry.catalog.list_skills(RIVAL)).items == ()
    assert (await registry.catalog.search(RIVAL, "demo")).items == ()
    for attempt in (
        registry.catalog.versions(RIVAL, "acme/demo"),
        registry.changes.set_alias(RIVAL, "acme/demo", "x", "0.1.0"),
        registry.changes.set_state(RIVAL, "acme/demo", "0.1.0", VersionState.YANKED),
        registry.changes.set_visibility(RIVAL, "acme/demo", Visibility.PUBLIC),
    ):
        assert (await refused(attempt)).kind is FaultKind.NOT_FOUND
    assert (await registry.catalog.get(OPERATOR, "acme/demo")).publisher == "acme"


async def test_grants_and_publicity_open_a_skill_for_reading_only(registry: Registry, tmp_path: Path) -> None:
    await registry.publish(skill(tmp_path))
    await registry.changes.set_visibility(ACME, "acme/demo", Visibility.GRANTED, ["rival"])
    seen = await registry.catalog.skill(RIVAL, "acme/demo")
    assert seen.granted_tenants == ()
    assert (await registry.catalog.skill(ACME, "acme/demo")).granted_tenants == ("rival",)
    denied = await refused(registry.changes.set_alias(RIVAL, "acme/demo", "x", "0.1.0"))
    assert denied.kind is FaultKind.PERMISSION_DENIED
    await registry.changes.set_visibility(ACME, "acme/demo", Visibility.PRIVATE)
    assert (await refused(registry.catalog.get(RIVAL, "acme/demo"))).kind is FaultKind.NOT_FOUND
    await registry.changes.set_visibility(ACME, "acme/demo", Visibility.PUBLIC)
    assert (await registry.catalog.get(RIVAL, "acme/demo")).visibility is Visibility.PUBLIC


async def test_publishing_needs_the_role_and_the_name(registry: Registry, tmp_path: Path) -> None:
    fault = await refused(registry.publish(skill(tmp_path), CALLER))
    assert (fault.kind, fault.reason) == (FaultKind.PERMISSION_DENIED, "ROLE_REQUIRED")
    fault = await refused(registry.publish(skill(tmp_path), RIVAL))
    assert (fault.kind, fault.reason) == (FaultKind.PERMISSION_DENIED, "ROLE_REQUIRED")
    assert registry.kept() == ([], [])


async def test_only_an_operator_blocks_and_unblocks(registry: Registry, tmp_path: Path) -> None:
    await registry.publish(skill(tmp_path), aliases=("stable",))
    fault = await refused(registry.changes.set_state(ACME, "acme/demo", "0.1.0", VersionState.BLOCKED))
    assert fault.kind is FaultKind.PERMISSION_DENIED
    change = await registry.changes.set_state(OPERATOR, "acme/demo", "0.1.0", VersionState.BLOCKED, "malware")
    assert (change.version.state, change.dangling_aliases) == (VersionState.BLOCKED, ("stable",))
    fault = await refused(registry.changes.set_state(ACME, "acme/demo", "0.1.0", VersionState.PUBLISHED))
    assert fault.kind is FaultKind.PERMISSION_DENIED
    assert (await refused(registry.catalog.resolve(ACME, "acme/demo"))).reason == "VERSION_BLOCKED"


async def test_pages_hold_every_skill_once_and_tokens_fit_their_question(registry: Registry, tmp_path: Path) -> None:
    names = [f"skill-{i:02}" for i in range(7)]
    for name in names:
        await registry.publish(skill(tmp_path, name=name))
    listed, token = [], ""
    while True:
        page = await registry.catalog.list_skills(ACME, page_size=3, page_token=token)
        listed += [item.name for item in page.items]
        token = page.next_page_token
        if not token:
            break
    assert listed == names
    found, token = [], ""
    while True:
        matches = await registry.catalog.search(ACME, "SKILL works", page_size=3, page_token=token)
        found += [match.skill.name for match in matches.items]
        token = matches.next_page_token
        if not token:
            break
    assert sorted(found) == names
    token = (await registry.catalog.list_skills(ACME, page_size=3)).next_page_token
    for bad in ("x", "%%", token[:-2], token + "AA"):
        fault = await refused(registry.catalog.list_skills(ACME, page_size=3, page_token=bad))
        assert (fault.kind, fault.violations[0].field) == (FaultKind.INVALID_ARGUMENT, "page_token")
    fault = await refused(registry.catalog.list_skills(ACME, callable_only=True, page_token=token))
    assert fault.kind is FaultKind.INVALID_ARGUMENT


async def test_search_ranks_names_first_and_tells_matching_entrypoints(registry: Registry, tmp_path: Path) -> None:
    await registry.publish(skill(tmp_path, name="pdf"))
    await registry.publish(skill(tmp_path, name="other", **{"scripts/pdf_split.py": "print()"}))
    found = (await registry.catalog.search(ACME, "pdf")).items
    assert [(m.skill.name, m.entrypoints) for m in found] == [("pdf", ()), ("other", ("scripts/pdf_split.py",))]
    assert (await registry.catalog.search(ACME, "100%_")).items == ()


async def test_strict_refuses_with_every_finding_and_keeps_nothing(registry: Registry, tmp_path: Path) -> None:
    manifest = "apiVersion: skillcell/v1\nkind: SkillRuntime\npids: 0\nwhat: 1\n"
    folder = skill(tmp_path, **{"skill-runtime.yaml": manifest})
    (folder / "SKILL.md").write_text("---\nname: Demo\ndescription: Use when: x\n---\n")
    fault = await refused(registry.publish(folder))
    assert (fault.kind, fault.reason) == (FaultKind.INVALID_ARGUMENT, "SKILL_INVALID")
    assert {v.field for v in fault.violations} >= {"SKILL.md:3:22", "skill-runtime.yaml:3:1", "skill-runtime.yaml:4:1"}
    assert registry.kept() == ([], [])
    assert (await registry.catalog.list_skills(ACME)).items == ()
    inspection = await registry.publisher.validate(Publication(folder, "acme"))
    assert not inspection.valid
    assert registry.kept() == ([], [])


async def test_lenient_imports_what_a_person_understands_with_recorded_warnings(
    registry: Registry, tmp_path: Path
) -> None:
    folder = skill(tmp_path)
    (folder / "SKILL.md").write_text("---\nname: My Demo\ndescription: Use when: x\n---\n")
    version = await registry.publish(folder, lenient=True)
    assert (version.name, version.spec.description) == ("my-demo", "Use when: x")
    assert {f.code for f in version.findings} >= {"frontmatter-yaml", "frontmatter-name-pattern"}
    stored = await registry.catalog.get(ACME, "acme/my-demo")
    assert stored == version


async def test_a_skill_with_nothing_to_run_is_listed_and_not_callable(registry: Registry, tmp_path: Path) -> None:
    folder = skill(tmp_path)
    (folder / "scripts" / "run.py").unlink()
    await registry.publish(folder)
    assert [s.callable for s in (await registry.catalog.list_skills(ACME)).items] == [False]
    assert (await registry.catalog.list_skills(ACME, callable_only=True)).items == ()


async def test_dependencies_are_resolved_once_per_content(registry: Registry, tmp_path: Path) -> None:
    folder = skill(tmp_path, **{"requirements.txt": "requests\n"})
    version = await registry.publish(folder)
    assert version.layers == (Layer("pip", "d" * 64, ("requests==1",)),)
    await registry.publish(folder)
    assert len(registry.resolver.asked) == 1


async def test_what_does_not_resolve_refuses_strictly_and_warns_leniently(registry: Registry, tmp_path: Path) -> None:
    folder = skill(tmp_path, **{"requirements.txt": "missing\n"})
    assert (await refused(registry.publish(folder))).reason == "DEPENDENCY_UNRESOLVED"
    assert registry.kept() == ([], [])
    registry.resolver.down = True
    assert (await refused(registry.publish(folder, lenient=True))).kind is FaultKind.UNAVAILABLE
    registry.resolver.down = False
    version = await registry.publish(folder, lenient=True)
    assert version.layers == ()
    assert "dependencies-unresolved" in {f.code for f in version.findings}
    overlay = b"apiVersion: skillcell/v1\nkind: SkillRuntime\nruntime: {packages: {pip: [missing]}}\n"
    assert (await refused(registry.publish(folder, lenient=True, overlay=overlay))).reason == "DEPENDENCY_UNRESOLVED"


async def test_many_publications_of_the_same_content_at_once_make_one_version(
    registry: Registry, tmp_path: Path
) -> None:
    folder = skill(tmp_path)
    results = await asyncio.gather(*(registry.publisher.publish(ACME, Publication(folder, "acme")) for _ in range(12)))
    assert sum(result.created for result in results) == 1
    assert len({result.version.digest for result in results}) == 1
    assert registry.kept() == ([results[0].version.package_digest], [])


async def test_different_contents_at_once_get_versions_of_their_own(registry: Registry, tmp_path: Path) -> None:
    folders = [skill(tmp_path / str(i), str(i)) for i in range(8)]
    versions = await asyncio.gather(*(registry.publish(folder) for folder in folders))
    assert sorted(v.version for v in versions) == [f"0.1.{i}" for i in range(8)]


async def test_what_a_crash_leaves_is_swept_and_what_is_named_stays(registry: Registry, tmp_path: Path) -> None:
    version = await registry.publish(skill(tmp_path, "1"))
    # A crash after storing and before recording, and one while unpacking.
    staging = Staging(registry.store.staging_root, PackageLimits())
    orphan = await registry.store.add(await registry.store.seal(await staging.read(skill(tmp_path, "2"))))
    await staging.read(skill(tmp_path, "3"))
    assert len(registry.kept()[0]) == 2
    assert await registry.publisher.clean(older_than_seconds=3600) == 0
    assert await registry.publisher.clean(older_than_seconds=0) >= 2
    assert registry.kept() == ([version.package_digest], [])
    assert (await refused(asyncio.to_thread(registry.store.path, orphan.digest))).kind is FaultKind.DATA_LOSS


async def test_a_database_that_fails_at_the_last_step_leaves_no_version(registry: Registry, tmp_path: Path) -> None:
    class Broken:
        async def read(self, work: Any) -> Any:
            return await registry.catalog._store.read(work)

        async def write(self, work: Any) -> Any:
            raise Fault(FaultKind.UNAVAILABLE, "LEDGER_UNAVAILABLE", "the disk is full")

    changes = CatalogChanges(Broken(), SystemClock())
    publisher = SkillPublisher(registry.store, registry.catalog, changes, registry.resolver, PackageLimits())
    fault = await refused(publisher.publish(ACME, Publication(skill(tmp_path), "acme")))
    assert fault.reason == "LEDGER_UNAVAILABLE"
    assert (await registry.catalog.list_skills(ACME)).items == ()
    await registry.publish(skill(tmp_path))


async def test_an_own_name_may_be_chosen_when_importing_only(registry: Registry, tmp_path: Path) -> None:
    assert (await refused(registry.publish(skill(tmp_path), name="mine"))).reason == "SKILL_INVALID"
    version = await registry.publish(skill(tmp_path), name="mine", lenient=True)
    assert replace(version, findings=()).reference == "acme/mine@0.1.0"


@pytest.mark.parametrize("after", [1, 4, 9])
async def test_a_kill_at_any_moment_leaves_whole_versions_only(tmp_path: Path, after: int) -> None:
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).parents[1] / "registry_child.py"),
        str(tmp_path),
        stdout=asyncio.subprocess.PIPE,
    )
    assert child.stdout is not None
    acknowledged = [(await child.stdout.readline()).decode().split() for _ in range(after)]
    child.kill()
    acknowledged += [
        line.decode().split() for line in (await child.stdout.read()).splitlines() if line.count(b" ") == 1
    ]
    await child.wait()
    async with await Database.open(f"sqlite:///{tmp_path}/store.db") as database:
        registry = Registry(tmp_path / "data", database)
        found = {v.version: v for v in (await registry.catalog.versions(ACME, "acme/demo", page_size=1000)).items}
        for version, digest in acknowledged:
            assert found[version].digest == digest
        for stored in found.values():
            assert seal(registry.store.path(stored.package_digest)) == stored.package_digest
        await registry.publisher.clean(older_than_seconds=0)
        packages, staging = registry.kept()
        assert (set(packages), staging) == ({v.package_digest for v in found.values()}, [])
