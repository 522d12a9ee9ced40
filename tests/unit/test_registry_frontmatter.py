"""SKILL.md as its authors write it: what strict refuses, what lenient understands, where each finding points."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skillcell.core.skills import Severity
from skillcell.core.yaml_reader import YamlProblem, read_yaml
from skillcell.registry.findings import Report
from skillcell.registry.frontmatter import Frontmatter, read_frontmatter, read_instructions


def read(text: str | bytes, folder: str = "demo", *, lenient: bool = False) -> tuple[Frontmatter, Report]:
    report = Report(lenient=lenient)
    data = text.encode() if isinstance(text, str) else text
    return read_frontmatter(data, folder, report), report


def codes(report: Report) -> set[str]:
    return {finding.code for finding in report.findings}


def test_a_valid_skill_has_no_findings_and_all_its_fields() -> None:
    front, report = read(
        "---\nname: demo\ndescription: Does it.\nlicense: MIT\ncompatibility: Needs git\n"
        'metadata:\n  author: me\n  version: "1.10"\nallowed-tools: Bash(git:*) Read\n---\n# Hi\n'
    )
    assert report.findings == ()
    assert front == Frontmatter(
        "demo", "Does it.", "MIT", "Needs git", {"author": "me", "version": "1.10"}, ("Bash(git:*)", "Read")
    )


@pytest.mark.parametrize(
    ("text", "code", "line"),
    [
        ("---\nname: Demo\ndescription: d\n---\n", "frontmatter-name-pattern", 2),
        ("---\nname: a--b\ndescription: d\n---\n", "frontmatter-name-pattern", 2),
        (f"---\nname: {'a' * 65}\ndescription: d\n---\n", "frontmatter-name-length", 2),
        ("---\nname: other\ndescription: d\n---\n", "frontmatter-name-folder", 2),
        ("---\ndescription: d\n---\n", "frontmatter-name-missing", 2),
        ("---\nname: demo\n---\n# T\n\nSome text.\n", "frontmatter-description-missing", 2),
        (f"---\nname: demo\ndescription: {'d' * 1025}\n---\n", "frontmatter-description-length", 3),
        (f"---\nname: demo\ndescription: d\ncompatibility: {'c' * 501}\n---\n", "frontmatter-compatibility-length", 4),
        ("---\nname: demo\ndescription: d\nversion: 1\n---\n", "frontmatter-unknown-field", 4),
        ("---\nname: demo\ndescription: Use when: x\n---\n", "frontmatter-yaml", 3),
        ("---\nname: demo\ndescription: `x`\n---\n", "frontmatter-yaml", 3),
        ("---\nname: demo\ndescription: d\nname: demo\n---\n", "frontmatter-duplicate-key", 4),
        ("---\nname: demo\ndescription: d\nallowed-tools: [A, B]\n---\n", "frontmatter-flow-style", 4),
        ("\ufeff---\nname: demo\ndescription: d\n---\n", "skill-md-bom", 1),
        ("---\nname: demo\ndescription: d\n", "frontmatter-unclosed", 1),
        ("# Title\n\nSome text.\n", "frontmatter-missing", 1),
        ("<!-- c -->\n---\nname: demo\ndescription: d\n---\n", "frontmatter-not-first", 1),
        ("---\nname: demo\nmetadata:\n\tauthor: me\ndescription: d\n---\n", "frontmatter-yaml", 4),
    ],
)
def test_strict_refuses_and_lenient_imports_with_the_same_finding(text: str, code: str, line: int) -> None:
    _, strict = read(text)
    assert strict.failed
    found = next(finding for finding in strict.findings if finding.code == code)
    assert (found.severity, found.line) == (Severity.ERROR, line)
    front, lenient = read(text, lenient=True)
    assert not lenient.failed
    assert code in codes(lenient)
    assert front.name
    assert front.description


def test_lenient_reads_broken_yaml_as_a_person_would() -> None:
    front, _ = read(
        "---\nname: demo\ndescription: Use when: the user says \"go\": now\n  and more\nlicense: 'MIT'\n"
        "metadata:\n  author: me\nallowed-tools:\n  - Read\n  - Write\n---\n",
        lenient=True,
    )
    assert front.description == 'Use when: the user says "go": now and more'
    assert (front.license, front.metadata, front.allowed_tools) == ("MIT", {"author": "me"}, ("Read", "Write"))


@pytest.mark.parametrize(
    ("name", "folder", "expected"),
    [
        ("My_Tool (v2)", "x", "my-tool-v2"),
        ("", "Some Folder", "some-folder"),
        ("数据", "", "skill-"),
        ("Café", "", "cafe"),
    ],
)
def test_lenient_finds_a_name(name: str, folder: str, expected: str) -> None:
    front, report = read(f"---\nname: {name}\ndescription: d\n---\n", folder, lenient=True)
    assert not report.failed
    assert front.name.startswith(expected)


def test_nothing_to_name_a_skill_by_is_an_error_even_when_lenient() -> None:
    _, report = read("no frontmatter", "", lenient=True)
    assert "frontmatter-name-unknown" in codes(report)
    assert report.failed


def test_nested_metadata_is_flattened_with_a_warning() -> None:
    front, report = read("---\nname: demo\ndescription: d\nmetadata:\n  tags:\n    - a\n    - b\n---\n")
    assert front.metadata == {"tags": "a, b"}
    assert codes(report) == {"frontmatter-metadata-nested"}
    assert not report.failed


def test_crlf_is_no_finding() -> None:
    front, report = read("---\r\nname: demo\r\ndescription: d\r\n---\r\nbody\r\n")
    assert (front.name, report.findings) == ("demo", ())


def test_instructions_are_the_markdown_alone() -> None:
    assert read_instructions(b"---\nname: x\n---\n\n# Hi\n---\nmore\n") == "# Hi\n---\nmore"


@pytest.mark.parametrize(
    "text",
    [
        "a: &x [1]\nb: [*x, *x]",
        "a: !!python/object/apply:os.system [id]",
        "[" * 1000,
        "- " * 500,
        "a: 1\n---\nb: 2",
        "? [a]\n: b",
        "a: \x01",
        'a: "\\ud800"',
        "a: b: c",
        "\t",
        "{" * 64_000,
    ],
)
def test_yaml_bombs_and_oddities_are_a_problem_not_a_crash(text: str) -> None:
    with pytest.raises(YamlProblem):
        read_yaml(text)


def test_yaml_scalars_are_what_was_written() -> None:
    value = read_yaml("a: no\nb: 12:30\nc: 1.5\nd: 0o17\ne: ~\nf: 'true'\ng: 2024-01-01\nh: true\n1: x\ni: 1e999").value
    assert value == {
        "a": "no", "b": "12:30", "c": 1.5, "d": 15, "e": None, "f": "true", "g": "2024-01-01", "h": True, "1": "x",
        "i": "1e999",
    }  # fmt: skip


@settings(max_examples=300, deadline=1000)
@given(st.one_of(st.binary(max_size=400), st.text("-: \n\tab[]{}|>'\"&*!#%@`,?\r\0é", max_size=200).map(str.encode)))
def test_no_bytes_make_the_reader_raise(data: bytes) -> None:
    for text in (data, b"---\n" + data + b"\n---\n", b"---\nname: x\n" + data):
        for lenient in (True, False):
            front, _ = read(text, "folder", lenient=lenient)
            assert front.name
