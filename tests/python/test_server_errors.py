"""Every invalid request gets OpenAI's error body with the right status, never 5xx."""

from __future__ import annotations

import json
import socket

import pytest
from conftest import DIMENSION, FIXTURES
from generators import SLOT
from model_manager import errors
from model_manager.server.errors import from_exception
from model_manager.server.schemas import ErrorBody
from servers import MODELS, ServedModel

JSON = {"content-type": "application/json"}


def checked(response, status, kind="invalid_request_error", param=None, code=None):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert list(response.json()) == ["error"]
    assert list(response.json()["error"]) == ["message", "type", "param", "code"]
    error = ErrorBody.model_validate(response.json(), strict=True).error
    assert error.message
    assert error.type == kind
    assert error.param == param
    if code is not None:
        assert error.code == code
    return error.message


BAD_FIELDS = [
    ({}, "input"),
    ({"input": None}, "input"),
    ({"input": ""}, "input"),
    ({"input": " \n\t\u3000"}, "input"),
    ({"input": []}, "input"),
    ({"input": ["a", ""]}, "input"),
    ({"input": ["a", "  "]}, "input"),
    ({"input": ["a", None]}, "input"),
    ({"input": ["a", 1]}, "input"),
    ({"input": [["a"]]}, "input"),
    ({"input": [[]]}, "input"),
    ({"input": [1, "a"]}, "input"),
    ({"input": [1, 2.5]}, "input"),
    ({"input": [[1], "a"]}, "input"),
    ({"input": [True]}, "input"),
    ({"input": [1, True]}, "input"),
    ({"input": [-1]}, "input"),
    ({"input": [10**9]}, "input"),
    ({"input": [2**63 - 1]}, "input"),
    ({"input": [{}]}, "input"),
    ({"input": 5}, "input"),
    ({"input": {"text": "a"}}, "input"),
    ({"input": ["a"] * 2049}, "input"),
    ({"input": "a", "model": 5}, "model"),
    ({"input": "a", "model": ["tiny"]}, "model"),
    ({"input": "a", "encoding_format": "float32"}, "encoding_format"),
    ({"input": "a", "encoding_format": 5}, "encoding_format"),
    ({"input": "a", "encoding_format": ["float"]}, "encoding_format"),
    ({"input": "a", "dimensions": 0}, "dimensions"),
    ({"input": "a", "dimensions": -1}, "dimensions"),
    ({"input": "a", "dimensions": DIMENSION + 1}, "dimensions"),
    ({"input": "a", "dimensions": 10**30}, "dimensions"),
    ({"input": "a", "dimensions": 2.5}, "dimensions"),
    ({"input": "a", "dimensions": True}, "dimensions"),
    ({"input": "a", "dimensions": "8"}, "dimensions"),
    ({"input": "a", "instruction": 5}, "instruction"),
    ({"input": "a", "task": ["x"]}, "task"),
    ({"input": "a", "prompt_name": "no such prompt"}, "prompt_name"),
    ({"input": "a", "prompt_name": False}, "prompt_name"),
    ({"input": [5, 6], "instruction": "Say it:"}, "input"),
    ({"input": "a", "truncate": "no"}, "truncate"),
    ({"input": "a", "truncate": 0}, "truncate"),
    ({"input": "a", "keep_alive": "soon"}, "keep_alive"),
    ({"input": "a", "keep_alive": [5]}, "keep_alive"),
    ({"input": "a", "user": {}}, "user"),
]


@pytest.mark.parametrize(("body", "param"), BAD_FIELDS, ids=lambda value: str(value)[:50])
def test_bad_fields(server, body, param):
    checked(server.client.post("/v1/embeddings", content=json.dumps(body), headers=JSON), 400, param=param)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"input": "a"',
        b"input=a",
        b"null",
        b'"text"',
        b"[]",
        b"[1]",
        b"5",
        b'{"input": NaN}',
        b'{"input": "\\ud800"}',
        b'{"input": "\xff"}',
        b"\x00",
        b"[" * 100_000,
        b'{"input": "a"}x',
    ],
    ids=lambda body: repr(body[:16]),
)
@pytest.mark.parametrize("path", ["/v1/embeddings", "/api/load", "/api/unload", "/api/warmup"])
def test_bad_bodies(server, path, body):
    checked(server.client.post(path, content=body, headers=JSON), 400, code="invalid_json")


