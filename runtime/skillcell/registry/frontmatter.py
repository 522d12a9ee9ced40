"""SKILL.md's YAML frontmatter as fields, with a finding for whatever is not as the specification has it.

The rules are those of agentskills.io and its reference validator. All scalars are text (`version: 1.10` is "1.10").
What the rules forbid but a person understands is a deviation (see `findings.Report`): when YAML itself can't make sense
of the block, as with `description: Use when: …`, it is read line by line as a person would.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from skillcell.core.yaml_reader import Document, YamlProblem, read_yaml
from skillcell.registry.findings import Report, shown

MAX_FILE_BYTES = 4 << 20
MAX_BLOCK_BYTES = 64 << 10
NAME_LENGTH = 64
DESCRIPTION_LENGTH = 1024
COMPATIBILITY_LENGTH = 500
_KEPT_DESCRIPTION = 8192
_KEPT_VALUE = 2048
_KEPT_METADATA = 64
NAME_PATTERN = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
KNOWN_FIELDS = ("name", "description", "license", "compatibility", "metadata", "allowed-tools")

_FENCE = re.compile(r"---[ \t]*")
_TOP_KEY = re.compile(r"([A-Za-z_][\w.-]*)[ \t]*:(?:[ \t]+(.*)|)")


@dataclass(frozen=True, slots=True)
class Frontmatter:
    """What SKILL.md says of its Skill. `name` is always valid; `description` may be empty only beside an error."""

    name: str
    description: str
    license: str = ""
    compatibility: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    allowed_tools: tuple[str, ...] = ()


def read_frontmatter(data: bytes, folder: str, report: Report, path: str = "SKILL.md", chosen: str = "") -> Frontmatter:
    """Never raises: what is wrong goes to `report`. `folder` is the Skill's folder name, empty when it is not known;
    `chosen` the name it is published under, which will do where neither file nor folder gives one.
    """
    text = _decode(data, report, path)
    first_line, block, body = _split(text, report, path)
    document = _parse(block, first_line, report, path)
    fields = document.value if isinstance(document.value, dict) else {}

    def at(*keys: str) -> tuple[int, int]:
        line, column = document.position(keys)
        return line + first_line - 1, column

    for duplicate in document.duplicates:
        where = (duplicate.line + first_line - 1, duplicate.column)
        report.deviation("frontmatter-duplicate-key", f"{shown(duplicate.key)!r} is given twice", path, *where)
    for line, column in document.flow[:1]:
        where = (line + first_line - 1, column)
        report.deviation("frontmatter-flow-style", "the specification's YAML has no [a, b] or {a: b}", path, *where)
    unknown = [key for key in fields if key not in KNOWN_FIELDS]
    if unknown:
        message = f"unknown fields: {', '.join(shown(key, 60) for key in unknown)}; known are {', '.join(KNOWN_FIELDS)}"
        report.deviation("frontmatter-unknown-field", message, path, *at(unknown[0]))
    name = _name(fields.get("name"), (folder, chosen), report, path, at("name"))
    description = _description(fields.get("description"), body, report, path, at("description"))
    compatibility = _text(fields, "compatibility", report, path, at("compatibility"))
    if len(compatibility) > COMPATIBILITY_LENGTH:
        message = f"compatibility has {len(compatibility)} characters; the limit is {COMPATIBILITY_LENGTH}"
        report.deviation("frontmatter-compatibility-length", message, path, *at("compatibility"))
    return Frontmatter(
        name=name,
        description=description,
        license=_text(fields, "license", report, path, at("license")),
        compatibility=compatibility[:_KEPT_VALUE],
        metadata=_metadata(fields.get("metadata"), report, path, at("metadata")),
        allowed_tools=_tools(fields.get("allowed-tools"), report, path, at("allowed-tools")),
    )


def read_instructions(data: bytes) -> str:
    """SKILL.md's Markdown, without its frontmatter."""
    report = Report(lenient=True)
    return _split(_decode(data, report, ""), report, "")[2].strip()


