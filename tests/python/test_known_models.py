"""`models --known`, `doctor MODEL`, and the table of well-known models."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
from conftest import run_python
from model_manager import _core
from model_manager.cli import known

pytestmark = pytest.mark.usefixtures("command_settings")

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
_SPEC = importlib.util.spec_from_file_location("models_table", ROOT / "scripts" / "models_table.py")
models_table = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(models_table)


def test_the_families(command):
    found = json.loads(command("models", "--known", "--json").out)
    assert found == _core._families()
    families = {family["model_type"]: family for family in found}
    assert len(families) == len(found) >= 25
    assert families["bert"]["kinds"] == ["embedding", "reranker", "sparse"]
    assert families["bert"]["gguf"] == {"bert": ["embedding"]}
    assert families["gpt2"]["kinds"] == ["generator"]
    assert families["qwen3"]["gguf"]["qwen3"] == ["embedding", "generator"]
    assert [family["model_type"] for family in found if not family["example"]] == []
    shown = command("models", "--known")
    assert shown.code == 0
    assert all(family["model_type"] in shown.out for family in found)


def test_the_table():
    rows = models_table.entries()
    assert len(rows) >= 60
    assert rows[0]["group"] == "Turkish"
    assert len({row["model"] for row in rows}) == len(rows)
    refused = {row["model"]: models_table.refusal(row) for row in rows}
    assert refused["intfloat/multilingual-e5-base"] is None
    assert refused["mixedbread-ai/mxbai-rerank-xsmall-v1"] is None, "computed by the engine"
    assert "t5" in refused["boun-tabi-LMG/TURNA"]
    assert refused["jinaai/jina-embeddings-v3"] is None, "with its adapters"
    assert refused["nomic-ai/nomic-embed-text-v2-moe"] is None, "with its experts"
    # Models that read images too: their text model runs.
    assert refused["google/gemma-3-4b-it"] is None
    assert refused["mistralai/Mistral-Small-3.1-24B-Instruct-2503"] is None
    assert "quantization_config" in refused["mistralai/Ministral-3-3B-Instruct-2512"]
    for row in rows:
        assert row["kind"] in {"embedding", "generator", "reranker", "sparse"}, row["model"]
        assert all(part == "" or float(part) > 0 for part in (row["millions"], row["dimensions"], row["tokens"]))
    page = models_table.PAGE.read_text(encoding="utf-8")
    assert models_table.page() == page, "run make models-table"


def test_examples_that_are_no_ids_are_translated():
    examples = {family["example"] for family in _core._families()}
    assert known._TURKISH_EXAMPLES.keys() == {example for example in examples if " " in (example or "")}
    code = "from model_manager.cli import run; run(['models', '--known'])"
    settings = {"LANGUAGE": "", "LC_ALL": "tr_TR.UTF-8", "PYTHONIOENCODING": "utf-8", "COLUMNS": "250"}
    shown = run_python(code, **settings).stdout
    for english, turkish in known._TURKISH_EXAMPLES.items():
        assert (english in shown, turkish in shown) == (False, True)


def test_the_examples_of_families_that_are_in_the_table_run():
    refused = {row["model"]: models_table.refusal(row) for row in models_table.entries()}
    examples = [family["example"] for family in _core._families() if family["example"] in refused]
    assert len(examples) >= 15
    assert {example: refused[example] for example in examples if refused[example]} == {}


def test_a_folder_that_runs(command):
    done = command("doctor", str(FIXTURES / "xlmr"), "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["runs"] is True
    assert (found["family"], found["kind"], found["tokenizer"]) == ("xlm-roberta", "embedding", "Unigram")
    assert found["tasks"] == ["embed", "embed_multi"]
    assert found["memory_bytes"] > 0
    assert found["local"] is True
    assert found["profile"] == "compatible"
    shown = command("doctor", str(FIXTURES / "gpt2"))
    assert shown.code == 0
    assert "generator" in shown.out
    assert "It runs." in shown.out
    assert json.loads(command("doctor", "turkish_sentence", "--json").out)["family"] == "xlm-roberta", "a slot"


@pytest.mark.parametrize(
    ("name", "family", "stored", "length"),
    [("model2vec", "model2vec", "int8", 512), ("static_embedding", "StaticEmbedding", "float32", None)],
)
def test_a_static_model(command, make_manager, name, family, stored, length):
    done = command("doctor", str(FIXTURES / name), "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["runs"] is True
    assert (found["family"], found["kind"], found["tasks"]) == (family, "embedding", ["embed"])
    assert (found["stored"], found["max_length"], found["dtype"]) == (stored, length, None)
    manager = make_manager()
    manager.register("static", str(FIXTURES / name))
    assert found["hidden"] == manager.embed("merhaba", "static").shape[-1]
    assert found["memory_bytes"] > 0
    shown = command("doctor", str(FIXTURES / name))
    assert shown.code == 0
    assert family in shown.out
    assert "It runs." in shown.out
    refused = command("doctor", str(FIXTURES / name), "--kind", "generator")
    assert refused.code == 1
    assert "static model" in refused.err


def test_what_does_not_run(command, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(FIXTURES / "bert_plain", folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "made-up"}), encoding="utf-8")
    done = command("doctor", str(folder), "--json")
    assert done.code == 1
    found = json.loads(done.out)
    assert found["runs"] is False
    assert "made-up" in found["reason"]
    assert "model-manager models --known" in found["reason"], "what is supported"
    assert "made-up" in command("doctor", str(folder)).err
    (folder / "tokenizer.json").unlink()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert "tokenizer.json" in command("doctor", str(folder)).err
    assert command("doctor", str(tmp_path / "absent")).code == 1
    assert command("doctor", str(FIXTURES / "gpt2"), "--kind", "embedding").code == 1
    assert command("doctor", "--kind", "embedding").code == 2


def test_a_hub_model_offline(command, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("MODEL_MANAGER_CACHE_DIR", str(tmp_path))
    done = command("doctor", "someone/absent")
    assert done.code == 1
    assert "HF_HUB_OFFLINE" in done.err


def test_slots_with_different_models(command, monkeypatch):
    done = command("doctor", "--quick", "--json")
    assert done.code == 0, "a warning is no problem"
    (warning,) = json.loads(done.out)["warnings"]
    assert "MODEL_MANAGER_PROFILE=multilingual" in warning
    assert "Warning: " in command("doctor", "--quick").err
    monkeypatch.setenv("AI_LANGUAGE_DETECTION", "false")
    assert json.loads(command("doctor", "--quick", "--json").out)["warnings"] == []
    monkeypatch.delenv("AI_LANGUAGE_DETECTION")
    monkeypatch.setenv("MODEL_MANAGER_PROFILE", "multilingual")
    monkeypatch.delenv("ENGLISH_FALLBACK_MODEL")
    found = json.loads(command("doctor", "--quick", "--json").out)
    assert found["warnings"] == []
    assert found["machine"]["profile"] == "multilingual"


_DESCRIBED = [
    "bert_dense",
    "bge_m3",
    "colbert",
    "convbert",
    "nli_bert",
    "qwen3_embedding",
    "qwen3_reranker",
    "rerank_bert",
    "rerank_convbert",
    "rerank_modernbert",
    "splade_bert",
    "static_embedding",
]


@pytest.mark.parametrize("name", _DESCRIBED)
def test_a_model_is_the_same_before_and_after_its_load(make_manager, name):
    manager = make_manager()
    found = manager._inspect(str(FIXTURES / name), None)
    manager.register("m", str(FIXTURES / name))
    described = manager.describe("m")
    assert found["tasks"] == described["tasks"]
    assert found["kind"] == manager.stats()["slots"]["m"]["kind"]
    assert found["prompts"] == described["prompts"]
    if name != "static_embedding":  # it has none
        assert found["max_length"] == described["max_length"]


@pytest.mark.parametrize(("kind", "runs"), [("reranker", "rerank_bert"), ("sparse", "splade_bert")])
def test_an_embedding_model_does_not_run_as_another(command, kind, runs):
    done = command("doctor", str(FIXTURES / "bert_plain"), "--kind", kind)
    assert done.code == 1
    assert "It does not run" in done.err
    assert "its files are those of an embedding model" in done.err
    assert command("doctor", str(FIXTURES / runs), "--kind", kind).code == 0


@pytest.mark.parametrize(
    ("name", "pooling"),
    [("bert_plain", "mean"), ("bert_cls", "cls"), ("rerank_bert", "cls"), ("colbert", None), ("splade_bert", None)],
)
def test_a_model_that_pools_nothing_has_no_pooling(make_manager, name, pooling):
    manager = make_manager()
    manager.register("m", str(FIXTURES / name))
    assert manager.describe("m")["pooling"] == pooling


def test_the_folder_of_the_hub_is_that_of_the_core(command, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "MODEL_MANAGER_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    expected = tmp_path / ".cache" / "huggingface" / "hub"
    for variable, value, folder in [
        (None, "", expected),
        ("XDG_CACHE_HOME", "~/x", tmp_path / "x" / "huggingface" / "hub"),
        ("HF_HOME", "~/home", tmp_path / "home" / "hub"),
        ("HUGGINGFACE_HUB_CACHE", "~/old", tmp_path / "old"),
        ("HF_HUB_CACHE", "~/new", tmp_path / "new"),
        ("MODEL_MANAGER_CACHE_DIR", "~/own", tmp_path / "own"),
    ]:
        if variable is not None:
            monkeypatch.setenv(variable, value)
        shown = json.loads(command("models", "--json").out)
        assert shown["cache"]["folder"] == str(folder), variable
