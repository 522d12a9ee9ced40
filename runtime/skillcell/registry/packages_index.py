"""Where dependencies come from: the Python index and npm registry that settings or the machine's own tools name.

An address may hold credentials. They reach the tool in its sandbox and nothing else: not a lock, not a log, not a
fault; `Index.public` is the address to show. A reader could miss that local directories in pip's configuration
(`find-links`, `file://`) are not used: a sandbox does not see them.
"""

from __future__ import annotations

import ast
import asyncio
import base64
import importlib.util
import os
import re
import ssl
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from skillcell.core.errors import precondition

PYPI = "https://pypi.org/simple"
NPMJS = "https://registry.npmjs.org/"
_FILE_HOSTS = {"pypi.org": "files.pythonhosted.org", "test.pypi.org": "test-files.pythonhosted.org"}
"""Indexes whose files lie elsewhere."""
_CERTIFICATE_BYTES = 4 << 20
_PIP_SECONDS = 60
_NPM_LINE = re.compile(r"\s*([^=\s]+)\s*=\s*\"?(.*?)\"?\s*")
_NPM_SECRETS = re.compile(r"//(?P<host>[^/]+)/.*:(_authToken|_auth|username|_password)")


@dataclass(frozen=True, slots=True)
class Index:
    """One place that packages come from."""

    url: str
    """With credentials, if there are any."""
    hosts: frozenset[tuple[str, int]]
    """What a build may connect to."""
    certificates: bytes
    """Authorities to trust, PEM."""
    npmrc: tuple[str, ...] = ()
    """Lines with credentials for npm."""
    secrets: tuple[str, ...] = ()
    """What must never be shown."""

    @property
    def public(self) -> str:
        """The address without credentials."""
        parts = urlsplit(self.url)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


async def python_index(url: str, environment: Mapping[str, str] = os.environ) -> Index:
    """The index at `url`, or by pip's configuration, or PyPI. Raises Fault FAILED_PRECONDITION for an unfit address."""
    configured = await _pip_configuration()
    address = url or configured.get("index-url", "") or PYPI
    parts = _https(address, "package_index")
    hosts = {_endpoint(parts)}
    if parts.hostname in _FILE_HOSTS:
        hosts.add((_FILE_HOSTS[parts.hostname], 443))
    certificates = await asyncio.to_thread(_certificates, configured.get("cert", ""), environment)
    return Index(address, frozenset(hosts), certificates, secrets=_secrets(parts))


async def npm_registry(url: str, environment: Mapping[str, str] = os.environ) -> Index:
    """The registry at `url`, or by npm's configuration, or npm's own. Raises Fault FAILED_PRECONDITION."""
    configured = await asyncio.to_thread(_npm_configuration, environment)
    address = url or configured.get("registry", "") or NPMJS
    parts = _https(address, "npm_registry")
    certificates = await asyncio.to_thread(_certificates, configured.get("cafile", ""), environment)
    host = parts.netloc.rpartition("@")[2]
    npmrc, secrets = [], list(_secrets(parts))
    for key, value in configured.items():
        match = _NPM_SECRETS.fullmatch(key)
        if match is not None and match["host"] == host:
            npmrc.append(f"{key}={value}")
            secrets.append(value)
    if parts.username is not None:
        place = f"//{host}{parts.path.rstrip('/')}/"
        password = base64.b64encode(unquote(parts.password or "").encode()).decode()
        npmrc += [f"{place}:username={unquote(parts.username)}", f"{place}:_password={password}"]
        secrets.append(password)
        address = parts._replace(netloc=host).geturl()
    return Index(address, frozenset({_endpoint(parts)}), certificates, tuple(npmrc), tuple(filter(None, secrets)))


def _https(address: str, setting: str) -> SplitResult:
    try:
        parts = urlsplit(address)
        usable = parts.scheme == "https" and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable or any(c.isspace() or not c.isprintable() for c in address):
        raise precondition(
            "PACKAGE_INDEX_INVALID", f"{setting} is not an https:// address; set SKILLCELL_{setting.upper()}"
        )
    return parts


def _endpoint(parts: SplitResult) -> tuple[str, int]:
    return str(parts.hostname), parts.port or 443


def _secrets(parts: SplitResult) -> tuple[str, ...]:
    """The password both as written and as meant; of a lone user part, that is the token."""
    secret = parts.password or (parts.username if parts.password is None else "") or ""
    return tuple(dict.fromkeys(filter(None, (secret, unquote(secret)))))


async def _pip_configuration() -> dict[str, str]:
    """What pip itself would take for an installation: environment over `install` over `global`."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pip", "config", "list",
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        async with asyncio.timeout(_PIP_SECONDS):
            output, _ = await process.communicate()
    except TimeoutError:
        return {}
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    found: dict[str, dict[str, str]] = {}
    for line in output.decode("utf-8", "replace").splitlines():
        key, _, value = line.partition("=")
        section, _, name = key.rpartition(".")
        try:
            found.setdefault(section, {})[name] = str(ast.literal_eval(value))
        except (ValueError, SyntaxError):
            continue
    return {**found.get("global", {}), **found.get("install", {}), **found.get(":env:", {})}


def _npm_configuration(environment: Mapping[str, str]) -> dict[str, str]:
    """npm's keys from the global file, the user's, and the environment, the later over the earlier."""
    lowered = {key.lower(): value for key, value in environment.items()}
    user = lowered.get("npm_config_userconfig") or str(Path.home() / ".npmrc")
    common = lowered.get("npm_config_globalconfig") or "/etc/npmrc"
    found: dict[str, str] = {}
    for path in (common, user):
        try:
            text = Path(path).read_text("utf-8", "replace")
        except OSError:
            continue
        for line in text.splitlines():
            match = _NPM_LINE.fullmatch(line)
            if match is not None and not line.lstrip().startswith((";", "#")):
                found[match[1]] = re.sub(r"\$\{([^}]+)\}", lambda m: environment.get(m[1], ""), match[2])
    for key in ("registry", "cafile"):
        if value := lowered.get(f"npm_config_{key}"):
            found[key] = value
    return found


def _certificates(configured: str, environment: Mapping[str, str]) -> bytes:
    """The authorities that this machine trusts. Raises Fault when there are none."""
    named = (configured, *(environment.get(key, "") for key in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")))
    for name in (*named, ssl.get_default_verify_paths().cafile, "/etc/ssl/certs/ca-certificates.crt", _of_pip()):
        try:
            if name and 0 < os.path.getsize(name) <= _CERTIFICATE_BYTES:
                return Path(name).read_bytes()
        except OSError:
            continue
    why = "no certificate authorities were found; install ca-certificates or set SSL_CERT_FILE"
    raise precondition("PACKAGE_INDEX_INVALID", why)


def _of_pip() -> str:
    spec = importlib.util.find_spec("pip")
    place = next(iter(spec.submodule_search_locations or ()), "") if spec else ""
    return f"{place}/_vendor/certifi/cacert.pem"
