"""How a Skill version is named: `publisher/name`, then perhaps `@1.2.0`, `@stable` or `@sha256:…`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from skillcell.core.errors import Fault, invalid
from skillcell.registry import semver
from skillcell.registry.findings import shown

LATEST = "latest"
"""The highest published release; no one may set an alias of that name."""
MIN_DIGEST_DIGITS = 12
_NAME = r"[a-z0-9]+(?:-[a-z0-9]+)*"
_SKILL = re.compile(f"({_NAME})/({_NAME})")
_DIGEST = re.compile(r"sha256:[0-9a-f]{1,64}")
_ALIAS = re.compile(r"[a-z][a-z0-9-]{0,62}")
_EXAMPLE = "publisher/name, publisher/name@1.2.0, publisher/name@stable or publisher/name@sha256:…"


@dataclass(frozen=True, slots=True)
class SkillReference:
    """A checked reference. `selector` is empty, a version, an alias, or `sha256:` and at least 12 hex digits."""

    publisher: str
    name: str
    selector: str = ""

    @property
    def skill(self) -> str:
        return f"{self.publisher}/{self.name}"

    @property
    def is_digest(self) -> bool:
        return self.selector.startswith("sha256:")

    @property
    def is_version(self) -> bool:
        return semver.valid(self.selector)

    def __str__(self) -> str:
        return f"{self.skill}@{self.selector}" if self.selector else self.skill


def parse_reference(text: str, field: str = "skill") -> SkillReference:
    """Raises Fault INVALID_ARGUMENT that names `field`."""
    skill, at, selector = text.partition("@")
    match = _SKILL.fullmatch(skill)
    if match is None or len(match[1]) > 64 or len(match[2]) > 64 or (at and not selector):
        raise _malformed(field, text)
    if selector.startswith("sha256:"):
        if not _DIGEST.fullmatch(selector) or len(selector) < 7 + MIN_DIGEST_DIGITS:
            raise invalid(field, f"{shown(text)!r}: a digest needs {MIN_DIGEST_DIGITS} to 64 hex digits")
    elif selector and not semver.valid(selector) and not _ALIAS.fullmatch(selector):
        raise _malformed(field, text)
    return SkillReference(match[1], match[2], selector)


def parse_skill(text: str, field: str = "skill") -> SkillReference:
    """A reference to a Skill as a whole. Raises Fault INVALID_ARGUMENT when it has a version."""
    reference = parse_reference(text, field)
    if reference.selector:
        raise invalid(field, f"{shown(text)!r} must name a Skill without a version")
    return reference


def check_alias(alias: str, field: str = "alias") -> None:
    """Raises Fault INVALID_ARGUMENT."""
    if not _ALIAS.fullmatch(alias):
        raise invalid(field, f"{shown(alias)!r} must be 1 to 63 of a-z, 0-9 and hyphen, beginning with a letter")
    if alias == LATEST:
        raise invalid(field, f"{LATEST!r} always follows the highest release and can't be set")


def _malformed(field: str, text: str) -> Fault:
    return invalid(field, f"{shown(text)!r} is not a Skill reference such as {_EXAMPLE}")
