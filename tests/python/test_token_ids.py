"""Token ids in place of texts: read unchanged, cut, checked, cached as ids."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import DIMENSION, ENGLISH_MODEL, FIXTURES, TURKISH_MODEL, reference
from model_manager.errors import InputError

SLOT = "english_sentence"
VOCABULARY = 241
"""Ids of the English model, whose maximum is 24."""
CASES = [(case["text"], case["ids"]) for case in reference("bert_wordpiece")["cases"]]


def test_ids_have_the_vector_of_their_text(make_manager):
    manager = make_manager(cache_size=0)
    texts, ids = zip(*CASES, strict=True)
    np.testing.assert_array_equal(manager.embed(ids, SLOT), manager.embed(texts, SLOT))
    one = manager.embed(ids[0], SLOT)
    assert one.shape == (DIMENSION,)
    np.testing.assert_array_equal(one, manager.embed(texts[0], SLOT))
    turkish = reference("xlmr")["cases"][0]
    np.testing.assert_array_equal(
        manager.embed(turkish["ids"], "turkish_sentence"), manager.embed(turkish["text"], "turkish_sentence")
    )


@pytest.mark.parametrize("make", [list, tuple, np.array, lambda ids: np.array(ids, np.int32), iter])
def test_forms_of_ids(shared, make):
    rows = [[2, 17, 161, 3], [2, 5, 9, 3]]
    expected = shared.embed(rows, SLOT)
    assert expected.shape == (2, DIMENSION)
    np.testing.assert_array_equal(shared.embed(make(rows), SLOT), expected)
    np.testing.assert_array_equal(shared.embed([make(row) for row in rows], SLOT), expected)
    np.testing.assert_array_equal(shared.embed(make(rows[0]), SLOT), expected[0])


def test_nothing_is_added_and_the_end_is_cut(shared):
    ids = [n % 200 for n in range(100)]
    np.testing.assert_array_equal(shared.embed(ids, SLOT), shared.embed(ids[:24], SLOT))
    assert not np.allclose(shared.embed([17, 161], SLOT), shared.embed([2, 17, 161, 3], SLOT))


def test_where_texts_lose_their_beginning_ids_do_too(manager, tmp_path):
    import json
    import shutil

    folder = tmp_path / "left"
    shutil.copytree(ENGLISH_MODEL, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "truncation_side": "left"}))
    manager.register("left", str(folder), dtype="float32")
    ids = [n % 200 for n in range(100)]
    np.testing.assert_array_equal(manager.embed(ids, "left"), manager.embed(ids[-24:], "left"))


def test_ids_are_cached_as_ids(manager):
    text, ids = CASES[0]
    manager.embed(text, SLOT)
    first = manager.embed(ids, SLOT)
    assert manager.cache_info()["hits"] == 0, "a text's vector does not answer for its ids"
    manager.unload(SLOT)
    np.testing.assert_array_equal(manager.embed([ids], SLOT)[0], first)
    assert manager.cache_info()["hits"] == 1
    assert not manager.is_loaded(SLOT)


def test_the_models_default_prompt_is_not_for_ids(manager):
    manager.register("prompted", str(FIXTURES / "bert_prompts"), dtype="float32")
    case = reference("bert_prompts")["cases"][0]
    assert not np.allclose(manager.embed(case["text"], "prompted"), manager.embed(case["text"], "prompted", prompt=""))
    manager.register("same", str(FIXTURES / "bert_prompts"), dtype="float32", prompts={"query": ""})
    ids = [2, 17, 30, 3]
    np.testing.assert_array_equal(manager.embed(ids, "prompted"), manager.embed(ids, "same", prompt=""))


@pytest.mark.parametrize("options", [{"prompt": "query: "}, {"prompt_name": "query"}])
def test_ids_take_no_prompt(shared, options):
    with pytest.raises(InputError, match="prompt"):
        shared.embed([2, 17, 3], SLOT, **options)


def test_ids_need_a_model(make_manager):
    with pytest.raises(InputError, match="model="):
        make_manager().embed([2, 17, 3])
    one_for_all = make_manager(language_detection=False, turkish_model=TURKISH_MODEL)
    np.testing.assert_array_equal(one_for_all.embed([0, 7, 2]), one_for_all.embed([0, 7, 2], "turkish_sentence"))


@pytest.mark.parametrize("wrong", [VOCABULARY, 2**31, 2**32 - 1])
def test_ids_outside_of_the_vocabulary(shared, wrong):
    shared.embed([2, VOCABULARY - 1, 3], SLOT)
    with pytest.raises(InputError, match=rf"texts\[1\] .*\b{wrong}\b.* 0 to {VOCABULARY - 1}"):
        shared.embed([[2, 3], [2, wrong, 3]], SLOT)


@pytest.mark.parametrize("wrong", [-1, 2**32, 2**70, np.int64(-5)])
def test_impossible_ids(shared, wrong):
    with pytest.raises(InputError, match=rf"texts\[1\]\[2\].*{wrong}"):
        shared.embed([[2, 3], [2, 3, wrong]], SLOT)
    with pytest.raises(InputError, match=rf"texts\[0\].*{wrong}"):
        shared.embed([wrong], SLOT)


def test_no_ids(shared):
    with pytest.raises(InputError, match=r"texts\[1\] holds no token ids"):
        shared.embed([[2, 3], []], SLOT)
    with pytest.raises(InputError, match=r"texts\[0\] holds no token ids"):
        shared.embed([[]], SLOT)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([7, "text"], r"texts\[1\] must be a token id \(int\), not str"),
        (["text", 7], r"texts\[1\] must be a str, not int"),
        (["text", [7]], r"texts\[1\] must be a str, not list"),
        ([[7], "text"], r"texts\[1\] must be a list of token ids like the first one, not str"),
        ([[7], 7], r"texts\[1\] must be a list of token ids like the first one, not int"),
        ([7, [7]], r"texts\[1\] must be a token id \(int\), not list"),
        ([["text"]], r"texts\[0\]\[0\] must be a token id \(int\), not str"),
        ([True], r"texts\[0\] must be a str, a token id \(int\) or a list of ids, not bool"),
        ([2, False], r"texts\[1\] must be a token id \(int\), not bool"),
        ([[2, True]], r"texts\[0\]\[1\] must be a token id \(int\), not bool"),
        ([2.0], r"texts\[0\] must be a str, .* not float"),
        (np.array([1.5]), r"texts\[0\] must be a str, .* not float64"),
        ([None], r"texts\[0\] must be a str, .* not NoneType"),
        ([[2], {"a": 1}], r"texts\[1\] must be a list of token ids like the first one, not dict"),
        ([[2], b"\x02"], r"texts\[1\] must be a list of token ids like the first one, not bytes"),
        (7, "texts must be a str, token ids"),
    ],
    ids=repr,
)
def test_mixed_and_other_types(shared, inputs, message):
    with pytest.raises(TypeError, match=message):
        shared.embed(inputs, SLOT)


def test_submit_takes_ids(shared):
    reported = []
    shared.embed([[2, 17, 3]], SLOT)
    shared.submit([2, 17, 3], lambda *result: reported.append(result), SLOT)
    (vector, error) = reported[0]
    assert error is None
    np.testing.assert_array_equal(vector, shared.embed([2, 17, 3], SLOT))


async def test_aembed_takes_ids(shared):
    np.testing.assert_array_equal(await shared.aembed([[2, 17, 3]], SLOT), shared.embed([[2, 17, 3]], SLOT))
    with pytest.raises(InputError, match="vocabulary"):
        await shared.aembed([[2, 9999, 3]], SLOT)
