"""`GET /` and `/api/status` as HTTP: content negotiation, and the manager's figures."""

from __future__ import annotations

import base64
import hashlib
import re
import types

import pytest
from conftest import ENGLISH_TEXT
from generators import GREEDY, SLOT
from model_manager import __version__
from model_manager.server import ServerConfig, service as service_module
from model_manager.server.routes import status as status_module
from model_manager.server.routes.status import ServiceDescription, Status
from servers import MODELS, until

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"

HTML = [
    BROWSER,
    "text/html",
    "TEXT/HTML",
    "text/*",
    "application/json;q=0.5, text/html;q=0.9",
    "text/html;q=0.001",
    "text/html ; q=1 , */* ; q=0.1",
    "application/json;q=0, */*",
    "text/html;level=1;q=0.8, application/json;q=0.7",
]
JSON = [
    None,
    "",
    "*/*",
    "application/json",
    "application/*",
    "text/html, application/json",
    "application/json, text/html;q=0.9",
    "text/html;q=0",
    "text/html;q=0, */*;q=0.5",
    "text/html;q=0.4, */*;q=0.8",
    "text/*;q=0.3, application/json;q=0.4",
    "image/png",
    "text/html;q=nonsense, application/json;q=0.1",
    "text/html;q=nan, application/json;q=0.1",
    "text/html;q=7, application/json;q=0.1",
    ";;;,,q=",
]


@pytest.mark.parametrize("accept", HTML)
def test_people_get_the_page(server, accept):
    answer = server.client.get("/", headers={"accept": accept})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["vary"] == "accept"


@pytest.mark.parametrize("accept", JSON)
def test_clients_get_json(server, accept):
    request = server.client.build_request("GET", "/")
    del request.headers["accept"]
    if accept is not None:
        request.headers["accept"] = accept
    answer = server.client.send(request)
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["vary"] == "accept"
    said = ServiceDescription.model_validate(answer.json(), strict=True)
    assert said.version == __version__
    assert said.models[:3] == ["tiny", "instructed", "prompted"]
    assert said.generators == [SLOT]


def test_what_the_description_names_exists(server):
    paths = server.client.get("/").json()["endpoints"].values()
    described = server.client.get("/openapi.json").json()["paths"]
    assert set(paths) - {"/openapi.json"} <= set(described)
    for link in server.client.get("/api/status").json()["links"]:
        assert server.client.get(f"/{link}").status_code == 200


def test_the_page_is_one_document_that_runs_nothing_else(server):
    answer = server.client.get("/", headers={"accept": BROWSER})
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    for tag, directive in (("style", "style-src"), ("script", "script-src")):
        (source,) = re.findall(rf"<{tag}>(.*?)</{tag}>", answer.text, re.DOTALL)
        assert policy[directive] == f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"
    assert re.findall(r"""(?:src|href)=["'](?!#|data:)""", answer.text) == []
    assert " style=" not in answer.text
    assert " on" not in re.sub(r"<script>.*</script>", "", answer.text, flags=re.DOTALL).split("<body>")[1].replace(
        " on ", ""
    )


def test_the_figures_are_the_managers(make_writer, serve):
    manager = make_writer(cache_size=100)
    server = serve(manager)
    before = server.client.get("/api/status").json()
    Status.model_validate(before, strict=True)
    assert {model["state"] for model in before["models"]} == {"absent"}
    assert before["cache"]["hit_ratio"] is None

    for _ in range(4):
        manager.embed(ENGLISH_TEXT, "tiny")
    manager.complete("Merhaba", **GREEDY, max_new_tokens=5, min_new_tokens=5)
    after = server.client.get("/api/status").json()
    stats = manager.stats()
    models = {model["name"]: model for model in after["models"]}
    assert list(models) == manager.slots()
    assert models["tiny"]["state"] == "ready"
    assert models["tiny"]["served_as"] == ["tiny", "text-embedding-3-small"]
    assert models["tiny"]["bytes"] == stats["slots"]["tiny"]["bytes"]
    assert models["tiny"]["dtype"] == "float32"
    assert models["tiny"]["dimension"] == manager.describe("tiny")["dimension"]
    assert models["tiny"]["loads"] == 1
    assert models["tiny"]["load_seconds"] == stats["tracker"]["load_times"]["tiny"]
    assert models[SLOT]["served_as"] == [SLOT]
    assert models["prompted"]["load_seconds"] is None
    assert after["cache"]["hit_ratio"] == 0.75
    assert after["memory"]["models"] == stats["memory"]["models"]
    assert after["generation"]["generated_tokens"] == 5
    assert after["process"]["isa"] == stats["isa"]
    assert after["requests"]["requests"] == 0


