"""The real console script as a process against a scripted gateway on a real socket."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import pty
import signal
import socket
import stat
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from scripted_gateway import (
    ARTIFACT,
    DIGEST,
    EXECUTION,
    KEY,
    ScriptedGateway,
    completed,
    scripted_gateway,
    started,
)
from skillcell.cli.present import json_line, printable
from skillcell.core import events, types
from skillcell.core.errors import Fault, FaultKind, FieldViolation, QuotaViolation
from skillcell.core.skills import Finding, Severity
from skillcell.v1 import execution_pb2 as ex
from skillcell.v1 import registry_pb2 as rg
from skillcell.v1 import usage_pb2 as us

SKILLCELL = str(Path(sys.executable).parent / "skillcell")


@dataclass
class Done:
    code: int
    stdout: bytes
    stderr: bytes

    @property
    def out(self) -> str:
        return self.stdout.decode()

    @property
    def err(self) -> str:
        return self.stderr.decode("utf-8", "replace")

    def json(self) -> Any:
        return json.loads(self.stdout)


class Cli:
    """Runs `skillcell` with a home of its own."""

    def __init__(self, home: Path, address: str) -> None:
        self.home = home
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "XDG_STATE_HOME": str(home / "state"),
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            "TERM": "xterm",
        }
        if address:
            self.env |= {"SKILLCELL_ADDRESS": address, "SKILLCELL_API_KEY": KEY}

    async def start(self, *arguments: str, **streams: Any) -> asyncio.subprocess.Process:
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), asyncio.subprocess.PIPE)
        return await asyncio.create_subprocess_exec(
            SKILLCELL, *arguments, env=self.env, cwd=self.home, **{**pipes, **streams}
        )

    async def __call__(self, *arguments: str, stdin: bytes = b"") -> Done:
        process = await self.start(*arguments)
        out, err = await asyncio.wait_for(process.communicate(stdin), 60)
        assert b"Traceback" not in err, err.decode()
        return Done(process.returncode or 0, out, err)


@pytest.fixture
async def gateway() -> AsyncIterator[ScriptedGateway]:
    async with scripted_gateway() as script:
        yield script


@pytest.fixture
def cli(gateway: ScriptedGateway, tmp_path: Path) -> Cli:
    return Cli(tmp_path, gateway.address)


async def test_a_call_passes_the_skills_bytes_through_and_keeps_the_rest_on_stderr(cli: Cli) -> None:
    done = await cli("call", "acme/tool")
    assert done.code == 0
    assert done.stdout == b'hello\n{"answer": 42}\n'
    assert done.stderr.startswith(b"\xffwarn\ninfo: working n=1\n")
    assert "artifact  out/report.txt  6 B" in done.err
    assert "--out DIR saves artifacts" in done.err
    assert "outcome   SUCCEEDED" in done.err
    assert "run       40.4 ms, billed 41 ms" in done.err
    assert "memory    peak 9.0 MiB of 256.0 MiB" in done.err


async def test_json_is_one_object_and_nothing_else(cli: Cli, gateway: ScriptedGateway) -> None:
    gateway.events[2] = events.Stderr(b"\xffwarn")
    done = await cli("call", "acme/tool", "--json")
    assert done.stderr == b""
    found = done.json()
    assert found["outcome"] == "SUCCEEDED"
    assert found["exit_code"] == 0
    assert found["signal"] is None
    assert found["stdout"] == "hello\n"
    assert "stdout_base64" not in found
    assert base64.b64decode(found["stderr_base64"]) == b"\xffwarn"
    assert (found["output"], found["outputs"]) == ({"answer": 42}, [{"answer": 42}])
    (artifact,) = found["artifacts"]
    assert (artifact["name"], artifact["size_bytes"], artifact["media_type"]) == ("out/report.txt", 6, "text/plain")
    assert artifact["path"] is None
    assert found["refused_artifacts"] == []
    assert found["usage"]["billed_ms"] == 41
    assert found["usage"]["memory_limit_byte_ns"] == str((256 << 20) * 40_400_000)
    assert found["execution_id"] == EXECUTION
    assert (found["fault"], found["billable"], found["retryable"]) == ("NONE", True, False)
    assert found["events"]["stdout"] == 1
    assert found["logs"] == [{"level": "info", "message": "working", "fields": {"n": 1}}]


async def test_artifacts_are_saved_by_name(cli: Cli) -> None:
    done = await cli("call", "acme/tool", "--out", "results")
    assert (cli.home / "results" / "out" / "report.txt").read_bytes() == ARTIFACT
    assert "→ results/out/report.txt" in done.err
    found = await cli("call", "acme/tool", "--out", "results", "--json")
    assert found.json()["artifacts"][0]["path"] == "results/out/report.txt"


@pytest.mark.parametrize("name", ["../escaped", "/tmp/escaped", "a/../../escaped", "link/escaped"])
async def test_an_artifact_name_that_escapes_is_refused(name: str, cli: Cli, gateway: ScriptedGateway) -> None:
    (cli.home / "outside").mkdir()
    (cli.home / "results").mkdir()
    (cli.home / "results" / "link").symlink_to(cli.home / "outside")
    gateway.events[6] = events.Artifact(name, 6, "00" * 32, "text/plain")
    done = await cli("call", "acme/tool", "--out", "results")
    assert done.code == 125
    assert "is not saved" in done.err
    assert "outcome   SUCCEEDED" in done.err
    assert not list(cli.home.rglob("escaped"))


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (completed(exit_code=3), 3),
        (completed(types.Outcome.FAILED, exit_code=7), 7),
        (completed(types.Outcome.FAILED, exit_code=None), 1),
        (completed(types.Outcome.SIGNALED, exit_code=None, signal=11), 139),
        (completed(types.Outcome.TIMED_OUT, exit_code=None), 124),
        (completed(types.Outcome.OUT_OF_MEMORY, exit_code=1), 137),
        (completed(types.Outcome.CPU_LIMIT_EXCEEDED), 122),
        (completed(types.Outcome.OUTPUT_LIMIT_EXCEEDED), 121),
        (completed(types.Outcome.DISK_LIMIT_EXCEEDED, exit_code=1), 120),
        (completed(types.Outcome.INVALID_OUTPUT), 123),
        (completed(types.Outcome.CANCELED), 130),
        (completed(types.Outcome.PLATFORM_ERROR), 125),
        (completed(types.Outcome.NEVER_RAN), 125),
    ],
    ids=lambda value: value.outcome.value if isinstance(value, events.Completed) else str(value),
)
async def test_the_exit_code_tells_the_outcome(
    end: events.Completed, code: int, cli: Cli, gateway: ScriptedGateway
) -> None:
    gateway.events = [started(), end]
    assert (await cli("call", "acme/tool", "--quiet")).code == code


async def test_an_outcome_is_explained(cli: Cli, gateway: ScriptedGateway) -> None:
    evidence = types.Evidence("wall_ns", 2_000_000_000, 2_001_000_000, "ns", "gateway clock")
    end = completed(types.Outcome.TIMED_OUT, exit_code=None, message="ran over 2 s", evidence=evidence, retryable=True)
    gateway.events = [started(), end]
    done = await cli("call", "acme/tool")
    assert "TIMED_OUT: ran over 2 s (fault: skill, may be retried)" in done.err
    found = (await cli("call", "acme/tool", "--json")).json()
    assert found["evidence"]["observed"] == 2_001_000_000


async def test_every_option_of_a_call_reaches_the_gateway(cli: Cli, gateway: ScriptedGateway) -> None:
    (cli.home / "data").mkdir()
    (cli.home / "data" / "a.csv").write_text("1")
    (cli.home / "data" / "sub").mkdir()
    (cli.home / "data" / "sub" / "b.csv").write_text("2")
    (cli.home / "in.json").write_text('{"n": 12345678901234567890}')
    cli.env["PASSED"] = "on"
    identity = "123e4567-e89b-12d3-a456-426614174000"
    await cli(
        *("call", "acme/tool@1.0.0", "--entrypoint", "run", "--input", "@in.json", "--stdin", "-"),
        *("--file", "data/a.csv:renamed/x.csv", "--file", "data", "--env", "A=b=c", "--env", "PASSED"),
        *("--cwd", "skill", "--timeout", "1.5", "--cpu-time", "2s", "--memory", "256Mi", "--cpu", "0.5"),
        *("--pids", "9", "--disk", "1Mi", "--output-limit", "2Mi", "--isolation", "gvisor", "--collect", "*.md"),
        *("--label", "team=x", "--request-id", identity, "--priority", "-3", "--", "-v", "--flag", "é"),
        stdin=b"typed",
    )
    (request,) = gateway.requests(ex.ExecuteRequest)
    spec = request.spec
    assert request.request_id == identity
    assert (spec.skill, spec.entrypoint) == ("acme/tool@1.0.0", "run")
    assert spec.input_json == b'{"n": 12345678901234567890}'
    assert spec.stdin == b"typed"
    assert {file.name: file.content for file in spec.files} == {
        "renamed/x.csv": b"1",
        "data/a.csv": b"1",
        "data/sub/b.csv": b"2",
    }
    assert dict(spec.env) == {"A": "b=c", "PASSED": "on"}
    assert list(spec.args) == ["-v", "--flag", "é"]
    limits = spec.limits
    assert (limits.timeout.ToMilliseconds(), limits.cpu_time.ToMilliseconds()) == (1500, 2000)
    assert (limits.memory_bytes, limits.milli_cpus, limits.pids) == (256 << 20, 500, 9)
    assert (limits.disk_bytes, limits.output_bytes) == (1 << 20, 2 << 20)
    assert (spec.isolation, spec.working_dir, spec.priority) == (2, 2, -3)
    assert (list(spec.collect), dict(spec.labels)) == (["*.md"], {"team": "x"})
    assert gateway.metadata["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--input", "{bad"], "--input is not JSON"),
        (["--input", "@missing.json"], "missing.json"),
        (["--memory", "lots"], "--memory 'lots': is not a quantity"),
        (["--cpu", "0"], "--cpu '0': must be more than zero"),
        (["--timeout", "-1"], "--timeout '-1'"),
        (["--file", "missing"], "--file 'missing': there is no such file"),
        (["--env", "=x"], "--env '=x': is not K=V"),
        (["--isolation", "none"], "none"),
    ],
)
async def test_a_bad_option_is_named_before_anything_is_sent(
    arguments: list[str], said: str, cli: Cli, gateway: ScriptedGateway
) -> None:
    done = await cli("call", "acme/tool", *arguments)
    assert done.code == 2
    assert said in " ".join(done.err.split())
    assert not gateway.seen


async def test_no_gateway_is_one_line_that_says_how_to_start_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        cli = Cli(tmp_path, address)
        for command in (["call", "acme/tool"], ["skills"], ["usage"], ["executions", "list"]):
            done = await cli(*command)
            assert done.code == 125
            said = f"no gateway answers at {address}: start one with `skillcell serve`, or name another with --server"
            assert done.err == f"error: {said}\n"


async def test_a_refusal_says_field_quota_and_when_to_retry(cli: Cli, gateway: ScriptedGateway) -> None:
    gateway.fault = Fault(
        FaultKind.RESOURCE_EXHAUSTED,
        "QUOTA_EXCEEDED",
        "too many calls",
        violations=(FieldViolation("spec.limits.memory_bytes", "600 is above 500"),),
        quotas=(QuotaViolation("concurrent", 5, 5, "tenant:dev"),),
        retry_after=timedelta(seconds=1.5),
    )
    done = await cli("call", "acme/tool")
    assert done.code == 125
    assert done.stdout == b""
    assert done.err == (
        "error: too many calls\n"
        "  spec.limits.memory_bytes: 600 is above 500\n"
        "  quota of tenant:dev: concurrent: 5 of 5 in use\n"
        "  try again in 1.5 s\n"
        "  (RESOURCE_EXHAUSTED / QUOTA_EXCEEDED)\n"
    )
    found = (await cli("call", "acme/tool", "--json")).json()
    assert found["error"]["reason"] == "QUOTA_EXCEEDED"
    assert found["error"]["retry_after_seconds"] == 1.5


async def test_ctrl_c_cancels_the_call_and_still_reports_it(cli: Cli, gateway: ScriptedGateway) -> None:
    gateway.hold_at = 3
    process = await cli.start("call", "acme/tool")
    await gateway.reached_hold.wait()
    assert process.stdout is not None
    assert await process.stdout.readline() == b"hello\n"
    process.send_signal(signal.SIGINT)
    _, err = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 130
    assert gateway.requests(ex.CancelExecutionRequest)[0].execution_id == EXECUTION
    assert b"outcome   CANCELED" in err


async def test_a_second_ctrl_c_leaves_at_once(cli: Cli, gateway: ScriptedGateway) -> None:
    gateway.hold_at, gateway.cancel_hangs = 3, True
    process = await cli.start("call", "acme/tool")
    await gateway.reached_hold.wait()
    assert process.stdout is not None
    await process.stdout.readline()
    process.send_signal(signal.SIGINT)
    await gateway.cancel_seen.wait()
    process.send_signal(signal.SIGINT)
    assert await asyncio.wait_for(process.wait(), 5) == 130


async def test_a_reader_that_goes_away_cancels_the_call(cli: Cli, gateway: ScriptedGateway) -> None:
    gateway.events = [started(), *[events.Stdout(b"x" * 65536)] * 64, completed()]
    gateway.hold_at = 66
    read, write = os.pipe()
    process = await cli.start("call", "acme/tool", stdout=write)
    os.close(write)
    os.close(read)
    assert await asyncio.wait_for(process.wait(), 30) == 141
    assert gateway.canceled.is_set()


async def test_a_detached_call_prints_its_id(cli: Cli) -> None:
    done = await cli("call", "acme/tool", "--detach")
    assert done.out == f"{EXECUTION}\n"
    assert f"skillcell watch {EXECUTION}" in done.err
    assert (await cli("call", "acme/tool", "--detach", "--json")).json()["execution_id"] == EXECUTION


async def test_json_output_that_is_stdout_is_printed_once(cli: Cli, gateway: ScriptedGateway) -> None:
    gateway.events = [started(), events.Stdout(b'{"a": 1}\n'), events.Output(b'{"a": 1}'), completed()]
    assert (await cli("call", "acme/tool", "-q")).stdout == b'{"a": 1}\n'
    gateway.events = [started(), events.Stdout(b"no newline"), events.Output(b'{"a": 1}'), completed()]
    assert (await cli("call", "acme/tool", "-q")).stdout == b'no newline\n{"a": 1}\n'


async def test_a_terminal_sees_a_progress_bar_and_a_pipe_does_not(cli: Cli, gateway: ScriptedGateway) -> None:
    assert b"half" not in (await cli("call", "acme/tool")).stderr
    master, slave = pty.openpty()
    process = await cli.start("call", "acme/tool", stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    shown = await asyncio.to_thread(_read_all, master)
    await process.wait()
    assert "━" * 12 + "╌" * 12 + "  50% half" in shown
    assert "output" in shown
    assert '"answer": 42' in shown
    assert shown.rindex("half") < shown.rindex("outcome")


def _read_all(terminal: int) -> str:
    data = b""
    while True:
        try:
            more = os.read(terminal, 65536)
        except OSError:
            break
        if not more:
            break
        data += more
    os.close(terminal)
    return data.decode("utf-8", "replace")


async def test_text_of_a_stranger_can_not_steer_the_terminal(cli: Cli, gateway: ScriptedGateway) -> None:
    gateway.events = [
        started(),
        events.Log("info", "a\x1b[2Jb"),
        events.ArtifactRefused("x\x1b]0;title\x07", "link"),
        completed(types.Outcome.FAILED, exit_code=1, message="m\x1b[31m\nline"),
    ]
    done = await cli("call", "acme/tool")
    assert b"\x1b" not in done.stderr
    assert b"\x07" not in done.stderr
    for shown in (rb"a\x1b[2Jb", rb"x\x1b]0;title\x07", rb"m\x1b[31m\nline"):
        assert shown in done.stderr


async def test_the_skills_own_bytes_pass_as_they_are(cli: Cli, gateway: ScriptedGateway) -> None:
    """As with every tool that runs another: colors and cursors are the Skill's to use on its own stdout and stderr."""
    gateway.events = [
        started(),
        events.Stdout(b"\x1b[32mgreen\x1b[0m\n"),
        events.Stderr(b"\x1b[31mred\x1b[0m\n"),
        completed(types.Outcome.SUCCEEDED),
    ]
    done = await cli("call", "acme/tool")
    assert done.stdout == b"\x1b[32mgreen\x1b[0m\n"
    assert b"\x1b[31mred\x1b[0m\n" in done.stderr


