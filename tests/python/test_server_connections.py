"""Raw connections: bodies that no endpoint reads, endless headers, unusual paths and methods."""

from __future__ import annotations

import asyncio
import contextlib
import json
import select
import socket
import threading
import time

import httptools
import pytest
import uvicorn
from conftest import ENGLISH_MODEL
from fastapi import FastAPI
from model_manager.server import ServerConfig, protocol, router
from model_manager.server.protocol import MAX_HEADER_BYTES, BoundedHeaders
from servers import MODELS, SECONDS, running, until
from starlette.requests import ClientDisconnect, Request

HEAD = "{} HTTP/1.1\r\nhost: localhost\r\n{}\r\n"


@contextlib.contextmanager
def connected(url):
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=SECONDS) as connection:
        yield connection


def rest(connection):
    """All bytes until the server closes the connection."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := connection.recv(4096):
            received += chunk
    return received


def answer_of(received):
    head, _, body = received.partition(b"\r\n\r\n")
    status = int(head.split()[1])
    return status, head.lower(), json.loads(body) if body else None


UNREAD = [
    ("POST /v1/embeddings", 401),
    ("POST /nothing", 404),
    ("PUT /v1/embeddings", 405),
    ("POST /health", 405),
    ("POST /api/load", 401),
]


@pytest.mark.parametrize("framing", ["content-length: 1000000\r\n", "transfer-encoding: chunked\r\n"])
@pytest.mark.parametrize(("request_line", "expected"), UNREAD)
def test_a_body_that_nobody_reads_does_not_keep_its_connection(serve, monkeypatch, request_line, expected, framing):
    from model_manager.server import exchange

    monkeypatch.setattr(exchange, "_LINGER_SECONDS", 0.3)
    server = serve(api_keys=["secret"])
    key = "authorization: Bearer secret\r\n" if expected == 405 else ""
    with connected(server.url) as connection:
        connection.sendall(HEAD.format(request_line, key + framing).encode())
        # Single bytes do not extend the timeout.
        received, end = b"", time.monotonic() + SECONDS
        connection.settimeout(0.05)
        while time.monotonic() < end:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(b"1\r\n \r\n" if "chunked" in framing else b" ")
            try:
                chunk = connection.recv(4096)
            except TimeoutError:
                continue
            except ConnectionResetError:
                break
            if not chunk:
                break
            received += chunk
        else:
            pytest.fail("the connection stayed open")
    status, head, body = answer_of(received)
    assert status == expected
    assert b"connection: close" in head
    assert body["error"]["message"]
    until(lambda: server.service.in_flight == 0)


@pytest.mark.parametrize(("request_line", "expected"), UNREAD)
def test_a_short_body_that_nobody_reads_leaves_the_connection_usable(serve, request_line, expected):
    server = serve(api_keys=["secret"])
    key = "authorization: Bearer secret\r\n" if expected == 405 else ""
    with connected(server.url) as connection:
        for _ in range(2):
            connection.sendall(HEAD.format(request_line, key + "content-length: 2\r\n").encode() + b"{}")
            status, head, _ = answer_of(connection.recv(65536))
            assert status == expected
            assert b"connection: close" not in head


def test_a_client_that_sends_all_of_a_large_body_first_hears_why_it_is_refused(serve):
    server = serve(max_body_bytes=1000)
    body = b"x" * 5_000_000
    with connected(server.url) as connection:
        head = f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
        connection.sendall(HEAD.format("POST /v1/embeddings", head).encode())
        connection.sendall(body)
        status, head, _ = answer_of(rest(connection))
    assert status == 413
    assert b"connection: close" in head


def test_a_client_that_asks_first_sends_no_body(serve):
    server = serve(max_body_bytes=1000)
    with connected(server.url) as connection:
        head = "content-type: application/json\r\nexpect: 100-continue\r\ncontent-length: 5000000\r\n"
        connection.sendall(HEAD.format("POST /v1/embeddings", head).encode())
        assert answer_of(rest(connection))[0] == 413


# --- Headers ---------------------------------------------------------------------------------------------------------

SLOW = """
from model_manager.server import ServedModel, ServerConfig
from model_manager.server.main import run
if __name__ == "__main__":
    run(ServerConfig(port=0, header_timeout=1.5, models=[ServedModel("tiny", source=MODEL)]))