def test_requests_are_counted_without_those_that_only_look(make_writer, serve):
    server = serve(make_writer())
    for _ in range(3):
        server.client.post("/v1/completions", json={"prompt": "Merhaba", "max_tokens": 2})
        server.client.get("/api/status")
    until(lambda: server.client.get("/api/status").json()["requests"]["requests"] == 3)
    traffic = server.client.get("/api/status").json()["requests"]
    assert traffic["failures"] == 0
    assert 0 < traffic["requests_per_second"] <= 0.3
    assert 0 < traffic["latency_p50"] <= traffic["latency_p95"]


def test_requests_a_second_when_more_came_than_are_kept(server):
    metrics = server.service.metrics.__class__()
    for _ in range(5000):
        metrics.request("/v1/embeddings", "POST", 200, 0.001)
    assert metrics.traffic()["requests"] == 5000
    assert metrics.traffic()["requests_per_second"] > 2048 / 10


def test_idle_deadlines(make_manager, serve):
    manager = make_manager(auto_cleanup=True, max_idle_time=500)
    for name, options in (("pinned", {"pinned": True}), ("kept", {"keep_alive": -1}), ("short", {"keep_alive": "60s"})):
        manager.register(name, manager.config.english_model, **options)
    server = serve(manager)
    for name in ("pinned", "kept", "short", "tiny"):
        manager.embed(ENGLISH_TEXT, name)
    models = {model["name"]: model for model in server.client.get("/api/status").json()["models"]}
    assert models["pinned"]["unload_in_seconds"] is None
    assert models["kept"]["unload_in_seconds"] is None
    assert 50 < models["short"]["unload_in_seconds"] <= 60
    assert 490 < models["tiny"]["unload_in_seconds"] <= 500
    assert models["instructed"]["unload_in_seconds"] is None


def test_memory_over_time(server):
    until(lambda: server.client.get("/api/status").json()["memory"]["history"])
    history = server.client.get("/api/status").json()["memory"]["history"]
    assert all(at > 0 and process > models >= 0 for at, process, models in history)
    newest = history[-1][0]
    assert all(at > newest for at, *_ in server.client.get(f"/api/status?since={newest}").json()["memory"]["history"])
    assert len(server.client.get("/api/status?since=nan").json()["memory"]["history"]) >= len(history)


def test_the_history_goes_on_when_the_clock_is_set_back(make_manager, monkeypatch):
    clock = types.SimpleNamespace(time=lambda: 1e9, monotonic=lambda: 50.0)
    monkeypatch.setattr(service_module, "time", clock)
    monkeypatch.setattr(status_module, "time", clock)
    service = service_module.Service(ServerConfig(models=MODELS), make_manager())

    def sampled(seconds, at, since):
        """The status after a sample `seconds` later, with the clock at `at`, for a page that has all up to `since`."""
        clock.time, clock.monotonic = (lambda: at), (lambda: 50.0 + seconds)
        service.sample()
        return status_module.status_of(service, since)

    def times(status):
        return [at for at, *_ in status["memory"]["history"]]

    assert times(sampled(0, 1e9, -1)) == [1e9]
    assert times(sampled(10, 1e9 + 10, 1e9)) == [1e9 + 10]
    status = sampled(20, 1e9 - 3600, 1e9 + 10)
    assert times(status) == [1e9 - 3600], "the page gets the rest again"
    assert status["uptime_seconds"] == 20
    assert times(sampled(30, 1e9 - 3590, 1e9 - 3600)) == [1e9 - 3590]
    assert times(sampled(30.5, 1e9, -1)) == [1e9 - 3600, 1e9 - 3590], "not twice within a second"


def test_since_is_a_number(server):
    answer = server.client.get("/api/status?since=yesterday")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "since"


def test_states(make_manager, serve):
    manager = make_manager()
    server = serve(manager)
    assert server.client.get("/").json()["status"] == "serving"
    server.service.draining = True
    assert server.client.get("/api/status").json()["status"] == "draining"
    assert server.client.get("/").json()["status"] == "draining"


def test_the_page_needs_no_key_but_its_figures_do(serve, make_manager):
    server = serve(make_manager(), api_keys=["secret"])
    assert server.client.get("/", headers={"accept": BROWSER}).status_code == 200
    assert server.client.get("/api/status").status_code == 401
    allowed = server.client.get("/api/status", headers={"authorization": "Bearer secret"})
    assert allowed.status_code == 200
    assert "secret" not in allowed.text
