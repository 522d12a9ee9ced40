"""Which OCI runtime serves which isolation class, and how each is called.

crun joins our cgroup before it starts and manages none; runc insists on a cgroup of its own, which is put below
ours; runsc is told to leave cgroups alone. All three leave their state in a directory of the sandbox alone, so that
removing the directory is all that a `delete` would do.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from skillcell.core.types import Isolation

_SEARCH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

FIXES = {
    "crun": "apt-get install crun",
    "runc": "apt-get install runc",
    "runsc": "apt-get install runsc, or see gvisor.dev/docs/user_guide/install",
}


@dataclass(frozen=True, slots=True)
class Runtime:
    """One runtime program."""

    name: str
    path: str
    flags: tuple[str, ...]
    joins: bool
    """Whether the caller joins the sandbox's cgroup before it becomes the runtime."""
    locked: bool
    """Whether it can use mounts whose nosuid and nodev are locked."""
    sockets: bool
    """Whether a blocked write to a socket blocks: inside runsc of 2022 it fails with EAGAIN, so it gets pipes."""
    own_threads: int
    """Threads of its own that the pids limit must leave room for: a sentry that can't make one dies."""

    def argv(self, sandbox_id: str, directory: Path) -> list[str]:
        """What starts the bundle in `directory` and returns once its process runs."""
        where = ["--root", f"{directory}/state", "--log", f"{directory}/log"]
        return [self.path, *where, *self.flags, "run", "--detach", "--bundle", str(directory), sandbox_id]


_KNOWN = {
    "crun": (("--cgroup-manager=disabled",), True, True, True, 0),
    "runc": ((), False, True, True, 0),
    "runsc": (("--platform=ptrace", "--network=none", "--ignore-cgroups"), True, False, False, 1024),
}

_PREFERRED = {Isolation.STANDARD: ("crun", "runc"), Isolation.GVISOR: ("runsc",)}


def find_runtime(isolation: Isolation, configured: Sequence[str]) -> Runtime | None:
    """The runtime for a class: a configured name or path that fits, else the preferred one that is installed."""
    preferred = _PREFERRED.get(isolation, ())
    chosen = [path for path in configured if Path(path).name in preferred]
    for path in (*chosen, *preferred):
        found = shutil.which(path, path=_SEARCH)
        if found is not None:
            name = Path(path).name
            return Runtime(name, found, *_KNOWN[name])
    return None
