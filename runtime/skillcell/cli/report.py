"""A call after its end: the JSON object of `call --json`, and the table of its usage for people."""

from __future__ import annotations

import base64
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from skillcell.cli.present import duration, plain, printable, size
from skillcell.client import CallResult
from skillcell.core.decimals import decimal_text
from skillcell.core.statements import Cost
from skillcell.core.types import Measurement, Outcome


def as_json(result: CallResult, counts: Counter[str], saved: Mapping[str, Path]) -> dict[str, Any]:
    """Everything of one call. Text that is not UTF-8 is given in base64 besides."""
    completed = result.completed
    return {
        "execution_id": result.execution_id,
        "outcome": completed.outcome.value,
        "exit_code": completed.exit_code,
        "signal": completed.signal,
        "message": completed.message,
        "fault": completed.fault.value,
        "billable": completed.billable,
        "retryable": completed.retryable,
        "evidence": plain(completed.evidence),
        "canceled_by": plain(completed.canceled_by),
        **_stream("stdout", result.stdout),
        **_stream("stderr", result.stderr),
        "output": result.output,
        "outputs": list(result.outputs),
        "logs": plain(result.logs),
        "artifacts": [
            {**plain(artifact), "path": str(saved[artifact.name]) if artifact.name in saved else None}
            for artifact in result.artifacts
        ],
        "refused_artifacts": plain(result.refused_artifacts),
        "usage": plain(completed.usage),
        "cost": plain(completed.cost),
        "sandbox": plain(result.started),
        "events": dict(counts),
    }


def _stream(name: str, data: bytes) -> dict[str, str]:
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        return {name: data.decode("utf-8", "replace"), f"{name}_base64": base64.b64encode(data).decode()}


def summary(result: CallResult, saved: Mapping[str, Path]) -> None:
    """Outcome, artifacts and usage on stderr."""
    completed, usage = result.completed, result.usage
    lines = [
        f"{artifact.name}  {size(artifact.size_bytes)}{_where(artifact.name, saved)}" for artifact in result.artifacts
    ]
    for line in lines:
        _say(f"artifact  {line}")
    if result.artifacts and not saved:
        _say("          (--out DIR saves artifacts)")
    for refused in result.refused_artifacts:
        _say(f"refused   {refused.name}: {refused.reason}")
    peak = size(usage.memory_peak_bytes)
    rows = {
        "outcome": _outcome(result),
        "execution": result.execution_id,
        "skill": f"{usage.publisher}/{usage.skill}@{usage.version} {usage.entrypoint}",
        "sandbox": f"{usage.driver} {usage.isolation.value.lower()}, {'warm' if usage.warm else 'cold'}, "
        f"started in {duration(usage.times.startup_ns)}",
        "run": f"{duration(usage.times.run_ns)}, billed {usage.billed_ms} ms",
        "cpu": duration(usage.cpu_total_ns) + _measured(usage.measurement),
        "memory": f"peak {peak} of {size(usage.memory_limit_bytes)}{_measured(usage.measurement)}",
        "processes": f"peak {usage.pids_peak}",
        "bytes": f"input {size(usage.input_bytes)}, output {size(usage.output_bytes)}, "
        f"artifacts {size(usage.artifact_bytes)}",
    }
    if completed.cost is not None:
        rows["cost"] = f"{decimal_text(completed.cost.amount)} {completed.cost.currency}{_made_of(completed.cost)}"
    bold, plain_text = ("\x1b[1m", "\x1b[0m") if sys.stderr.isatty() else ("", "")
    for name, value in rows.items():
        sys.stderr.write(f"{bold}{name:<10}{plain_text}{printable(value)}\n")
    sys.stderr.flush()


def _outcome(result: CallResult) -> str:
    completed = result.completed
    text = completed.outcome.value
    if completed.outcome is Outcome.FAILED and completed.exit_code is not None:
        text += f", exit code {completed.exit_code}"
    if completed.message:
        text += f": {completed.message}"
    if completed.outcome is not Outcome.SUCCEEDED:
        text += f" (fault: {completed.fault.value.lower()}"
        text += ", may be retried)" if completed.retryable else ")"
    return text


def _made_of(cost: Cost) -> str:
    """The plan, and where there is more than one, the parts."""
    parts = [f"{line.meter.value.lower().replace('_', ' ')} {decimal_text(line.amount)}" for line in cost.lines]
    return f", plan {cost.plan_version}" + (f": {', '.join(parts)}" if len(parts) > 1 else "")


def _measured(measurement: Measurement) -> str:
    return "" if measurement is Measurement.EXACT else f" ({measurement.value.lower().replace('_', ' ')})"


def _where(name: str, saved: Mapping[str, Path]) -> str:
    return f"  → {saved[name]}" if name in saved else ""


def _say(text: str) -> None:
    sys.stderr.write(f"{printable(text)}\n")
