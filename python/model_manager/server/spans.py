"""The span of each request, which continues the trace of the client.

Names and attributes are those of OpenTelemetry's conventions for HTTP servers. A span has no query of an address, which
may hold a key.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from opentelemetry import context, propagate, trace

from .. import __version__, tracing

if TYPE_CHECKING:
    from starlette.types import Scope

logger = logging.getLogger("model_manager.server")

_FAILED = 500
_CLIENT_LEFT = 499
_METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"})
"""What a span may be named by; clients can send any word."""
_PORTS = {"http": 80, "https": 443}


class RequestSpans:
    """Makes the spans of one server."""

    def __init__(self) -> None:
        # Requests and their calls go to one provider, which `tracing.enable` may have been given.
        calls = tracing._calls
        self._tracer = trace.get_tracer(tracing.SCOPE, __version__) if calls is None else calls.tracer
        # Names in a request are in lower case; a propagator looks for its own spelling.
        self._fields = {name.lower().encode("latin-1"): name for name in propagate.get_global_textmap().fields}
        # Requests inherit what was current where the server was started. It is none of theirs.
        self._around = trace.get_current_span().get_span_context()

    def begin(self, scope: Scope, route: str) -> RequestSpan | None:
        """The span of a request, current until its end; None if the application around the server has made one, or
        wants none. What goes wrong in a tracer is logged and does not fail the request.
        """
        try:
            return self._begin(scope, route)
        except Exception as error:  # noqa: BLE001  code of others
            logger.warning("A request has no span: %s: %s", type(error).__name__, error)
            return None

    def _begin(self, scope: Scope, route: str) -> RequestSpan | None:
        current = trace.get_current_span().get_span_context()
        if (current.is_valid and current != self._around) or tracing._is_suppressed():
            return None
        headers: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            if (field := self._fields.get(name)) is not None:
                headers.setdefault(field, []).append(value.decode("latin-1"))
        given = propagate.extract(headers, context.Context() if current.is_valid else None)
        attributes = _attributes(scope, route)
        method = attributes["http.request.method"]
        name = f"{'HTTP' if method == '_OTHER' else method} {attributes['http.route']}"
        span = self._tracer.start_span(name, given, trace.SpanKind.SERVER, attributes)
        return RequestSpan(span, context.attach(trace.set_span_in_context(span, given)))


def _attributes(scope: Scope, route: str) -> dict[str, Any]:
    method, scheme, path = scope["method"], scope.get("scheme", "http"), scope["path"]
    known = method in _METHODS
    found: dict[str, Any] = {
        "http.request.method": method if known else "_OTHER",
        "http.route": _prefix(path, route, scope.get("path_params", {})) + route,
        "url.path": path,
        "url.scheme": scheme,
        "network.protocol.version": scope.get("http_version", "1.1"),
    }
    if not known:
        found["http.request.method_original"] = method
    if client := scope.get("client"):
        found["client.address"] = client[0]
    for name, value in scope["headers"]:
        if name == b"user-agent":
            found["user_agent.original"] = value.decode("latin-1")
        elif name == b"host":
            host, port = _address(value.decode("latin-1"))
            found["server.address"], found["server.port"] = host, port or _PORTS.get(scheme, 80)
    return found


def _prefix(path: str, route: str, parameters: dict[str, Any]) -> str:
    """Where the application around the server has put it: what stands in front of the route in a path."""
    own = route
    for name, value in parameters.items():
        if f"{{{name}}}" not in own:  # the prefix has parameters itself: each value would be a route
            return ""
        own = own.replace(f"{{{name}}}", str(value))
    return path.rstrip("/").removesuffix(own.rstrip("/")) if path.rstrip("/").endswith(own.rstrip("/")) else ""


def _address(host: str) -> tuple[str, int | None]:
    """Name and port of a `Host` header; an address of IPv6 is in brackets."""
    name, colon, port = host.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit():
        return host, None
    # A client writes what it likes.
    return name, int(port) if len(port) <= 5 and int(port) < 1 << 16 else None


class RequestSpan:
    """The span of one request."""

    __slots__ = ("_span", "_token")

    def __init__(self, span: trace.Span, token: Any) -> None:
        self._span = span
        self._token = token

    def end(self, status: int, outcome: int, request_id: bytes) -> None:
        """End it with the `status` of the answer, 0 if none has begun. `outcome`: the status that an error would have
        had which came after the answer had begun, 499 if the client has left, else the same.
        """
        context.detach(self._token)
        try:
            self._end(status, outcome, request_id)
        except Exception as error:  # noqa: BLE001  code of others
            logger.warning("The span of a request did not end: %s: %s", type(error).__name__, error)

    def _end(self, status: int, outcome: int, request_id: bytes) -> None:
        span = self._span
        if status:
            span.set_attribute("http.response.status_code", status)
            span.set_attribute("http.response.header.x-request-id", [request_id.decode("latin-1")])
        if outcome == _CLIENT_LEFT:
            span.set_attribute("model_manager.cancelled", True)
        if outcome >= _FAILED:
            span.set_attribute("error.type", str(outcome))
            span.set_status(trace.StatusCode.ERROR)
        span.end()
