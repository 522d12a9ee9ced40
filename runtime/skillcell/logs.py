"""What the gateway says of itself: one JSON object a line on stderr, ours and the libraries'.

What a reader could get wrong: a line that can't be written is lost, and that is all. A log on a full disk, or one whose
reader has gone, must neither keep a call from being settled nor its caller from being told.
"""

from __future__ import annotations

import logging
import os
import sys
from io import TextIOBase
from typing import TextIO, cast

import structlog
from structlog.tracebacks import ExceptionDictTransformer


class _Stderr(TextIOBase):
    """Writes through, to whatever standard error is by then: nothing is kept back that would fail later."""

    def __init__(self) -> None:
        self._torn = False

    def write(self, text: str) -> int:
        left = memoryview((("\n" if self._torn else "") + text).encode(errors="backslashreplace"))
        try:
            while left:
                left = left[os.write(sys.stderr.fileno(), left) :]
                self._torn = bool(left)
        except (OSError, ValueError):
            pass
        return len(text)


def configure_logging() -> None:
    """For a process that serves."""
    stderr = _Stderr()
    logging.basicConfig(level=logging.WARNING, stream=stderr, format="%(message)s")
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            # Without the local variables of each frame: they hold payloads, keys and the database's password.
            structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False)),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, stderr)),
        cache_logger_on_first_use=True,
    )
