"""`--adapter`: commands over a model with a LoRA adapter."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from conftest import FIXTURES, tiny
from model_manager.cli import cli

pytestmark = pytest.mark.usefixtures("command_settings")
BASE = str(FIXTURES / "bert_plain")
ADAPTER = str(FIXTURES / "adapters" / "bert_rslora")
LINES = ["Merhaba dünya", "where is my parcel"]
STDIN = "\n".join(LINES) + "\n"


@pytest.fixture(scope="module")
def vectors():
    with tiny() as manager:
        manager.register("bare", BASE, kind="embedding")
        manager.register("adapted", BASE, adapter=ADAPTER)
        found = {name: manager.embed(LINES, name) for name in ("bare", "adapted")}
    assert np.abs(found["bare"] - found["adapted"]).max() > 1e-3
    return found


def test_embed(command, vectors):
    done = command("embed", "-m", BASE, "--adapter", ADAPTER, "-f", "npy", stdin=STDIN)
    assert done.code == 0, done.err
    np.testing.assert_array_equal(np.load(io.BytesIO(done.bytes)), vectors["adapted"])


def test_the_name_of_a_slot_stands_for_its_source(command, vectors, monkeypatch):
    monkeypatch.setenv("ENGLISH_FALLBACK_MODEL", BASE)
    done = command("embed", "-m", "english_sentence", "--adapter", ADAPTER, "-f", "npy", stdin=STDIN)
    assert done.code == 0, done.err
    np.testing.assert_array_equal(np.load(io.BytesIO(done.bytes)), vectors["adapted"])


def test_embed_of_parquet(command, vectors, tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.table({"text": LINES}), tmp_path / "in.parquet")
    out = tmp_path / "out.parquet"
    done = command("embed", str(tmp_path / "in.parquet"), "-m", BASE, "--adapter", ADAPTER, "-o", str(out))
    assert done.code == 0, done.err
    found = np.array(parquet.read_table(out)["embedding"].to_pylist(), np.float32)
    np.testing.assert_array_equal(found, vectors["adapted"])


def test_a_collection_holds_the_vectors_of_one_adapter(command):
    pytest.importorskip("qdrant_client")
    done = command("index", "-m", BASE, "--adapter", ADAPTER, "-c", "notes", stdin=STDIN)
    assert (done.code, done.out[:9]) == (0, "2 indexed"), done.err
    found = command("search", LINES[1], "-m", BASE, "--adapter", ADAPTER, "-c", "notes", "-n", "1", "--json")
    assert [(hit["text"], round(hit["score"], 5)) for hit in json.loads(found.out)] == [(LINES[1], 1.0)]
    refused = command("search", LINES[1], "-m", BASE, "-c", "notes")
    assert refused.code == 1
    assert "bert_rslora" in refused.err


def test_bench(command):
    done = command("bench", "-m", BASE, "--adapter", ADAPTER, "--seconds", "0.01", "--json")
    assert (done.code, json.loads(done.out)["model"]) == (0, BASE), done.err


def test_rerank(command):
    model, adapter = FIXTURES / "rerank_bert", FIXTURES / "adapters" / "bert_rerank"
    done = command("rerank", "soru", "-m", str(model), "--adapter", str(adapter), "--json", stdin=STDIN)
    assert done.code == 0, done.err
    with tiny() as manager:
        manager.register("adapted", model, adapter=adapter, kind="reranker")
        expected = manager.rerank("soru", LINES, "adapted")
    found = [(one["text"], one["score"]) for one in json.loads(done.out)]
    assert found == [(one.document, pytest.approx(one.score)) for one in expected]


@pytest.mark.parametrize("name", ["embed", "rerank", "serve"])
def test_an_adapter_needs_a_model(command, name):
    query = ["soru"] if name == "rerank" else []
    done = command(name, *query, "--adapter", ADAPTER, stdin=STDIN)
    assert done.code == 2
    assert "--model" in done.err


def test_an_adapter_that_does_not_fit_is_refused(command):
    done = command("embed", "-m", str(FIXTURES / "mpnet"), "--adapter", ADAPTER, stdin=STDIN)
    assert done.code == 1
    assert "bert_rslora" in done.err


def test_serve_names_both(monkeypatch):
    pytest.importorskip("fastapi")
    started = []
    monkeypatch.setattr("model_manager.server.main.run", started.append)
    for variable, name in (("", "bert_plain+bert_rslora"), ("given", "given")):
        monkeypatch.setenv("OLLAMA_MODEL_NAME", variable)
        cli.main(["serve", "--model", BASE, "--adapter", ADAPTER], standalone_mode=False)
        (served,) = started.pop().models
        assert (served.name, served.key, served.source, served.adapter) == (name, name, BASE, ADAPTER)