@pytest.mark.parametrize(
    "text", ["a\x1b[2Jb", "c1 \x9b2J", "\x7f", "right to left \u202egpj.exe", "\u2028", "\U000e0001"]
)
def test_what_could_steer_a_terminal_is_shown_as_an_escape(text: str) -> None:
    assert printable(text).isprintable()
    assert len(printable(text)) > len(text)
    written = json_line({"text": text}, indent=2)
    assert all(character.isprintable() or character == "\n" for character in written)
    assert json.loads(written) == {"text": text}


@pytest.mark.parametrize("text", ["plain", "Größe", "日本\u3000語", "1\xa0000", "🙂", ""])
def test_letters_and_spaces_of_every_script_are_shown_as_they_are(text: str) -> None:
    assert printable(text) == text
    assert json.loads(json_line([text])) == [text]


def skill_folder(root: Path) -> Path:
    (root / "scripts").mkdir(parents=True)
    (root / "SKILL.md").write_text("---\nname: tool\n---\n")
    return root


async def test_publish_prints_the_reference_and_the_warnings(cli: Cli, gateway: ScriptedGateway) -> None:
    skill_folder(cli.home / "tool")
    (cli.home / "over.yaml").write_text("kind: SkillRuntime")
    gateway.findings = (Finding(Severity.WARNING, "name-differs", "folder is another", "SKILL.md", 2, 7),)
    done = await cli(
        *("publish", "tool", "--as", "acme/tool", "--version", "1.0.0", "--runtime", "over.yaml", "--lenient")
    )
    assert done.code == 0
    assert done.out == "acme/tool@1.0.0\n"
    assert "SKILL.md:2:7: warning name-differs folder is another\n" in done.err
    assert DIGEST in done.err
    assert "entrypoint scripts/run.py (default)" in done.err
    (header,) = gateway.requests(rg.SkillHeader)
    assert (header.skill, header.version, header.lenient) == ("acme/tool", "1.0.0", True)
    assert header.manifest_overlay == b"kind: SkillRuntime"
    found = (await cli("publish", "tool", "--json")).json()
    assert (found["created"], found["version"]["digest"]) == (True, DIGEST)


