"""Where the sandboxes' cgroups live, and how one is made: every limit set and read back, or nothing left.

Three layouts: v1, hybrid (v1 controllers beside a v2 tree without any; used as v1, and its `cgroup.kill` too), and v2.
A reader could get wrong that a v2 parent may hold no processes: those in a delegated cgroup move to a leaf, `gateway`.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from skillcell.core.errors import Fault, FaultKind, precondition, unavailable
from skillcell.core.types import Limits
from skillcell.sandbox import cgroup_files as files
from skillcell.sandbox.cgroup import Cgroup, read, write

__all__ = ["Cgroup", "CgroupTree"]

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}")
_NEEDED_V1 = ("memory", "cpu", "cpuacct", "pids")
_NEEDED_V2 = ("memory", "cpu", "pids")


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
        enabled: tuple[Path, ...] = (),
    ) -> None:
        self.version = version
        self.bases = dict(bases)
        self.everywhere = everywhere
        self.engine_root = engine_root
        self._swap_file = swap_file
        self._enabled = enabled
        unique: dict[Path, str] = {}
        for name, base in self.bases.items():
            unique.setdefault(base, name)
        self.joined = tuple(unique.values())

    @classmethod
    def detect(cls, root: str = "skillcell", *, delegated: bool = True) -> CgroupTree:
        """This machine's tree, its top directories made. FAILED_PRECONDITION, with the fix, where it can't be used.

        On v2 it lies in the part that systemd delegated to us, if any; not `delegated`: at the top, for an engine whose
        paths start there.
        """
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
            return _v2_tree(root, unified, _delegated_top(unified) if delegated else unified.path)
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
        settings = self._settings(limits)
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

    def limit(self, sandbox_id: str, limits: Limits) -> None:
        """Set every limit again, and read it back: where systemd has reset them."""
        self._apply(sandbox_id, self._settings(limits))

    def _settings(self, limits: Limits) -> tuple[files.Setting, ...]:
        return files.v1_settings(limits) if self.version == 1 else files.v2_settings(limits)

    def _apply(self, sandbox_id: str, settings: tuple[files.Setting, ...]) -> None:
        for setting in settings:
            if "swap" in setting.file.replace("memsw", "swap") and not self._swap_file:
                continue  # detect made sure that the machine has no swap to use
            path = self.bases[setting.controller] / sandbox_id / setting.file
            try:
                write(path, setting.value)
                actual = read(path).strip()
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
                write(directory / "devices.deny", "a")
                for device in files.DEVICES:
                    write(directory / "devices.allow", device)
            except OSError as error:
                raise precondition("LIMIT_NOT_ENFORCED", f"devices list was refused: {error.strerror}") from error

    def enable(self) -> None:
        """Make the top directories again, with their controllers: where systemd believes that they are its own (v2)."""
        for directory in self._enabled:
            _make_base(directory)
            _enable(directory)

    def open(self, sandbox_id: str) -> Cgroup | None:
        """The cgroup of a sandbox that exists in any hierarchy, else None."""
        _check_id(sandbox_id)
        exists = any((base / sandbox_id).is_dir() for base in self.everywhere)
        return Cgroup(self, sandbox_id) if exists else None

    def retire(self) -> None:
        """Take the tree's own top directories away, where no sandbox is left in them; nobody may use it afterwards."""
        for base in self.everywhere:
            with suppress(OSError):
                os.rmdir(base)

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
        if read(hierarchy).strip() == "0":
            write(hierarchy, "1")
    _weigh(bases["cpu"] / "cpu.shares", str(files.cpu_shares(_machine_milli_cpus())))
    swap_file = (bases["memory"] / "memory.memsw.limit_in_bytes").exists()
    _require_no_swap(swap_file, "swapaccount=1")
    everywhere = tuple(dict.fromkeys(mount.path / root for mount in mounts))
    return CgroupTree(1, bases, everywhere, _engine_root(legacy["memory"], root), swap_file=swap_file)


def _v2_tree(root: str, mount: files.Mount, top: Path) -> CgroupTree:
    base = top / root
    missing = set(_NEEDED_V2) - set(read(top / "cgroup.controllers").split())
    if missing:
        raise precondition(
            "CGROUP_NOT_DELEGATED",
            f"controllers {', '.join(sorted(missing))} are not available in {top}. "
            "Fix: Delegate=yes in the gateway's systemd unit, or run it in the host's root cgroup",
        )
    enabled = (top, *(top.joinpath(*root.split("/")[: depth + 1]) for depth in range(root.count("/") + 1)))
    for directory in enabled:
        _make_base(directory)
        _enable(directory)
    _weigh(base / "cpu.weight", files.cpu_weight(_machine_milli_cpus()))
    swap_file = _has_swap_file(base)
    _require_no_swap(swap_file, "swapaccount=1")
    bases = dict.fromkeys((*_NEEDED_V2, "unified"), base)
    below = str(base.relative_to(mount.path))
    return CgroupTree(2, bases, (base,), _engine_root(mount, below), swap_file=swap_file, enabled=enabled)


def _machine_milli_cpus() -> int:
    return (os.cpu_count() or 1) * 1000


def _weigh(path: Path, weight: str) -> None:
    """All sandboxes together weigh as much as the machine has processors, lest a busy host starve them as one task."""
    with suppress(OSError):
        write(path, weight)


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
        write(directory / "cgroup.subtree_control", wanted)
        return
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise _not_delegated(directory, error) from error
    leaf = directory / "gateway"
    try:
        leaf.mkdir(exist_ok=True)
        for pid in read(directory / "cgroup.procs").split():
            with suppress(ProcessLookupError):
                write(leaf / "cgroup.procs", pid)
        write(directory / "cgroup.subtree_control", wanted)
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
