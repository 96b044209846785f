"""Models, health, metrics, loading and unloading; the settings; the endpoints inside another application."""

from __future__ import annotations

import datetime as dt
import json
import re
import subprocess
import sys
import threading

import httpx
import pytest
from conftest import DIMENSION, ENGLISH_MODEL, ENGLISH_TEXT, FIXTURES
from fastapi import FastAPI
from model_manager import ModelManager
from model_manager.errors import InputError
from model_manager.server import ServedModel, ServerConfig, create_app, router, service
from model_manager.server.service import own_manager
from prometheus_client.parser import text_string_to_metric_families
from servers import MODELS, PROMPTS_MODEL, running, until

JSON = {"content-type": "application/json"}


def figures(server):
    """Every metric of /metrics by (name, labels as sorted items)."""
    response = server.client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def is_recent(timestamp):
    moment = dt.datetime.fromisoformat(timestamp)
    return abs((dt.datetime.now(dt.timezone.utc) - moment).total_seconds()) < 60


def test_models(server):
    listed = server.client.get("/v1/models").json()
    assert listed["object"] == "list"
    names = [model["id"] for model in listed["data"]]
    assert names[:3] == ["tiny", "instructed", "prompted"]
    assert {"turkish_sentence", "english_sentence", "text_generator"} <= set(names)
    for model in listed["data"]:
        assert server.client.get(f"/v1/models/{model['id']}").json() == model
        assert model["object"] == "model"
        assert isinstance(model["created"], int)
        assert model["owned_by"]


def test_a_model_tells_what_it_is_once_it_was_loaded(serve):
    server = serve()
    before = server.client.get("/v1/models/tiny").json()["capabilities"]
    assert (before["state"], before["dimensions"], before["instructions"]) == ("absent", None, None)
    server.embed(input=ENGLISH_TEXT)
    after = server.client.get("/v1/models/text-embedding-3-small").json()["capabilities"]
    assert (after["state"], after["dimensions"], after["instructions"]) == ("ready", DIMENSION, False)
    server.manager.unload("tiny")
    assert server.client.get("/v1/models/tiny").json()["capabilities"]["dimensions"] == DIMENSION


def test_health(serve):
    server = serve()
    health = server.client.get("/health").json()
    assert list(health) == ["status", "model_available", "model_name", "dimensions", "timestamp"]
    assert (health["status"], health["model_available"], health["model_name"]) == ("healthy", True, "tiny")
    assert health["dimensions"] is None
    assert is_recent(health["timestamp"])
    assert not server.manager.is_loaded("tiny"), "asking loads nothing"
    server.embed(input="a text")
    assert server.client.get("/health").json()["dimensions"] == DIMENSION


def test_the_length_of_the_default_models_vectors_is_known_before_it_is_loaded(serve, make_manager):
    default = ServerConfig().models
    server = serve(models=default)
    (about,) = [one for one in server.client.get("/v1/models").json()["data"] if one["id"] == default[0].name]
    assert about["capabilities"]["state"] == "absent"
    assert about["capabilities"]["dimensions"] == server.client.get("/health").json()["dimensions"] == 1024
    # Another model in the slot of that name: its own length counts.
    manager = make_manager()
    manager.register(default[0].key, ENGLISH_MODEL)
    other = serve(manager, models=default)
    assert other.client.get("/health").json()["dimensions"] is None
    assert len(other.embed(input="a text").json()["data"][0]["embedding"]) == DIMENSION
    assert other.client.get("/health").json()["dimensions"] == DIMENSION
    shorter = serve(models=[ServedModel(default[0].name, source=default[0].source, dimensions=256)])
    assert shorter.client.get("/health").json()["dimensions"] == 256


def test_ready(serve):
    server = serve()
    assert server.client.get("/ready").json() == {"status": "ready", "reason": None}
    server.service.draining = True
    response = server.client.get("/ready")
    assert (response.status_code, response.json()["status"]) == (503, "draining")
    assert server.client.get("/health").json()["status"] == "draining"
    refused = server.embed(input="a text")
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "shutting_down"
    assert refused.headers["retry-after"]