async def test_a_skill_that_is_not_valid_is_refused_line_by_line(cli: Cli, gateway: ScriptedGateway) -> None:
    skill_folder(cli.home / "tool")
    gateway.fault = Fault(
        FaultKind.INVALID_ARGUMENT,
        "SKILL_INVALID",
        "no",
        violations=(FieldViolation("SKILL.md:2:1", "name is missing [frontmatter-name]"),),
    )
    done = await cli("publish", "tool")
    assert done.code == 1
    assert done.err.startswith("SKILL.md:2:1: error frontmatter-name name is missing\n")


async def test_validate_prints_findings_as_compilers_do(cli: Cli, gateway: ScriptedGateway) -> None:
    skill_folder(cli.home / "tool")
    assert (await cli("validate", "tool")).code == 0
    gateway.findings = (
        Finding(Severity.ERROR, "frontmatter-name", "is missing", "SKILL.md", 2),
        Finding(Severity.NOTE, "no-license", "says nothing", ""),
    )
    done = await cli("validate", "tool")
    assert done.code == 1
    assert done.out == ("SKILL.md:2: error frontmatter-name is missing\npackage: note no-license says nothing\n")
    assert not (await cli("validate", "tool", "--json")).json()["valid"]


async def test_a_path_that_is_not_there_is_named(cli: Cli) -> None:
    done = await cli("publish", "missing")
    assert (done.code, done.err) == (1, "error: missing: there is no such folder or archive\n")


