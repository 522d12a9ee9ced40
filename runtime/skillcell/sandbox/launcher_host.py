"""The few system calls of the launcher that Python 3.11 has no function for: mounts, namespaces, becoming a subreaper.

They act on this process' own mount namespace; the launcher makes a private one first. Linux alone (mount(2),
unshare(2), prctl(2)).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

CLONE_NEWNS = 0x00020000
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_MOVE = 8192
MS_REC = 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2
PR_SET_CHILD_SUBREAPER = 36

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_libc.prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)


def unshare_mounts() -> None:
    """A mount namespace of our own, out of which and into which nothing propagates."""
    _check(_libc.unshare, CLONE_NEWNS)
    mount("none", Path("/"), "", MS_REC | MS_PRIVATE)


def mount(source: str, target: Path, kind: str, flags: int, data: str = "") -> None:
    """mount(2); raises OSError."""
    _check(_libc.mount, source.encode(), os.fsencode(target), kind.encode(), flags, data.encode())


def show_read_only(source: Path, target: Path, work: Path, below: str, *, locked: bool) -> None:
    """`source` at `target`, read-only; `locked` adds nosuid and nodev, flags that a user namespace can't take off.

    An overlay of `source` and of the directory `below`, both named relative to `work`, rather than a bind, whose path
    on the host everyone inside sees in /proc/self/mountinfo. A bind after all where the kernel refuses the overlay.
    """
    flags = MS_RDONLY | (MS_NOSUID | MS_NODEV if locked else 0)
    (work / "tree").mkdir(exist_ok=True)
    mount(str(source), work / "tree", "", MS_BIND)
    os.chdir(work)
    try:
        mount("skillcell", target, "overlay", flags, f"lowerdir=tree:{below}")
    except OSError:
        mount(str(source), target, "", MS_BIND)
        mount("none", target, "", MS_REMOUNT | MS_BIND | flags)
    finally:
        os.chdir("/")
        unmount(work / "tree")


def unmount(target: Path) -> None:
    """Detach `target` now; it goes when its last user goes. Raises OSError."""
    _check(_libc.umount2, os.fsencode(target), MNT_DETACH)


def become_subreaper() -> None:
    """Orphans below us become our children, so that we learn of their end and leave no zombie."""
    _check(_libc.prctl, PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _check(function: Callable[..., int], *arguments: object) -> None:
    if function(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
