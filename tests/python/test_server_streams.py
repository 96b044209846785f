"""Streamed answers over HTTP, and clients that disconnect before their answer is complete."""

from __future__ import annotations

import json
import signal
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
from generation_servers import ASK, TEXT, events, leave
from generators import SLOT, WITHOUT_END, eventually, figures
from model_manager.errors import NotFiniteError
from model_manager.server.routes.generation import answers
from model_manager.server.routes.ollama import generate
from servers import SECONDS, until


def test_the_bytes_of_a_stream(gpt2_server):
    answer = gpt2_server.client.post("/v1/chat/completions", json={**ASK, "stream": True})
    *chunks, end = events(answer)
    assert end == b"[DONE]"
    first, *_, last = map(json.loads, chunks)
    assert first["choices"] == [
        {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    ]
    assert last["choices"][0]["delta"] == {}
    assert last["choices"][0]["finish_reason"] in {"stop", "length"}
    assert all("usage" not in json.loads(chunk) for chunk in chunks)
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("text", ["Çığ, göl, şiş: İıĞğÜüÖö", "👩‍👩‍👧‍👦 🇹🇷 👍🏽 e\u0301", "日本語"])
def test_no_character_is_split(make_writer, serve, text):
    """The tiny models write the bytes of a character as several tokens; every chunk is still whole text."""
    server = serve(make_writer("qwen3"))
    body = {"prompt": text, "temperature": 1.8, "top_k": 0, "max_tokens": 40}
    beyond_ascii = set()
    for seed in range(8):
        whole = server.client.post("/v1/completions", json={**body, "seed": seed}).json()["choices"][0]["text"]
        *chunks, _ = events(server.client.post("/v1/completions", json={**body, "seed": seed, "stream": True}))
        # The half of a character would be a replacement character that the whole does not have.
        assert "".join(json.loads(chunk)["choices"][0]["text"] for chunk in chunks) == whole
        beyond_ascii.update(character for character in whole if "\x7f" < character != "\ufffd")
    assert beyond_ascii


def test_pieces_come_while_the_answer_is_written(endless_server):
    body = {"prompt": TEXT, "max_tokens": 50_000, "min_tokens": 50_000, "stream": True}
    with endless_server.client.stream("POST", "/v1/completions", json=body) as answer:
        next(answer.iter_lines())
        assert figures(endless_server.manager)["completed"] == 0


def test_an_error_in_the_middle_of_a_stream(gpt2_server, monkeypatch):
    """The stream has an error event, which the SDK raises."""

    class Failing(answers.AsyncTextStream):
        async def __anext__(self):
            if self.given:
                raise NotFiniteError("NaN in the middle")
            self.given = True
            return "a piece"

        given = False

    monkeypatch.setattr(answers, "AsyncTextStream", Failing)
    *_, piece, last = events(gpt2_server.client.post("/v1/chat/completions", json={**ASK, "stream": True}))
    assert b"a piece" in piece
    assert json.loads(last)["error"]["type"] == "server_error"
    with openai.OpenAI(base_url=f"{gpt2_server.url}/v1", api_key="any", max_retries=0) as client:
        stream = client.chat.completions.create(model=SLOT, stream=True, **ASK)
        with pytest.raises(openai.APIError):
            list(stream)


ENDLESS = {
    "/v1/completions": {"prompt": TEXT, "max_tokens": 50_000, "min_tokens": 50_000, "stream": True},
    "/v1/responses": {"input": TEXT, "max_output_tokens": 50_000, "min_tokens": 50_000, "stream": True},
    # The most probable tokens never end it.
    "/api/generate": {
        "model": SLOT,
        "prompt": TEXT,
        "raw": True,
        "options": {"num_predict": 50_000, "temperature": 0},
    },
}


@pytest.mark.parametrize("path", ENDLESS)
def test_a_stream_that_ends_with_an_error_is_a_failure(endless_server, path):
    service = endless_server.service
    with endless_server.client.stream("POST", path, json=ENDLESS[path]) as answer:
        assert answer.status_code == 200
        lines = answer.iter_lines()
        next(lines)
        loop = next(iter(service._tasks)).get_loop()
        loop.call_soon_threadsafe(service.end_requests)
        *_, last = filter(None, lines)
    assert "shutting down" in last
    until(lambda: service.in_flight == 0)
    assert service.metrics.failures == 1
    metrics = endless_server.client.get("/metrics").text
    assert f'http_requests_total{{method="POST",path="{path}",status="503"}} 1.0' in metrics


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/responses", "/api/generate"])
def test_lines_end_only_with_their_event(gpt2_server, monkeypatch, path):
    """Clients split lines at all characters at which `str.splitlines` does; Ollama's and Hugging Face's do."""
    ends = "\v\f\x1c\x1d\x1e\x85\u2028\u2029"

    class Separated(answers.AsyncTextStream):
        async def __anext__(self):
            return await super().__anext__() + ends + "\u2027…Â\xa0"

    monkeypatch.setattr(answers, "AsyncTextStream", Separated)
    monkeypatch.setattr(generate, "AsyncTextStream", Separated)
    body = {"model": SLOT, "prompt": TEXT, "options": {"num_predict": 3}} if path == "/api/generate" else {**ASK}
    if path == "/v1/completions":
        body = {"prompt": TEXT, "max_tokens": 3}
    elif path == "/v1/responses":
        body = {"input": TEXT, "max_output_tokens": 3}
    with gpt2_server.client.stream("POST", path, json={**body, "stream": True}) as answer:
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line and not line.startswith("event:")]
    sent = json.dumps([json.loads(line) for line in lines if line != "[DONE]"], ensure_ascii=False)
    assert json.dumps(ends + "\u2027…Â\xa0", ensure_ascii=False)[1:-1] in sent


