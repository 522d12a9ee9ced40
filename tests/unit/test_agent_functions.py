"""Functions as entrypoints, in Python and JavaScript: how they are called, what their values and errors become."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent_harness import Agent, Ending, start_agent

PYTHON = """
import asyncio, os, sys, datetime, functools
def none(): print("printed")
def one(value): return value
def two(value, ctx): return [value, ctx.execution_id, ctx.skill, ctx.deadline > 1, ctx.workspace == os.getcwd()]
def optional(value, verbose=False): return verbose
def optional_context(value, ctx=None): return ctx is not None
def keyword(value, *, context): context.info("kw"); return 1
def anything(*args): return len(args)
def decorated():
    pass
def decorate(f):
    @functools.wraps(f)
    def inner(*args, **kwargs): return f(*args, **kwargs)
    return inner
decorated = decorate(lambda value: value)
def generates(value):
    yield 1
    yield 2
    return "end"
async def waits(value):
    await asyncio.sleep(0)
    return "awaited"
async def streams(value):
    yield "a"
    await asyncio.sleep(0)
    yield "b"
class Handler:
    def __call__(self, value): return "called"
    def method(self, value, ctx): return "method"
handler = Handler()
def events(value, ctx):
    ctx.log("l", "warning", code=3); ctx.debug("d"); ctx.error("e", why="x")
    ctx.progress(0.25, "quarter"); ctx.progress(); ctx.output({"x": [None, True, 1.5, "\\u2603"]})
def artifact(value, ctx):
    with open(ctx.artifact_path("sub/a.txt"), "w") as f: f.write("A")
def escapes(value, ctx): ctx.artifact_path("../x")
def fails(value):
    helper(value)
def helper(value):
    raise ValueError("no good")
async def fails_later(value):
    await asyncio.sleep(0)
    raise ValueError("later")
def leaves(value): sys.exit(4)
def nan(value): return {"rows": [1, {"v": float("nan")}]}
def date(value): yield 1; yield {"when": datetime.date(2020, 1, 1)}
def circle(value):
    a = []; a.append(a); return a
def surrogate(value): return "\\udc80"
def deep(value):
    a = []
    for _ in range(100000): a = [a]
    return a
def huge(value): return "x" * (9 << 20)
def level(value, ctx): ctx.log("x", "loud")
def sibling(value):
    import beside
    return [beside.NAME, __name__]
