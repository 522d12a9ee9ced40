"""From a folder and what its manifest says to entrypoints that can be called.

Without `entrypoints` in the manifest every script is one, under its relative path. With it, the manifest's list is the
whole list. In `command`, the element that equals `script` is relative to the package; everything else is as written.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from skillcell.core.errors import Fault, FaultKind, FieldViolation, precondition
from skillcell.core.skills import Entrypoint, Interpreter, SkillSpec, StdoutMode
from skillcell.core.types import WorkingDir
from skillcell.registry.findings import Report, shown
from skillcell.registry.manifest import Manifest
from skillcell.registry.manifest_entrypoints import EntrypointRequest, IoRequest
from skillcell.registry.modules import module_name
from skillcell.registry.scripts import Script, Unstartable, scripts

_PROGRAMS = {
    "python3": Interpreter.PYTHON,
    "python": Interpreter.PYTHON,
    "bash": Interpreter.SHELL,
    "sh": Interpreter.SHELL,
    "node": Interpreter.NODE,
}
_HANDLERS = {".py": Interpreter.PYTHON, ".js": Interpreter.NODE, ".mjs": Interpreter.NODE, ".cjs": Interpreter.NODE}
MAX_DISCOVERED = 500


def find_scripts(root: Path, report: Report) -> tuple[Script, ...]:
    """All scripts of the folder; what can't be started is a note."""
    found: list[Script] = []
    for item in scripts(root):
        if isinstance(item, Unstartable):
            report.note("script-not-callable", f"not callable without a manifest: {item.why}", item.path)
            continue
        if item.note:
            report.note("script-interpreter", item.note, item.path, 1)
        found.append(item)
    if len(found) > MAX_DISCOVERED:
        report.warning("scripts-many", f"{len(found)} scripts; only the first {MAX_DISCOVERED} are entrypoints")
    return tuple(found[:MAX_DISCOVERED])


def entrypoints(root: Path, manifest: Manifest, found: Sequence[Script], report: Report) -> tuple[Entrypoint, ...]:
    """The manifest's entrypoints, or else the folder's scripts."""
    if manifest.entrypoints is None:
        return tuple(_with_io(_of_script(root, script), IoRequest(), manifest.io) for script in found)
    return tuple(
        entrypoint
        for request in manifest.entrypoints
        if (entrypoint := _of_request(root, request, manifest.io, found, report)) is not None
    )


def default_entrypoint(
    manifest: Manifest, offered: Sequence[Entrypoint], found: Sequence[Script], report: Report
) -> str:
    """The manifest's choice, or the only entrypoint, or the only script that looks meant to be called."""
    names = [entrypoint.name for entrypoint in offered]
    if manifest.default_entrypoint:
        if manifest.default_entrypoint not in names:
            message = f"no entrypoint is named {shown(manifest.default_entrypoint)!r}"
            report.error("manifest-default-entrypoint", message, *manifest.places.get("defaultEntrypoint", ("", 0, 0)))
        return manifest.default_entrypoint
    if manifest.entrypoints is None:
        primary = [script.path for script in found if script.primary]
        names = primary if len(primary) == 1 else names
    return names[0] if len(names) == 1 else ""


def find_entrypoint(spec: SkillSpec, name: str) -> Entrypoint:
    """By full name, or by file name with or without extension where that is unique; without a name, the default one.

    Raises Fault: FAILED_PRECONDITION when the Skill has nothing to run, INVALID_ARGUMENT when a name is needed or fits
    several, NOT_FOUND (with close matches) when it fits none.
    """
    if not spec.entrypoints:
        message = f"Skill {spec.name!r} has nothing to run: no script is in it and no manifest names an entrypoint"
        raise precondition("NOT_CALLABLE", message, skill=spec.name)
    wanted = name or spec.default_entrypoint
    names = [entrypoint.name for entrypoint in spec.entrypoints]
    if not wanted:
        raise _ask_for_name(f"Skill {spec.name!r} has several; name one of", names)
    for form in range(4):
        fitting = [entrypoint for entrypoint in spec.entrypoints if _forms(entrypoint)[form] == wanted]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            fits = [entrypoint.name for entrypoint in fitting]
            raise _ask_for_name(f"{shown(wanted)!r} fits several; name one of", fits)
    forms = [form for entrypoint in spec.entrypoints for form in _forms(entrypoint)]
    close = difflib.get_close_matches(wanted[:256], forms, 3, 0.5)
    hint = f"did you mean {', '.join(dict.fromkeys(close))}?" if close else f"there are {', '.join(names[:10])}"
    raise Fault(
        FaultKind.NOT_FOUND,
        "ENTRYPOINT_NOT_FOUND",
        f"Skill {spec.name!r} has no entrypoint {shown(wanted)!r}; {hint}",
        violations=(FieldViolation("entrypoint", hint),),
        resource=("entrypoint", shown(wanted)),
        metadata={"close": ", ".join(dict.fromkeys(close)), "entrypoints": ", ".join(names[:20])},
    )