# --- Clients that leave ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_answer(endless_server, stream):
    manager = endless_server.manager
    body = {"prompt": TEXT, "max_tokens": 50_000, "min_tokens": 50_000, "stream": stream}
    after = (
        (lambda connection: connection.recv(1))
        if stream
        else (lambda _: eventually(lambda: figures(manager)["active"] == 1))
    )
    leave(endless_server, "/v1/completions", body, after)
    eventually(lambda: figures(manager)["cancelled"] == 1)
    assert figures(manager)["generated_tokens"] < 50_000
    eventually(lambda: endless_server.service.in_flight == 0)
    metrics = endless_server.client.get("/metrics").text
    assert 'http_requests_total{method="POST",path="/v1/completions",status="499"} 1.0' in metrics
    assert endless_server.client.post("/v1/completions", json={"prompt": TEXT, "max_tokens": 2}).status_code == 200


def test_a_client_that_leaves_the_queue(endless_server):
    """Its answer never begins."""
    manager = endless_server.manager
    busy = [manager.stream(TEXT, **WITHOUT_END) for _ in range(16)]
    eventually(lambda: figures(manager)["active"] == 16)
    leave(
        endless_server,
        "/v1/completions",
        {"prompt": TEXT, "stream": True},
        lambda _: eventually(lambda: figures(manager)["waiting"] == 1),
    )
    eventually(lambda: figures(manager)["waiting"] == 0 and figures(manager)["cancelled"] == 1)
    for stream in busy:
        stream.cancel()


SERVE = """
from model_manager import ModelManager
from model_manager.server import ServerConfig
from model_manager.server.main import run
run(ServerConfig(port=0, drain_timeout=SECONDS), ModelManager(generator_model=MODEL, generator_dtype="float32"))
"""


def test_a_stream_under_way_is_finished_before_the_server_ends(process, endless_model):
    server = process("-c", SERVE.replace("MODEL", repr(str(endless_model))).replace("SECONDS", "30"))
    body = {"prompt": TEXT, "max_tokens": 4000, "min_tokens": 4000, "stream": True}
    with httpx.stream("POST", f"{server.url()}/v1/completions", json=body, timeout=SECONDS) as answer:
        lines = answer.iter_lines()
        next(lines)
        server.popen.terminate()
        *_, end, last = filter(None, lines)
    assert json.loads(end.removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
    assert last == "data: [DONE]"
    server.wait()
    assert "Traceback" not in server.text()


def test_answers_that_the_drain_timeout_ends_say_so(process, endless_model):
    server = process("-c", SERVE.replace("MODEL", repr(str(endless_model))).replace("SECONDS", "0.3"))
    path, body = "/v1/completions", {"prompt": TEXT, "max_tokens": 10_000_000, "min_tokens": 10_000_000}
    with (
        httpx.Client(base_url=server.url(), timeout=SECONDS) as client,
        ThreadPoolExecutor(1) as pool,
        client.stream("POST", path, json={**body, "stream": True}) as answer,
    ):
        lines = answer.iter_lines()
        next(lines)
        whole = pool.submit(client.post, path, json={**body, "stream": False})
        # A request that arrives after the signal has another answer.
        until(lambda: client.get("/api/status").json()["requests"]["in_flight"] == 2)
        server.popen.terminate()
        *_, last = filter(None, lines)
        refused = whole.result(SECONDS)
    for error in (json.loads(last.removeprefix("data: "))["error"], refused.json()["error"]):
        assert "drain_timeout" in error["message"]
        assert (error["type"], error["code"]) == ("service_unavailable", "shutting_down")
    assert refused.status_code == 503
    server.wait()
    assert "Traceback" not in server.text()


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_all_its_answers(endless_server, stream):
    manager = endless_server.manager
    body = {"prompt": [TEXT, "Bir"], "n": 2, "max_tokens": 50_000, "min_tokens": 50_000, "stream": stream}
    after = (
        (lambda connection: connection.recv(1))
        if stream
        else (lambda _: eventually(lambda: figures(manager)["active"] == 4))
    )
    leave(endless_server, "/v1/completions", body, after)
    eventually(lambda: figures(manager)["cancelled"] == 4)
    eventually(lambda: endless_server.service.in_flight == 0)


def test_a_worker_that_is_replaced_ends_its_streams_in_the_same_way(process, endless_model):
    server = process(
        *("-m", "model_manager", "serve", "--port=0", "--workers=2"),
        HUGGINGFACE_MODEL=str(endless_model),
        MODEL_MANAGER_SERVER_DRAIN_TIMEOUT="4",
    )
    body = {"prompt": TEXT, "max_tokens": 10_000_000, "min_tokens": 10_000_000, "stream": True}
    with httpx.stream("POST", f"{server.url(workers=2)}/v1/completions", json=body, timeout=SECONDS) as answer:
        lines = answer.iter_lines()
        next(lines)
        server.popen.send_signal(signal.SIGHUP)
        *_, last = filter(None, lines)
    error = json.loads(last.removeprefix("data: "))["error"]
    assert "drain_timeout" in error["message"]
    assert error["code"] == "shutting_down"
    until(lambda: server.text().count("Application startup complete") == 4)
    assert server.stop() == 0
    assert "Traceback" not in server.text()