async def test_skills_are_listed_shown_aliased_yanked_and_downloaded(cli: Cli, gateway: ScriptedGateway) -> None:
    listed = await cli("skills")
    assert listed.out.splitlines()[0].split() == ["SKILL", "LATEST", "CALLABLE", "VISIBLE", "DESCRIPTION"]
    assert listed.out.splitlines()[1].split()[:3] == ["acme/tool", "1.0.0", "yes"]
    assert (await cli("skills", "list", "--json")).json()[0]["latest_version"] == "1.0.0"
    assert (await cli("skills", "list", "--search", "tool")).code == 0
    assert gateway.requests(rg.SearchSkillsRequest)[0].query == "tool"
    shown = await cli("skills", "show", "acme/tool")
    assert "acme/tool@1.0.0 (stable)" in shown.out
    assert "entrypoint scripts/run.py (default)  python" in shown.out
    assert "1.0.0" in (await cli("skills", "versions", "acme/tool")).out
    yanked = await cli("skills", "yank", "acme/tool", "1.0.0", "--reason", "broken")
    assert yanked.out == "acme/tool@1.0.0 yanked\n"
    assert (await cli("skills", "alias", "acme/tool", "stable", "1.0.0")).out == "acme/tool@stable -> 1.0.0\n"
    assert (await cli("skills", "alias", "acme/tool", "stable")).code == 2
    assert (await cli("skills", "download", "acme/tool")).out == "tool-1.0.0.tar.gz\n"
    assert (cli.home / "tool-1.0.0.tar.gz").read_bytes() == ARTIFACT


