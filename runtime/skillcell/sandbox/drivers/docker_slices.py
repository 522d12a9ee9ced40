"""A sandbox's cgroup where systemd owns the engine's: a slice, which systemd keeps a unit for.

A reader could get two things wrong. The unit appears with the first container below it, without our asking, and stays
when the directory is gone: nobody but us ends it, else systemd keeps one for every call there ever was. And what
systemd does not know of is not respected: limits that we set on a slice are reset once its unit appears.
"""

from __future__ import annotations

import shutil
import subprocess
from contextlib import suppress

from skillcell.sandbox.cgroups import Cgroup

_STOP_SECONDS = 10.0


class SliceCgroup(Cgroup):
    """A cgroup that is removed together with systemd's unit of it."""

    def remove(self) -> None:
        super().remove()
        stop_slice(self.sandbox_id)


def stop_slice(name: str) -> None:
    """Have systemd forget a slice, now or soon. Never raises: what stays is a name, without processes or files."""
    systemctl = shutil.which("systemctl")  # none where the gateway has a container of its own
    if systemctl is None:
        return
    with suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(
            [systemctl, "--quiet", "--no-block", "stop", name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_STOP_SECONDS,
            check=False,
        )
