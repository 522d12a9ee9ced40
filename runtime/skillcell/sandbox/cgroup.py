"""The cgroup of one sandbox: how it is joined, counted, killed and removed, over all hierarchies.

A reader could get two things wrong. Counters are hierarchical, so a container that an engine puts in a child cgroup
counts; only v1's OOM kills are lost with the child's directory. And `remove` clears every mounted hierarchy, also those
that only an engine made.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from skillcell.core.errors import Fault, FaultKind
from skillcell.core.types import Counters, Measurement
from skillcell.sandbox import cgroup_files as files

if TYPE_CHECKING:
    from skillcell.sandbox.cgroups import CgroupTree

_KILL_SECONDS = 20.0
_REMOVE_SECONDS = 5.0


class Cgroup:
    """The cgroup of one sandbox, over all hierarchies."""

    def __init__(self, tree: CgroupTree, sandbox_id: str) -> None:
        self.sandbox_id = sandbox_id
        self._tree = tree
        self._at = {name: base / sandbox_id for name, base in tree.bases.items()}
        self._pids_peak = 0
        self._memory_peak = 0
        self._oom_kills = 0

    @property
    def engine_path(self) -> str:
        """The path from the hierarchies' root, as engines want a parent cgroup named."""
        return f"{self._tree.engine_root}/{self.sandbox_id}"

    @property
    def procs_files(self) -> tuple[str, ...]:
        """Files to write a pid (or 0 for oneself) into, to join: one per hierarchy that limits, counts or kills."""
        return tuple(f"{self._at[name]}/cgroup.procs" for name in self._tree.joined)

    def counters(self) -> Counters:
        """What the kernel counted so far for the sandbox and everything below it. NOT_FOUND when the cgroup is gone."""
        try:
            total, user, system = self._cpu()
            self._oom_kills = max(self._oom_kills, self._read_oom_kills())
            exact = self._read_peaks()
        except FileNotFoundError as error:
            raise Fault(FaultKind.NOT_FOUND, "CGROUP_NOT_FOUND", f"the cgroup of {self.sandbox_id} is gone") from error
        return Counters(
            cpu_user_ns=user,
            cpu_system_ns=system,
            cpu_total_ns=total,
            memory_peak_bytes=self._memory_peak,
            pids_peak=self._pids_peak,
            oom_kills=self._oom_kills,
            measurement=Measurement.EXACT if exact else Measurement.SAMPLED,
        )

    def begin(self) -> Counters:
        """Lets the peaks start anew where the kernel can (v1's memory; v2's can't for every reader), then counts."""
        if self._tree.version == 1:
            with suppress(OSError):
                for directory in walk(self._at["memory"]):
                    write(directory / "memory.max_usage_in_bytes", "0")
                self._memory_peak = 0
        self._pids_peak = 0
        return self.counters()

    def _cpu(self) -> tuple[int, int, int]:
        if self._tree.version == 2:
            return files.v2_cpu_ns(read(self._at["cpu"] / "cpu.stat"))
        where = self._at["cpuacct"]
        return files.v1_cpu_ns(read(where / "cpuacct.usage"), read(where / "cpuacct.stat"))

    def _read_oom_kills(self) -> int:
        if self._tree.version == 2:
            return files.flat_keyed(read(self._at["memory"] / "memory.events")).get("oom_kill", 0)
        total = 0
        for directory in walk(self._at["memory"]):
            with suppress(FileNotFoundError):
                total += files.flat_keyed(read(directory / "memory.oom_control")).get("oom_kill", 0)
        return total

    def _read_peaks(self) -> bool:
        """Update the peaks; False when the kernel only shows the present memory use, so that the peak is a sample."""
        memory, pids = self._at["memory"], self._at["pids"]
        exact = True
        if self._tree.version == 1:
            peak = int(read(memory / "memory.max_usage_in_bytes"))
        else:
            try:
                peak = int(read(memory / "memory.peak"))  # Linux 5.19
            except FileNotFoundError:
                peak, exact = int(read(memory / "memory.current")), False
        self._memory_peak = max(self._memory_peak, peak)
        try:
            alive = int(read(pids / "pids.peak"))  # Linux 6.1
        except FileNotFoundError:
            alive = int(read(pids / "pids.current"))
        self._pids_peak = max(self._pids_peak, alive)
        return exact

    def pids(self) -> frozenset[int]:
        """Processes of the sandbox that live now, in this process' pid namespace."""
        found: set[int] = set()
        for directory in walk(self._at["pids"]):
            with suppress(FileNotFoundError, ProcessLookupError, OSError):
                found.update(int(line) for line in read(directory / "cgroup.procs").split())
        return frozenset(found - {0})

    def kill(self) -> None:
        """Return once no process is left. A fork storm is frozen or killed as one: it can't outrun us."""
        deadline = time.monotonic() + _KILL_SECONDS
        pause = 0.0005
        while not self.kill_round():
            if time.monotonic() > deadline:
                message = f"processes of {self.sandbox_id} survived SIGKILL for {_KILL_SECONDS:.0f} s"
                raise Fault(FaultKind.INTERNAL, "SANDBOX_WILL_NOT_DIE", message)
            time.sleep(pause)
            pause = min(pause * 2, 0.02)

    def kill_round(self) -> bool:
        """Send SIGKILL to all that live now, without waiting; True when there was none."""
        pids = self.pids()
        if not pids:
            return True
        if "unified" in self._at:
            with suppress(OSError):  # Linux 5.14; on a hybrid host an engine may not have joined this tree
                write(self._at["unified"] / "cgroup.kill", "1")
        freezer = self._at.get("freezer")
        if freezer is not None:
            with suppress(OSError):
                write(freezer / "freezer.state", "FROZEN")
            pids |= self.pids()
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if freezer is not None:
            with suppress(OSError):
                write(freezer / "freezer.state", "THAWED")
        return False

    def end(self) -> tuple[bool, Counters | None]:
        """Kill all that is left in it, then read it: whether something lived, and its counters if they are there."""
        alive = bool(self.pids())
        self.kill()
        try:
            return alive, self.counters()
        except Fault:
            return alive, None

    def remove(self) -> None:
        """Remove its directories in every hierarchy. Idempotent; waits a little for processes that are still dying."""
        for base in self._tree.everywhere:
            self._remove_below(base / self.sandbox_id)

    def _remove_below(self, top: Path) -> None:
        try:
            os.rmdir(top)  # the ordinary case: a leaf without processes
            return
        except FileNotFoundError:
            return
        except OSError:
            pass
        deadline = time.monotonic() + _REMOVE_SECONDS
        for directory in sorted(walk(top), key=lambda path: len(path.parts), reverse=True):
            while True:
                try:
                    os.rmdir(directory)
                except FileNotFoundError:
                    break
                except OSError as error:
                    if error.errno != errno.EBUSY or time.monotonic() > deadline:
                        raise Fault(
                            FaultKind.INTERNAL,
                            "CGROUP_NOT_REMOVED",
                            f"the cgroup of {self.sandbox_id} could not be removed: {error.strerror}",
                        ) from error
                    time.sleep(0.002)
                else:
                    break


def walk(top: Path) -> Iterator[Path]:
    """`top` and every directory below it, parents first; what vanishes meanwhile is skipped."""
    pending = [top]
    while pending:
        directory = pending.pop()
        try:
            below = [Path(entry.path) for entry in os.scandir(directory) if entry.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            continue
        yield directory
        pending.extend(below)


def read(path: Path) -> str:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(descriptor, 65536):
            parts.append(part)
    finally:
        os.close(descriptor)
    return b"".join(parts).decode("ascii", "replace")


def write(path: Path, value: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, value.encode())
    finally:
        os.close(descriptor)
