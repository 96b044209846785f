"""The wrapper of every endpoint: host, key, draining, method, request id, errors, metrics. One plain ASGI callable.

It wraps each endpoint instead of the application, so that endpoints behave the same inside another application.
Starlette's `BaseHTTPMiddleware` would take more time than the rest of a cached answer.
"""

from __future__ import annotations

import asyncio
import hmac
import itertools
import math
import os
import re
from time import perf_counter
from typing import TYPE_CHECKING, Any

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from .bodies import release
from .errors import ApiError, from_exception, shut_down, unavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping
    from typing import Protocol

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from .service import Service

    class Handler(Protocol):
        """The function behind one endpoint."""

        __name__: str

        def __call__(self, request: Request, /) -> Awaitable[ASGIApp]:
            """Return the answer, such as a `Response`, or raise `ApiError` or `ModelManagerError`."""
            ...


FAILED = "model_manager.failed"
"""The key of a request's scope for the status that an error would have had which came after the answer had begun."""
_REQUEST_ID = re.compile(rb"[!-~]{1,128}").fullmatch
_CLIENT_LEFT = 499
"""The status in the metrics for a request whose client disconnected. It is never sent."""
_TIMED_OUT = 408
_TOO_MANY = 429
"""The status of a request that is refused because a queue was full; Ollama's API sends another one."""
_DRAINING = unavailable("The server is shutting down; use another one", "shutting_down", 1)
_CLOSE = (b"connection", b"close")
_NOT_STARTED = (
    "The application answers, but its lifespan has not run, so warm_up, tracing, the samples of the metrics and further"
    " attempts to load the first model are off. An application that mounts it does not run it: include router()"
    " instead, or enter app.router.lifespan_context(app) in the lifespan of the outer application"
)


_QUICK_BYTES = 1 << 16
_QUICK_SECONDS = 0.1
"""How long, and for how many bytes, to wait for a body that no endpoint reads, so that its connection stays usable."""
_LINGER_SECONDS = 5.0
_LINGER_IDLE = 1.0
"""How long to read and drop the rest of such a body after the answer. If the connection were closed earlier, a client
that still sends would lose the answer.
"""


