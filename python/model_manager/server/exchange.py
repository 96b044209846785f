"""One request and its answer on their way through an endpoint: the request id, the status, what is left of the body."""

from __future__ import annotations

import asyncio
import math
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.types import Message, Receive, Scope, Send

    from .service import Service

_REQUEST_ID = re.compile(rb"[!-~]{1,128}").fullmatch
_TIMED_OUT = 408
_CLOSE = (b"connection", b"close")

_QUICK_BYTES = 1 << 16
_QUICK_SECONDS = 0.1
"""How long, and for how many bytes, to wait for a body that no endpoint reads, so that its connection stays usable."""
_LINGER_SECONDS = 5.0
_LINGER_IDLE = 1.0
"""How long to read and drop the rest of such a body after the answer. If the connection were closed earlier, a client
that still sends would lose the answer.
"""


class Exchange:
    """`receive` and `send` of one request, which note what passes.

    Attributes:
        status: The status of the answer; 0 before it has begun.
        request_id: The client's, if it is one, else a new one.
        authorization: The header.
    """

    __slots__ = (
        "_body_ended",
        "_lingers",
        "_receive",
        "_scope",
        "_send",
        "_service",
        "_task",
        "authorization",
        "request_id",
        "status",
    )

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        service: Service,
        task: asyncio.Task[object],
        ids: Iterator[bytes],
    ) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._service, self._task = service, task
        self.status = 0
        self.authorization: bytes | None = None
        self._body_ended = True
        self._lingers = False
        given = None
        for name, value in scope["headers"]:
            if name == b"x-request-id":
                given = value
            elif name == b"authorization":
                self.authorization = value
            elif name == b"transfer-encoding" or (name == b"content-length" and value != b"0"):
                self._body_ended = False
        self.request_id = given if given is not None and _REQUEST_ID(given) else next(ids)

    async def receive(self) -> Message:
        """The next part of the request."""
        message = await self._receive()
        if not message.get("more_body"):
            self._body_ended = True
        return message

    async def send(self, message: Message) -> None:
        """Send a part of the answer. Its head gets the request id, its end may wait for the rest of the body."""
        if message["type"] == "http.response.start":
            await self._begin(message)
        elif self._lingers and not message.get("more_body"):
            self._lingers = False
            await self._send({**message, "more_body": True})
            await self._drained(_LINGER_SECONDS, _LINGER_IDLE)
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    async def _begin(self, message: Message) -> None:
        """Complete the head of the answer, and decide what becomes of the connection."""
        self.status = message["status"]
        self._service.unanswered.discard(self._task)
        headers = [*message["headers"], (b"x-request-id", self.request_id)]
        hurries = self.status == _TIMED_OUT or self._service.ended_requests
        if not self._body_ended and (hurries or not await self._ends_quickly()):
            headers.append(_CLOSE)
            self._lingers = not hurries and not self._expects_continue()
        elif self._service.draining or self._service.leaving:
            # The client's next request goes to another server, or at least does not meet the end of this one.
            headers.append(_CLOSE)
        message["headers"] = headers

    def _expects_continue(self) -> bool:
        """Whether the client waits for a request to send its body."""
        return any(name == b"expect" for name, _ in self._scope["headers"])

    async def _ends_quickly(self) -> bool:
        """Whether a short body that no endpoint reads has arrived or arrives soon."""
        if self._expects_continue():
            return False
        for name, value in self._scope["headers"]:
            if name == b"content-length" and (not value.isdigit() or int(value) > _QUICK_BYTES):
                return False
        return await self._drained(_QUICK_SECONDS, _QUICK_SECONDS, _QUICK_BYTES)

    async def _drained(self, seconds: float, idle: float, most: float = math.inf) -> bool:
        """Read and drop the body. Whether it ended within `seconds` and `most` bytes, without a pause of `idle` s."""
        loop = asyncio.get_running_loop()
        end, size = loop.time() + seconds, 0
        while size <= most:
            try:
                message = await asyncio.wait_for(self.receive(), min(idle, end - loop.time()))
            except (TimeoutError, asyncio.TimeoutError):
                return False
            if not message.get("more_body"):
                return True
            size += len(message.get("body", b""))
        return False
