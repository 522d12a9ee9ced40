"""From a job to a running process: pipes, fork, and in the child everything that makes it the Skill's own.

In the child `spawn` does not return: it executes another program, or raises Become, which `main` turns into a Python
program once the agent's frames are off the stack.
"""

from __future__ import annotations

import errno
import fcntl
import os

from skillcell.agent import process, script
from skillcell.agent.job import Job, JobError

_F_SETPIPE_SZ = 1031
_PIPE_BYTES = 256 * 1024
_DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin"


class Become(BaseException):
    """Raised in the child alone: unwind, then run this job's Python in this process."""

    def __init__(self, job: Job) -> None:
        self.job = job


class Process:
    """The Skill's main process as its parent sees it. Its descriptors are non-blocking, -1 once closed."""

    def __init__(self, pid: int, stdin: int, stdout: int, stderr: int) -> None:
        self.pid = pid
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr


def spawn(job: Job) -> Process:
    """Starts the job; its process exists and is set up when this returns. Raises JobError, and Become in the child."""
    stdin = os.pipe2(os.O_CLOEXEC) if job.stdin else (os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC), -1)
    stdout = os.pipe2(os.O_CLOEXEC)
    stderr = os.pipe2(os.O_CLOEXEC)
    trouble = os.pipe2(os.O_CLOEXEC)
    try:
        fcntl.fcntl(stdout[0], _F_SETPIPE_SZ, _PIPE_BYTES)
    except OSError:
        pass  # fewer, smaller reads; a user may be over its pipe budget
    try:
        pid = os.fork()
    except OSError as error:
        for fd in (*stdin, *stdout, *stderr, *trouble):
            if fd >= 0:
                os.close(fd)
        raise JobError(f"no process for the Skill: {error.strerror}") from error
    if pid == 0:
        _become(job, stdin[0], stdout[1], stderr[1], trouble[1])
    for fd in (stdin[0], stdout[1], stderr[1], trouble[1]):
        os.close(fd)
    message = _read_all(trouble[0])
    child = Process(pid, stdin[1], stdout[0], stderr[0])
    if message:
        os.waitpid(pid, 0)
        for fd in (child.stdin, child.stdout, child.stderr):
            if fd >= 0:
                os.close(fd)
        raise JobError(message)
    for fd in (child.stdin, child.stdout, child.stderr):
        if fd >= 0:
            os.set_blocking(fd, False)
    return child


def _read_all(fd: int) -> str:
    said = b""
    while data := os.read(fd, 4096):
        said += data
    os.close(fd)
    return said.decode("utf-8", "replace")


def _become(job: Job, stdin: int, stdout: int, stderr: int, trouble: int) -> None:
    """In the child. What goes wrong before the Skill runs is told through `trouble`; afterwards it is the Skill's."""
    step = "a session of its own"
    try:
        os.setsid()
        step = "its descriptors"
        for target, fd in enumerate((stdin, stdout, stderr)):
            os.dup2(fd, target)
        process.unshield(trouble)
        step = f"its working directory {job.cwd}"
        os.chdir(job.cwd)
        step = "its limits"
        process.apply_rlimits(job.rlimits)
    except (OSError, ValueError, OverflowError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        os.write(trouble, f"the Skill could not get {step}: {reason}".encode("utf-8", "replace")[:4096])
        os._exit(1)
    os.close(trouble)
    if job.kind == "python-function" or (job.kind == "python-script" and not script.needs_fresh_interpreter(job)):
        raise Become(job)
    _execute(_command(job), job.env)


def _command(job: Job) -> list[str]:
    if job.kind == "python-script":
        return script.fresh_command(job)
    if job.kind == "node-function":
        host = os.path.join(os.path.dirname(os.path.abspath(__file__)), "host.mjs")
        return ["node", host, job.script, job.function, str(job.deadline_ns), *job.argv]
    return job.argv


def _execute(argv: list[str], env: dict[str, str]) -> None:
    """execve as a shell would look it up; never returns. Exit code 127: not found, 126: found but can't be run."""
    process.signals_for_exec()
    name = argv[0]
    places = [name] if "/" in name else _in_path(name, env.get("PATH", _DEFAULT_PATH))
    encoded = {os.fsencode(key): os.fsencode(value) for key, value in env.items()}
    worst: OSError | None = None
    for place in places:
        try:
            os.execve(place, argv, encoded)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR) or (worst is None and os.path.exists(place)):
                worst = worst if worst is not None and worst.errno == errno.EACCES else error
                if error.errno != errno.EACCES:
                    break
    if worst is None:
        reason, code = ("not found" if "/" not in name else "No such file or directory"), 127
    elif worst.errno == errno.ENOENT:
        reason, code = "the interpreter named in its first line was not found", 127
    else:
        reason, code = os.strerror(worst.errno or 0), 126
    os.write(2, os.fsencode(f"{name}: {reason}\n"))
    os._exit(code)


def _in_path(name: str, path: str) -> list[str]:
    return [os.path.join(directory or ".", name) for directory in path.split(":")] if name else []