def _forms(entrypoint: Entrypoint) -> tuple[str, str, str, str]:
    """`scripts/extract.py` is also `scripts/extract`, `extract.py` and `extract`."""
    path = PurePosixPath(entrypoint.name)
    return entrypoint.name, str(path.with_suffix("")), path.name, path.stem


def _ask_for_name(message: str, names: Sequence[str]) -> Fault:
    listed = ", ".join(names[:20])
    return Fault(
        FaultKind.INVALID_ARGUMENT,
        "ENTRYPOINT_AMBIGUOUS",
        f"entrypoint: {message} {listed}",
        violations=(FieldViolation("entrypoint", f"{message} {listed}"),),
        metadata={"entrypoints": listed},
    )


def _of_script(root: Path, script: Script) -> Entrypoint:
    if module := module_name(root, script):
        command = ("python3", "-m", module)
        return Entrypoint(name=script.path, command=command, script=script.path, interpreter=Interpreter.EXECUTABLE)
    return Entrypoint(name=script.path, command=script.command, script=script.path, interpreter=script.interpreter)


def _of_request(
    root: Path, request: EntrypointRequest, shared: IoRequest, found: Sequence[Script], report: Report
) -> Entrypoint | None:
    where = (request.path, request.line, request.column)
    if request.handler:
        file = request.handler.rpartition(":")[0]
        if not (root / file).is_file():
            report.error("manifest-handler", f"{request.name}: there is no file {shown(file)!r}", *where)
            return None
        base = Entrypoint(
            name=request.name, handler=request.handler, script=file, interpreter=_HANDLERS[PurePosixPath(file).suffix]
        )
    elif request.command:
        base = _of_command(root, request, found, report)
    else:
        script = next((script for script in found if script.path == request.name), None)
        if script is None:
            message = f"{shown(request.name)!r} is no script of the folder, so it needs command or handler"
            report.error("manifest-entrypoint", message, *where)
            return None
        base = _of_script(root, script)
    described = replace(
        base,
        name=request.name,
        description=request.description,
        input_schema=request.input_schema,
        output_schema=request.output_schema,
        bindings=request.bindings,
        annotations=request.annotations,
    )
    return _with_io(described, request.io, shared)


def _of_command(root: Path, request: EntrypointRequest, found: Sequence[Script], report: Report) -> Entrypoint:
    """Finds the script in a command: its first element if that is a path, else what a known interpreter is given."""
    program, *rest = request.command
    base = Entrypoint(name=request.name, command=request.command)
    if "/" in program and not program.startswith("/"):
        path = str(PurePosixPath(program))
        script = next((script for script in found if script.path == path), None)
        if script is not None:
            # Started as discovery would: archives made on other systems have lost the exec bit.
            started = _of_script(root, script)
            return replace(started, command=(*started.command, *rest))
        if not (root / path).is_file() or not os.access(root / path, os.X_OK):
            where = (request.path, request.line, request.column)
            message = f"{request.name}: {shown(program)!r} is no script and no executable file of the folder"
            report.error("manifest-command", message, *where)
        return replace(base, command=(path, *rest), script=path)
    path = str(PurePosixPath(rest[0])) if rest else ""
    if rest and not rest[0].startswith(("-", "/")) and (root / path).is_file():
        interpreter = _PROGRAMS.get(program, Interpreter.EXECUTABLE)
        # Only a bare `python3 script` can be run by a waiting interpreter; arguments of its own come with it in argv.
        return replace(base, command=(program, path, *rest[1:]), script=path, interpreter=interpreter)
    return base


def _with_io(entrypoint: Entrypoint, own: IoRequest, shared: IoRequest) -> Entrypoint:
    """The entrypoint's own word, else the manifest's top level, else the default."""
    success_codes = shared.success_codes if own.success_codes is None else own.success_codes
    outputs = shared.outputs if own.outputs is None else own.outputs
    stdin = shared.stdin if own.stdin is None else own.stdin
    return replace(
        entrypoint,
        working_dir=own.working_dir or shared.working_dir or WorkingDir.WORKSPACE,
        stdin=stdin or "",
        stdout=own.stdout or shared.stdout or StdoutMode.TEXT,
        outputs=outputs or {},
        success_codes=success_codes or (0,),
    )
