"""A Python function as an entrypoint: imported, called by what its signature takes, its values sent as output events.

Runs in the forked child as the Skill. Errors are the Skill's own and look like it: the traceback on stderr has no frame
of ours. What a function returns or yields must be JSON; what is not is refused with the place in the value, never bent
into shape.
"""

from __future__ import annotations

import _thread
import json
import os
import sys
import time
import types

from skillcell.agent import frames, script
from skillcell.agent.job import Job

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_AGENT_DIRECTORY = os.path.dirname(os.path.abspath(__file__))
_LEVELS = ("debug", "info", "warning", "error")
_CONTEXT_NAMES = ("ctx", "context")


class Context:
    """What a function gets as its second argument: log, progress, outputs, places, and how long is left."""

    def __init__(self, env: dict[str, str], deadline_ns: int) -> None:
        self.workspace = env.get("SKILLCELL_WORKSPACE", "/workspace")
        self.skill_dir = env.get("SKILLCELL_SKILL_DIR", "/skill")
        self.output_dir = env.get("SKILLCELL_OUTPUT_DIR", "/output")
        self.execution_id = env.get("SKILLCELL_EXECUTION_ID", "")
        self.skill = env.get("SKILLCELL_SKILL", "")
        self._ends_ns = time.monotonic_ns() + deadline_ns
        self._events = os.open(env["SKILLCELL_EVENTS"], os.O_WRONLY | os.O_CLOEXEC)
        self._lock = _thread.allocate_lock()

    @property
    def deadline(self) -> float:
        """Seconds left before the call is ended; 0 when none are."""
        return max(0.0, (self._ends_ns - time.monotonic_ns()) / 1e9)

    def log(self, message: object, level: str = "info", **fields: object) -> None:
        """A structured line for the caller."""
        if level not in _LEVELS:
            raise ValueError(f"level: {level!r} is not one of {', '.join(_LEVELS)}")
        self._emit({"type": "log", "level": level, "message": str(message), "fields": fields}, "fields")

    def debug(self, message: object, **fields: object) -> None:
        self.log(message, "debug", **fields)

    def info(self, message: object, **fields: object) -> None:
        self.log(message, "info", **fields)

    def warning(self, message: object, **fields: object) -> None:
        self.log(message, "warning", **fields)

    def error(self, message: object, **fields: object) -> None:
        self.log(message, "error", **fields)

    def progress(self, fraction: float | None = None, message: object = "") -> None:
        """How far the work is, 0 to 1, or None when nobody knows."""
        if fraction is not None:
            fraction = float(fraction)
            if not 0 <= fraction <= 1:
                raise ValueError(f"fraction: {fraction!r} is not between 0 and 1")
        self._emit({"type": "progress", "fraction": fraction, "message": str(message)}, "progress")

    def output(self, value: object) -> None:
        """One JSON value for the caller, now. Raises TypeError or ValueError for what is not JSON."""
        self._emit({"type": "output", "value": value}, "output")

    def artifact_path(self, name: str) -> str:
        """Where to write a file that the caller gets under this name; its directory exists afterwards."""
        path = os.path.normpath(os.path.join(self.output_dir, name))
        if not name or os.path.isabs(name) or not path.startswith(self.output_dir.rstrip("/") + "/"):
            raise ValueError(f"name: {name!r} is not a relative path inside {self.output_dir}")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return path

    def _emit(self, event: dict[str, object], label: str) -> None:
        line = encode(event, label) + b"\n"
        if len(line) > frames.VALUE_BYTES:
            raise ValueError(f"{label}: {len(line)} bytes of JSON are over the limit of {frames.VALUE_BYTES}")
        with self._lock:
            view = memoryview(line)
            while view:
                view = view[os.write(self._events, view) :]


