"""Spans of the server's requests, which continue the traces of clients."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import sys

import httpx
import pytest
from conftest import tiny
from fastapi import FastAPI
from generation_servers import leave
from generators import SLOT, TEXT, figures
from model_manager import errors, tracing
from model_manager.server import ServerConfig, create_app, router, spans
from opentelemetry import context, propagate
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import default_getter
from opentelemetry.sdk.trace import sampling
from opentelemetry.trace import SpanKind, StatusCode
from servers import MODELS, running, until
from spans import PARENT_ID, SUPPRESSING, TRACE_ID, TRACEPARENT


def test_a_request_continues_the_trace_of_its_client(provider, serve):
    server = serve()
    assert server.service.spans is not None
    body = {"model": "tiny", "input": ["one", "two"]}
    headers = {"traceparent": TRACEPARENT, "x-request-id": "r1"}
    assert server.client.post("/v1/embeddings", json=body, headers=headers).status_code == 200
    until(lambda: any(span.kind is SpanKind.SERVER for span in provider.all()))
    span = provider.named("POST /v1/embeddings")
    assert (span.kind, span.context.trace_id, span.parent.span_id) == (SpanKind.SERVER, TRACE_ID, PARENT_ID)
    expected = {
        "http.request.method": "POST",
        "http.route": "/v1/embeddings",
        "url.path": "/v1/embeddings",
        "url.scheme": "http",
        "http.response.status_code": 200,
        "http.response.header.x-request-id": ("r1",),
        "client.address": "127.0.0.1",
        "network.protocol.version": "1.1",
        "server.address": "127.0.0.1",
        "server.port": int(server.url.rpartition(":")[2]),
        "user_agent.original": server.client.headers["user-agent"],
    }
    assert dict(span.attributes) == expected
    assert "embeddings tiny" in provider.children(span)
    assert provider.children(provider.named("embeddings tiny"))[-1] == "forward"


def test_headers_of_a_trace_are_found_in_any_spelling_and_all_of_them(provider, monkeypatch):
    """Servers give names in lower case; W3C's tracestate may come in several headers, which are one list."""
    from model_manager.server.spans import RequestSpans

    class Propagator:
        fields = frozenset({"X-Amzn-Trace-Id", "tracestate"})

        def extract(self, carrier, _context=None):
            found.update({field: default_getter.get(carrier, field) for field in self.fields})
            return Context()

    found = {}
    monkeypatch.setattr(propagate, "get_global_textmap", Propagator)
    monkeypatch.setattr(propagate, "extract", Propagator().extract)
    headers = [(b"x-amzn-trace-id", b"Root=1"), (b"tracestate", b"a=1"), (b"accept", b"*/*"), (b"tracestate", b"b=2")]
    scope = {"type": "http", "method": "GET", "path": "/", "headers": headers}
    RequestSpans().begin(scope, "/").end(200, 200, b"r")
    assert found == {"X-Amzn-Trace-Id": ["Root=1"], "tracestate": ["a=1", "b=2"]}


@pytest.mark.parametrize(
    ("host", "found"),
    [
        ("localhost:8000", ("localhost", 8000)),
        ("localhost", ("localhost", None)),
        ("[::1]:80", ("[::1]", 80)),
        ("localhost:65536", ("localhost", None)),
        ("localhost:" + "9" * 5000, ("localhost", None)),
    ],
)
def test_the_port_of_a_span_is_one(host, found):
    """Exporters refuse larger numbers, and Python those of many digits."""
    assert spans._address(host) == found


def test_failed_requests_and_probes(provider, serve):
    server = serve()
    assert server.client.get("/health").status_code == 200
    assert server.embed(model="nothing", input="x").status_code == 404
    assert server.client.post("/api/embed", json={"model": "tiny", "input": 5}).status_code == 400
    until(lambda: len(provider.all()) == 2)
    codes = {span.name: span.attributes["http.response.status_code"] for span in provider.all()}
    assert codes == {"POST /v1/embeddings": 404, "POST /api/embed": 400}
    assert not any("error.type" in span.attributes for span in provider.all())
    assert {span.status.status_code for span in provider.all()} == {StatusCode.UNSET}


