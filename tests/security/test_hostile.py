"""What a Skill must not reach: the kernel's doors, the agent, the machine, its network, other tenants.

Each program here is run by both drivers; most are run without a sandbox too, where they must get through, since a
probe that fails everywhere proves nothing.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from contextlib import ExitStack, aclosing
from pathlib import Path

import pytest

from e2e.gateway import Gateway
from e2e.lab import spec, until
from security.programs import hostile, report, report_outside
from skillcell.client import SkillcellClient
from skillcell.core.events import Started, Stdout
from skillcell.core.types import Outcome
from skillcell.sandbox.hardening import MASKED_PATHS

NAMESPACES = """
flags = {"mnt": 0x20000, "cgroup": 0x2000000, "uts": 0x4000000, "ipc": 0x8000000, "user": 0x10000000,
         "pid": 0x20000000, "net": 0x40000000}
result = {f"unshare {name}": in_child(call, (272, 97), flag) for name, flag in flags.items()}
for name in ("mnt", "uts", "net"):
    own = os.open(f"/proc/self/ns/{name}", os.O_RDONLY)
    result[f"setns {name}"] = in_child(call, (308, 268), own, 0)
"""
MOUNTS = """
where = sys.argv[2] if len(sys.argv) > 2 else "/tmp"
result = {
    "tmpfs": call((165, 40), b"x", where.encode(), b"tmpfs", 0, 0),
    "bind": call((165, 40), b"/proc", where.encode(), 0, 4096, 0),
    "remount": call((165, 40), b"", where.encode(), 0, 32, 0),
    "unmount": call((166, 39), where.encode(), 0),
    "fsopen": call((430, 430), b"tmpfs", 0),
    "open_tree": call((428, 428), -100, b"/", 1),
    "chroot": in_child(call, (161, 51), where.encode()),
}
"""
TRACING = """
child = sleeper()
victims = {"child": child, "first": 1} if os.getuid() else {"child": child}
result = {}
box = (ctypes.c_char * 64)()
class Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
here = Vector(ctypes.addressof(box), 64)
for name, pid in victims.items():
    result[f"seize {name}"] = call((101, 117), 0x4206, pid, 0, 0)
    there = Vector(ctypes.addressof(box), 64)
    result[f"read {name}"] = call((310, 270), pid, ctypes.byref(here), 1, ctypes.byref(there), 1, 0)
    result[f"write {name}"] = call((311, 271), pid, ctypes.byref(here), 1, ctypes.byref(there), 1, 0)
    result[f"descriptor {name}"] = call((438, 438), os.pidfd_open(pid), 0, 0)
    result[f"kcmp {name}"] = call((312, 272), os.getpid(), pid, 1, 0, 0)
os.kill(child, signal.SIGKILL)
"""
AGENT_FILES = """
victim = 1 if os.getuid() else sleeper()
def read(path):
    with open(path, "rb") as file:
        file.read(64)
result = {name: attempt(read, f"/proc/{victim}/{name}") for name in ("environ", "maps", "auxv", "io", "task")
          if name != "task"}
result["mem"] = attempt(os.open, f"/proc/{victim}/mem", os.O_RDWR)
result["fd"] = attempt(os.listdir, f"/proc/{victim}/fd")
result["fdinfo"] = attempt(os.listdir, f"/proc/{victim}/fdinfo")
result["map_files"] = attempt(os.listdir, f"/proc/{victim}/map_files")
for name in ("cwd", "root", "exe", "ns/net"):
    result[name] = attempt(os.readlink, f"/proc/{victim}/{name}")
for name in ("oom_score_adj", "coredump_filter", "clear_refs", "comm"):
    result[f"write {name}"] = attempt(os.open, f"/proc/{victim}/{name}", os.O_WRONLY)
if victim != 1:
    os.kill(victim, signal.SIGKILL)
"""
SOCKETS = """
families = {"packet": (17, 3, 0), "raw": (2, 3, 1), "raw 6": (10, 3, 58), "uevent": (16, 3, 15),
            "netfilter": (16, 3, 12), "generic": (16, 3, 16), "audit": (16, 3, 9)}