async def test_executions_are_listed_shown_watched_and_canceled(cli: Cli, gateway: ScriptedGateway) -> None:
    listed = await cli("executions", "list", "--outcome", "timed-out", "--label", "a=b", "--after", "2h")
    assert listed.out.splitlines()[1].split()[:2] == [EXECUTION, "acme/tool@1.0.0"]
    (asked,) = gateway.requests(ex.ListExecutionsRequest)
    assert list(asked.filter.outcomes) == [4]
    assert asked.filter.time.HasField("start")
    shown = await cli("executions", "show", EXECUTION)
    assert "outcome     SUCCEEDED" in shown.out
    assert (await cli("executions", "show", EXECUTION, "--json")).json()["completed"]["usage"]["sequence"] == 7
    watched = await cli("watch", EXECUTION)
    assert watched.stdout == b'hello\n{"answer": 42}\n'
    lines = (await cli("watch", EXECUTION, "--json")).out.splitlines()
    assert [json.loads(line)["kind"] for line in lines][-1] == "Completed"
    assert base64.b64decode(json.loads(lines[1])["data_base64"]) == b"hello\n"
    logs = await cli("logs", EXECUTION)
    assert (logs.stdout, logs.stderr) == (b"hello\n", b"\xffwarn\ninfo: working n=1\n")
    assert (await cli("cancel", EXECUTION, "--reason", "enough")).out == f"{EXECUTION} succeeded\n"
    assert (await cli("executions", "list", "--state", "odd")).code == 2