def test_a_streamed_answer_is_inside_its_request(provider, serve, make_writer):
    server = serve(make_writer("qwen2"))
    body = {"messages": [{"role": "user", "content": TEXT}], "max_tokens": 4, "stream": True}
    with server.client.stream("POST", "/v1/chat/completions", json=body, headers={"traceparent": TRACEPARENT}) as got:
        assert got.read().endswith(b"data: [DONE]\n\n")
    until(lambda: any(span.kind is SpanKind.SERVER for span in provider.all()))
    span = provider.named("POST /v1/chat/completions")
    assert span.context.trace_id == TRACE_ID
    assert f"chat {SLOT}" in provider.children(span)
    assert provider.named(f"chat {SLOT}").attributes["gen_ai.usage.output_tokens"] <= 4


def test_a_stream_that_ends_with_an_error_is_an_error_of_its_span(provider, serve, endless):
    server = serve(endless)
    body = {"prompt": TEXT, "stream": True, "max_tokens": 50_000, "min_tokens": 50_000}
    with server.client.stream("POST", "/v1/completions", json=body) as answer:
        lines = answer.iter_lines()
        next(lines)
        next(iter(server.service._tasks)).get_loop().call_soon_threadsafe(server.service.end_requests)
        assert "shutting down" in list(lines)[-2]
    until(lambda: any(span.kind is SpanKind.SERVER for span in provider.all()))
    span = provider.named("POST /v1/completions")
    assert (span.attributes["http.response.status_code"], span.attributes["error.type"]) == (200, "503")
    assert span.status.status_code is StatusCode.ERROR


def test_a_client_that_leaves_ends_its_spans(provider, serve, endless):
    server = serve(endless)
    body = {"prompt": TEXT, "stream": True, "max_tokens": 50_000, "min_tokens": 50_000}

    def first_piece(connection):
        while b"data: " not in connection.recv(4096):
            pass

    leave(server, "/v1/completions", body, first_piece)
    until(lambda: {span.name for span in provider.all()} >= {"POST /v1/completions", f"text_completion {SLOT}"})
    answer, request = provider.named(f"text_completion {SLOT}"), provider.named("POST /v1/completions")
    assert answer.attributes["model_manager.cancelled"]
    assert answer.parent.span_id == request.context.span_id
    assert (request.attributes["model_manager.cancelled"], request.attributes["http.response.status_code"]) == (
        True,
        200,
    )
    assert request.status.status_code is StatusCode.UNSET


def test_a_client_that_leaves_before_the_answer_has_no_status(provider, serve, endless):
    """The status of the metrics is never sent."""
    server = serve(endless)
    body = {"prompt": TEXT, "max_tokens": 50_000, "min_tokens": 50_000}
    leave(server, "/v1/completions", body, lambda _: until(lambda: figures(endless)["active"] == 1))
    until(lambda: any(span.kind is SpanKind.SERVER for span in provider.all()))
    request = provider.named("POST /v1/completions")
    assert request.attributes["model_manager.cancelled"]
    assert "http.response.status_code" not in request.attributes
    assert "error.type" not in request.attributes
    assert request.status.status_code is StatusCode.UNSET


def test_a_request_that_takes_too_long_is_an_error_of_its_span(provider, serve, endless):
    server = serve(endless, request_timeout=0.2)
    body = {"prompt": TEXT, "max_tokens": 50_000, "min_tokens": 50_000}
    assert server.client.post("/v1/completions", json=body).status_code == 504
    until(lambda: any(span.kind is SpanKind.SERVER for span in provider.all()))
    request = provider.named("POST /v1/completions")
    assert (request.attributes["http.response.status_code"], request.attributes["error.type"]) == (504, "504")
    assert request.status.status_code is StatusCode.ERROR
    assert request.status.description is None  # the status says it