"""
JAVASCRIPT = """
import { hostname } from 'node:os';
export function none() { console.log('printed'); }
export function one(value) { return value; }
export function two(value, ctx) {
  return [value, ctx.executionId, ctx.skill, ctx.deadline > 1, ctx.workspace === process.cwd()];
}
export function* generates() { yield 1; yield 2; return 'end'; }
export async function waits() { await null; return 'awaited'; }
export async function* streams() { yield 'a'; await null; yield 'b'; }
export function events(value, ctx) {
  ctx.log('l', 'warning', { code: 3 }); ctx.debug('d'); ctx.error('e', { why: 'x' });
  ctx.progress(0.25, 'quarter'); ctx.progress(); ctx.output({ x: [null, true, 1.5, '\\u2603'] });
}
import { writeFileSync } from 'node:fs';
export function artifact(value, ctx) { writeFileSync(ctx.artifactPath('sub/a.txt'), 'A'); }
export function escapes(value, ctx) { ctx.artifactPath('../x'); }
export function fails() { helper(); }
function helper() { throw new RangeError('no good'); }
export async function fails_later() { await null; throw new RangeError('later'); }
export function leaves() { process.exit(4); }
export function nan() { return { rows: [1, { v: NaN }] }; }
export function big() { return [10n]; }
export function circle() { const a = []; a.push(a); return a; }
export function map() { return { m: new Map() }; }
export function huge() { return 'x'.repeat(9 << 20); }
export function date() { return { when: new Date(0) }; }
export function args() { return process.argv.slice(2); }
export default (value) => ['default', value];
"""
EVENTS = [
    {"type": "log", "level": "warning", "message": "l", "fields": {"code": 3}},
    {"type": "log", "level": "debug", "message": "d", "fields": {}},
    {"type": "log", "level": "error", "message": "e", "fields": {"why": "x"}},
    {"type": "progress", "fraction": 0.25, "message": "quarter"},
    {"type": "progress", "fraction": None, "message": ""},
    {"type": "output", "value": {"x": [None, True, 1.5, "☃"]}},
]
INPUT = ("input", "input.json", 0o444, b'{"a": [1]}')
CONTEXT = [{"a": [1]}, "exe_1", "p/n", True, True]


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    agent = start_agent(tmp_path_factory.mktemp("agent"))
    skill = Path(agent.places["skill"])
    (skill / "tool.py").write_text(PYTHON)
    (skill / "beside.py").write_text("NAME = 'beside'\n")
    (skill / "broken.py").write_text("import nothing_like_this\ndef f(): pass\n")
    (skill / "syntax.py").write_text("def f(:\n")
    (skill / "json.py").write_text("def f(v): return 'mine'\n")
    (skill / "tool.mjs").write_text(JAVASCRIPT)
    (skill / "old.cjs").write_text("exports.f = (v) => ['cjs', __filename.endsWith('old.cjs')];\n")
    (skill / "single.cjs").write_text("module.exports = (v) => 'single';\n")
    yield agent
    assert agent.close() == 0


def call(agent: Agent, file: str, function: str, argv: tuple[str, ...] = ()) -> Ending:
    kind = "python-function" if file.endswith(".py") else "node-function"
    env = agent.env(SKILLCELL_EXECUTION_ID="exe_1", SKILLCELL_SKILL="p/n")
    script = f"{agent.places['skill']}/{file}"
    return agent.run(kind=kind, script=script, function=function, env=env, files=[INPUT], argv=argv)


@pytest.mark.parametrize(
    ("function", "outputs"),
    [
        ("none", []), ("one", [{"a": [1]}]), ("two", [CONTEXT]), ("optional", [False]), ("optional_context", [True]),
        ("keyword", [1]), ("anything", [2]), ("decorated", [{"a": [1]}]), ("generates", [1, 2, "end"]),
        ("waits", ["awaited"]), ("streams", ["a", "b"]), ("handler", ["called"]), ("handler.method", ["method"]),
        ("sibling", [["beside", "tool"]]),
    ],
)  # fmt: skip
def test_a_python_function_is_called_as_its_signature_says(agent: Agent, function: str, outputs: list[object]) -> None:
    ending = call(agent, "tool.py", function)
    assert (ending.code, ending.outputs, ending.stderr) == (0, outputs, b"")
    assert ending.stdout == (b"printed\n" if function == "none" else b"")


@pytest.mark.parametrize(
    ("function", "outputs"),
    [
        ("none", []), ("one", [{"a": [1]}]), ("two", [CONTEXT]), ("generates", [1, 2, "end"]), ("waits", ["awaited"]),
        ("streams", ["a", "b"]), ("default", [["default", {"a": [1]}]]),
        ("date", [{"when": "1970-01-01T00:00:00.000Z"}]), ("args", [["x", "y z"]]),
    ],
)  # fmt: skip
@pytest.mark.skipif(shutil.which("node") is None, reason="node is not on this machine; the node image's test has it")
def test_a_javascript_function_is_called_in_the_same_way(agent: Agent, function: str, outputs: list[object]) -> None:
    ending = call(agent, "tool.mjs", function, argv=("x", "y z"))
    assert (ending.code, ending.outputs, ending.stderr) == (0, outputs, b"")
    assert ending.stdout == (b"printed\n" if function == "none" else b"")


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not on this machine; the node image's test has it")
def test_commonjs_modules_serve_too(agent: Agent) -> None:
    assert call(agent, "old.cjs", "f").outputs == [["cjs", True]]
    assert call(agent, "single.cjs", "default").outputs == ["single"]


@pytest.mark.parametrize("file", ["tool.py", "tool.mjs"])
def test_events_and_artifacts_are_the_same_in_both_languages(agent: Agent, file: str) -> None:
    assert call(agent, file, "events").events == EVENTS
    assert call(agent, file, "artifact").artifacts == {"sub/a.txt": b"A"}
    assert b"'../x' is not a relative path" in call(agent, file, "escapes").stderr.replace(b"name: ../x", b"'../x'")


def test_a_python_error_shows_the_skills_frames_alone(agent: Agent) -> None:
    ending = call(agent, "tool.py", "fails")
    path = f"{agent.places['skill']}/tool.py"
    lines = ending.stderr.decode().splitlines()
    assert ending.code == 1
    assert [line.split(",")[0] for line in lines if line.startswith("  File")] == [f'  File "{path}"'] * 2
    assert lines[-1] == "ValueError: no good"
    later = call(agent, "tool.py", "fails_later")
    assert later.stderr.decode().count("  File") == 1
    assert later.code == 1


def test_a_javascript_error_shows_the_skills_frames_alone(agent: Agent) -> None:
    for function in ("fails", "fails_later"):
        ending = call(agent, "tool.mjs", function)
        assert ending.code == 1
        assert ending.stderr.startswith(b"RangeError: ")
        assert b"tool.mjs" in ending.stderr
        assert b"host.mjs" not in ending.stderr


@pytest.mark.parametrize("file", ["tool.py", "tool.mjs"])
def test_a_function_that_exits_ends_with_its_code(agent: Agent, file: str) -> None:
    assert call(agent, file, "leaves").code == 4


@pytest.mark.parametrize(
    ("file", "function", "words"),
    [
        ("tool.py", "nan", b"TypeError: output.rows[1].v is nan, which is not JSON"),
        ("tool.py", "date", b"TypeError: output.when is a date, which is not JSON"),
        ("tool.py", "circle", b"TypeError: output[0] contains itself, which is not JSON"),
        ("tool.py", "surrogate", b"TypeError: output is text with a lone surrogate, which is not JSON"),
        ("tool.py", "deep", b"is nested more than 900 deep, which is not JSON"),
        ("tool.py", "huge", b"are over the limit of 8388608"),
        ("tool.py", "level", b"'loud' is not one of debug, info, warning, error"),
        ("tool.py", "absent", b"has no function 'absent'"),
        ("broken.py", "f", b"ModuleNotFoundError: No module named 'nothing_like_this'"),
        ("syntax.py", "f", b"SyntaxError: "),
        ("tool.mjs", "nan", b"TypeError: output.rows[1].v is NaN, which is not JSON"),
        ("tool.mjs", "big", b"TypeError: output[0] is a bigint, which is not JSON"),
        ("tool.mjs", "circle", b"TypeError: output[0] contains itself, which is not JSON"),
        ("tool.mjs", "map", b"TypeError: output.m is a Map, which is not JSON"),
        ("tool.mjs", "huge", b"are over the limit of 8388608"),
        ("tool.mjs", "absent", b'exports no function "absent"'),
    ],
)
def test_what_is_not_json_or_not_there_is_named(agent: Agent, file: str, function: str, words: bytes) -> None:
    ending = call(agent, file, function)
    assert ending.code == 1
    assert words in ending.stderr
    assert b"skillcell/agent" not in ending.stderr


def test_a_function_in_a_file_named_like_a_library_module_is_found(agent: Agent) -> None:
    assert call(agent, "json.py", "f").outputs == ["mine"]


def test_without_input_a_function_gets_none(agent: Agent) -> None:
    env = agent.env(SKILLCELL_INPUT="/nowhere/input.json")
    for file, kind in (("tool.py", "python-function"), ("tool.mjs", "node-function")):
        ending = agent.run(kind=kind, script=f"{agent.places['skill']}/{file}", function="two", env=env)
        assert ending.outputs[0][0] is None
