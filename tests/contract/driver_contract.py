"""What every driver owes, as tests: subclass `DriverContract`, give it a `driver`, and it asserts exactly what is
declared.

A subclass overrides the fixture `driver` (an entered driver) and, where they differ, `isolation`, `image` and
`cgroups`. Where a guarantee is not declared, the test of it asserts nothing but that the sandbox works.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import pytest

from contract.sandbox_probe import inside, probe_command, read_exactly
from skillcell.core.errors import Fault, FaultKind
from skillcell.core.ids import sandbox_id
from skillcell.core.types import MEBIBYTE, SECOND_NS, Isolation, Limits, Measurement
from skillcell.sandbox.cgroups import Cgroup, CgroupTree
from skillcell.sandbox.driver import Driver, Guarantee, PackageMount, Sandbox, SandboxSpec
from skillcell.sandbox.images import Image

Make = Callable[..., Awaitable[Sandbox]]


class Cgroups(Protocol):
    """Where the cgroup of a sandbox is found by its id."""

    def open(self, sandbox_id: str) -> Cgroup | None: ...


LIMITS = Limits(memory_bytes=192 * MEBIBYTE, disk_bytes=48 * MEBIBYTE, disk_files=600, pids=48, open_files=200)

EPERM, ENOSYS = 1, 38

# x86-64 and arm64 numbers of calls that nothing inside may make, with arguments that would work outside
_REFUSED = """
import platform
numbers = {
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "ptrace": (101, 117), "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "kexec_load": (246, 104), "quotactl": (179, 60), "fsopen": (430, 430),
    "open_tree": (428, 428), "move_mount": (429, 429), "pidfd_getfd": (438, 438), "swapon": (167, 224),
    "init_module": (175, 105), "syslog": (103, 116), "fanotify_init": (300, 262), "vmsplice": (278, 75),
}
which = 0 if platform.machine() == "x86_64" else 1
result = {name: call(pair[which], 0, 0, 0, 0, 0) for name, pair in numbers.items()}
result["clone with a new user namespace"] = call((56, 220)[which], 0x10000000 | 17, 0, 0, 0, 0)
result["clone with a new network"] = call((56, 220)[which], 0x40000000 | 17, 0, 0, 0, 0)
result["clone3"] = call(435, 0, 0)
result["personality"] = call((135, 92)[which], 0x0040000)
for family in (40, 17, 38, 16):
    result[f"socket of family {family}"] = call((41, 198)[which], family, 3, 9)
