"""The data directory of one gateway, and the note by which commands on the same machine find it.

A directory belongs to one running gateway at a time, by a lock that the kernel drops when the process dies.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from skillcell.core.errors import Fault, FaultKind, precondition


@dataclass(frozen=True, slots=True)
class DataDirectory:
    """Where everything that lasts lies."""

    path: Path
    instance_id: str
    """12 hex digits, fixed when the directory was made: names cgroups, labels and rows of this gateway."""
    development_key: str
    """An API key for one machine, made with the directory; holds every role."""

    @property
    def database_url(self) -> str:
        return f"sqlite:///{self.path / 'skillcell.db'}"

    @property
    def packages(self) -> Path:
        return self.path / "packages"

    @property
    def layers(self) -> Path:
        return self.path / "layers"

    @property
    def images(self) -> Path:
        return self.path / "images"

    @property
    def tools(self) -> Path:
        return self.path / "tools"

    @property
    def agent(self) -> Path:
        return self.path / "agent"

    @property
    def events(self) -> Path:
        return self.path / "events"

    @property
    def artifacts(self) -> Path:
        return self.path / "artifacts"

    @property
    def uploads(self) -> Path:
        return self.path / "uploads"

    @property
    def staging(self) -> Path:
        return self.path / "staging"


@contextmanager
def open_data(path: Path) -> Iterator[DataDirectory]:
    """Makes the directory if need be and holds its lock. Raises Fault when another process has it."""
    directory = make_data(path)
    fd = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
            raise precondition(
                "WRONG_STATE",
                f"the data directory {path} is in use by process {owner}; stop it, or give another one with --data",
            ) from error
        os.ftruncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode(), 0)
        yield directory
    finally:
        os.close(fd)


def make_data(path: Path) -> DataDirectory:
    """The directory with its identity, made if it is not there. Raises Fault when it can't be written."""
    path = path.absolute()  # others than this process resolve it: the launcher, an engine
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        instance = _once(path / "instance", lambda: secrets.token_hex(6))
        key = _once(path / "development.key", lambda: f"sk_dev_{secrets.token_urlsafe(24)}")
    except OSError as error:
        raise Fault(
            FaultKind.FAILED_PRECONDITION,
            "WRONG_STATE",
            f"the data directory {path} can't be used: {error.strerror}; give another one with --data",
        ) from error
    return DataDirectory(path, instance, key)


def _once(path: Path, make: Callable[[], str]) -> str:
    """A value that is made at the first time and read at every other, safe against two processes at once."""
    with suppress(FileNotFoundError):
        return path.read_text(encoding="utf-8").strip()
    draft = path.with_suffix(f".{os.getpid()}")
    draft.touch(mode=0o600)
    draft.write_text(f"{make()}\n", encoding="utf-8")
    with suppress(FileExistsError):
        os.link(draft, path)
    draft.unlink()
    return path.read_text(encoding="utf-8").strip()


def boot_id() -> str:
    """Which boot of the machine this is."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return "unknown"


def note_path() -> Path:
    """Where the last gateway that started on this machine, for this user, left its address and key."""
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local/state")
    return Path(state) / "skillcell" / "server.json"


def write_note(address: str, metrics: str, api_key: str) -> None:
    """Leaves the note, readable by this user alone; a home that can't be written is no reason not to serve."""
    path = note_path()
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = path.with_suffix(f".{os.getpid()}")
        draft.touch(mode=0o600)
        draft.write_text(json.dumps({"address": address, "metrics": metrics, "api_key": api_key}), encoding="utf-8")
        draft.replace(path)
