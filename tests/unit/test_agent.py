"""The agent as a process on a socket: delivery, commands, events, back-pressure, collection, refusals."""

from __future__ import annotations

import io
import json
import os
import signal
import stat
import subprocess
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent_harness import SYSTEM_PYTHON, Agent, Wire, make_places, start_agent, start_code
from skillcell.agent import frames
from skillcell.agent.collect import Globs
from skillcell.agent.job import JobError
from skillcell.agent.pump import EventLines


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    agent = start_agent(tmp_path)
    yield agent
    if agent.process.poll() is None:
        assert agent.close() == 0


def sh(agent: Agent, command: str, **changes: object):  # type: ignore[no-untyped-def]
    return agent.run(argv=["sh", "-c", command], **changes)  # type: ignore[arg-type]


def ended(pid: int) -> bool:
    """Dead, though whoever adopted it may not have reaped it yet; a killed process takes its moment."""
    give_up = time.monotonic() + 10
    while time.monotonic() < give_up:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
    return False


def test_hello_names_protocol_and_python(agent: Agent) -> None:
    assert agent.hello["protocol"] == frames.PROTOCOL
    assert agent.hello["python"].startswith("3.")


def test_files_arrive_with_their_modes_and_input_is_read_only(agent: Agent) -> None:
    files = [
        ("workspace", "a/b/run.sh", 0o755, b"#!/bin/sh\ncat data\n"),
        ("workspace", "data", 0o644, b"x" * 600_000),
        ("workspace", "empty", 0o644, b""),
        ("input", "input.json", 0o644, b"{}"),
        ("home", ".config/token", 0o600, b"secret"),
    ]
    ending = agent.run(files=files, argv=["a/b/run.sh"])
    assert (ending.code, len(ending.stdout)) == (0, 600_000)
    modes = {name: stat.S_IMODE(os.stat(path).st_mode) for name, path in (
        ("input", agent.places["input"]),
        ("json", agent.places["input"] + "/input.json"),
        ("token", agent.places["home"] + "/.config/token"),
        ("data", agent.places["workspace"] + "/data"),
    )}  # fmt: skip
    assert modes == {"input": 0o555, "json": 0o444, "token": 0o600, "data": 0o644}
    assert Path(agent.places["workspace"], "empty").read_bytes() == b""


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "a//b", "", ".", "a/./b", "n\0ul"])
def test_a_name_that_could_lead_out_is_refused(agent: Agent, name: str) -> None:
    ending = agent.run(files=[("workspace", name, 0o644, b"1"), ("workspace", "later", 0o644, b"2")], argv=["true"])
    assert ending.failed is not None
    assert "not a plain relative name" in ending.failed
    assert sh(agent, "echo next").stdout == b"next\n"


