"""What a Skill must not use up, hold, or outlive: each limit holds, each end comes, and each call is billed."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from security.programs import LIMITS, hostile, report
from skillcell.client import SkillcellClient
from skillcell.core.types import MEBIBYTE, SECOND_NS, Outcome

SHORT = replace(LIMITS, wall_ns=SECOND_NS)
WHERE_FILES_GO = '("/workspace", "/tmp", "/output", "/input", "/home/skill", "/dev/shm", "/run/skillcell")'


def cgroups_of_all() -> list[str]:
    """Of every process on this machine."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            found.append((entry / "cgroup").read_text() if entry.name.isdigit() else "")
    return found


async def test_a_fork_storm_is_bounded_and_ended(client: SkillcellClient) -> None:
    source = """
    for number in set(range(1, 32)) - {9, 17, 19}:
        signal.signal(number, signal.SIG_IGN)
    while True:
        try:
            if os.fork() == 0:
                os.setsid()
        except OSError:
            pass
    """
    result = await hostile(client, source, limits=SHORT)
    assert result.outcome is Outcome.TIMED_OUT
    assert SHORT.pids is not None
    assert SHORT.pids // 2 <= result.usage.pids_peak <= SHORT.pids
    assert result.usage.times.run_ns < 10 * SECOND_NS
    assert result.started is not None
    sandbox = result.started.sandbox_id
    assert not any(sandbox in groups for groups in cgroups_of_all())


async def test_threads_count_as_processes(client: SkillcellClient) -> None:
    source = """
    alive = 0
    ready = threading.Event()
    try:
        while alive < 1000:
            threading.Thread(target=ready.wait, daemon=True).start()
            alive += 1
    except RuntimeError:
        pass
    ready.set()
    result = alive
    """
    assert LIMITS.pids is not None
    assert LIMITS.pids - 8 <= await report(client, source) < LIMITS.pids


async def test_zombies_are_bounded_and_orphans_are_reaped(client: SkillcellClient) -> None:
    source = """
    orphans = 0
    while orphans < 300:
        try:
            child = os.fork()
        except BlockingIOError:
            continue
        if child == 0:
            try:
                os.fork()
            except OSError:
                pass
            os._exit(0)
        os.waitpid(child, 0)
        orphans += 1
    zombies = 0
    try:
        while zombies < 1000:
            if os.fork() == 0:
                os._exit(0)
            zombies += 1
    except BlockingIOError:
        pass
    result = [orphans, zombies]
    """
    orphans, zombies = await report(client, source)
    assert LIMITS.pids is not None
    assert (orphans, zombies < LIMITS.pids) == (300, True)


HELD = {
    "the heap": "box = bytearray(1 << 30)",
    "memfd": """
while True:
    fd = os.memfd_create("x")
    for _ in range(8):
        os.write(fd, bytes(1 << 20))
""",
    "shared pages": """
import mmap
box = mmap.mmap(-1, 1 << 30)
box.write(bytes(1 << 30))
""",
}


@pytest.mark.parametrize("kind", HELD)
async def test_memory_is_limited_however_it_is_held(client: SkillcellClient, kind: str) -> None:
    result = await hostile(client, HELD[kind])
    assert result.outcome is Outcome.OUT_OF_MEMORY
    assert LIMITS.memory_bytes is not None
    assert result.usage.memory_peak_bytes > LIMITS.memory_bytes * 0.9


async def test_files_anywhere_count_as_memory_and_hit_the_disk_limit(client: SkillcellClient) -> None:
    """Each place that takes files, filled: never more than the memory limit, and the agent lives to tell."""
    source = f"""
    written = 0
    for place in {WHERE_FILES_GO}:
        try:
            with open(place + "/fill", "wb", buffering=0) as file:
                while written < 1 << 30:
                    written += file.write(bytes(1 << 16))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EFBIG):
                raise
    sys.exit(5)
    """
    result = await hostile(client, source)
    assert result.outcome in (Outcome.DISK_LIMIT_EXCEEDED, Outcome.OUT_OF_MEMORY)
    assert result.usage.memory_peak_bytes > 8 * MEBIBYTE


async def test_names_run_out_before_the_machine_does(client: SkillcellClient) -> None:
    source = f"""
    made = 0
    for place in {WHERE_FILES_GO}:
        try:
            while made < 100_000:
                os.mknod(f"{{place}}/{{made}}")
                made += 1
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
    print(made, flush=True)
    sys.exit(5)
    """
    limits = replace(LIMITS, disk_files=500)
    result = await hostile(client, source, limits=limits)
    assert result.outcome is Outcome.DISK_LIMIT_EXCEEDED
    assert 400 <= int(result.stdout) < 7 * 600


