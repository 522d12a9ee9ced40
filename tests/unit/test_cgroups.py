"""What cgroup files say and want, on text captured from kernels; and the cgroup itself where this is root."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from skillcell.core.errors import Fault, FaultKind
from skillcell.core.ids import sandbox_id
from skillcell.core.types import MEBIBYTE, Limits, Measurement
from skillcell.sandbox.cgroup_files import (
    flat_keyed,
    parse_mountinfo,
    v1_cpu_ns,
    v1_settings,
    v2_cpu_ns,
    v2_settings,
)
from skillcell.sandbox.cgroups import Cgroup, CgroupTree

HYBRID = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 /docker/abc /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
42 31 0:39 / /mnt/with\\040space rw,relatime - cgroup cgroup rw,pids
"""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="cgroups are root's: run as root")


def test_mounts_are_read_with_their_controllers_and_escapes() -> None:
    cpu, memory, named, unified, pids = parse_mountinfo(HYBRID)
    assert cpu.controllers == {"cpu", "cpuacct"}
    assert (memory.root, memory.version) == ("/docker/abc", 1)
    assert named.controllers == {"name=systemd"}
    assert (unified.version, unified.controllers) == (2, frozenset())
    assert pids.path == Path("/mnt/with space")


def test_v2_cpu_is_microseconds() -> None:
    text = "usage_usec 1234567\nuser_usec 1000000\nsystem_usec 234567\nnr_periods 5\nnr_throttled 1\nthrottled_usec 9\n"
    assert v2_cpu_ns(text) == (1_234_567_000, 1_000_000_000, 234_567_000)


def test_v1_cpu_total_is_exact_and_its_split_sums_to_it() -> None:
    total, user, system = v1_cpu_ns("1000000007\n", "user 66\nsystem 34\n")
    assert total == 1_000_000_007
    assert user + system == total
    assert user == 660_000_004
    assert v1_cpu_ns("5\n", "user 0\nsystem 0\n") == (5, 5, 0)


def test_events_are_read_whatever_else_the_kernel_adds() -> None:
    assert flat_keyed("low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n")["oom_kill"] == 2
    assert flat_keyed("oom_kill_disable 0\nunder_oom 0\noom_kill 7\n")["oom_kill"] == 7


def test_every_limit_becomes_a_setting_that_is_read_back() -> None:
    limits = Limits(memory_bytes=64 * MEBIBYTE + 1, milli_cpus=250, pids=7)
    v1 = {setting.file: setting.expected for setting in v1_settings(limits)}
    assert v1["memory.limit_in_bytes"] == v1["memory.memsw.limit_in_bytes"] == str(64 * MEBIBYTE)
    assert (v1["cpu.cfs_quota_us"], v1["cpu.cfs_period_us"], v1["pids.max"]) == ("25000", "100000", "7")
    assert v1["cpu.shares"] == "256"
    v2 = {setting.file: setting.expected for setting in v2_settings(limits)}
    assert v2 == {
        "memory.max": str(64 * MEBIBYTE),
        "memory.swap.max": "0",
        "cpu.max": "25000 100000",
        "cpu.weight": "10",
        "pids.max": "7",
    }


@pytest.mark.parametrize(("field", "value"), [("memory_bytes", 4096), ("milli_cpus", 9), ("pids", 0)])
def test_a_limit_below_what_can_be_enforced_is_refused_by_name(field: str, value: int) -> None:
    for settings in (v1_settings, v2_settings):
        with pytest.raises(Fault) as raised:
            settings(replace(Limits(), **{field: value}))
        assert raised.value.kind is FaultKind.INVALID_ARGUMENT
        assert field in raised.value.message
        assert str(value) in raised.value.message


@pytest.mark.parametrize("wrong", ["../x", "", "a/../b", "a b"])
def test_a_root_that_could_lead_elsewhere_is_refused(wrong: str) -> None:
    with pytest.raises(Fault, match="cgroup root"):
        CgroupTree.detect(wrong)


@pytest.fixture
def tree() -> CgroupTree:
    return CgroupTree.detect("skillcell-test-unit")


def run_in(cgroup: Cgroup, program: str) -> subprocess.CompletedProcess[bytes]:
    join = "".join(f"open({path!r}, 'w').write('0');" for path in cgroup.procs_files)
    return subprocess.run([sys.executable, "-S", "-c", join + program], capture_output=True, timeout=30, check=False)


@needs_root
def test_counters_outlive_the_processes_and_count_children(tree: CgroupTree) -> None:
    cgroup = tree.create(sandbox_id(), Limits())
    try:
        done = run_in(cgroup, "import os,time; os.fork()\nwhile time.process_time() < .1: pass")
        assert done.returncode == 0
        counters = cgroup.counters()
        assert counters.cpu_total_ns >= 190_000_000
        assert counters.pids_peak >= 2
        assert counters.memory_peak_bytes > 0
        assert counters.measurement is Measurement.EXACT
        again = tree.open(cgroup.sandbox_id)
        assert again is not None
        # the last instants of a task on its processor are charged after its parent was told of its end
        assert again.counters().cpu_total_ns == pytest.approx(counters.cpu_total_ns, abs=2_000_000)
    finally:
        cgroup.remove()


@needs_root
def test_a_child_cgroup_is_counted_killed_and_removed(tree: CgroupTree) -> None:
    cgroup = tree.create(sandbox_id(), Limits(), devices=False)
    below = [Path(path).parent / "child" for path in cgroup.procs_files]
    for directory in below:
        directory.mkdir()
    child = subprocess.Popen(["/bin/sleep", "1000"])
    for directory in below:
        (directory / "cgroup.procs").write_text(str(child.pid))
    assert cgroup.pids() == {child.pid}
    cgroup.kill()
    assert child.wait() == -9
    cgroup.remove()
    assert tree.open(cgroup.sandbox_id) is None


@needs_root
def test_an_existing_id_is_refused_and_its_cgroup_is_left_alone(tree: CgroupTree) -> None:
    cgroup = tree.create(sandbox_id(), Limits(pids=9))
    try:
        with pytest.raises(Fault) as raised:
            tree.create(cgroup.sandbox_id, Limits())
        assert raised.value.kind is FaultKind.ALREADY_EXISTS
        assert cgroup.sandbox_id in tree.list()
    finally:
        cgroup.remove()
    cgroup.remove()
    assert cgroup.sandbox_id not in tree.list()


@needs_root
def test_half_a_cgroup_is_found_and_removed(tree: CgroupTree) -> None:
    name = sandbox_id()
    (tree.everywhere[0] / name).mkdir(parents=True)
    found = tree.open(name)
    assert found is not None
    assert name in tree.list()
    found.remove()
    assert tree.open(name) is None


@needs_root
def test_a_gone_cgroup_has_no_counters(tree: CgroupTree) -> None:
    cgroup = tree.create(sandbox_id(), Limits())
    cgroup.remove()
    with pytest.raises(Fault) as raised:
        cgroup.counters()
    assert raised.value.kind is FaultKind.NOT_FOUND