class Endpoint:
    """`handler` as an ASGI application that answers every failure instead of raising it."""

    def __init__(
        self,
        handler: Handler,
        service: Service,
        path: str,
        *,
        method: str | None = "GET",
        any_method: bool = False,
        probe: bool = False,
        plain_errors: bool = False,
    ) -> None:
        """A probe answers while the server drains and does not count as a running request.

        An endpoint without `method` accepts all methods and needs no key; one with `any_method` accepts them all and
        needs a key. With `plain_errors` its errors have the form of Ollama's API.
        """
        self.handler = handler
        self.service = service
        self.path = path
        self.method = method
        self.any_method = any_method or method is None
        self.methods = ("GET", "HEAD") if method == "GET" else (method,)
        self.probe = probe
        self.error_response = ApiError.plain_response if plain_errors else ApiError.response
        is_open = method is None or path in service.config.open_paths
        self.keys = () if is_open else tuple(key.encode() for key in service.config.api_keys)
        self.hosts = service.hosts
        self.ids = (b"%s-%x" % (os.urandom(6).hex().encode(), number) for number in itertools.count())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI, for requests over HTTP."""
        started = perf_counter()
        service = self.service
        status = 0
        given = authorization = None
        body_ended = True
        for name, value in scope["headers"]:
            if name == b"x-request-id":
                given = value
            elif name == b"authorization":
                authorization = value
            elif name == b"transfer-encoding" or (name == b"content-length" and value != b"0"):
                body_ended = False
        request_id = given if given is not None and _REQUEST_ID(given) else next(self.ids)
        lingers = False

        async def receive_noting() -> Message:
            nonlocal body_ended
            message = await receive()
            if not message.get("more_body"):
                body_ended = True
            return message

        async def send_marked(message: Message) -> None:
            nonlocal status, lingers
            if message["type"] == "http.response.start":
                status = message["status"]
                service.unanswered.discard(task)
                headers = [*message["headers"], (b"x-request-id", request_id)]
                hurries = status == _TIMED_OUT or service.ended_requests
                if not body_ended and (hurries or not await _ends_quickly(scope, receive_noting)):
                    headers.append(_CLOSE)
                    lingers = not hurries and not _expects_continue(scope)
                elif service.draining or service.leaving:
                    # The client's next request goes to another server, or at least does not meet the end of this one.
                    headers.append(_CLOSE)
                message["headers"] = headers
            elif lingers and not message.get("more_body"):
                lingers = False
                await send({**message, "more_body": True})
                await _drained(receive_noting, _LINGER_SECONDS, _LINGER_IDLE)
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        if not service.runs:
            service.warn_once("lifespan", _NOT_STARTED)
        span = None
        task = asyncio.current_task()
        assert task is not None
        # A request that is refused keeps no server from its end.
        counts = not self.probe and not service.draining
        if counts:
            service.in_flight += 1
            service.unanswered.add(task)
        try:
            if service.spans is not None and not self.probe:
                span = service.spans.begin(scope, self.path)
            if self.hosts is not None:
                self.hosts.check(scope)
            if self.keys:
                _check_key(authorization, self.keys)
            if not counts and not self.probe:
                response: ASGIApp = self.error_response(_DRAINING)
            elif not self.any_method and scope["method"] not in self.methods:
                response = self.error_response(_wrong_method(scope, self.methods))
            else:
                response = await self.handler(Request(scope, receive_noting))
            await response(scope, receive_noting, send_marked)
        except asyncio.CancelledError:
            if status or not service.ended_requests or task not in service.unanswered:
                status = status or _CLIENT_LEFT
                raise
            await self.error_response(shut_down())(scope, receive_noting, send_marked)
        except ClientDisconnect:
            scope[FAILED] = _CLIENT_LEFT
        except Exception as error:  # noqa: BLE001  every failure becomes an error answer
            answer = from_exception(error)
            if answer.status_code == _TOO_MANY:
                service.metrics.reject()
            if status:
                scope[FAILED] = answer.status_code
            else:
                await self.error_response(answer)(scope, receive_noting, send_marked)
        finally:
            release(scope, service)
            if counts:
                service.in_flight -= 1
                if not service.in_flight:
                    service.quiet.set()
                service.unanswered.discard(task)
            outcome = scope.pop(FAILED, status)
            if span is not None:
                span.end(status or outcome, outcome, request_id)
            service.metrics.request(self.path, scope["method"], outcome, perf_counter() - started)


def _wrong_method(scope: Scope, methods: tuple[str | None, ...]) -> ApiError:
    allowed = ", ".join(filter(None, methods))
    return ApiError(
        405,
        f"{scope['method']} is not allowed at {scope['path']}; allowed: {allowed}",
        code="method_not_allowed",
        headers={"allow": allowed},
    )


def _expects_continue(scope: Scope) -> bool:
    """Whether the client waits for a request to send its body."""
    return any(name == b"expect" for name, _ in scope["headers"])


async def _ends_quickly(scope: Scope, receive: Receive) -> bool:
    """Whether a short body that no endpoint reads has arrived or arrives soon."""
    if _expects_continue(scope):
        return False
    for name, value in scope["headers"]:
        if name == b"content-length" and (not value.isdigit() or int(value) > _QUICK_BYTES):
            return False
    return await _drained(receive, _QUICK_SECONDS, _QUICK_SECONDS, _QUICK_BYTES)


async def _drained(receive: Receive, seconds: float, idle: float, most: float = math.inf) -> bool:
    """Read and drop the body; whether it ended within `seconds` and `most` bytes, without a pause of `idle` seconds."""
    loop = asyncio.get_running_loop()
    end, size = loop.time() + seconds, 0
    while size <= most:
        try:
            message = await asyncio.wait_for(receive(), min(idle, end - loop.time()))
        except (TimeoutError, asyncio.TimeoutError):
            return False
        if not message.get("more_body"):
            return True
        size += len(message.get("body", b""))
    return False


def _check_key(authorization: bytes | None, keys: tuple[bytes, ...]) -> None:
    """Raise unless the header has one of `keys`. All keys are compared, each in constant time."""
    scheme, _, token = (authorization or b"").partition(b" ")
    bears = scheme.lower() == b"bearer"
    token = token.strip()
    if sum([hmac.compare_digest(token, key) for key in keys]) and bears:
        return
    raise ApiError(
        401,
        "This server needs an API key: send the header 'Authorization: Bearer KEY'"
        if not token
        else "The API key is not valid for this server",
        code="missing_api_key" if not token else "invalid_api_key",
        headers={"www-authenticate": "Bearer"},
    )


def to_json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer in JSON."""
    return Response(orjson.dumps(value), status, headers, media_type="application/json")
