"""What tests do to a gateway's surroundings: small disks that fill up or turn read-only, a clock that is stepped, and
code of ours that is broken on purpose.

What a reader could get wrong: everything here is undone when its block ends, in the reverse order; a disk is unmounted
after the gateway that lies on it has stopped.
"""

from __future__ import annotations

import os
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from e2e.conftest import publish_lab
from e2e.gateway import Gateway, new_gateway, serving

FAKETIME = tuple(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))

_ADMIN = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}


@contextmanager
def small_disk(at: Path, megabytes: int = 4) -> Iterator[Path]:
    """A file system in memory with so much room."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    at.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=700", "skillcell-test", at], check=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", "--lazy", at], check=True)


def fill(disk: Path) -> Path:
    """Takes all the room that is left, and returns the file that holds it."""
    filler = disk / "filler"
    with filler.open("ab", buffering=0) as file:
        for size in (65536, 4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue
    return filler


class LoopDisk:
    """An ext4 file system in a file. `break_it` makes it read-only as the kernel does on a failing disk: with files
    open. It can be written again only after it was unmounted."""

    def __init__(self, home: Path) -> None:
        self._image, self.path = home / "disk.img", home / "disk"
        self.path.mkdir()
        self._image.write_bytes(b"")
        os.truncate(self._image, 16 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", self._image], check=True, env=_ADMIN)

    def mount(self, mode: str) -> None:
        mounted = subprocess.run(
            ["mount", "-o", f"loop,errors=remount-ro,{mode}", self._image, self.path], capture_output=True, check=False
        )
        if mounted.returncode:
            pytest.skip(f"a loop device is needed: {mounted.stderr.decode()}")

    def unmount(self) -> None:
        subprocess.run(["umount", self.path], check=True)

    def check(self) -> None:
        """What an operator does before such a disk is used again."""
        subprocess.run(["e2fsck", "-p", "-f", self._image], capture_output=True, check=False, env=_ADMIN)

    def break_it(self) -> None:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        device = next(line for line in lines if f" {self.path} " in line).rpartition(" - ")[2].split()[1]
        Path(f"/sys/fs/ext4/{Path(device).name}/trigger_fs_error").write_text("a fault that a test made")


@contextmanager
def loop_disk(home: Path) -> Iterator[LoopDisk]:
    """Mounted for writing."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    disk = LoopDisk(home)
    disk.mount("rw")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", disk.path], check=False)


@contextmanager
def gateway_of(
    home: Path, links: Mapping[str, Path] | None = None, env: Mapping[str, str] | None = None, **settings: str
) -> Iterator[Gateway]:
    """Serves the lab Skill; names in its data directory may be links to another disk."""
    gateway = new_gateway(home, "oci", **settings)
    for name, target in (links or {}).items():
        (gateway.data / name).symlink_to(target)
    gateway.settings = {**gateway.settings, **(env or {})}
    with serving(gateway):
        publish_lab(gateway, home)
        yield gateway


class SteppedTime:
    """The wall clock of processes that run with `env`; their monotonic clock is the machine's."""

    def __init__(self, home: Path) -> None:
        if not FAKETIME:
            pytest.skip("libfaketime is not installed (package: faketime)")
        self._stamp = home / "faketime"
        self.step_to(0)
        site = home / "site"
        site.mkdir()
        # This release of libfaketime fails every sleep to a moment of the monotonic clock, which is Python's sleep.
        (site / "sitecustomize.py").write_text(
            "import select, time\ntime.sleep = lambda seconds: select.select([], [], [], seconds) and None\n"
        )
        self.env = {
            "LD_PRELOAD": str(FAKETIME[0]),
            "FAKETIME_TIMESTAMP_FILE": str(self._stamp),
            "FAKETIME_NO_CACHE": "1",
            "NO_FAKE_STAT": "1",
            "DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "PYTHONPATH": f"{site}:{os.environ.get('PYTHONPATH', '')}",
        }

    def step_to(self, offset_seconds: int) -> None:
        """So far from the true time, from now on."""
        self._stamp.write_text(f"{offset_seconds:+d}")


def broken(home: Path, code: str) -> dict[str, str]:
    """Environment of a gateway in which `code` runs before anything of ours: it replaces what it breaks."""
    site = home / "broken"
    site.mkdir()
    (site / "sitecustomize.py").write_text(code)
    return {"PYTHONPATH": f"{site}:{os.environ.get('PYTHONPATH', '')}"}


def ready(gateway: Gateway) -> bool:
    """What /readyz says."""
    try:
        with urllib.request.urlopen(f"{gateway.metrics}/readyz", timeout=10) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError as error:
        if error.code != 503:
            raise
        return False
