"""The rules and the scrape example in deploy/prometheus, held to their unit tests by promtool."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "deploy/prometheus/skillcell.rules.yaml"
TESTS = ROOT / "tests/prometheus/skillcell.test.yaml"


def promtool(*command: str) -> None:
    program = shutil.which("promtool")
    assert program is not None, "promtool is needed (package: prometheus)"
    done = subprocess.run([program, *command], check=False, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def test_rules_and_scrape_example_are_valid() -> None:
    promtool("check", "rules", "--lint=all", "--lint-fatal", str(RULES))
    promtool("check", "config", str(ROOT / "deploy/prometheus/prometheus.yaml"))


def test_rules_do_what_their_tests_say() -> None:
    promtool("test", "rules", str(TESTS))


def test_every_alert_says_how_bad_what_and_what_to_do_and_is_tested_firing_and_silent() -> None:
    cases = [case for test in yaml.safe_load(TESTS.read_text())["tests"] for case in test["promql_expr_test"]]
    for rule in (rule for rule in rules() if "alert" in rule):
        name = rule["alert"]
        assert rule["labels"]["severity"] in ("critical", "warning", "info"), name
        assert {"summary", "description", "runbook"} == set(rule["annotations"]), name
        outcomes = {bool(case["exp_samples"]) for case in cases if f'alertname="{name}"' in case["expr"]}
        assert outcomes == {True, False}, name


def test_no_rule_asks_for_an_instance_of_the_ledgers_counters() -> None:
    for rule in rules():
        if "skillcell_calls_total" in rule["expr"] or "skillcell_billed_seconds_total" in rule["expr"]:
            assert "instance" not in rule["expr"]
