"""A stock gRPC client of another language: npm's @grpc/grpc-js, by the protos and by reflection."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from one_machine import Machine, one_machine, write_skill

CHECKOUT = Path(__file__).parents[2]
CLIENT = CHECKOUT / "tests" / "e2e" / "node_client"
HASH = {
    "SKILL.md": "---\nname: hash\ndescription: Tells the hash of its standard input.\n---\n",
    "scripts/hash.py": "import hashlib, sys\nprint(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())\n",
}
INPUT = '{"spot": 100, "strike": 90, "samples": 1000}'


@pytest.fixture(scope="module")
def node_client() -> Path:
    """The client with its packages, installed once for each lock."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed: apt-get install nodejs npm")
    lock = hashlib.sha256((CLIENT / "package-lock.json").read_bytes()).hexdigest()[:16]
    place = Path.home() / ".cache" / "skillcell-tests" / f"node-client-{lock}"
    if not (place / "node_modules" / ".package-lock.json").exists():
        place.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(CLIENT / name, place)
        subprocess.run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=place, check=True, timeout=100)
    for script in CLIENT.glob("*.mjs"):
        shutil.copy(script, place)
    return place


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with one_machine(tmp_path_factory.mktemp("home")) as served:
        served.run("publish", str(CHECKOUT / "tests" / "skills" / "monte-carlo"), "--as", "samples/monte-carlo")
        write_skill(served.home / "hash", HASH)
        served.run("publish", "hash", "--as", "samples/hash")
        yield served


def node(
    client: Path, machine: Machine, script: str, *arguments: str, key: str = ""
) -> subprocess.CompletedProcess[str]:
    note, given = machine.note, arguments or ("samples/monte-carlo", INPUT)
    return subprocess.run(
        ["node", script, note["address"], key or note["api_key"], *given],
        cwd=client,
        env={**os.environ, "PROTOS": str(CHECKOUT / "protos")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_node_client_calls_by_the_protos_and_sees_every_kind_of_event(node_client: Path, machine: Machine) -> None:
    done = node(node_client, machine, "call.mjs")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["samples"] == 1000
    assert "100 % 1,000 of 1,000 samples" in done.stderr
    assert "OUTCOME_SUCCEEDED" in done.stderr


def test_a_node_client_without_protos_learns_them_by_reflection(node_client: Path, machine: Machine) -> None:
    done = node(node_client, machine, "reflect.mjs")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["samples"] == 1000
    services = {"ExecutionService", "RegistryService", "SessionService", "UsageService", "AdminService"}
    assert {f"skillcell.v1.{name}" for name in services} <= set(done.stderr.split())


def test_a_node_client_with_another_key_is_refused(node_client: Path, machine: Machine) -> None:
    done = node(node_client, machine, "call.mjs", key="sk_dev_another")
    assert done.returncode != 0
    assert "UNAUTHENTICATED" in done.stderr


def test_a_node_client_sends_a_large_file_ahead(node_client: Path, machine: Machine, tmp_path: Path) -> None:
    data = os.urandom(9 << 20)
    (tmp_path / "large").write_bytes(data)
    done = node(node_client, machine, "upload.mjs", "samples/hash", str(tmp_path / "large"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("script", ["call.mjs", "upload.mjs"])
def test_the_readme_shows_the_clients_that_are_tested_here(script: str) -> None:
    assert (CLIENT / script).read_text() in (CHECKOUT / "README.md").read_text()
