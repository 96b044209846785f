"""Spans of loads that are no part of another call: of `warmup`, `get` and `describe`, as of `load`."""

from __future__ import annotations

import threading

import pytest
from conftest import ENGLISH_MODEL, FIXTURES
from model_manager import errors
from opentelemetry.trace import StatusCode
from servers import SECONDS
from spans import EMBED

TURKISH = "turkish_sentence"


def loads(spans):
    """The names of all spans, all of which are loads."""
    found = spans.all()
    for span in found:
        name = span.name.removeprefix("load ")
        assert span.attributes == {"gen_ai.provider.name": "model_manager", "gen_ai.request.model": name}
    return sorted(span.name for span in found)


def test_a_warm_up_has_a_span_for_each_slot_that_it_loads(spans, manager):
    manager.load(TURKISH)
    spans.clear()
    manager.register("third", ENGLISH_MODEL, pooling="cls")
    manager.warmup([EMBED, TURKISH, "third", EMBED])
    assert loads(spans) == [f"load {EMBED}", "load third"]
    assert {span.status.status_code for span in spans.all()} == {StatusCode.UNSET}
    spans.clear()
    manager.warmup([EMBED, TURKISH, "third"])
    assert spans.all() == []


def test_the_span_of_a_slot_in_a_warm_up_ends_with_its_own_load(spans, manager):
    gate, ended = threading.Event(), threading.Event()

    def slow():
        assert gate.wait(SECONDS)
        return object()

    manager.register("slow", loader=slow)
    manager.register("fast", loader=object)
    spans.provider.add_span_processor(_OnEnd("load fast", ended))
    warming = threading.Thread(target=manager.warmup, args=(["slow", "fast"],))
    warming.start()
    try:
        assert ended.wait(SECONDS), "the fast one ends while the slow one loads"
        assert loads(spans) == ["load fast"]
    finally:
        gate.set()
        warming.join()
    assert loads(spans) == ["load fast", "load slow"]


class _OnEnd:
    """A processor of spans that sets `event` when the span `name` has ended."""

    def __init__(self, name, event):
        self._name, self._event = name, event

    def on_start(self, span, parent_context=None):
        pass

    def _on_ending(self, span):
        pass

    def on_end(self, span):
        if span.name == self._name:
            self._event.set()

    def shutdown(self):
        pass

    def force_flush(self, timeout_millis=0):
        return True


def test_failures_of_a_warm_up_are_in_the_spans_of_their_slots(spans, manager):
    manager.register("broken", str(FIXTURES / "nowhere"))
    with pytest.raises(errors.ModelManagerError):
        manager.warmup(["broken", EMBED])
    assert sorted(span.name for span in spans.all()) == ["load broken", f"load {EMBED}"]
    broken = spans.named("load broken")
    assert broken.status.status_code is StatusCode.ERROR
    assert "nowhere" in broken.status.description
    assert spans.named(f"load {EMBED}").status.status_code is StatusCode.UNSET


def test_a_warm_up_that_is_given_up_ends_its_spans(spans, manager):
    gate = threading.Event()

    def slow():
        assert gate.wait(SECONDS)
        return object()

    manager.register("slow", loader=slow)
    try:
        with pytest.raises(errors.WaitTimeoutError):
            manager.warmup(["slow"], timeout=0.05)
        assert spans.named("load slow").attributes["error.type"] == "WaitTimeoutError"
    finally:
        gate.set()
    manager.load("slow")
    ended = [span.name for span in spans.all()]
    assert set(ended) == {"load slow"}
    assert len([span for span in spans.all() if span.status.status_code is StatusCode.ERROR]) == 1


def test_a_warm_up_of_an_unknown_slot_loads_nothing_and_says_so(spans, manager):
    with pytest.raises(errors.UnknownModelError):
        manager.warmup([EMBED, "nothing"])
    assert not manager.is_loaded(EMBED)
    span = spans.named(f"load {EMBED}")
    assert span.attributes["error.type"] == "UnknownModelError"


@pytest.mark.parametrize("method", ["get", "describe"])
def test_other_calls_that_load_have_a_span(spans, manager, method):
    call = getattr(manager, method)
    call(EMBED)
    call(EMBED)
    assert loads(spans) == [f"load {EMBED}"]
    manager.register("broken", str(FIXTURES / "nowhere"))
    with pytest.raises(errors.ModelManagerError):
        call("broken")
    assert spans.named("load broken").status.status_code is StatusCode.ERROR
    spans.clear()
    manager.unload(EMBED)
    assert manager.peek(EMBED) is None
    assert manager.describe(EMBED, load=False) is None
    assert spans.all() == []
