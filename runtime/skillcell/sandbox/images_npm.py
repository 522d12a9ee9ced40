"""Packages of the npm registry, checked against `npm.lock`: Node's own binary for the image, npm itself for
publishing.

npm is in no image: it is a tool of the gateway's, unpacked once beside the store and mounted where a Skill's
dependencies are resolved. A reader could think TLS vouches for an archive; only the integrity in the lock does.
"""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import tarfile
import tempfile
import urllib.request
from pathlib import Path
from urllib.error import URLError

from skillcell.core.errors import Fault, FaultKind, unavailable
from skillcell.sandbox.images_recipes import NpmPackage, npm_package

REGISTRY = "https://registry.npmjs.org"
_MAX_ARCHIVE_BYTES = 256 << 20
_TIMEOUT_SECONDS = 300


def fetch(package: NpmPackage, directory: Path) -> Path:
    """The package's archive in `directory`, its integrity checked. UNAVAILABLE when no registry answers, DATA_LOSS when
    what it sent is not what the lock pins (the file is removed).
    """
    directory.mkdir(parents=True, exist_ok=True)
    archive = directory / package.archive
    if not archive.exists():
        # npm knows the machine's registry, proxy and certificates, where it is installed.
        npm = shutil.which("npm")
        if npm is None or not _npm_pack(npm, package, directory):
            _download(package, archive)
    seen = "sha512-" + base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if seen != package.integrity:
        archive.unlink()
        raise Fault(
            FaultKind.DATA_LOSS,
            "IMAGE_INTEGRITY",
            f"{package.archive}: integrity is {seen}, npm.lock pins {package.integrity}",
            metadata={"package": package.name, "value": seen, "limit": package.integrity},
        )
    return archive


def prepare_npm(tools: Path, recipes: Path) -> Path:
    """npm's own tree (`bin/npm-cli.js` in it), unpacked in `tools` once. The second time costs a `stat`."""
    package = npm_package(recipes, "npm")
    place = tools / f"npm-{package.version}"
    if (place / "bin" / "npm-cli.js").is_file():
        return place
    tools.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".npm-", dir=tools) as scratch:
        archive = fetch(package, Path(scratch))
        with tarfile.open(archive) as content:
            # Debian 12's Python 3.11.2 has no filters yet. The archive is npm's own, by the integrity in our lock.
            filters = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
            content.extractall(Path(scratch) / "tree", **filters)  # type: ignore[arg-type]  # noqa: S202
        tree = Path(scratch) / "tree" / "package"
        tree.chmod(0o755)
        try:
            tree.rename(place)
        except OSError:
            # Another process was first; its tree is checked against the same lock.
            if not (place / "bin" / "npm-cli.js").is_file():
                raise
    return place


def _npm_pack(npm: str, package: NpmPackage, directory: Path) -> bool:
    command = [npm, "pack", "--silent", f"{package.name}@{package.version}", "--pack-destination", str(directory)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_TIMEOUT_SECONDS, check=False, cwd=directory)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0 and (directory / package.archive).is_file()


def _download(package: NpmPackage, archive: Path) -> None:
    address = f"{REGISTRY}/{package.name}/-/{package.name.rpartition('/')[2]}-{package.version}.tgz"
    partial = archive.with_suffix(".partial")
    try:
        with urllib.request.urlopen(address, timeout=60) as response, open(partial, "wb") as file:  # noqa: S310
            left = _MAX_ARCHIVE_BYTES
            while block := response.read(1 << 20):
                left -= len(block)
                if left < 0:
                    raise unavailable("IMAGE_DOWNLOAD", f"{address} sends more than {_MAX_ARCHIVE_BYTES} bytes")
                file.write(block)
        partial.rename(archive)
    except (URLError, TimeoutError, ConnectionError) as error:
        raise unavailable("IMAGE_DOWNLOAD", f"{address} can't be fetched; is the npm registry reachable?") from error
    finally:
        partial.unlink(missing_ok=True)