def test_a_slot_that_the_application_unregistered(serve, make_manager):
    manager = make_manager()
    for slot in ("first", "second"):
        manager.register(slot, ENGLISH_MODEL)
    server = serve(manager, models=[ServedModel("first"), ServedModel("second")])
    server.embed(input="a text", model="second")
    assert figures(server)["model_manager_model_loaded", "second"] == 1
    manager.unregister("second")
    assert server.client.get("/health").json()["status"] == "healthy"
    assert "second" not in [model["id"] for model in server.client.get("/v1/models").json()["data"]]
    assert server.embed(input="a text", model="second").status_code == 404
    assert not [name for name in figures(server) if name[0] == "model_manager_model_bytes" and "second" in name]
    manager.unregister("first")
    health = server.client.get("/health")
    assert (health.status_code, health.json()["status"]) == (200, "degraded")
    assert (health.json()["model_available"], health.json()["dimensions"]) == (False, None)
    ready = server.client.get("/ready")
    assert (ready.status_code, ready.json()["status"]) == (503, "unavailable")
    assert "'first' was unregistered" in ready.json()["reason"]
    for path in ("/v1/models", "/api/tags", "/api/status", "/metrics", "/"):
        assert server.client.get(path).status_code == 200
    assert server.embed(input="a text").status_code == 404
    assert server.client.get("/v1/models/first").status_code == 404


def test_a_default_model_that_could_not_be_loaded_is_loaded_again(serve, make_manager, monkeypatch):
    """A balancer sends no request to a server that is not ready."""
    monkeypatch.setattr(service, "RELOAD_SECONDS", 0.01)
    works, attempts = threading.Event(), []

    def load():
        attempts.append(1)
        if not works.is_set():
            raise OSError("the disk is gone")
        return "an object"

    manager = make_manager()
    manager.register("one", loader=load)
    server = serve(manager, models=[ServedModel("one")])
    assert server.client.get("/ready").status_code == 200
    assert not attempts, "nothing is loaded that no request has asked for"
    assert server.client.post("/api/load", json={"model": "one"}).status_code >= 500
    assert "the disk is gone" in server.client.get("/ready").json()["reason"]
    until(lambda: len(attempts) >= 3)
    assert server.client.get("/ready").status_code == 503
    works.set()
    until(lambda: server.client.get("/ready").status_code == 200)
    assert manager.is_loaded("one")


def test_warm_up_with_the_server(serve):
    server = serve(warm_up=True)
    until(lambda: all(server.manager.is_loaded(model.key) for model in MODELS))
    until(lambda: server.client.get("/ready").status_code == 200)


def test_a_model_that_is_missing_at_the_start_is_reported_then(serve, tmp_path, caplog):
    folder = tmp_path / "mounted later"
    server = serve(models=[ServedModel("one", source=str(folder))])
    until(lambda: server.client.get("/ready").status_code == 503)
    until(lambda: "one cannot be loaded" in caplog.text)
    assert str(folder) in caplog.text
    folder.symlink_to(ENGLISH_MODEL)
    assert server.embed(model="one", input="a text").status_code == 200
    assert server.client.get("/ready").status_code == 200


def test_the_managers_account(server):
    ai = server.client.get("/api/health/ai").json()
    assert list(ai) == ["status", "timestamp", "models", "lazy_loading", "optimization", "profile"]
    assert ai["profile"] == "compatible"
    assert ai["status"] == "healthy"
    assert set(ai["models"]) == set(server.manager.get_model_info())
    assert set(ai["lazy_loading"]) == set(server.manager.get_lazy_loading_statistics())
    assert ai["optimization"] == {
        "lazy_loading_enabled": True,
        "memory_efficient_caching": True,
        "auto_cleanup": False,
        "turkish_language_optimization": True,
    }
    models = server.client.get("/api/health/ai/models").json()
    assert list(models) == ["status", "lazy_loading_enabled", "lazy_loading_stats", "timestamp"]
    assert models["status"] == "healthy"
    assert is_recent(models["timestamp"])


