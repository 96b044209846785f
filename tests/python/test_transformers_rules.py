"""Files that transformers 5 reads by a rule of its own: the same numbers come out here."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import FIXTURES, changed, reference
from generators import GREEDY, SLOT
from model_manager.errors import UnsupportedModelError
from safetensors.numpy import load_file, save_file

TOLERANCE = {"rtol": 0, "atol": 2e-5}
UNTIED = ("llama", "qwen2", "gpt_neox", "falcon_serial", "gptj", "lfm2_biased")


@pytest.mark.parametrize("name", UNTIED)
def test_a_matrix_of_logits_in_the_file_is_used_though_the_configuration_ties_it(make_writer, tmp_path, name):
    tied = {"tie_word_embeddings": True} | ({"tie_embedding": True} if name.startswith("lfm2") else {})
    folder = changed(name, tmp_path / "m", **tied)
    manager = make_writer(generator_model=str(folder))
    for case in reference(name)["cases"]:
        found = manager.complete(case["ids"], SLOT, max_new_tokens=len(case["greedy"]), **GREEDY)
        assert found["tokens"] == case["greedy"]


def test_gpt2_with_a_matrix_of_logits_of_its_own(make_writer, tmp_path):
    answers = []
    for tied in (True, False):
        folder = changed("gpt2", tmp_path / str(tied), tie_word_embeddings=tied)
        tensors = load_file(folder / "model.safetensors")
        (words,) = (tensor for name, tensor in tensors.items() if name.endswith("wte.weight"))
        # Each token has the logit of another.
        tensors["lm_head.weight"] = np.roll(words, 7, axis=0)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        manager = make_writer(generator_model=str(folder))
        answers.append(manager.complete("Merhaba", SLOT, max_new_tokens=8, min_new_tokens=8, **GREEDY)["tokens"])
    plain = make_writer().complete("Merhaba", SLOT, max_new_tokens=8, min_new_tokens=8, **GREEDY)["tokens"]
    assert answers[0] == answers[1] != plain


def test_scores_are_those_of_the_last_token_that_is_no_padding(make_manager, tmp_path):
    """The tokenizer ends each text with the token that the configuration calls padding."""
    end = json.loads((FIXTURES / "rerank_qwen3" / "config.json").read_text("utf-8"))["eos_token_id"]
    padded = changed("rerank_qwen3", tmp_path / "padded", pad_token_id=end)
    template = json.loads((FIXTURES / "rerank_qwen3" / "tokenizer.json").read_text("utf-8"))["post_processor"]
    template = {**template, "pair": template["pair"][:-1]}
    bare = changed("rerank_qwen3", tmp_path / "bare", "tokenizer.json", post_processor=template)
    pairs = [case["pair"] for case in reference("rerank_qwen3")["pairs"] if len(case["ids"]) < 60 and case["pair"][1]]
    scores = {}
    for folder in (padded, bare, FIXTURES / "rerank_qwen3"):
        manager = make_manager()
        manager.register("m", str(folder), kind="reranker", dtype="float32")
        model = manager.get("m")
        scores[folder.name] = model.predict(pairs, activation_fn="identity")
        for pair, score in zip(pairs, scores[folder.name], strict=True):
            np.testing.assert_allclose(model.predict(pair, activation_fn="identity"), score, **TOLERANCE)
    assert reference("rerank_qwen3")["pairs"][0]["ids"][-1] == end
    np.testing.assert_allclose(scores["padded"], scores["bare"], **TOLERANCE)
    assert np.abs(scores["padded"] - scores["rerank_qwen3"]).max() > 0.01


@pytest.mark.parametrize(
    ("name", "layer", "bias"),
    [
        ("splade_bert", "cls.predictions.decoder.bias", "cls.predictions.bias"),
        ("splade_xlmr", "lm_head.decoder.bias", "lm_head.bias"),
    ],
)
def test_sparse_vectors_have_the_bias_of_the_layer_where_a_file_has_two(make_manager, tmp_path, name, layer, bias):
    found = []
    for own in (layer, bias):
        folder = changed(name, tmp_path / own)
        tensors = load_file(folder / "model.safetensors")
        tensors[own] = np.roll(tensors[bias], 5)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        manager = make_manager()
        manager.register("m", str(folder), kind="sparse", dtype="float32")
        found.append(manager.embed_sparse("Merhaba dünya", "m"))
    assert np.array_equal(found[0].indices, found[1].indices)
    np.testing.assert_allclose(found[0].values, found[1].values, **TOLERANCE)


@pytest.mark.parametrize(("name", "kind"), [("bert_cls", "embedding"), ("llama", "generator")])
def test_special_tokens_that_texts_would_be_divided_into_are_refused(make_manager, tmp_path, name, kind):
    folder = changed(name, tmp_path / "m", "tokenizer_config.json", split_special_tokens=True)
    manager = make_manager()
    manager.register("m", str(folder), kind=kind)
    with pytest.raises(UnsupportedModelError, match="split_special_tokens"):
        manager.load("m")


def test_a_saved_nomic_model_names_its_activation_as_transformers_does(make_manager, tmp_path):
    manager = make_manager()
    manager.register("m", str(changed("nomic", tmp_path / "m", hidden_act="mish")))
    with pytest.raises(UnsupportedModelError, match=r"hidden_act.*mish"):
        manager.embed("Merhaba", "m")
    manager.register("saved", str(changed("nomic", tmp_path / "saved", hidden_act="gelu")), dtype="float32")
    published = changed("nomic", tmp_path / "published", hidden_act=None, activation_function="geglu")
    manager.register("published", str(published), dtype="float32")
    assert np.array_equal(manager.embed("Merhaba", "saved"), manager.embed("Merhaba", "published"))


def test_both_patterns_of_a_saved_gemma3_are_read(make_writer, tmp_path):
    """transformers 5 writes one key under its own name, and keeps that of the published file."""
    folder = changed("gemma3_text", tmp_path / "m", sliding_window_pattern=6, _sliding_window_pattern=6)
    manager = make_writer(generator_model=str(folder))
    case = reference("gemma3_text")["cases"][0]
    found = manager.complete(case["ids"], SLOT, max_new_tokens=len(case["greedy"]), **GREEDY)
    assert found["tokens"] == case["greedy"]
