"""The shapes that public Skills have, each as a little Skill of our own, run unchanged by the real gateway.

Every case is what a shell user in the Skill's place would see: exit code, stdout, what stderr says, and files made.
A case that names no entrypoint promises too that the gateway picks the one that was meant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from e2e.gateway import Gateway
from e2e.lab import publish
from sandbox_fixtures import image
from skillcell.client import CallResult, SkillcellClient
from skillcell.client.errors import InvalidArgument
from skillcell.core.skills import Severity
from skillcell.core.types import Outcome, WorkingDir


@dataclass(frozen=True)
class Shape:
    """One Skill, one call of it, and what must come of it."""

    files: Mapping[str, str]
    stdout: str = ""
    exit_code: int = 0
    args: tuple[str, ...] = ()
    stdin: bytes = b""
    send: Mapping[str, bytes] = field(default_factory=dict)
    entrypoint: str = ""
    beside: bool = False
    """In a copy of the package (`--cwd skill`)."""
    collect: tuple[str, ...] = ()
    made: tuple[str, ...] = ()
    stderr: str = ""
    """Part of what stderr says; empty for a silent one."""
    image: str = ""
    """What must have been inferred; empty where it does not matter."""


PYTHON = {
    "imports_its_siblings": Shape(
        {
            "scripts/main.py": "import helper\nfrom lib.deep import word\nprint(helper.twice(word))\n",
            "scripts/helper.py": "def twice(x): return x * 2\n",
            "scripts/lib/__init__.py": "",
            "scripts/lib/deep.py": "word = 'ab'\n",
        },
        "abab\n",
        entrypoint="main",
        image="python-3.11",
    ),
    "reaches_the_package_from_its_own_file": Shape(
        {
            "scripts/main.py": "import sys, pathlib\nroot = pathlib.Path(__file__).resolve().parent.parent\n"
            "sys.path.insert(0, str(root))\nimport shared\nprint(shared.NAME, (root / 'assets/t.md').read_text())\n",
            "shared.py": "NAME = 'n'\n",
            "assets/t.md": "template",
        },
        "n template\n",
    ),
    "is_started_by_uv_with_its_dependencies_in_a_block": Shape(
        {
            "scripts/main.py": "#!/usr/bin/env -S uv run --script\n# /// script\n# requires-python = '>=3.9'\n"
            "# dependencies = []\n# ///\nimport sys\nprint(sys.argv[1:])\n"
        },
        "['--flag', 'a b']\n",
        args=("--flag", "a b"),
    ),
    "is_executable_without_an_extension": Shape(
        {"bin/tool": "#!/usr/bin/env python3\nimport os, sys\nprint(os.path.basename(sys.argv[0]))\n"}, "tool\n"
    ),
    "has_windows_line_ends_and_a_byte_order_mark": Shape(
        {"main.py": "\ufeff#!/usr/bin/env python3\r\nif True:\r\n    print('crlf')\r\n"}, "crlf\n"
    ),
    "tells_how_it_is_used_and_exits_2": Shape(
        {
            "scripts/main.py": "import argparse\np = argparse.ArgumentParser()\np.add_argument('file')\n"
            "if __name__ == '__main__':\n    p.parse_args()\n"
        },
        exit_code=2,
        stderr="usage: main.py [-h] file\nmain.py: error: the following arguments are required: file\n",
    ),
    "reports_what_it_found_by_its_exit_code": Shape(
        {"check.py": "import json, sys\nprint(json.dumps({'valid': False}))\nsys.exit(3)\n"},
        '{"valid": false}\n',
        exit_code=3,
    ),
    "dies_with_a_message": Shape({"x.py": "import sys\nsys.exit('no file')\n"}, exit_code=1, stderr="no file\n"),
    "turns_files_into_files_by_relative_paths": Shape(
        {
            "scripts/convert.py": "import sys, pathlib\nsource, target = map(pathlib.Path, sys.argv[1:])\n"
            "target.parent.mkdir(parents=True, exist_ok=True)\ntarget.write_text(source.read_text().upper())\n"
        },
        args=("in/ä b.txt", "out/deep/made.txt"),
        send={"in/ä b.txt": "größe".encode()},
        collect=("**",),
        made=("out/deep/made.txt",),
    ),
    "writes_beside_itself": Shape(
        {
            "scripts/main.py": "import json, pathlib\nstore = pathlib.Path(__file__).parents[1] / 'data/state.json'\n"
            "state = json.loads(store.read_text())\nstate['n'] += 1\n"
            "store.write_text(json.dumps(state))\nprint(state)\n",
            "data/state.json": '{"n": 1}',
        },
        "{'n': 2}\n",
        beside=True,
        collect=("data/*",),
        made=("data/state.json",),
    ),
    "is_a_module_of_its_package": Shape(
        {
            "skill-runtime.yaml": "apiVersion: skillcell/v1\nkind: SkillRuntime\nversion: 1.0.0\nentrypoints:\n"
            "  - {name: run, command: [python3, -m, scripts.main], workingDir: skill}\n",
            "scripts/__init__.py": "",
            "scripts/main.py": "from .near import NAME\nimport sys\nprint(__package__, NAME, sys.argv[1:])\n",
            "scripts/near.py": "NAME = 1\n",
        },
        "scripts 1 ['x']\n",
        args=("x",),
    ),
    "imports_from_its_own_folder_by_name": Shape(
        {
            "scripts/__init__.py": "",
            "scripts/pack.py": "import sys\nfrom pathlib import Path\nfrom scripts.utils import word\n"
            "if __name__ == '__main__':\n    print(word, sys.argv[1:], Path(__file__).parent.name)\n",
            "scripts/utils.py": "word = 'w'\n",
        },
        "w ['x'] scripts\n",
        args=("x",),
        entrypoint="pack",
    ),
    "imports_relatively_in_a_copy_of_its_package": Shape(
        {
            "radar/__init__.py": "",
            "radar/__main__.py": "from .near import name\nfrom .deep.more import up\nprint(name, up, __package__)\n",
            "radar/near.py": "name = 'near'\n",
            "radar/deep/more.py": "from ..near import name as up\n",
        },
        "near near radar\n",
        entrypoint="radar/__main__.py",
        beside=True,
    ),
    "keeps_its_settings_in_home": Shape(
        {
            "main.py": "import os, pathlib\nhome = pathlib.Path.home()\nassert str(home) == os.path.expanduser('~')\n"
            "folder = home / '.config' / 'tool'\nfolder.mkdir(parents=True)\n(folder / 'c.json').write_text('{}')\n"
            "print(sorted(p.name for p in folder.iterdir()), [p.name for p in home.iterdir()])\n"
        },
        "['c.json'] ['.config']\n",
    ),
    "reads_stdin_though_none_is_given": Shape({"m.py": "import sys\nprint([sys.stdin.read()])\n"}, "['']\n"),
    "passes_bytes_that_are_no_text": Shape(
        {"m.py": "import sys\nsys.stdout.write(sys.stdin.read()[::-1] + '\\n')\n"}, "é\udcff\n", stdin=b"\xff\xc3\xa9"
    ),
    "looks_whether_it_speaks_to_a_terminal": Shape(
        {
            "m.py": "import os, shutil, sys\nprint(*(s.isatty() for s in (sys.stdin, sys.stdout, sys.stderr)))\n"
            "print(shutil.get_terminal_size(), sys.stdout.encoding, sys.getfilesystemencoding())\n"
        },
        "False False False\nos.terminal_size(columns=80, lines=24) utf-8 utf-8\n",
    ),
    "asks_who_and_where_it_is": Shape(
        {
            "m.py": "import getpass, os, socket, tempfile\nprint(getpass.getuser(), os.getuid() != 0, os.getcwd())\n"
            "print(tempfile.gettempdir(), bool(socket.gethostname()))\n"
        },
        "skill True /workspace\n/tmp True\n",
    ),
    "needs_much_of_the_standard_library": Shape(
        {
            "m.py": "import bz2, ctypes, curses, dbm, lzma, os, readline, sqlite3, ssl, zlib\n"
            "from datetime import datetime\nfrom zoneinfo import ZoneInfo\n"
            "c = sqlite3.connect('x.db')\nc.execute('create virtual table t using fts5(a)')\n"
            "print(ssl.create_default_context().verify_mode.name, len(os.listdir('/etc/ssl/certs')) > 50)\n"
            "print(datetime(2026, 7, 1, tzinfo=ZoneInfo('Asia/Tokyo')).isoformat())\n"
        },
        "CERT_REQUIRED True\n2026-07-01T00:00:00+09:00\n",
    ),
    "spreads_its_work": Shape(
        {
            "m.py": "import multiprocessing as mp\nfrom concurrent.futures import ThreadPoolExecutor\n"
            "def square(x): return x * x\nif __name__ == '__main__':\n    with mp.Pool(4) as pool:\n"
            "        print(pool.map(square, range(4)))\n    with ThreadPoolExecutor() as pool:\n"
            "        print(sum(pool.map(square, range(100))))\n"
            "    with mp.get_context('spawn').Pool(1) as pool:\n        print(pool.map(square, [9]))\n"
        },
        "[0, 1, 4, 9]\n328350\n[81]\n",
    ),
    "starts_itself_again": Shape(
        {
            "m.py": "import subprocess, sys\nif len(sys.argv) > 1:\n    print('child', sys.argv[1:])\n    sys.exit(4)\n"
            "done = subprocess.run([sys.executable, __file__, 'x'], capture_output=True, text=True)\n"
            "print(done.returncode, done.stdout, end='')\n"
        },
        "4 child ['x']\n",
    ),
    "calls_programs_of_the_shell": Shape(
        {
            "m.py": "import shutil, subprocess\nassert shutil.which('git')\n"
            "print(subprocess.run(['git', '--version'], capture_output=True, text=True).stdout.split()[0])\n"
        },
        "git\n",
        image="shell",
    ),
    "starts_nothing_that_is_not_there": Shape(
        {
            "m.py": "import subprocess\ntry:\n    subprocess.run(['ffmpeg'])\n"
            "except FileNotFoundError as e:\n    print(e)\n"
        },
        "[Errno 2] No such file or directory: 'ffmpeg'\n",
    ),
}

SHELL = {
    "finds_its_own_folder_and_calls_its_siblings": Shape(
        {
            "scripts/run.sh": "#!/usr/bin/env bash\nset -euo pipefail\n"
            'DIR="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"\n'
            'source "$DIR/lib.sh"\npython3 "$DIR/count.py" "$@" | jq -r .n\nsay "$(basename "$0")"\n',
            "scripts/lib.sh": 'say() { echo "said $1"; }\n',
            "scripts/count.py": "import json, sys\nprint(json.dumps({'n': len(sys.argv) - 1}))\n",
        },
        "2\nsaid run.sh\n",
        args=("a b", ""),
        entrypoint="run",
        image="shell",
    ),
    "uses_the_tools_of_a_shell_user": Shape(
        {
            "t.sh": "#!/bin/bash\nprintf 'b 2\\na 1\\n' | sort | awk '{s += $2} END {print s}'\n"
            "echo x-y | sed -E 's/(.)-(.)/\\2-\\1/'\nperl -pe 's/a/b/' <<< a\necho '3 * 1.5' | bc\n"
            "realpath -m ../a/./b\nwhich python3\ndate -u -d @0 +%F\nTZ=Europe/Berlin date -d @0 +%H\n"
            "mapfile -t lines < <(printf 'p\\nq\\n')\necho \"${#lines[@]} ${lines[1]^^}\"\n"
        },
        "3\ny-x\nb\n4.5\n/a/b\n/usr/bin/python3\n1970-01-01\n01\n2 Q\n",
    ),
    "is_plain_sh_without_a_shebang": Shape({"go.sh": 'echo "$0 $#" | sed "s|.*/||"\n'}, "go.sh 1\n", args=("x",)),
    "stops_at_the_first_failure": Shape(
        {"go.sh": "#!/bin/sh\nset -e\necho before\nfalse\necho after\n"}, "before\n", exit_code=1
    ),
    "needs_a_program_that_no_image_has": Shape(
        {"go.sh": "#!/bin/bash\nsudo true\n"}, exit_code=127, stderr="sudo: command not found\n"
    ),
    "judges_what_it_reads_from_stdin": Shape(
        {
            "hook.sh": "#!/usr/bin/env bash\nCOMMAND=$(jq -r .tool_input.command)\n"
            '[[ $COMMAND == *"rm -rf"* ]] && { echo "blocked: $COMMAND" >&2; exit 2; }\nexit 0\n'
        },
        exit_code=2,
        stdin=b'{"tool_input": {"command": "rm -rf /"}}',
        stderr="blocked: rm -rf /\n",
    ),
    "writes_where_it_was_started_and_at_home": Shape(
        {"go.sh": "#!/bin/bash\nmkdir -p out ~/.cache/x\ncat <<EOF > out/r.md\n# $1\nEOF\ncat out/r.md; ls ~/.cache\n"},
        "# T\nx\n",
        args=("T",),
        collect=("out/*.md",),
        made=("out/r.md",),
    ),
}

NODE = {
    "is_an_old_module_with_a_shebang": Shape(
        {
            "cli.js": "#!/usr/bin/env node\nconst path = require('path');\nconst near = require('./lib/near');\n"
            "console.log(near.name, path.basename(__filename), process.argv.slice(2));\n",
            "lib/near.js": "module.exports = { name: 'near' };\n",
        },
        "near cli.js [ 'a b' ]\n",
        args=("a b",),
        image="node-20",
    ),
    "is_a_new_module_by_its_package": Shape(
        {
            "package.json": '{"type": "module", "scripts": {"go": "node go.js"}}',
            "go.js": "import fs from 'node:fs';\nimport { name } from './near.mjs';\n"
            "console.log(name, fs.existsSync(new URL('./package.json', import.meta.url)));\n"
            "process.exitCode = await 5;\n",
            "near.mjs": "export const name = 'near';\n",
        },
        "near true\n",
        exit_code=5,
        entrypoint="go",
    ),
    "reads_stdin_to_its_end": Shape(
        {
            "f.mjs": "let text = '';\nfor await (const chunk of process.stdin) text += chunk;\n"
            "console.log(JSON.parse(text).a, process.stdin.isTTY, process.stdout.isTTY);\n"
        },
        "1 undefined undefined\n",
        stdin=b'{"a": 1}',
    ),
    "turns_a_file_into_a_file_and_calls_python": Shape(
        {
            "f.cjs": "const fs = require('fs'), os = require('os'), { execSync } = require('child_process');\n"
            "fs.writeFileSync('out.json', fs.readFileSync(process.argv[2]));\n"
            "const two = execSync('python3 -c \"print(1 + 1)\"').toString().trim();\n"
            "console.log(os.homedir(), os.userInfo().username, two);\n"
        },
        "/home/skill skill 2\n",
        args=("in.json",),
        send={"in.json": b"{}"},
        collect=("*.json",),
        made=("out.json",),
    ),
    "dies_of_what_it_throws": Shape({"x.js": "throw new Error('broken');\n"}, exit_code=1, stderr="Error: broken\n"),
    "is_called_from_a_shell_script": Shape(
        {"run.sh": '#!/bin/bash\nnode -e "console.log([...process.argv.slice(1)].join())" "$@"\n'},
        "a,b\n",
        args=("a", "b"),
        image="node-20",
    ),
}

SHAPES = {
    f"{language}_{name}": shape
    for language, shapes in (("python", PYTHON), ("shell", SHELL), ("node", NODE))
    for name, shape in shapes.items()
}


@pytest.fixture(scope="module", autouse=True)
def images() -> None:
    for alias in ("shell", "node-20"):
        image(alias)


async def call(client: SkillcellClient, shape: Shape, name: str) -> CallResult:
    return await client.call(
        name,
        entrypoint=shape.entrypoint,
        args=shape.args,
        stdin=shape.stdin,
        files=shape.send,
        collect=shape.collect,
        **({"working_dir": WorkingDir.SKILL} if shape.beside else {}),  # the manifest's own unless said
    )


@pytest.mark.parametrize("name", SHAPES)
async def test_a_public_skill_runs_as_its_user_would_run_it(oci: Gateway, tmp_path: Path, name: str) -> None:
    shape = SHAPES[name]
    reference = "shapes/" + name.replace("_", "-")[:60].rstrip("-")
    files = {"SKILL.md": f"---\nname: {reference[7:]}\ndescription: A shape.\n---\n", **shape.files}
    async with oci.client() as client:
        await publish(client, tmp_path / reference[7:], files, reference)
        result = await call(client, shape, reference)
        _, version = await client.registry.get(reference)
    said = result.stdout.decode("utf-8", "surrogateescape"), result.exit_code
    assert said == (shape.stdout, shape.exit_code), result.stderr.decode()
    assert result.outcome is (Outcome.FAILED if shape.exit_code else Outcome.SUCCEEDED)
    assert shape.stderr in result.stderr.decode() if shape.stderr else result.stderr == b""
    assert tuple(artifact.name for artifact in result.artifacts) == shape.made
    assert shape.image in {"", version.spec.image}


ODD = {
    "without_frontmatter": "# A heading\n\nThen text alone.\n",
    "with_unquoted_colons": "---\nname: odd\ndescription: Use when: the user says: go\n---\n",
    "with_unknown_fields_and_nested_metadata": (
        "---\nname: Odd Name!\ndescription: d\nhomepage: https://example.org\nversion: 1.0\n"
        'metadata: {"bot": {"emoji": "x", "requires": {"bins": ["jq"]}}}\nallowed-tools: [Bash, Read]\n---\n'
    ),
    "with_windows_line_ends": "---\r\nname: odd\r\ndescription: d\r\n---\r\n# Hi\r\n",
    "with_a_long_description": "---\nname: odd\ndescription: >-\n  " + "many words " * 200 + "\n---\n",
}


@pytest.mark.parametrize("name", ODD)
async def test_an_odd_skill_file_is_imported_with_a_recorded_warning(oci: Gateway, tmp_path: Path, name: str) -> None:
    (tmp_path / "SKILL.md").write_bytes(ODD[name].encode())
    (tmp_path / "go.py").write_text("print('went')\n")
    reference = "shapes/odd-" + name.replace("_", "-")
    async with oci.client() as client:
        published = await client.publish(tmp_path, as_name=reference, lenient=True)
        result = await client.call(reference)
    assert result.stdout == b"went\n"
    assert any(finding.severity is Severity.WARNING for finding in published.version.findings)


async def test_each_skill_of_one_repository_is_published_by_itself(oci: Gateway, tmp_path: Path) -> None:
    """A repository of Skills has its Skills in folders; one within another is a part of it, and callable there."""
    inner = {
        "SKILL.md": "---\nname: outer\ndescription: d\n---\n",
        "go.py": "print('outer')\n",
        "more/inner/SKILL.md": "---\nname: inner\ndescription: d\n---\n",
        "more/inner/scripts/deep.py": "print('inner')\n",
    }
    async with oci.client() as client:
        await publish(client, tmp_path / "outer", inner, "shapes/outer")
        outer = [await client.call("shapes/outer", entrypoint=name) for name in ("go", "more/inner/scripts/deep.py")]
        await client.publish(tmp_path / "outer/more/inner", as_name="shapes/inner")
        alone = await client.call("shapes/inner")
    assert [result.stdout for result in (*outer, alone)] == [b"outer\n", b"inner\n", b"inner\n"]


async def test_a_skill_that_misses_a_library_is_told_so_when_it_is_published(oci: Gateway, tmp_path: Path) -> None:
    files = {"SKILL.md": "---\nname: misses\ndescription: d\n---\n", "go.py": "import pandas\nprint(pandas)\n"}
    async with oci.client() as client:
        await publish(client, tmp_path / "misses", files, "shapes/misses")
        _, version = await client.registry.get("shapes/misses")
        result = await client.call("shapes/misses")
    told = [finding.message for finding in version.findings if finding.code == "import-undeclared"]
    assert told == [
        "imports pandas, which the image lacks and nothing declares: "
        "add runtime.packages.pip: [pandas], or a PEP 723 block"
    ]
    assert result.exit_code == 1
    assert result.stderr.decode().splitlines()[-1] == "ModuleNotFoundError: No module named 'pandas'"


async def test_a_folder_of_another_name_is_refused_and_imports_with_a_recorded_warning(
    oci: Gateway, tmp_path: Path
) -> None:
    folder = tmp_path / "elsewhere"
    async with oci.client() as client:
        with pytest.raises(
            InvalidArgument, match=r"SKILL.md:2:1: name 'moved' must equal the folder's name 'elsewhere'"
        ):
            await publish(
                client, folder, {"SKILL.md": "---\nname: moved\ndescription: d\n---\n", "go.py": ""}, "shapes/moved"
            )
        published = await client.publish(folder, as_name="shapes/moved", lenient=True)
        assert (await client.call("shapes/moved")).outcome is Outcome.SUCCEEDED
    assert [(finding.severity, finding.path, finding.line) for finding in published.version.findings][:1] == [
        (Severity.WARNING, "SKILL.md", 2)
    ]
