"""The agent's life: shield itself, say HELLO, take a job, run it, tell how it ended, wait for the next.

It is the first process of a sandbox and ends when the gateway's side of the channel does, which takes everything in the
sandbox with it. Nothing here is trusted by the gateway; what it can't do is let the Skill speak in its place, since the
channel's descriptors are closed to the Skill. In a forked child `main` does not go on as the agent: it becomes the
Skill's interpreter.
"""

from __future__ import annotations

import sys

_BASELINE = frozenset(sys.modules)

import errno  # noqa: E402
import fcntl  # noqa: E402
import gc  # noqa: E402
import importlib  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import select  # noqa: E402

from skillcell.agent import deliver, frames, functions, process, script, spawn  # noqa: E402
from skillcell.agent.channel import Channel, ChannelClosed  # noqa: E402
from skillcell.agent.collect import Collector, Globs, snapshot  # noqa: E402
from skillcell.agent.job import Job, JobError  # noqa: E402
from skillcell.agent.pump import Pump  # noqa: E402

_FIRST_FD = 64
"""The channel lives at or above this, well away from what a Skill's shell would redirect."""
_EVENTS = "SKILLCELL_EVENTS"
_PRELOADED = ("argparse", "datetime", "functools", "pathlib", "re", "subprocess")
"""What scripts import most and what is cheap to hold: shared by every fork of an agent that has waited."""
_IDLE_SECONDS = 0.05
"""Without a job for so long, the sandbox is a warm one. A cold one's job is on its way, and would wait for imports."""
_LATE = frozenset((frames.STDIN, frames.STDIN_EOF, frames.SIGNAL))
"""What may still be under way for a job that has ended."""
PLACES = {
    "workspace": "/workspace",
    "input": "/input",
    "skill": "/skill",
    "output": "/output",
    "run": "/run/skillcell",
    "tmp": "/tmp",
}


def main(places: dict[str, str] | None = None) -> None:
    """Serves until the channel closes. `places` is where the sandbox's directories are, for tests outside of one."""
    places = {**PLACES, **(places or {})}
    script.Baseline.modules = _BASELINE
    script.Baseline.path = tuple(entry for entry in sys.path[1:] if entry)
    try:
        _serve(_open_channel(), places)
    except ChannelClosed:
        return
    except spawn.Become as become:
        job = become.job
    if job.kind == "python-function":
        functions.run(job)
    else:
        script.take_over(job)


def _open_channel() -> Channel:
    """The channel moves up, /dev/null takes its place; stderr stays as the engine's log."""
    fd_in = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, _FIRST_FD)
    fd_out = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, _FIRST_FD)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)
    return Channel(fd_in, fd_out)


def _serve(channel: Channel, places: dict[str, str]) -> None:
    child_ended_fd = process.shield()
    process.write_identity(places["run"])
    gc.collect()
    gc.freeze()
    version = ".".join(str(part) for part in sys.version_info[:3])
    channel.send_json(frames.HELLO, {"protocol": frames.PROTOCOL, "python": version})
    if not select.select((channel.fd_in,), (), (), _IDLE_SECONDS)[0]:
        _preload()
    while True:
        kind, payload = channel.receive()
        if kind in _LATE:
            continue
        if kind != frames.JOB:
            raise frames.FrameError(f"frame type {kind} came where JOB was due")
        _take_job(channel, payload, places, child_ended_fd)


def _preload() -> None:
    for name in _PRELOADED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()


def _take_job(channel: Channel, payload: bytes, places: dict[str, str], child_ended_fd: int) -> None:
    """One job from JOB to DONE or FAILED."""
    job, failure = None, ""
    try:
        job = Job(payload)
        if job.copy_skill:
            deliver.copy_tree(places["skill"], job.cwd)
    except (JobError, deliver.DeliveryError) as error:
        failure = str(error)
    home = job.env.get("HOME", "") if job is not None else ""
    failure = _take_files(channel, {**places, "home": home or places["tmp"]}, failure)
    disks = [places["workspace"], places["tmp"], places["output"], home]
    if job is not None and not failure:
        try:
            _run(channel, job, places, child_ended_fd, disks)
            return
        except JobError as error:
            failure = str(error)
    channel.send_json(frames.FAILED, {"message": failure[:4096], "disk": _disk(disks)})


