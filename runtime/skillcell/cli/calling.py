"""The work behind `skillcell call`: follow one call's events, cancel on Ctrl-C, save, report."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import Counter
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from pathlib import Path

from skillcell.cli import exits, report
from skillcell.cli.live import Live
from skillcell.cli.present import print_json
from skillcell.cli.saving import save_artifacts
from skillcell.cli.sending import sending
from skillcell.client import CallOptions, SkillcellClient, SkillcellError
from skillcell.client.collect import Collector


@dataclass
class Calling:
    """One call from the command line."""

    skill: str
    options: CallOptions
    request_id: str | None
    out: Path | None
    as_json: bool
    quiet: bool
    _execution_id: str = ""
    _interrupts: int = 0
    _canceling: set[asyncio.Task[None]] = field(default_factory=set)

    async def start(self, client: SkillcellClient) -> int:
        """Detached: the id on stdout."""
        execution = await client.start(self.skill, request_id=self.request_id, on_upload=sending, **self.options)
        if self.as_json:
            print_json({"execution_id": execution.id, "state": execution.state, "version": execution.version})
        else:
            sys.stdout.write(f"{execution.id}\n")
            sys.stderr.write(f"follow it with: skillcell watch {execution.id}\n")
        return 0

    async def run(self, client: SkillcellClient) -> int:
        """Attached, to the end; returns the exit code."""
        live, collector, counts = Live(), Collector(keep_streams=self.as_json), Counter[str]()
        self._on_interrupt(client)
        events = client.execute(
            self.skill, request_id=self.request_id, on_admitted=self._admitted, on_upload=sending, **self.options
        )
        async with aclosing(events) as stream:
            async for event in stream:
                counts[type(event.kind).__name__.lower()] += 1
                collector.add(event)
                if not self.as_json:
                    await live.show(event.kind)
        await live.finish()
        result = collector.result()
        saved: dict[str, Path] = {}
        unsaved: SkillcellError | None = None
        if self.out is not None:
            try:
                saved = await save_artifacts(client, result.execution_id, result.artifacts, self.out)
            except SkillcellError as error:
                unsaved = error
        if self.as_json:
            print_json(report.as_json(result, counts, saved))
        elif not self.quiet:
            report.summary(result, saved)
        if unsaved is not None:
            raise unsaved
        return exits.exit_code(result.completed)

    def _admitted(self, execution_id: str) -> None:
        self._execution_id = execution_id

    def _on_interrupt(self, client: SkillcellClient) -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None

        def interrupted() -> None:
            self._interrupts += 1
            if self._interrupts > 1:
                # At once: a thread may hang in a write that nobody reads.
                os._exit(exits.INTERRUPTED)
            if not self._execution_id:
                task.cancel()
                return
            sys.stderr.write("\ncanceling the call; Ctrl-C again leaves at once\n")
            self._canceling.add(asyncio.create_task(self._cancel(client)))

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, interrupted)

    async def _cancel(self, client: SkillcellClient) -> None:
        with suppress(SkillcellError):
            await client.cancel(self._execution_id, reason="interrupted at the command line")
