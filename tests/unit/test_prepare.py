"""A plan becomes what driver and agent get: the places, the environment and the command line of the contract."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from plans import ENTRYPOINT, plan, version
from skillcell.agent import frames
from skillcell.core.content import StoredContent
from skillcell.core.errors import Fault
from skillcell.core.skills import Entrypoint, Interpreter, Layer
from skillcell.core.types import ExecutionRequest, InputFile, Limits, WorkingDir
from skillcell.sandbox.driver import PackageMount
from skillcell.sandbox.job import Delivery
from skillcell.sandbox.prepare import environment_for, job_for, mounts_for
from skillcell.sandbox.sending import send_job, send_stdin

IMAGE_ENV = {"PATH": "/opt/bin:/bin", "LANG": "de_DE", "ONLY": "image"}


def entry(**changes: object) -> Entrypoint:
    return replace(Entrypoint("e"), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("entrypoint", "kind", "argv", "script", "function"),
    [
        (ENTRYPOINT, "python-script", ("x",), "/skill/scripts/run.py", ""),
        (entry(command=("python3", "a.py", "-v"), script="a.py"), "python-script", ("-v", "x"), "/skill/a.py", ""),
        (
            entry(command=("python3", "-O", "a.py"), script="a.py"),
            "exec",
            ("python3", "-O", "/skill/a.py", "x"),
            "",
            "",
        ),
        (entry(command=("bash", "run.sh"), script="run.sh"), "exec", ("bash", "/skill/run.sh", "x"), "", ""),
        (entry(command=("node", "a/r.mjs"), script="a/r.mjs"), "exec", ("node", "/skill/a/r.mjs", "x"), "", ""),
        (entry(command=("run", "-v"), script="run"), "exec", ("/skill/run", "-v", "x"), "", ""),
        (entry(command=("jq", ".a")), "exec", ("jq", ".a", "x"), "", ""),
        (entry(command=("/usr/bin/env", "run")), "exec", ("/usr/bin/env", "run", "x"), "", ""),
        (entry(handler="s/t.py:handle", script="s/t.py"), "python-function", ("x",), "/skill/s/t.py", "handle"),
        (
            entry(handler="t.mjs:handle", script="t.mjs", interpreter=Interpreter.NODE),
            "node-function",
            ("x",),
            "/skill/t.mjs",
            "handle",
        ),
    ],
)
def test_each_kind_of_entrypoint_has_its_command_line(
    entrypoint: Entrypoint, kind: str, argv: tuple[str, ...], script: str, function: str
) -> None:
    job = job_for(plan(entrypoint=entrypoint, arguments=("x",)), "exe_1", {})
    assert (job.kind, job.argv, job.script, job.function) == (kind, argv, script, function)
    assert (job.cwd, job.copy_skill) == ("/workspace", False)


def test_in_a_copy_of_the_package_everything_is_found_there() -> None:
    job = job_for(plan(working_dir=WorkingDir.SKILL), "exe_1", {})
    assert (job.script, job.cwd, job.copy_skill) == ("/workspace/scripts/run.py", "/workspace", True)
    assert job.env["SKILLCELL_SKILL_DIR"] == "/workspace"


def test_the_environment_is_image_then_runtime_then_manifest_then_caller() -> None:
    request = ExecutionRequest("acme/tool", env={"B": "caller", "HOME": "/elsewhere"})
    call = plan(request=request, version=version(env={"A": "manifest", "B": "manifest", "ONLY": "manifest"}))
    env = environment_for(call, "exe_1", IMAGE_ENV)
    assert {"A": "manifest", "B": "caller", "ONLY": "manifest", "HOME": "/elsewhere"}.items() <= env.items()
    assert (env["LANG"], env["PATH"]) == ("C.UTF-8", "/opt/bin:/bin")


def test_no_one_but_the_runtime_says_where_things_are() -> None:
    forged = {name: "forged" for name in environment_for(plan(), "exe_1", {}) if name.startswith("SKILLCELL_")}
    assert len(forged) >= 8
    call = plan(request=ExecutionRequest("acme/tool", env=forged), version=version(env=forged))
    assert "forged" not in environment_for(call, "exe_1", forged).values()


def test_nothing_of_the_gateways_own_environment_gets_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_SECRET", "s3cret")
    env = environment_for(plan(), "exe_1", {})
    assert "GATEWAY_SECRET" not in env
    assert "s3cret" not in "".join(env.values())


def test_layers_are_on_the_paths_of_their_interpreters() -> None:
    layers = (Layer("pip", "d" * 64, ()), Layer("npm", "e" * 64, ()))
    env = environment_for(plan(version=version(layers=layers)), "exe_1", IMAGE_ENV)
    assert env["PYTHONPATH"] == "/layers/pip"
    assert env["NODE_PATH"] == "/layers/npm/node_modules"
    assert env["PATH"] == "/layers/npm/node_modules/.bin:/layers/pip/bin:/opt/bin:/bin"
    bare = environment_for(plan(), "exe_1", IMAGE_ENV)
    assert not {"PYTHONPATH", "NODE_PATH"} & set(bare)


def test_mounts_are_named_by_what_they_hold() -> None:
    agent = PackageMount("f" * 64, Path("/a"), "/agent")
    held = version(layers=(Layer("pip", "d" * 64, ()),))
    mounts = mounts_for(plan(version=held), Path("/packages"), Path("/layers"), agent)
    assert mounts == (
        PackageMount("b" * 64, Path("/packages") / ("b" * 64), "/skill"),
        PackageMount("d" * 64, Path("/layers") / ("d" * 64), "/layers/pip"),
        agent,
    )


def test_files_and_input_are_delivered_where_the_contract_says() -> None:
    files = (InputFile("a.txt", b"a"), InputFile("bin/run", b"r", executable=True))
    request = ExecutionRequest("acme/tool", files=files, input_json=b"{}", collect=("*.csv",))
    call = plan(request=request, entrypoint=replace(ENTRYPOINT, outputs={"report": "*.pdf"}), stdin=b"in")
    job = job_for(call, "exe_1", {})
    assert [(d.root, d.name, d.content, d.mode) for d in job.files] == [
        ("workspace", "a.txt", b"a", 0o644),
        ("workspace", "bin/run", b"r", 0o755),
        ("input", "input.json", b"{}", 0o444),
    ]
    assert (job.collect, job.stdin) == (("*.csv", "*.pdf"), b"in")


class Sent:
    """A channel that keeps what is written to it."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []

    async def write(self, data: bytes) -> None:
        self.frames.append(data)


