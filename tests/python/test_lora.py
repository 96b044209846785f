"""Adapters over models: two slots of one base, what is said of them, and what is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from conftest import FIXTURES, tiny
from model_manager._embedder import Embedder
from model_manager.errors import InputError, ModelManagerError
from model_manager.semantic import SemanticCache

BASE = str(FIXTURES / "bert_plain")
FOLDER = FIXTURES / "adapters"
ONE, OTHER = str(FOLDER / "bert_rslora"), str(FOLDER / "bert_dora")
JINA = str(FIXTURES / "jina_v3_tasks")


def cases(name, key="cases"):
    return json.loads((FIXTURES / name / "reference.json").read_text(encoding="utf-8"))[key]


def test_slots_of_one_base_have_their_own_vectors_and_cache_entries(tmp_path):
    with tiny(cache_disk=str(tmp_path / "cache")) as manager:
        manager.register("bare", BASE, kind="embedding")
        manager.register("one", BASE, adapter=FOLDER / "bert_rslora")
        manager.register("other", BASE, adapter=OTHER)
        texts = [case["text"] for case in cases("adapters/bert_rslora")]
        found = {name: manager.embed(texts, name, normalize=False) for name in ("bare", "one", "other")}
        for name in found:
            again = manager.embed(texts, name, normalize=False)
            assert np.array_equal(again, found[name]), "from the cache"
        for name, adapter in (("one", "bert_rslora"), ("other", "bert_dora")):
            expected = np.array([case["embedding"] for case in cases(f"adapters/{adapter}")], np.float32)
            assert np.abs(found[name] - expected).max() <= 2e-5
        assert np.abs(found["one"] - found["other"]).max() > 1e-2 < np.abs(found["one"] - found["bare"]).max()
        assert manager.stats()["cache"]["insertions"] == 3 * len(texts)


def test_what_is_said_of_them():
    with tiny() as manager:
        manager.register("one", BASE, adapter=ONE)
        manager.register("bare", BASE, kind="embedding")
        slots = manager.stats()["slots"]
        assert (slots["one"]["adapter"], slots["bare"]["adapter"]) == (ONE, None)
        assert (slots["one"]["kind"], slots["one"]["kind_known"]) == ("embedding", True)
        one, bare = manager.describe("one"), manager.describe("bare")
        assert (one["adapter"], bare["adapter"]) == (ONE, None)
        assert one["source"] == bare["source"] == BASE
        manager.register("writer", FIXTURES / "qwen3", adapter=FOLDER / "qwen3_layers")
        assert manager.stats()["slots"]["writer"]["kind"] == "generator"
        assert manager.describe_generator("writer")["adapter"] == str(FOLDER / "qwen3_layers")
        manager.register("plain", FIXTURES / "qwen3")
        memory = [manager.describe_generator(name)["bytes"] for name in ("writer", "plain")]
        assert memory[0] == memory[1]
        manager.register("classes", BASE, adapter=FOLDER / "bert_classes")
        assert manager.stats()["slots"]["classes"]["kind"] in ("reranker", "classifier")
        manager.load("classes")
        assert manager.describe("classes")["labels"] == ["LABEL_0", "LABEL_1", "LABEL_2"]


def test_tasks_of_jina():
    with tiny() as manager:
        for task in ("retrieval.query", "text-matching"):
            manager.register(task, JINA, adapter=task)
            rows = cases("jina_v3_tasks", f"task {task}")
            vectors = manager.embed([row["text"] for row in rows], task)
            assert np.abs(vectors - np.array([row["embedding"] for row in rows], np.float32)).max() <= 2e-5
        about = manager.describe("retrieval.query")
        assert about["default_prompt_name"] == "retrieval.query"
        assert about["prompts"]["retrieval.passage"].startswith("Represent the document")
        assert manager.describe("text-matching")["default_prompt_name"] is None
        manager.register("unknown", JINA, adapter="retrieval")
        with pytest.raises(InputError, match=r"retrieval\.passage") as raised:
            manager.embed("a", "unknown")
        assert raised.value.param == "adapter"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"adapter": " "}, InputError, "adapter"),
        ({"adapter": ONE, "fallback": [BASE]}, InputError, "fallback"),
        ({"adapter": 5}, TypeError, "adapter must be"),
    ],
)
def test_arguments(options, error, message):
    with tiny() as manager, pytest.raises(error, match=message):
        manager.register("m", BASE, **options)


def test_a_loader_and_a_server_take_none():
    with tiny() as manager:
        with pytest.raises(InputError, match="adapter is for a source"):
            manager.register("m", loader=object, adapter=ONE)
        manager.register("server", "ollama://127.0.0.1:9/model", adapter=ONE)
        with pytest.raises(ModelManagerError, match="server"):
            manager.embed("a", "server")


def test_a_folder_that_is_an_adapter_is_loaded_with_its_base(tmp_path):
    shutil.copytree(ONE, tmp_path / "lora")
    path = tmp_path / "lora" / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | {"base_model_name_or_path": BASE}), encoding="utf-8")
    case = cases("adapters/bert_rslora")[0]
    with tiny() as manager:
        manager.register("lora", tmp_path / "lora")
        assert manager.stats()["slots"]["lora"]["kind"] == "embedding"
        vector = manager.embed(case["text"], "lora", normalize=False)
        assert np.abs(vector - np.array(case["embedding"], np.float32)).max() <= 2e-5
        assert manager.describe("lora")["adapter"] == str(tmp_path / "lora")
        (tmp_path / "lora" / "modules.json").write_text("[]", encoding="utf-8")
        manager.register("own", tmp_path / "lora", replace=True)
        with pytest.raises(ModelManagerError, match=r"modules\.json"):
            manager.embed("a", "own")


@pytest.mark.usefixtures("command_settings")
def test_the_command_says_whether_one_fits(command):
    report = json.loads(command("doctor", BASE, "--adapter", ONE, "--json").out)
    assert (report["runs"], report["adapter"], report["family"]) == (True, ONE, "bert")
    other = command("doctor", str(FIXTURES / "bert_wordpiece"), "--adapter", ONE)
    assert other.code == 1
    assert "[24, 4]" in other.err
    assert command("doctor", "--adapter", ONE).code != 0


def of_one_name(tmp_path, *adapters):
    """Copies of these adapters in folders of one name."""
    return [shutil.copytree(adapter, str(tmp_path / str(place) / "lora")) for place, adapter in enumerate(adapters)]


def test_adapters_of_one_name_are_different_models(tmp_path):
    one, other = of_one_name(tmp_path, ONE, OTHER)
    with tiny() as manager:
        manager.register("s", BASE, adapter=one)
        embedder = Embedder(manager, "s")
        first = (embedder.query_model, embedder.fingerprint)
        cache = SemanticCache(threshold=0.999, manager=manager, model="s")
        cache.put("soru", "cevap")
        manager.register("s", BASE, adapter=other, replace=True)
        second = (embedder.query_model, embedder.fingerprint)
        assert first[0][0] != second[0][0]
        assert first[0][1] != second[0][1]
        assert first[1] != second[1]
        # Its question is embedded again: the vector of the former adapter would not be found.
        assert cache.get("soru") is not None
        # The content alone counts, too: the same path with another adapter.
        shutil.copytree(ONE, other, dirs_exist_ok=True)
        manager.register("s", BASE, adapter=other, replace=True)
        assert embedder.fingerprint == first[1] != second[1]


def test_an_index_tells_adapters_of_one_name_apart(tmp_path):
    pytest.importorskip("qdrant_client")
    from model_manager.integrations.qdrant.encoders import Encoders

    one, other = of_one_name(tmp_path, ONE, OTHER)
    with tiny() as manager:
        manager.register("s", BASE, adapter=one)
        encoders = Encoders(Embedder(manager, "s"))
        before = encoders.identity()
        encoders.remember_checked()
        manager.register("s", BASE, adapter=other, replace=True)
        after = encoders.identity()
        for key in ("model", "fingerprint", "probe"):
            assert before[key] != after[key], key
        with pytest.raises(ModelManagerError, match="replaced"):
            encoders.check_unchanged()


def test_slots_with_equal_files_have_their_own_spelling(tmp_path):
    (tmp_path / "link").symlink_to(ONE, target_is_directory=True)
    link = str(tmp_path / "link")
    found = []
    for order in ((ONE, link), (link, ONE)):
        with tiny() as manager:
            for name in order:
                manager.register(name, BASE, adapter=name)
                manager.load(name)
            assert [manager.describe(name)["adapter"] for name in order] == list(order)
            found += [Embedder(manager, name).fingerprint for name in order]
    assert len(set(found)) == 1


def test_a_server_answers_under_the_name_of_the_base_without_an_adapter():
    pytest.importorskip("fastapi")
    from fastapi.testclient import TestClient
    from model_manager.server import ServedModel, ServerConfig, create_app

    reranker = str(FIXTURES / "rerank_bert")
    with tiny(reranker_model=reranker) as manager:
        manager.register("reranker", reranker, adapter=FOLDER / "bert_rerank", replace="reranker" in manager.slots())
        manager.register("s", BASE, adapter=ONE)
        manager.register("t", BASE, adapter=OTHER)
        with pytest.raises(InputError, match="with the adapter"):
            create_app(ServerConfig(models=(ServedModel("e", slot="s", source=BASE),)), manager)
        with TestClient(create_app(ServerConfig(models=(ServedModel("e", slot="s"),)), manager)) as client:
            asked = {"query": "soru", "documents": ["bir"]}
            assert client.post("/v1/rerank", json=asked | {"model": reranker}).status_code == 404
            assert client.post("/v1/rerank", json=asked | {"model": "reranker"}).status_code == 200
            digests = [model["digest"] for model in client.get("/api/tags").json()["models"]]
            assert len(set(digests)) == len(digests) > 1


def test_a_served_model_with_an_adapter():
    pytest.importorskip("fastapi")
    from fastapi.testclient import TestClient
    from model_manager.errors import ConfigError
    from model_manager.server import ServedModel, ServerConfig, create_app

    served = ServedModel("support", source=BASE, adapter=ONE)
    with tiny() as manager:
        app = create_app(ServerConfig(models=(served, ServedModel("plain", source=BASE))), manager)
        with TestClient(app) as client:

            def vector(name):
                answer = client.post("/v1/embeddings", json={"model": name, "input": "Merhaba"})
                assert answer.status_code == 200, answer.text
                return np.array(answer.json()["data"][0]["embedding"], np.float32)

            assert np.abs(vector("support") - manager.embed("Merhaba", "support")).max() < 1e-6
            assert np.abs(vector("support") - vector("plain")).max() > 1e-3
            assert np.array_equal(vector(BASE), vector("plain")), "the name of the base is that of the bare model"
            listed = {model["id"]: model for model in client.get("/v1/models").json()["data"]}
            assert listed["support"]["capabilities"]["adapter"] == ONE
        assert manager.describe("support")["adapter"] == ONE
        create_app(ServerConfig(models=(served,)), manager)  # the slot holds what it asks for
        for other in (ServedModel("support", source=BASE), ServedModel("support", source=BASE, adapter=OTHER)):
            with pytest.raises(InputError, match="with the adapter"):
                create_app(ServerConfig(models=(other,)), manager)
    with pytest.raises(ConfigError, match="needs the source"):
        ServedModel("support", adapter=ONE)
    with pytest.raises(ConfigError, match="must be a text"):
        ServedModel("support", source=BASE, adapter=" ")


def test_what_is_not_used_of_an_adapter_is_said(tmp_path, caplog):
    folder = shutil.copytree(ONE, tmp_path / "lora")
    (folder / "modules.json").write_text("[]", encoding="utf-8")
    (folder / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    shutil.copy(FIXTURES / "bert_plain" / "tokenizer.json", folder)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | {"base_model_name_or_path": "org/another"}), encoding="utf-8")
    with tiny() as manager, caplog.at_level("WARNING"):
        manager.register("s", BASE, adapter=folder)
        manager.embed("a", "s")
    assert "files that are not used: modules.json, chat_template.jinja;" in caplog.text
    assert "org/another" in caplog.text
