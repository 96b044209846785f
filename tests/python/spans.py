"""Spans as the real SDK of OpenTelemetry exports them, for the tests of traces."""

from __future__ import annotations

import pytest
from model_manager import tracing
from opentelemetry import context, trace
from opentelemetry.sdk.trace import TracerProvider, sampling
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

EMBED = "english_sentence"
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE_ID, PARENT_ID = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331
SUPPRESSING = {
    "instrumentations": "suppress_instrumentation",
    "the SDK": context._SUPPRESS_INSTRUMENTATION_KEY,
}
"""The keys of a context that wants no spans, by what sets them."""


class Spans:
    """What the SDK has exported."""

    def __init__(self, sampler=sampling.ALWAYS_ON):
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=sampler)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    def all(self):
        return list(self.exporter.get_finished_spans())

    def clear(self):
        self.exporter.clear()

    def named(self, name):
        """The only span of this name."""
        found = [span for span in self.all() if span.name == name]
        assert len(found) == 1, [span.name for span in self.all()]
        return found[0]

    def children(self, parent):
        """Names of the children of a span, by their beginning. They lie within it."""
        found = [span for span in self.all() if span.parent and span.parent.span_id == parent.context.span_id]
        for child in found:
            assert child.context.trace_id == parent.context.trace_id
            assert parent.start_time <= child.start_time <= child.end_time <= parent.end_time, child.name
        return [span.name for span in sorted(found, key=lambda span: (span.start_time, span.end_time))]


def traceparent(span):
    """The header that names `span` as the parent."""
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


@pytest.fixture
def spans():
    made = Spans()
    tracing.enable(made.provider)
    yield made
    tracing.disable()


@pytest.fixture
def provider(monkeypatch):
    """Spans of a provider that the whole process has, as an application sets it up."""
    made = Spans()
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: made.provider)
    monkeypatch.setattr(trace, "get_tracer", lambda *args, **_: made.provider.get_tracer(args[0]))
    yield made
    tracing.disable()