"""


def test_an_idle_connection_stays_open(process, tmp_path):
    """As long as its own setting says, which is longer than the headers may take."""
    path = tmp_path / "serve.py"
    path.write_text(SLOW.replace("1.5", "0.2, keep_alive_timeout=2").replace("MODEL", repr(ENGLISH_MODEL)))
    with connected(process(str(path)).url()) as connection:
        connection.sendall(HEAD.format("GET /health", "").encode())
        received = b""
        while not received.endswith(b"}"):
            received += connection.recv(65536)
        answered = time.monotonic()
        assert connection.recv(65536) == b"", "it is closed without a word"
        assert time.monotonic() - answered > 1.5


def test_headers_that_never_end(process, tmp_path):
    path = tmp_path / "serve.py"
    path.write_text(SLOW.replace("MODEL", repr(ENGLISH_MODEL)))
    url = process(str(path)).url()
    whole = HEAD.format("GET /health", "").encode()
    with connected(url) as idle:
        assert rest(idle) == b"", "nothing was asked"
    with connected(url) as connection:
        connection.sendall(whole[:-2])
        status, head, body = answer_of(rest(connection))
    assert (status, body["error"]["code"]) == (408, "header_timeout")
    assert b"connection: close" in head
    with connected(url) as connection:
        connection.sendall(whole)
        received = b""
        while not received.endswith(b"}"):
            received += connection.recv(65536)
        assert received.startswith(b"HTTP/1.1 200 ")
        connection.sendall(whole[:-2])
        assert answer_of(rest(connection))[0] == 408, "a later request of a connection"
    with connected(url) as connection:
        closed = threading.Event()
        reader = threading.Thread(target=lambda: (rest(connection), closed.set()))
        reader.start()
        for byte in whole[:-2] * 20:
            if closed.wait(0.05):
                break
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(bytes([byte]))
        assert closed.is_set(), "a byte now and then does not prolong it"
        reader.join(SECONDS)


def test_headers_that_are_too_large(process, tmp_path):
    path = tmp_path / "serve.py"
    path.write_text(SLOW.replace("MODEL", repr(ENGLISH_MODEL)).replace("1.5", "30"))
    head = HEAD.format("GET /health", "").encode()[:-2]
    with connected(process(str(path)).url()) as connection:
        # All bytes have arrived when the server closes.
        connection.sendall(head.ljust(MAX_HEADER_BYTES + 1, b"x"))
        status, head, body = answer_of(rest(connection))
    assert (status, body["error"]["code"]) == (431, "headers_too_large")


@pytest.mark.parametrize(
    ("begun", "status"),
    [(b"GET / HTTP/1.1\r\nx: ".ljust(MAX_HEADER_BYTES + 1, b"x"), 431), (b"no request\r\n\r\n", 400)],
)
def test_a_client_that_still_sends_hears_why_it_is_refused(server, begun, status):
    """A connection that is closed while bytes arrive is reset, and the client loses the answer."""
    with connected(server.url) as connection:
        connection.sendall(begun)
        assert select.select([connection], [], [], SECONDS)[0], "the answer"
        for _ in range(64):
            connection.sendall(b"x" * 65536)
        connection.shutdown(socket.SHUT_WR)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
    assert answer_of(received)[0] == status


def test_a_refused_client_that_never_stops_is_left(server, monkeypatch):
    monkeypatch.setattr(protocol, "_LINGER_SECONDS", 0.2)
    with connected(server.url) as connection:
        connection.sendall(b"no request\r\n\r\n")
        assert answer_of(rest(connection))[0] == 400
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while True:
                connection.sendall(b"x" * 65536)


class Transport(asyncio.Transport):
    """Keeps what is written."""

    written, closed = b"", False

    def write(self, data):
        self.written += data

    def is_closing(self):
        return self.closed

    def close(self):
        self.closed = True

    def can_write_eof(self):
        return False

    def get_extra_info(self, name, default=None):
        return default

    def pause_reading(self):
        pass

    def resume_reading(self):
        pass


async def received(app, *reads):
    """What a connection on which these reads arrive has written, and whether it is closed."""
    config = uvicorn.Config(app, log_config=None, lifespan="off")
    config.load()
    transport, state = Transport(), uvicorn.server.ServerState()
    bounded = BoundedHeaders(config, state, {}, header_timeout=SECONDS)
    bounded.connection_made(transport)
    for data in reads:
        if not transport.closed:
            bounded.data_received(data)
        await asyncio.sleep(0)
    found = transport.written, transport.closed
    for task in state.tasks.copy():
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    bounded.connection_lost(None)
    return found


def test_the_limit_of_headers_holds_in_one_read():
    """A read holds up to 256 KiB: headers of any size, and a body that does not count."""

    async def app(scope, receive, send):
        pass

    def head(size, length=0):
        start = f"POST /health HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\nx: ".encode()
        return start + b"a" * (size - len(start) - 4) + b"\r\n\r\n"

    body = b"a\n\nb" * 50_000
    for reads, refused in (
        ((head(MAX_HEADER_BYTES),), False),
        ((head(MAX_HEADER_BYTES + 1),), True),
        ((head(70_000),), True),
        ((head(70_000)[:30_000], head(70_000)[30_000:]), True),
        ((head(1000, len(body)) + body,), False),
        ((head(65_000, len(body))[:-1], b"\n" + body), False),
    ):
        assert asyncio.run(received(app, *reads))[0].startswith(b"HTTP/1.1 431") is refused


def test_headers_during_a_request_have_a_limit():
    """Those of the next request, while the answer to this one is awaited, and those after a body."""

    async def app(scope, receive, send):
        with contextlib.suppress(ClientDisconnect):
            async for _ in Request(scope, receive).stream():
                pass
            await asyncio.Event().wait()

    def begun(*headers):
        return "\r\n".join(["POST /health HTTP/1.1", "host: localhost", *headers, "", ""]).encode()

    line = b"x: " + b"a" * 997 + b"\r\n"
    chunked = begun("transfer-encoding: chunked")
    body = [b"3e8\r\n" + b"b" * 1000 + b"\r\n"] * 200
    for reads, status in (
        # A body of any size.
        ((chunked, *body), None),
        ((begun("content-length: 200000"), *[b"b" * 1000] * 200), None),
        # Headers after it.
        ((chunked, *body, b"0\r\n", *[line] * 60), None),
        ((chunked, *body, b"0\r\n", *[line] * 70), b"431"),
        # Headers of the next request.
        ((begun("content-length: 0"), begun()[:-2], *[line] * 60), None),
        ((begun("content-length: 0"), begun()[:-2], *[line] * 70), b""),
        ((begun("content-length: 0"), begun()[:-2] + b"x: ", *[b"a" * 1000] * 70), b""),
    ):
        written, closed = asyncio.run(received(app, *reads))
        assert closed is (status is not None)
        assert written[9:12] == (status or b"")


# --- Paths and methods -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/v1/models", "/health", "/ready", "/metrics", "/api/ps", "/v1/models/tiny", "/api/status"]
)
def test_a_slash_at_the_end(server, path):
    for method in ("GET", "HEAD"):
        plain, with_slash = server.client.request(method, path), server.client.request(method, f"{path}/")
        assert plain.status_code == with_slash.status_code == 200
        assert plain.headers["content-type"] == with_slash.headers["content-type"]
        assert bool(with_slash.content) == (method == "GET")


def test_a_slash_at_the_end_of_what_is_posted(server):
    for path in ("/v1/embeddings", "/embeddings"):
        answers = [server.client.post(where, json={"input": "a text"}) for where in (path, f"{path}/")]
        assert answers[0].json() == answers[1].json()
    for path in (
        "/v1/chat/completions/",
        "/v1/completions/",
        "/v1/responses/",
        "/api/load/",
        "/api/unload/",
        "/api/warmup/",
    ):
        answer = server.client.post(path, json={"model": 5, "models": 5})
        assert answer.status_code == 400, path
    assert "/v1/embeddings/" not in server.client.get("/openapi.json").json()["paths"]


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE", "TRACE", "POST"])
@pytest.mark.parametrize("path", ["/v1/embeddings", "/health", "/docs", "/nothing", "/v1/models/tiny"])
def test_every_method(server, method, path):
    response = server.client.request(method, path)
    assert response.status_code in {200, 400, 404, 405}
    if method == "HEAD":
        assert response.content == b""
    elif response.status_code != 200:
        assert list(response.json()) == ["error"]
    if response.status_code == 405:
        assert response.headers["allow"] in {"POST", "GET, HEAD"}
        assert method not in response.headers["allow"]


def test_inside_another_application_errors_have_the_same_form(make_manager):
    host = FastAPI()
    host.include_router(router(ServerConfig(models=MODELS), make_manager()), prefix="/ai")
    with running(host) as server:
        for method, path, status in (("GET", "/ai/v1/embeddings", 405), ("POST", "/ai/health", 405)):
            response = server.client.request(method, path)
            assert response.status_code == status
            assert response.json()["error"]["code"] == "method_not_allowed"
        assert server.client.post("/ai/v1/embeddings/", json={"input": "a"}).status_code == 200


def answers(connection, count):
    """The status and the body of this many answers with a length."""
    received, found = b"", []
    while len(found) < count:
        head, end, rest_ = received.partition(b"\r\n\r\n")
        length = 0
        if end:
            lines = head.lower().split(b"\r\n")
            length = next(int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:"))
        if not end or len(rest_) < length:
            chunk = connection.recv(65536)
            assert chunk, (found, received)
            received += chunk
            continue
        found.append((int(head.split()[1]), rest_[:length]))
        received = rest_[length:]
    return found, received


TEXT_BODY = json.dumps({"input": "a text", "model": "english_sentence"}).encode()
UPGRADE = "connection: upgrade, http2-settings\r\nhttp2-settings: AAEAAEAAAAIAAAAA\r\nupgrade: h2c\r\n"
CHUNKED = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (TEXT_BODY[:7], TEXT_BODY[7:])) + b"0\r\n\r\n"


@pytest.mark.parametrize("pieces", ["whole", "headers first", "single bytes"])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_client_that_offers_http_2_goes_on_with_http_1(serve, pieces, chunked):
    """Java's HTTP client and `curl --http2` send this."""
    server = serve()
    framing = "transfer-encoding: chunked\r\n" if chunked else f"content-length: {len(TEXT_BODY)}\r\n"
    body = CHUNKED if chunked else TEXT_BODY
    plain = HEAD.format("POST /v1/embeddings", "content-type: application/json\r\n" + framing).encode()
    offer = HEAD.format("POST /v1/embeddings", UPGRADE + "content-type: application/json\r\n" + framing).encode()
    with connected(server.url) as connection:
        connection.sendall(plain + body)
        [(status, expected)], _ = answers(connection, 1)
        assert status == 200
        for _ in range(2):
            match pieces:
                case "whole":
                    connection.sendall(offer + body)
                case "headers first":
                    connection.sendall(offer)
                    until(lambda: server.service.in_flight == 1)
                    connection.sendall(body)
                case _:
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    for byte in offer + body:
                        connection.sendall(bytes([byte]))
            assert answers(connection, 1) == ([(200, expected)], b"")
        # Several requests in one piece.
        connection.sendall(offer + body + plain + body + offer + body)
        assert answers(connection, 3) == ([(200, expected)] * 3, b"")