async def test_a_job_as_frames_has_every_key_and_each_files_bytes_in_chunks() -> None:
    content = bytes(range(256)) * 3000
    request = ExecutionRequest("acme/tool", files=(InputFile("big", content), InputFile("empty", b"")))
    limits = Limits(open_files=77, disk_bytes=1 << 20, wall_ns=5)
    sent = Sent()
    await send_job(sent, job_for(plan(request=request, limits=limits), "exe_1", {}))
    parsed = [(*frames.parse_header(frame[: frames.HEADER.size]), frame[frames.HEADER.size :]) for frame in sent.frames]
    assert all(length == len(payload) for _, length, payload in parsed)
    told = json.loads(parsed[0][2])
    assert set(told) == set(frames.JOB_KEYS)
    assert told["rlimits"] == {"nofile": 77, "fsize": 1 << 20, "core": 0}
    assert (told["deadline_ns"], told["stdin"]) == (5, False)
    assert [kind for kind, _, _ in parsed[1:]] == [frames.FILE, *[frames.DATA] * 3, frames.FILE]
    assert b"".join(payload for kind, _, payload in parsed if kind == frames.DATA) == content
    assert json.loads(parsed[-1][2])["size"] == 0


async def test_uploads_are_sent_from_disk_as_what_they_stand_for(tmp_path: Path) -> None:
    content = bytes(range(256)) * 9000
    (tmp_path / "held").write_bytes(content)
    held = {"sha256:a": StoredContent(tmp_path / "held", len(content))}
    files = (InputFile("data/big", executable=True, upload="sha256:a"), InputFile("small", b"s"))
    request = ExecutionRequest("acme/tool", files=files, input_upload="sha256:a", stdin_upload="sha256:a")
    call = plan(request=request, stdin_upload="sha256:a", uploads={"sha256:a": len(content)})
    assert call.input_bytes == 3 * len(content) + 1
    job = job_for(call, "exe_1", {}, held)
    assert [(d.root, d.name, d.mode) for d in job.files] == [
        ("workspace", "data/big", 0o755),
        ("workspace", "small", 0o644),
        ("input", "input.json", 0o444),
    ]
    assert job.has_stdin
    sent = Sent()
    await send_job(sent, job)
    await send_stdin(sent, job)
    assert max(map(len, sent.frames)) == frames.HEADER.size + frames.CHUNK_BYTES
    by_kind = {
        kind: b"".join(frame[frames.HEADER.size :] for frame in sent.frames if frame[0] == kind)
        for kind in (frames.DATA, frames.STDIN)
    }
    assert by_kind == {frames.DATA: content + b"s" + content, frames.STDIN: content}
    assert sent.frames[-1][0] == frames.STDIN_EOF


async def test_an_upload_that_is_cut_short_on_disk_is_a_fault_and_never_a_shorter_input(tmp_path: Path) -> None:
    (tmp_path / "held").write_bytes(b"half")
    whole = StoredContent(tmp_path / "held", 8)
    call = replace(job_for(plan(), "exe_1", {}), stdin=whole, files=(Delivery("workspace", "x", whole),))
    for send in (send_job, send_stdin):
        with pytest.raises(Fault, match="ended 4 bytes early"):
            await send(Sent(), call)
    call = replace(call, stdin=StoredContent(tmp_path / "gone", 8))
    with pytest.raises(Fault, match="can't be read"):
        await send_stdin(Sent(), call)


@pytest.mark.parametrize(
    ("script", "module", "working_dir", "folder"),
    [
        ("scripts/run.py", "scripts.run", WorkingDir.WORKSPACE, "/skill"),
        ("lib/radar/__main__.py", "radar", WorkingDir.WORKSPACE, "/skill/lib"),
        ("scripts/run.py", "scripts.run", WorkingDir.SKILL, "/workspace"),
    ],
)
def test_a_script_that_is_a_module_is_found_from_above_its_package(
    script: str, module: str, working_dir: WorkingDir, folder: str
) -> None:
    entrypoint = entry(command=("python3", "-m", module), script=script)
    job = job_for(plan(entrypoint=entrypoint, working_dir=working_dir), "exe_1", {})
    assert (job.kind, job.argv) == ("exec", ("python3", "-m", module))
    assert job.env["PYTHONPATH"] == folder