"""


class DriverContract:
    """One suite for every driver and class."""

    isolation = Isolation.STANDARD

    @pytest.fixture
    def driver(self) -> Driver:
        raise NotImplementedError("a subclass gives the driver")

    @pytest.fixture
    def image(self, python_image: Image) -> Image:
        return python_image

    @pytest.fixture
    def cgroups(self) -> Cgroups:
        """The tree below which this driver's sandboxes have their cgroups."""
        return CgroupTree.detect("skillcell-test")

    @pytest.fixture
    def declared(self, driver: Driver) -> frozenset[Guarantee]:
        return driver.guarantees(self.isolation)

    @pytest.fixture
    async def make(self, driver: Driver, image: Image) -> AsyncIterator[Make]:
        """Make a sandbox that is destroyed after the test."""
        made: list[str] = []

        async def create(limits: Limits = LIMITS, mounts: tuple[PackageMount, ...] = (), **changes: Any) -> Sandbox:
            spec = SandboxSpec(sandbox_id(), image, self.isolation, limits, mounts, probe_command(image.python))
            made.append(spec.sandbox_id)
            return await driver.create(replace(spec, **changes))

        yield create
        for made_id in made:
            await driver.destroy(made_id)

    async def test_bytes_travel_both_ways_unharmed(self, make: Make) -> None:
        sandbox = await make()
        assert await inside(sandbox, "result = 6 * 7") == 42
        text = "".join(chr(code) for code in range(32, 0x2000)) * 100
        assert await inside(sandbox, f"result = {text!r}") == text

    async def test_a_large_stream_is_carried_with_back_pressure(self, make: Make) -> None:
        sandbox = await make()
        size = 16 * MEBIBYTE
        source = f"give(b'x' * {size}); result = 'sent'".encode()
        await sandbox.channel.write(len(source).to_bytes(4) + source)
        assert await read_exactly(sandbox.channel, size) == b"x" * size

    async def test_nothing_of_the_hosts_environment_is_inside(self, make: Make, image: Image) -> None:
        names = set(await inside(await make(), "result = list(os.environ)"))
        assert names <= {"PATH", "HOSTNAME", "HOME", *image.env}

    async def test_there_is_no_network_but_loopback(self, make: Make, declared: frozenset[Guarantee]) -> None:
        sandbox = await make()
        if Guarantee.NO_NETWORK in declared:
            lines = await inside(sandbox, "result = read('/proc/net/dev').splitlines()[2:]")
            assert [line.split(":")[0].strip() for line in lines] == ["lo"]
            code = "s = socket.socket(); result = refused(s.connect, ('192.0.2.1', 80))"
            assert await inside(sandbox, code) in {101, 113}  # ENETUNREACH; gVisor's kernel says EHOSTUNREACH

    async def test_a_server_on_loopback_can_be_reached(self, make: Make) -> None:
        code = """
server = socket.create_server(("127.0.0.1", 0))
with socket.create_connection(server.getsockname()) as client:
    server.accept()[0].sendall(b"hello")
    result = client.recv(5).decode()
"""
        assert await inside(await make(), code) == "hello"

    async def test_it_holds_no_privilege(self, make: Make, declared: frozenset[Guarantee]) -> None:
        status = await inside(
            await make(),
            "result = dict(line.split(':', 1) for line in read('/proc/self/status').splitlines() if ':' in line)",
        )
        fields = {name: value.strip() for name, value in status.items()}
        if Guarantee.NO_CAPABILITIES in declared:
            for name in ("CapInh", "CapPrm", "CapEff", "CapBnd"):
                assert int(fields[name], 16) == 0, name
        if Guarantee.NON_ROOT_INSIDE in declared:
            assert "0" not in fields["Uid"].split()
            assert "0" not in fields["Gid"].split()
            assert "0" not in fields.get("Groups", "").split()
        if Guarantee.NO_NEW_PRIVILEGES in declared:
            assert fields.get("NoNewPrivs", "1") == "1"
            assert await inside(await make(), "result = libc.prctl(39, 0, 0, 0, 0)") == 1  # PR_GET_NO_NEW_PRIVS
        if Guarantee.SECCOMP in declared:
            assert fields["Seccomp"] == "2"

    async def test_dangerous_system_calls_are_refused(self, make: Make, declared: frozenset[Guarantee]) -> None:
        answers = await inside(await make(), _REFUSED)
        if Guarantee.SECCOMP in declared:
            assert answers.pop("clone3") == -ENOSYS
            assert answers == dict.fromkeys(answers, -EPERM)

    async def test_resource_limits_can_be_set_for_oneself_alone(
        self, make: Make, declared: frozenset[Guarantee]
    ) -> None:
        """The agent has the Skill's uid, so the kernel alone would let it be starved of files, memory or CPU time."""
        code = """
import resource, subprocess
def lower(pid):
    return refused(resource.prlimit, pid, resource.RLIMIT_CPU, (3600, 3600))  # harmless where it is granted
other = os.fork()
if other == 0:
    signal.pause()
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
shell = subprocess.run(["/bin/sh", "-c", "ulimit -n 50 && ulimit -n"], capture_output=True)
result = {
    "other": lower(other), "first": lower(1), "parent": lower(os.getppid() or 1),
    "own": resource.getrlimit(resource.RLIMIT_NOFILE)[0] - soft, "shell": shell.stdout.decode().strip(),
}
os.kill(other, signal.SIGKILL)
os.waitpid(other, 0)
"""
        answers = await inside(await make(), code)
        assert (answers["own"], answers["shell"]) == (-1, "50")
        if Guarantee.SECCOMP in declared:
            assert {answers[whose] for whose in ("other", "first", "parent")} == {EPERM}

    async def test_harmless_system_calls_work(self, make: Make) -> None:
        code = """
import subprocess, threading, tempfile
box = []
thread = threading.Thread(target=lambda: box.append(1)); thread.start(); thread.join()
left, right = socket.socketpair()
os.mkfifo("/tmp/fifo")
result = [box, subprocess.run([sys.executable, "-c", "print(2)"], capture_output=True).stdout.decode().strip(),
          len(os.sched_getaffinity(0)) > 0, socket.getaddrinfo("127.0.0.1", 80)[0][4][1]]
"""
        assert await inside(await make(), code) == [[1], "2", True, 80]

    async def test_its_user_is_nobody_on_the_host_and_its_own(
        self, make: Make, declared: frozenset[Guarantee], cgroups: Cgroups
    ) -> None:
        first, second = await make(), await make()
        seen = []
        for sandbox in (first, second):
            await inside(sandbox, "result = 0")
            seen.append({os.stat(f"/proc/{pid}").st_uid for pid in _pids(cgroups, sandbox)} - {None})
        if Guarantee.NON_ROOT_OUTSIDE in declared:
            assert 0 not in seen[0] | seen[1]
        if Guarantee.OWN_UID in declared:
            assert not seen[0] & seen[1]
        if Guarantee.USER_NAMESPACE in declared:
            rows = await inside(first, "result = read('/proc/self/uid_map').split()")
            assert rows[2::3] == ["1", "1"]

    async def test_its_namespaces_are_its_own(
        self, make: Make, declared: frozenset[Guarantee], cgroups: Cgroups
    ) -> None:
        sandbox = await make()
        await inside(sandbox, "result = 0")
        if Guarantee.PRIVATE_NAMESPACES in declared:
            (pid, *_) = sorted(_pids(cgroups, sandbox), reverse=True)
            for kind in ("pid", "ipc", "uts", "mnt", "cgroup", "net"):
                assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}"), kind

    async def test_its_root_is_read_only_and_its_own_places_are_not(
        self, make: Make, declared: frozenset[Guarantee]
    ) -> None:
        sandbox = await make()
        if Guarantee.READ_ONLY_ROOT in declared:
            for path in ("/x", "/usr/x", "/etc/x", "/skill/x", "/dev/x", "/var/lib/x"):
                code = f"result = refused(os.open, {path!r}, os.O_CREAT | os.O_WRONLY)"
                assert await inside(sandbox, code) in {1, 2, 13, 30}, path
        for path in ("/workspace", "/tmp", "/output", "/input", "/home/skill", "/run/skillcell"):
            assert (
                await inside(sandbox, f"open({path!r} + '/x', 'w').write('y'); result = read({path!r} + '/x')") == "y"
            )

    async def test_what_names_the_host_is_masked(self, make: Make, declared: frozenset[Guarantee]) -> None:
        sandbox = await make()
        if Guarantee.MASKED_PATHS not in declared:
            return
        for path in ("/proc/kcore", "/proc/keys", "/proc/timer_list"):
            code = f"result = open({path!r}, 'rb').read(64).decode() if os.path.exists({path!r}) else ''"
            assert await inside(sandbox, code) == "", path
        for path in ("/proc/acpi", "/proc/scsi", "/sys/firmware"):
            assert await inside(sandbox, f"result = os.listdir({path!r}) if os.path.exists({path!r}) else []") == []
        assert await inside(sandbox, "result = refused(os.open, '/proc/sys/kernel/core_pattern', os.O_WRONLY)") in {
            2,
            13,
            30,
        }
        code = """
path = "/proc/sysrq-trigger"  # masked as a file is: by the null device, where the kernel has it at all
null = os.path.exists(path) and os.stat(path).st_rdev == os.makedev(1, 3)
result = null or refused(os.open, path, os.O_WRONLY)
"""
        assert await inside(sandbox, code) in {True, 2, 13, 30}

    async def test_running_out_of_memory_is_counted(self, make: Make, declared: frozenset[Guarantee]) -> None:
        if Guarantee.MEMORY_LIMIT not in declared:
            return
        sandbox = await make()
        code = """
pid = os.fork()
if pid == 0:
    open("/proc/self/oom_score_adj", "w").write("1000")
    bytearray(1 << 30)
    os._exit(0)
result = os.waitpid(pid, 0)[1]
"""
        assert await inside(sandbox, code) == 9
        counters = await sandbox.counters()
        assert counters.oom_kills >= 1
        assert LIMITS.memory_bytes * 0.9 <= counters.memory_peak_bytes <= LIMITS.memory_bytes

    async def test_files_count_as_memory(self, make: Make, declared: frozenset[Guarantee]) -> None:
        if Guarantee.MEMORY_LIMIT not in declared:
            return
        sandbox = await make(replace(LIMITS, disk_bytes=96 * MEBIBYTE))  # enough where it is split among directories
        before = (await sandbox.counters()).memory_peak_bytes
        await inside(sandbox, f"open('/workspace/x', 'wb').write(b'x' * {30 * MEBIBYTE}); result = 0")
        assert (await sandbox.counters()).memory_peak_bytes - before >= 25 * MEBIBYTE

    async def test_what_was_used_before_a_call_is_not_the_call_s(
        self, make: Make, declared: frozenset[Guarantee]
    ) -> None:
        if Guarantee.EXACT_USAGE not in declared:
            return
        sandbox = await make()
        await inside(sandbox, "big = bytearray(40 << 20); del big; result = 0")
        high = (await sandbox.counters()).memory_peak_bytes
        before = await sandbox.begin()
        await inside(sandbox, "big = bytearray(4 << 20); result = 0")
        after = await sandbox.counters()
        assert high >= 40 << 20
        assert before.memory_peak_bytes <= after.memory_peak_bytes
        assert before.memory_peak_bytes <= high
        if before.memory_peak_bytes < high // 2:
            assert after.memory_peak_bytes - before.memory_peak_bytes < 20 << 20

    async def test_cpu_time_is_exact(self, make: Make, declared: frozenset[Guarantee]) -> None:
        sandbox = await make()
        await inside(sandbox, "result = 0")
        before = (await sandbox.counters()).cpu_total_ns
        code = """
start = time.process_time_ns()
while time.process_time_ns() - start < 400_000_000:
    pass
result = time.process_time_ns() - start
"""
        used = await inside(sandbox, code)
        await sandbox.kill()
        after = await sandbox.counters()
        if Guarantee.EXACT_USAGE in declared:
            assert after.measurement is Measurement.EXACT
            assert abs(after.cpu_total_ns - before - used) <= used * 0.01 + 2_000_000
            assert after.cpu_user_ns + after.cpu_system_ns == pytest.approx(after.cpu_total_ns, rel=0.01)

    async def test_the_cpu_rate_is_limited(self, make: Make, declared: frozenset[Guarantee]) -> None:
        if Guarantee.CPU_RATE_LIMIT not in declared:
            return
        sandbox = await make(replace(LIMITS, milli_cpus=250))
        await inside(sandbox, "result = 0")
        before = (await sandbox.counters()).cpu_total_ns
        code = """
start = time.monotonic_ns()
while time.monotonic_ns() - start < 800_000_000:
    pass
result = time.monotonic_ns() - start
"""
        wall = await inside(sandbox, code)
        assert (await sandbox.counters()).cpu_total_ns - before <= wall * 0.25 + 0.05 * SECOND_NS

    async def test_processes_are_limited_and_their_peak_is_counted(
        self, make: Make, declared: frozenset[Guarantee]
    ) -> None:
        if Guarantee.PIDS_LIMIT not in declared:
            return
        sandbox = await make()
        code = """
children = []
try:
    while len(children) < 1000:
        pid = os.fork()
        if pid == 0:
            signal.pause()
        children.append(pid)
except BlockingIOError:
    pass
for pid in children:
    os.kill(pid, 9)
    os.waitpid(pid, 0)
result = len(children)
"""
        alive = await inside(sandbox, code)
        assert LIMITS.pids - 5 <= alive < LIMITS.pids
        assert (await sandbox.counters()).pids_peak == LIMITS.pids

    async def test_writable_bytes_are_limited(self, make: Make, declared: frozenset[Guarantee]) -> None:
        if Guarantee.DISK_BYTES_LIMIT not in declared:
            return
        sandbox = await make()
        code = """
total, results = 0, []
for where in ("/workspace", "/tmp", "/output", "/home/skill", "/dev/shm"):
    with open(where + "/big", "wb", buffering=0) as file:
        try:
            while total < 1 << 28:
                total += file.write(b"x" * 65536)
        except OSError as error:
            results.append(error.errno)
result = [total, results]
"""
        total, refusals = await inside(sandbox, code)
        assert total <= LIMITS.disk_bytes
        assert refusals == [28] * 5
        disk = await sandbox.disk()
        if Guarantee.SHARED_DISK_LIMIT in declared:
            assert total >= LIMITS.disk_bytes - MEBIBYTE
            assert disk is not None
            assert disk.bytes_limit == LIMITS.disk_bytes
            assert disk.bytes_used >= total

    async def test_writable_files_are_limited(self, make: Make, declared: frozenset[Guarantee]) -> None:
        if Guarantee.DISK_FILES_LIMIT not in declared:
            return
        sandbox = await make()
        code = """
count = 0
for where in ("/workspace", "/tmp", "/output", "/home/skill", "/dev/shm"):
    try:
        for number in range(5000):
            os.close(os.open(f"{where}/{number}", os.O_CREAT | os.O_WRONLY))
            count += 1
    except OSError as error:
        assert error.errno == errno.ENOSPC
result = count
"""
        count = await inside(sandbox, code)
        assert count <= LIMITS.disk_files
        disk = await sandbox.disk()
        if Guarantee.SHARED_DISK_LIMIT in declared:
            assert count >= LIMITS.disk_files - 4
            assert disk is not None
            assert (disk.files_used, disk.files_limit) == (LIMITS.disk_files, LIMITS.disk_files)

    async def test_a_sparse_file_can_not_pass_the_disk_limit(self, make: Make) -> None:
        code = """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
file = os.open("/tmp/sparse", os.O_CREAT | os.O_WRONLY)
result = [refused(os.ftruncate, file, 1 << 40), resource.getrlimit(resource.RLIMIT_CORE)[1]]
"""
        assert await inside(await make(), code) == [27, 0]  # EFBIG

    async def test_open_files_are_limited(self, make: Make, declared: frozenset[Guarantee]) -> None:
        if Guarantee.OPEN_FILES_LIMIT not in declared:
            return
        code = """
held = []
try:
    while len(held) < 5000:
        held.append(os.open("/dev/null", os.O_RDONLY))
except OSError as error:
    result = [len(held), error.errno]
for descriptor in held:
    os.close(descriptor)
"""
        count, error = await inside(await make(), code)
        assert error == 24
        assert count <= LIMITS.open_files

    async def test_a_package_is_there_and_can_not_be_changed(self, make: Make, tmp_path: Path) -> None:
        for name in ("skill", "layer"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "file").write_text(name)
            os.chmod(tmp_path / name, 0o777)
            os.chmod(tmp_path / name / "file", 0o666)
        os.chmod(tmp_path, 0o700)  # a data directory is private
        mounts = (
            PackageMount("a" * 64, tmp_path / "skill", "/skill"),
            PackageMount("b" * 64, tmp_path / "layer", "/layers/pip"),
        )
        sandbox = await make(mounts=mounts)
        assert await inside(sandbox, "result = [read('/skill/file'), read('/layers/pip/file')]") == ["skill", "layer"]
        for path in ("/skill/file", "/skill/new", "/layers/pip/file", "/layers/pip/new", "/layers/new"):
            code = f"result = refused(os.open, {path!r}, os.O_CREAT | os.O_WRONLY)"
            assert await inside(sandbox, code) in {13, 30}, path
        assert (tmp_path / "skill" / "file").read_text() == "skill"

    async def test_no_path_of_the_host_shows_where_that_is_declared(
        self, make: Make, image: Image, declared: frozenset[Guarantee], tmp_path: Path
    ) -> None:
        if Guarantee.NO_HOST_PATHS not in declared:
            return
        (tmp_path / "skill").mkdir()
        sandbox = await make(mounts=(PackageMount("a" * 64, tmp_path / "skill", "/skill"),))
        seen = await inside(sandbox, "result = [read('/proc/self/' + name) for name in ('mountinfo', 'mounts')]")
        for path in (str(tmp_path), str(image.rootfs), sandbox.sandbox_id, "/run/skillcell/oci", "/var/lib"):
            assert not [text for text in seen if path in text], path

    async def test_killing_ends_a_fork_storm_that_ignores_signals(self, make: Make, cgroups: Cgroups) -> None:
        sandbox = await make()
        code = """
if os.fork() == 0:
    for number in range(1, 32):
        try:
            signal.signal(number, signal.SIG_IGN)
        except OSError:
            pass
    os.setsid()
    while True:
        try:
            os.fork()
        except OSError:
            pass
time.sleep(0.3)
result = 0
"""
        await inside(sandbox, code)
        async with asyncio.timeout(20):
            await sandbox.kill()
        assert not _pids(cgroups, sandbox)
        assert await sandbox.channel.read(1) == b""
        counters = await sandbox.counters()
        assert counters.cpu_total_ns > 0
        assert counters.pids_peak >= 10
        await sandbox.kill()

    async def test_destroying_leaves_nothing(self, make: Make, driver: Driver, cgroups: Cgroups) -> None:
        sandbox = await make()
        await inside(sandbox, "open('/tmp/x', 'w').write('x'); result = 0")
        pids = _pids(cgroups, sandbox)
        await driver.destroy(sandbox.sandbox_id)
        assert not traces(sandbox.sandbox_id)
        assert all(not Path(f"/proc/{pid}").exists() for pid in pids)
        assert sandbox.sandbox_id not in {found.sandbox_id for found in await driver.list()}
        await driver.destroy(sandbox.sandbox_id)

    async def test_destroying_what_never_was_is_fine(self, driver: Driver) -> None:
        await driver.destroy(sandbox_id())

    async def test_an_id_in_use_is_refused_and_its_sandbox_lives_on(self, make: Make) -> None:
        sandbox = await make()
        with pytest.raises(Fault) as raised:
            await make(sandbox_id=sandbox.sandbox_id)
        assert raised.value.kind is FaultKind.ALREADY_EXISTS
        assert await inside(sandbox, "result = 1") == 1

    async def test_a_sandbox_that_can_not_start_leaves_nothing(self, make: Make, driver: Driver) -> None:
        taken = sandbox_id()
        with pytest.raises(Fault):
            await make(sandbox_id=taken, command=("/no/such/program",))
        assert not traces(taken)
        assert taken not in {found.sandbox_id for found in await driver.list()}

    async def test_a_limit_that_can_not_be_enforced_is_refused(self, make: Make) -> None:
        for limits in (replace(LIMITS, memory_bytes=1), replace(LIMITS, disk_bytes=0), replace(LIMITS, pids=0)):
            with pytest.raises(Fault):
                await make(limits)

    async def test_what_exists_is_listed_with_its_counters(self, make: Make, driver: Driver) -> None:
        sandbox = await make()
        await inside(sandbox, "result = 0")
        found = {found.sandbox_id: found for found in await driver.list()}
        assert sandbox.sandbox_id in found

    async def test_ending_kills_and_leaves_the_counters(self, make: Make, driver: Driver, cgroups: Cgroups) -> None:
        sandbox = await make()
        await inside(sandbox, "result = sum(range(10**6))")
        pids = _pids(cgroups, sandbox)
        first = await driver.end(sandbox.sandbox_id)
        assert first is not None
        assert first.alive
        assert not _pids(cgroups, sandbox)
        again = await driver.end(sandbox.sandbox_id)
        assert again is not None
        assert not again.alive
        assert (first.counters is None) == (again.counters is None) == (not pids)
        if first.counters is not None and again.counters is not None:
            seen = await sandbox.counters()
            assert 0 < first.counters.cpu_total_ns == again.counters.cpu_total_ns == seen.cpu_total_ns
        await driver.destroy(sandbox.sandbox_id)
        assert await driver.end(sandbox.sandbox_id) is None

    async def test_the_agent_going_away_ends_the_channel(self, make: Make) -> None:
        sandbox = await make()
        code = b"os._exit(3)"
        await sandbox.channel.write(len(code).to_bytes(4) + code)
        async with asyncio.timeout(20):
            assert await sandbox.channel.read(1) == b""

    async def test_checks_say_how_things_are_or_the_exact_fix(self, driver: Driver) -> None:
        checks = await driver.check()
        assert checks
        assert all(check.ok or check.fix for check in checks)


def _pids(cgroups: Cgroups, sandbox: Sandbox) -> frozenset[int]:
    cgroup = cgroups.open(sandbox.sandbox_id)
    return cgroup.pids() if cgroup is not None else frozenset()


def traces(wanted: str) -> list[str]:
    """Where on the host the id of a sandbox still shows: cgroups, mounts, run directories."""
    found = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if wanted in line]
    for top in ("/sys/fs/cgroup", "/run/skillcell-test"):
        for directory, names, files in os.walk(top):
            found += [f"{directory}/{name}" for name in (*names, *files) if wanted in name]
            found += [f"{directory}/{name}" for name in (*names, *files) if _points_to(f"{directory}/{name}", wanted)]
    return found


def _points_to(path: str, wanted: str) -> bool:
    return os.path.islink(path) and wanted in os.readlink(path)
