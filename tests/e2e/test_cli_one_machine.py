"""The commands of one machine, as its user types them: a real gateway, real sandboxes, the real console script."""

from __future__ import annotations

import json
import signal
import stat
import subprocess
from collections.abc import Iterator

import pytest

from one_machine import SKILLCELL, Machine, one_machine, write_skill

SKILL = {
    "SKILL.md": "---\nname: probe\ndescription: Probes the command line.\n---\n",
    "skill-runtime.yaml": """\
apiVersion: skillcell/v1
kind: SkillRuntime
version: 1.0.0
entrypoints:
  - name: run
    command: [python3, scripts/run.py]
  - name: total
    handler: scripts/tool.py:handle
    inputSchema: {type: object, required: [n], properties: {n: {type: array, items: {type: integer}}}}
""",
    "scripts/run.py": """\
import os, pathlib, sys, time
print("args", sys.argv[1:], os.environ.get("GREETING", ""), flush=True)
sys.stdout.buffer.write(sys.stdin.buffer.read())
sys.stdout.flush()
print("warned", file=sys.stderr)
pathlib.Path("/output/report.txt").write_text("report")
pathlib.Path("made.md").write_text("# made")
if "--sleep" in sys.argv:
    time.sleep(60)
if "--exit" in sys.argv:
    sys.exit(7)
if "--memory" in sys.argv:
    held = bytearray(1 << 30)
""",
    "scripts/tool.py": """\
def handle(payload, context):
    context.progress(0.5, "half")
    return {"total": sum(payload["n"])}
""",
}


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with one_machine(tmp_path_factory.mktemp("home")) as served:
        write_skill(served.home / "probe", SKILL)
        served.run("publish", "probe", "--as", "dev/probe")
        yield served


def test_the_note_that_serve_leaves_is_the_users_alone(machine: Machine) -> None:
    note = machine.home / "state" / "skillcell" / "server.json"
    assert stat.S_IMODE(note.stat().st_mode) == 0o600
    assert set(json.loads(note.read_text())) == {"address", "api_key", "metrics"}


def test_a_script_runs_with_files_in_and_files_out(machine: Machine) -> None:
    done = machine.run(
        *("call", "dev/probe", "-e", "run", "--stdin", "-", "--env", "GREETING=hi", "--collect", "*.md"),
        *("--out", "results", "--", "-v", "é"),
        stdin=b"\x00\xffbytes\n",
    )
    assert done.stdout == "args ['-v', 'é'] hi\n".encode() + b"\x00\xffbytes\n"
    assert done.stderr.startswith(b"warned\n")
    assert (machine.home / "results" / "report.txt").read_text() == "report"
    assert (machine.home / "results" / "made.md").read_text() == "# made"
    assert b"outcome   SUCCEEDED" in done.stderr


def test_a_function_returns_json_for_programs(machine: Machine) -> None:
    found = machine.json("call", "dev/probe", "--entrypoint", "total", "--input", '{"n": [1, 2, 3]}', "--json")
    assert (found["outcome"], found["output"]) == ("SUCCEEDED", {"total": 6})
    assert found["events"]["progress"] == 1
    assert found["usage"]["cpu_total_ns"] > 0
    assert machine.run("call", "dev/probe@1.0.0", "-e", "total", "-i", '{"n": []}', "-q").stdout == b'{"total":0}\n'


def test_input_that_breaks_the_schema_is_refused_with_its_place(machine: Machine) -> None:
    done = machine.run("call", "dev/probe", "-e", "total", "-i", '{"n": ["x"]}', code=125)
    assert b"n/0" in done.stderr
    assert b"INPUT_INVALID" in done.stderr


def test_the_exit_code_is_the_skills_or_says_what_ended_it(machine: Machine) -> None:
    machine.run("call", "dev/probe", "-e", "run", "-q", "--", "--exit", code=7)
    machine.run("call", "dev/probe", "-e", "run", "-q", "--timeout", "0.5", "--", "--sleep", code=124)
    machine.run("call", "dev/probe", "-e", "run", "-q", "--memory", "64Mi", "--", "--memory", code=137)
    machine.run("call", "dev/missing", code=125)


def test_ctrl_c_kills_the_sandbox_and_reports_the_usage(machine: Machine) -> None:
    process = subprocess.Popen(
        [SKILLCELL, "call", "dev/probe", "-e", "run", "--", "--sleep"],
        env=machine.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith(b"args")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"outcome   CANCELED" in said


def test_a_detached_call_is_watched_canceled_and_read_again(machine: Machine) -> None:
    execution = machine.run("call", "dev/probe", "-e", "run", "--detach", "--", "--sleep").stdout.decode().strip()
    machine.run("cancel", execution, "--reason", "enough")
    machine.run("watch", execution, code=130)
    assert machine.json("executions", "show", execution, "--json")["completed"]["outcome"] == "CANCELED"
    assert execution in machine.run("executions", "list", "--outcome", "canceled").stdout.decode()


def test_every_call_is_in_the_ledger_once(machine: Machine) -> None:
    found = machine.json("call", "dev/probe", "-e", "run", "--label", "team=red", "--json")
    (record,) = machine.json("usage", "list", "--execution", found["execution_id"], "--json")
    assert record == found["usage"]
    assert machine.json("usage", "verify", "--json")["intact"]
    groups = machine.json("usage", "summary", "--by", "label:team", "--json")["groups"]
    assert {group["keys"].get("label:team"): group["totals"]["calls"] for group in groups}["red"] == 1


def test_the_registry_shows_what_was_published(machine: Machine) -> None:
    assert machine.json("skills", "--json")[0]["name"] == "probe"
    shown = machine.json("skills", "show", "dev/probe", "--json")["version"]
    assert {entrypoint["name"] for entrypoint in shown["spec"]["entrypoints"]} == {"run", "total"}
    machine.run("skills", "alias", "dev/probe", "stable", "1.0.0")
    machine.run("call", "dev/probe@stable", "-e", "run", "-q")
    machine.run("skills", "download", "dev/probe", "--out", "package.tar.gz")
    again = machine.json("publish", "package.tar.gz", "--as", "dev/probe", "--json")
    assert (again["created"], again["version"]["digest"]) == (False, shown["digest"])


def test_a_broken_skill_is_refused_by_file_and_line(machine: Machine) -> None:
    broken = machine.home / "broken"
    broken.mkdir()
    (broken / "SKILL.md").write_text("---\nname: Not A Name\n---\n")
    done = machine.run("publish", "broken", "--as", "dev/broken", code=1)
    assert b"SKILL.md:2:1: error frontmatter-name-pattern" in done.stderr
    assert b"SKILL.md:2" in machine.run("validate", "broken", code=1).stdout


def test_doctor_says_what_is_there_and_how_to_mend_the_rest(machine: Machine) -> None:
    command = [SKILLCELL, "doctor", "--driver", "oci", "--data", str(machine.home / "data"), "--json"]
    done = subprocess.run(command, env=machine.env, capture_output=True, timeout=90, check=False)
    checks = json.loads(done.stdout)
    assert all(check["ok"] or check["fix"] for check in checks)
    assert done.returncode == (0 if all(check["ok"] for check in checks) else 1)
    assert {"driver", "image python-3.11"} <= {check["name"] for check in checks if check["ok"]}
