"""Draws README's picture from what `demo.sh` really prints: runs it at a terminal of its own, and saves an SVG.

Usage: capture.py [SVG]
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import sys
import termios
from pathlib import Path

from rich.console import Console
from rich.text import Text

HERE = Path(__file__).parent
COLUMNS, LINES = 112, 50
SHOWN = ("A function", "A script", "Usage")


def run(command: list[str]) -> str:
    """What a command prints at a terminal."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvp(command[0], command)  # noqa: S606
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    printed = bytearray()
    while True:
        try:
            data = os.read(terminal, 65536)
        except OSError:  # how Linux says that the other side is closed
            break
        if not data:
            break
        printed += data
    _, status = os.waitpid(pid, 0)
    if status:
        sys.exit(f"{command[0]} failed:\n{printed.decode(errors='replace')}")
    return printed.decode()


def sections(printed: str) -> str:
    """The chosen sections, each line as it stands when it is finished (a progress bar redraws its own)."""
    lines = [re.split(r"\r\x1b\[2K", line.rstrip("\r"))[-1] for line in printed.split("\n")]
    kept, keep = [], False
    for line in lines:
        plain = re.sub(r"\x1b\[[0-9;]*m", "", line)
        if plain.startswith("# "):
            keep = plain[2:].startswith(SHOWN)
        if keep:
            kept.append(line)
    return "\n".join(kept).strip()


def main(arguments: list[str]) -> None:
    target = Path(arguments[0]) if arguments else HERE / "demo.svg"
    console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    console.print(Text.from_ansi(sections(run([str(HERE / "demo.sh")]))), soft_wrap=False)
    console.save_svg(str(target), title="make demo")


if __name__ == "__main__":
    main(sys.argv[1:])
