"""What surrounds every endpoint, as one plain ASGI callable: API key, draining, request id, errors, figures.

Endpoints are wrapped one by one, not the application, so that they behave the same inside an application of somebody
else. Starlette's `BaseHTTPMiddleware` would cost more than all the rest of a cached answer.
"""

from __future__ import annotations

import asyncio
import hmac
import itertools
import os
import re
import sys
from time import perf_counter
from typing import TYPE_CHECKING, Any

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from .errors import ApiError, bad_request, from_exception, unavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Coroutine
    from typing import Protocol

    from starlette.types import Message, Receive, Scope, Send

    from .service import Service

    class Handler(Protocol):
        """What answers one endpoint."""

        __name__: str

        def __call__(self, request: Request, /) -> Awaitable[Response]:
            """The answer, or an `ApiError` or `ModelManagerError` raised."""
            ...


_REQUEST_ID = re.compile(rb"[!-~]{1,128}").fullmatch
_CLIENT_LEFT = 499
"""Status in the figures of a request whose client did not wait; the common name of it, never sent."""
_DRAINING = unavailable("The server is shutting down; ask another one", "shutting_down", 1)


class Endpoint:
    """`handler` as an ASGI application that never raises for a request that is wrong or cannot be served."""

    def __init__(self, handler: Handler, service: Service, path: str, *, probe: bool = False) -> None:
        """With `probe` it answers while the server drains, and is not among the requests under way."""
        self.handler = handler
        self.service = service
        self.path = path
        self.probe = probe
        self.keys = () if path in service.config.open_paths else tuple(key.encode() for key in service.config.api_keys)
        self.ids = (b"%s-%x" % (os.urandom(6).hex().encode(), number) for number in itertools.count())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI, for requests over HTTP."""
        started = perf_counter()
        service = self.service
        status = 0
        given = authorization = None
        for name, value in scope["headers"]:
            if name == b"x-request-id":
                given = value
            elif name == b"authorization":
                authorization = value
        request_id = given if given is not None and _REQUEST_ID(given) else next(self.ids)

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id)]
            await send(message)

        if not self.probe:
            service.in_flight += 1
        try:
            if self.keys:
                _check_key(authorization, self.keys)
            if service.draining and not self.probe:
                response: Response = _DRAINING.response()
            else:
                response = await self.handler(Request(scope, receive))
            await response(scope, receive, send_marked)
        except (ClientDisconnect, asyncio.CancelledError) as error:
            status = status or _CLIENT_LEFT
            if isinstance(error, asyncio.CancelledError):
                raise
        except Exception as error:  # noqa: BLE001  whatever it is, the client is told in the one form there is
            answer = from_exception(error)
            if not status:
                await answer.response()(scope, receive, send_marked)
        finally:
            if not self.probe:
                service.in_flight -= 1
            service.metrics.request(self.path, scope["method"], status, perf_counter() - started)


def _check_key(authorization: bytes | None, keys: tuple[bytes, ...]) -> None:
    """Raise unless the header bears one of `keys`. All are compared, each in constant time."""
    scheme, _, token = (authorization or b"").partition(b" ")
    bears = scheme.lower() == b"bearer"
    token = token.strip()
    if sum([hmac.compare_digest(token, key) for key in keys]) and bears:
        return
    raise ApiError(
        401,
        "This server needs an API key: send the header 'Authorization: Bearer KEY'"
        if not token
        else "The API key is not one of this server's",
        code="missing_api_key" if not token else "invalid_api_key",
        headers={"www-authenticate": "Bearer"},
    )


def to_json(value: Any, status: int = 200) -> Response:
    """An answer in JSON."""
    return Response(orjson.dumps(value), status, media_type="application/json")


async def read_json(request: Request, service: Service) -> dict[str, Any]:
    """The request's body, a JSON object. Raises `ApiError` 400, 408 or 413, `ClientDisconnect`."""
    body = await _in_time(read_body(request, service.config.max_body_bytes), service.config.body_timeout)
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise bad_request(f"The body is not JSON: {error}", code="invalid_json") from None
    if type(value) is not dict:
        raise bad_request("The body must be a JSON object", code="invalid_json")
    return value


async def _in_time(reading: Coroutine[Any, Any, bytes], seconds: float) -> bytes:
    """The body that `reading` returns. Raises `ApiError` 408 when it takes longer.

    A timer alone: asyncio's `timeout` needs Python 3.11, `wait_for` and anyio's scopes would slow every cached answer.
    """
    task = asyncio.current_task()
    assert task is not None
    expired = False

    def expire() -> None:
        nonlocal expired
        expired = True
        task.cancel()

    timer = asyncio.get_running_loop().call_later(seconds, expire)
    try:
        return await reading
    except asyncio.CancelledError:
        if not expired:
            raise
        if sys.version_info >= (3, 11) and task.uncancel():
            raise  # somebody else cancelled it too
    finally:
        timer.cancel()
    # What may still arrive of the body would be taken for the next request, so the connection ends.
    raise ApiError(
        408,
        f"The body did not arrive within {seconds:g} seconds; send it at once, or raise the server's body_timeout",
        code="body_timeout",
        headers={"connection": "close"},
    )


async def read_body(request: Request, limit: int) -> bytes:
    """The request's body, of `limit` bytes at most."""
    receive = request.receive
    declared = request.scope["headers"]
    for name, value in declared:
        # A declared body is read to its end by the server and dropped, so that the client hears the answer.
        if name == b"content-length" and value.isdigit() and int(value) > limit:
            raise _too_large(limit)
    message = await receive()
    body: bytes = message.get("body", b"")
    if message["type"] == "http.request" and not message.get("more_body"):
        if len(body) > limit:
            raise _too_large(limit)
        return body
    chunks, size = [body], len(body)
    while message["type"] == "http.request" and message.get("more_body"):
        message = await receive()
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > limit:
            raise _too_large(limit, {"connection": "close"})
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return b"".join(chunks)


def _too_large(limit: int, headers: dict[str, str] | None = None) -> ApiError:
    return ApiError(413, f"The body is larger than {limit} bytes", code="body_too_large", headers=headers)
