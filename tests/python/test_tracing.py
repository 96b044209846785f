"""Spans of OpenTelemetry, as the real SDK exports them: calls, their stages, errors, the server, other servers."""

from __future__ import annotations

import asyncio
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow as pa
import pytest
from conftest import ENGLISH_MODEL, FIXTURES, TURKISH_MODEL, run_python, tiny
from embedding_server import EmbeddingServer
from generators import GREEDY, SLOT, TEXT, WITHOUT_END, figures
from model_manager import errors, tracing
from opentelemetry import context
from opentelemetry.sdk.trace import sampling
from opentelemetry.trace import SpanKind, StatusCode
from servers import SECONDS, until
from spans import EMBED, SUPPRESSING, Spans, traceparent

# --- Calls -----------------------------------------------------------------------------------------------------------


def test_a_call_has_a_span_and_a_child_for_each_stage(spans, manager):
    manager.embed("one text", EMBED)
    span = spans.named(f"embeddings {EMBED}")
    assert (span.kind, span.parent, span.status.status_code) == (SpanKind.INTERNAL, None, StatusCode.UNSET)
    assert span.attributes == {
        "gen_ai.provider.name": "model_manager",
        "gen_ai.operation.name": "embeddings",
        "gen_ai.request.model": EMBED,
        "gen_ai.response.model": ENGLISH_MODEL,
        "gen_ai.usage.input_tokens": manager.count_tokens("one text", EMBED),
        "gen_ai.embeddings.dimension.count": 32,
        "model_manager.inputs": 1,
        "model_manager.cached": 0,
        "model_manager.stored": 0,
    }
    assert span.instrumentation_scope.name == "model_manager"
    assert spans.children(span) == ["cache", "load", "tokenize", "queue", "forward"]


def test_a_hit_has_a_look_up_only(spans, manager):
    manager.embed("one text", EMBED)
    spans.clear()
    manager.embed("one text", EMBED)
    span = spans.named(f"embeddings {EMBED}")
    assert span.attributes["model_manager.cached"] == 1
    assert spans.children(span) == ["cache"]
    spans.clear()
    manager.embed(["one text", "another", "third"], EMBED)
    span = spans.named(f"embeddings {EMBED}")
    assert (span.attributes["model_manager.inputs"], span.attributes["model_manager.cached"]) == (3, 1)
    assert spans.children(span) == ["cache", "tokenize", "queue", "forward"]
    assert spans.named("cache").attributes == {"model_manager.cached": 1, "model_manager.stored": 0}


def test_a_call_of_many_texts_has_one_span_a_stage(spans, manager):
    texts = [f"text number {number}" for number in range(1000)]
    manager.embed(texts, EMBED)
    span = spans.named(f"embeddings {EMBED}")
    assert sorted(spans.children(span)) == ["cache", "forward", "load", "queue", "tokenize"]
    tokenize = spans.named("tokenize")
    assert 2 <= tokenize.attributes["model_manager.steps"] <= 16  # blocks of 64 inputs and more
    assert 0 < tokenize.attributes["model_manager.busy_seconds"] * 1e9 <= tokenize.end_time - tokenize.start_time


def test_the_chunks_of_a_text_have_a_span(spans, manager):
    chunks, _ = manager.embed_chunks("hello world " * 60, EMBED, max_tokens=16)
    span = spans.named(f"embeddings {EMBED}")
    assert {"forward", "queue"} <= set(spans.children(span))
    assert span.attributes["gen_ai.usage.input_tokens"] == sum(chunk.tokens for chunk in chunks)


def test_calls_belong_to_the_span_around_them(spans, manager):
    tracer = spans.provider.get_tracer("application")
    with tracer.start_as_current_span("work"):
        manager.embed("one text", EMBED)

        async def both():
            await asyncio.gather(manager.aembed("second", EMBED), manager.aembed("third", EMBED))

        asyncio.run(both())
        manager.embed_arrow(pa.array(["fourth"]), EMBED)
    assert spans.children(spans.named("work")) == [f"embeddings {EMBED}"] * 4


def test_results_found_below_memory_are_counted(spans, tmp_path, make_manager):
    with tiny(cache_disk=str(tmp_path)) as first:
        first.embed("one text", EMBED)
        until(lambda: first.cache_flush() or first.cache_info()["tiers"]["disk"]["writes"])
    spans.clear()
    make_manager(cache_disk=str(tmp_path)).embed("one text", EMBED)
    span = spans.named(f"embeddings {EMBED}")
    assert span.attributes["model_manager.stored"] == 1
    assert spans.children(span) == ["cache"]


