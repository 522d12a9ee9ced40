"""A Skill that does whatever its caller tells it: `run` executes the Python source in its first argument."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path
from typing import Any

from one_machine import write_skill
from skillcell.client import CallResult, Event, SkillcellClient
from skillcell.core.types import MEBIBYTE, SECOND_NS, LimitRequest

MANIFEST = """\
apiVersion: skillcell/v1
kind: SkillRuntime
version: 1.0.0
defaultEntrypoint: run
entrypoints:
  - {name: run, command: [python3, scripts/run.py]}
  - {name: beside, command: [python3, scripts/run.py], workingDir: skill}
  - {name: pages, command: [python3, scripts/run.py], outputs: {pages: {glob: "pages/*.html"}}}
  - {name: one, command: [python3, scripts/run.py], stdout: json, outputSchema: {type: object, required: [n]}}
  - {name: lines, command: [python3, scripts/run.py], stdout: ndjson, outputSchema: {type: integer}}
  - {name: plain, handler: "scripts/tool.py:plain"}
  - {name: waits, handler: "scripts/tool.py:waits"}
  - {name: yields, handler: "scripts/tool.py:yields"}
  - {name: streams, handler: "scripts/tool.py:streams"}
  - name: typed
    handler: "scripts/tool.py:typed"
    inputSchema: {type: object, required: [n], properties: {n: {type: integer, maximum: 9}}}
    outputSchema: {type: object, required: [n], properties: {n: {type: integer}}}
"""
FILES = {
    "SKILL.md": "---\nname: lab\ndescription: Does what it is told.\n---\n",
    "skill-runtime.yaml": MANIFEST,
    "scripts/run.py": "import sys\nexec(sys.argv[1])\n",
    "scripts/tool.py": """\
import asyncio

def plain(payload, ctx):
    print("on stdout", flush=True)
    ctx.warning("careful", rows=3)
    ctx.progress(0.25, "a quarter")
    with open(ctx.artifact_path("deep/er/made.txt"), "w") as file:
        file.write("made")
    return {"got": payload}

async def waits(payload, ctx):
    await asyncio.sleep(0.01)
    ctx.progress(None, "unknown")
    return payload

def yields(payload, ctx):
    for number in range(3):
        ctx.progress((number + 1) / 3)
        yield number
    return "last"

async def streams(payload, ctx):
    for number in range(3):
        await asyncio.sleep(0)
        yield {"n": number}

def typed(payload):
    return {"n": payload["n"] if payload["n"] else "none"}
""",
}
NODE_FILES = {
    "SKILL.md": "---\nname: node-lab\ndescription: Does it in JavaScript.\n---\n",
    "skill-runtime.yaml": """\
apiVersion: skillcell/v1
kind: SkillRuntime
version: 1.0.0
runtime: {image: node-20}
entrypoints:
  - {name: run, handler: "scripts/tool.mjs:run"}
""",
    "scripts/tool.mjs": """\
import { writeFileSync } from 'node:fs';
export async function* run(input, ctx) {
  console.log('on stdout');
  ctx.warning('careful', { rows: 3 });
  ctx.progress(0.25, 'a quarter');
  writeFileSync(ctx.artifactPath('deep/made.txt'), 'made');
  yield { n: 1 };
  return { got: input };
}
""",
}
SMALL = LimitRequest(wall_ns=20 * SECOND_NS, memory_bytes=64 * MEBIBYTE)


async def publish(client: SkillcellClient, folder: Path, files: dict[str, str], name: str) -> None:
    """Publishes a folder with these files."""
    write_skill(folder, files)
    await client.publish(folder, as_name=name)


async def run(client: SkillcellClient, code: str, *args: str, **options: Any) -> CallResult:
    """One call of `run` with Python source."""
    options.setdefault("entrypoint", "run")
    options.setdefault("limits", SMALL)
    return await client.call("dev/lab", args=(textwrap.dedent(code), *args), **options)


def spec(code: str, **options: Any) -> dict[str, Any]:
    """The options of such a call, for `execute` and `start`."""
    return {"entrypoint": "run", "limits": SMALL, "args": (textwrap.dedent(code),), **options}


async def until(events: Any, kind: type) -> list[Event]:
    """Events up to the first of a kind, that one included."""
    seen = []
    async for event in events:
        seen.append(event)
        if isinstance(event.kind, kind):
            return seen
    raise AssertionError(f"no {kind.__name__} among {[type(event.kind).__name__ for event in seen]}")


def gone(pid: int) -> bool:
    """Whether a process has ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):  # between the two looks
        return True