def test_models_are_listed_once(serve, make_writer):
    """Also when the public name of one model is the slot of another."""
    models = [ServedModel("english_sentence", source=MODELS[0].source, slot="mine"), MODELS[0]]
    server = serve(make_writer(), models=models, generators=["text_generator", "text_generator"])
    names = [model["id"] for model in server.client.get("/v1/models").json()["data"]]
    assert sorted(names) == sorted(set(names))
    assert {"english_sentence", "tiny", "turkish_sentence", "text_generator"} == set(names)
    assert server.client.get("/v1/models/english_sentence").json()["capabilities"]["source"] == MODELS[0].source


@pytest.mark.parametrize("path", ["/api/health/ai", "/api/health/ai/models"])
def test_a_manager_that_fails_is_an_answer(serve, path, monkeypatch):
    server = serve()

    def fails(self):
        raise OSError("the disk is gone")

    monkeypatch.setattr(ModelManager, "get_lazy_loading_statistics", fails)
    response = server.client.get(path)
    assert response.status_code == 200
    assert response.json()["status"] == "error"
    assert "the disk is gone" in response.json()["error"]


def moment(text):
    """Python 3.10 reads no Z."""
    return dt.datetime.fromisoformat(text.replace("Z", "+00:00"))


def test_load_ps_unload(serve):
    server = serve()
    assert server.client.get("/api/ps").json() == {"models": []}
    loaded = server.client.post("/api/load", json={"model": "tiny"}).json()
    assert (loaded["model"], loaded["slot"], loaded["loaded"]) == ("tiny", "tiny", True)
    assert loaded["seconds"] >= 0
    (one,) = server.client.get("/api/ps").json()["models"]
    assert (one["name"], one["model"], one["size_vram"]) == ("tiny:latest", "tiny:latest", 0)
    assert one["expires_at"] == "9999-12-31T23:59:59Z"
    about = server.manager.describe("tiny")
    assert (one["size"], one["context_length"]) == (about["bytes"], about["max_length"])
    server.manager.set_auto_cleanup(True, 300, 600)
    (one,) = server.client.get("/api/ps").json()["models"]
    left = moment(one["expires_at"]) - dt.datetime.now(dt.timezone.utc)
    assert 500 < left.total_seconds() <= 600
    # A request's own keep_alive, and a model that stays although others are unloaded.
    for keep_alive, least in [("2h", 7000), (-1, None)]:
        server.client.post(
            "/api/embed", json={"model": "tiny", "input": f"text {keep_alive}", "keep_alive": keep_alive}
        ).raise_for_status()
        (one,) = server.client.get("/api/ps").json()["models"]
        if least is None:
            assert one["expires_at"] == "9999-12-31T23:59:59Z"
        else:
            left = moment(one["expires_at"]) - dt.datetime.now(dt.timezone.utc)
            assert least < left.total_seconds() <= 7200
    unloaded = server.client.post("/api/unload", json={"model": "tiny"}).json()
    assert unloaded["loaded"] is False
    assert not server.manager.is_loaded("tiny")
    assert server.client.post("/api/unload", json={"model": "tiny"}).json()["loaded"] is False


def test_warm_up(serve):
    server = serve()
    answer = server.client.post("/api/warmup", json={"models": ["tiny", "english_sentence"]}).json()
    assert [(one["model"], one["loaded"]) for one in answer["models"]] == [("tiny", True), ("english_sentence", True)]
    answer = server.client.post("/api/warmup", json={}).json()
    assert [one["model"] for one in answer["models"]] == [model.name for model in MODELS]


def test_a_path_prefix(serve):
    server = serve(root_path="/px")
    for prefix in ("", "/px"):
        assert server.client.get(f"{prefix}/health").status_code == 200
        assert server.client.get(f"{prefix}/nothing").json()["error"]["code"] == "unknown_path"
        assert isinstance(server.client.get(f"{prefix}/api/nothing").json()["error"], str)
        assert "/px/openapi.json" in server.client.get(f"{prefix}/docs").text
    assert server.client.get("/openapi.json").json()["servers"] == [{"url": "/px"}]
    for path in ("/px", "/px/", "/"):
        page = server.client.get(path, headers={"accept": "text/html"})
        assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")


