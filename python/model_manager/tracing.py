"""Traces of OpenTelemetry: a span for each call that embeds, scores, generates or loads, with a child for each stage.

>>> from model_manager import tracing
>>> tracing.enable()        # after the SDK is set up; needs pip install 'model-manager-rs[otel]'

The server enables them itself where a tracer provider is set. Texts, prompts and answers are never in a span. A process
that does not enable them imports nothing of OpenTelemetry, and a call looks at one flag.
"""

from __future__ import annotations

import sys
from struct import pack

from . import _core
from ._arguments import type_error
from ._extras import extra

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import MutableMapping
    from typing import Any

    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer, TracerProvider

    Stage = tuple[str, int, int, float, int]

SCOPE = "model_manager"
"""The name of the instrumentation scope, and of the provider in spans."""

_calls: _Calls | None = None

_servers: set[object] = set()
"""Servers that tracing was enabled for; empty where the application has enabled it."""


def enable(tracer_provider: TracerProvider | None = None) -> None:
    """Trace the calls of all managers of this process.

    Args:
        tracer_provider: Where spans go; None: the global provider.

    Raises:
        ModuleNotFoundError: The package opentelemetry-api is missing.
        TypeError: `tracer_provider` is none.
    """
    _start(tracer_provider)
    _servers.clear()


def _start(tracer_provider: TracerProvider | None) -> None:
    global _calls
    with extra("otel"):
        from opentelemetry import trace
    if tracer_provider is not None and not hasattr(tracer_provider, "get_tracer"):
        raise type_error("tracer_provider", "a TracerProvider of OpenTelemetry", tracer_provider)
    _calls = _Calls(trace.get_tracer(SCOPE, _core.__version__, tracer_provider))
    _core._set_tracer(_calls)


def disable() -> None:
    """End tracing. Calls under way still end their spans."""
    global _calls
    _calls = None
    _core._set_tracer(None)
    _servers.clear()


def _enable_for(server: object) -> None:
    """Trace until the last of such servers stops. Where the application has enabled tracing, that goes on as it is."""
    if not is_enabled():
        _start(None)
    elif not _servers:
        return
    _servers.add(server)


def _disable_for(server: object) -> None:
    """`server` stops."""
    if server in _servers:
        _servers.remove(server)
        if not _servers:
            disable()


def is_enabled() -> bool:
    """Whether calls are traced."""
    return _calls is not None


def has_provider() -> bool:
    """Whether this process has set a tracer provider. Imports nothing."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return False
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider | trace.NoOpTracerProvider)


def inject(headers: MutableMapping[str, str]) -> None:
    """Add the headers that carry the current trace on to another server, such as `traceparent`."""
    if _calls is not None:
        from opentelemetry import propagate

        propagate.inject(headers)


def _is_suppressed() -> bool:
    """Whether the current context wants no spans.

    OpenTelemetry has two keys for it: a plain one of its instrumentations, and one of its SDK, which is set while spans
    are exported. An exporter that embeds them would else trace itself.
    """
    from opentelemetry import context

    plain = "suppress_instrumentation"
    keys = (plain, getattr(context, "_SUPPRESS_INSTRUMENTATION_KEY", plain))
    return any(context.get_value(key) for key in keys)


class _Calls:
    """The tracer that the core calls: when a call begins, and when it has ended."""

    def __init__(self, tracer: Tracer) -> None:
        from opentelemetry import propagate, trace

        self.tracer = tracer
        self._inject = propagate.inject
        self._in_context = trace.set_span_in_context
        self._internal, self._client = trace.SpanKind.INTERNAL, trace.SpanKind.CLIENT
        self._error = trace.StatusCode.ERROR

    def begin(
        self, operation: str, model: str | None, inputs: int, parameters: list[tuple[str, float | int]], start: int
    ) -> tuple[tuple[Span, Context, str], list[tuple[str, str]]] | None:
        """The span of a call, and the headers that carry it on; None when nothing listens, or is to."""
        if _is_suppressed():
            return None
        attributes: dict[str, Any] = {"gen_ai.provider.name": SCOPE}
        if operation != "load":
            attributes |= {"gen_ai.operation.name": operation, "model_manager.inputs": inputs}
        if model is not None:
            attributes["gen_ai.request.model"] = model
        for name, value in parameters:
            attributes[f"gen_ai.request.{name}"] = _decimal(value) if isinstance(value, float) else value
        name = operation if model is None else f"{operation} {model}"
        span = self.tracer.start_span(name, kind=self._internal, attributes=attributes, start_time=start)
        if not span.get_span_context().is_valid:
            return None
        context, headers = self._in_context(span), dict[str, str]()
        self._inject(headers, context=context)
        return (span, context, operation), list(headers.items())

    def end(
        self,
        made: tuple[Span, Context, str],
        end: int,
        stages: list[Stage],
        figures: dict[str, Any],
        error: BaseException | None,
    ) -> None:
        """End the span of a call, with a child for each stage."""
        span, context, operation = made
        if span.is_recording():
            for name, start, until, busy, steps in stages:
                kind = self._client if name == "remote" else self._internal
                child = self.tracer.start_span(name, context, kind, start_time=start)
                if steps > 1:
                    child.set_attributes({"model_manager.steps": steps, "model_manager.busy_seconds": busy})
                if name == "remote":
                    child.set_attributes(_server(figures.get("model")))
                if name == "cache":
                    child.set_attributes({f"model_manager.{key}": figures[key] for key in ("cached", "stored")})
                child.end(until)
            if operation == "load":  # it looks nothing up
                figures = {key: figures[key] for key in figures.keys() - {"cached", "stored"}}
            span.set_attributes({_NAMES[key]: figures[key] for key in _NAMES if figures.get(key) is not None})
            if (reason := figures.get("finish_reason")) is not None:
                span.set_attribute("gen_ai.response.finish_reasons", [reason])
            if error is not None:
                span.record_exception(error)
                span.set_attribute("error.type", type(error).__qualname__)
                span.set_status(self._error, str(error))
        span.end(end)


def _server(source: str | None) -> dict[str, str | int]:
    """The address in the source of a model that a server runs."""
    from urllib.parse import urlsplit

    parts = urlsplit(source or "")
    found: dict[str, str | int] = {}
    if parts.hostname:
        found["server.address"] = parts.hostname
    if parts.port:
        found["server.port"] = parts.port
    return found


def _decimal(value: float) -> float:
    """The number that the caller gave, of one that the core keeps as a float32: 0.7, not 0.699999988079071."""
    short = (float(f"{value:.{digits}g}") for digits in range(6, 10))
    return next((one for one in short if pack("f", one) == pack("f", value)), value)


_NAMES = {
    "model": "gen_ai.response.model",
    "input_tokens": "gen_ai.usage.input_tokens",
    "output_tokens": "gen_ai.usage.output_tokens",
    "reused_tokens": "gen_ai.usage.cache_read.input_tokens",
    "dimension": "gen_ai.embeddings.dimension.count",
    "cached": "model_manager.cached",
    "stored": "model_manager.stored",
    "cancelled": "model_manager.cancelled",
}
"""The figures of a call, and the attributes of its span, by OpenTelemetry's conventions where there are some."""
