"""What tests do to a gateway's surroundings: small disks that fill up or turn read-only, a clock that is stepped, and
code of ours that is broken on purpose.

What a reader could get wrong: everything here is undone when its block ends, in the reverse order; a disk is unmounted
after the gateway that lies on it has stopped.
"""

from __future__ import annotations

import os
import shutil
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
    open. What can be saved of it goes to another one."""

    def __init__(self, image: Path, path: Path) -> None:
        self._image, self.path = image, path
        found = subprocess.run(
            ["losetup", "--find", "--show", image], capture_output=True, text=True, check=False, env=_ADMIN
        )
        if found.returncode:
            pytest.skip(f"a loop device is needed: {found.stderr}")
        self._device = found.stdout.strip()

    def mount(self, options: str) -> None:
        _admin("mount", "-t", "ext4", "-o", f"errors=remount-ro,{options}", self._device, str(self.path))

    def break_it(self) -> None:
        Path(f"/sys/fs/ext4/{Path(self._device).name}/trigger_fs_error").write_text("a fault that a test made")

    def saved(self) -> LoopDisk:
        """A checked copy for the same place, not mounted yet. The broken one may stay in use by whoever still has it:
        launchers of gateways keep the mounts that they found at their start."""
        self.close()
        copy = self._image.with_suffix(".copy")
        shutil.copyfile(self._image, copy)
        subprocess.run(["e2fsck", "-y", "-f", copy], capture_output=True, check=False, env=_ADMIN)
        return LoopDisk(copy, self.path)

    def close(self) -> None:
        """Idempotent; the device goes when its last user has gone."""
        subprocess.run(["umount", "--lazy", self.path], check=False, capture_output=True)
        subprocess.run(["losetup", "--detach", self._device], check=False, capture_output=True, env=_ADMIN)


@contextmanager
def loop_disk(home: Path) -> Iterator[LoopDisk]:
    """Mounted for writing."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    image, path = home / "disk.img", home / "disk"
    path.mkdir()
    image.touch()
    os.truncate(image, 16 << 20)
    _admin("mkfs.ext4", "-q", "-F", str(image))
    disk = LoopDisk(image, path)
    try:
        disk.mount("rw")
        yield disk
    finally:
        disk.close()


def _admin(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=_ADMIN)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"


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
