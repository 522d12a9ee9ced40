"""Connections to a package index: straight, or by way of the proxy that the gateway's environment names."""

from __future__ import annotations

import asyncio
import base64
import socket
import urllib.request
from collections.abc import Awaitable, Callable
from urllib.parse import unquote, urlsplit

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Dial = Callable[[str, int], Awaitable[Streams]]
"""Connects to host and port. Raises DialError."""

_CONNECT_SECONDS = 20.0
_READ_BYTES = 64 * 1024


class DialError(Exception):
    """There is no connection; the message says why, without an address of ours."""


async def dial(host: str, port: int) -> Streams:
    """As HTTPS_PROXY and NO_PROXY say. Raises DialError."""
    proxy = urllib.request.getproxies().get("https", "")
    if not proxy or urllib.request.proxy_bypass(host):
        return await _connect(host, port)
    parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    if parts.scheme != "http" or parts.hostname is None:
        raise DialError("HTTPS_PROXY is not an http:// address")
    reader, writer = await _connect(parts.hostname, parts.port or 8080, what="the proxy of HTTPS_PROXY ")
    try:
        await _ask(
            reader,
            writer,
            f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
            _credentials(parts.username, parts.password),
        )
    except BaseException:
        writer.close()
        raise
    return reader, writer


async def _connect(host: str, port: int, what: str = "") -> Streams:
    try:
        async with asyncio.timeout(_CONNECT_SECONDS):
            return await asyncio.open_connection(host, port, limit=_READ_BYTES)
    except TimeoutError as error:
        raise DialError(f"{what}did not answer within {_CONNECT_SECONDS:g} s") from error
    except socket.gaierror as error:
        raise DialError(f"{what}has a name that does not resolve") from error
    except OSError as error:
        raise DialError(f"{what}can't be reached: {(error.strerror or 'no route').lower()}") from error


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: str, credentials: str) -> None:
    writer.write(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{credentials}\r\n".encode())
    try:
        async with asyncio.timeout(_CONNECT_SECONDS):
            await writer.drain()
            head = await reader.readuntil(b"\r\n\r\n")
    except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        raise DialError("the proxy of HTTPS_PROXY gave no answer") from error
    status = head.split(b" ", 2)[1:2]
    if status != [b"200"]:
        raise DialError("the proxy of HTTPS_PROXY refused the connection")


def _credentials(user: str | None, password: str | None) -> str:
    if user is None:
        return ""
    token = base64.b64encode(f"{unquote(user)}:{unquote(password or '')}".encode()).decode()
    return f"Proxy-Authorization: Basic {token}\r\n"
