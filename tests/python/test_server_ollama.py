"""Ollama's API: vectors and text in its form, by hand."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import shutil

import numpy as np
import pytest
from conftest import DIMENSION, ENGLISH_MODEL, ENGLISH_TEXT, FIXTURES, TURKISH_TEXT
from generation_servers import TEXT, TURN, leave
from generators import CONTEXT, GREEDY, SLOT, eventually, figures
from model_manager import ModelManager
from model_manager.errors import NotFiniteError
from model_manager.server import ServedModel
from model_manager.server.routes import vectors
from model_manager.server.routes.ollama import fields, generate
from model_manager.server.routes.ollama.fields import is_zero, parameters, tagged
from servers import SECONDS, until

TEXTS = [ENGLISH_TEXT, TURKISH_TEXT]
FIGURES = [
    "total_duration",
    "load_duration",
    "prompt_eval_count",
    "prompt_eval_duration",
    "eval_count",
    "eval_duration",
]
QUICK = {"temperature": 0, "num_predict": 12}
CHAT = {"model": SLOT, "messages": TURN, "options": QUICK}
GENERATE = {"model": SLOT, "prompt": TEXT, "options": QUICK}


def post(server, path, **body):
    answer = server.client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def lines(answer):
    """The objects of a stream."""
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.content.endswith(b"\n")
    return [json.loads(line) for line in answer.content.splitlines()]


def refused(answer, status):
    """The message of an error in Ollama's form."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert list(answer.json()) == ["error"]
    assert isinstance(answer.json()["error"], str)
    return answer.json()["error"]


# --- Vectors -----------------------------------------------------------------------------------------------------


def test_vectors_are_those_of_the_other_protocol(server):
    answer = post(server, "/api/embed", model="tiny", input=TEXTS)
    assert list(answer) == ["model", "embeddings", "total_duration", "load_duration", "prompt_eval_count"]
    assert answer["model"] == "tiny"
    other = server.embed(model="tiny", input=TEXTS).json()
    found = np.array(answer["embeddings"], np.float32)
    np.testing.assert_array_equal(found, np.array([one["embedding"] for one in other["data"]], np.float32))
    assert answer["prompt_eval_count"] == other["usage"]["prompt_tokens"]
    assert 0 <= answer["load_duration"] <= answer["total_duration"] < SECONDS * 1e9
    alone = post(server, "/api/embed", model="tiny:latest", input=TEXTS[1])
    assert alone["model"] == "tiny:latest"
    np.testing.assert_array_equal(np.array(alone["embeddings"], np.float32), found[1:])


def test_one_text_for_each_request(server):
    """The older endpoint, as simple clients use it."""
    answer = post(server, "/api/embeddings", model="tiny", prompt=ENGLISH_TEXT)
    assert list(answer) == ["embedding"]
    expected = server.manager.embed(ENGLISH_TEXT, "tiny")
    np.testing.assert_array_equal(np.array(answer["embedding"], np.float32), expected)


@pytest.mark.parametrize("model", ["instructed", "prompted"])
def test_texts_are_embedded_as_they_are(server, model):
    """Ollama adds no instruction, and neither the default prompt of the model."""
    answer = post(server, "/api/embed", model=model, input=ENGLISH_TEXT)
    bare = server.manager.embed(ENGLISH_TEXT, model, prompt="")
    np.testing.assert_array_equal(np.array(answer["embeddings"][0], np.float32), bare)
    with_prompt = server.embed(model=model, input=ENGLISH_TEXT).json()["data"][0]["embedding"]
    assert np.abs(np.array(with_prompt) - bare).max() > 1e-4


def test_both_protocols_share_the_cache(serve):
    server = serve()
    server.embed(model="tiny", input=TEXTS)
    before = server.manager.cache_info()
    post(server, "/api/embed", model="tiny", input=TEXTS)
    post(server, "/api/embeddings", model="tiny", prompt=TEXTS[0])
    after = server.manager.cache_info()
    assert (after["hits"] - before["hits"], after["misses"] - before["misses"]) == (3, 0)


