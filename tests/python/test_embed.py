"""`embed`: shapes, types, options."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import DIMENSION, ENGLISH_MODEL, ENGLISH_TEXT, FIXTURES, TURKISH_TEXT

TEXTS = [f"text number {n} {'with more words ' * (n % 7)}" for n in range(40)]


def test_one_text_is_one_vector(shared):
    vector = shared.embed(ENGLISH_TEXT)
    assert vector.shape == (DIMENSION,)
    assert vector.dtype == np.float32
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("count", [1, 2, 40])
def test_several_texts_are_rows(shared, count):
    rows = shared.embed(TEXTS[:count])
    assert rows.shape == (count, DIMENSION)
    assert rows.dtype == np.float32
    assert rows.flags.c_contiguous
    assert rows.flags.writeable
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)


def test_no_texts_are_no_rows(shared):
    assert shared.embed([]).shape == (0, DIMENSION)
    assert shared.embed([], "english_sentence").dtype == np.float32


@pytest.mark.parametrize("make", [list, tuple, iter, lambda texts: (text for text in texts), np.array])
def test_any_iterable_of_str_will_do(shared, make):
    np.testing.assert_array_equal(shared.embed(make(TEXTS[:3])), shared.embed(TEXTS[:3]))


def test_a_subclass_of_str_is_a_text(shared):
    class Text(str):
        __slots__ = ()

    np.testing.assert_array_equal(shared.embed(Text("hello")), shared.embed("hello"))
    np.testing.assert_array_equal(shared.embed(np.str_("hello")), shared.embed("hello"))


def test_single_equals_batched(make_manager):
    manager = make_manager(cache_size=0)
    rows = manager.embed(TEXTS, "english_sentence")
    for row, text in zip(rows, TEXTS, strict=True):
        np.testing.assert_allclose(manager.embed(text, "english_sentence"), row, rtol=0, atol=1e-6)


def test_order_is_kept_and_duplicates_are_equal(shared):
    texts = [TEXTS[n % 5] for n in range(23)]
    rows = shared.embed(texts, "english_sentence")
    for n in range(23):
        np.testing.assert_array_equal(rows[n], rows[n % 5])


def test_identical_texts_compute_once(make_manager):
    manager = make_manager(cache_size=0)
    manager.embed(["the same"] * 50 + ["another"], "english_sentence")
    assert manager.stats()["queue"]["texts"] == 2


def test_the_model_argument_names_a_slot(shared):
    vectors = [shared.embed(TURKISH_TEXT, slot) for slot in ("turkish_sentence", "english_sentence")]
    assert not np.allclose(*vectors)


def test_without_normalization(manager):
    manager.register("plain", str(FIXTURES / "bert_plain"), dtype="float32")
    raw = manager.embed(TEXTS[:4], "plain", normalize=False)
    lengths = np.linalg.norm(raw, axis=1)
    assert np.all(np.abs(lengths - 1) > 1e-3)
    np.testing.assert_allclose(raw / lengths[:, None], manager.embed(TEXTS[:4], "plain"), atol=1e-6)


def test_truncated_vectors_are_renormalized(shared):
    whole = shared.embed(TEXTS[:4])
    short = shared.embed(TEXTS[:4], truncate_dim=8)
    assert short.shape == (4, 8)
    np.testing.assert_allclose(short, whole[:, :8] / np.linalg.norm(whole[:, :8], axis=1, keepdims=True), atol=1e-6)
    np.testing.assert_allclose(shared.embed(TEXTS[0], truncate_dim=8, normalize=False), whole[0, :8], atol=1e-6)
    np.testing.assert_array_equal(shared.embed(TEXTS[0], truncate_dim=DIMENSION), whole[0])


@pytest.mark.parametrize("truncate_dim", [0, DIMENSION + 1, -1])
def test_impossible_dimensions(shared, truncate_dim):
    with pytest.raises((ValueError, OverflowError)):
        shared.embed("a text", truncate_dim=truncate_dim)


def test_prompts(shared):
    np.testing.assert_allclose(
        shared.embed("a text", "english_sentence", prompt="query: "),
        shared.embed("query: a text", "english_sentence"),
        atol=1e-6,
    )
    prompts = shared.describe("english_sentence")["prompts"]
    name = next(name for name, prompt in prompts.items() if prompt)
    np.testing.assert_allclose(
        shared.embed("a text", "english_sentence", prompt_name=name),
        shared.embed(prompts[name] + "a text", "english_sentence"),
        atol=1e-6,
    )


def test_the_models_default_prompt_applies_and_can_be_overruled(manager):
    manager.register("prompted", str(FIXTURES / "bert_prompts"), dtype="float32")
    description = manager.describe("prompted")
    assert description["default_prompt_name"] == "query"
    prompt = description["prompts"]["query"]
    np.testing.assert_allclose(
        manager.embed("a text", "prompted"), manager.embed(prompt + "a text", "prompted", prompt=""), atol=1e-6
    )


def test_prompts_can_be_registered(manager):
    manager.register("mine", ENGLISH_MODEL, dtype="float32", prompts={"code": "code: "})
    np.testing.assert_allclose(
        manager.embed("a text", "mine", prompt_name="code"), manager.embed("code: a text", "mine"), atol=1e-6
    )


def test_pooling_and_length_can_be_registered(manager):
    manager.register("cls", ENGLISH_MODEL, dtype="float32", pooling="cls", max_length=8)
    description = manager.describe("cls")
    assert (description["pooling"], description["max_length"]) == ("cls", 8)
    long = "many more words than eight tokens can hold in any tokenizer of this world"
    np.testing.assert_allclose(manager.embed(long, "cls"), manager.embed(long + " and more", "cls"), atol=1e-6)


def test_progress_is_told_on_this_thread(make_manager):
    import threading

    manager = make_manager(cache_size=0)
    calls = []
    manager.embed(TEXTS, progress=lambda done, total: calls.append((done, total, threading.get_ident())))
    assert calls[-1] == (len(TEXTS), len(TEXTS), threading.get_ident())
    done = [call[0] for call in calls]
    assert done == sorted(done)
    assert {call[1:] for call in calls} == {(len(TEXTS), threading.get_ident())}


def test_an_error_in_progress_comes_out(make_manager):
    def fail(done, total):
        raise LookupError("no bar")

    manager = make_manager(cache_size=0)
    with pytest.raises(LookupError, match="no bar"):
        manager.embed(TEXTS, progress=fail)
    assert manager.embed(TEXTS).shape == (40, DIMENSION)


def test_count_tokens(shared):
    reference = {"": 2}
    for text, count in reference.items():
        assert shared.count_tokens([text], "english_sentence") == [count]
    short, long = shared.count_tokens(["a text", "a text " * 500], "english_sentence")
    assert short < 24 < long, "not cut to the model's maximum"
    assert shared.count_tokens("a text", "english_sentence") == short


def test_describe(shared):
    description = shared.describe("english_sentence")
    assert description["name"] == "english_sentence"
    assert description["source"] == ENGLISH_MODEL
    assert description["path"] == ENGLISH_MODEL
    assert description["dimension"] == DIMENSION
    assert description["max_length"] == 24
    assert description["pooling"] == "mean"
    assert description["normalizes"] is True
    assert description["similarity"] == "cosine"
    assert description["architecture"] == "bert"
    assert description["dtype"] == "float32"
    assert description["bytes"] > 1000


def test_describe_without_loading(manager):
    assert manager.describe("english_sentence", load=False) is None
    assert not manager.is_loaded("english_sentence")


def test_models_of_different_dimensions_do_not_mix(make_manager):
    manager = make_manager(turkish_model=str(FIXTURES / "bert_plain"))
    with pytest.raises(ValueError, match="dimension"):
        manager.embed([TURKISH_TEXT, ENGLISH_TEXT])


@pytest.mark.parametrize(("dtype", "atol", "least"), [("bfloat16", 2e-2, 0.999), ("float16", 4e-3, 0.99995)])
def test_two_bytes_a_weight_are_close(make_manager, dtype, atol, least):
    exact = make_manager(dtype="float32").embed(TEXTS, "english_sentence")
    rough = make_manager(dtype=dtype).embed(TEXTS, "english_sentence")
    np.testing.assert_allclose(rough, exact, rtol=0, atol=atol)
    assert np.all(np.sum(rough * exact, axis=1) > least)
    assert not np.array_equal(rough, exact)


def test_weights_in_eight_bits_are_close_and_small(make_manager):
    manager = make_manager()
    exact = manager.embed(TEXTS, "english_sentence")
    manager.register("small", ENGLISH_MODEL, dtype="int8")
    rough = manager.embed(TEXTS, "small")
    assert np.all(np.sum(rough * exact, axis=1) > 0.995)
    assert not np.array_equal(rough, exact)
    found = manager.describe("small")
    assert found["dtype"] == "int8"
    assert found["bytes"] < manager.describe("english_sentence")["bytes"]
