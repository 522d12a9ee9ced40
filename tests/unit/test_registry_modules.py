"""Which scripts are started as modules of their package, and which are left as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from skillcell.core.skills import Interpreter
from skillcell.registry.discovery import entrypoints, find_scripts
from skillcell.registry.findings import Report
from skillcell.registry.manifest import Manifest, read_manifest


def commands(root: Path, files: dict[str, str]) -> dict[str, tuple[str, ...]]:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    report = Report(lenient=False)
    manifest: Manifest = read_manifest(None, None, report)
    found = entrypoints(root, manifest, find_scripts(root, report), report)
    assert all(e.interpreter is Interpreter.EXECUTABLE for e in found if "-m" in e.command)
    return {e.name: e.command for e in found}


@pytest.mark.parametrize(
    ("path", "text", "module"),
    [
        ("scripts/run.py", "from scripts.utils import word\n", "scripts.run"),
        ("scripts/run.py", "import scripts.utils\n", "scripts.run"),
        ("scripts/run.py", "from scripts import utils\n", "scripts.run"),
        ("scripts/run.py", "from .utils import word\n", "scripts.run"),
        ("lib/radar/__main__.py", "from radar.near import x\n", "radar"),
        ("lib/radar/deep/cli.py", "from ..near import x\n", "radar.deep.cli"),
        ("lib/package/inner/cli.py", "from . import x\n", "package.inner.cli"),
    ],
)
def test_a_script_that_only_works_as_a_module_is_started_as_one(
    tmp_path: Path, path: str, text: str, module: str
) -> None:
    files = {
        "scripts/utils.py": "",
        "lib/radar/near.py": "",
        "lib/package/__init__.py": "",
        "lib/package/inner/__init__.py": "",
        path: text,
    }
    assert commands(tmp_path, files)[path] == ("python3", "-m", module)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("scripts/run.py", "import sys\nsys.path.insert(0, '.')\nfrom scripts.utils import word\n"),
        ("scripts/run.py", "try:\n    from .utils import word\nexcept ImportError:\n    from utils import word\n"),
        ("scripts/run.py", '"""Use:\nfrom scripts.run import main\n"""\nprint(1)\n'),
        ("scripts/run.py", "from other.utils import word\n"),
        ("scripts/run.py", "from ... import far\n"),
        ("my-scripts/run.py", "from .utils import word\n"),
        ("json/run.py", "import json.decoder\nfrom json import dumps\n"),
        ("pandas/run.py", "import pandas as pd\nfrom pandas.api import types\n"),
        ("run.py", "from .utils import word\n"),
        ("scripts/run", "#!/usr/bin/env python3\nfrom .utils import word\n"),
        ("scripts/run.py", "#!/usr/bin/python3 -I\nfrom .utils import word\n"),
    ],
)
def test_every_other_script_is_started_as_a_file(tmp_path: Path, path: str, text: str) -> None:
    assert "-m" not in commands(tmp_path, {path: text})[path]