def test_fields_of_a_request_for_vectors(serve):
    server = serve()
    first = post(server, "/api/embed", model="tiny", input=ENGLISH_TEXT)
    assert first["load_duration"] > 0
    assert post(server, "/api/embed", model="tiny", input="another")["load_duration"] == 0
    short = post(server, "/api/embed", model="tiny", input=ENGLISH_TEXT, dimensions=8)["embeddings"][0]
    assert len(short) == 8
    assert np.linalg.norm(short) == pytest.approx(1, abs=1e-6)
    long = "word " * 100
    assert post(server, "/api/embed", model="tiny", input=long, truncate=True)["embeddings"]
    message = refused(
        server.client.post("/api/embed", json={"model": "tiny", "input": [ENGLISH_TEXT, long], "truncate": False}), 400
    )
    assert "1" in message
    # No option changes a vector; LangChain sends all of them, most of them null.
    options = {"mirostat": 2, "num_ctx": 2048, "temperature": 0.5, "stop": ["x"], "top_k": None}
    same = post(server, "/api/embed", model="tiny", input=ENGLISH_TEXT, options=options)
    assert same["embeddings"] == first["embeddings"]
    post(server, "/api/embed", model="tiny", input="a third", keep_alive=0)
    until(lambda: not server.manager.is_loaded("tiny"))
    assert server.service.metrics.inputs == 6


@pytest.mark.parametrize(
    ("path", "field", "empty"), [("/api/embed", "embeddings", "input"), ("/api/embeddings", "embedding", "prompt")]
)
def test_a_request_without_a_text_loads_the_model(serve, path, field, empty):
    server = serve()
    for body in ({}, {empty: ""}, {empty: None}):
        assert post(server, path, model="tiny", **body)[field] == []
        assert server.manager.is_loaded("tiny")
        assert post(server, path, model="tiny", keep_alive="0s", **body)[field] == []
        assert not server.manager.is_loaded("tiny")
    assert post(server, path, model="tiny", keep_alive="5m")[field] == []
    assert server.manager.is_loaded("tiny")
    assert "keep_alive" in refused(server.client.post(path, json={"model": "tiny", "keep_alive": "soon"}), 400)


async def test_many_texts_at_once(server):
    """Single texts of many clients share batches."""
    import httpx

    texts = [f"text {number}" for number in range(64)]
    async with httpx.AsyncClient(base_url=server.url, timeout=SECONDS) as client:
        answers = await asyncio.gather(
            *(client.post("/api/embeddings", json={"model": "tiny", "prompt": text}) for text in texts)
        )
    found = np.array([answer.json()["embedding"] for answer in answers], np.float32)
    np.testing.assert_array_equal(found, server.manager.embed(texts, "tiny"))


def test_a_large_answer_is_written_off_the_loop(server, monkeypatch):
    apart, original = [], server.service.apart

    async def noted(function, *args):
        apart.append(function)
        return await original(function, *args)

    monkeypatch.setattr(vectors, "_LARGE", 1000)
    monkeypatch.setattr(server.service, "apart", noted)
    texts = [f"text {number}" for number in range(50)]
    answer = post(server, "/api/embed", model="tiny", input=texts)
    assert apart == [vectors._rows]
    np.testing.assert_array_equal(np.array(answer["embeddings"], np.float32), server.manager.embed(texts, "tiny"))


def test_the_name_of_a_model_may_look_like_a_vector(serve):
    name = 'odd "embedding":[9]'
    server = serve(models=[ServedModel(name, source=ENGLISH_MODEL)])
    answer = post(server, "/api/embed", model=name, input=TEXTS)
    assert answer["model"] == name
    assert np.array(answer["embeddings"]).shape == (2, DIMENSION)


def test_the_packages_own_client(server, make_manager):
    """A manager whose model is at this server."""
    manager = make_manager()
    manager.register("remote", f"ollama://{server.url.removeprefix('http://')}/tiny")
    np.testing.assert_allclose(manager.embed(TEXTS, "remote"), server.manager.embed(TEXTS, "tiny"), atol=1e-6)


# --- Text --------------------------------------------------------------------------------------------------------


