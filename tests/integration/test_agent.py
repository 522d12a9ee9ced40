"""The agent as PID 1 in our own image: a private pid namespace, a user of its own, a read-only root. Needs root.

The engines' own hardening is the drivers' suites' matter; here it is what the agent alone must hold.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent_harness import Agent, socket_wire
from skillcell.agent.main import PLACES
from skillcell.sandbox.agent_package import AGENT_TARGET, agent_command, build_agent_package
from skillcell.sandbox.images import ImageStore
from skillcell.sandbox.images_bootstrap import prepare

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make namespaces and build images"),
]

CHECKOUT = Path(__file__).parents[2]
UID, GID = 43210, 43211
WRITABLE = ("workspace", "input", "output", "tmp", "home/skill", "run/skillcell")
GRACE = 20.0


@pytest.fixture(scope="module")
def rootfs() -> Path:
    store = ImageStore(Path(os.environ.get("SKILLCELL_TEST_IMAGES", CHECKOUT / ".data/test-images")))
    (image,) = prepare(("node-20",), store=store, progress=print)
    assert image.rootfs is not None
    return image.rootfs


@pytest.fixture
def agent(rootfs: Path, tmp_path: Path) -> Iterator[Agent]:
    agent = start_contained(rootfs, tmp_path)
    yield agent
    if agent.process.poll() is None:
        agent.close()


def start_contained(rootfs: Path, directory: Path) -> Agent:
    """PID 1 of its own namespaces, over the image's tree, with one small tmpfs as its writable space."""
    directory.chmod(0o755)
    package = build_agent_package(directory / "package")
    skill, root, space = directory / "skill", directory / "root", directory / "space"
    for path in (skill, root, space):
        path.mkdir()
        path.chmod(0o755)
    binds = "".join(
        f"mkdir -p {space}/{name}; chown {UID}:{GID} {space}/{name}; mount --bind {space}/{name} {root}/{name}\n"
        for name in WRITABLE
    )
    devices = "".join(
        f"touch {root}/dev/{name}; mount --bind /dev/{name} {root}/dev/{name}\n" for name in ("null", "urandom")
    )
    setup = f"""set -e
mount --rbind {rootfs} {root}; mount -o remount,bind,ro {root}
mount -t tmpfs -o size=16m,nr_inodes=40000,mode=0755 space {space}
{binds}mount --bind {skill} {root}/skill; mount --bind {package.path} {root}{AGENT_TARGET}
mount -t proc proc {root}/proc; mount -t tmpfs -o size=64k dev {root}/dev
{devices}exec chroot --userspec={UID}:{GID} --groups= {root} {shlex.join(agent_command())}
"""
    ours, theirs = socket.socketpair()
    process = subprocess.Popen(
        [
            "unshare",
            "--mount",
            "--pid",
            "--ipc",
            "--net",
            "--fork",
            "--kill-child",
            "--propagation",
            "private",
            "sh",
            "-c",
            setup,
        ],
        stdin=theirs,
        stdout=theirs,
        env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8"},
        cwd="/",
    )
    theirs.close()
    agent = Agent(process, socket_wire(ours), {**PLACES, "home": "/home/skill", "skill_on_host": str(skill)})
    agent.say_hello()
    return agent


def put(agent: Agent, name: str, source: str) -> str:
    path = Path(agent.places["skill_on_host"], name)
    path.write_text(source)
    path.chmod(0o755)
    return f"/skill/{name}"


def agent_pid(agent: Agent) -> int:
    children = Path(f"/proc/{agent.process.pid}/task/{agent.process.pid}/children").read_text().split()
    return int(children[0])


def test_the_main_things_work_in_the_image(agent: Agent) -> None:
    script = put(
        agent,
        "s.py",
        "import os, pwd, requests\nprint(os.getpid()>1, os.getcwd(), pwd.getpwuid(os.getuid())[0], os.getenv('HOME'))",
    )
    ending = agent.run(kind="python-script", script=script)
    assert (ending.stdout, ending.stderr, ending.code) == (b"True /workspace skill /home/skill\n", b"", 0)
    assert agent.run(argv=["sh", "-c", "whoami; id -un; id -gn"]).stdout == b"skill\nskill\nskill\n"
    assert agent.run(argv=["node", "-e", "console.log(os.userInfo().username)"]).stdout == b"skill\n"


def test_functions_in_both_languages_run_in_the_image(agent: Agent) -> None:
    put(agent, "f.py", "def f(value, ctx):\n    ctx.progress(0.5)\n    yield value\n    return ctx.skill_dir\n")
    put(
        agent,
        "f.mjs",
        "export async function* f(value, ctx) { ctx.progress(0.5); yield value; return ctx.skillDir; }\n",
    )
    for kind, script in (("python-function", "/skill/f.py"), ("node-function", "/skill/f.mjs")):
        files = [("input", "input.json", 0o444, b'{"n": 1}')]
        ending = agent.run(kind=kind, script=script, function="f", files=files)
        assert (ending.code, ending.stderr, ending.outputs) == (0, b"", [{"n": 1}, "/skill"])


