"""How hostile programs are run and report: Python source that leaves a JSON value in `result`, inside or outside."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from typing import Any

from e2e.lab import run
from skillcell.client import CallResult, SkillcellClient
from skillcell.core.types import MEBIBYTE, SECOND_NS, LimitRequest, Outcome

LIMITS = LimitRequest(
    wall_ns=30 * SECOND_NS, cpu_ns=20 * SECOND_NS, memory_bytes=64 * MEBIBYTE, disk_bytes=16 * MEBIBYTE, pids=32
)

PRELUDE = """
import ctypes, errno, json, os, platform, signal, socket, stat, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
INTEL = platform.machine() == "x86_64"
def call(numbers, *arguments):
    ctypes.set_errno(0)
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    value = libc.syscall(ctypes.c_long(numbers[0 if INTEL else 1]), *wide)
    return errno.errorcode.get(ctypes.get_errno(), "?") if value == -1 else "done"
def attempt(action, *arguments, **named):
    try:
        action(*arguments, **named)
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    return "done"
def in_child(action, *arguments):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, str(action(*arguments)).encode())
        os._exit(0)
    os.close(writing)
    said = os.read(reading, 4096).decode()
    os.close(reading)
    os.waitpid(child, 0)
    return said
def sleeper():
    child = os.fork()
    if child == 0:
        signal.pause()
        os._exit(0)
    return child
"""
REPORT = "\nprint(json.dumps(result), flush=True)\n"


def program(source: str) -> str:
    """The whole text of one."""
    return PRELUDE + textwrap.dedent(source) + REPORT


async def report(client: SkillcellClient, source: str, *args: str, **options: Any) -> Any:
    """What one found inside a sandbox; it ran to its end and is billed."""
    result = await hostile(client, textwrap.dedent(source) + REPORT, *args, **options)
    assert result.outcome is Outcome.SUCCEEDED, (result.completed.message, result.stderr[-2000:])
    assert result.completed.billable
    return json.loads(result.stdout)


async def hostile(client: SkillcellClient, source: str, *args: str, **options: Any) -> CallResult:
    """One that need not end well. What holds of every call is asserted here."""
    options.setdefault("limits", LIMITS)
    result = await run(client, PRELUDE + textwrap.dedent(source), *args, **options)
    usage = result.usage
    assert result.outcome not in (Outcome.PLATFORM_ERROR, Outcome.NEVER_RAN), result.completed.message
    assert result.completed.billable
    assert usage.billed_ms > 0
    assert usage.memory_peak_bytes <= usage.memory_limit_bytes
    assert usage.pids_peak <= options["limits"].pids
    return result


def report_outside(source: str, *args: str) -> Any:
    """What the same program, its arguments from `sys.argv[2]` on, finds on this very machine,
    as root without a sandbox, in namespaces to throw away.
    """
    command = ["unshare", "--mount", "--net", "--uts", "--ipc", sys.executable, "-c", program(source), "", *args]
    done = subprocess.run(command, capture_output=True, timeout=30, check=True)
    return json.loads(done.stdout)
