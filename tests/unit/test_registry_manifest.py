"""skill-runtime.yaml: every key, every refusal with its place, and what a folder says without one."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from skillcell.core.errors import Fault, FaultKind
from skillcell.core.skills import (
    ArgumentBinding,
    Interpreter,
    PriceComponent,
    SecretRequest,
    Severity,
    SkillSpec,
    StdoutMode,
)
from skillcell.core.types import WorkingDir
from skillcell.registry import semver
from skillcell.registry.archive import StagedPackage
from skillcell.registry.discovery import find_entrypoint
from skillcell.registry.findings import Report
from skillcell.registry.inspection import Inspection, inspect
from skillcell.registry.manifest import Manifest, manifest_schema, read_manifest
from skillcell.registry.quantities import milli_cpus, quantity, size_bytes

HEADER = "apiVersion: skillcell/v1\nkind: SkillRuntime\n"
FULL = (
    HEADER
    + """
version: "1.2.0"
runtime:
  image: node-20
  packages: {pip: ["requests==2.32.0", "pyyaml"], npm: ["left-pad@1"]}
  bins: [git]
entrypoints:
  - name: convert
    description: Converts.
    command: [python3, scripts/convert.py, --fast]
    workingDir: skill
    stdin: body
    stdout: json
    outputs: {report: {glob: "out/*.md"}}
    successCodes: [0, 2]
    annotations: {readOnlyHint: true}
    inputSchema:
      type: object
      properties:
        body: {type: string}
        level: {type: integer, x-binding: {prefix: --level, position: 2}}
    outputSchema: {type: object}
  - name: tool
    handler: scripts/tool.py:handle
  - name: scripts/convert.py
defaultEntrypoint: convert
stdout: ndjson
resources: {limits: {cpu: 1500m, memory: 256Mi, ephemeral-storage: 64Mi}}
pids: 32
timeoutSeconds: 1.5
network: {type: allowlist, allowed_domains: ["API.example.com:8443", example.org]}
env: [{name: MODE, value: fast}]
secrets:
  - {name: token, env: TOKEN}
  - {name: key, header: Authorization, domains: [example.org]}
