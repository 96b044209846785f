"""uvicorn's HTTP protocol with limits on the time and the size of a request's headers."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Any

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .errors import ApiError

if TYPE_CHECKING:
    import asyncio

MAX_HEADER_BYTES = 1 << 16
_END = re.compile(rb"\r?\n\r?\n").search
"""The end of a request's headers."""
_LINGER_SECONDS = 5.0
"""How long to read and drop what a refused client still sends. If the connection were closed at once, the client would
lose the answer.
"""
_FRAMING = (b"content-length", b"transfer-encoding")
"""The headers of a request with a body."""


class _UpgradeIgnored:
    """A parser of requests that ignores `Upgrade`, as RFC 9110 (7.8) allows: clients that ask for HTTP/2 so, Java's and
    curl's, go on with HTTP/1.1.

    httptools takes a request with `Upgrade` to end with its headers, and what follows for another protocol. uvicorn
    drops the rest of that read and parses what comes later as new requests: a body could hold requests of its own.
    """

    def __init__(self, parser: httptools.HttpRequestParser, protocol: BoundedHeaders) -> None:
        self._parser = parser
        self._protocol = protocol

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parser, name)

    def feed_data(self, data: bytes) -> None:
        """Parse bytes of requests."""
        while data:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
                self._go_on()
            else:
                return

    def _go_on(self) -> None:
        """Have the body of the request parsed next, if it has one."""
        if headers := self._protocol.framing():
            after = _AfterHeaders(self._protocol)
            self._parser = httptools.HttpRequestParser(after)
            # As uvicorn's: a request that follows the last one is ignored, and no error.
            with contextlib.suppress(AttributeError):  # before httptools 0.6.3
                self._parser.set_dangerous_leniencies(lenient_data_after_close=True)
            self._parser.feed_data(b"POST / HTTP/1.1\r\n" + headers + b"\r\n")
            after.headers_complete = True


class _AfterHeaders:
    """Hands on what a parser finds after the first headers."""

    def __init__(self, protocol: BoundedHeaders) -> None:
        self._protocol = protocol
        self.headers_complete = False

    def on_message_begin(self) -> None:
        if self.headers_complete:
            self._protocol.on_message_begin()

    def on_url(self, url: bytes) -> None:
        if self.headers_complete:
            self._protocol.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.headers_complete:
            self._protocol.on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.headers_complete:
            self._protocol.on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._protocol.on_body(body)

    def on_message_complete(self) -> None:
        self._protocol.on_message_complete()


class BoundedHeaders(HttpToolsProtocol):
    """A connection is closed unless the headers of its next request arrive in `header_timeout` seconds; a request to
    change the protocol is answered in this one.

    uvicorn itself limits only the idle time between two requests.
    """

    def __init__(self, *args: Any, header_timeout: float, **options: Any) -> None:
        super().__init__(*args, **options)
        self.parser = _UpgradeIgnored(self.parser, self)  # type: ignore[assignment]
        self._header_timeout = header_timeout
        self._header_timer: asyncio.TimerHandle | None = None
        self._header_bytes = 0
        self._lingering: asyncio.TimerHandle | None = None
        """Closes the connection of a refused client. What it still sends is dropped."""
        self._tail = b""
        """The latest bytes of headers: their end may come in two reads."""
        self._idle_bytes = 0
        """Bytes of the latest reads during a request in which no body went on: trailers, or headers of another one."""
        self._went_on = False
        """Whether the parser has met a body, or the end of headers or of a request, in this read."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer for the headers of the first request."""
        super().connection_made(transport)
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timers."""
        self._disarm()
        if self._lingering is not None:
            self._lingering.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Handle bytes of headers, of a body, or of both."""
        if self._lingering is not None:
            return
        if self.cycle is None or self.cycle.response_complete:
            # One read may hold more than the limit, and a body.
            end = _END(self._tail + data) if self._header_bytes + len(data) > MAX_HEADER_BYTES else None
            if end is not None and self._header_bytes - len(self._tail) + end.end() > MAX_HEADER_BYTES:
                self._refuse_headers()
                return
        super().data_received(data)
        if self.transport is None or self._is_refused():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self._disarm()
            self._idle_bytes = 0 if self._went_on else self._idle_bytes + len(data)
            self._went_on = False
            if self._idle_bytes > MAX_HEADER_BYTES:
                self._refuse_headers()
            return
        self._header_bytes += len(data)
        self._tail = (self._tail + data)[-3:]
        if self._header_bytes > MAX_HEADER_BYTES:
            self._refuse_headers()
        elif self._header_timer is None:
            self._arm()

    def on_headers_complete(self) -> None:
        """Begin a request."""
        self._went_on = True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Add to the body of a request."""
        self._went_on = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note the end of a request, unless its headers alone have ended."""
        self._went_on = True
        if not (self.parser.should_upgrade() and self.framing()):
            super().on_message_complete()

    def framing(self) -> bytes:
        """The lines of the latest headers that say where the body ends; empty for a request without one."""
        return b"".join(name + b": " + value + b"\r\n" for name, value in self.headers if name in _FRAMING)

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

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are no request. uvicorn's own answer is plain text."""
        self._refuse(400, "These bytes are not a valid HTTP/1.1 request", "invalid_http")

    def _refuse(self, status: int, message: str, code: str) -> None:
        """Send an error without a request, and close the connection once the client has nothing more to send.

        While a request that was read whole is answered it is only closed: the client would take the error for that
        answer, or for a part of it.
        """
        self._disarm()
        if self._is_refused():
            return
        cycle = self.cycle if self.cycle is not None and not self.cycle.response_complete else None
        if cycle is not None and (cycle.response_started or not cycle.more_body):
            self.transport.close()
            return
        body = orjson.dumps(ApiError(status, message, code=code).to_dict())
        reason = {400: b"Bad Request", 408: b"Request Timeout", 431: b"Request Header Fields Too Large"}[status]
        self.transport.write(
            b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
            % (status, reason, len(body), body)
        )
        if cycle is not None or not self.transport.can_write_eof():
            self.transport.close()
            return
        self.transport.write_eof()
        self._lingering = self.loop.call_later(_LINGER_SECONDS, self.transport.close)

    def _is_refused(self) -> bool:
        return self._lingering is not None or self.transport.is_closing()