def test_the_agent_is_closed_to_the_skill(agent: Agent) -> None:
    probe = """
import ctypes, os, signal
def attempt(label, action):
    try:
        print(label, 'OPEN', action())
    except OSError as error:
        print(label, error.errno)
attempt('fd', lambda: os.listdir('/proc/1/fd'))
attempt('mem', lambda: open('/proc/1/mem', 'rb'))
attempt('environ', lambda: open('/proc/1/environ', 'rb').read())
attempt('maps', lambda: open('/proc/1/maps').read())
attempt('cwd', lambda: os.readlink('/proc/1/cwd'))
libc = ctypes.CDLL(None, use_errno=True)
print('ptrace', libc.ptrace(16, 1, 0, 0), ctypes.get_errno())
for number in sorted(signal.valid_signals()):
    os.kill(1, number)
print('own fds', sorted(os.listdir('/proc/self/fd'))[:3], open('/proc/self/oom_score_adj').read().strip())
"""
    script = put(agent, "probe.py", probe)
    ending = agent.run(kind="python-script", script=script)
    lines = ending.stdout.decode().splitlines()
    assert [line.split()[0] for line in lines if "OPEN" in line] == [], lines
    assert lines[-2:] == ["ptrace -1 1", "own fds ['0', '1', '2'] 1000"]
    assert ending.code == 0
    assert agent.run(argv=["echo", "alive"]).stdout == b"alive\n"


def test_nothing_of_a_call_survives_its_end(agent: Agent) -> None:
    storm = """
import os, signal, time
for _ in range(40):
    if os.fork() == 0:
        os.setsid()
        for number in set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}:
            signal.signal(number, signal.SIG_IGN)
        if os.fork() == 0:
            time.sleep(600)
        time.sleep(600)
print('leaving', flush=True)
"""
    began = time.monotonic()
    ending = agent.run(kind="python-script", script=put(agent, "storm.py", storm))
    assert (ending.stdout, ending.code) == (b"leaving\n", 0)
    assert time.monotonic() - began < GRACE
    left = agent.run(argv=["sh", "-c", "ls -d /proc/[0-9]*"]).stdout.decode().split()
    assert left[0] == "/proc/1"
    assert len(left) == 2  # the agent and the shell that looked


def test_zombies_are_reaped_while_the_skill_runs(agent: Agent) -> None:
    orphans = """
import os, time
for _ in range(50):
    child = os.fork()
    if child == 0:
        if os.fork() == 0:
            os._exit(0)
        os._exit(0)
    os.waitpid(child, 0)
def zombies():
    states = []
    for name in os.listdir('/proc'):
        if name.isdigit():
            try:
                states.append(open(f'/proc/{name}/stat').read().rpartition(')')[2].split()[0])
            except OSError:
                pass
    return states.count('Z')
deadline = time.monotonic() + 10
while zombies() and time.monotonic() < deadline:
    time.sleep(0.01)
print(zombies())
"""
    assert agent.run(kind="python-script", script=put(agent, "orphans.py", orphans)).stdout == b"0\n"


def test_a_fork_bomb_ends_with_its_main_process(agent: Agent) -> None:
    bomb = put(agent, "bomb.sh", "#!/bin/bash\nulimit -u 200\nb() { b | b & }; b 2>/dev/null; sleep 0.5; exit 7\n")
    began = time.monotonic()
    ending = agent.run(argv=[bomb])
    assert ending.code is not None or ending.signal is not None
    assert time.monotonic() - began < GRACE
    assert agent.run(argv=["echo", "alive"]).stdout == b"alive\n"


def test_directories_without_permission_are_refused_and_harm_nothing(agent: Agent) -> None:
    ending = agent.run(
        argv=[
            "sh",
            "-c",
            "cd /output; mkdir list shut blind; touch list/f shut/f blind/f y; echo 1 > z;"
            "chmod 600 list; chmod 0 shut y; chmod 0300 blind",
        ]
    )
    assert ending.artifacts == {"z": b"1\n"}
    assert ending.refused == {
        **dict.fromkeys(("list", "shut", "blind"), "a directory that can't be entered: Permission denied"),
        "y": "can't be read: Permission denied",
    }


def test_input_that_does_not_fit_is_said_to_be_too_large(agent: Agent) -> None:
    ending = agent.run(argv=["true"], files=[("workspace", "large", 0o644, b"x" * (17 << 20))])
    assert ending.failed == "workspace/large: no space left in the sandbox's writable directories"


def test_a_full_disk_is_reported_with_the_exit(agent: Agent) -> None:
    ending = agent.run(argv=["sh", "-c", "yes > fill"])
    assert ending.code != 0
    (usage,) = ending.disk.values()  # one tmpfs beneath all the directories
    assert usage["bytes_limit"] == 16 << 20
    assert usage["bytes_limit"] - usage["bytes_used"] < 65536


def test_the_idle_agent_is_small(agent: Agent, rootfs: Path, tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    second = start_contained(rootfs, tmp_path / "second")  # as in a pool: the interpreter's file is mapped by several
    own = 0
    for line in Path(f"/proc/{agent_pid(agent)}/smaps_rollup").read_text().splitlines():
        if line.startswith(("Private_Clean", "Private_Dirty")):
            own += int(line.split()[1])
    second.close()
    assert 0 < own <= 12 * 1024, f"{own} KiB"
    print(f"own memory of an idle agent: {own} KiB")


def test_the_sandbox_ends_with_the_channel(agent: Agent) -> None:
    agent.deliver(agent.job(argv=["sh", "-c", "trap '' TERM HUP INT; echo up; while :; do sleep 1; done"]))
    assert agent.wire.receive()[0] == 65
    assert agent.wire.receive()[1] == b"up\n"
    began = time.monotonic()
    agent.close()
    assert time.monotonic() - began < GRACE


def test_one_agent_serves_many_jobs_without_growing(agent: Agent) -> None:
    script = put(agent, "one.py", "print(1)")
    for _ in range(30):
        assert agent.run(kind="python-script", script=script).stdout == b"1\n"
    descriptors = len(os.listdir(f"/proc/{agent_pid(agent)}/fd"))
    for _ in range(30):
        agent.run(argv=["true"], stdin=b"x")
    assert len(os.listdir(f"/proc/{agent_pid(agent)}/fd")) == descriptors
    assert json.loads(json.dumps(agent.hello))["python"].startswith("3.11")
