"""Nomic BERT with mixtures of experts (nomic-embed-text-v2-moe), and files that say their sizes twice."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import FIXTURES, changed, reference
from model_manager import _core
from model_manager.errors import InvalidFileError, UnsupportedModelError

NAME = "nomic_moe"
# What published files of the models without experts have next to the names of GPT-2.
TWICE = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 16,
    "hidden_act": "silu",
    "layer_norm_eps": 1e-12,
    "head_dim": 12,
    "rope_parameters": {"rope_theta": 1000.0, "rope_type": "default"},
}


def vectors(name=NAME):
    cases = reference(name)["cases"]
    return [case["text"] for case in cases], np.array([case["embedding"] for case in cases], dtype=np.float32)


def test_the_family_and_its_files(command):
    families = {family["model_type"]: family for family in _core._families()}
    assert families["nomic_bert"]["gguf"] == {"nomic-bert": ["embedding"], "nomic-bert-moe": ["embedding"]}
    doctor = command("doctor", str(FIXTURES / NAME), "--json")
    assert doctor.code == 0, doctor.err
    report = json.loads(doctor.out)
    assert (report["family"], report["kind"]) == ("nomic_bert", "embedding")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_a_text_has_the_same_vector_alone_and_with_others(make_manager, dtype):
    manager = make_manager(cache_size=0)
    manager.register("m", str(FIXTURES / NAME), dtype=dtype)
    texts, expected = vectors()
    found = manager.embed(texts, model="m")
    for text, vector in zip(texts, found, strict=True):
        assert np.array_equal(manager.embed(text, model="m"), vector), text
    # Tiny states: another expert may be the second one where numbers are rounded.
    assert np.median((found * expected).sum(axis=1)) > 0.99
    assert manager.describe("m")["dtype"] == dtype


def test_candle_computes_the_same(make_manager):
    manager = make_manager(device="candle-cpu", cache_size=0)
    manager.register("m", str(FIXTURES / NAME), dtype="float32")
    texts, expected = vectors()
    np.testing.assert_allclose(manager.embed(texts, model="m"), expected, atol=2e-5)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"moe_normalize_expert_weights": True}, "moe_normalize_expert_weights"),
        ({"expert_choice_router": True}, "expert_choice_router"),
        ({"num_shared_experts": 1}, "num_shared_experts"),
        ({"ffn_div": 2}, "ffn_div"),
        ({"moe_top_k": 9}, "moe_top_k"),
        ({"moe_top_k": None}, "moe_top_k"),
        ({"moe_every_n_layers": 1}, "moe_every_n_layers"),
        ({"num_experts": 0}, "moe_every_n_layers"),
        ({"num_experts": 4}, "experts.mlp.w1"),
        ({"activation_function": "swiglu"}, "num_experts"),
        ({"moe_every_n_layers": 3}, "mlp.fc1.weight|router.layer.weight"),
        ({"moe_jitter_eps": 0.1}, "moe_jitter_eps"),
        ({"hidden_size": 32}, "hidden_size"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(make_manager, tmp_path, config, said):
    manager = make_manager()
    manager.register("m", str(changed(NAME, tmp_path / "m", **config)))
    with pytest.raises((UnsupportedModelError, InvalidFileError), match=said):
        manager.embed("merhaba", model="m")


def test_files_may_say_their_sizes_twice(make_manager, tmp_path):
    """The longest text is that of `n_positions`; the other number is that of training."""
    manager = make_manager(cache_size=0)
    manager.register("m", str(changed("nomic_2048", tmp_path / "m", **TWICE)), dtype="float32")
    texts, expected = vectors("nomic_2048")
    np.testing.assert_allclose(manager.embed(texts, model="m"), expected, atol=1e-5)
    for key, value in {"hidden_size": 32, "hidden_act": "gelu", "layer_norm_eps": 1e-5}.items():
        folder = changed("nomic_2048", tmp_path / key, **{**TWICE, key: value})
        manager.register(key, str(folder))
        with pytest.raises(UnsupportedModelError, match=f"its .* is .*, and its {key} is"):
            manager.embed("merhaba", model=key)
