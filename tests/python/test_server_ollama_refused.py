"""Ollama's API: requests that are refused, in the form of its errors."""

from __future__ import annotations

import json

import pytest
from conftest import ENGLISH_MODEL
from generation_servers import TEXT, TURN
from generators import CONTEXT, SLOT, WITHOUT_END, eventually, figures
from model_manager.server import ServedModel
from model_manager.server.routes.generation.request import LONGEST_STOP, MOST_STOPS
from servers import MODELS
from test_server_ollama import CHAT, GENERATE, refused

EMBED = [
    ({"input": 5}, "input"),
    ({"input": {}}, "input"),
    ({"input": [1, 2]}, "input"),
    ({"input": [[1]]}, "input"),
    ({"input": ["a", 1]}, "input[1]"),
    ({"input": ["a", None]}, "input[1]"),
    ({"input": "  "}, "blank"),
    ({"input": ["a", ""]}, "input[1]"),
    ({"input": ["a"] * 2049}, "2048"),
    ({"input": "\ud800"}, "JSON"),
    ({"input": "a", "truncate": "yes"}, "truncate"),
    ({"input": "a", "truncate": 1}, "truncate"),
    ({"input": "word " * 100, "truncate": False}, "input"),
    ({"input": "a", "dimensions": 0}, "dimensions"),
    ({"input": "a", "dimensions": 99}, "dimensions"),
    ({"input": "a", "dimensions": "8"}, "dimensions"),
]
EMBEDDINGS = [({"prompt": 5}, "prompt"), ({"prompt": ["a"]}, "prompt"), ({"prompt": " \n"}, "blank")]
VECTORS = [
    ({"model": None}, "model is required"),
    ({"model": ""}, "model is required"),
    ({"model": 5}, "model"),
    ({"keep_alive": True}, "keep_alive"),
    ({"keep_alive": "soon"}, "keep_alive"),
    ({"keep_alive": ""}, "keep_alive"),
    ({"keep_alive": [5]}, "keep_alive"),
    ({"options": []}, "options"),
    ({"options": "fast"}, "options"),
    ({"options": {"temprature": 1}}, "temprature"),
    ({"instruction": "Say it:"}, "instruction"),
    ({"task": "clustering"}, "task"),
    ({"prompt_name": "query"}, "prompt_name"),
    ({"model": SLOT}, "text generator"),
]
MESSAGES = [
    ({"messages": "Merhaba"}, "messages"),
    ({"messages": {}}, "messages"),
    ({"messages": ["Merhaba"]}, "messages[0]"),
    ({"messages": [{"content": "a"}]}, "role"),
    ({"messages": [{"role": "tool", "content": "a"}]}, "role"),
    ({"messages": [{"role": "user"}]}, "content"),
    ({"messages": [{"role": "user", "content": 5}]}, "content"),
    ({"messages": [*TURN, {"role": "user", "content": "a", "images": ["aGk="]}]}, "messages[1].images"),
    ({"messages": [{"role": "assistant", "content": "a", "thinking": "hm"}]}, "messages[0].thinking"),
    ({"messages": [{"role": "assistant", "content": "", "tool_calls": [{"function": {}}]}]}, "messages[0]"),
    ({"messages": [{"role": "user", "content": "kelime " * 200}]}, str(CONTEXT)),
    ({"messages": [{"role": "user", "content": "kelime " * 20_000}]}, str(CONTEXT)),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"system": "Kısa yaz."}, "system"),
    ({"prompt": "a"}, "prompt"),
]
PROMPT = [
    ({"prompt": 5}, "prompt"),
    ({"prompt": ["a"]}, "prompt"),
    ({"prompt": "kelime " * 200}, str(CONTEXT)),
    ({"prompt": "kelime " * 200, "truncate": True}, str(CONTEXT)),
    ({"prompt": "kelime " * 20_000}, str(CONTEXT)),
    ({"prompt": "kelime " * 20_000, "raw": True}, str(CONTEXT)),
    ({"system": "kelime " * 20_000}, str(CONTEXT)),
    ({"system": 5}, "system"),
    ({"system": "Kısa yaz.", "raw": True}, "raw"),
    ({"raw": "yes"}, "raw"),
    ({"suffix": "z"}, "suffix"),
    ({"images": ["aGk="]}, "images"),
    ({"template": "{{ .Prompt }}"}, "template"),
    ({"context": [1, 2]}, "context"),
    ({"width": 64}, "width"),
]
GENERATION = [
    ({"model": None}, "model is required"),
    ({"model": 5}, "model"),
    ({"model": "english_sentence"}, "embedding model"),
    ({"stream": "yes"}, "stream"),
    ({"stream": 1}, "stream"),
    ({"format": "json"}, "format"),
    ({"format": {"type": "object"}}, "format"),
    ({"format": {}}, "format"),
    ({"think": True}, "think"),
    ({"think": 0}, "think"),
    ({"think": "low"}, "think"),
    ({"logprobs": True}, "logprobs"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"truncate": "yes"}, "truncate"),
    ({"shift": 1}, "shift"),
    ({"keep_alive": True}, "keep_alive"),
    ({"keep_alive": "soon"}, "keep_alive"),
    ({"options": 5}, "options"),
]
OPTIONS = [
    ("temprature", 1),
    ("temperature", -1),
    ("temperature", "hot"),
    ("temperature", True),
    ("top_p", -0.1),
    ("top_p", 1.5),
    ("top_p", "high"),
    ("top_k", -2),
    ("top_k", 1.5),
    ("min_p", 2),
    ("repeat_penalty", 0),
    ("repeat_penalty", [1]),
    ("num_predict", 0),
    ("num_predict", -3),
    ("num_predict", 1.5),
    ("num_predict", "5"),
    ("seed", 1.5),
    ("seed", "7"),
    ("seed", True),
    ("seed", 2**64),
    ("stop", 5),
    ("stop", [5]),
    ("stop", ["x"] * (MOST_STOPS + 1)),
    ("stop", "x" * (LONGEST_STOP + 1)),
    ("presence_penalty", 0.5),
    ("frequency_penalty", -1),
    ("mirostat", 2),
    ("tfs_z", 0.5),
    ("typical_p", 0.7),
    ("penalize_newline", False),
    ("vocab_only", True),
    ("repeat_last_n", "all"),
]
REFUSED = [
    *(("/api/embed", {"model": "english_sentence", **body}, word) for body, word in EMBED),
    *(("/api/embeddings", {"model": "english_sentence", **body}, word) for body, word in EMBEDDINGS),
    *(("/api/embed", {"model": "english_sentence", "input": "a", **body}, word) for body, word in VECTORS),
    *(("/api/embeddings", {"model": "english_sentence", "prompt": "a", **body}, word) for body, word in VECTORS),
    *(("/api/chat", {**CHAT, **body}, word) for body, word in MESSAGES),
    *(("/api/generate", {**GENERATE, **body}, word) for body, word in PROMPT),
    *(("/api/chat", {**CHAT, **body}, word) for body, word in GENERATION),
    *(("/api/generate", {**GENERATE, **body}, word) for body, word in GENERATION),
    *(("/api/generate", {**GENERATE, "options": {name: value}}, f"options.{name}") for name, value in OPTIONS),
    ("/api/chat", {**CHAT, "options": {"repeat_penalty": 1.1, "repeat_last_n": 64}}, "options.repeat_last_n"),
    ("/api/show", {}, "model is required"),
    ("/api/show", {"model": 5}, "model"),
    ("/api/show", {"name": 5}, "name"),
]


