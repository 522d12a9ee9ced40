"""A waiting interpreter becomes `python3 script args`, so that nobody in it could tell.

The forked child has the agent's frames beneath it, and a script can see them (tracebacks, `inspect.stack`, warnings'
stack levels). So it first unwinds them all: `take_over` installs an excepthook and raises. The interpreter, having
printed nothing and with an empty stack, calls the hook from C; the hook is built so that what runs then is CPython's
own PyRun_SimpleFileExFlags, called from C too. From there on everything (source encoding, syntax errors, tracebacks,
SystemExit, KeyboardInterrupt, exit code, finalisation) is what `python3 script` does, done by the same code.

Whatever a fork can't honour, because an interpreter reads it when it starts, gets a fresh interpreter:
`needs_fresh_interpreter`.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import io
import operator
import os
import stat
import sys
import time

from skillcell.agent import process
from skillcell.agent.job import Job

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

_HONOURED = ("PYTHONPATH", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE", "PYTHONSTARTUP")
_UNDERSCORED = (
    "PYTHON_FROZEN_MODULES",
    "PYTHON_CPU_COUNT",
    "PYTHON_GIL",
    "PYTHON_JIT",
    "PYTHON_COLORS",
    "PYTHON_HISTORY",
)
"""Of the names that begin with PYTHON_ only these are CPython's; images set others (PYTHON_VERSION) that mean nothing
to it.
"""
_PLAIN_LOCALES = ("", "C", "POSIX", "C.UTF-8", "C.utf8")
_CUSTOMIZING = frozenset({"sitecustomize", "usercustomize"})
_LAYERS = "/layers/"
_FRESH_MAIN = frozenset(
    ("__name__", "__doc__", "__package__", "__loader__", "__spec__", "__annotations__", "__builtins__")
)


class Baseline:
    """What the interpreter was before the agent changed it."""

    modules: frozenset[str] = frozenset()
    path: tuple[str, ...] = ()


def needs_fresh_interpreter(job: Job) -> bool:
    """Whether a new `python3` would differ from a fork of this one in a way that matters to the job."""
    env = job.env
    for name, value in env.items():
        ours = name in _UNDERSCORED if name.startswith("PYTHON_") else name.startswith("PYTHON")
        if value and ours and name not in _HONOURED:
            return True
    if any(env.get(name, "") not in _PLAIN_LOCALES for name in ("LC_ALL", "LC_CTYPE", "LANG")):
        return True
    if not _is_source(job.script):
        return True
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    if os.path.isdir(os.path.join(env.get("HOME", "/"), ".local", "lib", version, "site-packages")):
        return True
    return not _shadowed([os.path.dirname(job.script), *python_path(env)]).isdisjoint(_preloaded() | _CUSTOMIZING)


def fresh_command(job: Job) -> list[str]:
    """The same as a new process."""
    return [sys.executable, job.script, *job.argv]


def python_path(env: dict[str, str]) -> list[str]:
    """The entries of PYTHONPATH, absolute."""
    return [os.path.abspath(entry) for entry in env.get("PYTHONPATH", "").split(":")] if env.get("PYTHONPATH") else []


def _is_source(path: str) -> bool:
    """Not a directory or an archive with a `__main__` in it, and not missing: those are the fresh interpreter's to
    handle.
    """
    try:
        with open(path, "rb") as file:
            return stat.S_ISREG(os.fstat(file.fileno()).st_mode) and not path.endswith((".pyc", ".pyz", ".zip"))
    except OSError:
        return False


def _preloaded() -> frozenset[str]:
    """Top-level modules that a fresh interpreter would not have loaded."""
    return frozenset(name.partition(".")[0] for name in set(sys.modules) - Baseline.modules)


def _shadowed(directories: list[str]) -> set[str]:
    """Names of modules that these directories could bring."""
    found: set[str] = set()
    for directory in directories:
        try:
            found.update(name.partition(".")[0] for name in os.listdir(directory))
        except OSError:
            continue
    return found


def forget_shadowed(directory: str) -> None:
    """Unloads what was preloaded and has a namesake beside a function's file, which a plain import would have found
    first.
    """
    shadowed = _shadowed([directory]) & _preloaded()
    for name in [name for name in sys.modules if name.partition(".")[0] in shadowed]:
        del sys.modules[name]


def settle_in(job: Job, argv: list[str], directory: str) -> None:
    """Makes this interpreter's state what the job's environment would have made it. Functions use it as well as
    scripts.
    """
    process.signals_for_python()
    os.environ.clear()
    os.environ.update(job.env)
    time.tzset()
    for name in [name for name in sys.modules if name.partition(".")[0] == "skillcell"]:
        del sys.modules[name]
    atexit.register(_spare, [name for name in sys.modules if name not in Baseline.modules])
    sys.argv[:] = argv
    sys.orig_argv = [sys.executable, *argv]
    entries = python_path(job.env)
    sys.path[:] = list(dict.fromkeys([directory, *entries, *Baseline.path]))
    sys.path_importer_cache.clear()
    sys.dont_write_bytecode = bool(job.env.get("PYTHONDONTWRITEBYTECODE"))
    unbuffered = bool(job.env.get("PYTHONUNBUFFERED"))
    sys.stdin = _stdio(0, "r", "<stdin>", "surrogateescape", False, False)
    sys.stdout = _stdio(1, "w", "<stdout>", "surrogateescape", True, unbuffered)
    sys.stderr = _stdio(2, "w", "<stderr>", "backslashreplace", True, unbuffered)
    vars(sys).update(__stdin__=sys.stdin, __stdout__=sys.stdout, __stderr__=sys.stderr)
    for entry in entries:
        if entry.startswith(_LAYERS):
            _process_pth(entry)


def _spare(names: list[str]) -> None:
    """Last of the script's exit handlers: what the agent had preloaded is not torn down with what the script made.

    Tearing it down writes to every page that the fork shares, for more than a millisecond, and nobody could see the
    difference.
    """
    spared = [sys.modules.pop(name, None) for name in names]
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(spared))


def _stdio(fd: int, mode: str, name: str, errors: str, line_buffering: bool, write_through: bool) -> io.TextIOWrapper:
    """As the interpreter makes them at its start; those of the agent remember what its own descriptors were.

    `surrogateescape` is what every locale of _PLAIN_LOCALES gives stdin and stdout. Lines go out at once, so that
    output is live.
    """
    binary = open(fd, mode + "b", closefd=False)  # noqa: SIM115 - lives as long as the process
    binary.raw.name = name  # type: ignore[attr-defined]
    text = io.TextIOWrapper(binary, "utf-8", errors, "\n", line_buffering, write_through)
    text.mode = mode  # type: ignore[misc]
    return text


def _process_pth(directory: str) -> None:
    """A resolved layer may hold .pth files (namespace packages, extra paths) that PYTHONPATH alone does not read."""
    if any(name.endswith(".pth") for name in _listed(directory)):
        import site

        site.addsitedir(directory)


def _listed(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


class _Leave(BaseException):
    """Takes the agent's frames off the stack; nobody sees it."""