def test_an_older_httptools_has_no_leniencies(serve, monkeypatch):
    """As uvicorn, which works with it."""

    class Parser(httptools.HttpRequestParser):
        @property
        def set_dangerous_leniencies(self):
            raise AttributeError

    monkeypatch.setattr(httptools, "HttpRequestParser", Parser)
    server = serve()
    framing = f"content-type: application/json\r\ncontent-length: {len(TEXT_BODY)}\r\n"
    with connected(server.url) as connection:
        connection.sendall(HEAD.format("POST /v1/embeddings", UPGRADE + framing).encode() + TEXT_BODY)
        assert answers(connection, 1)[0][0][0] == 200


@pytest.mark.parametrize("protocol", ["h2c", "websocket", "x"])
@pytest.mark.parametrize("later", [False, True])
def test_a_body_is_no_request(serve, protocol, later):
    """Behind a proxy that shares connections, the second answer would be that of another client."""
    server = serve()
    inner = HEAD.format("GET /v1/models", "").encode()
    head = f"connection: upgrade\r\nupgrade: {protocol}\r\ncontent-length: {len(inner)}\r\n"
    outer = HEAD.format("GET /health", head).encode()
    last = HEAD.format("GET /nothing", "connection: close\r\n").encode()
    with connected(server.url) as connection:
        if later:
            connection.sendall(outer)
            assert answers(connection, 1)[0][0][0] == 200
            # It may have been closed: the answer did not wait for the body.
            connection.sendall(inner + last)
            assert b" 200 OK" not in rest(connection)
        else:
            connection.sendall(outer + inner + last)
            found, after = answers(connection, 2)
            assert [status for status, _ in found] == [200, 404]
            assert after + rest(connection) == b""