@pytest.mark.parametrize(("path", "body", "word"), REFUSED)
def test_refused(gpt2_server, path, body, word):
    content = json.dumps(body)
    answer = gpt2_server.client.post(path, content=content, headers={"content-type": "application/json"})
    message = refused(answer, 400)
    assert word in message
    assert len(message) < 1100


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/api/embed", {"input": "a"}),
        ("/api/embeddings", {"prompt": "a"}),
        ("/api/chat", {"messages": TURN}),
        ("/api/generate", {"prompt": "a"}),
        ("/api/show", {}),
    ],
)
def test_an_unknown_model(gpt2_server, path, text):
    body = {"model": "llama3", **text}
    assert "llama3" in refused(gpt2_server.client.post(path, json=body), 404)


@pytest.mark.parametrize("path", ["/api/embed", "/api/embeddings", "/api/chat", "/api/generate", "/api/show"])
def test_bodies_follow_the_rules_of_all_endpoints(serve, path):
    server = serve(max_body_bytes=1000)
    assert "JSON" in refused(server.client.post(path, content=b"{}", headers={"content-type": "text/plain"}), 415)
    assert "JSON" in refused(server.client.post(path, content=b"{", headers={"content-type": "application/json"}), 400)
    assert "object" in refused(server.client.post(path, json=[]), 400)
    assert "1000" in refused(server.client.post(path, json={"model": "x" * 2000}), 413)
    answer = server.client.get(path)
    assert "POST" in refused(answer, 405)
    assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize("path", ["/api/tags", "/api/ps", "/api/version", "/api/show", "/api/embed", "/api/chat"])
