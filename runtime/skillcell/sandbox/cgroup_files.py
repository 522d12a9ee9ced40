"""What the kernel's cgroup files say and want: pure functions over their text, for v1 and v2 alike.

A reader could get units wrong: v1 counts CPU in nanoseconds and its user/system split in clock ticks, v2 counts all
in microseconds. And `oom_kill` of v1 is not hierarchical, so it is summed over the tree, while v2's already is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from skillcell.core.errors import invalid
from skillcell.core.types import Limits

CPU_PERIOD_US = 100_000
_MIN_QUOTA_US = 1_000  # the kernel's own minimum
_PAGE = 4096

# What a sandbox may open: null, zero, full, random, urandom, tty. mknod stays forbidden ("rw", never "m").
DEVICES = ("c 1:3 rw", "c 1:5 rw", "c 1:7 rw", "c 1:8 rw", "c 1:9 rw", "c 5:0 rw")


@dataclass(frozen=True, slots=True)
class Mount:
    """One cgroup file system: where it is mounted, what of it is visible there, and which controllers it has."""

    path: Path
    root: str
    version: int
    controllers: frozenset[str]


@dataclass(frozen=True, slots=True)
class Setting:
    """One limit: which controller's file, what to write, and what must be read back."""

    controller: str
    file: str
    value: str
    expected: str


def parse_mountinfo(text: str) -> tuple[Mount, ...]:
    """Cgroup mounts out of /proc/<pid>/mountinfo (proc(5)), each mount point once, the last mount on it winning."""
    found: dict[Path, Mount] = {}
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        kind, _, tail = right.partition(" ")
        if kind not in {"cgroup", "cgroup2"}:
            continue
        fields = left.split(" ")
        path = Path(_unescape(fields[4]))
        options = tail.rpartition(" ")[2].split(",")
        controllers = frozenset(options) - {"rw", "ro"} if kind == "cgroup" else frozenset[str]()
        found[path] = Mount(path, _unescape(fields[3]), 1 if kind == "cgroup" else 2, controllers)
    return tuple(found.values())


def _unescape(field: str) -> str:
    return field.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")


def v1_settings(limits: Limits) -> tuple[Setting, ...]:
    """Every limit that v1 keeps, in an order the kernel accepts (memory before memory+swap)."""
    check_limits(limits)
    memory = str(limits.memory_bytes // _PAGE * _PAGE)
    quota = str(limits.milli_cpus * CPU_PERIOD_US // 1000)
    return (
        Setting("memory", "memory.limit_in_bytes", memory, memory),
        Setting("memory", "memory.memsw.limit_in_bytes", memory, memory),
        Setting("cpu", "cpu.cfs_period_us", str(CPU_PERIOD_US), str(CPU_PERIOD_US)),
        Setting("cpu", "cpu.cfs_quota_us", quota, quota),
        Setting("cpu", "cpu.shares", str(cpu_shares(limits.milli_cpus)), str(cpu_shares(limits.milli_cpus))),
        Setting("pids", "pids.max", str(limits.pids), str(limits.pids)),
    )


def v2_settings(limits: Limits) -> tuple[Setting, ...]:
    """Every limit that v2 keeps. `memory.oom.group` stays off: the agent should outlive the Skill to tell of it."""
    check_limits(limits)
    memory = str(limits.memory_bytes // _PAGE * _PAGE)
    cpu = f"{limits.milli_cpus * CPU_PERIOD_US // 1000} {CPU_PERIOD_US}"
    return (
        Setting("memory", "memory.max", memory, memory),
        Setting("memory", "memory.swap.max", "0", "0"),
        Setting("cpu", "cpu.max", cpu, cpu),
        Setting("cpu", "cpu.weight", cpu_weight(limits.milli_cpus), cpu_weight(limits.milli_cpus)),
        Setting("pids", "pids.max", str(limits.pids), str(limits.pids)),
    )


def cpu_shares(milli_cpus: int) -> int:
    """v1's weight, in proportion to the rate, so that a contended machine is shared as granted (as Kubernetes)."""
    return min(max(milli_cpus * 1024 // 1000, 2), 262_144)


def cpu_weight(milli_cpus: int) -> str:
    """The same for v2, by the kernel's and Kubernetes' conversion of 2..262144 to 1..10000."""
    return str(1 + (cpu_shares(milli_cpus) - 2) * 9999 // 262_142)


def check_limits(limits: Limits) -> None:
    """INVALID_ARGUMENT for a limit that no cgroup can enforce."""
    if limits.memory_bytes < 1 << 20:
        raise invalid(
            "limits.memory_bytes", f"{limits.memory_bytes} is below the least that can be enforced, {1 << 20}"
        )
    least = _MIN_QUOTA_US * 1000 // CPU_PERIOD_US
    if limits.milli_cpus < least:
        raise invalid("limits.milli_cpus", f"{limits.milli_cpus} is below the least that can be enforced, {least}")
    if limits.pids < 1:
        raise invalid("limits.pids", f"{limits.pids} is below the least that can be enforced, 1")


def flat_keyed(text: str) -> dict[str, int]:
    """`key value` lines, as in cpu.stat, memory.events, memory.oom_control."""
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def v2_cpu_ns(cpu_stat: str) -> tuple[int, int, int]:
    """(total, user, system) in nanoseconds from v2's cpu.stat."""
    stat = flat_keyed(cpu_stat)
    return stat["usage_usec"] * 1000, stat["user_usec"] * 1000, stat["system_usec"] * 1000


def v1_cpu_ns(usage: str, stat: str) -> tuple[int, int, int]:
    """(total, user, system): cpuacct.usage is the exact total; cpuacct.stat only gives the proportion of its parts."""
    total = int(usage)
    ticks = flat_keyed(stat)
    both = ticks.get("user", 0) + ticks.get("system", 0)
    user = total * ticks.get("user", 0) // both if both else total
    return total, user, total - user
