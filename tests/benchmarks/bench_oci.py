"""How long a sandbox of the `oci` driver takes from create to first byte to destroyed, beside the bare runtime in the
same run.

Run as root: `python tests/benchmarks/bench_oci.py [crun|runc|runsc ...]`. The floor is the same hardened
configuration and the same interpreter started by the runtime alone (`run`, first byte, kill, state removed), one
after the other and four at a time.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "runtime")]

from sandbox_fixtures import image  # noqa: E402
from skillcell.core.ids import sandbox_id  # noqa: E402
from skillcell.core.types import Isolation, Limits  # noqa: E402
from skillcell.sandbox import hardening, launcher_host  # noqa: E402
from skillcell.sandbox.driver import SandboxSpec  # noqa: E402
from skillcell.sandbox.drivers.oci import OciDriver, OciSettings  # noqa: E402
from skillcell.sandbox.drivers.oci_runtimes import Runtime, find_runtime  # noqa: E402

Call = Callable[[], Awaitable[tuple[float, ...]]]
COMMAND = ("-I", "-S", "-c", "import os; os.write(1, b'1'); os.read(0, 1)")
CLASSES = {"crun": Isolation.STANDARD, "runc": Isolation.STANDARD, "runsc": Isolation.GVISOR}
COUNTS: dict[str, int] = {"crun": 100, "runc": 40, "runsc": 12}


async def through_driver(driver: OciDriver, isolation: Isolation) -> tuple[float, ...]:
    """Seconds: until created, until the first byte, until destroyed."""
    found = image("python-3.11")
    spec = SandboxSpec(sandbox_id(), found, isolation, Limits(), (), (found.python, *COMMAND))
    times = [time.perf_counter()]
    sandbox = await driver.create(spec)
    times.append(time.perf_counter())
    assert await sandbox.channel.read(1) == b"1"
    times.append(time.perf_counter())
    await driver.destroy(spec.sandbox_id)
    times.append(time.perf_counter())
    return tuple(time_ - times[0] for time_ in times[1:])


def bare_bundle(directory: Path, isolation: Isolation) -> None:
    """A bundle with the driver's own configuration, its one tmpfs mounted once for all runs."""
    found = image("python-3.11")
    spec = SandboxSpec("bare", found, isolation, Limits(), (), (found.python, *COMMAND))
    place = hardening.Placement(directory, directory / "trees", 2_000_000_000, 2_000_000_001)
    config = json.loads(hardening.oci_config(spec, place))
    root = Path(config["root"]["path"])
    for made in (root, directory / "overlays/root/dev/shm", directory / "disk"):
        made.mkdir(parents=True)
    for point in ("layers", "skill", ".skillcell"):
        (directory / "overlays/root" / point).mkdir()
    assert found.rootfs is not None
    launcher_host.show_read_only(
        found.rootfs, root, directory / "overlays", "root", locked=isolation.name == "STANDARD"
    )
    launcher_host.mount("bare", directory / "disk", "tmpfs", 6, hardening.tmpfs_options(spec.limits))
    for name in hardening.WRITABLE:
        (directory / "disk" / name).mkdir()
    (directory / "config.json").write_bytes(json.dumps(config).encode())


async def through_runtime(runtime: Runtime, directory: Path) -> tuple[float, ...]:
    """Seconds until the first byte and until the runtime has ended, called in the foreground."""
    start = time.perf_counter()
    argv = [runtime.path, "--root", f"{directory}/state", *runtime.flags, "run", sandbox_id()]
    process = await asyncio.create_subprocess_exec(
        *argv, cwd=directory, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert await process.stdout.read(1) == b"1"
    first = time.perf_counter()
    process.stdin.close()
    await process.wait()
    return first - start, first - start, time.perf_counter() - start


async def measure(label: str, call: Call, count: int) -> float:
    """Print latencies one by one and the rate four at a time; returns the rate."""
    await call()
    seen = [await call() for _ in range(count)]
    columns = list(zip(*seen, strict=True))
    start = time.perf_counter()

    async def worker() -> None:
        for _ in range(count // 4):
            await call()

    await asyncio.gather(*(worker() for _ in range(4)))
    rate = count // 4 * 4 / (time.perf_counter() - start)
    names = ("created", "first byte", "destroyed")
    stages = "  ".join(
        f"{name} p50 {statistics.median(column) * 1e3:6.2f} p99 {sorted(column)[int(count * 0.99)] * 1e3:6.2f}"
        for name, column in zip(names, columns, strict=True)
    )
    print(f"{label:14} {stages} ms   {rate:6.1f}/s four at a time", flush=True)
    return rate


async def main(names: list[str]) -> None:
    launcher_host.unshare_mounts()
    unified = Path("/sys/fs/cgroup/unified")
    settings = OciSettings(Path("/run/skillcell-bench"), "skillcell-bench")
    for name in names:
        isolation, count = CLASSES[name], COUNTS[name]
        async with OciDriver(OciSettings(settings.run_directory, settings.cgroup_root, (name,))) as driver:
            rate = await measure(f"oci {name}", partial(through_driver, driver, isolation), count)
        runtime = find_runtime(isolation, (name,))
        assert runtime is not None
        with tempfile.TemporaryDirectory(dir="/dev/shm") as scratch:
            Path(scratch).chmod(0o755)
            bare_bundle(Path(scratch), isolation)
            if unified.is_mount():
                launcher_host.unmount(unified)
            floor = await measure(f"bare {name}", partial(through_runtime, runtime, Path(scratch)), count)
            launcher_host.unmount(Path(scratch) / "disk")
            launcher_host.unmount(next((Path(scratch) / hardening.trees_directory(locked=True)).iterdir()))
        print(f"{name}: {rate / floor:.0%} of the bare runtime's rate", flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:] or ["crun"]))
