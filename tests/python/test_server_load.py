"""Many clients, clients that disconnect, and overload."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading

import httpx
import numpy as np
import pytest
from conftest import FIXTURES
from embedding_server import EmbeddingServer
from generation_servers import leave
from model_manager import ModelManager
from model_manager.errors import WaitTimeoutError
from model_manager.server import ServerConfig, create_app
from model_manager.server.routes import embeddings, scores
from servers import MODELS, SECONDS, ServedModel, until

HEAD = b"POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"


class Gate:
    """Delays every computation of a manager until it is opened."""

    def __init__(self, monkeypatch):
        self.opened = threading.Event()
        self.submitted = []
        original = ModelManager.submit_response

        def submit_response(manager, inputs, on_done, *args, **options):
            def later(*result):
                threading.Thread(target=lambda: (self.opened.wait(SECONDS), on_done(*result))).start()

            ticket = original(manager, inputs, later, *args, **options)
            self.submitted.append(inputs)
            return Held(ticket, self)

        monkeypatch.setattr(ModelManager, "submit_response", submit_response)
        self.cancelled = 0


class Held:
    """A ticket whose answer was not delivered yet."""

    def __init__(self, ticket, gate):
        self.ticket = ticket
        self.gate = gate

    @property
    def done(self):
        return self.gate.opened.is_set()

    def cancel(self):
        self.gate.cancelled += 1
        return self.ticket.cancel()


@pytest.fixture
def gate(monkeypatch):
    found = Gate(monkeypatch)
    yield found
    found.opened.set()


async def test_many_clients_at_once(server):
    texts = [f"text {number}" for number in range(64)]
    limits = httpx.Limits(max_connections=64)
    async with httpx.AsyncClient(base_url=server.url, timeout=SECONDS, limits=limits) as client:
        answers = await asyncio.gather(
            *(client.post("/v1/embeddings", json={"input": [text, "shared"], "model": "tiny"}) for text in texts)
        )
    assert [answer.status_code for answer in answers] == [200] * 64
    found = np.array([answer.json()["data"][0]["embedding"] for answer in answers], np.float32)
    np.testing.assert_array_equal(found, server.manager.embed(texts, "tiny"))
    # A request ends a moment after its answer.
    await asyncio.to_thread(until, lambda: (server.service.in_flight, server.service.waiting) == (0, 0))


def test_more_than_may_wait(serve, gate):
    server = serve(max_waiting=4)
    server.manager.load("tiny")
    answers = []
    threads = [
        threading.Thread(target=lambda n=n: answers.append(server.embed(input=[f"text {n}", f"{n} text"])))
        for n in range(2)
    ]
    for thread in threads:
        thread.start()
    until(lambda: server.service.waiting == 4)
    refused = server.embed(input="one too many")
    assert refused.status_code == 429
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert gate.cancelled == 1
    assert server.client.get("/health").status_code == 200
    gate.opened.set()
    for thread in threads:
        thread.join(SECONDS)
    assert [answer.status_code for answer in answers] == [200, 200]
    assert server.service.waiting == 0
    assert server.embed(input="one too many").status_code == 200
    assert "model_manager_rejected_requests_total 1.0" in server.client.get("/metrics").text
    assert server.client.get("/api/status").json()["queue"]["rejected"] == 1


def test_a_large_request_alone_is_not_too_many(serve):
    server = serve(max_waiting=4)
    assert server.embed(input=[f"text {number}" for number in range(100)]).status_code == 200


async def test_a_client_that_leaves_takes_its_texts_along(serve, gate):
    server = serve()
    host, port = server.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    body = json.dumps({"input": "a text without a waiting client"}).encode()
    writer.write(HEAD + b"content-length: %d\r\n\r\n%s" % (len(body), body))
    await writer.drain()
    await asyncio.to_thread(until, lambda: server.service.waiting == 1)
    writer.close()
    await writer.wait_closed()
    await asyncio.to_thread(until, lambda: gate.cancelled == 1)
    await asyncio.to_thread(until, lambda: server.service.in_flight == 0)
    assert server.service.waiting == 0
    found = (await asyncio.to_thread(server.client.get, "/metrics")).text
    assert 'http_requests_total{method="POST",path="/v1/embeddings",status="499"} 1.0' in found


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"model": "q", "input": "x"}),  # does it take instructions?
        ("/v1/rerank", {"query": "x", "documents": ["x"], "max_tokens_per_doc": 5}),
    ],
)
def test_a_load_that_a_request_needs_first_is_part_of_its_time(serve, make_manager, monkeypatch, path, body):
    with EmbeddingServer() as remote:
        manager = make_manager(cache_size=0, reranker_model=str(FIXTURES / "rerank_bert"))
        server = serve(manager, models=[ServedModel("q", source=remote.ollama)], request_timeout=SECONDS)
        timeouts = []
        real_vectors, real_scores = embeddings.vectors, scores.inferred

        async def seen_vectors(service, receive, model, inputs, count, dimensions, options, *more):
            timeouts.append(options["timeout"])
            return await real_vectors(service, receive, model, inputs, count, dimensions, options, *more)

        async def seen_scores(service, receive, kind, texts, count, slot, options, *more, **named):
            timeouts.append(options["timeout"])
            return await real_scores(service, receive, kind, texts, count, slot, options, *more, **named)

        monkeypatch.setattr(embeddings, "vectors", seen_vectors)
        monkeypatch.setattr(scores, "inferred", seen_scores)
        assert server.client.post(path, json=body).status_code == 200
        assert 0 < timeouts[0] < SECONDS


def test_a_client_that_leaves_while_its_model_is_loaded(serve, make_manager):
    with EmbeddingServer() as remote:
        remote.gate.clear()
        server = serve(make_manager(), models=[ServedModel("q", source=remote.ollama)])
        leave(server, "/v1/embeddings", {"input": "x"}, lambda _: until(lambda: remote.asked))
        until(lambda: server.service.in_flight == 0)
        assert not server.manager.is_loaded("q")


async def test_a_client_that_leaves_in_the_middle_of_its_body(server):
    host, port = server.url.removeprefix("http://").split(":")
    for _ in range(5):
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(HEAD + b'content-length: 100\r\n\r\n{"input": "')
        await writer.drain()
        writer.close()
        await writer.wait_closed()
    await asyncio.to_thread(until, lambda: server.service.in_flight == 0)
    assert (await asyncio.to_thread(server.embed, input="a text")).status_code == 200


@pytest.mark.parametrize("sent", [b"", b'{"input": "'], ids=["nothing", "a part"])
@pytest.mark.parametrize("framing", [b"content-length: 100", b"transfer-encoding: chunked"], ids=["length", "chunked"])
@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/chat/completions", "/v1/responses", "/api/load"])
def test_a_client_that_never_sends_its_body(serve, path, framing, sent):
    server = serve(body_timeout=0.05)
    host, port = server.url.removeprefix("http://").split(":")
    if b"chunked" in framing and sent:
        sent = b"%x\r\n%s\r\n" % (len(sent), sent)
    with socket.create_connection((host, int(port)), timeout=SECONDS) as connection:
        head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n".encode()
        connection.sendall(head + framing + b"\r\n\r\n" + sent)
        answer = b"".join(iter(lambda: connection.recv(4096), b""))  # ends where the server closes
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in head.lower()
    error = json.loads(body)["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", None, "body_timeout")
    assert "0.05 seconds" in error["message"]
    until(lambda: server.service.in_flight == 0)
    assert f'http_requests_total{{method="POST",path="{path}",status="408"}} 1.0' in server.client.get("/metrics").text


def test_the_limit_is_for_the_whole_body(serve):
    server = serve(body_timeout=0.2)
    host, port = server.url.removeprefix("http://").split(":")
    counted = 'http_requests_total{method="POST",path="/v1/embeddings",status="408"} 1.0'
    with socket.create_connection((host, int(port)), timeout=SECONDS) as connection:
        connection.sendall(HEAD + b"content-length: 100000\r\n\r\n")

        def refused():
            with contextlib.suppress(ConnectionError):
                connection.sendall(b" ")  # a byte now and then does not prolong it
            return counted in server.client.get("/metrics").text

        until(refused)
    assert server.service.in_flight == 0


def test_the_limit_ends_with_the_body(serve, make_manager):
    manager = make_manager()
    manager.register("slow", loader=lambda: threading.Event().wait(0.2) or "an object")
    server = serve(manager, models=[ServedModel("slow")], body_timeout=0.1)
    host, port = server.url.removeprefix("http://").split(":")
    request = (
        b"POST /api/load HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 17\r\n\r\n"
    )
    with socket.create_connection((host, int(port)), timeout=SECONDS) as connection:
        connection.sendall(request + b'{"model": "slow"}')
        assert connection.recv(100).startswith(b"HTTP/1.1 200 ")


def test_a_load_that_takes_too_long(serve, make_manager):
    manager = make_manager()
    done = threading.Event()
    manager.register("slow", loader=lambda: done.wait(SECONDS))
    server = serve(manager, models=[ServedModel("slow")], request_timeout=0.05)
    response = server.client.post("/api/load", json={"model": "slow"})
    done.set()
    assert response.status_code == 504
    assert response.json()["error"]["code"] == "timeout"
    assert response.headers["retry-after"]


async def test_who_joins_a_load_has_its_own_time(make_manager):
    """The first caller's time ends while the second one still waits."""
    manager = make_manager()
    done, began = threading.Event(), threading.Event()

    def loader():
        began.set()
        done.wait(SECONDS)
        return object()

    manager.register("slow", loader=loader)
    service = create_app(ServerConfig(models=[ServedModel("slow")], request_timeout=SECONDS), manager).state.service
    first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    service._loads["slow"] = first
    joined = asyncio.create_task(service.load("slow"))
    await asyncio.sleep(0)
    service._loads.pop("slow")
    first.set_exception(WaitTimeoutError("the first caller's time is over"))
    await asyncio.to_thread(began.wait, SECONDS)
    assert not joined.done()
    done.set()
    await asyncio.wait_for(joined, SECONDS)
    assert manager.is_loaded("slow")


def test_pieces_of_a_request_that_arrive_slowly(server):
    def body():
        yield b'{"input": "a '
        yield b'text", "model": "tiny"}'

    response = server.client.post("/v1/embeddings", content=body(), headers={"content-type": "application/json"})
    assert response.json()["data"] == server.embed(input="a text").json()["data"]
    assert MODELS[0].name == response.json()["model"]
