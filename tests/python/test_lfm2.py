"""LFM2, whose layers are short convolutions with gates and some of attention: text, vectors, and its encoder."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import FIXTURES, changed, reference, run_python
from generators import (
    GREEDY,
    SLOT,
    assert_answers_of_transformers,
    assert_pieces_make_answers,
    assert_second_question_reuses,
)
from model_manager import _core
from model_manager.errors import InvalidFileError, UnsupportedModelError
from test_process import FORK, MANAGER

GENERATORS = ("lfm2", "lfm2_biased")
ENCODERS = ("lfm2_embedding", "lfm2_bidirectional")


def test_its_families_and_files(command):
    families = {family["model_type"]: family for family in _core._families()}
    assert families["lfm2"]["kinds"] == ["embedding", "generator"]
    assert families["lfm2"]["gguf"] == {"lfm2": ["generator"]}
    assert families["lfm2_bidirectional"]["kinds"] == ["embedding"]
    doctor = command("doctor", str(FIXTURES / "lfm2"), "--kind", "generator", "--json")
    assert doctor.code == 0, doctor.err
    report = json.loads(doctor.out)
    assert (report["family"], report["kind"]) == ("lfm2", "generator")
    doctor = command("doctor", str(FIXTURES / "lfm2_bidirectional"), "--json")
    assert json.loads(doctor.out)["family"] == "lfm2_bidirectional"


@pytest.mark.parametrize("name", GENERATORS)
def test_answers_are_those_of_transformers_alone_and_together(make_writer, name):
    manager = make_writer(name)
    assert_answers_of_transformers(manager, name)
    assert_pieces_make_answers(manager, name)
    described = manager.describe_generator(SLOT)
    assert (described["engine"], described["dtype"]) == ("model_manager", "float32")
    assert described["kv_bytes_per_token"] > 0


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_its_weights_may_be_narrower(make_writer, name, dtype):
    manager = make_writer(name, generator_dtype=dtype)
    case = reference(name)["cases"][0]
    first = manager.complete(case["ids"], max_new_tokens=4, **GREEDY)["tokens"]
    assert manager.complete(case["ids"], max_new_tokens=4, **GREEDY)["tokens"] == first
    assert manager.describe_generator(SLOT)["dtype"] == dtype


def test_memory_comes_back(make_writer):
    manager = make_writer("lfm2", memory_budget="1GB")
    assert manager.stats()["memory"]["models"] == 0
    case = reference("lfm2")["cases"][0]
    first = manager.complete(case["ids"], max_new_tokens=3, **GREEDY)
    assert manager.stats()["memory"]["models"] > 0
    assert manager.unload(SLOT)
    assert manager.stats()["memory"]["models"] == 0
    assert manager.complete(case["ids"], max_new_tokens=3, **GREEDY)["tokens"] == first["tokens"]


def test_a_conversation_goes_on_and_stops(make_writer):
    """A known beginning is computed once if a prompt goes on with it; of one that leaves it early, nothing is known."""
    manager = make_writer("lfm2")
    prompt = reference("lfm2")["cases"][0]
    ids, rest = prompt["ids"], prompt["greedy"]
    longer = [*ids, *rest[:6]]
    first = manager.complete(ids, max_new_tokens=6, **GREEDY)
    again = manager.complete(longer, max_new_tokens=len(rest) - 6, **GREEDY)
    assert [*first["tokens"], *again["tokens"]] == rest
    assert again["reused_tokens"] >= len(ids)
    other = manager.complete([*longer[:-2], *rest[:2]], max_new_tokens=3, **GREEDY)
    manager.unload(SLOT)
    assert manager.complete([*longer[:-2], *rest[:2]], max_new_tokens=3, **GREEDY)["tokens"] == other["tokens"]
    text = first["text"]
    stopped = manager.complete(ids, max_new_tokens=6, stop=[text[2:4]], **GREEDY)
    assert stopped["text"] == text[: text.index(text[2:4])]
    sampled = {"do_sample": True, "temperature": 0.8, "top_k": 20, "seed": 7, "max_new_tokens": 8}
    assert manager.generate(ids, **sampled) == manager.generate(ids, **sampled)


def test_a_common_beginning_is_reused_in_steps_of_64_tokens(make_writer, tmp_path):
    """Two questions after one system prompt: llama.cpp reads all of it again for models with such layers."""
    manager = make_writer("gpt2", generator_model=str(changed("lfm2", tmp_path / "model", max_position_embeddings=512)))
    system = [(7 * index) % 300 for index in range(150)]
    assert_second_question_reuses(manager, system, 128)


@pytest.mark.parametrize(
    ("name", "config", "said"),
    [
        ("lfm2", {"conv_L_cache": 1}, "conv_L_cache"),
        ("lfm2", {"conv_L_cache": 65}, "conv_L_cache"),
        ("lfm2", {"layer_types": ["conv"]}, "layer_types"),
        ("lfm2", {"layer_types": ["conv", "linear_attention", "conv", "conv"]}, "layer_types"),
        ("lfm2", {"num_experts": 4}, "num_experts"),
        ("lfm2", {"block_ff_dim": 200}, "feed_forward.w1"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(make_writer, tmp_path, name, config, said):
    manager = make_writer("gpt2", generator_model=str(changed(name, tmp_path / "model", **config)))
    with pytest.raises((UnsupportedModelError, InvalidFileError), match=said):
        manager.load(SLOT)
    assert not manager.is_loaded(SLOT)


@pytest.mark.parametrize("name", ENCODERS)
def test_vectors_are_those_of_sentence_transformers(make_manager, name):
    """Those of the encoder come from a model with its rules: its own code is not part of transformers."""
    manager = make_manager(cache_size=0)
    manager.register("model", str(FIXTURES / name), dtype="float32")
    cases = reference(name)["cases"]
    texts = [case["text"] for case in cases]
    found = manager.embed(texts, model="model")
    expected = np.array([case["embedding"] for case in cases], dtype=np.float32)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    for text, vector in zip(texts, found, strict=True):
        assert np.array_equal(manager.embed(text, model="model"), vector), text


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize(("device", "dtype", "least"), [("cpu", "bfloat16", 0.998), ("candle-cpu", "float32", 0.99999)])
def test_other_formats_and_devices(make_manager, name, device, dtype, least):
    manager = make_manager(device=device, cache_size=0)
    manager.register("model", str(FIXTURES / name), dtype=dtype)
    cases = reference(name)["cases"]
    found = manager.embed([case["text"] for case in cases], model="model")
    assert manager.describe("model")["dtype"] == dtype
    cosines = (found * np.array([case["embedding"] for case in cases])).sum(axis=1)
    assert cosines.min() > least


def test_the_encoder_writes_no_text(make_writer):
    manager = make_writer("gpt2", generator_model=str(FIXTURES / "lfm2_bidirectional"))
    with pytest.raises(UnsupportedModelError, match="lfm2"):
        manager.load(SLOT)


def test_attention_may_see_later_tokens(make_manager, make_writer, tmp_path):
    """`is_causal` is read as in transformers: it changes attention, not the convolutions."""
    source = str(changed("lfm2_embedding", tmp_path / "model", is_causal=False))
    manager = make_manager(cache_size=0)
    for name, path in (("both", source), ("causal", str(FIXTURES / "lfm2_embedding"))):
        manager.register(name, path, dtype="float32", pooling="cls")
    both, causal = (manager.embed("Merhaba dünya", model=name) for name in ("both", "causal"))
    assert np.abs(both - causal).max() > 0.01, "the first token sees those after it"
    generator = str(changed("lfm2", tmp_path / "generator", is_causal=False))
    with pytest.raises(UnsupportedModelError, match="is_causal"):
        make_writer("gpt2", generator_model=generator).load(SLOT)


def test_code_of_another_class_is_refused(make_manager, tmp_path):
    auto_map = {"AutoModel": "modeling_lfm2_other.Lfm2OtherModel"}
    manager = make_manager()
    manager.register("model", str(changed("lfm2_bidirectional", tmp_path / "model", auto_map=auto_map)))
    with pytest.raises(UnsupportedModelError, match="auto_map"):
        manager.load("model")


@pytest.mark.chaos
def test_a_fork_works_on():
    """The parent's pool has threads that the child lacks. The prompt is long enough to use several."""
    ids = reference("lfm2")["cases"][0]["ids"] * 8
    run_python(
        MANAGER
        + FORK
        + f"""
m = tiny(threads=2, generator_model={str(FIXTURES / "lfm2")!r})
def write():
    return m.complete({ids[:56]}, max_new_tokens=4, do_sample=False)["tokens"]
want = write()
def work():
    assert write() == want
    m.close()
check_child(work)
check_child(work)
assert write() == want
"""
    )
