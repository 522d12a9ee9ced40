"""Runs a command with a Docker Engine: the one that answers at the default socket, else one that ends with the command.

Usage: with_engine.py COMMAND ARGS…

The engine has its data, its network (none) and its runtimes to itself; only the socket is the default one, where tests
and users look. It is no fixture, because what an engine can do is asked while tests are collected. Where none can be
started (no root, no dockerd) the command runs without, and tests that need one say so.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

SOCKET = Path("/var/run/docker.sock")
_START_SECONDS = 60
_STOP_SECONDS = 60


def answers() -> bool:
    with suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(5)
        probe.connect(str(SOCKET))
        probe.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
        return b" 200 " in probe.recv(64)
    return False


@contextmanager
def engine() -> Iterator[None]:
    """A dockerd with runc and, where gVisor is installed, runsc; stopped by its pid, its mounts and files removed."""
    directory = Path(tempfile.mkdtemp(prefix="skillcell-engine-"))
    runsc = shutil.which("runsc")
    gvisor = {"runsc": {"path": runsc, "runtimeArgs": ["--platform=ptrace", "--network=none"]}} if runsc else {}
    (directory / "daemon.json").write_text(json.dumps({"runtimes": gvisor}))
    with (directory / "log").open("wb") as log:
        daemon = subprocess.Popen(
            ["dockerd", "--config-file", str(directory / "daemon.json"), "--host", f"unix://{SOCKET}"]
            + [f"--{option}={directory / option}" for option in ("data-root", "exec-root", "pidfile")]
            + ["--bridge=none", "--iptables=false", "--ip6tables=false"],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        ends = time.monotonic() + _START_SECONDS
        while not answers():
            if daemon.poll() is not None or time.monotonic() > ends:
                sys.exit(f"dockerd did not start:\n{(directory / 'log').read_text()[-2000:]}")
            time.sleep(0.1)
        yield
    finally:
        daemon.terminate()
        try:
            daemon.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
        SOCKET.unlink(missing_ok=True)
        _end_shims(directory)
        mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for mount in sorted((mount for mount in mounts if mount.startswith(str(directory))), reverse=True):
            subprocess.run(["umount", mount], check=False)
        shutil.rmtree(directory, ignore_errors=True)


def _end_shims(directory: Path) -> None:
    """A shim outlives its engine on purpose; of one that has ended for good it is a leftover."""
    for process in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            if str(directory) in (process / "cmdline").read_text():
                os.kill(int(process.name), signal.SIGKILL)


def main(command: list[str]) -> int:
    with ExitStack() as stack:
        if not answers() and os.geteuid() == 0 and shutil.which("dockerd"):
            stack.enter_context(engine())
        child = subprocess.Popen(command)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _frame: child.send_signal(number))
        return child.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
