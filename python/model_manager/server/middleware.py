"""The wrapper of every endpoint: host, key, draining, method, request id, errors, metrics. One plain ASGI callable.

It wraps each endpoint instead of the application, so that endpoints behave the same inside another application.
Starlette's `BaseHTTPMiddleware` would take more time than the rest of a cached answer.
"""

from __future__ import annotations

import asyncio
import hmac
import itertools
import os
from time import perf_counter
from typing import TYPE_CHECKING, Any

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from .bodies import release
from .errors import ApiError, from_exception, shut_down, unavailable
from .exchange import Exchange

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping
    from typing import Protocol

    from starlette.types import ASGIApp, Receive, Scope, Send

    from .service import Service

    class Handler(Protocol):
        """The function behind one endpoint."""

        __name__: str

        def __call__(self, request: Request, /) -> Awaitable[ASGIApp]:
            """Return the answer, such as a `Response`, or raise `ApiError` or `ModelManagerError`."""
            ...


FAILED = "model_manager.failed"
"""The key of a request's scope for the status that an error would have had which came after the answer had begun."""
CLIENT_LEFT = 499
"""The status in the metrics for a request whose client disconnected. It is never sent."""
_TOO_MANY = 429
"""The status of a request that is refused because a queue was full; Ollama's API sends another one."""
_DRAINING = unavailable("The server is shutting down; use another one", "shutting_down", 1)
_NOT_STARTED = (
    "The application answers, but its lifespan has not run, so warm_up, tracing, the samples of the metrics and further"
    " attempts to load the first model are off. An application that mounts it does not run it: include router()"
    " instead, or enter app.router.lifespan_context(app) in the lifespan of the outer application"
)


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
        task = asyncio.current_task()
        assert task is not None
        exchange = Exchange(scope, receive, send, service, task, self.ids)
        if not service.runs:
            service.warn_once("lifespan", _NOT_STARTED)
        # A request that is refused keeps no server from its end.
        counts = not self.probe and not service.draining
        if counts:
            self._enter(task)
        span = None
        try:
            if service.spans is not None and not self.probe:
                span = service.spans.begin(scope, self.path)
            await self._respond(scope, exchange, refuses=not counts and not self.probe)
        except asyncio.CancelledError:
            if not self._is_ended_by_service(scope, exchange, task):
                raise
            await self.error_response(shut_down())(scope, exchange.receive, exchange.send)
        finally:
            release(scope, service)
            if counts:
                self._leave(task)
            outcome = scope.pop(FAILED, exchange.status)
            if span is not None:
                span.end(exchange.status, outcome, exchange.request_id)
            service.metrics.request(self.path, scope["method"], outcome, perf_counter() - started)

    def _enter(self, task: asyncio.Task[Any]) -> None:
        """Count a running request, for which the end of the server waits."""
        self.service.in_flight += 1
        self.service.unanswered.add(task)

    def _leave(self, task: asyncio.Task[Any]) -> None:
        service = self.service
        service.in_flight -= 1
        if not service.in_flight:
            service.quiet.set()
        service.unanswered.discard(task)

    def _is_ended_by_service(self, scope: Scope, exchange: Exchange, task: asyncio.Task[Any]) -> bool:
        """Whether a cancelled request was ended by `Service.end_requests`, before its answer had begun. Else its client
        has left, which is noted.
        """
        if exchange.status:
            return False
        if self.service.ended_requests and task in self.service.unanswered:
            return True
        scope.setdefault(FAILED, CLIENT_LEFT)
        return False

    async def _respond(self, scope: Scope, exchange: Exchange, *, refuses: bool) -> None:
        """Send the answer of the handler, or that of its failure. One that comes after the answer has begun is only
        noted.
        """
        try:
            response = await self._answer(scope, exchange, refuses=refuses)
            await response(scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            scope[FAILED] = CLIENT_LEFT
        except Exception as error:  # noqa: BLE001  every failure becomes an error answer
            answer = from_exception(error)
            if answer.status_code == _TOO_MANY:
                self.service.metrics.reject()
            if exchange.status:
                scope[FAILED] = answer.status_code
            else:
                await self.error_response(answer)(scope, exchange.receive, exchange.send)

    async def _answer(self, scope: Scope, exchange: Exchange, *, refuses: bool) -> ASGIApp:
        """The answer of the handler to a request with the right host, key and method; a 503 if the server refuses."""
        if self.hosts is not None:
            self.hosts.check(scope)
        if self.keys:
            _check_key(exchange.authorization, self.keys)
        if refuses:
            return self.error_response(_DRAINING)
        if not self.any_method and scope["method"] not in self.methods:
            return self.error_response(_wrong_method(scope, self.methods))
        return await self.handler(Request(scope, exchange.receive))


def _wrong_method(scope: Scope, methods: tuple[str | None, ...]) -> ApiError:
    allowed = ", ".join(filter(None, methods))
    return ApiError(
        405,
        f"{scope['method']} is not allowed at {scope['path']}; allowed: {allowed}",
        code="method_not_allowed",
        headers={"allow": allowed},
    )


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
