"""Odd and hostile arguments give a clear error or a correct answer, and the manager keeps working."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import DIMENSION
from model_manager.errors import InputError, UnknownModelError


@pytest.fixture(autouse=True)
def _works_afterwards(shared):
    yield
    assert shared.embed("still alive").shape == (DIMENSION,)


@pytest.mark.parametrize("texts", [None, 7, 7.5, b"bytes", bytearray(b"bytes"), {"a": 1}, object(), len])
def test_not_text(shared, texts):
    with pytest.raises(TypeError):
        shared.embed(texts)


@pytest.mark.parametrize("item", [None, 7, b"bytes", ["nested"], float("nan")])
def test_not_text_inside_a_list(shared, item):
    with pytest.raises(TypeError):
        shared.embed(["a text", item])


def test_an_error_of_the_iterable_comes_out(shared):
    def texts():
        yield "one"
        raise LookupError("file gone")

    with pytest.raises(LookupError, match="file gone"):
        shared.embed(texts())


@pytest.mark.parametrize("texts", ["a \ud800 b", ["fine", "\udfff"]])
def test_lone_surrogates(shared, texts):
    with pytest.raises(InputError, match="surrogate"):
        shared.embed(texts)


@pytest.mark.parametrize(
    "text", ["", " ", "\0", "a\0b", "\x00" * 100, "\u200b", "\ufeff", "😀", "\U0010ffff", "a\u0301" * 50]
)
def test_odd_text_has_a_vector(shared, text):
    vector = shared.embed(text, "english_sentence")
    assert vector.shape == (DIMENSION,)
    assert np.all(np.isfinite(vector))


@pytest.mark.parametrize("text", ["x" * 1_000_000, "word " * 200_000, "é" * 500_000, "\n" * 1_000_000, "ğ😀" * 250_000])
def test_a_megabyte_of_text(shared, text):
    vector = shared.embed(text, "english_sentence")
    assert np.all(np.isfinite(vector))


def test_a_hundred_thousand_texts(shared):
    rows = shared.embed([f"text {n % 1000}" for n in range(100_000)], "english_sentence")
    assert rows.shape == (100_000, DIMENSION)
    np.testing.assert_array_equal(rows[:1000], rows[-1000:])


def test_unknown_slot(shared):
    with pytest.raises(UnknownModelError, match=r"no_such.*english_sentence.*register"):
        shared.embed("a text", "no_such")
    for call in (
        shared.load,
        shared.unload,
        shared.is_loaded,
        shared.get,
        shared.peek,
        shared.describe,
        shared.unregister,
    ):
        with pytest.raises(KeyError):
            call("no_such")


def test_unknown_prompt_name(shared):
    with pytest.raises(InputError, match="no_such"):
        shared.embed("a text", prompt_name="no_such")


def test_unknown_keyword(shared):
    with pytest.raises(TypeError, match="no_such"):
        shared.embed("a text", no_such=1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"source": "x", "loader": object},
        {"source": "x", "pooling": "no_such"},
        {"source": "x", "dtype": "int3"},
        {"source": "x", "keep_alive": "soon"},
        {"source": "x", "max_length": 0},
    ],
    ids=str,
)
def test_register_checks_its_arguments(shared, options):
    with pytest.raises(ValueError, match=r".+"):
        shared.register("bad", **options)
    assert "bad" not in shared.slots()


def test_register_refuses_a_name_in_use(manager):
    manager.register("mine", loader=list)
    with pytest.raises(ValueError, match="mine"):
        manager.register("mine", loader=dict)
    manager.register("mine", loader=dict, replace=True)
    assert manager.get("mine") == {}


def test_a_loader_must_be_callable(shared):
    with pytest.raises(TypeError):
        shared.register("bad", loader=7)


def test_slots_with_a_loader_do_not_embed(manager):
    manager.register("mine", loader=dict)
    for call in (manager.embed, manager.count_tokens):
        with pytest.raises(InputError, match="mine"):
            call("a text", "mine")
    with pytest.raises(InputError, match="mine"):
        manager.describe("mine")


@pytest.mark.parametrize("timeout", [-1, float("nan"), "soon"])
def test_impossible_timeouts(shared, timeout):
    with pytest.raises((ValueError, TypeError)):
        shared.embed("a text", timeout=timeout)
