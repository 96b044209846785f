"""No large or slow request delays the others or exhausts the server's memory."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import threading
import zlib
from types import SimpleNamespace

import pytest
from conftest import FIXTURES
from generators import CONTEXT, SLOT, WITHOUT_END, eventually, figures
from model_manager import ModelManager, _async
from model_manager.errors import WaitTimeoutError
from model_manager.server import ServerConfig, bodies
from model_manager.server.service import _APART
from servers import SECONDS, until

JSON = {"content-type": "application/json"}
LONG = "kelime " * 50


@pytest.fixture
def long(monkeypatch):
    """`LONG` is long enough to be submitted by its own thread."""
    monkeypatch.setattr(_async, "_LONG", 200)


class Held:
    """A function that blocks until the test releases it; `entered` is set by its call."""

    def __init__(self, monkeypatch, owner, name):
        self.entered, self.released = threading.Event(), threading.Event()
        self.calls = []
        original = getattr(owner, name)

        def held(*args, **options):
            self.calls.append(args)
            self.entered.set()
            assert self.released.wait(SECONDS)
            return original(*args, **options)

        monkeypatch.setattr(owner, name, held)

    def while_waiting(self, request, look):
        """The answer to `request`, sent by another thread; `look` is called during its work."""
        answers = []
        thread = threading.Thread(target=lambda: answers.append(request()))
        thread.start()
        try:
            assert self.entered.wait(SECONDS)
            look()
        finally:
            self.released.set()
            thread.join(SECONDS)
        return answers[0]


def healthy(server):
    """A health check with a shorter timeout than the blocked work."""
    return lambda: server.client.get("/health", timeout=SECONDS / 3).raise_for_status()


# --- Long prompts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_long_prompt_is_prepared_off_the_loop(endless, serve, monkeypatch, long, path, stream):
    server = serve(endless)
    body = {"prompt": LONG} if path == "/v1/completions" else {"messages": [{"role": "user", "content": LONG}]}
    submitting = Held(monkeypatch, ModelManager, "submit_generation")
    ask = {**body, "max_tokens": 1, "stream": stream}
    answer = submitting.while_waiting(lambda: server.client.post(path, json=ask), healthy(server))
    assert answer.status_code == 200, answer.text


async def test_asyncio_is_not_held_up_by_a_long_prompt(endless, monkeypatch, long):
    loop_thread, threads = threading.get_ident(), []
    original = ModelManager.submit_generation

    def submit(*args, **options):
        threads.append(threading.get_ident())
        return original(*args, **options)

    monkeypatch.setattr(ModelManager, "submit_generation", submit)
    for prompt in ("kısa", LONG, [{"role": "user", "content": LONG}], [{"role": "user", "content": "a"}] * 200):
        await _async.acomplete(endless, prompt, SLOT, max_new_tokens=1)
    assert [thread == loop_thread for thread in threads] == [True, False, False, False]


async def test_long_prompts_take_turns(endless, monkeypatch, long):
    submitting = Held(monkeypatch, ModelManager, "submit_generation")
    prompts = [f"{LONG}{number}" for number in range(5)]
    answers = {prompt: asyncio.ensure_future(endless.agenerate(prompt, SLOT, max_new_tokens=1)) for prompt in prompts}
    await asyncio.to_thread(until, lambda: len(submitting.calls) == 2)
    begun = {prompt for _, prompt, *_ in submitting.calls}
    given_up = next(prompt for prompt in prompts if prompt not in begun)
    answers.pop(given_up).cancel()
    await asyncio.sleep(0.05)
    assert len(submitting.calls) == 2
    submitting.released.set()
    assert len(await asyncio.gather(*answers.values())) == 4
    eventually(lambda: all(thread.name != "mm-prompt" for thread in threading.enumerate()))
    assert given_up not in {prompt for _, prompt, *_ in submitting.calls}


async def test_a_long_prompt_waits_for_its_turn_within_its_timeout(endless, monkeypatch, long):
    submitting = Held(monkeypatch, ModelManager, "submit_generation")
    held = [asyncio.ensure_future(endless.agenerate(LONG, SLOT, max_new_tokens=1)) for _ in range(2)]
    await asyncio.to_thread(until, lambda: len(submitting.calls) == 2)
    with pytest.raises(WaitTimeoutError, match=r"other long prompts were read for 0.05 s; raise the timeout"):
        await asyncio.wait_for(endless.agenerate(LONG, SLOT, max_new_tokens=1, timeout=0.05), SECONDS)
    waiting = asyncio.ensure_future(endless.agenerate(LONG, SLOT, max_new_tokens=1, timeout=SECONDS))
    submitting.released.set()
    assert len(await asyncio.gather(*held, waiting)) == 3
    assert len(submitting.calls) == 3


@pytest.mark.parametrize("timeout", [-1, float("nan"), "soon", True])
async def test_a_wrong_timeout_of_a_long_prompt_is_refused_as_of_a_short_one(endless, long, timeout):
    refused = []
    for prompt in ("a", LONG):
        with pytest.raises((TypeError, ValueError)) as raised:
            await endless.agenerate(prompt, SLOT, timeout=timeout)
        refused.append((type(raised.value), str(raised.value)))
    assert refused[0] == refused[1]


async def test_a_long_prompt_that_is_wrong_raises_as_a_short_one(endless, long):
    with pytest.raises(TypeError, match="no_such"):
        await endless.agenerate(LONG, SLOT, no_such=1)
    with pytest.raises(ValueError, match="tokens but the model holds"):
        await endless.agenerate("kelime " * 50_000, SLOT)


async def test_a_long_prompt_that_is_cancelled_before_it_is_submitted(endless, monkeypatch, long):
    submitting = Held(monkeypatch, ModelManager, "submit_generation")
    stream = endless.astream(LONG, SLOT, **WITHOUT_END)
    assert submitting.entered.wait(SECONDS)
    await stream.aclose()
    submitting.released.set()
    eventually(lambda: figures(endless)["cancelled"] == 1 or figures(endless)["requests"] == 0)
    eventually(lambda: figures(endless)["active"] == figures(endless)["waiting"] == 0)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"prompt": "a" * 200_000}, "prompt"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a" * 200_000}]}, "messages"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}] * 5000}, "messages"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a" * 200_000}]}]},
            "messages",
        ),
        ("/v1/responses", {"input": "a" * 200_000}, "input"),
        ("/v1/responses", {"input": "a" * 100_000, "instructions": "a" * 100_000}, "input"),
        ("/v1/responses", {"input": [{"role": "user", "content": "a"}] * 5000}, "input"),
    ],
)
def test_what_cannot_fit_is_refused_before_any_work(make_writer, serve, monkeypatch, path, body, param):
    server = serve(make_writer())
    monkeypatch.setattr(ModelManager, "submit_generation", lambda *_, **__: pytest.fail("the prompt was worked on"))
    answer = server.client.post(path, json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (param, "context_length_exceeded")
    assert str(CONTEXT) in error["message"]
    several = isinstance(body.get(param), list) and len(body[param]) > 1
    assert ("5000" if several else "200000") in error["message"]


def test_the_largest_body_of_a_request_for_text(make_writer, serve):
    server = serve(make_writer(), max_prompt_bytes=1000)
    body = {"prompt": "a", "user": "x" * 1000}
    answer = server.client.post("/v1/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
    assert server.client.post("/v1/embeddings", json={"input": "a", "user": "x" * 1000}).status_code == 200


# --- Bodies ----------------------------------------------------------------------------------------------------------


def test_a_large_body_is_parsed_off_the_loop(serve, monkeypatch):
    server = serve()
    parsing = Held(monkeypatch, bodies, "parse")
    body = {"input": "a text", "user": "x" * 2 * bodies.LARGE}
    answer = parsing.while_waiting(lambda: server.client.post("/v1/embeddings", json=body), healthy(server))
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "method"),
    [
        ("/v1/embeddings", {"input": ["a", "b"], "instruction": "a " * bodies.LARGE}, "submit_response"),
        ("/api/embed", {"model": "tiny", "input": "a " * bodies.LARGE}, "submit_response"),
        ("/v1/rerank", {"query": "a " * bodies.LARGE, "documents": ["b", "c"]}, "_submit_inference"),
        ("/embed_sparse", {"inputs": ["a", "b" * 2 * bodies.LARGE]}, "_submit_inference"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_large_request_for_vectors_is_started_off_the_loop(serve, monkeypatch, path, body, method):
    server = serve()
    server.manager.register("reranker", str(FIXTURES / "rerank_bert"), kind="reranker")
    server.manager.register("sparse", str(FIXTURES / "splade_bert"), kind="sparse")
    expected = server.client.post(path, json=body)
    submitting = Held(monkeypatch, ModelManager, method)
    answer = submitting.while_waiting(lambda: server.client.post(path, json=body), healthy(server))
    assert (answer.status_code, expected.status_code) == (200, 200), answer.text
    assert numbers(answer.json()) == numbers(expected.json())


def numbers(answer):
    """The results of an answer, without its times. Those of sparse vectors are the answer."""
    if isinstance(answer, list):
        return answer
    (key,) = {"data", "results", "embeddings"} & answer.keys()
    return answer[key]


def test_a_large_request_that_is_late_is_taken_back(serve, monkeypatch):
    server = serve(request_timeout=0.3)
    assert server.embed(input="load the model").status_code == 200
    released, tickets = threading.Event(), []
    submit = ModelManager.submit_response

    def held(*args, **options):
        assert released.wait(SECONDS)
        tickets.append((submit(*args, **options), options["timeout"]))
        return tickets[0][0]

    monkeypatch.setattr(ModelManager, "submit_response", held)
    body = {"input": "a " * bodies.LARGE}
    answer = server.client.post("/v1/embeddings", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
    # The thread still counts: the next ones wait.
    assert server.service._apart._value == _APART - 1
    released.set()
    until(lambda: tickets and tickets[0][0].done)
    until(lambda: server.service._apart._value == _APART)
    assert 0 < tickets[0][1] <= 0.3
    assert server.service.waiting == 0


def test_values_are_counted_before_they_are_made(serve, monkeypatch):
    server = serve(max_body_values=50_000)
    monkeypatch.setattr(bodies, "parse", lambda _: pytest.fail("the values were made"))
    body = b'{"input": "a", "more": [' + b"{}," * 50_000 + b"{}]}"
    answer = server.client.post("/v1/embeddings", content=body, headers=JSON)
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "too_many_values"
    assert "50000" in answer.json()["error"]["message"]


def test_punctuation_in_texts_does_not_count(serve):
    server = serve(max_body_values=100)
    assert server.embed(input='a, b: [c] {d} " \\ ' * 10_000).status_code == 200


def test_all_bodies_together(serve, monkeypatch):
    """A single request is served; a concurrent one is refused."""
    server = serve(max_buffered_bytes=bodies.LARGE)
    body = {"input": "a text", "user": "x" * 2 * bodies.LARGE}
    parsing = Held(monkeypatch, bodies, "parse")

    def look():
        refused = server.embed(input="another text")
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "too_many_bytes"
        assert int(refused.headers["retry-after"]) >= 1

    assert parsing.while_waiting(lambda: server.client.post("/v1/embeddings", json=body), look).status_code == 200
    until(lambda: server.service.body_bytes == 0)
    assert server.embed(input="another text").status_code == 200


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/completions", "/api/load", "/nothing", "/health"])
@pytest.mark.parametrize("body", [b"{", b"[]", b'{"input": 5}', b"{}"])
def test_nothing_stays_charged(server, path, body):
    server.client.post(path, content=body, headers=JSON)
    until(lambda: server.service.body_bytes == 0)


# --- Compressed bodies -----------------------------------------------------------------------------------------------


def packed(body, **headers):
    return {"content": body, "headers": {**JSON, "content-encoding": "gzip", **headers}}


def test_gzip(server):
    body = json.dumps({"input": "a text"}).encode()
    plain = server.embed(input="a text").json()["data"]
    halves = gzip.compress(body[:5]) + gzip.compress(body[5:])
    for content in (gzip.compress(body), halves):
        answer = server.client.post("/v1/embeddings", **packed(content))
        assert answer.status_code == 200
        assert answer.json()["data"] == plain


@pytest.mark.parametrize(
    "content",
    [b"", b"no gzip", gzip.compress(b"{}" * 100)[:-9], gzip.compress(b"{}")[:-8] + b"\0" * 8],
    ids=["empty", "other", "cut", "wrong sum"],
)
def test_damaged_gzip(server, content):
    answer = server.client.post("/v1/embeddings", **packed(content))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_gzip")


def test_gzip_of_many_members_takes_no_more_time_than_of_one(monkeypatch):
    """zlib copies what follows a member."""
    copied = 0

    class Counted:
        def __init__(self, bits):
            self.member = zlib.decompressobj(bits)
            self.decompress = self.member.decompress

        eof = property(lambda self: self.member.eof)

        @property
        def unused_data(self):
            nonlocal copied
            copied += len(self.member.unused_data)
            return self.member.unused_data

    monkeypatch.setattr(bodies, "zlib", SimpleNamespace(**{**vars(zlib), "decompressobj": Counted}))
    noise = random.Random(0).randbytes(10_000)
    members = [gzip.compress(part) for part in [b"", b"a", noise, b"a" * 100_000] * 1_000]
    content = b"".join(members)
    assert bodies.inflate(content, 1 << 30) == (b"a" + noise + b"a" * 100_000) * 1_000
    assert copied < len(content)


def test_gzip_of_too_many_members(server):
    answer = server.client.post("/v1/embeddings", **packed(gzip.compress(b"") * 10_001))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_gzip")
    assert "10000 members" in answer.json()["error"]["message"]


def test_a_small_body_that_becomes_a_large_one(serve, monkeypatch):
    server = serve(max_body_bytes=100_000)
    monkeypatch.setattr(bodies, "parse", lambda _: pytest.fail("it is too large to be parsed"))
    for content in (gzip.compress(b" " * 100_001), gzip.compress(b" " * 60_000) * 2, gzip.compress(b" " * 50_000_000)):
        assert len(content) < 100_000
        answer = server.client.post("/v1/embeddings", **packed(content))
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


@pytest.mark.parametrize("encoding", ["br", "zstd", "deflate", "gzip, gzip"])
def test_other_encodings_are_named(server, encoding):
    answer = server.client.post("/v1/embeddings", **packed(b"{}", **{"content-encoding": encoding}))
    assert answer.status_code == 415
    assert answer.json()["error"]["code"] == "content_encoding"
    assert encoding in answer.json()["error"]["message"]
    assert answer.headers["accept-encoding"] == "gzip"


def test_a_large_body_waits_no_longer_than_request_timeout(serve, monkeypatch):
    server = serve(request_timeout=0.5)
    held = Held(monkeypatch, bodies, "_json_values")
    large = {"input": ["a text " * 20_000]}
    late = []

    def send():
        late.append(server.client.post("/v1/embeddings", json=large))

    threads = [threading.Thread(target=send) for _ in range(_APART + 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert len(held.calls) == _APART
    held.released.set()
    assert [(one.status_code, one.json()["error"]["code"]) for one in late] == [(504, "timeout")] * len(threads)
    until(lambda: server.client.post("/v1/embeddings", json=large).status_code == 200)


# --- Time ------------------------------------------------------------------------------------------------------------

REQUEST = {
    "/v1/completions": {"prompt": "a"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}]},
    "/v1/responses": {"input": "a"},
}


@pytest.mark.parametrize("path", REQUEST)
def test_request_timeout_bounds_an_answer(endless, serve, path):
    server = serve(endless, request_timeout=0.2)
    length = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    body = {**REQUEST[path], length: 50_000, "min_tokens": 50_000}
    answer = server.client.post(path, json=body)
    assert answer.status_code == 504
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("service_unavailable", "timeout")
    eventually(lambda: figures(endless)["active"] == 0)
    assert figures(endless)["generated_tokens"] < 50_000


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_request_timeout_bounds_a_stream(endless, serve, path):
    body = {**REQUEST[path], "max_tokens": 50_000, "min_tokens": 50_000, "stream": True}
    # A busy machine may need longer for the first piece, before which the status says what went wrong.
    for seconds in (0.3, 1, 3, 9):
        answer = serve(endless, request_timeout=seconds).client.post(path, json=body)
        if answer.status_code == 200:
            break
        assert answer.status_code == 504
    assert answer.status_code == 200
    *pieces, last, end = answer.text.split("\n\n")
    assert end == ""
    assert len(pieces) > 1
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"
    eventually(lambda: figures(endless)["active"] == 0)


def test_settings():
    config = ServerConfig()
    assert (config.max_prompt_bytes, config.max_body_values, config.max_buffered_bytes) == (
        16 << 20,
        2_000_000,
        512 << 20,
    )