async def test_watch_exits_as_the_call_did(cli: Cli, gateway: ScriptedGateway) -> None:
    gateway.events = [started(), completed(types.Outcome.FAILED, exit_code=9)]
    assert (await cli("watch", EXECUTION)).code == 9


async def test_usage_is_listed_summed_and_verified(cli: Cli, gateway: ScriptedGateway) -> None:
    listed = await cli("usage")
    assert listed.out.splitlines()[1].split()[0] == "7"
    assert (await cli("usage", "list", "--json")).json()[0]["event_id"] == "evt_1"
    summed = await cli("usage", "summary", "--by", "skill,label:team")
    assert [line.split()[:3] for line in summed.out.splitlines()[1:]] == [
        ["acme/tool", "a", "3"],
        ["acme/tool", "b", "3"],
    ]
    assert list(gateway.requests(us.GetUsageSummaryRequest)[0].group_by_labels) == ["team"]
    assert (await cli("usage", "summary", "--by", "colour")).err.startswith("error: there is no dimension 'colour'")
    verified = await cli("usage", "verify")
    assert verified.code == 1
    assert "record 4: edited hash differs" in verified.out
    assert "NOT intact" in verified.out


async def test_a_server_given_before_the_command_counts_for_it(gateway: ScriptedGateway, tmp_path: Path) -> None:
    cli = Cli(tmp_path, "")
    done = await cli("--server", gateway.address, "--api-key", "sk_global", "executions", "list")
    assert done.code == 0
    assert gateway.metadata["authorization"] == "Bearer sk_global"
    assert (await cli("skills", "--server", gateway.address, "list")).code == 0


