"""Families that candle computes: DeBERTa-v2 and LFM2, under the calls, lifecycle and cache of the others."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from conftest import FIXTURES, reference, run_python
from generators import GREEDY, SLOT
from model_manager import _core
from model_manager.errors import InvalidFileError, TaskError, UnsupportedModelError
from test_process import FORK, MANAGER

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(
    not any(family["engine"] == "candle" and family["built"] for family in _core._families()),
    reason="a build without the feature candle-models",
)

ENCODERS = ("deberta_v3", "deberta_v2", "deberta_c2p")
GENERATORS = ("lfm2", "lfm2_biased")
TOLERANCE = {"rtol": 0, "atol": 2e-5}


def changed(name: str, folder: Path, **config: Any) -> str:
    """A copy of a fixture whose configuration says something else."""
    shutil.copytree(FIXTURES / name, folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | config), "utf-8")
    return str(folder)


@pytest.mark.parametrize("name", ENCODERS)
def test_vectors_alone_and_together_are_the_same_to_the_bit(make_manager, name):
    manager = make_manager(cache_size=0)
    manager.register("model", str(FIXTURES / name), dtype="float32")
    cases = reference(name)["cases"]
    texts = [case["text"] for case in cases]
    together = manager.embed(texts, model="model")
    want = np.array([case["embedding"] for case in cases])
    np.testing.assert_allclose(together, want / np.linalg.norm(want, axis=1, keepdims=True), **TOLERANCE)
    for text, vector in zip(texts, together, strict=True):
        assert np.array_equal(manager.embed(text, model="model"), vector), text
    states = manager.embed_multi(texts[:2], model="model")
    assert [state.shape[1] for state in states] == [together.shape[1]] * 2


def test_what_it_is_and_what_it_lacks(make_manager, command):
    manager = make_manager()
    manager.register("model", str(FIXTURES / "deberta_v3"))
    manager.embed("Merhaba", model="model")
    found = manager.describe("model")
    assert (found["engine"], found["architecture"], found["dtype"]) == ("candle", "deberta-v2", "float32")
    assert {"bfloat16", "int8", "batched products"} <= set(found["lacks"])
    assert found["bytes"] > 4 * 275 * 24
    manager.embed("Merhaba", model="english_sentence")
    assert (manager.describe("english_sentence")["engine"], manager.describe("english_sentence")["lacks"]) == (
        "model_manager",
        [],
    )
    doctor = command("doctor", str(FIXTURES / "lfm2"), "--json")
    assert doctor.code == 0, doctor.err
    report = json.loads(doctor.out)
    assert (report["engine"], report["kind"], report["dtype"]) == ("candle", "generator", "float32")
    assert "int8" in report["lacks"]
    assert "candle" in command("doctor", str(FIXTURES / "lfm2")).out
    families = {family["model_type"]: family for family in json.loads(command("models", "--known", "--json").out)}
    assert families["deberta-v2"]["engine"] == families["lfm2"]["engine"] == "candle"
    assert families["deberta-v2"]["kinds"] == ["embedding", "reranker"]
    assert families["bert"]["engine"] == "model_manager"


def test_memory_comes_back(make_manager):
    manager = make_manager(memory_budget="1GB")
    manager.register("model", str(FIXTURES / "deberta_v2"))
    assert manager.stats()["memory"]["models"] == 0
    first = manager.embed("bir", model="model")
    assert manager.stats()["memory"]["models"] == manager.describe("model")["bytes"] > 0
    assert manager.unload("model")
    assert manager.stats()["memory"]["models"] == 0
    hits = manager.stats()["cache"]["hits"]
    assert np.array_equal(manager.embed("bir", model="model"), first)
    assert manager.stats()["cache"]["hits"] == hits + 1, "the cache outlives the model"


@pytest.mark.parametrize("name", ["rerank_deberta", "nli_deberta"])
def test_scores_are_those_of_sentence_transformers(make_manager, name):
    manager = make_manager()
    manager.register("model", str(FIXTURES / name), dtype="float32")
    expected = reference(name)["pairs"]
    for key, activation in (("logits", "identity"), ("scores", None)):
        found = manager.get("model").predict([case["pair"] for case in expected], activation_fn=activation)
        want = [case[key] for case in expected]
        np.testing.assert_allclose(found.reshape(len(want), -1), want, **TOLERANCE)
    labels = reference(name)["labels"]
    assert manager.describe("model")["labels"] == labels
    assert sorted(manager.classify("Merhaba", model="model").scores) == sorted(labels)
    if len(labels) == 1:
        ranked = manager.rerank("başkent?", ["Ankara", "köpek", "Ankara"], model="model")
        assert sorted(one.index for one in ranked) == [0, 1, 2]
    with pytest.raises(TaskError, match="scores"):
        manager.embed("a", model="model")


@pytest.mark.parametrize("name", GENERATORS)
def test_answers_are_those_of_transformers(make_writer, name):
    manager = make_writer(name)
    manager.load(SLOT)
    cases = reference(name)["cases"]
    for case in cases:
        found = manager.complete(case["ids"], max_new_tokens=len(case["greedy"]), **GREEDY)
        assert found["tokens"] == case["greedy"], case["prompt"]
        pieces = list(manager.stream(case["prompt"], max_new_tokens=len(case["greedy"]), **GREEDY))
        assert "".join(pieces) == found["text"]
    described = manager.describe_generator(SLOT)
    assert (described["engine"], described["dtype"]) == ("candle", "float32")
    assert described["kv_bytes_per_token"] > 0


def test_a_conversation_goes_on_and_stops(make_writer):
    """A known beginning is computed anew: some of the layers are recurrent."""
    manager = make_writer("lfm2")
    prompt = reference("lfm2")["cases"][0]
    ids, rest = prompt["ids"], prompt["greedy"]
    longer = [*ids, *rest[:6]]
    first = manager.complete(ids, max_new_tokens=6, **GREEDY)
    again = manager.complete(longer, max_new_tokens=len(rest) - 6, **GREEDY)
    assert [*first["tokens"], *again["tokens"]] == rest
    other = manager.complete([*longer[:-2], *rest[:2]], max_new_tokens=3, **GREEDY)
    manager.unload(SLOT)
    assert manager.complete([*longer[:-2], *rest[:2]], max_new_tokens=3, **GREEDY)["tokens"] == (other["tokens"])
    text = first["text"]
    stopped = manager.complete(ids, max_new_tokens=6, stop=[text[2:4]], **GREEDY)
    assert stopped["text"] == text[: text.index(text[2:4])]
    sampled = {"do_sample": True, "temperature": 0.8, "top_k": 20, "seed": 7, "max_new_tokens": 8}
    assert manager.generate(ids, **sampled) == manager.generate(ids, **sampled)


@pytest.mark.parametrize(
    ("name", "config", "said"),
    [
        ("deberta_v3", {"pos_att_type": "p2p"}, "pos_att_type"),
        ("deberta_v3", {"norm_rel_ebd": "rms"}, "norm_rel_ebd"),
        ("deberta_v3", {"position_buckets": 3}, "position_buckets"),
        ("deberta_v3", {"attention_head_size": 5}, "attention_head_size"),
        ("deberta_v3", {"z_steps": 2}, "z_steps"),
        ("deberta_v2", {"conv_kernel_size": 4}, "conv_kernel_size"),
        ("deberta_v2", {"conv_act": "mish"}, "conv_act"),
        ("deberta_v2", {"conv_groups": 5}, "conv_groups"),
        ("deberta_v2", {"conv_kernel_size": 5}, "encoder.conv.conv.weight"),
        ("deberta_v3", {"share_att_key": False}, "pos_key_proj"),
        ("deberta_v3", {"type_vocab_size": 2}, "token_type_embeddings"),
        ("rerank_deberta", {"pooler_hidden_act": "mish"}, "pooler_hidden_act"),
        ("rerank_deberta", {"pooler_hidden_size": 48}, "pooler_hidden_size"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(make_manager, tmp_path, name, config, said):
    manager = make_manager()
    manager.register("model", changed(name, tmp_path / "model", **config))
    with pytest.raises((UnsupportedModelError, InvalidFileError), match=said):
        manager.load("model")
    assert not manager.is_loaded("model")


@pytest.mark.parametrize(
    ("name", "config", "said"),
    [
        ("lfm2", {"conv_L_cache": 1}, "conv_L_cache"),
        ("lfm2", {"layer_types": ["conv"]}, "layer_types"),
        ("lfm2", {"layer_types": ["conv", "linear_attention", "conv", "conv"]}, "layer_types"),
        ("lfm2", {"num_experts": 4}, "num_experts"),
        ("lfm2", {"block_ff_dim": 200}, "feed_forward.w1"),
    ],
)
def test_generators_refuse_by_name(make_writer, tmp_path, name, config, said):
    manager = make_writer("gpt2", generator_model=changed(name, tmp_path / "model", **config))
    with pytest.raises((UnsupportedModelError, InvalidFileError), match=said):
        manager.load(SLOT)
    assert not manager.is_loaded(SLOT)


def test_other_formats_are_float32_with_a_warning(make_manager, caplog):
    manager = make_manager()
    manager.register("model", str(FIXTURES / "deberta_v3"), dtype="int8")
    case = reference("deberta_v3")["cases"][0]
    with caplog.at_level("WARNING"):
        np.testing.assert_allclose(manager.embed(case["text"], model="model"), case["embedding"], **TOLERANCE)
    assert manager.describe("model")["dtype"] == "float32"
    assert any("int8" in record.message and "candle" in record.message for record in caplog.records)


@pytest.mark.chaos
def test_a_fork_works_on():
    """The parent's pool has threads that the child lacks; texts are long enough for every operation to use several."""
    run_python(
        MANAGER
        + FORK
        + f"""
import numpy as np
m = tiny(cache_size=0, threads=2)
m.register("model", {str(FIXTURES / "deberta_v2")!r})
texts = ["bir iki üç dört beş altı yedi sekiz dokuz on " * 4 + str(number) for number in range(40)]
want = m.embed(texts, model="model")
def work():
    assert m.is_loaded("model")
    assert np.array_equal(m.embed(texts, model="model"), want)
    m.close()
check_child(work)
check_child(work)
assert np.array_equal(m.embed(texts, model="model"), want)
"""
    )
