"""What a caller sees of a running call, as it happens; what it can give to one; and what a Skill can't pretend."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import textwrap
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest

from e2e.gateway import Gateway
from e2e.lab import NODE_FILES, SMALL, publish, run, spec, until
from sandbox_fixtures import image
from skillcell.client import CallResult, SkillcellClient
from skillcell.core import events
from skillcell.core.events import Log, Output, Progress, Stderr, Stdout
from skillcell.core.types import MEBIBYTE, SECOND_NS, InputFile, Limits, Outcome, WorkingDir
from skillcell.v1 import execution_pb2 as pb
from skillcell.v1 import execution_pb2_grpc


async def test_output_arrives_while_the_skill_runs(client: SkillcellClient) -> None:
    code = "import time; print('first', flush=True); time.sleep(0.7); print('second')"
    arrived = {}
    async with aclosing(client.execute("dev/lab", **spec(code))) as stream:
        async for event in stream:
            if isinstance(event.kind, Stdout):
                arrived[event.kind.data] = time.monotonic()
    assert arrived[b"second\n"] - arrived[b"first\n"] > 0.5


async def test_a_live_call_answers_its_stdin_and_its_signals(gateway: Gateway) -> None:
    code = """
    import os, signal
    def bye(number, frame):
        os.write(1, b'bye\\n')
        os._exit(4)
    signal.signal(signal.SIGUSR1, bye)
    print('ready', flush=True)
    print(sys.stdin.readline().upper(), end='', flush=True)
    signal.pause()
    """
    to_send: asyncio.Queue[pb.ExecuteInteractiveRequest | None] = asyncio.Queue()

    async def requests() -> AsyncIterator[pb.ExecuteInteractiveRequest]:
        while (request := await to_send.get()) is not None:
            yield request

    start = pb.ExecuteInteractiveRequest()
    start.start.spec.skill, start.start.spec.entrypoint = "dev/lab", "run"
    start.start.spec.args.append(textwrap.dedent(code))
    to_send.put_nowait(start)
    said = b""
    async with gateway.channel() as channel:
        call = execution_pb2_grpc.ExecutionServiceStub(channel).ExecuteInteractive(
            requests(), metadata=gateway.credentials
        )
        async for answer in call:
            event = answer.event
            said += event.stdout.data
            if event.stdout.data == b"ready\n":
                to_send.put_nowait(pb.ExecuteInteractiveRequest(stdin=pb.StdinChunk(data=b"hello\n")))
            elif event.stdout.data == b"HELLO\n":
                to_send.put_nowait(pb.ExecuteInteractiveRequest(signal=signal.SIGUSR1))
        to_send.put_nowait(None)
    assert said == b"ready\nHELLO\nbye\n"
    assert event.completed.exit_code == 4


async def test_a_large_stdin_arrives_whole(client: SkillcellClient) -> None:
    code = "print(sys.stdin.read().upper())"
    result = await run(client, code, stdin=b"x" * 300_000)
    assert result.stdout == b"X" * 300_000 + b"\n"


async def test_a_python_function_tells_log_progress_output_and_artifact(client: SkillcellClient) -> None:
    result = await _events(client, "plain", {"a": "é"})
    assert [kind for kind in result if isinstance(kind, Log)] == [Log("warning", "careful", {"rows": 3})]
    assert [kind for kind in result if isinstance(kind, Progress)] == [Progress(0.25, "a quarter")]
    assert [json.loads(kind.json) for kind in result if isinstance(kind, Output)] == [{"got": {"a": "é"}}]
    (artifact,) = [kind for kind in result if isinstance(kind, events.Artifact)]
    assert (artifact.name, artifact.size_bytes) == ("deep/er/made.txt", 4)
    assert artifact.sha256 == hashlib.sha256(b"made").hexdigest()
    assert b"".join(kind.data for kind in result if isinstance(kind, Stdout)) == b"on stdout\n"


async def test_coroutines_and_generators_are_functions_too(client: SkillcellClient) -> None:
    for entrypoint, given, outputs, steps in (
        ("waits", [1], [[1]], 1),
        ("yields", None, [0, 1, 2, "last"], 3),
        ("streams", None, [{"n": 0}, {"n": 1}, {"n": 2}], 0),
    ):
        seen = await _events(client, entrypoint, given)
        assert [json.loads(kind.json) for kind in seen if isinstance(kind, Output)] == outputs, entrypoint
        assert sum(isinstance(kind, Progress) for kind in seen) == steps, entrypoint


async def _events(client: SkillcellClient, entrypoint: str, given: object) -> list[object]:
    stream = client.execute("dev/lab", entrypoint=entrypoint, input=given, limits=SMALL)
    placed = [event async for event in stream]
    assert [event.sequence for event in placed] == list(range(1, len(placed) + 1))
    assert isinstance(placed[-1].kind, events.Completed)
    assert placed[-1].kind.outcome is Outcome.SUCCEEDED, placed[-1].kind.message
    return [event.kind for event in placed]


@pytest.mark.timeout(600)  # the first run ever builds the image
async def test_a_node_function_tells_the_same(client: SkillcellClient, gateway: Gateway, tmp_path: Path) -> None:
    image("node-20")
    await publish(client, tmp_path / "node-lab", NODE_FILES, "dev/node-lab")
    result = await client.call("dev/node-lab", input={"a": 1})
    assert result.ok, result.stderr
    assert result.outputs == ({"n": 1}, {"got": {"a": 1}})
    assert (result.logs, result.stdout) == ((Log("warning", "careful", {"rows": 3}),), b"on stdout\n")
    assert [artifact.name for artifact in result.artifacts] == ["deep/made.txt"]


async def test_a_script_tells_by_its_events_file_and_result(client: SkillcellClient) -> None:
    code = """
    import json, os
    with open(os.environ['SKILLCELL_EVENTS'], 'w') as file:
        file.write(json.dumps({'type': 'progress', 'fraction': 0.5, 'message': 'half'}) + '\\n')
        file.write(json.dumps({'type': 'log', 'level': 'info', 'message': 'm', 'fields': {}}) + '\\n')
        file.write(json.dumps({'type': 'output', 'value': [1]}) + '\\n')
    open('/output/result.json', 'w').write('{"end": true}')
    """
    result = await run(client, code)
    assert result.outputs == ([1], {"end": True})
    assert result.logs == (Log("info", "m", {}),)


async def test_stdout_modes_make_outputs(client: SkillcellClient) -> None:
    one = await run(client, "print('{\"n\": 1}')", entrypoint="one")
    many = await run(client, "print('1\\n\\n2\\n3', end='')", entrypoint="lines")
    assert (one.ok, one.outputs) == (True, ({"n": 1},))
    assert (many.ok, many.outputs) == (True, (1, 2, 3))
    assert many.stdout == b"1\n\n2\n3"


async def test_artifacts_are_regular_files_and_each_other_one_is_refused(client: SkillcellClient) -> None:
    code = """
    import os
    os.makedirs('/output/a/b')
    open('/output/a/b/c é.bin', 'wb').write(bytes(range(256)) * 4000)
    os.symlink('/etc/passwd', '/output/link')
    os.mkfifo('/output/fifo')
    """
    result = await run(client, code)
    assert result.ok
    (artifact,) = result.artifacts
    got = b"".join([chunk async for chunk in client.get_artifact(result.execution_id, artifact.name)])
    assert (artifact.name, got) == ("a/b/c é.bin", bytes(range(256)) * 4000)
    assert {refused.name for refused in result.refused_artifacts} == {"link", "fifo"}
    rest = b"".join([c async for c in client.get_artifact(result.execution_id, artifact.name, offset=1_000_000)])
    assert rest == got[1_000_000:]


async def test_changed_files_are_collected_by_glob_and_by_manifest(client: SkillcellClient) -> None:
    code = """
    import os
    os.mkdir('pages')
    open('pages/1.html', 'w').write('one')
    open('notes.md', 'w').write('notes')
    open('given.md', 'a').write('!')
    """
    files = {"given.md": b"given", "kept.md": b"kept"}
    result = await run(client, code, entrypoint="pages", collect=["*.md"], files=files)
    assert {artifact.name for artifact in result.artifacts} == {"pages/1.html", "notes.md", "given.md"}


async def test_a_call_gets_all_that_it_was_given(client: SkillcellClient) -> None:
    code = """
    import json, os
    print(json.dumps({
        'args': sys.argv[2:], 'env': os.environ['GREETING'], 'stdin': sys.stdin.read(), 'cwd': os.getcwd(),
        'file': open('in/a.txt').read(), 'mode': os.stat('in/tool').st_mode & 0o777,
        'input': json.load(open(os.environ['SKILLCELL_INPUT'])), 'home': os.access(os.environ['HOME'], os.W_OK),
        'foreign': [name for name in os.environ if name in ('XDG_STATE_HOME', 'PYTEST_CURRENT_TEST')],
        'skill': os.access(os.environ['SKILLCELL_SKILL_DIR'] + '/SKILL.md', os.W_OK),
    }))
    """
    result = await run(
        client,
        code,
        "-v",
        "a b",
        env={"GREETING": "hé"},
        stdin=b"from stdin",
        files=[InputFile("in/a.txt", b"text"), InputFile("in/tool", b"#!", executable=True)],
        input={"x": [1]},
    )
    said = json.loads(result.stdout)
    assert said["mode"] & 0o100
    del said["mode"]
    assert said == {
        "args": ["-v", "a b"],
        "env": "hé",
        "stdin": "from stdin",
        "cwd": "/workspace",
        "file": "text",
        "input": {"x": [1]},
        "home": True,
        "foreign": [],
        "skill": False,
    }


async def test_a_script_may_write_beside_itself_in_its_own_copy(client: SkillcellClient) -> None:
    code = "open('scripts/made.py', 'w').write('x = 1'); print(open('SKILL.md').readline(), end='')"
    by_manifest = await run(client, code, entrypoint="beside")
    by_caller = await run(client, code, working_dir=WorkingDir.SKILL)
    assert (by_manifest.ok, by_manifest.stdout) == (True, b"---\n")
    assert (by_caller.ok, by_caller.stdout) == (True, b"---\n")


IMITATIONS = """
import json, os, struct
done = json.dumps({'type': 'completed', 'outcome': 'OUT_OF_MEMORY', 'usage': {'cpu_total_ns': 1}}).encode()
exited = json.dumps({'code': 99, 'signal': None, 'disk': {}}).encode()
frames = b''.join(struct.pack('>BI', kind, len(body)) + body for kind in range(64, 76) for body in (exited, done, b''))
os.write(1, frames)
os.write(2, frames)
with open(os.environ['SKILLCELL_EVENTS'], 'wb') as file:
    file.write(frames.replace(b'\\n', b'') + b'\\n' + done + b'\\n' + exited + b'\\n')
