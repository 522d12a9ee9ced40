"""Pure parts of the `docker` driver: the split of the disk limits, the statistics stream, names of systemd slices."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest

from skillcell.core.errors import Fault
from skillcell.core.types import Limits
from skillcell.sandbox import hardening
from skillcell.sandbox.drivers.docker_config import split
from skillcell.sandbox.drivers.docker_control import SandboxCgroups
from skillcell.sandbox.drivers.docker_engine import EngineFacts
from skillcell.sandbox.drivers.docker_stats import ChunkedLines, larger, parse_stats


@pytest.mark.parametrize("disk_bytes", [7 * 4 * 4096, 1 << 20, 128 << 20, (1 << 30) + 4095])
def test_the_shares_of_the_disk_sum_to_the_limits(disk_bytes: int) -> None:
    parts = split(replace(Limits(), disk_bytes=disk_bytes, disk_files=777))
    assert set(parts) == set(hardening.WRITABLE.values())
    assert sum(size for size, _ in parts.values()) == disk_bytes // 4096 * 4096
    assert sum(files for _, files in parts.values()) == 777
    assert all(size > 0 and size % 4096 == 0 and files >= 16 for size, files in parts.values())


@pytest.mark.parametrize(("name", "value"), [("disk_bytes", 7 * 4 * 4096 - 1), ("disk_files", 111), ("disk_files", 0)])
def test_a_disk_limit_too_small_to_divide_is_refused_by_name_and_value(name: str, value: int) -> None:
    with pytest.raises(Fault, match=rf"limits\.{name}: {value} is below"):
        split(replace(Limits(), **{name: value}))


@pytest.mark.parametrize("step", [1, 2, 3, 7, 64, 10_000])
def test_a_chunked_stream_gives_the_same_lines_however_it_is_cut(step: int) -> None:
    wanted = [json.dumps({"n": n, "pad": "x" * n}).encode() for n in (0, 5, 300, 2)]
    body = b"\n".join(wanted) + b"\n"
    pieces = [body[at : at + 37] for at in range(0, len(body), 37)]
    stream = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    lines = ChunkedLines()
    assert [line for at in range(0, len(stream), step) for line in lines.feed(stream[at : at + step])] == wanted


def test_nonsense_instead_of_a_chunk_is_an_error() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        list(ChunkedLines().feed(b"no number\r\n"))


def test_statistics_of_a_dead_container_do_not_lower_what_was_seen() -> None:
    alive = parse_stats(
        {
            "cpu_stats": {"cpu_usage": {"total_usage": 9, "usage_in_usermode": 5, "usage_in_kernelmode": 4}},
            "memory_stats": {"usage": 100, "max_usage": 200},
            "pids_stats": {"current": 3},
        }
    )
    dead = parse_stats({"cpu_stats": {"cpu_usage": {"total_usage": 0}}, "memory_stats": {}, "pids_stats": {}})
    assert larger(alive, dead) == alive
    assert (alive.cpu_total_ns, alive.memory_peak_bytes, alive.pids_peak) == (9, 200, 3)


def test_an_engine_that_does_not_say_what_it_can_limit_is_taken_not_to() -> None:
    facts = EngineFacts.parse({}, {})
    assert facts.unmet_limits == ("MemoryLimit", "SwapLimit", "PidsLimit", "CpuCfsQuota")
    assert not facts.seccomp
    assert facts.runtime(("runc",)) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="cgroups are written by root")
def test_with_systemd_the_parent_is_a_slice_and_ids_that_would_nest_are_refused() -> None:
    cgroups = SandboxCgroups("parts", "systemd")
    cgroup, parent = cgroups.create("sbx_1", Limits())
    try:
        assert parent == "skillcell_docker_parts-sbx_1.slice"
        assert cgroup.engine_path.endswith("/skillcell_docker_parts.slice/skillcell_docker_parts-sbx_1.slice")
        assert cgroups.list() == ["sbx_1"]
        assert cgroups.open("sbx_1") is not None
        with pytest.raises(Fault, match="nested"):
            cgroups.create("sbx-2", Limits())
    finally:
        cgroup.remove()
    assert cgroups.list() == []
