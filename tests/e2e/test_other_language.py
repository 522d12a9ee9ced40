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

from one_machine import Machine, one_machine

CHECKOUT = Path(__file__).parents[2]
CLIENT = CHECKOUT / "tests" / "e2e" / "node_client"
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
        yield served


def node(client: Path, machine: Machine, script: str, *, key: str = "") -> subprocess.CompletedProcess[str]:
    note = machine.note
    return subprocess.run(
        ["node", script, note["address"], key or note["api_key"], "samples/monte-carlo", INPUT],
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


def test_the_readme_shows_the_client_that_is_tested_here() -> None:
    assert (CLIENT / "call.mjs").read_text() in (CHECKOUT / "README.md").read_text()