pricing: {components: [{meter: calls, unit: "1", unitAmountDecimal: "0.0001"}]}
"""
)


def skill(root: Path, files: dict[str, str]) -> StagedPackage:
    files = {"SKILL.md": "---\nname: demo\ndescription: d\n---\n", **files}
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return StagedPackage(root, root, "demo", 1, len(files), ())


def look(root: Path, files: dict[str, str], *, overlay: str = "", lenient: bool = False) -> Inspection:
    return inspect(skill(root, files), overlay.encode() if overlay else None, lenient=lenient)


def read(text: str, overlay: str | None = None) -> tuple[Manifest, Report]:
    report = Report(lenient=False)
    return read_manifest(text.encode(), overlay.encode() if overlay else None, report), report


def errors(inspection: Inspection) -> list[str]:
    return [f"{f.path}:{f.line}: {f.message}" for f in inspection.findings if f.severity is Severity.ERROR]


def test_the_published_schema_is_valid_2020_12() -> None:
    jsonschema_rs.meta.validate(manifest_schema())


def test_every_key_reaches_the_spec(tmp_path: Path) -> None:
    files = {"skill-runtime.yaml": FULL, "scripts/convert.py": "print(1)\n", "scripts/tool.py": "def handle(i): ...\n"}
    inspection = look(tmp_path, files)
    assert errors(inspection) == []
    spec = inspection.spec
    assert (spec.version, spec.image, spec.default_entrypoint) == ("1.2.0", "node-20", "convert")
    assert spec.packages.pip == ("requests==2.32.0", "pyyaml")
    assert (spec.packages.npm, spec.packages.bins) == (("left-pad@1",), ("git",))
    convert, tool, script = spec.entrypoints
    assert convert.command == ("python3", "scripts/convert.py", "--fast")
    assert (convert.script, convert.interpreter) == ("scripts/convert.py", Interpreter.PYTHON)
    assert (convert.working_dir, convert.stdin, convert.stdout) == (WorkingDir.SKILL, "body", StdoutMode.JSON)
    assert (convert.outputs, convert.success_codes) == ({"report": "out/*.md"}, (0, 2))
    assert convert.bindings == (ArgumentBinding("level", "--level", 2),)
    assert convert.annotations == {"readOnlyHint": True}
    assert (tool.handler, tool.script) == ("scripts/tool.py:handle", "scripts/tool.py")
    assert tool.interpreter is Interpreter.PYTHON
    assert tool.stdout is StdoutMode.NDJSON
    assert script.command == ("python3", "scripts/convert.py")
    limits = spec.limits
    assert (limits.milli_cpus, limits.memory_bytes, limits.disk_bytes) == (1500, 256 << 20, 64 << 20)
    assert (limits.pids, limits.wall_ns) == (32, 1_500_000_000)
    assert spec.network.allowed_domains == ("api.example.com:8443", "example.org:443")
    assert spec.env == {"MODE": "fast"}
    assert spec.secrets == (
        SecretRequest("token", env="TOKEN"),
        SecretRequest("key", header="Authorization", domains=("example.org:443",)),
    )
    assert spec.pricing == (PriceComponent("calls", "1", "0.0001"),)


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ("kind: SkillRuntime\n", 1, "apiVersion"),
        ("apiVersion: skillcell/v2\nkind: SkillRuntime\n", 1, "apiVersion"),
        (HEADER + "memory: 1Gi\n", 3, "unknown key 'memory'"),
        (HEADER + "resources:\n  limits:\n    memroy: 1Gi\n", 5, "resources.limits: unknown key 'memroy'"),
        (HEADER + "resources:\n  limits:\n    memory: lots\n", 5, "resources.limits.memory: 'lots'"),
        (HEADER + "resources: {limits: {cpu: 0}}\n", 3, "more than zero"),
        (HEADER + "resources: {limits: {memory: -1Gi}}\n", 3, "is not a quantity"),
        (HEADER + "version: 1.2\n", 3, "version"),
        (HEADER + "version: v1.2.0\n", 3, "SemVer"),
        (HEADER + "runtime:\n  image: python-2.7\n", 4, "python-3.11, shell, node-20"),
        (HEADER + "runtime: {image: 'debian:12'}\n", 3, "runtime.image"),
        (HEADER + "runtime: {packages: {pip: ['not a requirement!']}}\n", 3, "PEP 508"),
        (HEADER + "runtime: {packages: {pip: ../requirements.txt}}\n", 3, "inside the folder"),
        (HEADER + "pids: 0\n", 3, "pids"),
        (HEADER + "pids: 4\nresources: {limits: {pids: 5}}\n", 3, "resources.limits.pids"),
        (HEADER + "timeoutSeconds: forever\n", 3, "timeoutSeconds"),
        (HEADER + "network: {type: host}\n", 3, "network"),
        (HEADER + "network: {type: allowlist, allowed_domains: ['*.example.com']}\n", 3, "network"),
        (HEADER + "network: {type: allowlist, allowed_domains: ['example.com:70000']}\n", 3, "65535"),
        (HEADER + "secrets: [{name: a, env: A, file: b}]\n", 3, "exactly one"),
        (HEADER + "secrets: [{name: a, header: X}]\n", 3, "exactly one"),
        (HEADER + "env: [{name: SKILLCELL_X, value: a}]\n", 3, "SKILLCELL_"),
        (HEADER + "env: [{name: A, value: a}, {name: A, value: b}]\n", 3, "twice"),
        (HEADER + "entrypoints:\n  - name: a\n    command: [x]\n    handler: a.py:f\n", 4, "both"),
        (HEADER + "entrypoints:\n  - name: a\n  - name: a\n", 5, "twice"),
        (HEADER + "entrypoints:\n  - name: a\n    inputSchema: {type: strnig}\n", 5, "strnig"),
        (HEADER + "entrypoints: [{name: a, handler: '../x.py:f'}]\n", 3, "inside the folder"),
        (HEADER + "outputs: {a: {glob: '../*'}}\n", 3, "without .."),
        (HEADER + "pricing: {components: [{meter: a, unit: b, unitAmountDecimal: 0.1}]}\n", 3, "unitAmountDecimal"),
        (HEADER + "pids: 1\npids: 2\n", 4, "twice"),
        (HEADER + "pids: [\n", 4, "YAML"),
        ("- a\n", 1, "mapping"),
    ],
)
def test_a_mistake_is_an_error_at_its_line(text: str, line: int, why: str) -> None:
    _, report = read(text)
    found = [finding for finding in report.findings if finding.severity is Severity.ERROR]
    assert found
    assert any(why in finding.message and finding.line == line for finding in found), found
    assert {finding.path for finding in found} == {"skill-runtime.yaml"}


def test_a_mistake_stays_an_error_when_lenient() -> None:
    report = Report(lenient=True)
    read_manifest((HEADER + "resources: {limits: {memory: lots}}").encode(), None, report)
    assert report.failed


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (HEADER + "entrypoints: [{name: a, handler: 'missing.py:f'}]", "no file 'missing.py'"),
        (HEADER + "entrypoints: [{name: a, command: [bin/missing]}]", "'bin/missing' is no script"),
        (HEADER + "entrypoints: [{name: missing}]", "no script"),
        (HEADER + "defaultEntrypoint: b", "no entrypoint is named 'b'"),
        (HEADER + "runtime: {packages: {pip: missing.txt}}", "no file 'missing.txt'"),
    ],
)
def test_what_the_folder_does_not_have_is_an_error(tmp_path: Path, text: str, why: str) -> None:
    assert any(why in error for error in errors(look(tmp_path, {"skill-runtime.yaml": text})))


def test_a_command_may_name_a_script_that_lost_its_exec_bit_or_a_program(tmp_path: Path) -> None:
    files = {
        "run.sh": "echo",
        "tool": "\x7fELF",
        "skill-runtime.yaml": HEADER
        + "entrypoints: [{name: a, command: [./run.sh, -x]}, {name: b, command: [./tool]}]",
    }
    assert any("'./tool' is no script" in error for error in errors(look(tmp_path, files)))
    (tmp_path / "tool").chmod(0o755)
    inspection = look(tmp_path, files)
    assert errors(inspection) == []
    assert [(e.command, e.script) for e in inspection.spec.entrypoints] == [
        (("bash", "run.sh", "-x"), "run.sh"),
        (("tool",), "tool"),
    ]


def test_overlay_wins_over_file_and_file_over_inference_key_by_key(tmp_path: Path) -> None:
    file = HEADER + "timeoutSeconds: 5\nruntime: {image: shell, bins: [jq]}\n"
    overlay = HEADER + "runtime: {image: node-20}\n"
    spec = look(tmp_path, {"skill-runtime.yaml": file, "a.py": "print(1)"}, overlay=overlay).spec
    assert (spec.image, spec.packages.bins, spec.limits.wall_ns) == ("node-20", (), 5_000_000_000)
    assert [entrypoint.name for entrypoint in spec.entrypoints] == ["a.py"]


def test_a_mistake_in_the_overlay_is_found_in_the_overlay(tmp_path: Path) -> None:
    inspection = look(tmp_path, {}, overlay=HEADER + "what: 1")
    assert [(f.path, f.line) for f in inspection.findings if f.severity is Severity.ERROR] == [("overlay", 3)]


def test_scripts_are_found_wherever_they_lie(tmp_path: Path) -> None:
    files = {
        "scripts/extract.py": "#!/usr/bin/env python3\nprint(1)",
        "tools/deep/run.sh": "echo",
        "bin/go": "#!/bin/bash -e\necho",
        "bin/uv": "#!/usr/bin/env -S uv run --script\nprint()",
        "opt.py": "#!/usr/bin/python3 -O\nprint()",
        "web/main.mjs": "console.log(1)",
        "notes": "no shebang",
        "scripts/__init__.py": "",
        "node_modules/x/index.js": "",
        ".hidden/x.py": "",
        "types.d.ts": "",
        "app.ts": "",
        "r.rb": "#!/usr/bin/ruby\n",
    }
    inspection = look(tmp_path, files)
    found = {e.name: (e.command, e.interpreter) for e in inspection.spec.entrypoints}
    assert found == {
        "scripts/extract.py": (("python3", "scripts/extract.py"), Interpreter.PYTHON),
        "tools/deep/run.sh": (("bash", "tools/deep/run.sh"), Interpreter.SHELL),
        "bin/go": (("bash", "-e", "bin/go"), Interpreter.SHELL),
        "bin/uv": (("python3", "bin/uv"), Interpreter.PYTHON),
        "opt.py": (("python3", "-O", "opt.py"), Interpreter.EXECUTABLE),
        "web/main.mjs": (("node", "web/main.mjs"), Interpreter.NODE),
    }
    notes = {f.path for f in inspection.findings if f.code == "script-not-callable"}
    assert notes == {"app.ts", "r.rb"}


@pytest.mark.parametrize(
    ("files", "image"),
    [
        ({"a.py": "print(1)"}, "python-3.11"),
        ({"a.py": "import subprocess\nsubprocess.run(['git', 'log'])"}, "shell"),
        ({"a.py": "import shutil\nif shutil.which('jq'): pass"}, "shell"),
        ({"a.py": "x = {'git': 1}"}, "python-3.11"),
        ({"a.py": 'import subprocess\nsubprocess.run(["npx", "x"])'}, "node-20"),
        ({"a.py": "", "b.sh": "echo"}, "shell"),
        ({"b.sh": "set -e\nif true; then node x.js; fi"}, "node-20"),
        ({"b.sh": "echo node is nice"}, "shell"),
        ({"a.js": ""}, "node-20"),
        ({"a.py": "", "skill-runtime.yaml": HEADER + "runtime: {bins: [curl]}"}, "shell"),
        ({}, "python-3.11"),
    ],
)
def test_the_image_is_the_smallest_that_has_what_is_named(tmp_path: Path, files: dict[str, str], image: str) -> None:
    inspection = look(tmp_path, files)
    assert inspection.spec.image == image
    assert (image != "python-3.11") == any(f.code == "image-inferred" for f in inspection.findings)


def test_the_only_script_meant_to_be_called_is_the_default(tmp_path: Path) -> None:
    files = {
        "scripts/main.py": "import lib\nif __name__ == '__main__':\n    lib.go()\n",
        "scripts/lib.py": "import os\nX = 1\ndef go():\n    print()\n",
        "tests/test_main.py": "print(1)",
        "examples/demo.sh": "echo",
    }
    spec = look(tmp_path, files).spec
    assert len(spec.entrypoints) == 4
    assert find_entrypoint(spec, "").name == "scripts/main.py"


def test_entrypoints_are_found_by_short_names_where_unique(tmp_path: Path) -> None:
    spec = look(tmp_path, {"scripts/extract.py": "print()", "a/run.sh": "", "b/run.sh": ""}).spec
    for name in ("scripts/extract.py", "scripts/extract", "extract.py", "extract"):
        assert find_entrypoint(spec, name).name == "scripts/extract.py"
    with pytest.raises(Fault) as several:
        find_entrypoint(spec, "run")
    assert (several.value.kind, several.value.reason) == (FaultKind.INVALID_ARGUMENT, "ENTRYPOINT_AMBIGUOUS")
    with pytest.raises(Fault, match=r"did you mean .*extract") as unknown:
        find_entrypoint(spec, "extrct.py")
    assert unknown.value.kind is FaultKind.NOT_FOUND
    with pytest.raises(Fault) as unnamed:
        find_entrypoint(spec, "")
    assert unnamed.value.reason == "ENTRYPOINT_AMBIGUOUS"


def test_a_skill_with_nothing_to_run_says_so() -> None:
    with pytest.raises(Fault) as caught:
        find_entrypoint(SkillSpec("demo", "d", ()), "x")
    assert (caught.value.kind, caught.value.reason) == (FaultKind.FAILED_PRECONDITION, "NOT_CALLABLE")


def test_dependencies_are_read_from_wherever_a_folder_declares_them(tmp_path: Path) -> None:
    block = "# /// script\n# requires-python = '>=3.12'\n# dependencies = ['rich', 'x @ https://e.org/x.whl']\n# ///\n"
    pinned = "numpy==1.26 \\\n  --hash=sha256:aa --hash=sha256:bb\n"
    files = {
        "scripts/a.py": "#!/usr/bin/env python3\n" + block + "print()",
        "requirements.txt": f"requests>=2  # net\n-r more.txt\n-e .\n{pinned}",
        "more.txt": "rich\n",
        "scripts/package.json": '{"dependencies": {"left-pad": "^1.0.0", "@a/b": "1 || 2", "local": "file:../x"}}',
        "scripts/package-lock.json": "{}",
    }
    inspection = look(tmp_path, files)
    packages = inspection.spec.packages
    assert packages.pip == ("rich", "requests>=2", "numpy==1.26 --hash=sha256:aa --hash=sha256:bb")
    assert packages.npm == ("left-pad@^1.0.0", "@a/b@1 || 2")
    assert packages.npm_lock == "scripts/package-lock.json"
    warned = {(f.code, f.path, f.line) for f in inspection.findings if f.severity is Severity.WARNING}
    assert warned == {
        ("pep723-python", "scripts/a.py", 2),
        ("pep723-unsupported", "scripts/a.py", 2),
        ("requirements-unsupported", "requirements.txt", 3),
        ("package-json-unsupported", "scripts/package.json", 0),
    }
    assert inspection.valid


def test_a_hostile_comment_block_is_read_in_one_pass(tmp_path: Path) -> None:
    look(tmp_path, {"a.py": "# /// a\n" * 60_000, "requirements.txt": "a" + " " * 400_000 + "b"})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("500m", "1/2"),
        ("1.5Gi", 3 << 29),
        ("1e3", 1000),
        ("1k", 1000),
        ("1Ki", 1024),
        (".5", "1/2"),
        ("2.", 2),
        ("1E", 10**18),
    ],
)
def test_quantities_are_exact(text: str, value: Any) -> None:
    assert quantity(text) == Fraction(value)


@pytest.mark.parametrize(
    "text", ["", "0", "0Mi", "-1", "1 Gi", "1gb", "1KiB", "inf", "nan", "1e999", "1m m", "٣", "1_0"]
)
def test_what_is_not_a_positive_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"quantity|zero|2\^63"):
        quantity(text)


def test_quantities_round_up() -> None:
    assert (milli_cpus("0.0001"), size_bytes("1m"), size_bytes("1500m")) == (1, 1, 2)
    with pytest.raises(ValueError, match=r"2\^63"):
        size_bytes("9Ei")


_NUMBER = r"(0|[1-9][0-9]?)"
_VERSION = rf"\A{_NUMBER}\.{_NUMBER}\.{_NUMBER}(-({_NUMBER}|[a-c][0-9-]?)(\.(0|1[0-9]?|[ab]))?)?\Z"


@given(st.lists(st.from_regex(_VERSION), min_size=2, max_size=6))
def test_sort_keys_order_versions_as_semver_does(versions: list[str]) -> None:
    def precedence(version: str) -> Any:
        core, _, pre = version.partition("-")
        parts = [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in pre.split(".")] if pre else []
        return [int(n) for n in core.split(".")], not pre, parts

    by_key = sorted(versions, key=semver.sort_key)
    assert [precedence(v) for v in by_key] == sorted(precedence(v) for v in versions)


_WORDS = [
    "name", "command", "handler", "inputSchema", "limits", "type", "cpu", "glob", "properties", "x-binding", "packages",
    "pip", "image", "env", "value", "allowed_domains", "components",
]  # fmt: skip
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_WORDS) | st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=10,
)
_DOCUMENTS = st.builds(
    lambda key, value: (HEADER + yaml.safe_dump({key: value})).encode(),
    st.sampled_from(sorted(manifest_schema()["properties"])),
    _VALUES,
)


@settings(max_examples=200, deadline=2000)
@given(st.binary(max_size=300) | _DOCUMENTS)
def test_no_manifest_makes_the_reader_raise(data: bytes) -> None:
    read_manifest(data, data, Report(lenient=False))
