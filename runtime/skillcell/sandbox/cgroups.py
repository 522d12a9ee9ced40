"""One cgroup per sandbox: limits that are read back, counters that outlive the processes, an end that nothing escapes.

Three layouts: v1, hybrid (v1 controllers beside a v2 tree without any; used as v1, and its `cgroup.kill` too), and
v2. A reader could get two things wrong. Counters are hierarchical, so a container that an engine puts in a child
cgroup counts; only v1's OOM kills are lost with the child's directory. And `remove` clears every mounted hierarchy,
also those that only an engine made. Everything here takes a few system calls, except `kill` and `remove`, which wait
(bounded).
"""

from __future__ import annotations

import errno
import os
import re
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from skillcell.core.errors import Fault, FaultKind, precondition, unavailable
from skillcell.core.types import Counters, Limits, Measurement
from skillcell.sandbox import cgroup_files as files

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}")
_NEEDED_V1 = ("memory", "cpu", "cpuacct", "pids")
_NEEDED_V2 = ("memory", "cpu", "pids")
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

    def _cpu(self) -> tuple[int, int, int]:
        if self._tree.version == 2:
            return files.v2_cpu_ns(_read(self._at["cpu"] / "cpu.stat"))
        where = self._at["cpuacct"]
        return files.v1_cpu_ns(_read(where / "cpuacct.usage"), _read(where / "cpuacct.stat"))

    def _read_oom_kills(self) -> int:
        if self._tree.version == 2:
            return files.flat_keyed(_read(self._at["memory"] / "memory.events")).get("oom_kill", 0)
        total = 0
        for directory in _walk(self._at["memory"]):
            with suppress(FileNotFoundError):
                total += files.flat_keyed(_read(directory / "memory.oom_control")).get("oom_kill", 0)
        return total

    def _read_peaks(self) -> bool:
        """Update the peaks; False when the kernel only shows the present memory use, so that the peak is a sample."""
        memory, pids = self._at["memory"], self._at["pids"]
        exact = True
        if self._tree.version == 1:
            peak = int(_read(memory / "memory.max_usage_in_bytes"))
        else:
            try:
                peak = int(_read(memory / "memory.peak"))  # Linux 5.19
            except FileNotFoundError:
                peak, exact = int(_read(memory / "memory.current")), False
        self._memory_peak = max(self._memory_peak, peak)
        try:
            alive = int(_read(pids / "pids.peak"))  # Linux 6.1
        except FileNotFoundError:
            alive = int(_read(pids / "pids.current"))
        self._pids_peak = max(self._pids_peak, alive)
        return exact

    def pids(self) -> frozenset[int]:
        """Processes of the sandbox that live now, in this process' pid namespace."""
        found: set[int] = set()
        for directory in _walk(self._at["pids"]):
            with suppress(FileNotFoundError, ProcessLookupError, OSError):
                found.update(int(line) for line in _read(directory / "cgroup.procs").split())
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
                _write(self._at["unified"] / "cgroup.kill", "1")
        freezer = self._at.get("freezer")
        if freezer is not None:
            with suppress(OSError):
                _write(freezer / "freezer.state", "FROZEN")
            pids |= self.pids()
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if freezer is not None:
            with suppress(OSError):
                _write(freezer / "freezer.state", "THAWED")
        return False

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
        for directory in sorted(_walk(top), key=lambda path: len(path.parts), reverse=True):
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