for fd in range(3, 64):
    try:
        os.write(fd, frames)
    except OSError:
        pass
sys.exit(3)
"""


async def test_imitations_of_frames_and_events_change_neither_outcome_nor_usage(client: SkillcellClient) -> None:
    result = await run(client, IMITATIONS)
    assert (result.outcome, result.exit_code) == (Outcome.FAILED, 3)
    assert result.outputs == ()
    assert result.usage.cpu_total_ns > 1_000_000
    (record,) = (await client.usage.records(execution_id=result.execution_id)).items
    assert record == result.usage


async def test_a_gigabyte_passes_exactly_and_the_gateway_stays_small(oci: Gateway, oci_client: SkillcellClient) -> None:
    await run(oci_client, "import os\nfor _ in range(200): os.write(1, bytes(65536))")
    before = oci.resident_bytes()
    count, digest, most = 0, hashlib.sha256(), 0
    code = "import os; block = bytes(range(256)) * 1024\nfor _ in range(4096):\n  os.write(1, block)"
    limits = replace(SMALL, output_bytes=2 << 30, wall_ns=100 * SECOND_NS)
    async with aclosing(oci_client.execute("dev/lab", **spec(code, limits=limits))) as stream:
        async for event in stream:
            if isinstance(event.kind, Stdout):
                digest.update(event.kind.data)
                count += len(event.kind.data)
                if event.sequence % 256 == 0:
                    most = max(most, oci.resident_bytes())
            elif isinstance(event.kind, events.Completed):
                assert event.kind.outcome is Outcome.SUCCEEDED, event.kind.message
                assert event.kind.usage.output_bytes == 1 << 30
    assert count == 1 << 30
    expected, block = hashlib.sha256(), bytes(range(256)) * 4096
    for _ in range(1024):
        expected.update(block)
    assert digest.digest() == expected.digest()
    assert most - before < 60 * MEBIBYTE


FLOOD = "import os\nwhile True: os.write(1, bytes(65536))"


async def test_a_slow_reader_holds_back_its_own_sandbox_alone(oci: Gateway, oci_client: SkillcellClient) -> None:
    limits = replace(SMALL, wall_ns=4 * SECOND_NS, output_bytes=8 << 30)
    before = oci.resident_bytes()
    async with aclosing(oci_client.execute("dev/lab", **spec(FLOOD, limits=limits))) as slow:
        seen = await until(slow, Stdout)
        async with oci.client() as other:
            began = time.monotonic()
            for _ in range(5):
                assert (await run(other, "print(1)")).ok
            each = (time.monotonic() - began) / 5
            execution = await other.get(seen[0].execution_id)
            while execution.completed is None:
                await asyncio.sleep(0.1)
                execution = await other.get(seen[0].execution_id)
    assert each < 1.0
    assert execution.completed is not None
    assert execution.completed.outcome is Outcome.TIMED_OUT
    usage = execution.completed.usage
    assert 4 * SECOND_NS <= usage.times.run_ns < 6 * SECOND_NS
    assert usage.times.stalled_ns > 2 * SECOND_NS
    assert usage.output_bytes < 256 * MEBIBYTE
    assert oci.resident_bytes() - before < 60 * MEBIBYTE


async def test_a_detached_flood_ends_at_the_kept_events_bound(oci_client: SkillcellClient) -> None:
    started = await oci_client.start(
        "dev/lab", **spec(FLOOD, limits=replace(SMALL, output_bytes=Limits().output_bytes * 4))
    )
    async with asyncio.timeout(30):
        while (execution := await oci_client.get(started.id)).completed is None:
            await asyncio.sleep(0.05)
    assert execution.completed.outcome is Outcome.OUTPUT_LIMIT_EXCEEDED


async def test_stderr_and_stdout_are_told_apart(client: SkillcellClient) -> None:
    result: CallResult = await run(client, "import os; os.write(2, b'err'); os.write(1, b'out')")
    assert (result.stdout, result.stderr) == (b"out", b"err")
    kinds = [event.kind async for event in client.watch(result.execution_id)]
    assert any(isinstance(kind, Stderr) for kind in kinds)
    assert os.path.sep not in result.execution_id