async def test_a_sparse_file_of_a_terabyte_hits_the_limit(client: SkillcellClient) -> None:
    source = """
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    result = []
    with open("/output/sparse", "wb") as file:
        result.append(attempt(file.truncate, 1 << 40))
        result.append(attempt(os.posix_fallocate, file.fileno(), 0, 1 << 40))
        result.append(attempt(os.pwrite, file.fileno(), b"x", 1 << 40))
    """
    assert set(await report(client, source)) <= {"EFBIG", "ENOSPC"}


async def test_pipes_sockets_and_descriptors_run_out_inside(client: SkillcellClient) -> None:
    source = """
    import fcntl
    held, written = [], 0
    try:
        while len(held) < 100_000:
            held += os.pipe()
            os.set_blocking(held[-1], False)
            try:
                fcntl.fcntl(held[-1], 1031, 1 << 20)
            except OSError:
                pass
            try:
                while True:
                    written += os.write(held[-1], bytes(1 << 16))
            except BlockingIOError:
                pass
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
    sys.exit(6)
    """
    result = await hostile(client, source)
    assert result.outcome in (Outcome.FAILED, Outcome.OUT_OF_MEMORY)


async def test_ignoring_every_signal_delays_no_limit(client: SkillcellClient) -> None:
    source = """
    for number in set(range(1, 65)) - {9, 19, 32, 33}:
        attempt(signal.signal, number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    while True:
        time.sleep(60)
    """
    result = await hostile(client, source, limits=SHORT)
    assert result.outcome is Outcome.TIMED_OUT
    assert SECOND_NS <= result.usage.times.run_ns < 8 * SECOND_NS


async def test_a_stopped_skill_is_ended_by_its_time_limit(client: SkillcellClient) -> None:
    result = await hostile(client, "os.kill(os.getpid(), signal.SIGSTOP)", limits=SHORT)
    assert result.outcome is Outcome.TIMED_OUT


async def test_output_without_end_is_cut_at_its_limit(client: SkillcellClient) -> None:
    result = await hostile(
        client, "while True: os.write(1, b'x' * 65536)", limits=replace(LIMITS, output_bytes=MEBIBYTE)
    )
    assert result.outcome is Outcome.OUTPUT_LIMIT_EXCEEDED
    assert len(result.stdout) <= MEBIBYTE


@pytest.mark.parametrize(
    "line", ["b'['+b'[],'*2_700_000+b'[]]'", "b'{\"type\":\"log\",\"fields\":['+b'[],'*2_700_000+b'1]}'"]
)
async def test_an_event_that_would_burst_the_agents_memory_is_only_a_warning(
    client: SkillcellClient, line: str
) -> None:
    """Parsed, 8 MB of empty arrays are 200 MB: three times what this sandbox has."""
    source = f"""
    with open(os.environ["SKILLCELL_EVENTS"], "wb", buffering=0) as pipe:
        said = {line} + b"\\n"
        while said:
            said = said[pipe.write(said[:65536]):]
    """
    result = await hostile(client, source)
    assert result.outcome is Outcome.SUCCEEDED
    assert [log.level for log in result.logs] == ["warning"]


@pytest.mark.parametrize(
    "change",
    [
        "os.unlink(path)",
        "os.unlink(path); os.mkdir(path)",
        "os.unlink(path); os.mkdir(path); open(path + '/x', 'w').close(); os.chmod(path, 0)",
        "os.unlink(path); os.symlink('/etc/passwd', path)",
        "os.unlink(path); os.symlink(path, path)",
        "os.chmod(path, 0)",
        "os.chmod(os.path.dirname(path), 0)",
        "os.unlink(path); open(path, 'wb').write(b'{}' * 1000)",
    ],
)
async def test_replacing_the_events_fifo_changes_nothing(client: SkillcellClient, change: str) -> None:
    source = f"""
    path = os.environ["SKILLCELL_EVENTS"]
    {change}
    print("done")
    """
    result = await hostile(client, source)
    assert (result.outcome, result.stdout) == (Outcome.SUCCEEDED, b"done\n")
    assert (result.outputs, result.logs) == ((), ())


async def test_flooding_the_events_fifo_is_warnings_and_is_counted(client: SkillcellClient) -> None:
    source = """
    with open(os.environ["SKILLCELL_EVENTS"], "wb") as pipe:
        for number in range(500):
            pipe.write(b"not json\\n{}\\n[1]\\n\\0\\xff\\n" + b'{"type":"completed","outcome":"SUCCEEDED"}\\n')
        pipe.write(b"x" * (9 << 20) + b"\\n")
    sys.exit(4)
    """
    result = await hostile(client, source)
    assert (result.outcome, result.exit_code, result.outputs) == (Outcome.FAILED, 4, ())
    assert {log.level for log in result.logs} == {"warning"}
    assert len(result.logs) == 2501
    assert result.usage.output_bytes >= 500 * 40
