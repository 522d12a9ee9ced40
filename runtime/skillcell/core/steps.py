"""The labelled steps of a call's path, in their order: where a crash would hurt if anything could.

Whatever happens, happens between two of these. Tests end the process at each of them and look what the next start makes
of it; a gateway that is not under test passes them by with `pass_by`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from enum import Enum


class Step(Enum):
    """Each is named for what has just been done."""

    PLANNED = "planned"
    """Checked, nothing kept."""
    ADMIT_WRITTEN = "admit-written"
    """In the transaction, not committed."""
    ADMIT_COMMITTED = "admit-committed"
    """Durable; nobody knows it yet."""
    ADMITTED = "admitted"
    """The executor knows; the caller does not."""
    METADATA_SENT = "metadata-sent"
    """The caller knows the execution's id."""
    LEASED = "leased"
    """There is a sandbox."""
    STARTED = "started"
    """The entrypoint runs and its first events are kept."""
    RAN = "ran"
    """Its last process is dead and the kernel's counters are read."""
    SETTLE_WRITTEN = "settle-written"
    """In the transaction, not committed."""
    SETTLE_COMMITTED = "settle-committed"
    """The record is durable; nobody knows it yet."""
    SETTLED = "settled"
    """The executor knows; the last event is not among the kept ones."""
    TOLD = "told"
    """The last event is kept; it may not have been sent."""
    DESTROYED = "destroyed"
    """Nothing of the sandbox is left."""
    RECOVERY_READ = "recovery-read"
    """At the next start: what is left of a call has been read."""
    RECOVERY_SETTLED = "recovery-settled"
    """At the next start: its record is durable, its last event not yet kept."""


class ExportStep(Enum):
    """The steps of a delivery to a sink, apart from a call's."""

    MARKED = "export-marked"
    """What is going to be sent is kept; nothing is sent."""
    ACCEPTED = "export-accepted"
    """The sink has answered 2xx; the cursor stands where it stood."""
    ACKNOWLEDGED = "export-acknowledged"
    """The cursor is durable."""


Steps = Callable[[Step], None]
"""Hears of each step as it is done, on whatever thread does it; must be quick and must not raise."""

ExportSteps = Callable[[ExportStep], None]
"""The same for a delivery."""


def pass_by(step: Step) -> None:
    """What every gateway does that is not under test."""


def export_pass_by(step: ExportStep) -> None:
    """The same for a delivery."""


def _step_of(label: str) -> Step | ExportStep:
    with suppress(ValueError):
        return ExportStep(label)
    return Step(label)


def crash_at(where: str) -> Callable[[Step | ExportStep], None]:
    """Ends this process as `kill -9` does, at `LABEL` or at its n-th time as `LABEL:n`; passes all by for an empty
    string.

    ValueError when there is no such label.
    """
    if not where:
        return lambda step: None
    label, _, times = where.partition(":")
    step, left = _step_of(label), int(times or 1)

    def reached(now: Step | ExportStep) -> None:
        nonlocal left
        if now is step:
            left -= 1
            if left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return reached
