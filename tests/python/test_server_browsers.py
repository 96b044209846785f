"""Foreign pages in a browser have no access, unless the settings allow it."""

from __future__ import annotations

import socket

import openai
import pytest
from conftest import ENGLISH_TEXT
from fastapi import FastAPI
from model_manager.errors import ConfigError
from model_manager.server import ServerConfig, router
from model_manager.server.errors import ApiError
from model_manager.server.hosts import Hosts
from servers import MODELS, SECONDS, running

POSTED = [
    "/v1/embeddings",
    "/embeddings",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/api/load",
    "/api/unload",
    "/api/warmup",
    "/api/hint",
]
BODY = '{"input": "a", "model": "tiny"}'


# --- Types -----------------------------------------------------------------------------------------------------------


FOREIGN = [{"origin": "http://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}]


@pytest.mark.parametrize("path", POSTED)
@pytest.mark.parametrize("content_type", [None, ""])
@pytest.mark.parametrize("page", FOREIGN)
def test_a_body_without_a_type_from_a_page_is_not_read(server, path, content_type, page):
    """A browser sends such bodies to any site, but names the page."""
    headers = page if content_type is None else {**page, "content-type": content_type}
    response = server.client.post(path, content=BODY, headers=headers)
    assert response.status_code == 415
    assert response.json()["error"]["code"] == "content_type"


@pytest.mark.parametrize("content_type", [None, ""])
def test_a_body_without_a_type_from_a_program_is_read(server, content_type):
    """LiteLLM sends Ollama's requests in this way."""
    headers = {} if content_type is None else {"content-type": content_type}
    for path in ("/v1/embeddings", "/api/embed"):
        response = server.client.post(path, content=BODY, headers=headers)
        assert response.status_code == 200, response.text
    assert server.client.post("/v1/embeddings", content=b"input=a", headers=headers).status_code == 400


@pytest.mark.parametrize("path", POSTED)
@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "text/json"]
)
def test_only_json_is_read(server, path, content_type):
    """A browser sends other types to any site without a preflight request."""
    response = server.client.post(path, content=BODY, headers={"content-type": content_type})
    assert response.status_code == 415
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "content_type")
    assert "Content-Type: application/json" in error["message"]


@pytest.mark.parametrize(
    "content_type", ["application/json", "Application/JSON; charset=utf-8", "application/vnd.api+json"]
)
def test_forms_of_json(server, content_type):
    response = server.client.post("/v1/embeddings", content=BODY, headers={"content-type": content_type})
    assert response.status_code == 200


def test_without_admin_no_client_decides_how_long_a_model_stays(serve):
    server = serve(admin=False)
    assert server.embed(input=ENGLISH_TEXT).status_code == 200
    for path, body in (
        ("/v1/embeddings", {"input": "a"}),
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
        ("/v1/responses", {"input": "a"}),
    ):
        for keep_alive in (0, "0", -1, "5m"):
            response = server.client.post(path, json={**body, "keep_alive": keep_alive})
            assert response.status_code == 403
            error = response.json()["error"]
            assert (error["type"], error["param"], error["code"]) == (
                "permission_error",
                "keep_alive",
                "admin_disabled",
            )
    assert server.manager.is_loaded("tiny")
    assert server.embed(input=ENGLISH_TEXT, keep_alive=None).status_code == 200


# --- Names -----------------------------------------------------------------------------------------------------------


def status(server, host):
    return server.client.get("/v1/models", headers={"host": host}).status_code


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8000", "localhost.", "app.localhost:1", "127.0.0.1:80", "[::1]:1"]
)
def test_names_of_this_machine(server, host):
    assert status(server, host) == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example"]
)
def test_foreign_names(server, host):
    """After DNS rebinding a browser treats a foreign page and this server as one site, but sends the page's name."""
    for method, path in (("GET", "/v1/models"), ("GET", "/"), ("GET", "/openapi.json"), ("POST", "/v1/embeddings")):
        response = server.client.request(method, path, headers={"host": host})
        assert response.status_code == 403
        error = response.json()["error"]
        assert (error["type"], error["code"]) == ("permission_error", "host_not_allowed")
        assert "allowed_hosts" in error["message"]


def test_every_host_header_counts(server):
    scope = {"server": ("127.0.0.1", 8000), "headers": [(b"host", b"localhost"), (b"host", b"evil.example")]}
    with pytest.raises(ApiError, match="evil"):
        server.service.hosts.check(scope)