def test_too_many_inputs_names_the_limit(serve):
    server = serve(max_inputs=3)
    assert server.embed(input=["a", "b", "c"]).status_code == 200
    assert "3" in checked(server.embed(input=["a"] * 4), 400, param="input", code="too_many_inputs")
    assert server.embed(input=[5, 6, 7, 8]).status_code == 200, "token ids of one text"


DEEP = "[" * 1000 + "]" * 1000
LONG = f'"user": "{"x" * 70_000}", '
"""Larger bodies go another way."""


def test_values_that_nest_deep(serve, make_writer):
    server = serve(make_writer())
    for path, content, param in (
        ("/v1/embeddings", f'{{"input": "a", "encoding_format": {DEEP}}}', "encoding_format"),
        ("/v1/embeddings", f'{{"input": "a", "keep_alive": {DEEP}}}', "keep_alive"),
        ("/v1/chat/completions", f'{{"messages": [{{"role": {DEEP}, "content": "a"}}]}}', "messages"),
        ("/v1/responses", f'{{"input": [{{"role": {DEEP}, "content": "a"}}]}}', "input"),
        ("/v1/chat/completions", f'{{{LONG}"messages": [{{"role": "user", "content": {DEEP}}}]}}', "messages"),
        ("/v1/responses", f'{{{LONG}"input": [{{"role": "user", "content": {DEEP}}}]}}', "input"),
    ):
        checked(server.client.post(path, content=content, headers=JSON), 400, param=param)
    for long in ("", f', {{"role": "user", "content": "{"x" * 70_000}"}}'):
        for message in (f'{{"role": {DEEP}, "content": "a"}}', f'{{"role": "user", "content": {DEEP}}}'):
            content = f'{{"model": "text_generator", "messages": [{message}{long}]}}'
            answer = server.client.post("/api/chat", content=content, headers=JSON)
            assert (answer.status_code, list(answer.json())) == (400, ["error"]), answer.text


def test_a_message_has_its_field_once(server):
    for path, text in (("/v1/embeddings", "input"), ("/embed", "inputs")):
        answer = server.client.post(path, json={text: "a", "keep_alive": True})
        assert checked(answer, 400, param="keep_alive").startswith("keep_alive must be ")


def test_unknown_model(server):
    message = checked(server.embed(input="a", model="gpt-5"), 404, "not_found_error", "model", "model_not_found")
    assert "gpt-5" in message
    assert "tiny" in message
    checked(server.client.get("/v1/models/a/b"), 404, "not_found_error", "model", "model_not_found")


def test_a_model_for_another_use(make_writer, serve):
    """It is served: the error says what it is for. Lists of models go on to name all that are."""
    manager = make_writer()
    manager.register("judge", str(FIXTURES / "rerank_bert"), kind="reranker")
    manager.register("splade", str(FIXTURES / "splade_bert"), kind="sparse")
    server = serve(manager)
    for name, what in (
        ("judge", "a reranker"),
        (str(FIXTURES / "rerank_bert"), "a reranker"),
        ("reranker", "a reranker"),
        ("splade", "a model of sparse vectors"),
        (SLOT, "a text generator"),
    ):
        answer = server.embed(input="a", model=name)
        message = checked(answer, 400, "invalid_request_error", "model")
        assert message == f"{name!r} is {what}: it does not support embeddings"
    for name, what in (("judge:latest", "a reranker"), ("tiny", "an embedding model")):
        ask = {"model": name, "messages": [{"role": "user", "content": "a"}]}
        answer = server.client.post("/v1/chat/completions", json=ask)
        message = checked(answer, 400, "invalid_request_error", "model")
        assert message == f"{name!r} is {what}: it does not support text generation"
    message = checked(server.client.get("/v1/models/judge"), 404, "not_found_error", "model", "model_not_found")
    assert SLOT in message
    message = server.client.post("/api/show", json={"model": "nothing"}).json()["error"]
    assert SLOT in message
    assert "tiny" in message


@pytest.mark.parametrize(
    "body", [{"model": "x" * 10**6}, {"encoding_format": "y" * 10**6}, {"prompt_name": "z" * 10**6}]
)
def test_messages_stay_short(server, body):
    response = server.embed(input="a", **body)
    assert response.status_code in {400, 404}
    assert len(response.content) < 2000


