"""From a build that failed to a fault a publisher can act on: the essential of pip's and npm's own words, made safe."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import timedelta

from skillcell.core.errors import Fault, precondition, unavailable
from skillcell.core.types import Limits, Outcome
from skillcell.registry.findings import shown
from skillcell.registry.package_builder import NO_TOOL
from skillcell.registry.packages_build import Built
from skillcell.registry.packages_index import Index
from skillcell.sandbox.verdict import Rules, Verdict, judge

_QUOTED_CHARACTERS = 1500
_MOST_LINES = 12
_RETRY = timedelta(seconds=30)
_USERINFO = re.compile(r"(?<=://)[^/\s@'\"]+@")
_PREFIX = re.compile(r"^(ERROR: |npm (error|ERR!) )")
_NOISE = re.compile(
    r"^(A complete log of this run|Log files were not written|code |errno |\d+ (Note|tarball)|\d*$)", re.ASCII
)
_UNTRUSTED = re.compile(
    r"CERTIFICATE_VERIFY_FAILED|confirming the ssl certificate|SELF_SIGNED_CERT|UNABLE_TO_(GET|VERIFY)"
)
_UNREACHED = re.compile(
    r"Max retries exceeded|ReadTimeoutError|Read timed out|HTTP error 5\d\d|50[0-4] Server Error|too many 50[0-4] error"
    r"|Connection (broken|aborted|reset)|IncompleteRead|Exit handler never called"
    r"|\bE5\d\d\b|ETIMEDOUT|ECONNRESET|ECONNREFUSED|EAI_AGAIN|ERR_SOCKET_TIMEOUT|network timeout"
)
_FULL = re.compile(r"No space left on device|ENOSPC|Disk quota exceeded")
_NAMED = re.compile(
    r"(?:satisfies the requirement|distribution found for|matching version found for|Cannot install) ([^\s;,(]+)"
    r"|'([^'\s]+)' is not in this registry"
)
_NO_WHEEL = re.compile(r"No matching distribution found|from versions: none")


def explain(kind: str, built: Built, limits: Limits, index: Index, image: str) -> Fault:
    """The fault of a build that did not succeed."""
    verdict = judge(built.run, Rules(limits))
    said = built.said or {}
    text = said.get("said", "") if isinstance(said.get("said"), str) else ""
    notes = _notes(said.get("notes"))
    if built.exhausted:
        return _unresolved(kind, f"more than {limits.egress_bytes} bytes were moved, the limit of one build")
    if (passed := _limit_passed(verdict, text, limits)) is not None:
        return _unresolved(kind, f"the build was ended: {passed}")
    if built.said is None or verdict.outcome in (Outcome.PLATFORM_ERROR, Outcome.NEVER_RAN, Outcome.CANCELED):
        return unavailable(
            "DEPENDENCY_BUILD_LOST", f"the {kind} packages could not be built now: the sandbox was lost", _RETRY
        )
    if said.get("code") == NO_TOOL and kind == "npm":
        return precondition(
            "DEPENDENCY_UNRESOLVED",
            f"image {image!r} has no node, which npm packages need; set runtime.image to node-20",
            kind=kind,
            image=image,
        )
    quoted = _essence(text, index.secrets) or f"{kind} failed and gave no reason"
    if built.refused:
        hosts = ", ".join(shown(host) for host in built.refused[:5])
        return _unresolved(
            kind, f"{hosts} is not a host of the package index {index.public}, so it was not asked: {quoted}"
        )
    if built.unreachable:
        host, why = next(iter(built.unreachable.items()))
        return unavailable("PACKAGE_INDEX_UNAVAILABLE", f"the package index at {host} {why}", _RETRY)
    everything = "\n".join([text, *notes])
    if _UNTRUSTED.search(everything):
        why = "has a certificate that this gateway does not trust; set SSL_CERT_FILE to its authority"
        return unavailable("PACKAGE_INDEX_UNAVAILABLE", f"the package index {index.public} {why}")
    if _UNREACHED.search(everything):
        why = _essence("\n".join(notes[:1]), index.secrets) or quoted
        return unavailable("PACKAGE_INDEX_UNAVAILABLE", f"the package index {index.public} failed: {why}", _RETRY)
    if notes:  # as the index's refusal of our credentials
        quoted += f"; {_essence(notes[0], index.secrets)}"
    if kind == "pip" and _NO_WHEEL.search(text):
        quoted += " (only wheels are taken, since source packages run code to install)"
    return _unresolved(kind, quoted, text=text, words=quoted)


def _limit_passed(verdict: Verdict, text: str, limits: Limits) -> str | None:
    if verdict.outcome in (Outcome.FAILED, Outcome.SUCCEEDED, Outcome.SIGNALED) and _FULL.search(text):
        return f"the packages do not fit its disk of {limits.disk_bytes} bytes and {limits.disk_files} files"
    if verdict.outcome in (
        Outcome.TIMED_OUT,
        Outcome.CPU_LIMIT_EXCEEDED,
        Outcome.OUT_OF_MEMORY,
        Outcome.OUTPUT_LIMIT_EXCEEDED,
        Outcome.DISK_LIMIT_EXCEEDED,
        Outcome.SIGNALED,
    ):
        return verdict.message
    return None


def _notes(said: object) -> list[str]:
    """What could not be fetched, but for what is just not there."""
    notes = [str(note) for note in said] if isinstance(said, list) else []
    return [note.partition("Could not fetch URL ")[2] for note in notes if "404 Client Error" not in note]


def _essence(text: str, secrets: Sequence[str]) -> str:
    """The lines that say what is wrong, without credentials, in one bounded text."""
    text = cleaned(text, secrets)
    lines = [line.strip() for line in text.splitlines()]
    marked = [line for line in lines if _PREFIX.match(line) and not _NOISE.match(_PREFIX.sub("", line))]
    chosen = marked or [line for line in lines if line and not _NOISE.match(line)][-3:]
    told = dict.fromkeys(_PREFIX.sub("", line) for line in chosen)
    return shown("; ".join(list(told)[:_MOST_LINES]), _QUOTED_CHARACTERS)


def cleaned(text: str, secrets: Sequence[str]) -> str:
    """Without the user part of any address, and without what is known to be secret."""
    text = _USERINFO.sub("", text)
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "****")
    return text


def _unresolved(kind: str, why: str, *, text: str = "", words: str = "") -> Fault:
    """With the requirement that the tool names first, and its words, for programs."""
    metadata = {"kind": kind}
    if found := _NAMED.search(text):
        metadata["requirement"] = shown((found[1] or found[2]).rstrip("."))
    if words:
        metadata["words"] = words
    return precondition("DEPENDENCY_UNRESOLVED", f"{kind} packages can't be resolved: {why}", **metadata)