def slug(text: str) -> str:
    """The nearest valid name: `My_Tool (v2)` → `my-tool-v2`; empty when no ASCII letter or digit is left."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii").lower()
    return re.sub(r"[^a-z0-9]+", "-", plain)[: NAME_LENGTH + 64].strip("-")[:NAME_LENGTH].strip("-")


def _decode(data: bytes, report: Report, path: str) -> str:
    if len(data) > MAX_FILE_BYTES:
        report.error("skill-md-too-large", f"{len(data)} bytes; the limit is {MAX_FILE_BYTES}", path)
        data = b""
    if data.startswith(b"\xef\xbb\xbf"):
        report.deviation("skill-md-bom", "starts with a byte order mark", path, 1, 1)
        data = data[3:]
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as problem:
        line = data.count(b"\n", 0, problem.start) + 1
        report.deviation("skill-md-encoding", f"not UTF-8: byte 0x{data[problem.start]:02x}", path, line)
        text = data.decode("utf-8", "replace")
    text = text.replace("\0", "\ufffd")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _split(text: str, report: Report, path: str) -> tuple[int, str, str]:
    """Line number of the block's first line, the block, the Markdown behind it."""
    lines = text.split("\n")
    start = next((i for i, line in enumerate(lines[:50]) if line.strip()), 0)
    if not _FENCE.fullmatch(lines[start]):
        start = next((i for i, line in enumerate(lines[:50]) if _FENCE.fullmatch(line)), -1)
        ahead = "\n".join(lines[: max(start, 0)]).strip()
        if start < 0 or not (ahead.startswith("<!--") and ahead.endswith("-->")):
            report.deviation("frontmatter-missing", "there is no YAML frontmatter between --- lines", path, 1)
            return 1, "", text
    if start > 0:
        report.deviation("frontmatter-not-first", "something stands before the first ---", path, 1)
    end = next((i for i in range(start + 1, len(lines)) if _FENCE.fullmatch(lines[i])), -1)
    if end < 0:
        report.deviation("frontmatter-unclosed", "frontmatter has no closing ---", path, start + 1)
        end = start + 1
        while end < len(lines) and _may_be_field(lines[end]):
            end += 1
        body = lines[end:]
    else:
        body = lines[end + 1 :]
    block = "\n".join(lines[start + 1 : end])
    if len(block.encode()) > MAX_BLOCK_BYTES:
        report.error("frontmatter-too-large", f"frontmatter is larger than {MAX_BLOCK_BYTES} bytes", path, start + 1)
        block = ""
    return start + 2, block, "\n".join(body)


def _may_be_field(line: str) -> bool:
    return not line.strip() or line[0] in " \t-" or _TOP_KEY.fullmatch(line) is not None


def _parse(block: str, first_line: int, report: Report, path: str) -> Document:
    try:
        document = read_yaml(block, text_only=True)
    except YamlProblem as problem:
        line = problem.line + first_line - 1 if problem.line else first_line
        report.deviation("frontmatter-yaml", f"not valid YAML: {problem}", path, line, problem.column)
        return _by_lines(block)
    if document.value is not None and document.value != "" and not isinstance(document.value, dict):
        report.deviation("frontmatter-not-a-mapping", "frontmatter must be `key: value` lines", path, first_line)
        return _by_lines(block)
    return document


def _by_lines(block: str) -> Document:
    """What a person sees in a block that is not YAML: top-level keys, and for each the text up to the next key."""
    document = Document(value={})
    key, parts, indented = "", list[str](), False
    fields: dict[str, Any] = document.value

    def close() -> None:
        if key and key not in fields:
            fields[key] = _as_written(parts)

    for number, line in enumerate(block.split("\n"), 1):
        match = _TOP_KEY.fullmatch(line)
        if match and not (indented and line[:1] in " \t"):
            close()
            key, parts = match[1], [match[2] or ""]
            document.positions.setdefault((key,), (number, 1))
        elif key and not line.startswith("#"):
            parts.append(line)
        indented = True
    close()
    return document


def _as_written(parts: list[str]) -> Any:
    first = parts[0].strip()
    rest = [line.strip() for line in parts[1:] if line.strip()]
    if re.fullmatch(r"[|>][-+0-9]*", first):
        return ("\n" if first[0] == "|" else " ").join(rest)
    if not first and rest and all(line.startswith("- ") for line in rest):
        return [_unquoted(line[2:].strip()) for line in rest]
    if not first and rest and (pairs := [_TOP_KEY.fullmatch(line) for line in rest]) and all(pairs):
        return {pair[1]: _unquoted((pair[2] or "").strip()) for pair in pairs if pair}
    return _unquoted(" ".join([first, *rest]).strip())


def _unquoted(text: str) -> str:
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    return text