def test_a_chat(gpt2_server):
    known = gpt2_server.manager.complete(TURN, **GREEDY, max_new_tokens=12)
    answer = post(gpt2_server, "/api/chat", **CHAT, stream=False)
    assert list(answer) == ["model", "created_at", "message", "done", "done_reason", *FIGURES]
    assert answer["message"] == {"role": "assistant", "content": known["text"]}
    assert (answer["model"], answer["done"], answer["done_reason"]) == (SLOT, True, known["finish_reason"])
    assert (answer["prompt_eval_count"], answer["eval_count"]) == (known["prompt_tokens"], 12)
    assert dt.datetime.fromisoformat(answer["created_at"].replace("Z", "+00:00")).tzinfo is not None
    durations = [answer[name] for name in FIGURES if name.endswith("_duration")]
    assert all(isinstance(one, int) and 0 <= one <= answer["total_duration"] for one in durations)


@pytest.mark.parametrize(("path", "body"), [("/api/chat", CHAT), ("/api/generate", GENERATE)])
@pytest.mark.parametrize("stream", [{}, {"stream": True}, {"stream": None}])
def test_the_lines_of_a_stream(gpt2_server, path, body, stream):
    """Streams are the default."""
    *pieces, last = lines(gpt2_server.client.post(path, json={**body, **stream}))
    whole = post(gpt2_server, path, **body, stream=False)

    def content(one):
        return one["response"] if path == "/api/generate" else one["message"]["content"]

    key = "response" if path == "/api/generate" else "message"
    assert len(pieces) > 5
    assert all(list(piece) == ["model", "created_at", key, "done"] and piece["done"] is False for piece in pieces)
    assert "".join(map(content, pieces)) == content(whole)
    assert content(last) == ""
    assert list(last) == ["model", "created_at", key, "done", "done_reason", *FIGURES]
    assert (last["done"], last["done_reason"]) == (True, whole["done_reason"])
    for name in ("prompt_eval_count", "eval_count"):
        assert last[name] == whole[name]


def test_a_prompt_goes_through_the_chat_template_unless_raw(gpt2_server):
    manager = gpt2_server.manager
    options = {**GREEDY, "max_new_tokens": 12}
    answer = post(gpt2_server, "/api/generate", **GENERATE, stream=False)
    assert answer["response"] == manager.complete(TURN, **options)["text"]
    with_system = post(gpt2_server, "/api/generate", **GENERATE, stream=False, system="Kısa yaz.")
    turns = [{"role": "system", "content": "Kısa yaz."}, *TURN]
    known = manager.complete(turns, **options)
    assert (with_system["response"], with_system["prompt_eval_count"]) == (known["text"], known["prompt_tokens"])
    raw = post(gpt2_server, "/api/generate", **GENERATE, stream=False, raw=True)
    known = manager.complete(TEXT, **options)
    assert (raw["response"], raw["prompt_eval_count"]) == (known["text"], known["prompt_tokens"])


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_model_without_a_chat_template(make_writer, serve, tmp_path, name):
    """Its prompt is continued. GPT-2 has turns that end with the end of a text, which are not for one prompt."""
    folder = shutil.copytree(FIXTURES / name, tmp_path / name)
    config = folder / "tokenizer_config.json"
    settings = json.loads(config.read_text())
    del settings["chat_template"]
    config.write_text(json.dumps(settings))
    server = serve(make_writer(generator_model=str(folder)))
    answer = post(server, "/api/generate", **GENERATE, stream=False)
    assert answer["response"] == server.manager.complete(TEXT, **GREEDY, max_new_tokens=12)["text"]
    answer = server.client.post("/api/generate", json={**GENERATE, "system": "Kısa yaz."})
    assert "system" in refused(answer, 400)
    chat = server.client.post("/api/chat", json={**CHAT, "stream": False})
    if name == "llama":
        assert "template" in refused(chat, 400)
    else:
        assert chat.json()["done"]


