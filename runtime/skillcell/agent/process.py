"""The agent as a process: what it must be as PID 1, and what it undoes in the child that becomes the Skill.

What a reader could get wrong: the Skill has the agent's own uid. Only three things keep it out of the agent's memory
and descriptors: the agent is not dumpable (so /proc/1/fd, /proc/1/mem and ptrace are closed to it), every descriptor is
closed in the child before the child becomes dumpable again, and PID 1 of a namespace gets no signal from inside that it
has no handler for.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal

_PR_SET_DUMPABLE = 4
_SKILL_OOM_SCORE = b"1000"
_LIBC = ctypes.CDLL(None, use_errno=True)
_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)
_KNOWN_RLIMITS = {
    "nofile": resource.RLIMIT_NOFILE,
    "fsize": resource.RLIMIT_FSIZE,
    "core": resource.RLIMIT_CORE,
    "nproc": resource.RLIMIT_NPROC,
    "cpu": resource.RLIMIT_CPU,
}


def set_dumpable(on: bool) -> None:
    """Raises OSError."""
    if _LIBC.prctl(_PR_SET_DUMPABLE, int(on), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_DUMPABLE)")


def shield() -> int:
    """Makes this process the agent; returns a descriptor that becomes readable when a child ends."""
    set_dumpable(False)
    os.umask(0o022)
    for number in signal.valid_signals():
        if number not in (signal.SIGKILL, signal.SIGSTOP, *_IGNORED_BY_PYTHON) and number < signal.SIGRTMIN:
            signal.signal(number, signal.SIG_DFL)
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, _noticed)
    return reading


def _noticed(_number: int, _frame: object) -> None:
    """SIGCHLD needs a handler for the wake-up descriptor to be written; there is nothing else to do."""


def unshield(keep_fd: int) -> None:
    """In the child: back to what any process is, with fds 0, 1, 2 and `keep_fd` alone. Raises OSError."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.closerange(3, keep_fd)
    os.closerange(keep_fd + 1, max(1024, keep_fd + 1))
    set_dumpable(True)
    try:
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, _SKILL_OOM_SCORE)
        finally:
            os.close(fd)
    except OSError:
        pass  # a sandbox without /proc, or an engine without the file; the cgroup's limit holds all the same


def signals_for_exec() -> None:
    """Before execve: nothing ignored, as a shell would leave it."""
    for number in _IGNORED_BY_PYTHON:
        signal.signal(number, signal.SIG_DFL)


def signals_for_python() -> None:
    """As a fresh `python3` has them."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def apply_rlimits(limits: dict[str, int]) -> None:
    """Soft = hard, never above what the sandbox has already. Raises ValueError for a name we don't know, OSError."""
    for name, value in limits.items():
        if name not in _KNOWN_RLIMITS:
            raise ValueError(f"rlimits: {name!r} is not one of {', '.join(_KNOWN_RLIMITS)}")
        _soft, hard = resource.getrlimit(_KNOWN_RLIMITS[name])
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard)
        resource.setrlimit(_KNOWN_RLIMITS[name], (value, value))


def end_all(group: int) -> None:
    """Every process but this one is dead and reaped when this returns. Outside a pid namespace: those of the group."""
    alone = os.getpid() == 1
    while True:
        try:
            if alone:
                os.kill(-1, signal.SIGKILL)
            else:
                os.killpg(group, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
        try:
            os.waitpid(-1 if alone else -group, 0)
        except ChildProcessError:
            return


def reap(main_pid: int) -> int | None:
    """Takes every child that has ended; the wait status of `main_pid` if it is among them."""
    found = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if not pid:
            return found
        if pid == main_pid:
            found = status


def write_identity(directory: str) -> None:
    """passwd and group entries for the uid we were given, where the image links /etc/passwd and /etc/group to
    `directory`.
    """
    uid, gid = os.getuid(), os.getgid()
    passwd = "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
    group = "nogroup:x:65534:\n"
    root = "root:x:0:0:root:/nonexistent:/usr/sbin/nologin\n"
    skill = f"skill:x:{uid}:{gid}::/home/skill:/bin/sh\n"
    for name, content in (
        ("passwd", (skill if uid else "") + root + passwd),
        ("group", (f"skill:x:{gid}:\n" if gid else "") + "root:x:0:\n" + group),
    ):
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(f"{directory}/{name}", flags, 0o644)
        except OSError:
            return
        try:
            os.write(fd, content.encode())
        finally:
            os.close(fd)
