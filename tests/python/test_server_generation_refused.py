"""Requests for generated text that the server refuses, and why."""

from __future__ import annotations

import re
import shutil

import openai
import pytest
from conftest import ENGLISH_MODEL, FIXTURES
from generation_servers import ASK, TEXT, TURN
from generators import SLOT, WITHOUT_END, eventually, figures
from model_manager.server.routes.generation.request import LONGEST_STOP, MOST_STOPS, parameters

CHAT = [
    ({}, "messages"),
    ({"messages": "Merhaba"}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": ["Merhaba"]}, "messages"),
    ({"messages": [{"content": "a"}]}, "messages"),
    ({"messages": [{"role": "tool", "content": "a"}]}, "messages"),
    ({"messages": [{"role": ["user"], "content": "a"}]}, "messages"),
    ({"messages": [{"role": "user"}]}, "messages"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages"),
    ({"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]}, "messages"),
    ({"messages": [{"role": "user", "content": "kelime " * 200}]}, "messages"),
    ({**ASK, "tools": [{"type": "function"}]}, "tools"),
    ({**ASK, "response_format": {"type": "json_object"}}, "response_format"),
    ({**ASK, "response_format": "text"}, "response_format"),
    ({**ASK, "logprobs": True}, "logprobs"),
    ({**ASK, "top_logprobs": 3}, "top_logprobs"),
    ({**ASK, "guided_json": {"type": "object"}}, "guided_json"),
]
COMPLETION = [
    ({}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": ["a", ""]}, "prompt"),
    ({"prompt": ["a", "kelime " * 200]}, "prompt"),
    ({"prompt": ["a", [1]]}, "prompt"),
    ({"prompt": [[1], "a"]}, "prompt"),
    ({"prompt": [1, "a"]}, "prompt"),
    ({"prompt": [True]}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": [2**32]}, "prompt"),
    ({"prompt": [2**31]}, "prompt"),
    ({"prompt": ["a"] * 65}, "prompt"),
    ({"prompt": ["a", "b"], "n": 33}, "n"),
    ({"prompt": {"text": "a"}}, "prompt"),
    ({"prompt": "kelime " * 200}, "prompt"),
    ({"prompt": "a", "echo": True}, "echo"),
    ({"prompt": "a", "suffix": "z"}, "suffix"),
    ({"prompt": "a", "best_of": 2}, "best_of"),
    ({"prompt": "a", "logprobs": 0}, "logprobs"),
]
BOTH = [
    ({"model": 5}, "model"),
    ({"n": 65}, "n"),
    ({"n": 0}, "n"),
    ({"n": True}, "n"),
    ({"n": "1"}, "n"),
    ({"n": 1.5}, "n"),
    ({"presence_penalty": 0.5}, "presence_penalty"),
    ({"frequency_penalty": -1}, "frequency_penalty"),
    ({"logit_bias": {"50256": -100}}, "logit_bias"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": -1, "max_completion_tokens": 5}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"max_tokens": "5"}, "max_tokens"),
    ({"min_tokens": -1}, "min_tokens"),
    ({"temperature": -1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_p": -0.1}, "top_p"),
    ({"top_p": False}, "top_p"),
    ({"top_p": 1.5}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"top_k": True}, "top_k"),
    ({"min_p": 2}, "min_p"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size"),
    ({"seed": 1.5}, "seed"),
    ({"seed": "7"}, "seed"),
    ({"seed": 2**64}, "seed"),
    ({"seed": -(2**63) - 1}, "seed"),
    ({"seed": 1e18}, "seed"),
    ({"stop": 5}, "stop"),
    ({"stop": [5]}, "stop"),
    ({"stop": [None]}, "stop"),
    ({"stop": ["x"] * (MOST_STOPS + 1)}, "stop"),
    ({"stop": "x" * (LONGEST_STOP + 1)}, "stop"),
    ({"stream": "yes"}, "stream"),
    ({"stream": 1}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": []}, "stream_options"),
    ({"stream": True, "stream_options": {"include_usage": "yes"}}, "stream_options"),
    ({"keep_alive": "soon"}, "keep_alive"),
]
REFUSED = [
    *(("/v1/chat/completions", body, param) for body, param in CHAT),
    *(("/v1/completions", body, param) for body, param in COMPLETION),
    *(("/v1/chat/completions", {**ASK, **body}, param) for body, param in BOTH),
    *(("/v1/completions", {"prompt": TEXT, **body}, param) for body, param in BOTH),
]


@pytest.mark.parametrize(("path", "body", "param"), REFUSED)
def test_refused(gpt2_server, path, body, param):
    answer = gpt2_server.client.post(path, json=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert param in error["message"] or error["code"] == "context_length_exceeded"


@pytest.mark.parametrize("extra", [{"max_tokens": 10**18}, {"seed": -(2**63)}, {"seed": 2**64 - 1}, {"stop": []}])
def test_extremes_are_answered(gpt2_server, extra):
    assert gpt2_server.client.post("/v1/completions", json={"prompt": TEXT, **extra}).status_code == 200


def test_a_stream_that_cannot_begin_has_a_status(gpt2_server):
    body = {"prompt": "kelime " * 200, "stream": True}
    answer = gpt2_server.client.post("/v1/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "prompt"
    assert answer.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([1, "a"], r"^prompt\[1\] must be a token id, .*, not a string$"),
        ([1, -1], r"^prompt\[1\] must be a token id, a whole number from 0 to 4294967295$"),
        ([[1], [2, None]], r"^prompt\[1\]\[1\] must be a token id, .*, not null$"),
        ([[]], r"^prompt\[0\] is an empty list: send at least one token id$"),
        ([[1], "a"], r"^prompt\[1\] must be a list of token ids like the others, not a string$"),
        (["a", [1]], r"^prompt\[1\] must be a text like the others, not a list$"),
        ([{"text": "a"}], r"^prompt\[0\] must be a text or a list of token ids, not an object$"),
    ],
)
def test_the_item_at_fault_is_named(gpt2_server, prompt, message):
    answer = gpt2_server.client.post("/v1/completions", json={"prompt": prompt})
    assert answer.status_code == 400
    assert re.search(message, answer.json()["error"]["message"]), answer.text


def test_an_unknown_model(gpt2_server, sdk):
    with pytest.raises(openai.NotFoundError, match="gpt-5") as raised:
        sdk.chat.completions.create(model="gpt-5", **ASK)
    assert raised.value.code == "model_not_found"
    assert SLOT in str(raised.value)


def test_models_by_name_source_or_not_at_all(gpt2_server):
    source = gpt2_server.manager.stats()["slots"][SLOT]["source"]
    for name in (SLOT, f"{SLOT}:latest", source, None, ""):
        answer = gpt2_server.client.post("/v1/chat/completions", json={**ASK, "model": name})
        assert answer.status_code == 200
        assert answer.json()["model"] == SLOT


@pytest.mark.parametrize("slots", [(), ("no_such",)])
def test_a_server_without_a_generator(make_manager, serve, slots):
    answer = serve(make_manager(), generators=slots).client.post("/v1/chat/completions", json=ASK)
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "no_generator"
    for slot in slots:
        assert slot in answer.json()["error"]["message"]


def test_a_slot_that_is_no_generator(make_writer, serve):
    manager = make_writer()
    manager.register("vectors", ENGLISH_MODEL)
    server = serve(manager, generators=(SLOT, "vectors"))
    answer = server.client.post("/v1/completions", json={"prompt": TEXT, "model": "vectors"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "'vectors' is an embedding model: it does not support text generation"


@pytest.mark.parametrize("loaded_first", [False, True])
def test_a_configured_model_of_the_hub_that_is_not_here_yet(make_manager, serve, tmp_path, loaded_first):
    """Its kind is open until its first load, which must not take it for a model that embeds."""
    folder = tmp_path / "models--x--writer"
    manager = make_manager(cache_dir=str(tmp_path), offline=True)
    manager.register("writer", "x/writer")
    server = serve(manager, generators=["writer"])
    about = server.client.get("/v1/models/writer").json()["capabilities"]
    assert (about["kind"], about["state"]) == ("generator", "absent")
    assert server.client.get("/").json()["generators"] == ["writer"]
    assert server.embed(input="a text", model="writer").status_code == 404
    absent = server.client.post("/v1/chat/completions", json={**ASK, "model": "writer"})
    assert absent.status_code == 503
    # It arrives.
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("a" * 40)
    shutil.copytree(FIXTURES / "llama", folder / "snapshots" / ("a" * 40))
    if loaded_first:
        server.client.post("/api/load", json={"model": "writer"})
    answer = server.client.post("/v1/chat/completions", json={**ASK, "model": "writer"})
    assert answer.status_code == 200
    assert answer.json()["model"] == "writer"


def test_several_generators(make_writer, serve):
    manager = make_writer("gpt2")
    manager.register("second", manager.stats()["slots"][SLOT]["source"].replace("gpt2", "llama"), kind="generator")
    server = serve(manager, generators=("second", SLOT))
    answer = server.client.post("/v1/chat/completions", json=ASK)
    assert answer.json()["model"] == "second"
    assert server.client.post("/v1/chat/completions", json={**ASK, "model": SLOT}).json()["model"] == SLOT


def test_a_model_that_cannot_be_loaded(make_writer, serve):
    server = serve(make_writer(generator_model="/no/such/model"))
    for stream in (False, True):
        answer = server.client.post("/v1/chat/completions", json={**ASK, "stream": stream})
        assert answer.status_code == 503
        assert answer.json()["error"]["type"] == "service_unavailable"
        assert "/no/such/model" in answer.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_overload(endless_server, stream):
    """256 requests wait; the next one is refused."""
    manager = endless_server.manager
    under_way = [manager.stream(TEXT, **WITHOUT_END) for _ in range(16)]
    eventually(lambda: figures(manager)["active"] == 16)
    under_way += [manager.stream(TEXT) for _ in range(256)]
    answer = endless_server.client.post("/v1/chat/completions", json={"messages": TURN, "stream": stream})
    assert answer.status_code == 429
    assert answer.json()["error"]["type"] == "rate_limit_error"
    assert int(answer.headers["retry-after"]) >= 1
    assert "model_manager_rejected_requests_total 1.0" in endless_server.client.get("/metrics").text
    for one in under_way:
        one.cancel()


def test_parameters_become_the_cores():
    body = {"max_tokens": 5, "max_completion_tokens": 7, "seed": 5.0, "top_p": 0.5, "stop": ["a"], "temperature": None}
    assert parameters(body) == {"max_new_tokens": 7, "seed": 5, "top_p": 0.5, "stop": ["a"]}