@pytest.mark.parametrize("path", ["/nothing", "/v1", "/v1/embedding", "/%00", "/health//"])
def test_unknown_path(server, path):
    checked(server.client.get(path, follow_redirects=True), 404, "not_found_error", code="unknown_path")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/embeddings"),
        ("DELETE", "/v1/models"),
        ("PUT", "/embeddings"),
        ("POST", "/health"),
        ("GET", "/api/load"),
    ],
)
def test_wrong_method(server, method, path):
    response = server.client.request(method, path)
    checked(response, 405, code="method_not_allowed")
    assert response.headers["allow"]


def test_a_body_that_is_too_large(serve):
    server = serve(max_body_bytes=1000)
    text = "a" * 2000
    message = checked(server.embed(input=text), 413, code="body_too_large")
    assert "1000" in message

    def chunks():
        yield b'{"input": "'
        for _ in range(20):
            yield b"a" * 100
        yield b'"}'

    checked(server.client.post("/v1/embeddings", content=chunks(), headers=JSON), 413, code="body_too_large")
    fits = json.dumps({"input": "a" * (1000 - len('{"input": ""}'))})
    assert server.client.post("/v1/embeddings", content=fits, headers=JSON).status_code == 200
    assert (
        server.client.post(
            "/v1/embeddings", content=iter([fits[:500].encode(), fits[500:].encode()]), headers=JSON
        ).status_code
        == 200
    )


def test_a_declared_length_is_enough_to_refuse(serve):
    server = serve(max_body_bytes=1000)
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(
            b"POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            b"content-length: 99999999\r\n\r\n{"
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


def test_what_is_not_http(server):
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(b"\x16\x03\x01 this is not HTTP\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 400 ")
    assert server.client.get("/health").status_code == 200


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer wrong", "Bearer sekret", "Basic secret", "secret", "Bearer secret x", "Bearer sécret"],
)
def test_keys(serve, authorization):
    server = serve(api_keys=["secret", "another"])
    headers = {} if authorization is None else {"authorization": authorization.encode()}
    for path in ("/v1/models", "/metrics", "/api/status", "/api/health/ai"):
        response = server.client.get(path, headers=headers)
        checked(response, 401, "authentication_error")
        assert response.headers["www-authenticate"] == "Bearer"
    assert server.client.get("/health", headers=headers).status_code == 200
    assert server.client.get("/ready", headers=headers).status_code == 200


def test_right_keys(serve):
    server = serve(api_keys=["secret", "another"], open_paths=["/metrics"])
    for key in ("Bearer secret", "bearer another", "BEARER   secret"):
        assert server.client.get("/v1/models", headers={"authorization": key}).status_code == 200
    assert server.client.get("/metrics").status_code == 200
    assert server.client.get("/health").status_code == 401


def test_any_key_is_fine_where_none_is_needed(server):
    for key in ("Bearer sk-anything", "Basic eA==", ""):
        assert server.client.get("/v1/models", headers={"authorization": key}).status_code == 200


def test_a_model_that_cannot_be_loaded(serve):
    server = serve(models=[ServedModel("gone", source="/no/such/folder"), MODELS[0]])
    response = server.embed(input="a text")
    checked(response, 503, "service_unavailable", code="model_unavailable")
    assert int(response.headers["retry-after"]) >= 1
    assert server.client.get("/health").json()["model_available"] is False
    assert server.client.get("/ready").status_code == 503
    assert server.embed(input="a text", model="tiny").status_code == 200


def test_every_error_of_the_package_has_an_answer():
    expected = {
        "TaskError": 400,
        "ClosedError": 503,
        "ConfigError": 503,
        "DeviceMemoryError": 503,
        "DownloadError": 503,
        "ArgumentError": 400,
        "ForkedError": 503,
        "InputError": 400,
        "InputTypeError": 400,
        "InternalError": 500,
        "InvalidFileError": 503,
        "LoaderError": 503,
        "MemoryBudgetError": 503,
        "MissingFileError": 503,
        "ModelIOError": 503,
        "ModelManagerError": 503,
        "ModelNotFoundError": 503,
        "ModelPermissionError": 503,
        "NoGeneratorError": 404,
        "NotFiniteError": 500,
        "OutOfMemoryError": 503,
        "OverloadedError": 429,
        "RemoteError": 503,
        "RemoteRefusedError": 503,
        "RequestCancelledError": 503,
        "UnknownModelError": 404,
        "UnsupportedModelError": 503,
        "WaitTimeoutError": 504,
    }
    assert {name: from_exception(getattr(errors, name)("why")).status_code for name in errors.__all__} == expected
    assert from_exception(ZeroDivisionError("secret")).status_code == 500
    assert "secret" not in str(from_exception(ZeroDivisionError("secret")).to_dict())
