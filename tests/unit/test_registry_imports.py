"""What is told at publish of imports that nothing will bring, and that nothing else is told."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from skillcell.core.skills import PackageRequest, Severity
from skillcell.registry.archive import StagedPackage
from skillcell.registry.findings import Report
from skillcell.registry.imports import report_undeclared
from skillcell.registry.inspection import Inspection, inspect
from skillcell.registry.scripts import Script, scripts

NOTHING = PackageRequest()
SKILL_MD = "---\nname: demo\ndescription: d\n---\n"


def folder(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"SKILL.md": SKILL_MD, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def published(root: Path, files: dict[str, str], *, lenient: bool = True, name: str = "") -> Inspection:
    package = StagedPackage(folder(root, files), root, "", 0, 0, ())
    return inspect(package, None, lenient=lenient, name=name)


def told(root: Path, files: dict[str, str], packages: PackageRequest = NOTHING) -> list[tuple[str, int]]:
    report = Report(lenient=False)
    found = [item for item in scripts(folder(root, files)) if isinstance(item, Script)]
    report_undeclared(root, found, packages, "node-20", report)
    return [(finding.message.split(",")[0].removeprefix("imports "), finding.line) for finding in report.findings]


def test_an_undeclared_import_is_told_with_its_line_and_what_to_add(tmp_path: Path) -> None:
    found = published(tmp_path, {"scripts/x.py": '"""Draws."""\nimport os\nfrom PIL import Image\nprint(Image)\n'})
    (finding,) = [finding for finding in found.findings if finding.code == "import-undeclared"]
    assert (finding.severity, finding.path, finding.line) == (Severity.WARNING, "scripts/x.py", 3)
    assert finding.message == (
        "imports PIL, which the image lacks and nothing declares: "
        "add runtime.packages.pip: [pillow], or a PEP 723 block"
    )


@pytest.mark.parametrize(
    "text",
    [
        "import os, sys, zoneinfo, distutils.core\nprint(1)",
        "import requests, yaml\nfrom urllib3.util import retry\nprint(1)",
        "import helper\nfrom shared.text import clean\nfrom . import near\nprint(1)",
        '"""Use:\n\nimport numpy\nfrom pandas import DataFrame\n"""\nprint(1)',
        "# import numpy\nprint('import numpy')",
        "important = 1\nfrom_ = 2\nprint(important)",
    ],
)
def test_what_the_image_or_the_package_brings_is_not_told(tmp_path: Path, text: str) -> None:
    files = {"scripts/x.py": text, "scripts/helper.py": "", "lib/shared/text.py": "", "scripts/near.py": ""}
    assert told(tmp_path, files) == []


def test_an_import_behind_a_condition_is_a_note_alone(tmp_path: Path) -> None:
    found = published(tmp_path, {"x.py": "try:\n    import numpy\nexcept ImportError:\n    numpy = None\nprint(1)\n"})
    assert [f.severity for f in found.findings if f.code == "import-undeclared"] == [Severity.NOTE]


def test_declared_dependencies_and_other_images_silence_it(tmp_path: Path) -> None:
    files = {"x.py": "import numpy\nprint(1)\n", "y.mjs": "import chalk from 'chalk'\n"}
    assert told(tmp_path, files) == [("numpy", 1), ("chalk", 1)]
    assert told(tmp_path, files, PackageRequest(pip=("pandas",), npm=("chalk@5",))) == []
    report = Report(lenient=False)
    found = [item for item in scripts(tmp_path) if isinstance(item, Script)]
    report_undeclared(tmp_path, found, PackageRequest(), "registry.example/own@sha256:" + "0" * 64, report)
    assert report.findings == ()


def test_a_window_toolkit_is_told_to_be_in_no_image(tmp_path: Path) -> None:
    found = published(tmp_path, {"x.py": "import tkinter\ntkinter.Tk()\n"})
    assert any("no image has this part of the standard library" in f.message for f in found.findings)


def test_node_imports_are_told_by_their_package(tmp_path: Path) -> None:
    source = (
        "import fs from 'node:fs'\nimport path from 'path'\nimport near from './near.js'\n"
        "import {\n  a,\n} from '@scope/tools/deep'\nconst _ = require('lodash/fp')\nimport 'https://example.org/x.js'\n"
    )
    assert told(tmp_path, {"x.js": source, "near.js": ""}) == [("@scope/tools", 4), ("lodash", 7)]


def test_tests_and_examples_are_not_looked_at(tmp_path: Path) -> None:
    assert (
        told(tmp_path, {"tests/test_x.py": "import pytest\n", "examples/e.py": "import numpy\nnumpy.zeros(1)\n"}) == []
    )


def test_npm_dependencies_alone_ask_for_the_image_with_node(tmp_path: Path) -> None:
    files = {"package.json": '{"dependencies": {"left-pad": "1"}}', "src/index.ts": "let a: number = 1\n"}
    assert published(tmp_path, files).spec.image == "node-20"


def test_a_name_to_publish_under_will_do_where_nothing_else_gives_one(tmp_path: Path) -> None:
    (tmp_path / "SKILL.md").write_text("# Just text\n\nDoes something.\n")
    package = StagedPackage(tmp_path, tmp_path, "", 0, 0, ())
    assert inspect(package, None, lenient=True, name="given").spec.name == "given"
    assert inspect(package, None, lenient=True, name="given").valid
    nameless = inspect(package, None, lenient=True)
    assert [f.code for f in nameless.findings if f.severity is Severity.ERROR] == ["frontmatter-name-unknown"]


@pytest.mark.parametrize(
    "text",
    [
        "from " + "a" * 500_000,
        "import a" + " " * 500_000,
        "import os\n" * 50_000,
        '"""\n' * 125_001,
        "import " + "a," * 250_000,
        "const " + "require('" * 50_000,
        "import {\n" * 50_000,
    ],
)
def test_looking_takes_a_time_that_grows_with_the_file_alone(tmp_path: Path, text: str) -> None:
    folder(tmp_path, {"x.py": text, "x.js": text})
    begin = time.perf_counter()
    told(tmp_path, {})
    assert time.perf_counter() - begin < 2


def test_the_note_on_the_image_names_the_file_that_asked_for_it(tmp_path: Path) -> None:
    found = published(tmp_path, {"cli.js": "console.log(1)\n", "a.sh": "jq . x\n"})
    told = [finding.message for finding in found.findings if finding.code == "image-inferred"]
    assert told == ["runs on node-20: cli.js is JavaScript"]
