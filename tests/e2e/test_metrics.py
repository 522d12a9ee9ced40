"""What a scraper sees of a real gateway: clean by promtool, all that the rules ask for, and never less than before."""

from __future__ import annotations

import asyncio
import itertools
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from e2e.conftest import Fresh
from e2e.gateway import Gateway
from e2e.lab import run, spec, until
from skillcell.client import SkillcellClient, SkillcellError
from skillcell.core.events import Stdout

RULES = Path(__file__).resolve().parents[2] / "deploy/prometheus/skillcell.rules.yaml"
USAGE = re.compile(r"skillcell_(?!ledger|export)\w+_total")


def scraped(gateway: Gateway, path: str = "/metrics", accept: str = "") -> str:
    request = urllib.request.Request(gateway.metrics + path, headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return str(answer.read().decode())


async def test_all_that_is_served_is_clean_and_holds_what_the_rules_ask_for(
    oci: Gateway, oci_client: SkillcellClient
) -> None:
    await run(oci_client, "print(1)")
    program = shutil.which("promtool")
    assert program is not None, "promtool is needed (package: prometheus)"
    for path in ("/metrics", "/metrics/ledger", "/metrics/process"):
        text = scraped(oci, path)
        checked = subprocess.run(
            [program, "check", "metrics"], check=False, input=text, capture_output=True, text=True, timeout=30
        )
        assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", ""), path
        # promtool knows the classic format alone; this parser is strict about the other.
        open_text = scraped(oci, path, "application/openmetrics-text; version=1.0.0")
        assert open_text.endswith("# EOF\n")
        families = {family.name: family for family in text_string_to_metric_families(open_text)}
        assert families
    served = set(re.findall(r"^# TYPE (\S+)", scraped(oci), re.MULTILINE))
    wanted = {re.sub(r"_bucket$", "", name) for name in re.findall(r"\bskillcell_\w+", RULES.read_text())}
    assert {name for name in wanted if name not in served} <= UNSERVED


UNSERVED = {
    *(f"skillcell_export_{name}" for name in ("lag_records", "held", "dead_letters", "attempts_total")),
    "skillcell_ledger_verified_timestamp_seconds",
}
"""Of sinks, where there is one; and of a verification, once one has ended."""


def usage_of(text: str) -> dict[str, float]:
    """Every sample of a usage counter, by name and labels as they are written."""
    return {
        name: float(value)
        for name, value in (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        if USAGE.match(name)
    }


@pytest.mark.timeout(240)
async def test_no_scrape_of_a_storm_of_kills_shows_less_than_one_before(fresh: Fresh) -> None:
    gateway = fresh()
    samples: list[dict[str, float]] = []
    over = asyncio.Event()

    async def scrape() -> None:
        while not over.is_set():
            with suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                samples.append(usage_of(await asyncio.to_thread(scraped, gateway, "/metrics/ledger")))
            await asyncio.sleep(0.01)

    async def calls(client: SkillcellClient) -> None:
        number = 0
        with suppress(SkillcellError):
            while True:
                number += 1
                await run(client, f"print('x' * {number}); sys.exit({number % 2})")

    scraper = asyncio.create_task(scrape())
    settled = 0
    for _ in range(3):
        async with gateway.client() as client:
            stream = client.execute("dev/lab", **spec("print('up', flush=True)\nwhile True: pass"))
            await until(stream, Stdout)
            working = [asyncio.create_task(calls(client)) for _ in range(3)]
            async for _ in client.usage.stream(after_sequence=settled, follow=True):
                settled += 1
                if settled % 8 == 0:
                    break
            gateway.kill()
            await asyncio.gather(*working)
            await stream.aclose()
        await asyncio.to_thread(gateway.start)
        async with gateway.client() as client:
            settled = len([record async for record in client.usage.stream()])
    last = usage_of(await asyncio.to_thread(scraped, gateway, "/metrics/ledger"))
    over.set()
    await scraper
    samples.append(last)
    assert sum(value for name, value in last.items() if name.startswith("skillcell_calls_total")) == settled >= 24 + 3
    assert len({tuple(sample.items()) for sample in samples}) > 3
    for before, after in itertools.pairwise(samples):
        assert set(before) <= set(after)
        assert all(after[name] >= value for name, value in before.items())
    labels = {tuple(sorted(re.findall(r"(\w+)=\"", name))) for name in last}
    assert labels == {("outcome", "publisher", "skill", "tenant")}