def test_unknown_methods_do_not_name_spans(provider, serve):
    server = serve()
    assert server.client.request("PROPFIND", "/v1/embeddings").status_code == 405
    until(provider.all)
    (span,) = provider.all()
    assert span.name == "HTTP /v1/embeddings"
    assert span.attributes["http.request.method"] == "_OTHER"
    assert span.attributes["http.request.method_original"] == "PROPFIND"


def test_a_query_is_not_in_a_span(provider, serve):
    server = serve()
    assert server.client.get("/v1/models?key=secret").status_code == 200
    until(provider.all)
    (span,) = provider.all()
    assert "secret" not in span.to_json()


@pytest.mark.parametrize("mounted", [True, False])
def test_the_route_has_the_prefix_of_the_application(provider, manager, mounted):
    # New versions of FastAPI make spans themselves.
    quiet = {"telemetry": {"tracing": False}} if "telemetry" in inspect.signature(FastAPI).parameters else {}
    app = FastAPI(**quiet)
    if mounted:
        inner = create_app(ServerConfig(models=MODELS), manager)
        app.mount("/ai", inner)
        app.router.lifespan_context = inner.router.lifespan_context
    else:
        app.include_router(router(ServerConfig(models=MODELS), manager), prefix="/ai")
    with running(app) as server:
        assert server.client.get("/ai/v1/models/tiny").status_code == 200
        assert server.client.post("/ai/v1/embeddings/", json={"input": "x"}).status_code == 200
        until(lambda: sum(span.kind is SpanKind.SERVER for span in provider.all()) == 2)
    spans = [span for span in provider.all() if span.kind is SpanKind.SERVER]
    assert [span.attributes["http.route"] for span in spans] == ["/ai/v1/models/{model_id}", "/ai/v1/embeddings"]
    assert [span.attributes["url.path"] for span in spans] == ["/ai/v1/models/tiny", "/ai/v1/embeddings/"]


def test_a_span_around_the_start_of_the_server_is_none_of_its_requests(provider):
    async def asked():
        app = create_app(ServerConfig(models=MODELS), manager)
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
        ):
            assert (await client.post("/v1/embeddings", json={"input": "x"})).status_code == 200

    with tiny() as manager, provider.provider.get_tracer("application").start_as_current_span("program"):
        asyncio.run(asked())
    span = provider.named("POST /v1/embeddings")
    assert (span.kind, span.parent) == (SpanKind.SERVER, None)
    assert "embeddings tiny" in provider.children(span)


def test_loads_on_other_threads_belong_to_their_request(provider, serve):
    server = serve(admin=True)
    assert server.client.post("/api/load", json={"model": "tiny"}).status_code == 200
    until(lambda: any(span.kind is SpanKind.SERVER for span in provider.all()))
    assert provider.children(provider.named("POST /api/load")) == ["load tiny"]


def test_a_tracer_that_fails_does_not_fail_requests(provider, serve, caplog, monkeypatch):
    class Broken(sampling.Sampler):
        def should_sample(self, *_args, **_options):
            raise RuntimeError("no spans today")

        def get_description(self):
            return "broken"

    reported = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: reported.append(str(what.exc_value)))
    provider.provider.sampler = Broken()
    server = serve()
    assert server.embed(input="x").status_code == 200
    assert "A request has no span: RuntimeError: no spans today" in caplog.text
    assert set(reported) == {"no spans today"}  # of the calls


def test_texts_and_keys_are_not_in_spans_of_requests(provider, serve, make_writer):
    server = serve(make_writer("qwen2"), api_keys=["a-hidden-key"])
    server.client.headers["authorization"] = "Bearer a-hidden-key"
    messages = [{"role": "user", "content": "a hidden prompt"}]
    for body in ({"messages": messages, "max_tokens": 2}, {"messages": messages, "max_tokens": "a hidden number"}):
        server.client.post("/v1/chat/completions", json=body)
    server.client.post("/v1/embeddings", json={"input": "a hidden text", "dimensions": 1000})
    until(lambda: sum(span.kind is SpanKind.SERVER for span in provider.all()) == 3)
    for span in provider.all():
        assert "hidden" not in span.to_json()