def test_scores_and_sparse_vectors_have_spans(spans, manager):
    manager.register("rank", str(FIXTURES / "rerank_bert"))
    manager.rerank("query", ["one", "two"], "rank")
    span = spans.named("score rank")
    assert span.attributes["model_manager.inputs"] == 2
    assert spans.children(span)[-1] == "forward"


def test_failures_are_in_the_span(spans, manager):
    with pytest.raises(errors.UnknownModelError):
        manager.embed("one text", "nothing")
    with pytest.raises(errors.ArgumentError):
        manager.embed(["one text"], EMBED, truncate_dim=1000)
    unknown = spans.named("embeddings nothing")
    assert unknown.status.status_code is StatusCode.ERROR
    assert "nothing" in unknown.status.description
    assert unknown.attributes["error.type"] == "UnknownModelError"
    [event] = unknown.events
    assert event.attributes["exception.type"].endswith("UnknownModelError")
    assert spans.named(f"embeddings {EMBED}").attributes["error.type"] == "ArgumentError"

    async def wrong():
        with pytest.raises(errors.UnknownModelError):
            await manager.aembed("one text", "nobody")

    asyncio.run(wrong())
    assert spans.named("embeddings nobody").attributes["error.type"] == "UnknownModelError"


def test_a_call_that_is_refused_at_once_is_never_called_cancelled(spans, manager):
    async def wrong():
        with pytest.raises(errors.UnknownModelError):
            await manager.aembed("one text", "nobody")
        with pytest.raises(errors.UnknownModelError):
            await manager.agenerate("one text", model="nobody")

    async def many():
        for _ in range(300):
            await wrong()

    stop = threading.Event()
    # Threads that take the interpreter in turn: what runs on another thread may come first.
    busy = [threading.Thread(target=lambda: [None for _ in iter(stop.is_set, True)]) for _ in range(2)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        [thread.start() for thread in busy]
        asyncio.run(many())
    finally:
        stop.set()
        [thread.join() for thread in busy]
        sys.setswitchinterval(interval)
    ended = [span.attributes.get("error.type") for span in spans.all()]
    assert len(ended) == 600
    assert set(ended) == {"UnknownModelError"}


def test_a_load_by_hand_has_a_span(spans, manager):
    manager.load(EMBED)
    manager.load(EMBED)
    (span,) = spans.all()
    assert span.name == f"load {EMBED}"
    # It looks nothing up.
    assert span.attributes == {"gen_ai.provider.name": "model_manager", "gen_ai.request.model": EMBED}
    manager.register("broken", str(FIXTURES / "nowhere"))
    with pytest.raises(errors.ModelManagerError):
        manager.load("broken")
    assert spans.named("load broken").status.status_code is StatusCode.ERROR


@pytest.mark.parametrize("of", SUPPRESSING)
def test_a_caller_that_wants_no_spans_gets_none(spans, manager, of):
    token = context.attach(context.set_value(SUPPRESSING[of], True))
    try:
        manager.embed("one text", EMBED)
    finally:
        context.detach(token)
    assert spans.all() == []
    manager.embed("one text", EMBED)
    assert spans.named(f"embeddings {EMBED}")


@pytest.mark.parametrize("provider", ["x", 5, object()])
def test_what_is_no_provider_is_refused(provider):
    with pytest.raises(TypeError, match=r"^tracer_provider must be a TracerProvider of OpenTelemetry, not "):
        tracing.enable(provider)
    assert not tracing.is_enabled()


def test_texts_are_not_in_spans(spans, make_writer):
    manager = make_writer()
    manager.embed("a secret text", EMBED)
    manager.complete("a secret prompt", max_new_tokens=3, **GREEDY)
    for span in spans.all():
        assert "secret" not in span.to_json()


# --- Generation ------------------------------------------------------------------------------------------------------


def test_an_answer_has_its_figures_and_stages(spans, make_writer):
    manager = make_writer()
    answer = manager.complete(TEXT, max_new_tokens=5, **GREEDY)
    span = spans.named(f"text_completion {SLOT}")
    expected = {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.request.model": SLOT,
        "gen_ai.request.temperature": 0.0,
        "gen_ai.request.max_tokens": 5,
        "gen_ai.usage.input_tokens": answer["prompt_tokens"],
        "gen_ai.usage.output_tokens": 5,
        "gen_ai.response.finish_reasons": ("length",),
    }
    assert expected.items() <= dict(span.attributes).items()
    assert [name for name in spans.children(span) if name != "queue"] == ["load", "tokenize", "prefill", "decode"]


@pytest.mark.parametrize("temperature", [0.7, 1.0, 0.1, 1.234567, 0.8888888, 1e-5, 2])
def test_the_temperature_is_that_of_the_call(spans, make_writer, temperature):
    make_writer().complete(TEXT, max_new_tokens=1, temperature=temperature)
    [span] = [span for span in spans.all() if span.name == f"text_completion {SLOT}"]
    assert span.attributes["gen_ai.request.temperature"] == temperature


def test_what_a_call_draws_with_is_in_its_span(spans, make_writer):
    manager = make_writer()
    manager.complete(TEXT, max_new_tokens=1, temperature=0.7, top_p=0.9, top_k=7, seed=2**63 - 1)
    manager.complete(TEXT, max_new_tokens=1, temperature=0.7, top_k=0, seed=2**63)
    manager.complete(TEXT, max_new_tokens=1, **GREEDY)
    found = [
        {key.removeprefix("gen_ai.request."): value for key, value in span.attributes.items() if ".request." in key}
        for span in spans.all()
        if span.name == f"text_completion {SLOT}"
    ]
    shared = {"model": SLOT, "max_tokens": 1}
    assert found == [
        {**shared, "temperature": 0.7, "top_p": 0.9, "top_k": 7, "seed": 2**63 - 1},
        {**shared, "temperature": 0.7},
        {**shared, "temperature": 0.0},
    ]


@pytest.mark.parametrize("form", ["stream", "astream"])
def test_a_streamed_answer_ends_its_span_with_its_last_piece(spans, make_writer, form):
    manager = make_writer()
    manager.load(SLOT)
    spans.clear()
    if form == "stream":
        for _ in manager.stream(TEXT, max_new_tokens=4, **GREEDY):
            assert not [span for span in spans.all() if span.name.startswith("text_completion")]
    else:

        async def read():
            async for _ in manager.astream(TEXT, max_new_tokens=4, **GREEDY):
                pass

        asyncio.run(read())
    span = spans.named(f"text_completion {SLOT}")
    assert span.attributes["gen_ai.usage.output_tokens"] == 4
    assert spans.children(span)[-1] == "decode"


def test_answers_that_are_given_up_end_their_spans(spans, endless):
    spans.clear()
    stream = endless.stream(TEXT, **WITHOUT_END)
    next(stream)
    del stream
    until(lambda: len([span for span in spans.all() if span.name.startswith("text_completion")]) == 1)
    assert spans.named(f"text_completion {SLOT}").attributes["model_manager.cancelled"]
    spans.clear()
    stream = endless.stream(TEXT, **WITHOUT_END)
    next(stream)
    stream.cancel()
    list(stream)
    span = spans.named(f"text_completion {SLOT}")
    assert span.attributes["gen_ai.response.finish_reasons"] == ("cancelled",)
    spans.clear()

    async def give_up():
        task = asyncio.create_task(endless.agenerate(TEXT, **WITHOUT_END))
        await asyncio.sleep(0)
        await asyncio.to_thread(until, lambda: figures(endless)["active"] == 1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(give_up())
    until(spans.all)
    assert spans.named(f"text_completion {SLOT}").attributes["gen_ai.response.finish_reasons"] == ("cancelled",)


def test_a_conversation_is_a_chat(spans, make_writer):
    manager = make_writer("qwen2")
    manager.chat([{"role": "user", "content": TEXT}], max_new_tokens=2)
    assert spans.named(f"chat {SLOT}").attributes["gen_ai.operation.name"] == "chat"
    spans.clear()
    with pytest.raises(errors.ModelManagerError):
        manager.complete("", max_new_tokens=2)
    assert spans.named(f"text_completion {SLOT}").status.status_code is StatusCode.ERROR


# --- Other servers ---------------------------------------------------------------------------------------------------


def test_a_server_of_a_model_gets_the_trace(spans, manager):
    with EmbeddingServer() as server:
        manager.register("remote", server.openai)
        manager.load("remote")
        server.asked.clear()
        spans.clear()
        manager.embed("one text", "remote")
        [(_, _, headers)] = server.asked
        span = spans.named("embeddings remote")
        sent = {name.lower(): value for name, value in headers.items()}["traceparent"]
        assert sent == traceparent(span)
        assert spans.children(span)[-2:] == ["queue", "remote"]
        remote = spans.named("remote")
        assert remote.kind is SpanKind.CLIENT
        assert remote.attributes == {"server.address": "127.0.0.1", "server.port": server.port}
        server.asked.clear()
        tracing.disable()
        manager.embed("without a trace", "remote")
        assert "traceparent" not in {name.lower() for name in server.asked[0][2]}


def test_a_cancelled_call_ends_its_span(spans, manager):
    with EmbeddingServer() as server:
        manager.register("remote", server.ollama)
        manager.load("remote")
        spans.clear()
        server.gate.clear()

        async def give_up():
            task = asyncio.create_task(manager.aembed("one text", "remote"))
            await asyncio.sleep(0.05)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        asyncio.run(give_up())
        span = spans.named("embeddings remote")
        server.gate.set()
    assert span.attributes["model_manager.cancelled"]
    assert span.status.status_code is StatusCode.UNSET


def test_unsampled_traces_are_carried_on_too(manager):
    unsampled = Spans(sampling.ALWAYS_OFF)
    tracing.enable(unsampled.provider)
    try:
        with EmbeddingServer() as server:
            manager.register("remote", server.ollama)
            manager.load("remote")
            server.asked.clear()
            manager.embed("one text", "remote")
            headers = {name.lower(): value for name, value in server.asked[0][2].items()}
    finally:
        tracing.disable()
    assert int(headers["traceparent"][-2:], 16) & 1 == 0  # the flag of sampled traces
    assert unsampled.all() == []


class _Collections(BaseHTTPRequestHandler):
    """Answers of a Qdrant without collections."""

    def do_GET(self):
        self.server.asked.append(dict(self.headers))
        body = b'{"result": {"exists": false}, "status": "ok", "time": 0.0}'
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_qdrant_gets_the_trace(spans):
    from model_manager.integrations.qdrant.store import Backoff, Store
    from qdrant_client import QdrantClient

    with ThreadingHTTPServer(("127.0.0.1", 0), _Collections) as server:
        server.asked = []
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        client = QdrantClient(url=f"http://127.0.0.1:{server.server_port}", check_compatibility=False)
        Store(client, "other", Backoff())
        store = Store(client, "texts", Backoff())
        tracer = spans.provider.get_tracer("application")
        with tracer.start_as_current_span("search") as span:
            assert not store.exists()
        tracing.disable()
        store.exists()
        client.close()
        server.shutdown()
        thread.join()
    first, second = ({name.lower(): value for name, value in headers.items()} for headers in server.asked)
    assert first["traceparent"] == traceparent(span)
    assert "traceparent" not in second


# --- Without OpenTelemetry -------------------------------------------------------------------------------------------


def test_nothing_is_imported_until_it_is_enabled():
    code = f"""
import sys
from model_manager import ModelManager
from model_manager import tracing
manager = ModelManager(turkish_model={TURKISH_MODEL!r}, english_model={ENGLISH_MODEL!r})
manager.embed("one text", "english_sentence")
assert not tracing.has_provider() and not tracing.is_enabled()
tracing.inject({{}})
assert not [name for name in sys.modules if name.startswith("opentelemetry")]
sys.modules["opentelemetry"] = None
try:
    tracing.enable()
except ModuleNotFoundError as error:
    assert "model-manager-rs[otel]" in str(error), error
else:
    raise AssertionError("enabled")
assert manager.embed("another", "english_sentence").shape == (32,)
manager.close()
"""
    run_python(code)


def test_the_api_without_an_sdk_traces_nothing(manager):
    tracing.enable()
    try:
        assert manager.embed("one text", EMBED).shape == (32,)
    finally:
        tracing.disable()


def test_a_tracer_that_fails_does_not_fail_calls(manager, monkeypatch):
    class Broken:
        def begin(self, *_):
            raise RuntimeError("no spans today")

    class BreaksAtTheEnd:
        def begin(self, *_):
            return object(), []

        def end(self, *_):
            raise RuntimeError("no end today")

    reported = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: reported.append(str(what.exc_value)))
    from model_manager import _core

    for tracer in (Broken(), BreaksAtTheEnd()):
        _core._set_tracer(tracer)
        try:
            assert manager.embed(f"{tracer}", EMBED).shape == (32,)
        finally:
            _core._set_tracer(None)
    assert reported == ["no spans today", "no end today"]


def test_managers_in_threads_keep_their_traces_apart(spans, manager):
    tracer, barrier = spans.provider.get_tracer("application"), threading.Barrier(8)

    def work(number):
        with tracer.start_as_current_span(f"thread {number}"):
            barrier.wait(SECONDS)
            for text in range(5):
                manager.embed(f"text {number} {text}", EMBED)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(8):
        assert spans.children(spans.named(f"thread {number}")) == [f"embeddings {EMBED}"] * 5