def test_allowed_hosts(serve):
    server = serve(allowed_hosts=["api.example.com", "*.internal"])
    for host in ("api.example.com:443", "API.example.com", "a.internal", "a.b.internal", "localhost", "10.0.0.1"):
        assert status(server, host) == 200
    for host in ("example.com", "internal", "xinternal", "api.example.com.evil.example"):
        assert status(server, host) == 403
    assert status(serve(allowed_hosts=["*"]), "anything.example") == 200


@pytest.mark.parametrize("head", ["", "host:\r\n", "host:  \r\n"])
def test_requests_without_a_name(serve, head):
    """HTTP/1.0 has no names. Where names are listed it has none of them; elsewhere nothing speaks against it."""
    for settings, expected in (
        ({}, 200),
        ({"allowed_hosts": ["*"]}, 200),
        ({"allowed_hosts": ["api.example.com"]}, 403),
        ({"allowed_hosts": ["api.example.com"], "api_keys": ["secret"]}, 403),
    ):
        server = serve(**settings)
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=SECONDS) as connection:
            connection.sendall(f"GET /health HTTP/1.0\r\n{head}\r\n".encode())
            answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
        assert int(answer.split()[1]) == expected
        if expected == 403:
            assert b"allowed_hosts" in answer
            assert b"host_not_allowed" in answer


def test_names_do_not_matter_where_keys_do(serve):
    server = serve(api_keys=["secret"])
    headers = {"host": "api.example.com", "authorization": "Bearer secret"}
    assert server.client.get("/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("host", "address", "refused"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "::1", True),
        ("localhost", "127.0.0.1", True),
        ("127.0.0.1", "172.17.0.2", False),  # another program listens, at an address of its own
        ("127.0.0.1", "/run/server.sock", False),
        ("0.0.0.0", "127.0.0.1", False),
        ("0.0.0.0", "172.17.0.2", False),
    ],
)
def test_where_names_are_checked_by_default(host, address, refused):
    scope = {"server": (address, 8000), "headers": [(b"host", b"service.namespace.svc.cluster.local")]}
    hosts = Hosts(ServerConfig(host=host))
    if refused:
        with pytest.raises(ApiError, match="namespace"):
            hosts.check(scope)
    else:
        hosts.check(scope)


def test_inside_another_application_names_are_its_own(make_manager):
    for allowed, expected in (([], 200), (["good.example"], 403)):
        host = FastAPI()
        host.include_router(router(ServerConfig(models=MODELS, allowed_hosts=allowed), make_manager()), prefix="/ai")
        with running(host) as server:
            assert server.client.get("/ai/health", headers={"host": "evil.example"}).status_code == expected


@pytest.mark.parametrize("wrong", ["", "http://a.example", "a.example:80", "a.*.example", "*example", "a b"])
def test_hosts_that_are_none(wrong):
    with pytest.raises(ConfigError, match="allowed_hosts"):
        ServerConfig(allowed_hosts=[wrong])


# --- CORS and documents ----------------------------------------------------------------------------------------------


def test_the_preflight_of_an_sdk(serve, make_manager):
    """OpenAI's SDK for browsers sends its own headers, which differ between versions."""
    server = serve(cors_origins=["https://a.example"])
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any") as client:
        wanted = {name.lower() for name in client.default_headers if name.lower().startswith("x-stainless")}
    wanted |= {"authorization", "content-type"}
    preflight = {
        "origin": "https://a.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": ",".join(sorted(wanted)),
    }
    response = server.client.options("/v1/embeddings", headers=preflight)
    assert response.status_code == 200
    allowed = {name.strip() for name in response.headers["access-control-allow-headers"].lower().split(",")}
    assert wanted <= allowed
    assert len(wanted) > 4
    assert (
        server.client.options("/v1/embeddings", headers={**preflight, "origin": "https://b.example"}).status_code == 400
    )


@pytest.mark.parametrize("path", ["/openapi.json", "/docs", "/openapi.json/", "/docs/"])
def test_documents_need_the_key(serve, path):
    server = serve(api_keys=["secret"])
    response = server.client.get(path)
    if path.endswith("/"):
        assert response.status_code in {401, 404}
        return
    assert response.status_code == 401
    assert response.json()["error"]["code"] == "missing_api_key"
    assert server.client.get(path, headers={"authorization": "Bearer secret"}).status_code == 200
    assert serve(api_keys=["secret"], open_paths=[path]).client.get(path).status_code == 200
