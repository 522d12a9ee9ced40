"""For all tests: in continuous integration nothing is skipped, because a skipped promise looks like a kept one."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator, Iterator

import pytest

from ledger_stores import PostgreSQL, postgresql, postgresql_installed


def pytest_configure() -> None:
    """Whatever started us (nohup, a service manager) may ignore signals, and every child would inherit that."""
    for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if os.environ.get("CI") == "true" and report.skipped and not hasattr(report, "wasxfail"):
        why = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, which CI does not allow: {why}"
    return report


@pytest.fixture(scope="session")
def cluster() -> Iterator[PostgreSQL]:
    """A real PostgreSQL, of which each test takes databases of its own."""
    if not postgresql_installed():
        pytest.skip("PostgreSQL is not installed (package: postgresql)")
    with postgresql() as running:
        yield running
