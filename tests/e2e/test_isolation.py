"""Two running calls as the host sees them."""

from __future__ import annotations

import os
from contextlib import aclosing
from pathlib import Path

from e2e.gateway import Gateway
from e2e.lab import spec, until
from skillcell.client import SkillcellClient
from skillcell.core.events import Started, Stdout

WAIT = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
NAMESPACES = ("mnt", "pid", "ipc", "uts", "net", "cgroup")


def members(gateway: Gateway, sandbox: str) -> list[int]:
    """Host ids of every process in a sandbox's cgroups."""
    return sorted(
        {
            int(pid)
            for path in gateway.cgroups()
            if sandbox in str(path)
            for pid in (path / "cgroup.procs").read_text().split()
        }
    )


async def test_two_calls_are_two_sandboxes_and_neither_is_the_host(client: SkillcellClient, gateway: Gateway) -> None:
    first, second = client.execute("dev/lab", **spec(WAIT)), client.execute("dev/lab", **spec(WAIT))
    async with aclosing(first) as one, aclosing(second) as two:
        sandboxes = []
        for stream in (one, two):
            seen = await until(stream, Stdout)
            sandboxes.append(next(event.kind.sandbox_id for event in seen if isinstance(event.kind, Started)))
        processes = [members(gateway, sandbox) for sandbox in sandboxes]
        assert len(set(sandboxes)) == 2
        assert all(processes)
        assert set(processes[0]).isdisjoint(processes[1])
        uids = [{_status(pid)["Uid"] for pid in pids} for pids in processes]
        assert uids[0].isdisjoint(uids[1])
        assert not {uid for group in uids for line in group for uid in line.split() if uid == "0"}
        for pid in (pid for pids in processes for pid in pids):
            status = _status(pid)
            assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1")
            assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
            assert _root_options(pid).split(",")[0] == "ro"
            for name in NAMESPACES:
                assert _namespace(pid, name) != os.readlink(f"/proc/self/ns/{name}"), name
        for name in NAMESPACES:
            assert _namespace(processes[0][0], name) != _namespace(processes[1][0], name), name
        assert all(
            str(gateway.data) not in line
            for pids in processes
            for line in Path(f"/proc/{pids[0]}/mountinfo").read_text().split()[4::10]
        )
    assert not any(members(gateway, sandbox) for sandbox in sandboxes)


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _namespace(pid: int, name: str) -> str:
    return os.readlink(f"/proc/{pid}/ns/{name}")


def _root_options(pid: int) -> str:
    lines = (line.split() for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines())
    return [fields[5] for fields in lines if fields[4] == "/"][-1]