async def test_an_application_that_was_not_started_says_so(manager, caplog):
    outer, inner = FastAPI(), create_app(ServerConfig(models=MODELS, warm_up=True), manager)
    outer.mount("/m", inner)
    transport = httpx.ASGITransport(outer)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        for _ in range(2):
            assert (await client.get("/m/health")).status_code == 200
        assert [record.name for record in caplog.records if "lifespan" in record.message] == ["model_manager.server"]
        caplog.clear()
        async with inner.router.lifespan_context(inner):
            assert (await client.get("/m/health")).status_code == 200
    assert not any("lifespan" in record.message for record in caplog.records)


def test_every_model_in_memory_can_be_named(serve, make_writer):
    manager = make_writer(reranker_model=str(FIXTURES / "rerank_bert"))
    sparse = str(FIXTURES / "splade_bert")
    manager.register("words", sparse, kind="sparse")
    server = serve(manager)
    generator = manager.stats()["slots"]["text_generator"]["source"]
    named = {"reranker": "reranker", "words:latest": "words", "text_generator:latest": "text_generator"}
    named |= {
        sparse: "words",
        generator: "text_generator",
        "tiny:latest": "tiny",
        "english_sentence": "english_sentence",
    }
    for name, slot in named.items():
        answer = server.client.post("/api/load", json={"model": name}).json()
        assert (answer["slot"], answer["loaded"]) == (slot, True)
    for model in server.client.get("/api/ps").json()["models"]:
        assert server.client.post("/api/unload", json={"model": model["name"]}).json()["loaded"] is False
    assert server.client.get("/api/ps").json()["models"] == []
    served = {model["name"]: model["served_as"] for model in server.client.get("/api/status").json()["models"]}
    assert (served["words"], served["reranker"]) == (["words"], ["reranker"])
    missing = server.client.post("/api/unload", json={"model": "none"}).json()["error"]
    assert missing["code"] == "model_not_found"
    assert {"tiny", "words", "reranker", "text_generator"} <= set(re.split(r"[ ,]+", missing["message"]))


def test_loading_and_unloading_can_be_refused(serve):
    server = serve(admin=False)
    for path in ("/api/load", "/api/unload", "/api/warmup"):
        response = server.client.post(path, json={})
        assert response.status_code == 403
        assert response.json()["error"]["type"] == "permission_error"
    assert server.client.get("/api/ps").status_code == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/load", {"model": 5}),
        ("/api/load", {"model": "none"}),
        ("/api/unload", {"model": "none"}),
        ("/api/warmup", {"models": "tiny"}),
        ("/api/warmup", {"models": [5]}),
        ("/api/warmup", {"models": ["tiny", "none"]}),
    ],
)
def test_loading_what_is_not_there(server, path, body):
    response = server.client.post(path, json=body)
    assert response.status_code in {400, 404}
    assert response.json()["error"]["param"] in {"model", "models"}


def test_metrics(serve):
    server = serve()
    for _ in range(3):
        server.embed(input=[ENGLISH_TEXT, "another"])
    server.embed(input="")
    server.client.get("/v1/models/tiny")
    server.client.get("/nothing")
    found = figures(server)
    assert found["model_manager_http_requests_total", "POST", "/v1/embeddings", "200"] == 3
    assert found["model_manager_http_requests_total", "POST", "/v1/embeddings", "400"] == 1
    assert found["model_manager_http_requests_total", "GET", "/v1/models/{model_id}", "200"] == 1
    assert found["model_manager_http_request_seconds_count", "/v1/embeddings"] == 4
    assert found["model_manager_embedding_inputs_total", "tiny"] == 6
    assert found["model_manager_embedding_tokens_total", "tiny"] == 3 * sum(
        server.manager.count_tokens([ENGLISH_TEXT, "another"], "tiny")
    )
    assert found["model_manager_cache_hits_total",] == 4
    assert found["model_manager_cache_misses_total",] == 2
    assert found["model_manager_cache_entries",] == 2
    assert found["model_manager_computed_inputs_total",] == 2
    assert found["model_manager_model_loaded", "tiny"] == 1
    assert found["model_manager_model_loaded", "instructed"] == 0
    assert found["model_manager_resident_bytes",] > 1e6
    assert found["model_manager_process_cpu_seconds_total",] > 0
    server.manager.cache_clear()
    for _ in range(8):
        server.embed(input=ENGLISH_TEXT)
    found = figures(server)
    assert found["model_manager_cache_misses_total",] == 3, "a counter never falls"
    assert found["model_manager_cache_hits_total",] == 4 + 7
    server.manager.cache_clear()
    for total in ("hits", "misses"):
        assert server.manager.stats()["cache"]["totals"][total] == found[f"model_manager_cache_{total}_total",]
    assert server.manager.stats()["cache"]["hits"] == 0