def encode(event: dict[str, object], label: str) -> bytes:
    """An event as a line of JSON. Raises TypeError or ValueError that names the place, as `output.rows[3].when`."""
    try:
        return json.dumps(event, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        subject = event.get("value") if event["type"] == "output" else event.get("fields")
        place = _find_fault(subject, label)
        if place is None:
            raise ValueError(f"{label} can't be written as JSON: {error}") from None
        raise TypeError(f"{place}, which is not JSON") from None


def _find_fault(value: object, place: str) -> str | None:
    """Where in a value JSON ends, without recursion: a value may be as deep, or as circular, as it likes."""
    waiting: list[tuple[object, str, tuple[int, ...]]] = [(value, place, ())]
    while waiting:
        value, place, above = waiting.pop()
        if value is None or isinstance(value, (bool, int)):
            continue
        if isinstance(value, float):
            if value != value or value in (float("inf"), float("-inf")):
                return f"{place} is {value!r}"
        elif isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError:
                return f"{place} is text with a lone surrogate"
        elif isinstance(value, (dict, list, tuple)):
            if id(value) in above:
                return f"{place} contains itself"
            if len(above) > 900:
                return f"{place} is nested more than 900 deep"
            pairs: Any = value.items() if isinstance(value, dict) else enumerate(value)
            for key, item in pairs:
                if isinstance(value, dict) and not isinstance(key, (str, int, float, type(None))):
                    return f"{place} has a key that is a {type(key).__name__}"
                step = f".{key}" if isinstance(value, dict) else f"[{key}]"
                waiting.append((item, place + step, (*above, id(value))))
        else:
            return f"{place} is a {type(value).__name__}"
    return None


def run(job: Job) -> None:
    """Calls the function and returns; whatever it raises goes on to the interpreter, which ends as for a script."""
    context_env = dict(job.env)
    sys.excepthook = _without_our_frames
    directory = os.path.dirname(job.script)
    script.forget_shadowed(directory)
    script.settle_in(job, [job.script, *job.argv], directory)
    context = Context(context_env, job.deadline_ns)
    function = _find(_load(job.script), job.function, job.script)
    value = _call(function, _input(context_env), context)
    _send(value, context)


def _input(env: dict[str, str]) -> object:
    try:
        with open(env.get("SKILLCELL_INPUT", "/input/input.json"), "rb") as file:
            return json.loads(file.read().decode())
    except FileNotFoundError:
        return None


def _load(path: str) -> types.ModuleType:
    import importlib.util

    name = os.path.basename(path).partition(".")[0]
    if not name.isidentifier() or name in sys.modules or name in getattr(sys, "stdlib_module_names", ()):
        name = "skill_" + "".join(char if char.isalnum() else "_" for char in name)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _find(module: types.ModuleType, name: str, path: str) -> Any:
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise AttributeError(f"{path} has no function {name!r}")
    return found


def _call(function: Any, value: object, context: Context) -> Any:
    positional, named = _wants(function)
    return function(*(value, context)[:positional], **dict.fromkeys(named, context))


def _wants(function: Any) -> tuple[int, list[str]]:
    """How many of (input, context) a function takes by position, and under which keyword-only names it wants the
    context.

    A second parameter with a default is the function's own business unless its name says that it is the context.
    """
    plain = function
    while hasattr(plain, "__wrapped__"):
        plain = plain.__wrapped__
    bound = isinstance(plain, types.MethodType)
    if bound:
        plain = plain.__func__
    if not isinstance(plain, types.FunctionType):
        return _wants_by_signature(function)
    code = plain.__code__
    names = code.co_varnames[int(bound) : code.co_argcount]
    required = len(names) - len(plain.__defaults__ or ())
    positional = min(len(names), 1)
    if len(names) >= 2 and (required >= 2 or names[1] in _CONTEXT_NAMES):
        positional = 2
    if code.co_flags & 0x04:  # *args takes what comes
        positional = 2
    only = code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
    return positional, [name for name in only if name in _CONTEXT_NAMES]


def _wants_by_signature(function: Any) -> tuple[int, list[str]]:
    import inspect

    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return 1, []
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    takes = min(len(positional), 1)
    if len(positional) >= 2 and (positional[1].default is positional[1].empty or positional[1].name in _CONTEXT_NAMES):
        takes = 2
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        takes = 2
    return takes, [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name in _CONTEXT_NAMES]


def _send(value: Any, context: Context) -> None:
    if hasattr(value, "__anext__") or hasattr(value, "__await__"):
        import asyncio

        value = asyncio.run(_finish(value, context))
    if hasattr(value, "__next__"):
        value = _exhaust(value, context)
    if value is not None:
        context.output(value)


async def _finish(value: Any, context: Context) -> Any:
    if hasattr(value, "__await__"):
        value = await value
    if hasattr(value, "__anext__"):
        async for item in value:
            context.output(item)
        return None
    return value


def _exhaust(values: Any, context: Context) -> Any:
    """Sends what a generator yields as it comes; its return value."""
    while True:
        try:
            item = next(values)
        except StopIteration as stop:
            return stop.value
        context.output(item)


def _without_our_frames(kind: type[BaseException], error: BaseException, _traceback: object) -> None:
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        current = waiting.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        current.__traceback__ = _stripped(current.__traceback__)
        waiting += [current.__cause__, current.__context__]
    sys.__excepthook__(kind, error, error.__traceback__)


def _stripped(traceback: types.TracebackType | None) -> types.TracebackType | None:
    """Without the agent's frames, and without those of import and asyncio machinery that lead from us to the Skill."""
    kept: list[types.TracebackType] = []
    while traceback is not None:
        path = traceback.tb_frame.f_code.co_filename
        machinery = path == "<string>" or path.startswith("<frozen importlib") or "/asyncio/" in path
        if os.path.dirname(path) != _AGENT_DIRECTORY and not (machinery and not kept):
            kept.append(traceback)
        traceback = traceback.tb_next
    result = None
    for frame in reversed(kept):
        result = types.TracebackType(result, frame.tb_frame, frame.tb_lasti, frame.tb_lineno)
    return result