def test_keys_and_hosts(serve, path):
    server = serve(api_keys=["secret"], allowed_hosts=["localhost", "127.0.0.1"])
    answer = server.client.get(path)
    refused(answer, 401)
    assert answer.headers["www-authenticate"] == "Bearer"
    refused(server.client.get(path, headers={"host": "evil.example"}), 403)
    assert server.client.get("/api/tags", headers={"authorization": "Bearer secret"}).status_code == 200
    server.service.draining = True
    answer = server.client.get(path, headers={"authorization": "Bearer secret"})
    assert "shutting down" in refused(answer, 503)
    assert answer.headers["retry-after"]


@pytest.mark.parametrize(
    ("path", "body", "text"),
    [
        ("/api/embed", {"model": "tiny"}, {"input": "a"}),
        ("/api/embeddings", {"model": "tiny"}, {"prompt": "a"}),
        ("/api/chat", {"model": SLOT}, {"messages": TURN, "stream": False}),
    ],
)
def test_clients_that_may_not_load(make_writer, serve, path, body, text):
    server = serve(make_writer(), admin=False)
    assert "load" in refused(server.client.post(path, json=body), 403)
    assert "keep_alive" in refused(server.client.post(path, json={**body, "keep_alive": 0}), 403)
    assert server.client.post(path, json={**body, **text}).status_code == 200


def test_models_that_cannot_be_loaded(make_writer, serve):
    server = serve(
        make_writer(generator_model="/no/such/model"), models=[ServedModel("gone", source="/no/such/folder")]
    )
    for path, body in (
        ("/api/embed", {"model": "gone", "input": "a"}),
        ("/api/embed", {"model": "gone"}),
        ("/api/chat", {"model": SLOT, "messages": TURN}),
        ("/api/generate", {"model": SLOT, "prompt": TEXT}),
        ("/api/generate", {"model": SLOT}),
    ):
        answer = server.client.post(path, json=body)
        assert "/no/such" in refused(answer, 503)
        assert answer.headers["retry-after"]


def test_dimensions_of_the_settings_that_do_not_fit(serve):
    server = serve(models=[ServedModel("tiny", source=ENGLISH_MODEL, dimensions=500)])
    assert "500" in refused(server.client.post("/api/embed", json={"model": "tiny", "input": "a"}), 503)


def test_a_busy_server_has_ollamas_status(endless_server, serve):
    """503, where OpenAI's protocol has 429."""
    manager = endless_server.manager
    under_way = [manager.stream(TEXT, **WITHOUT_END) for _ in range(16)]
    eventually(lambda: figures(manager)["active"] == 16)
    under_way += [manager.stream(TEXT) for _ in range(256)]
    for stream in (False, True):
        answer = endless_server.client.post("/api/chat", json={**CHAT, "stream": stream})
        refused(answer, 503)
        assert int(answer.headers["retry-after"]) >= 1
    assert "model_manager_rejected_requests_total 2.0" in endless_server.client.get("/metrics").text
    for one in under_way:
        one.cancel()


def test_metrics(serve):
    server = serve(models=MODELS[:1])
    server.client.post("/api/embed", json={"model": "tiny", "input": ["a", "b"]})
    server.client.post("/api/embed", json={"model": "none", "input": "a"})
    found = server.client.get("/metrics").text
    for line in (
        'model_manager_http_requests_total{method="POST",path="/api/embed",status="200"} 1.0',
        'model_manager_http_requests_total{method="POST",path="/api/embed",status="404"} 1.0',
        'model_manager_embedding_inputs_total{model="tiny"} 2.0',
    ):
        assert line in found
