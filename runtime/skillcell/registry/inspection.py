"""Everything a staged package says, read at once: frontmatter, manifest, overlay, scripts, dependencies, schemas.

Pure reading of a tree that lies still: it blocks, and it never raises for what a package contains.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from skillcell.core.skills import Entrypoint, Finding, PackageRequest, Severity, SkillSpec
from skillcell.registry import semver
from skillcell.registry.archive import StagedPackage
from skillcell.registry.dependencies import inferred_packages, package_json, requirements_file
from skillcell.registry.discovery import default_entrypoint, entrypoints, find_scripts
from skillcell.registry.findings import Report, shown
from skillcell.registry.frontmatter import MAX_FILE_BYTES, read_frontmatter
from skillcell.registry.image_choice import choose_image
from skillcell.registry.imports import report_undeclared
from skillcell.registry.manifest import FILE_NAME, Manifest, read_manifest
from skillcell.registry.scripts import Script

_MANIFEST_BYTES = 2 << 20


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a package would become. `spec` is a best guess where there are errors."""

    spec: SkillSpec
    findings: tuple[Finding, ...]
    inferred: frozenset[str] = frozenset()
    """Of `pip` and `npm`: which dependencies the folder declares and no manifest does."""

    @property
    def valid(self) -> bool:
        """Whether it can be published."""
        return all(finding.severity is not Severity.ERROR for finding in self.findings)


def inspect(
    package: StagedPackage, overlay: bytes | None, *, lenient: bool, name: str = "", folder: str | None = None
) -> Inspection:
    """All findings at once. `name` is the name to publish under, where it was chosen apart from the frontmatter."""
    report = Report(lenient=lenient)
    root = package.root
    for entry in package.left_out[:20]:
        report.note("entry-left-out", "is not part of a Skill and was left out", shown(entry))
    skill_md = _skill_md(root, report)
    data = _read(root / skill_md, MAX_FILE_BYTES + 1) if skill_md else b""
    if not skill_md:
        report.error("skill-md-missing", "there is no SKILL.md at the root of the folder")
        front = read_frontmatter(b"---\nname: unnamed\ndescription: none\n---\n", "", Report(lenient=True))
    else:
        front = read_frontmatter(data, package.folder if folder is None else folder, report, skill_md, name)
    file = _read(root / FILE_NAME, _MANIFEST_BYTES) if (root / FILE_NAME).is_file() else None
    manifest = read_manifest(file, overlay, report)
    found = find_scripts(root, report)
    packages, inferred = _packages(root, manifest, found, report)
    offered = entrypoints(root, manifest, found, report)
    if name and name != front.name:
        message = f"is published as {name!r}, while its own name is {front.name!r}"
        report.deviation("name-differs", message, skill_md, 1)
    if not offered and manifest.entrypoints is None:
        report.note("nothing-to-run", "no script was found: the Skill is listed, and can't be called")
    image = _image(manifest, found, offered, packages, report)
    report_undeclared(root, found, packages, image, report)
    spec = SkillSpec(
        name=name or front.name,
        description=front.description,
        entrypoints=offered,
        default_entrypoint=default_entrypoint(manifest, offered, found, report),
        version=manifest.version if semver.valid(manifest.version) else "",
        license=front.license,
        compatibility=front.compatibility,
        metadata=front.metadata,
        image=image,
        packages=packages,
        limits=manifest.limits,
        network=manifest.network,
        env=manifest.env,
        secrets=manifest.secrets,
        pricing=manifest.pricing,
    )
    return Inspection(spec, report.findings, inferred)


def _skill_md(root: Path, report: Report) -> str:
    names = sorted(name for name in os.listdir(root) if name.lower() == "skill.md")
    if not names or not (root / names[0]).is_file():
        return ""
    if names[0] == "skill.md":
        report.warning("skill-md-case", "the file should be named SKILL.md", names[0])
    elif names[0] != "SKILL.md":
        report.deviation("skill-md-case", "the file must be named SKILL.md", names[0])
    return names[0]


def _read(path: Path, limit: int) -> bytes:
    with path.open("rb") as file:
        return file.read(limit)


def _packages(
    root: Path, manifest: Manifest, found: tuple[Script, ...], report: Report
) -> tuple[PackageRequest, frozenset[str]]:
    guessed = Report(lenient=True)
    inferred = inferred_packages(root, found, guessed)
    if manifest.pip is None or manifest.npm is None:
        for finding in guessed.findings:
            add = report.warning if finding.severity is Severity.WARNING else report.note
            add(finding.code, finding.message, finding.path, finding.line)
    chosen = manifest.packages()
    of_folder: set[str] = set()
    if manifest.pip is None:
        chosen = replace(chosen, pip=inferred.pip)
        of_folder.add("pip")
    elif isinstance(manifest.pip, str):
        if not (root / manifest.pip).is_file():
            report.error("manifest-path", f"there is no file {shown(manifest.pip)!r}", *manifest.places["runtime"])
        else:
            chosen = replace(chosen, pip=requirements_file(root, manifest.pip, report))
    if manifest.npm is None:
        chosen = replace(chosen, npm=inferred.npm, npm_lock=inferred.npm_lock)
        of_folder.add("npm")
    elif isinstance(manifest.npm, str):
        if not (root / manifest.npm).is_file():
            report.error("manifest-path", f"there is no file {shown(manifest.npm)!r}", *manifest.places["runtime"])
        else:
            npm, lock = package_json(root, manifest.npm, report)
            chosen = replace(chosen, npm=npm, npm_lock=lock)
    return chosen, frozenset(of_folder)


def _image(
    manifest: Manifest,
    found: tuple[Script, ...],
    offered: tuple[Entrypoint, ...],
    packages: PackageRequest,
    report: Report,
) -> str:
    if manifest.image:
        return manifest.image
    said = () if manifest.entrypoints is None else offered
    programs = {entrypoint.command[0] for entrypoint in said if entrypoint.command}
    programs |= {"node" for entrypoint in said if entrypoint.handler.partition(":")[0].endswith(("js",))}
    image, reason = choose_image(found, (*manifest.bins, *sorted(programs & {"node", "npx", "npm", "bash"})))
    if packages.npm and image != "node-20":
        image, reason = "node-20", "it has npm dependencies"
    if reason:
        report.note("image-inferred", f"runs on {image}: {reason}")
    return image