def _take_files(channel: Channel, roots: dict[str, str], failure: str) -> str:
    """Everything up to RUN, also when the job has failed already: the gateway reads nothing before it has sent all of
    it.
    """
    delivery = deliver.Delivery({name: roots[name] for name in ("workspace", "input", "skill", "home")})
    while True:
        kind, payload = channel.receive()
        try:
            if kind == frames.RUN:
                if not failure:
                    delivery.finish()
                return failure
            if kind not in (frames.FILE, frames.DATA):
                raise frames.FrameError(f"frame type {kind} came where FILE, DATA or RUN was due")
            if failure:
                continue
            if kind == frames.DATA:
                delivery.data(payload)
            else:
                said = json.loads(payload.decode("utf-8", "surrogateescape"))
                delivery.begin(str(said["root"]), str(said["name"]), int(said["mode"]), int(said["size"]))
        except deliver.DeliveryError as error:
            failure = str(error)
            delivery.abandon()
            if kind == frames.RUN:
                return failure
        except (ValueError, KeyError, TypeError) as error:
            raise frames.FrameError(f"FILE: {error!r}") from error


def _run(channel: Channel, job: Job, places: dict[str, str], child_ended_fd: int, disks: list[str]) -> None:
    """Raises JobError before STARTED; afterwards the job ends in DONE."""
    try:
        globs = Globs(job.collect)
        before = snapshot(job.cwd, globs)
    except OSError as error:
        raise JobError(f"the working directory {job.cwd}: {error.strerror}") from error
    path, events_fd = _open_events([places["run"], job.env.get("TMPDIR", ""), places["tmp"]])
    job.env[_EVENTS] = path
    try:
        child = spawn.spawn(job)
    except JobError:
        _close_events(path, events_fd)
        raise
    pump = Pump(channel, child, events_fd, child_ended_fd)
    try:
        channel.send(frames.STARTED)
        status = pump.run()
    finally:
        process.end_all(child.pid)
    pump.drain()
    pump.close()
    _close_events(path, events_fd)
    code, number = (None, os.WTERMSIG(status)) if os.WIFSIGNALED(status) else (os.WEXITSTATUS(status), None)
    channel.send_json(frames.EXITED, {"code": code, "signal": number, "disk": _disk(disks)})
    collector = Collector(channel, job)
    collector.result(places["output"])
    collector.outputs(places["output"])
    collector.changed(job.cwd, globs, before)
    collector.finish()
    channel.send(frames.DONE)


def _open_events(directories: list[str]) -> tuple[str, int]:
    """A FIFO of ours in the first directory that takes it. Made before the Skill exists, so nobody can have put it
    there.
    """
    reason = "no directory for it"
    for directory in directories:
        if not directory:
            continue
        path = f"{directory}/events"
        try:
            _unlink(path)
            os.mkfifo(path, 0o600)
            return path, os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            reason = f"{path}: {error.strerror}"
    raise JobError(f"no place for the events FIFO ({reason})")


def _close_events(path: str, fd: int) -> None:
    """Whatever the Skill has put in the FIFO's place stays: an end that failed over it would be an unbilled one."""
    os.close(fd)
    try:
        os.unlink(path)
    except OSError:
        pass


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EROFS, errno.EACCES):
            raise


def _disk(directories: list[str]) -> dict[str, dict[str, int]]:
    """What each writable mount holds, once each, as statvfs shows it."""
    found: dict[str, dict[str, int]] = {}
    seen = set()
    for directory in directories:
        try:
            device = os.stat(directory).st_dev
            status = os.statvfs(directory)
        except OSError:
            continue
        if device in seen or status.f_flag & os.ST_RDONLY or not os.access(directory, os.W_OK):
            continue
        seen.add(device)
        found[directory] = {
            "bytes_used": (status.f_blocks - status.f_bfree) * status.f_frsize,
            "bytes_limit": status.f_blocks * status.f_frsize,
            "files_used": status.f_files - status.f_ffree,
            "files_limit": status.f_files,
        }
    return found
