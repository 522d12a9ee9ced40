"""One HTTP sink: a POST, and what came of it. It never raises for what a sink or a network does.

Redirects are not followed (a bill goes where the operator said), certificates are checked, nothing is taken from the
environment, and of an answer only its beginning is read.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Protocol, Self

import certifi
import httpx

from skillcell.core.errors import Fault, invalid
from skillcell.metering.export.answers import Answer, retry_after
from skillcell.metering.export.settings import SinkSettings, header_problem

_ANSWER_BYTES = 16 << 10
_SHOWN_CHARACTERS = 300
_HEADERS_BYTES = 64 << 10


class Post(Protocol):
    """Where an exporter sends."""

    async def send(self, content_type: str, body: bytes) -> Answer:
        """One request; the answer, or why there was none."""
        ...


class HttpSink:
    """`async with HttpSink(settings) as sink:` keeps its connections alive until the block ends."""

    def __init__(self, settings: SinkSettings) -> None:
        self._settings = settings
        self._fixed = {name: value.get_secret_value() for name, value in settings.headers.items()}
        self._client: httpx.AsyncClient | None = None

    async def __aenter__(self) -> Self:
        self._client = httpx.AsyncClient(
            verify=await asyncio.to_thread(_certificates, self._settings),
            timeout=None,  # noqa: S113 - one deadline for the whole request is set around it
            follow_redirects=False,
            trust_env=False,
            headers={"user-agent": "skillcell", "accept": "*/*"},
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._client is not None:
            await self._client.aclose()

    async def send(self, content_type: str, body: bytes) -> Answer:
        assert self._client is not None
        try:
            headers = await asyncio.to_thread(self._headers)
        except Fault as fault:
            return Answer(None, detail=fault.message)
        try:
            async with asyncio.timeout(self._settings.timeout_seconds):
                request = self._client.stream(
                    "POST", self._settings.url, content=body, headers={**headers, "content-type": content_type}
                )
                async with request as response:
                    return await _answer(response, headers)
        except TimeoutError:
            return Answer(None, detail=f"no answer within {self._settings.timeout_seconds:g} s")
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, ssl.SSLError, OSError) as error:
            return Answer(None, detail=_printable(f"{type(error).__name__}: {error}", headers))

    def _headers(self) -> dict[str, str]:
        """The settings', and the file's over them."""
        path = self._settings.headers_file
        if path is None:
            return self._fixed
        found = dict(self._fixed)
        try:
            with path.open(encoding="latin-1") as file:
                text = file.read(_HEADERS_BYTES)
        except OSError as error:
            raise invalid("headers_file", f"{path} can't be read: {error.strerror}") from error
        for number, line in enumerate(text.splitlines(), start=1):
            if not line.strip() or line.startswith("#"):
                continue
            name, colon, value = line.partition(":")
            problem = header_problem(name.strip(), value.strip()) if colon else "is not `Name: value`"
            if problem:
                raise invalid("headers_file", f"{path}, line {number}: {problem}")
            found[name.strip()] = value.strip()
        return found


def _certificates(settings: SinkSettings) -> ssl.SSLContext:
    context = ssl.create_default_context()
    try:
        if settings.ca_file is not None:
            context = ssl.create_default_context(cafile=settings.ca_file)
        else:
            context.load_verify_locations(certifi.where())
    except (OSError, ssl.SSLError) as error:
        raise invalid(
            "sinks", f"{settings.name}: ca_file {settings.ca_file} can't be used: {error.strerror}"
        ) from error
    return context


async def _answer(response: httpx.Response, headers: Mapping[str, str]) -> Answer:
    wish = retry_after(response.headers.get("retry-after", ""), datetime.now(UTC))
    start = b""
    async for piece in response.aiter_raw():
        start += piece[: _ANSWER_BYTES - len(start)]
        if len(start) >= _ANSWER_BYTES:
            break  # what is left unread costs the connection, not our memory
    if response.is_success:
        return Answer(response.status_code)
    detail = start.decode("utf-8", "replace")
    if response.is_redirect:
        detail = "it redirects, and redirects are not followed; set the address that it names"
    return Answer(response.status_code, wish, _printable(detail, headers))


def _printable(text: str, secrets: Mapping[str, str]) -> str:
    """Short, on one line, and without our own secrets, which some servers echo."""
    for value in secrets.values():
        for secret in (value, value.rpartition(" ")[2]):
            if len(secret) >= 4:
                text = text.replace(secret, "***")
    words = " ".join(text.split())
    shown = "".join(character if character.isprintable() else "?" for character in words)
    return shown if len(shown) <= _SHOWN_CHARACTERS else shown[: _SHOWN_CHARACTERS - 1] + "…"