class _Hook:
    """Called by the interpreter as sys.excepthook(type, value, traceback), it runs the script instead.

    Looking up `__call__` is what runs it: the property's getter is a C callable, which gets `program` from here (a
    Python property, over before the script starts) and calls it without arguments. So no Python frame is beneath the
    script.
    """

    __call__ = property(operator.methodcaller("program"))

    def __init__(self, job: Job) -> None:
        self._job = job

    @property
    def program(self) -> Any:
        job = self._job
        sys.excepthook = sys.__excepthook__
        for name in ("last_type", "last_value", "last_traceback", "last_exc"):
            if hasattr(sys, name):
                delattr(sys, name)
        namespace = sys.modules["__main__"].__dict__
        for name in set(namespace) - _FRESH_MAIN:
            del namespace[name]
        namespace.update(__name__="__main__", __doc__=None, __package__=None, __spec__=None)
        settle_in(job, [job.script, *job.argv], os.path.dirname(job.script))
        libc = ctypes.CDLL(None, use_errno=True)
        libc.fopen.restype = ctypes.c_void_p
        path = os.fsencode(job.script)
        file = libc.fopen(path, b"rbe")
        if not file:
            reason = os.strerror(ctypes.get_errno())
            sys.stderr.write(
                f"{sys.executable}: can't open file {job.script!r}: [Errno {ctypes.get_errno()}] {reason}\n"
            )
            raise SystemExit(2)
        run = ctypes.pythonapi.PyRun_SimpleFileExFlags
        run.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_void_p]
        run.restype = _finished
        return functools.partial(run, file, path, 1, None)


def _finished(result: int) -> Any:
    """After the script. SystemExit from the hook is the exit code; else the interpreter ends with 1, or by SIGINT as it
    should.
    """
    if result == 0:
        raise SystemExit(0)
    return "".format  # the interpreter now calls what the property gave, with three arguments


def take_over(job: Job) -> NoReturn:
    """The script runs once everything below is unwound."""
    sys.excepthook = _Hook(job)
    raise _Leave