@pytest.mark.parametrize(("path", "name", "empty"), [("/api/chat", "messages", []), ("/api/generate", "prompt", "")])
def test_a_request_without_a_prompt_loads_the_model(make_writer, serve, path, name, empty):
    server = serve(make_writer())
    for body in ({}, {name: empty}, {name: None}):
        answer = post(server, path, model=SLOT, **body)
        assert (answer["done"], answer["done_reason"], server.manager.is_loaded(SLOT)) == (True, "load", True)
        answer = post(server, path, model=SLOT, keep_alive=0, **body)
        assert (answer["done"], answer["done_reason"], server.manager.is_loaded(SLOT)) == (True, "unload", False)
    assert "soon" in refused(server.client.post(path, json={"model": SLOT, "keep_alive": "soon"}), 400)


def test_keep_alive_of_a_load(make_writer, serve):
    """It decides how long the model stays, as that of any other use."""
    server = serve(make_writer(auto_cleanup=True))
    assert post(server, "/api/generate", model=SLOT, keep_alive="50ms")["done_reason"] == "load"
    until(lambda: not server.manager.is_loaded(SLOT))


def test_options_become_the_cores_parameters():
    options = {
        "temperature": 0.5,
        "top_p": 0,
        "top_k": 40.0,
        "min_p": 0.1,
        "repeat_penalty": 1.1,
        "seed": 7,
        "num_predict": 5,
        "stop": ["a", ""],
        "num_ctx": 4096,
        "mirostat": 0,
        "presence_penalty": 0.0,
        "tfs_z": 1,
        "num_gpu": None,
    }
    assert parameters({"options": options, "keep_alive": "5m"}) == {
        "temperature": 0.5,
        "top_p": 0,
        "top_k": 40,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "seed": 7,
        "max_new_tokens": 5,
        "stop": ["a"],
        "keep_alive": "5m",
    }
    assert parameters({}) == parameters({"options": None}) == parameters({"options": {"seed": -1}}) == {}
    for rest in (-1, -2):
        assert parameters({"options": {"num_predict": rest}})["max_new_tokens"] > 10**9
    assert parameters({"options": {"repeat_penalty": 1.5, "repeat_last_n": 0}}) == {"repetition_penalty": 1.0}
    assert parameters({"options": {"repeat_penalty": 1.5, "repeat_last_n": -1}}) == {"repetition_penalty": 1.5}
    assert parameters({"options": {"repeat_penalty": 1, "repeat_last_n": 64}}) == {"repetition_penalty": 1}


def test_the_rest_of_the_context(gpt2_server):
    body = {**GENERATE, "raw": True, "stream": False, "options": {"num_predict": -1, "temperature": 0}}
    answer = post(gpt2_server, "/api/generate", **body)
    assert answer["done_reason"] == "stop" or answer["prompt_eval_count"] + answer["eval_count"] == CONTEXT


def test_a_seed_repeats_an_answer(gpt2_server):
    body = {**GENERATE, "stream": False, "options": {"seed": 3, "temperature": 1.5, "num_predict": 12}}
    first, second = (post(gpt2_server, "/api/generate", **body)["response"] for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("value", "zero"),
    [
        *((value, True) for value in (0, 0.0, "0", "0s", "-0m", "0h0m", "0.0s", " 0 ", "0.", ".0us", "0ms0ns")),
        *((value, False) for value in (5, -1, "5m", "", "0x", None, False, "00:00", ".", "s", "0s0", "0s5m")),
        # A long one is not looked at: the event loop would wait.
        *((value, len(value) <= 100) for value in ("0s" * 50, "0s" * 51, "0" * 100_000)),
    ],
)
def test_values_of_keep_alive_that_unload(value, zero):
    """As the core reads them."""
    assert is_zero(value) is zero


@pytest.mark.parametrize(
    ("name", "listed"),
    [("tiny", "tiny:latest"), ("a/b", "a/b:latest"), ("a/b:1b", "a/b:1b"), ("host:80/b", "host:80/b:latest")],
)
def test_names_have_a_tag(name, listed):
    assert tagged(name) == listed


def test_prefixes_are_reused_for_one_key_only(make_writer, serve):
    server = serve(make_writer("llama"), api_keys=["first", "second"])
    body = {**GENERATE, "raw": True, "stream": False, "prompt": "Bir uzun cümle burada yazılı ve sürüyor"}

    def reused(key):
        before = figures(server.manager)["reused_tokens"] if server.manager.is_loaded(SLOT) else 0
        answer = server.client.post("/api/generate", json=body, headers={"authorization": f"Bearer {key}"})
        assert answer.status_code == 200
        return figures(server.manager)["reused_tokens"] - before

    assert reused("first") == 0
    assert reused("first") > 0
    assert reused("second") == 0


