"""The connection under a response of the Docker SDK, taken over for the event loop.

A reader could get one thing wrong: the HTTP client reads ahead, so the first bytes of the stream may be in its buffer
and not in the socket; they are in `ahead`.
"""

from __future__ import annotations

import io
import socket
import ssl
from contextlib import suppress
from typing import Any, cast


class RawStream:
    """A connection made non-blocking, plain or TLS."""

    def __init__(self, wrapped: Any, response: Any) -> None:
        # over TLS the client hands out the socket itself, else a file object around it
        self.socket: socket.socket = vars(wrapped).get("_sock") or wrapped
        self.socket.setblocking(False)
        self._response = response
        buffered = cast(io.BufferedReader, response.raw._fp.fp)
        self.ahead = b""
        with suppress(ssl.SSLWantReadError):  # nothing there yet
            self.ahead = buffered.peek(1)

    def close(self) -> None:
        """End our direction, then the connection: the engine takes the first as the end of the agent's stdin."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR if isinstance(self.socket, ssl.SSLSocket) else socket.SHUT_WR)
        with suppress(OSError):
            self.socket.close()
        self._response.close()