@pytest.mark.parametrize("header", ["", "00-0-0-0", "zz" * 40, "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "é"])
def test_a_damaged_header_begins_a_new_trace(provider, serve, header):
    server = serve()
    headers = {b"traceparent": header.encode(), b"tracestate": b"=,=,", b"baggage": b"%%%"}
    assert server.client.post("/v1/embeddings", json={"input": "x"}, headers=headers).status_code == 200
    until(lambda: any(span.kind is SpanKind.SERVER for span in provider.all()))
    assert provider.named("POST /v1/embeddings").parent is None


def test_an_application_with_spans_of_its_own_gets_no_second_one(provider, manager):
    app = FastAPI()
    app.include_router(router(ServerConfig(models=MODELS), manager), prefix="/ai")
    tracer = provider.provider.get_tracer("application")

    @app.middleware("http")
    async def around(request, call_next):
        with tracer.start_as_current_span("own"):
            return await call_next(request)

    with running(app) as server:
        answer = server.client.post("/ai/v1/embeddings", json={"model": "tiny", "input": "x"})
        assert answer.status_code == 200
        until(lambda: any(span.name == "own" for span in provider.all()))
    assert "embeddings tiny" in provider.children(provider.named("own"))
    mine = [span for span in provider.all() if span.instrumentation_scope.name == "model_manager"]
    assert SpanKind.SERVER not in {span.kind for span in mine}


@pytest.mark.parametrize("of", SUPPRESSING)
def test_an_application_that_wants_no_spans_gets_none(provider, manager, of):
    app = FastAPI()
    app.include_router(router(ServerConfig(models=MODELS), manager))

    @app.middleware("http")
    async def around(request, call_next):
        token = context.attach(context.set_value(SUPPRESSING[of], True))
        try:
            return await call_next(request)
        finally:
            context.detach(token)

    with running(app) as server:
        answer = server.client.post("/v1/embeddings", json={"model": "tiny", "input": "x"})
        assert answer.status_code == 200
    mine = [span.name for span in provider.all() if span.instrumentation_scope.name == "model_manager"]
    assert mine == []


def test_requests_go_to_the_provider_of_their_calls(spans, serve):
    """`tracing.enable` was given one that is not the process's."""
    server = serve()
    assert server.embed(input="x").status_code == 200
    until(lambda: any(span.kind is SpanKind.SERVER for span in spans.all()))
    assert "embeddings tiny" in spans.children(spans.named("POST /v1/embeddings"))


def test_the_setting_decides(provider, serve):
    assert serve(tracing="off").service.spans is None
    assert not tracing.is_enabled()
    with pytest.raises(errors.ConfigError, match="tracing='yes'"):
        serve(tracing="yes")


def test_the_last_server_that_stops_ends_tracing(provider):
    """Two servers in one process, in any order; tracing that the application enabled goes on."""
    for order in ((0, 1), (1, 0)):
        with contextlib.ExitStack() as first, contextlib.ExitStack() as second:
            stacks = (first, second)
            for stack in stacks:
                stack.enter_context(running(create_app(ServerConfig(models=MODELS))))
            stacks[order[0]].close()
            assert tracing.is_enabled()
            stacks[order[1]].close()
            assert not tracing.is_enabled()
    with contextlib.ExitStack() as stack:
        stack.enter_context(running(create_app(ServerConfig(models=MODELS))))
        tracing.enable()
        stack.close()
        assert tracing.is_enabled()
        with running(create_app(ServerConfig(models=MODELS))):
            pass
        assert tracing.is_enabled()
        tracing.disable()


def test_without_a_provider_nothing_is_traced(serve):
    server = serve()
    assert server.service.spans is None
    assert not tracing.is_enabled()
    assert serve(tracing="on").service.spans is not None
