"""`skillcell usage …` as its users run it."""

from __future__ import annotations

import os
import subprocess

from e2e.gateway import SKILLCELL, Gateway


def usage(gateway: Gateway, *command: str, fails: bool = False, given: str = "") -> str:
    """What it prints, with `given` on its standard input; its exit code must be 0, or 1 where it `fails`."""
    done = subprocess.run(
        [SKILLCELL, "usage", *command, "--server", gateway.address, "--api-key", gateway.key],
        check=False,
        capture_output=True,
        text=True,
        input=given,
        timeout=100,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            "HOME": str(gateway.data),
            "COLUMNS": "300",
        },
    )
    assert done.returncode == int(fails), done.stdout + done.stderr
    return done.stdout
