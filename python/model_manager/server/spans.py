"""The span of each request, which continues the trace of the client."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry import context, propagate, trace

from .. import __version__, tracing

if TYPE_CHECKING:
    from starlette.types import Scope

_FAILED = 500


class RequestSpans:
    """Makes the spans of one server."""

    def __init__(self) -> None:
        self._tracer = trace.get_tracer(tracing.SCOPE, __version__)
        # Names in a request are in lower case; a propagator looks for its own spelling.
        self._fields = {name.lower().encode("latin-1"): name for name in propagate.get_global_textmap().fields}

    def begin(self, scope: Scope, route: str) -> RequestSpan | None:
        """The span of a request, current until its end; None if the application around the server has made one."""
        if trace.get_current_span().get_span_context().is_valid:
            return None
        headers: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            if (field := self._fields.get(name)) is not None:
                headers.setdefault(field, []).append(value.decode("latin-1"))
        given = propagate.extract(headers)
        attributes: dict[str, Any] = {
            "http.request.method": scope["method"],
            "http.route": route,
            "url.path": scope["path"],
            "url.scheme": scope.get("scheme", "http"),
        }
        if client := scope.get("client"):
            attributes["client.address"] = client[0]
        span = self._tracer.start_span(f"{scope['method']} {route}", given, trace.SpanKind.SERVER, attributes)
        return RequestSpan(span, context.attach(trace.set_span_in_context(span, given)))


class RequestSpan:
    """The span of one request."""

    __slots__ = ("_span", "_token")

    def __init__(self, span: trace.Span, token: Any) -> None:
        self._span = span
        self._token = token

    def end(self, status: int, outcome: int, request_id: bytes) -> None:
        """End it with the status of the answer; 0 or 499: the client has left before there was one. `outcome`: the
        status that an error would have had which came after the answer had begun, else the same.
        """
        context.detach(self._token)
        self._span.set_attribute("http.response.status_code", status)
        self._span.set_attribute("http.response.header.x-request-id", [request_id.decode("latin-1")])
        if outcome >= _FAILED:
            self._span.set_attribute("error.type", str(outcome))
            self._span.set_status(trace.StatusCode.ERROR)
        self._span.end()