def test_a_cached_text_needs_no_load(serve):
    server = serve()
    assert post(server, "/api/embed", model="tiny", input=ENGLISH_TEXT)["load_duration"] > 0
    server.manager.unload("tiny")
    again = post(server, "/api/embed", model="tiny", input=ENGLISH_TEXT)
    assert again["load_duration"] == 0 < again["total_duration"]
    assert not server.manager.is_loaded("tiny")


def test_durations_of_an_answer_that_loads_the_model(serve, make_writer):
    server = serve(make_writer())
    body = {**CHAT, "stream": False, "options": {"temperature": 0, "num_predict": 1}}
    for more in ({}, {"think": False}, {"messages": [*TURN, {"role": "assistant", "content": "", "thinking": ""}]}):
        server.manager.unload(SLOT)
        first, second = (post(server, "/api/chat", **{**body, **more}) for _ in range(2))
        assert 0 < first["load_duration"] <= first["total_duration"]
        assert second["load_duration"] == 0
        assert second["eval_duration"] > 0, "clients divide by it"


# --- Clients that leave, time ------------------------------------------------------------------------------------


@pytest.fixture
def long_answers(monkeypatch):
    """Answers that do not end by themselves."""
    long = {"min_new_tokens": 50_000, "max_new_tokens": 50_000}
    monkeypatch.setattr(generate, "parameters", lambda body: {**parameters(body), **long})
    assert fields.parameters is parameters


@pytest.mark.usefixtures("long_answers")
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), [("/api/chat", CHAT), ("/api/generate", GENERATE)])
def test_a_client_that_leaves_ends_its_answer(endless_server, path, body, stream):
    manager = endless_server.manager
    after = (
        (lambda connection: connection.recv(1))
        if stream
        else (lambda _: eventually(lambda: figures(manager)["active"] == 1))
    )
    leave(endless_server, path, {**body, "stream": stream}, after)
    eventually(lambda: figures(manager)["cancelled"] == 1)
    assert figures(manager)["generated_tokens"] < 50_000
    eventually(lambda: endless_server.service.in_flight == 0)


def test_a_client_that_leaves_takes_its_texts_along(serve, monkeypatch):
    server = serve()
    tickets = []

    class Held:
        done = False

        def cancel(self):
            self.done = True

    def submit_response(*_, **__):
        tickets.append(Held())
        return tickets[-1]

    monkeypatch.setattr(ModelManager, "submit_response", submit_response)
    for path, name in (("/api/embed", "input"), ("/api/embeddings", "prompt")):
        leave(server, path, {"model": "tiny", name: "a"}, lambda _: until(lambda: server.service.waiting == 1))
        until(lambda: tickets[-1].done and server.service.in_flight == 0)
        assert server.service.waiting == 0
    assert len(tickets) == 2


@pytest.mark.usefixtures("long_answers")
def test_request_timeout(endless, serve):
    server = serve(endless, request_timeout=0.3)
    assert "request_timeout" in refused(server.client.post("/api/chat", json={**CHAT, "stream": False}), 504)
    *pieces, last = lines(server.client.post("/api/chat", json=CHAT))
    assert len(pieces) > 1
    assert list(last) == ["error"]
    assert "0.3" in last["error"] or "request_timeout" in last["error"]
    eventually(lambda: figures(endless)["active"] == 0)


def test_an_error_in_the_middle_of_a_stream(gpt2_server, monkeypatch):
    class Failing(generate.AsyncTextStream):
        given = False

        async def __anext__(self):
            if self.given:
                raise NotFiniteError("NaN in the middle")
            self.given = True
            return "a piece"

    monkeypatch.setattr(generate, "AsyncTextStream", Failing)
    piece, last = lines(gpt2_server.client.post("/api/generate", json=GENERATE))
    assert piece["response"] == "a piece"
    assert list(last) == ["error"]
