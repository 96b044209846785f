"""uvicorn's HTTP protocol with limits on the time and the size of a request's headers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import orjson
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from .errors import ApiError

if TYPE_CHECKING:
    import asyncio

MAX_HEADER_BYTES = 1 << 16
_END = re.compile(rb"\r?\n\r?\n").search
"""The end of a request's headers."""


class BoundedHeaders(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """A connection is closed unless the headers of its next request arrive in `header_timeout` seconds.

    uvicorn itself limits only the idle time between two requests.
    """

    def __init__(self, *args: Any, header_timeout: float, **options: Any) -> None:
        super().__init__(*args, **options)
        self._header_timeout = header_timeout
        self._header_timer: asyncio.TimerHandle | None = None
        self._header_bytes = 0
        self._tail = b""
        """The latest bytes of headers: their end may come in two reads."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Start the timer for the headers of the first request."""
        super().connection_made(transport)
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Handle bytes of headers, of a body, or of both."""
        if self.cycle is None or self.cycle.response_complete:
            # One read may hold more than the limit, and a body.
            end = _END(self._tail + data) if self._header_bytes + len(data) > MAX_HEADER_BYTES else None
            if end is not None and self._header_bytes - len(self._tail) + end.end() > MAX_HEADER_BYTES:
                self._refuse_headers()
                return
        super().data_received(data)
        if self.transport is None or self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self._disarm()
            return
        self._header_bytes += len(data)
        self._tail = (self._tail + data)[-3:]
        if self._header_bytes > MAX_HEADER_BYTES:
            self._refuse_headers()
        elif self._header_timer is None:
            self._arm()

    def _arm(self) -> None:
        self._header_timer = self.loop.call_later(self._header_timeout, self._expire)

    def _disarm(self) -> None:
        self._header_bytes, self._tail = 0, b""
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _expire(self) -> None:
        self._header_timer = None
        if not self._header_bytes:
            # Browsers open connections in advance and may never use them.
            self.transport.close()
            return
        seconds = f"{self._header_timeout:g}"
        self._refuse(408, f"The request's headers did not arrive within {seconds} seconds", "header_timeout")

    def _refuse_headers(self) -> None:
        self._refuse(431, f"The headers are larger than {MAX_HEADER_BYTES} bytes", "headers_too_large")

    def _refuse(self, status: int, message: str, code: str) -> None:
        """Send an error without a request, and close the connection."""
        self._disarm()
        if self.transport.is_closing():
            return
        body = orjson.dumps(ApiError(status, message, code=code).to_dict())
        reason = {408: b"Request Timeout", 431: b"Request Header Fields Too Large"}[status]
        self.transport.write(
            b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
            % (status, reason, len(body), body)
        )
        self.transport.close()