def test_an_upgrade_without_a_body_is_a_request_as_any_other(serve):
    server = serve()
    upgrade = HEAD.format("GET /v1/models", "connection: upgrade\r\nupgrade: websocket\r\n").encode()
    with connected(server.url) as connection:
        connection.sendall(upgrade + upgrade)
        found, after = answers(connection, 2)
    assert [status for status, _ in found] == [200, 200]
    assert found[0] == found[1]
    assert after == b""


@pytest.mark.parametrize(
    "sent",
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        HEAD.format("POST /v1/embeddings", "content-length: 2\r\ncontent-length: 3\r\n").encode(),
        HEAD.format("POST /v1/embeddings", "transfer-encoding: chunked\r\n").encode() + b"zz\r\n",
    ],
    ids=["HTTP/2", "TLS", "two lengths", "chunk"],
)
def test_bytes_that_are_no_request_get_an_error_of_the_same_form(serve, sent):
    with connected(serve().url) as connection:
        connection.sendall(sent)
        status, head, body = answer_of(rest(connection))
    assert status == 400
    assert body["error"]["type"] == "invalid_request_error"
    assert body["error"]["code"] == "invalid_http"
    assert b"content-type: application/json" in head
    assert b"connection: close" in head


def test_a_damaged_body_after_an_upgrade_is_refused(serve):
    server = serve()
    framing = UPGRADE + "transfer-encoding: chunked\r\ncontent-type: application/json\r\n"
    with connected(server.url) as connection:
        connection.sendall(HEAD.format("POST /v1/embeddings", framing).encode() + b"zz\r\n")
        received = rest(connection)
    status, head, body = answer_of(received)
    assert (status, body["error"]["code"]) == (400, "invalid_http")
    assert b"connection: close" in head