def _name(value: object, around: tuple[str, str], report: Report, path: str, at: tuple[int, int]) -> str:
    folder, chosen = around
    given = unicodedata.normalize("NFKC", value.strip()) if isinstance(value, str) else ""
    if not given:
        report.deviation("frontmatter-name-missing", "field `name` must be a text that is not empty", path, *at)
        return _fallback_name(folder or chosen, folder or chosen, report, path)
    if len(given) > NAME_LENGTH:
        message = f"name has {len(given)} characters; the limit is {NAME_LENGTH}"
        report.deviation("frontmatter-name-length", message, path, *at)
    elif not NAME_PATTERN.fullmatch(given):
        message = f"name {shown(given)!r} must be words of a-z and 0-9 joined by single hyphens"
        report.deviation("frontmatter-name-pattern", message, path, *at)
    if folder and unicodedata.normalize("NFKC", folder) != given:
        message = f"name {shown(given)!r} must equal the folder's name {shown(folder)!r}"
        report.deviation("frontmatter-name-folder", message, path, *at)
    return slug(given) or _fallback_name(folder or chosen, given, report, path)


def _fallback_name(folder: str, original: str, report: Report, path: str) -> str:
    name = slug(folder)
    if not name and original:
        name = "skill-" + hashlib.sha256(original.encode("utf-8", "replace")).hexdigest()[:8]
    if not name:
        message = "neither frontmatter nor folder gives a name; publish it under one"
        report.error("frontmatter-name-unknown", message, path, 1)
        return "unnamed"
    report.warning("frontmatter-name-derived", f"the Skill is named {name!r}", path, 1)
    return name


def _description(value: object, body: str, report: Report, path: str, at: tuple[int, int]) -> str:
    text = _flat(value).strip()
    if not text or not isinstance(value, str):
        report.deviation("frontmatter-description-missing", "field `description` must be a text", path, *at)
    if not text:
        text = _first_paragraph(body)
    if not text:
        report.error("frontmatter-description-unknown", "neither a description nor a text to take one from", path, 1)
    if len(text) > DESCRIPTION_LENGTH:
        message = f"description has {len(text)} characters; the limit is {DESCRIPTION_LENGTH}"
        report.deviation("frontmatter-description-length", message, path, *at)
    return text[:_KEPT_DESCRIPTION]


def _first_paragraph(body: str) -> str:
    paragraphs = (part.strip() for part in re.split(r"\n\s*\n", body[:65536]))
    texts = [" ".join(part.split()) for part in paragraphs if part and not part.startswith(("#", "```", "<", "---"))]
    headings = [part.strip("# \n") for part in body[:65536].split("\n") if part.startswith("# ")]
    return next(iter([*texts, *headings]), "")[:DESCRIPTION_LENGTH]


def _text(fields: Mapping[str, Any], key: str, report: Report, path: str, at: tuple[int, int]) -> str:
    value = fields.get(key)
    if value is not None and not isinstance(value, str):
        report.deviation(f"frontmatter-{key}-type", f"field `{key}` must be a text", path, *at)
    return _flat(value).strip()[:_KEPT_VALUE]


def _metadata(value: object, report: Report, path: str, at: tuple[int, int]) -> dict[str, str]:
    if value is None or value == "":
        return {}
    if not isinstance(value, dict):
        report.warning("frontmatter-metadata-type", "field `metadata` should map texts to texts", path, *at)
        return {"metadata": _flat(value)[:_KEPT_VALUE]}
    nested = [key for key, item in value.items() if not isinstance(item, str)]
    if nested:
        # The specification says texts only, but the reference validator takes these, so they can't be refused.
        message = f"metadata values should be texts; these are not: {', '.join(shown(key, 60) for key in nested)}"
        report.warning("frontmatter-metadata-nested", message, path, *at)
    if len(value) > _KEPT_METADATA:
        report.warning("frontmatter-metadata-many", f"only the first {_KEPT_METADATA} entries are kept", path, *at)
    return {key[:200]: _flat(item)[:_KEPT_VALUE] for key, item in list(value.items())[:_KEPT_METADATA]}


def _tools(value: object, report: Report, path: str, at: tuple[int, int]) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, str):
        report.warning("frontmatter-tools-type", "`allowed-tools` should be one text, tools apart by spaces", path, *at)
    items = value if isinstance(value, list) else re.split(r"[,\s]+(?![^(]*\))", _flat(value)[:_KEPT_VALUE])
    return tuple(shown(_flat(item)) for item in items if item)[:256]


def _flat(value: object) -> str:
    """A value as one line of text, nested ones as `a, b` and `key: value`."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return ", ".join(_flat(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_flat(item)}" for key, item in value.items())
    return ""
