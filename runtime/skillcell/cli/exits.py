"""Exit codes. `call` gives the Skill's own where it exited; the rest are fixed, and its help lists them."""

from __future__ import annotations

from skillcell.core.events import Completed
from skillcell.core.types import Outcome

REFUSED = 125
"""No gateway, or one that refused before the call was admitted; also its own failure."""
FAILED = 1
"""A command other than `call` that could not do what it was asked for."""
INTERRUPTED = 130
BROKEN_PIPE = 141

_FIXED = {
    Outcome.DISK_LIMIT_EXCEEDED: 120,
    Outcome.OUTPUT_LIMIT_EXCEEDED: 121,
    Outcome.CPU_LIMIT_EXCEEDED: 122,
    Outcome.INVALID_OUTPUT: 123,
    Outcome.TIMED_OUT: 124,
    Outcome.PLATFORM_ERROR: REFUSED,
    Outcome.NEVER_RAN: REFUSED,
    Outcome.CANCELED: INTERRUPTED,
    Outcome.OUT_OF_MEMORY: 137,
}

CALL_HELP = (
    "Exit code: the Skill's own where it exited, 128 + the number of a signal that ended it; else 120 disk limit, "
    "121 output limit, 122 CPU limit, 123 invalid output, 124 timed out, 125 refused, no gateway or platform error, "
    "130 canceled, 137 out of memory."
)


def exit_code(completed: Completed) -> int:
    """What `skillcell call` exits with."""
    if completed.outcome in _FIXED:
        return _FIXED[completed.outcome]
    if completed.outcome is Outcome.SIGNALED:
        return 128 + (completed.signal or 0)
    if completed.exit_code is not None:
        return completed.exit_code
    return 0 if completed.outcome is Outcome.SUCCEEDED else FAILED