class CgroupTree:
    """Where the sandboxes' cgroups live: `<mount>/<root>/<sandbox id>` in each hierarchy."""

    def __init__(
        self,
        version: int,
        bases: Mapping[str, Path],
        everywhere: tuple[Path, ...],
        engine_root: str,
        *,
        swap_file: bool,
    ) -> None:
        self.version = version
        self.bases = dict(bases)
        self.everywhere = everywhere
        self.engine_root = engine_root
        self._swap_file = swap_file
        unique: dict[Path, str] = {}
        for name, base in self.bases.items():
            unique.setdefault(base, name)
        self.joined = tuple(unique.values())

    @classmethod
    def detect(cls, root: str = "skillcell") -> CgroupTree:
        """This machine's tree, its top directories made. FAILED_PRECONDITION, with the fix, where it can't be used."""
        if not all(_ID.fullmatch(part) for part in root.split("/")):
            raise precondition("CGROUP_ROOT", f"cgroup root {root!r} must be names of letters, digits, '_', '.', '-'")
        if os.geteuid() != 0:
            raise precondition(
                "NOT_ROOT", "cgroups can't be written by this user. Fix: run as root, or use the docker driver"
            )
        mounts = files.parse_mountinfo(Path("/proc/self/mountinfo").read_text())
        legacy = {name: mount for mount in mounts if mount.version == 1 for name in mount.controllers}
        unified = next((mount for mount in mounts if mount.version == 2), None)
        if all(name in legacy for name in _NEEDED_V1):
            return _v1_tree(root, mounts, legacy, unified)
        if unified is not None:
            return _v2_tree(root, unified)
        raise precondition(
            "CGROUPS_MISSING",
            "no usable cgroup hierarchy: memory, cpu, cpuacct and pids (v1) or cgroup2 must be mounted. "
            "Fix: boot with systemd.unified_cgroup_hierarchy=1 cgroup_enable=memory",
        )

    def create(self, sandbox_id: str, limits: Limits, *, devices: bool = True) -> Cgroup:
        """Make it, every limit set and read back; on any error nothing is left. ALREADY_EXISTS for a known id.

        `devices` sets v1's list of devices too: for processes that join; not for an engine, which writes lists of its
        own into children and is refused what the parent lacks.
        """
        _check_id(sandbox_id)
        settings = files.v1_settings(limits) if self.version == 1 else files.v2_settings(limits)
        cgroup = Cgroup(self, sandbox_id)
        made: list[Path] = []
        try:
            for name in self.joined:
                os.mkdir(self.bases[name] / sandbox_id)
                made.append(self.bases[name] / sandbox_id)
        except OSError as error:
            for directory in made:
                os.rmdir(directory)
            if isinstance(error, FileExistsError):
                message = f"a cgroup of sandbox {sandbox_id} exists already"
                raise Fault(FaultKind.ALREADY_EXISTS, "SANDBOX_EXISTS", message) from error
            raise unavailable("CGROUP_NOT_CREATED", f"a cgroup could not be made: {error.strerror}") from error
        try:
            self._apply(sandbox_id, settings)
            if devices:
                self._apply_devices(sandbox_id)
        except BaseException:
            cgroup.remove()
            raise
        return cgroup

    def _apply(self, sandbox_id: str, settings: tuple[files.Setting, ...]) -> None:
        for setting in settings:
            if "swap" in setting.file.replace("memsw", "swap") and not self._swap_file:
                continue  # detect made sure that the machine has no swap to use
            path = self.bases[setting.controller] / sandbox_id / setting.file
            try:
                _write(path, setting.value)
                actual = _read(path).strip()
            except OSError as error:
                raise precondition(
                    "LIMIT_NOT_ENFORCED", f"{setting.file}={setting.value} was refused by the kernel: {error.strerror}"
                ) from error
            if actual != setting.expected:
                raise precondition(
                    "LIMIT_NOT_ENFORCED", f"{setting.file} reads {actual} after {setting.value} was written"
                )

    def _apply_devices(self, sandbox_id: str) -> None:
        if "devices" in self.bases:
            directory = self.bases["devices"] / sandbox_id
            try:
                _write(directory / "devices.deny", "a")
                for device in files.DEVICES:
                    _write(directory / "devices.allow", device)
            except OSError as error:
                raise precondition("LIMIT_NOT_ENFORCED", f"devices list was refused: {error.strerror}") from error

    def open(self, sandbox_id: str) -> Cgroup | None:
        """The cgroup of a sandbox that exists in any hierarchy, else None."""
        _check_id(sandbox_id)
        exists = any((base / sandbox_id).is_dir() for base in self.everywhere)
        return Cgroup(self, sandbox_id) if exists else None

    def list(self) -> list[str]:
        """Ids of all sandboxes with a cgroup in any hierarchy, whoever made it."""
        found: set[str] = set()
        for base in self.everywhere:
            with suppress(FileNotFoundError):
                found.update(entry.name for entry in os.scandir(base) if entry.is_dir() and _ID.fullmatch(entry.name))
        return sorted(found)


def _v1_tree(
    root: str, mounts: tuple[files.Mount, ...], legacy: Mapping[str, files.Mount], unified: files.Mount | None
) -> CgroupTree:
    bases = {name: legacy[name].path / root for name in (*_NEEDED_V1, "devices", "freezer") if name in legacy}
    if unified is not None:
        bases["unified"] = unified.path / root
    for base in bases.values():
        _make_base(base)
    hierarchy = bases["memory"] / "memory.use_hierarchy"
    with suppress(FileNotFoundError):  # gone, and always on, in newer kernels
        if _read(hierarchy).strip() == "0":
            _write(hierarchy, "1")
    _weigh(bases["cpu"] / "cpu.shares", str(files.cpu_shares(_machine_milli_cpus())))
    swap_file = (bases["memory"] / "memory.memsw.limit_in_bytes").exists()
    _require_no_swap(swap_file, "swapaccount=1")
    everywhere = tuple(dict.fromkeys(mount.path / root for mount in mounts))
    return CgroupTree(1, bases, everywhere, _engine_root(legacy["memory"], root), swap_file=swap_file)