result = {name: attempt(socket.socket, *of) for name, of in families.items()}
"""
RARE_SOCKETS = """
families = {"vsock": (40, 1, 0), "crypto": (38, 5, 0), "key": (15, 3, 2), "bluetooth": (31, 3, 1), "can": (29, 3, 1),
            "tipc": (30, 5, 0), "xdp": (44, 3, 0), "rds": (21, 5, 0)}
result = {name: attempt(socket.socket, *of) for name, of in families.items()}
"""
DEVICES = """
places = sys.argv[2:] if not os.getuid() else ["/workspace", "/tmp", "/output", "/input", "/home/skill", "/dev/shm",
                                               "/run/skillcell"]
result = {}
for place in places:
    result[f"{place} null"] = attempt(os.mknod, place + "/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    result[f"{place} disk"] = attempt(os.mknod, place + "/disk", stat.S_IFBLK | 0o666, os.makedev(8, 0))
"""
SETTINGS = """
result = []
for root in ("/proc/sys", "/sys") if os.getuid() else ("/proc/sys/kernel",):
    for directory, _names, files in os.walk(root):
        for name in files:
            path = directory + "/" + name
            masked = os.path.exists(path) and os.stat(path).st_rdev == os.makedev(1, 3)  # by the null device
            if not masked and attempt(os.open, path, os.O_WRONLY | os.O_NONBLOCK) == "done":
                result.append(path)
    result += [path for path in (root,) if attempt(os.mkdir, path + "/skillcell") == "done"]
"""

REFUSED = {"EPERM", "EACCES"}

# the program, what may come of it inside, and arguments for it outside, where something must get through
DOORS = {
    "no_new_namespace": (NAMESPACES, {"EPERM"}),
    "nothing_can_be_mounted_or_unmounted": (MOUNTS, {"EPERM"}),
    "no_process_can_be_traced_read_or_robbed": (TRACING, {"EPERM"}),
    "the_agents_memory_descriptors_and_environment_are_closed": (AGENT_FILES, REFUSED),
    "no_raw_packet_or_kernel_socket": (SOCKETS, REFUSED),
    "no_device_node_can_be_made": (DEVICES, REFUSED),
}


@pytest.mark.parametrize("promise", DOORS)
async def test_a_door_is_shut(client: SkillcellClient, promise: str) -> None:
    source, allowed = DOORS[promise]
    answers = await report(client, source)
    assert answers
    assert {name: said for name, said in answers.items() if said not in allowed} == {}


@pytest.mark.parametrize("promise", DOORS)
@pytest.mark.skipif(os.geteuid() != 0, reason="outside of a sandbox these need root")
def test_the_same_door_is_open_to_who_is_not_in_a_sandbox(promise: str, tmp_path: Path) -> None:
    answers = report_outside(DOORS[promise][0], str(tmp_path))
    assert "done" in answers.values(), answers


async def test_no_rare_socket_family_can_be_used(client: SkillcellClient) -> None:
    assert set((await report(client, RARE_SOCKETS)).values()) == {"EPERM"}


async def test_no_setting_of_the_kernel_can_be_written(client: SkillcellClient) -> None:
    assert await report(client, SETTINGS) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="outside of a sandbox this needs root")
def test_the_same_settings_open_for_writing_to_who_is_not_in_a_sandbox() -> None:
    assert report_outside(SETTINGS)


async def test_what_is_masked_is_empty_or_absent(client: SkillcellClient) -> None:
    source = f"""
    def content(path):
        try:
            if os.path.isdir(path):
                return os.listdir(path)[:3]
            with open(path, "rb") as file:
                return file.read(64).decode(errors="replace")
        except OSError:
            return ""
    result = {{path: content(path) for path in {MASKED_PATHS!r}}}
    """
    assert {path: said for path, said in (await report(client, source)).items() if said} == {}
    assert any(report_outside(source).values())


async def test_the_devices_are_the_harmless_ones(client: SkillcellClient) -> None:
    source = """
    result = [os.path.join(directory, name) for directory, names, files in os.walk("/dev") for name in (*names, *files)
              if stat.S_ISBLK(os.lstat(os.path.join(directory, name)).st_mode)
              or stat.S_ISCHR(os.lstat(os.path.join(directory, name)).st_mode)]
    """
    allowed = {"null", "zero", "full", "random", "urandom", "tty", "ptmx", "console"}
    assert {os.path.basename(path) for path in await report(client, source)} <= allowed


async def test_a_skill_holds_three_descriptors_and_no_more(client: SkillcellClient) -> None:
    source = """
    import subprocess
    names = os.listdir("/proc/self/fd")
    own = sorted(int(fd) for fd in names if os.path.lexists(f"/proc/self/fd/{fd}"))
    shell = subprocess.run(["/bin/sh", "-c", "ls /proc/self/fd"], stdout=subprocess.PIPE, close_fds=False)
    result = [own, len(shell.stdout.split())]
    """
    assert await report(client, source) == [[0, 1, 2], 4]  # `ls` has the directory open


REACH = """
result = {}
for target in json.loads(sys.argv[2]):
    kind = socket.AF_UNIX if isinstance(target, str) else socket.AF_INET6 if ":" in target[0] else socket.AF_INET
    with socket.socket(kind) as probe:
        probe.settimeout(1)
        result[str(target)] = attempt(probe.connect, target if isinstance(target, str) else tuple(target))
"""


async def test_no_service_of_the_machine_can_be_reached(
    client: SkillcellClient, gateway: Gateway, tmp_path: Path
) -> None:
    listeners = {"127.0.0.1": socket.AF_INET, "::1": socket.AF_INET6}
    abstract, path = f"\0skillcell-{tmp_path.name}-{gateway.driver}", str(tmp_path / "s")
    with ExitStack() as stack:
        opened = []
        for address, family in listeners.items():
            if family == socket.AF_INET6 and not Path("/proc/sys/net/ipv6").exists():
                continue
            opened.append(stack.enter_context(socket.create_server((address, 0), family=family)))
        for name in (abstract, path):
            opened.append(stack.enter_context(socket.socket(socket.AF_UNIX)))
            opened[-1].bind(name)
            opened[-1].listen()
        host, port = gateway.address.rsplit(":", 1)
        targets = json.dumps(
            [
                *([listener.getsockname()[0], listener.getsockname()[1]] for listener in opened[:-2]),
                *(abstract, path, "/var/run/docker.sock", "/run/containerd/containerd.sock", [host, int(port)]),
                *([address, 80] for address in ("169.254.169.254", "172.17.0.1", "10.0.2.2", "192.168.0.1")),
            ]
        )
        answers = await report(client, REACH, targets)
        assert "done" not in answers.values(), answers
        for listener in opened:
            listener.setblocking(False)
            with pytest.raises(BlockingIOError):
                listener.accept()
        outside = [socket.socket(listener.family) for listener in opened]
        for probe, listener in zip(outside, opened, strict=True):
            with probe:
                probe.connect(listener.getsockname())
            listener.accept()[0].close()


async def test_nothing_names_the_host_or_another_tenants_call(client: SkillcellClient, gateway: Gateway) -> None:
    marker = f"marker-{os.getpid()}-of-another"
    other = client.execute(
        "dev/lab", **spec(f"import os; os.execv('/bin/sh', ['sh', '-c', 'echo up; sleep 60; : {marker}'])")
    )
    async with aclosing(other) as stream:
        seen = await until(stream, Stdout)
        sandbox = next(event.kind.sandbox_id for event in seen if isinstance(event.kind, Started))
        assert any(marker in line for line in gateway.processes().values())
        source = """
        texts = [f"/proc/{name}/{file}" for name in os.listdir("/proc") if name.isdigit() or name == "self"
                 for file in ("cmdline", "mountinfo", "mounts", "mountstats", "cgroup", "environ", "status", "comm")]
        texts += ["/proc/mounts", "/proc/net/unix", "/proc/net/tcp", "/proc/locks", "/proc/sys/kernel/hostname",
                  "/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/etc/mtab"]
        result = {"pids": sorted(int(name) for name in os.listdir("/proc") if name.isdigit()), "text": ""}
        for path in texts:
            try:
                with open(path, errors="replace") as file:
                    result["text"] += path + ": " + file.read() + "\\n"
            except OSError:
                pass
        result["uts"] = list(os.uname())[1]
        """
        found = await report(client, source)
    strangers = [marker, sandbox, str(gateway.data), str(Path.home()) + "/", socket.gethostname()]
    if gateway.driver == "oci":  # an engine's mounts name its own volumes, and those their gateway
        strangers += [gateway.instance, "/var/lib/", "/run/docker"]
    lines = [line for line in found["text"].splitlines() for word in strangers if word in line]
    assert lines == []
    assert found["uts"] != socket.gethostname()
    assert len(found["pids"]) <= 3


async def test_no_signal_stops_or_ends_the_agent(client: SkillcellClient) -> None:
    source = """
    me = os.getpid()
    for number in range(1, 65):
        attempt(os.kill, 1, number)
        call((234, 131), 1, 1, number)
    agent = os.pidfd_open(1)
    for number in (signal.SIGSTOP, signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV):
        attempt(signal.pidfd_send_signal, agent, number)
    for _ in range(20_000):
        os.kill(1, signal.SIGCHLD)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    attempt(os.kill, -1, signal.SIGKILL)
    attempt(os.setpriority, os.PRIO_PROCESS, 1, 19)
    attempt(os.sched_setscheduler, 1, os.SCHED_IDLE, os.sched_param(0))
    result = me
    """
    assert await report(client, source) > 1


async def test_no_resource_limit_starves_the_agent(client: SkillcellClient) -> None:
    """It has the Skill's uid. Without CPU time it died, which was a fault of the platform, and free of charge."""
    source = """
    import resource
    kinds = ("CPU", "NOFILE", "AS", "DATA", "FSIZE", "NPROC", "STACK")
    result = {kind: attempt(resource.prlimit, 1, getattr(resource, "RLIMIT_" + kind), (0, 0)) for kind in kinds}
    for _ in range(50_000):
        os.kill(1, signal.SIGCHLD)
    """
    assert set((await report(client, source)).values()) == {"EPERM"}


async def test_nothing_written_anywhere_passes_for_a_frame(client: SkillcellClient) -> None:
    source = """
    import struct
    said = b"".join(struct.pack(">BI", kind, len(body)) + body for kind in range(256) for body in (
        b"", b'{"code":0,"signal":null,"disk":{}}', b'{"name":"forged.txt","size":3,"mode":420}', b'{"n":1}'))
    said += b'{"type":"output","value":{"n":1}}\\n{"outcome":"SUCCEEDED","billable":false,"usage":{"billed_ms":0}}\\n'
    for fd in range(3, 256):
        try:
            os.write(fd, said)
        except OSError:
            pass
    for fd in (1, 2):
        os.write(fd, said)
    os._exit(3)
    """
    result = await hostile(client, source)
    assert (result.outcome, result.exit_code) == (Outcome.FAILED, 3)
    assert (result.outputs, result.artifacts, result.logs) == ((), (), ())
    assert result.stdout == result.stderr
    assert result.usage.output_bytes == 2 * len(result.stdout) > 10_000


async def test_the_cpu_spent_is_billed_whatever_is_said(client: SkillcellClient) -> None:
    """By a grandchild in a session of its own, orphaned, that nobody waits for: the kernel counts it all the same."""
    source = """
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            while time.process_time() < 0.5:
                pass
            os.write(writing, b"x")
        os._exit(0)
    os.read(reading, 1)
    result = 0
    """
    result = await hostile(client, source)
    assert result.usage.cpu_total_ns >= 500_000_000


async def test_a_daemon_dies_with_the_call_and_is_not_billed_after(client: SkillcellClient, gateway: Gateway) -> None:
    marker = f"daemon-{os.getpid()}-{gateway.driver}"
    source = f"""
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.dup2(writing, 1)
            os.execv("/bin/sh", ["sh", "-c", "trap '' HUP INT QUIT TERM; echo up; sleep 60; : {marker}"])
        os._exit(0)
    os.read(reading, 2)
    """
    async with asyncio.timeout(20):
        result = await hostile(client, source)
    assert result.outcome is Outcome.SUCCEEDED
    assert not any(marker in line for line in gateway.processes().values())
    assert result.usage.billed_ms < 10_000