async def test_the_note_of_a_server_is_found_and_its_key_goes_nowhere_else(
    gateway: ScriptedGateway, tmp_path: Path
) -> None:
    cli = Cli(tmp_path, "")
    note = tmp_path / "state" / "skillcell" / "server.json"
    note.parent.mkdir(parents=True)
    note.write_text(json.dumps({"address": gateway.address, "api_key": "sk_noted", "metrics": "x"}))
    note.chmod(stat.S_IRUSR | stat.S_IWUSR)
    assert (await cli("skills")).code == 0
    assert gateway.metadata["authorization"] == "Bearer sk_noted"
    port = gateway.address.rpartition(":")[2]
    assert (await cli("skills", "--server", f"localhost:{port}")).code == 0
    assert "authorization" not in gateway.metadata


async def test_completion_names_skills_and_is_silent_without_a_gateway(cli: Cli, tmp_path: Path) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert "skillcell" in (await cli("completion", shell)).out
    cli.env |= {"_SKILLCELL_COMPLETE": "complete_bash", "COMP_WORDS": "skillcell call ac", "COMP_CWORD": "2"}
    assert (await cli()).out.split() == ["acme/tool"]
    cli.env["COMP_WORDS"] = "skillcell call acme/tool@"
    assert set((await cli()).out.split()) == {"acme/tool@1.0.0", "acme/tool@stable"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        cli.env["SKILLCELL_ADDRESS"] = f"127.0.0.1:{free.getsockname()[1]}"
        done = await cli()
        assert (done.out.strip(), done.err) == ("", "")


async def test_help_needs_neither_grpc_nor_a_gateway(cli: Cli) -> None:
    heavy = ["grpc", "rich.table", "pydantic", "google.protobuf", "sqlalchemy"]
    probe = f"""
import sys
sys.argv = ["skillcell", "--help"]
from skillcell.cli.main import main
try:
    main()
except SystemExit:
    print([name for name in {heavy} if name in sys.modules])
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", probe, env=cli.env, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert out.decode().splitlines()[-1] == "[]"
    assert "Usage: skillcell" in out.decode()


async def test_the_version_is_printed(cli: Cli) -> None:
    assert (await cli("version")).out.startswith("skillcell 0.")


async def test_upload_prints_the_digest_alone(cli: Cli, gateway: ScriptedGateway) -> None:
    data = b"shared" * 100
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    (cli.home / "input.bin").write_bytes(data)
    done = await cli("upload", "input.bin")
    assert (done.code, done.out) == (0, f"{digest}\n")
    assert "600 bytes, kept until 2026-11-22 10:20 UTC" in done.err
    assert gateway.uploads == {digest: data}
    assert (await cli("upload", "-", "--json", stdin=data)).json()["digest"] == digest
    missing = await cli("upload", "missing")
    assert missing.code == 2
    assert "'missing': No such file" in missing.err


async def test_a_call_sends_ahead_what_is_large_from_a_file_or_a_pipe(cli: Cli, gateway: ScriptedGateway) -> None:
    large = os.urandom(5 << 20)
    value = b'{"pad": "' + b"x" * (5 << 20) + b'"}'
    (cli.home / "large").write_bytes(large)
    (cli.home / "in.json").write_bytes(value)
    done = await cli("call", "acme/tool", "--input", "@in.json", "--stdin", "-", "-f", "large", stdin=large + b"typed")
    assert done.code == 0, done.err
    assert b"sending" not in done.stderr
    (request,) = gateway.requests(ex.ExecuteRequest)
    named = (request.spec.input_upload, request.spec.stdin_upload, request.spec.files[0].upload)
    assert [gateway.uploads[digest] for digest in named] == [value, large + b"typed", large]


async def test_a_terminal_sees_how_far_an_upload_is(cli: Cli) -> None:
    (cli.home / "large").write_bytes(os.urandom(9 << 20))
    master, slave = pty.openpty()
    process = await cli.start("upload", "large", stdin=slave, stderr=slave)
    os.close(slave)
    shown = await asyncio.to_thread(_read_all, master)
    await process.communicate()
    assert "sending large ━━" in shown
    assert shown.rindex("\x1b[2K") < shown.rindex("bytes, kept until")
