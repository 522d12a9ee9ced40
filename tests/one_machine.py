"""One served gateway with real sandboxes, and the home of the user who calls it by the console script."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sandbox_fixtures import image, image_store

SKILLCELL = str(Path(sys.executable).parent / "skillcell")


@dataclass(frozen=True)
class Machine:
    """One served gateway and the home of the user who calls it."""

    home: Path
    env: dict[str, str]
    gateway: subprocess.Popen[str]

    def run(self, *arguments: str, stdin: bytes = b"", code: int = 0) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run(
            [SKILLCELL, *arguments],
            input=stdin,
            env=self.env,
            cwd=self.home,
            capture_output=True,
            timeout=90,
            check=False,
        )
        assert b"Traceback" not in done.stderr
        assert done.returncode == code, done.stderr.decode()
        return done

    @property
    def note(self) -> dict[str, str]:
        """What `serve` left: address, metrics, api_key."""
        found: dict[str, str] = json.loads((self.home / "state" / "skillcell" / "server.json").read_text())
        return found

    def json(self, *arguments: str, **options: Any) -> Any:
        return json.loads(self.run(*arguments, **options).stdout)


@contextmanager
def one_machine(home: Path) -> Iterator[Machine]:
    """Serves with the oci driver until the block ends, then expects a clean stop."""
    if os.geteuid() != 0:
        pytest.skip("the oci driver needs root")
    image("python-3.11")
    (home / "data").mkdir()
    (home / "data" / "images").symlink_to(image_store().directory)
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "XDG_STATE_HOME": str(home / "state"),
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
    }
    command = [SKILLCELL, "serve", "--driver", "oci", "--data", str(home / "data")]
    command += ["--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"]
    with (home / "serve.log").open("w") as log:
        gateway = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=log, text=True)
    assert gateway.stdout is not None
    first = gateway.stdout.readline()
    try:
        assert first.startswith("serving on 127.0.0.1:"), (home / "serve.log").read_text()[-2000:]
        yield Machine(home, env, gateway)
    finally:
        gateway.send_signal(signal.SIGTERM)
        gateway.communicate(timeout=60)
    assert gateway.returncode == 0


def write_skill(folder: Path, files: Mapping[str, str]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
