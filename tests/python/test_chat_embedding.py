"""`generate_embedding`, the chatbot's central call."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import DIMENSION, ENGLISH_TEXT, TURKISH_TEXT
from model_manager import ModelManager, errors


def test_a_real_list_of_length_one(shared):
    vector = shared.generate_embedding(ENGLISH_TEXT)
    assert type(vector) is list
    assert len(vector) == DIMENSION
    assert all(type(number) is float for number in vector)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)
    assert json.loads(json.dumps(vector)) == vector


def test_the_text_is_stripped_lower_cased_and_cut(shared):
    plain = shared.generate_embedding("a text with words " * 100)
    assert shared.generate_embedding("  \n" + "A Text WITH words " * 100) == plain
    assert shared.generate_embedding(("a text with words " * 100)[:800]) == plain


@pytest.mark.parametrize("text", ["", " ", "a", "  a\n", "1", "é"])
def test_less_than_two_characters_have_no_embedding(manager, text):
    assert manager.generate_embedding(text) == []
    assert not any(map(manager.is_loaded, manager.slots())), "nothing is loaded for it"


def test_dotted_capital_i_is_two_characters_when_lower_cased(shared):
    assert len("İ".lower()) == 2
    assert len(shared.generate_embedding("İ")) == DIMENSION


@pytest.mark.parametrize("text", [None, 7, 7.5, ["a text"], {"a": "text"}, object()])
def test_what_is_not_text_is_a_type_error(shared, text):
    with pytest.raises(TypeError, match=type(text).__name__):
        shared.generate_embedding(text)


@pytest.mark.parametrize("text", [b"bytes of a text", "a lone \ud800 surrogate"])
def test_bytes_and_lone_surrogates_have_no_embedding(shared, text, caplog):
    assert shared.generate_embedding(text) == []
    assert "generate_embedding" in caplog.text


def test_force_turkish_chooses_the_model(shared):
    forced = shared.generate_embedding(ENGLISH_TEXT, force_turkish=True)
    assert forced == shared.embed(ENGLISH_TEXT.lower(), "turkish_sentence").tolist()
    assert (
        shared.generate_embedding(TURKISH_TEXT, False)
        == shared.embed(TURKISH_TEXT.lower(), "english_sentence").tolist()
    )
    assert forced != shared.generate_embedding(ENGLISH_TEXT)


def test_language_decides_otherwise(shared):
    assert shared.generate_embedding(TURKISH_TEXT) == shared.embed(TURKISH_TEXT.lower(), "turkish_sentence").tolist()
    assert shared.generate_embedding(ENGLISH_TEXT) == shared.embed(ENGLISH_TEXT.lower(), "english_sentence").tolist()


@pytest.mark.parametrize(("prefer_turkish", "slot"), [(True, "turkish_sentence"), (False, "english_sentence")])
def test_without_detection_the_preferred_model_decides(make_manager, prefer_turkish, slot):
    manager = make_manager(language_detection=False, prefer_turkish=prefer_turkish)
    for text in (TURKISH_TEXT, ENGLISH_TEXT):
        assert manager.generate_embedding(text) == manager.embed(text.lower(), slot).tolist()


def test_the_cache_has_the_interface_of_lru_cache(manager):
    manager.generate_embedding(ENGLISH_TEXT)
    manager.generate_embedding(ENGLISH_TEXT)
    manager.generate_embedding(ENGLISH_TEXT.upper())
    info = manager.generate_embedding.cache_info()
    assert (info.hits, info.misses, info.maxsize, info.currsize) == (2, 1, 50, 1)
    hits, misses, maxsize, currsize = info
    assert (hits, misses, maxsize, currsize) == (2, 1, 50, 1)
    manager.generate_embedding.cache_clear()
    assert manager.generate_embedding.cache_info() == (0, 0, 50, 0)


def test_the_method_looks_like_a_method(shared):
    assert shared.generate_embedding.__name__ == "generate_embedding"
    assert "vector" in shared.generate_embedding.__doc__
    assert shared.generate_embedding.__self__ is shared
    assert ModelManager.generate_embedding.__doc__ == shared.generate_embedding.__doc__


def test_callers_may_replace_it(manager, monkeypatch):
    monkeypatch.setattr(manager, "generate_embedding", lambda text: [1.0])
    assert manager.generate_embedding("x") == [1.0]


def test_a_failing_turkish_model_falls_back_to_the_english_one(make_manager, caplog):
    manager = make_manager(turkish_model="/no/such/model")
    assert manager.generate_embedding(TURKISH_TEXT) == manager.embed(TURKISH_TEXT.lower(), "english_sentence").tolist()
    assert manager.turkish_sentence_model.name == "english_sentence"
    assert manager.sentence_model.encode(TURKISH_TEXT).shape == (DIMENSION,)
    assert "/no/such/model" in caplog.text


@pytest.mark.parametrize(
    "error", [errors.OverloadedError, errors.WaitTimeoutError, errors.NotFiniteError, errors.DownloadError]
)
def test_an_error_that_may_pass_gives_no_vector_of_another_model(manager, monkeypatch, error):
    """The next call may succeed, and both vectors would be in one index."""

    def failing(name):
        real = getattr(manager, name)

        def call(*arguments, **options):
            if "turkish_sentence" in arguments:
                raise error("for a while")
            return real(*arguments, **options)

        monkeypatch.setattr(manager, name, call)

    failing("embed")
    failing("get")
    assert manager.generate_embedding(TURKISH_TEXT) == manager.generate_embedding("text", force_turkish=True) == []
    assert manager.get_sentence_embedding(TURKISH_TEXT) is None
    assert len(manager.generate_embedding(ENGLISH_TEXT)) == DIMENSION
    with pytest.raises(error, match="for a while"):
        _ = manager.turkish_sentence_model


def test_without_any_model_there_is_an_empty_list_and_a_log_entry(make_manager, caplog):
    manager = make_manager(turkish_model="/no/such/turkish", english_model="/no/such/english")
    assert manager.generate_embedding(TURKISH_TEXT) == []
    assert manager.generate_embedding(ENGLISH_TEXT) == []
    assert manager.get_sentence_embedding(ENGLISH_TEXT) is None
    assert "/no/such/english" in caplog.text


def test_failures_are_not_cached(make_manager, tmp_path):
    from conftest import ENGLISH_MODEL

    manager = make_manager(english_model=str(tmp_path / "model"))
    assert manager.generate_embedding(ENGLISH_TEXT) == []
    (tmp_path / "model").symlink_to(ENGLISH_MODEL)
    assert len(manager.generate_embedding(ENGLISH_TEXT)) == DIMENSION


def test_get_sentence_embedding(shared):
    assert shared.get_sentence_embedding(ENGLISH_TEXT) == shared.generate_embedding(ENGLISH_TEXT)
    assert shared.get_sentence_embedding(None) is None
    assert shared.get_sentence_embedding("lone \ud800") is None


def test_what_is_left_of_a_cut_text_may_be_too_short(shared):
    """The first 800 characters are one letter and blanks: no embedding, as in the original."""
    assert shared.generate_embedding("a" + 900 * " " + "b") == []
    assert shared.get_sentence_embedding("a" + 900 * " " + "b") == []
    assert len(shared.generate_embedding("a" + 700 * " " + "b")) > 0
    assert len(shared.generate_embedding("ab" + 900 * " " + "c")) > 0