def test_a_link_in_the_way_of_a_delivery_is_not_followed(agent: Agent, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    Path(agent.places["workspace"], "link").symlink_to(tmp_path / "outside")
    assert agent.run(files=[("workspace", "link/x", 0o644, b"1")], argv=["true"]).failed
    assert agent.run(files=[("workspace", "link", 0o644, b"1")], argv=["true"]).code == 0
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_missing_root_is_named(agent: Agent) -> None:
    os.rmdir(agent.places["input"])
    failed = agent.run(files=[("input", "input.json", 0o444, b"{}")], argv=["true"]).failed
    assert failed == f"input/input.json: the sandbox has no directory {agent.places['input']}"


def test_a_missing_working_directory_is_named(agent: Agent) -> None:
    assert "/nowhere" in (agent.run(argv=["true"], cwd="/nowhere").failed or "")


def test_a_job_with_a_wrong_key_is_refused_by_name_and_the_agent_lives(agent: Agent) -> None:
    assert "artifact_bytes: str where int is due" in (agent.run(argv=["true"], artifact_bytes="1").failed or "")
    assert "kind: 'perl'" in (agent.run(kind="perl").failed or "")
    assert "'stack' is not one of" in (agent.run(argv=["true"], rlimits={"stack": 1}).failed or "")
    assert agent.run(argv=["true"]).code == 0


def test_the_skill_is_copied_before_the_callers_files_overlay_it(agent: Agent) -> None:
    skill = Path(agent.places["skill"])
    (skill / "bin").mkdir()
    (skill / "bin" / "tool").write_text("#!/bin/sh\necho tool\n")
    (skill / "bin" / "tool").chmod(0o555)
    (skill / "data").write_text("theirs")
    (skill / "inner").symlink_to("data")
    (skill / "outer").symlink_to("/etc/passwd")
    (skill / "bin").chmod(0o555)
    ending = sh(
        agent,
        "bin/tool; cat inner data; ls; echo new > bin/new; test -w bin/tool && echo writable",
        copy_skill=True,
        files=[("workspace", "data", 0o644, b" mine\n")],
    )
    assert ending.stdout == b"tool\n mine\n mine\nbin\ndata\ninner\nwritable\n"


def test_exit_codes_and_signals_come_as_they_are(agent: Agent) -> None:
    assert sh(agent, "exit 3").code == 3
    ending = sh(agent, "kill -TERM $$")
    assert (ending.code, ending.signal) == (None, signal.SIGTERM)


def test_a_command_that_is_not_there_is_127_and_one_that_can_not_run_126(agent: Agent) -> None:
    workspace = Path(agent.places["workspace"])
    (workspace / "noexec").write_text("x")
    (workspace / "noshebang").write_bytes(b"\0\1")
    (workspace / "noshebang").chmod(0o755)
    (workspace / "badshebang").write_text("#!/no/such/interpreter\n")
    (workspace / "badshebang").chmod(0o755)
    seen = {name: agent.run(argv=[name]) for name in ("nosuch", "./nosuch", "./noexec", "./noshebang", "./badshebang")}
    assert {name: ending.code for name, ending in seen.items()} == {
        "nosuch": 127, "./nosuch": 127, "./noexec": 126, "./noshebang": 126, "./badshebang": 127,
    }  # fmt: skip
    assert seen["nosuch"].stderr == b"nosuch: not found\n"
    assert seen["./noexec"].stderr == b"./noexec: Permission denied\n"
    assert b"interpreter" in seen["./badshebang"].stderr


_LIBRARY_SIGNALS = 0b11 << 31
"""32 and 33 are the C library's own: make leaves them ignored in what it starts, and no program may change that."""


def test_a_command_gets_the_jobs_environment_limits_and_three_descriptors_alone(agent: Agent) -> None:
    ending = sh(
        agent,
        "ls /proc/$$/fd | tr '\\n' ' '; ulimit -n; ulimit -c; umask; grep SigIgn /proc/$$/status;"
        "env | cut -d= -f1 | sort | tr '\\n' ' '",
        rlimits={"nofile": 77, "core": 0},
        env={"PATH": "/usr/bin:/bin", "A": "é\udcff"},
    )
    fds, limits = ending.stdout.decode().split("\n")[0].split(" 77")[0], ending.stdout.decode()
    assert fds.split()[:3] == ["0", "1", "2"]
    before, _, ignored_and_names = limits.partition("SigIgn:\t")
    ignored, _, names = ignored_and_names.partition("\n")
    assert before.endswith("77\n0\n0022\n")
    assert int(ignored, 16) & ~_LIBRARY_SIGNALS == 0
    assert names.split() == ["A", "PATH", "PWD", "SKILLCELL_EVENTS"]


def test_stdin_arrives_whole_and_ends(agent: Agent) -> None:
    data = os.urandom(5_000_000)
    assert agent.run(argv=["cat"], stdin=data).stdout == data


def test_a_skill_that_reads_no_stdin_harms_nobody(agent: Agent) -> None:
    ending = sh(agent, "exec <&-; echo closed; sleep 0.1; exit 5", stdin=b"y" * 3_000_000)
    assert (ending.stdout, ending.code) == (b"closed\n", 5)
    assert sh(agent, "echo next").stdout == b"next\n"


def test_without_stdin_there_is_an_empty_one(agent: Agent) -> None:
    assert sh(agent, "cat; echo done").stdout == b"done\n"


def test_output_is_held_back_while_nobody_reads_it(agent: Agent, tmp_path: Path) -> None:
    mark = tmp_path / "progress"
    script = f"import os\nfd = os.open({str(mark)!r}, os.O_WRONLY | os.O_CREAT)\n" + (
        "for i in range(2048):\n    os.pwrite(fd, b'%d' % i, 0); os.write(1, b'x' * 32768)\n"
    )
    Path(agent.places["skill"], "flood.py").write_text(script)
    agent.deliver(agent.job(kind="python-script", script=agent.places["skill"] + "/flood.py"))
    give_up = time.monotonic() + 20
    before, since = "", time.monotonic()
    while time.monotonic() < give_up and (not before or time.monotonic() - since < 0.5):
        now = mark.read_text() if mark.exists() else ""
        if now != before:
            before, since = now, time.monotonic()
    assert int(before) < 100
    assert len(agent.collect().stdout) == 64 << 20


def test_events_are_forwarded_and_what_is_none_is_complained_about(agent: Agent) -> None:
    ending = sh(
        agent,
        'exec 3>"$SKILLCELL_EVENTS"; echo \'{"type":"progress","fraction":0.5}\' >&3; echo nonsense >&3;'
        'echo "[1]" >&3;'
        'echo "{\\"type\\":\\"output\\",\\"value\\":NaN}" >&3; printf \'{"type":"output","value":"last"}\' >&3',
    )
    assert ending.events[0] == {"type": "progress", "fraction": 0.5}
    assert [event["level"] for event in ending.events[1:4]] == ["warning"] * 3
    assert "not JSON" in ending.events[1]["message"]
    assert "a JSON list" in ending.events[2]["message"]
    assert ending.outputs == ["last"]


def test_all_events_written_before_the_end_arrive_before_exited(agent: Agent) -> None:
    ending = sh(
        agent,
        "i=0; while [ $i -lt 3000 ]; do"
        ' echo "{\\"type\\":\\"log\\",\\"n\\":$i}"; i=$((i+1)); done > "$SKILLCELL_EVENTS"',
    )
    assert [event["n"] for event in ending.events] == list(range(3000))
    assert ending.kinds.index(frames.EXITED) > len(ending.kinds) - 1 - ending.kinds[::-1].index(frames.EVENT)


def test_an_event_over_the_limit_becomes_a_warning_and_the_next_one_arrives() -> None:
    lines = EventLines()
    payloads = []
    for _ in range(frames.VALUE_BYTES // 65536 + 2):
        payloads += lines.feed(b"x" * 65536)
    payloads += lines.feed(b'\n{"type":"log"}\n')
    assert "over the limit" in json.loads(payloads[0])["message"]
    assert payloads[1] == b'{"type":"log"}'


def test_a_long_line_is_passed_on_unparsed() -> None:
    """Parsed it may be 20 times its size, in a sandbox whose memory the Skill has filled."""
    line = b"[" + b"[]," * 1_000_000 + b"[]]"
    tracemalloc.start()
    try:
        assert EventLines().feed(line + b"\n") == [line]
        assert tracemalloc.get_traced_memory()[1] < 6 * len(line)
    finally:
        tracemalloc.stop()


def test_a_background_process_ends_with_the_main_one(agent: Agent, tmp_path: Path) -> None:
    began = time.monotonic()
    ending = sh(agent, "sleep 60 & echo $!")
    assert ending.code == 0
    assert time.monotonic() - began < 10
    assert ended(int(ending.stdout))


def test_a_signal_reaches_the_whole_group(agent: Agent) -> None:
    agent.deliver(agent.job(argv=["sh", "-c", "trap 'echo got; exit 9' INT; echo ready; while :; do sleep 0.05; done"]))
    assert agent.wire.receive()[0] == frames.STARTED
    assert agent.wire.receive()[1] == b"ready\n"
    agent.wire.send_json(frames.SIGNAL, {"signal": signal.SIGINT})
    ending = agent.collect()
    assert (ending.stdout, ending.code) == (b"got\n", 9)


def test_the_result_and_output_files_are_collected(agent: Agent) -> None:
    ending = sh(
        agent, 'cd "$SKILLCELL_OUTPUT_DIR"; echo "{}" > result.json; mkdir -p d/e; echo 1 > d/e/f.txt; : > empty'
    )
    assert ending.result == b"{}\n"
    assert ending.artifacts == {"d/e/f.txt": b"1\n", "empty": b""}
    assert ending.refused == {}


def test_what_is_no_plain_file_is_refused_with_a_reason(agent: Agent) -> None:
    script = """
import os, socket
os.chdir(os.environ['SKILLCELL_OUTPUT_DIR'])
os.symlink('/etc/passwd', 'link'); os.symlink('/etc', 'dirlink'); os.mkfifo('fifo')
socket.socket(socket.AF_UNIX).bind('sock')
open('one', 'w').close(); os.link('one', 'two')
open(b'bad\\xff', 'w').close(); open('new\\nline', 'w').close(); open('good', 'w').write('g')
os.symlink('/etc/passwd', 'result.json')
with open('sparse', 'w') as f: f.truncate(1 << 40)
os.makedirs('x/' + '/'.join(['d' * 200] * 6))
"""
    Path(agent.places["skill"], "odd.py").write_text(script)
    ending = agent.run(kind="python-script", script=agent.places["skill"] + "/odd.py")
    assert ending.artifacts == {"good": b"g"}
    assert ending.result is None
    deep = next(name for name in ending.refused if name.startswith("x/"))
    assert "longer than 1024" in ending.refused.pop(deep)
    assert ending.refused == {
        "link": "a symbolic link",
        "dirlink": "a symbolic link",
        "result.json": "a symbolic link",
        "fifo": "a FIFO",
        "sock": "a socket",
        "one": "a file with 2 hard links",
        "two": "a file with 2 hard links",
        "bad\\xff": "its name is not UTF-8",
        "new\nline": "its name has control characters",
        "sparse": f"{1 << 40} bytes are over the limit of {1 << 24} bytes for all artifacts",
    }


def test_a_result_over_the_limit_is_refused(agent: Agent) -> None:
    ending = sh(agent, f'head -c {frames.VALUE_BYTES + 1} /dev/zero > "$SKILLCELL_OUTPUT_DIR/result.json"')
    assert ending.result is None
    assert "over the limit" in ending.refused["result.json"]


def test_limits_on_artifacts_hold_and_many_refusals_are_summed_up(agent: Agent) -> None:
    ending = sh(agent, 'cd "$SKILLCELL_OUTPUT_DIR"; for i in $(seq 1000 1999); do echo x > $i; done', artifact_count=3)
    assert sorted(ending.artifacts) == ["1000", "1001", "1002"]
    assert ending.refused["1003"] == "over the limit of 3 artifacts"
    assert ending.refused["(more)"] == "797 more files were refused"
    ending = sh(
        agent, 'cd "$SKILLCELL_OUTPUT_DIR"; rm *; printf 12345 > a; printf 678901 > b; printf 1 > c', artifact_bytes=7
    )
    assert ending.artifacts == {"a": b"12345", "c": b"1"}


def test_depth_and_number_of_entries_do_not_harm_the_collector(agent: Agent) -> None:
    script = """
import os
os.chdir(os.environ['SKILLCELL_OUTPUT_DIR'])
for i in range(20000): os.close(os.open(f'n{i}', os.O_CREAT))
for i in range(5000):
    os.mkdir('d'); os.chdir('d')
open('bottom', 'w')
"""
    Path(agent.places["skill"], "deep.py").write_text(script)
    began = time.monotonic()
    ending = agent.run(kind="python-script", script=agent.places["skill"] + "/deep.py", artifact_count=10)
    assert len(ending.artifacts) == 10
    assert time.monotonic() - began < 30
    directory = agent.places["output"]
    os.rename(directory, f"{directory}-deep")
    os.system(f"rm -rf '{directory}-deep'")  # shutil.rmtree, which the fixture would use, dies of the depth
    os.mkdir(directory)


def test_changed_files_of_the_working_directory_are_collected_by_glob(agent: Agent) -> None:
    files = [("workspace", name, 0o644, b"old") for name in ("same.txt", "changed.txt", "a/same.txt", "other.bin")]
    ending = sh(
        agent,
        "echo new > changed.txt; mkdir -p a/b .hid; echo x > a/b/deep.txt; echo x > new.bin; echo x > .hid/t.txt;"
        "ln -s changed.txt link.txt",
        files=files,
        collect=["**/*.txt"],
    )
    assert ending.artifacts == {"changed.txt": b"new\n", "a/b/deep.txt": b"x\n"}
    assert ending.refused == {"link.txt": "a symbolic link"}


@pytest.mark.parametrize(
    ("pattern", "path", "taken"),
    [
        ("*.txt", "a.txt", True), ("*.txt", "a/b.txt", False), ("**/*.txt", "b.txt", True), ("**", "a/b/c", True),
        ("a/**", "a/b/c", True), ("a/**", "a", False), ("a/", "a/b", True), ("*", ".hidden", False),
        (".*", ".hidden", True), ("**/b/*", "a/b/c", True), ("**/b/*", "a/c/b/b/d", True), ("[ab].c", "b.c", True),
        ("./x", "x", True), ("**/.git/*", "a/.git/c", True), ("**/x", "a/.b/x", False), ("a/*/c", "a/b/c", True),
    ],
)  # fmt: skip
def test_globs_match_as_in_a_shell(pattern: str, path: str, taken: bool) -> None:
    assert Globs([pattern]).match(path) is taken


@pytest.mark.parametrize("pattern", ["/etc/*", "../*", "a/../b", "", "a//b"])
def test_a_glob_that_leads_out_is_refused(pattern: str) -> None:
    with pytest.raises(JobError, match="not a relative pattern"):
        Globs([pattern])


def test_a_hostile_glob_takes_no_time() -> None:
    began = time.monotonic()
    Globs(["/".join(["**", "*a*a*a*a*b"] * 40)]).match("/".join(["a" * 100] * 100))
    assert time.monotonic() - began < 5


def test_the_disk_is_told_once_for_each_mount(agent: Agent) -> None:
    (usage,) = sh(agent, "true").disk.values()
    assert 0 < usage["bytes_used"] < usage["bytes_limit"]


def test_the_agent_ends_with_the_channel_and_takes_the_skill_along(agent: Agent) -> None:
    agent.deliver(agent.job(argv=["sh", "-c", "echo $$; sleep 60"]))
    assert agent.wire.receive()[0] == frames.STARTED
    pid = int(agent.wire.receive()[1])
    agent.close()
    assert ended(pid)


def test_a_breach_of_the_protocol_ends_the_agent_with_a_reason(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    agent = start_agent(tmp_path)
    agent.wire.send_raw(b"\xff\xff\xff\xff\xff")
    assert agent.process.wait(20) == 1
    assert "unknown frame type 255" in capfd.readouterr().err
    agent.wire.close()


def test_what_imitates_frames_stays_output(agent: Agent) -> None:
    forged = frames.encode_json(frames.EXITED, {"code": 0, "signal": None, "disk": {}}) + frames.encode(frames.DONE)
    Path(agent.places["skill"], "forge.py").write_text(
        f"import os\nos.write(1, {forged!r}); os.write(2, {forged!r})\nexit(4)"
    )
    ending = agent.run(kind="python-script", script=agent.places["skill"] + "/forge.py")
    assert (ending.stdout, ending.stderr, ending.code) == (forged, forged, 4)


def test_two_pipes_serve_as_well_as_one_socket(tmp_path: Path) -> None:
    places = make_places(tmp_path)
    command = [SYSTEM_PYTHON, "-c", start_code(tmp_path, places)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    reader, writer = process.stdout, process.stdin
    assert isinstance(reader, io.BufferedReader)
    assert isinstance(writer, io.BufferedWriter)
    agent = Agent(process, Wire(reader, writer, writer.close), places)
    agent.say_hello()
    assert agent.run(argv=["wc", "-c"], stdin=b"z" * 1_000_000).stdout.strip() == b"1000000"
    assert agent.close() == 0
    reader.close()