def test_request_ids(server):
    given = server.client.get("/health", headers={"x-request-id": "mine-1"})
    assert given.headers["x-request-id"] == "mine-1"
    made = {server.client.get("/health").headers["x-request-id"] for _ in range(5)}
    assert len(made) == 5
    foul = server.client.get("/health", headers={"x-request-id": "a b"})
    assert foul.headers["x-request-id"] != "a b"
    failed = server.client.post("/v1/embeddings", content=b"{", headers={**JSON, "x-request-id": "mine-2"})
    assert failed.headers["x-request-id"] == "mine-2"


def test_memory_over_time(serve):
    server = serve()
    server.service.sample()
    moment, resident, models = server.service.history[-1]
    assert moment > 1e9
    assert resident > 1
    assert models >= 0


def test_cors_is_off_by_default(server):
    response = server.client.options(
        "/v1/embeddings", headers={"origin": "https://a.example", "access-control-request-method": "POST"}
    )
    assert response.status_code == 405
    assert (
        "access-control-allow-origin"
        not in server.client.get("/health", headers={"origin": "https://a.example"}).headers
    )


def test_cors(serve):
    server = serve(cors_origins=["https://a.example"], api_keys=["secret"])
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    allowed = server.client.options("/v1/embeddings", headers={"origin": "https://a.example", **asked})
    assert allowed.headers["access-control-allow-origin"] == "https://a.example"
    refused = server.client.options("/v1/embeddings", headers={"origin": "https://b.example", **asked})
    assert "access-control-allow-origin" not in refused.headers
    errors = server.client.get("/v1/models", headers={"origin": "https://a.example"})
    assert (errors.status_code, errors.headers["access-control-allow-origin"]) == (401, "https://a.example")


def test_the_document_describes_every_endpoint(server):
    document = server.client.get("/openapi.json").json()
    operations = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    served = {
        (route.app.method, route.path_format)
        for route in server.app.routes
        if type(route).__name__ == "Route" and (route.path == "/" or not route.path.endswith("/"))
    }
    own = {"/openapi.json", "/docs"}
    assert operations == {(method, path) for method, path in served if path not in own}
    for item in document["paths"].values():
        for operation in item.values():
            assert operation["summary"]
            assert {"4XX", "5XX", "200"} <= set(operation["responses"])


# --- Inside another application --------------------------------------------------------------------------------------


def test_router(make_manager):
    host = FastAPI()
    host.include_router(router(ServerConfig(models=MODELS, api_keys=["secret"]), make_manager()), prefix="/ai")

    @host.get("/own")
    def own() -> str:
        return "the host's"

    with running(host) as server:
        client = server.client
        assert client.get("/own").json() == "the host's"
        assert client.get("/nothing").json() == {"detail": "Not Found"}, "the host's own answer"
        assert client.get("/ai/health").json()["model_name"] == "tiny"
        assert client.get("/ai/v1/models").json()["error"]["type"] == "authentication_error"
        headers = {"authorization": "Bearer secret"}
        assert client.post("/ai/v1/embeddings", json={"input": "a"}, headers=headers).status_code == 200
        assert (
            client.post("/ai/v1/embeddings", content=b"{", headers={**headers, **JSON}).json()["error"]["code"]
            == "invalid_json"
        )
        assert "/ai/v1/embeddings" in client.get("/openapi.json").json()["paths"]