def _v2_tree(root: str, mount: files.Mount) -> CgroupTree:
    top = _delegated_top(mount)
    base = top / root
    missing = set(_NEEDED_V2) - set(_read(top / "cgroup.controllers").split())
    if missing:
        raise precondition(
            "CGROUP_NOT_DELEGATED",
            f"controllers {', '.join(sorted(missing))} are not available in {top}. "
            "Fix: Delegate=yes in the gateway's systemd unit, or run it in the host's root cgroup",
        )
    _enable(top)
    at = top
    for part in root.split("/"):
        at = at / part
        _make_base(at)
        _enable(at)
    _weigh(base / "cpu.weight", files.cpu_weight(_machine_milli_cpus()))
    swap_file = _has_swap_file(base)
    _require_no_swap(swap_file, "swapaccount=1")
    bases = dict.fromkeys((*_NEEDED_V2, "unified"), base)
    below = str(base.relative_to(mount.path))
    return CgroupTree(2, bases, (base,), _engine_root(mount, below), swap_file=swap_file)


def _machine_milli_cpus() -> int:
    return (os.cpu_count() or 1) * 1000


def _weigh(path: Path, weight: str) -> None:
    """All sandboxes together weigh as much as the machine has processors, or a busy host would starve them as one task."""
    with suppress(OSError):
        _write(path, weight)


def _has_swap_file(base: Path) -> bool:
    """memory.swap.max exists in children of `base` only, so ask a short-lived one."""
    probe = base / f"probe.{os.getpid()}"
    os.mkdir(probe)
    try:
        return (probe / "memory.swap.max").exists()
    finally:
        os.rmdir(probe)


def _delegated_top(mount: files.Mount) -> Path:
    """Our own cgroup where systemd delegated it (Delegate= sets an xattr), else the top of what is mounted."""
    line = next((line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")), "0::/")
    own = mount.path / os.path.relpath(line[3:], mount.root if mount.root != "/" else "/")
    for attribute in ("trusted.delegate", "user.delegate"):
        with suppress(OSError):
            if os.getxattr(own, attribute) == b"1":
                return own.parent if own.name == "gateway" else own
    if own.name == "gateway":  # we moved ourselves there at an earlier detection
        with suppress(OSError):
            if os.getxattr(own.parent, "trusted.delegate") == b"1":
                return own.parent
    return mount.path


def _enable(directory: Path) -> None:
    """Give children of `directory` the controllers; processes in it move to a leaf first ("no internal processes")."""
    wanted = " ".join(f"+{name}" for name in _NEEDED_V2)
    try:
        _write(directory / "cgroup.subtree_control", wanted)
        return
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise _not_delegated(directory, error) from error
    leaf = directory / "gateway"
    try:
        leaf.mkdir(exist_ok=True)
        for pid in _read(directory / "cgroup.procs").split():
            with suppress(ProcessLookupError):
                _write(leaf / "cgroup.procs", pid)
        _write(directory / "cgroup.subtree_control", wanted)
    except OSError as error:
        raise _not_delegated(directory, error) from error


def _make_base(base: Path) -> None:
    try:
        base.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_delegated(base, error) from error


def _not_delegated(where: Path, error: OSError) -> Fault:
    return precondition(
        "CGROUP_NOT_DELEGATED",
        f"{where} can't be written ({error.strerror}). Fix: run as root on the host; in a container mount "
        "/sys/fs/cgroup writable (privileged, or a delegated cgroup namespace)",
    )


def _require_no_swap(swap_file: bool, boot_option: str) -> None:
    if swap_file or len(Path("/proc/swaps").read_text().splitlines()) <= 1:
        return
    raise precondition(
        "SWAP_NOT_LIMITED",
        f"this kernel can't limit swap and swap is on. Fix: swapoff -a, or boot with {boot_option}",
    )


def _engine_root(mount: files.Mount, below: str) -> str:
    return f"{mount.root.rstrip('/')}/{below}"


def _check_id(sandbox_id: str) -> None:
    if not _ID.fullmatch(sandbox_id):
        raise precondition("SANDBOX_ID", f"sandbox id {sandbox_id!r} does not match {_ID.pattern}")


def _walk(top: Path) -> Iterator[Path]:
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


def _read(path: Path) -> str:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(descriptor, 65536):
            parts.append(part)
    finally:
        os.close(descriptor)
    return b"".join(parts).decode("ascii", "replace")


def _write(path: Path, value: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, value.encode())
    finally:
        os.close(descriptor)