def test_router_serves_the_process_wide_manager():
    code = """
from model_manager import model_manager
from model_manager.server import ServedModel, ServerConfig, router
router(ServerConfig(models=[ServedModel("english", slot="english_sentence"), ServedModel("new", source="/nowhere")]))
assert "new" in model_manager.slots()
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


# --- Settings --------------------------------------------------------------------------------------------------------


def test_a_servers_own_manager_has_a_cache_for_many_clients(monkeypatch):
    with own_manager() as manager:
        config = manager.config
        assert (config.cache_policy, config.cache_ttl, config.cache_size) == ("ttl", 600, 10_000)
    monkeypatch.setenv("MEMORY_EFFICIENT_CACHE_SIZE", "70")
    with own_manager() as manager:
        assert (manager.config.cache_size, manager.config.cache_policy) == (70, "ttl")


def test_an_application_can_start_again():
    app = create_app(ServerConfig(models=MODELS))
    for _ in range(2):
        with running(app) as server:
            assert server.embed(input="a text").status_code == 200
        assert app.state.service.manager.closed


def test_a_served_model_needs_a_source_or_a_slot(manager):
    with pytest.raises(InputError, match="no_slot"):
        create_app(ServerConfig(models=[ServedModel("no_slot")]), manager)


@pytest.mark.parametrize("there", [{"source": PROMPTS_MODEL}, {"loader": object}])
def test_a_served_model_whose_slot_holds_another_is_refused(make_manager, monkeypatch, there):
    manager = make_manager()
    manager.register("taken", **there)
    source = MODELS[0].source
    message = rf"'taken' has the source '{source}', and the manager's slot 'taken' holds .* leave its source out"
    with pytest.raises(InputError, match=message):
        create_app(ServerConfig(models=[ServedModel("taken", source=source)]), manager)
    create_app(ServerConfig(models=[ServedModel("taken")]), manager)
    # Of the one that the environment describes, the name is the name of the slot.
    monkeypatch.setenv("OLLAMA_MODEL_NAME", "taken")
    monkeypatch.setenv("MODEL_MANAGER_SERVER_MODEL", source)
    with pytest.raises(InputError, match=r"holds .*; choose another OLLAMA_MODEL_NAME$"):
        create_app(ServerConfig(), manager)
    # The source that was registered, whichever of its chain is loaded.
    manager.register("chain", "/no/such/model", fallback=[source])
    manager.embed("a", "chain")
    create_app(ServerConfig(models=[ServedModel("chain", source="/no/such/model")]), manager)
    secret = "openai://key@localhost:9/model"
    create_app(ServerConfig(models=[ServedModel("far", source=secret)]), manager)
    create_app(ServerConfig(models=[ServedModel("far", source=secret)]), manager)
    with pytest.raises(InputError) as caught:
        create_app(ServerConfig(models=[ServedModel("chain", source=secret)]), manager)
    assert "key@" not in str(caught.value)


def test_a_source_is_not_answered_by_another_model(serve, manager):
    """The slot of a served model may be given another one while the server runs."""
    server = serve(manager)
    assert server.embed(input="a", model=PROMPTS_MODEL).json()["model"] == "prompted"
    manager.register("prompted", str(FIXTURES / "bert_plain"), replace=True)
    assert server.embed(input="a", model="prompted").status_code == 200
    assert server.embed(input="a", model=PROMPTS_MODEL).status_code == 404
    manager.register("again", PROMPTS_MODEL)
    assert server.embed(input="a", model=PROMPTS_MODEL).json()["model"] == "again"


def test_the_core_does_not_import_the_server():
    code = (
        "import sys, model_manager; "
        "assert not {'fastapi', 'starlette', 'uvicorn', 'pydantic', 'prometheus_client', 'orjson'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


def test_the_extra_is_named_where_it_is_missing():
    code = """
import sys
import threading
sys.modules["prometheus_client"] = None
try:
    import model_manager.server
except ImportError as error:
    assert "pip install 'model-manager-rs[server]'" in str(error), error
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


def test_the_document_has_every_shape_that_it_names(server):
    document = server.client.get("/openapi.json").text
    named = set(re.findall(r'"#/components/schemas/([^"]+)"', document))
    assert named <= set(json.loads(document)["components"]["schemas"])
    assert {"ChatRequest", "Message", "OllamaChatRequest", "OllamaMessage"} <= named
    assert "$defs" not in document
