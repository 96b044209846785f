"""Routing of texts. The detector is the chatbot's, including its defects, because its embeddings depend on them."""

from __future__ import annotations

import json

import pytest
from conftest import FIXTURES
from model_manager import is_turkish
from model_manager.compat.rules import normalize

CASES = json.loads((FIXTURES / "text" / "detector.json").read_text(encoding="utf-8"))["cases"]


def test_there_are_cases():
    assert len(CASES) > 20


@pytest.mark.parametrize("case", CASES, ids=lambda case: repr(case["text"][:24]))
def test_committed_cases(shared, case):
    text = case["text"]
    assert is_turkish(text) is case["turkish"]
    assert shared.detect_language(text) == ("turkish" if case["turkish"] else "other")
    assert normalize(text) == case["normalized"]
    assert shared.route(normalize(text)) == ("turkish_sentence" if case["routes_turkish"] else "english_sentence")
    assert shared.route(text) == shared.route(normalize(text)), "routing lower-cases by itself"


def test_detection_sees_the_raw_text_and_routing_the_lower_cased(shared):
    assert shared.detect_language("IBM") == "turkish"
    assert shared.route("IBM") == "english_sentence"


def test_combining_marks_split_words_as_in_python(shared):
    assert shared.route("İde") == "turkish_sentence"


@pytest.mark.parametrize("text", ["Merhaba dünya", "test", ""])
def test_texts_that_this_detector_takes_for_english(shared, text):
    assert shared.route(text) == "english_sentence"


def test_a_mixed_batch_is_routed_text_by_text(shared):
    import numpy as np

    texts = ["bu çok güzel bir şey", "a plain english text", "nasıl bir gün", "one more"]
    slots = [shared.route(text) for text in texts]
    assert slots == ["turkish_sentence", "english_sentence"] * 2
    rows = shared.embed(texts)
    for row, text, slot in zip(rows, texts, slots, strict=True):
        np.testing.assert_allclose(row, shared.embed(text, slot), atol=1e-6)


def test_a_long_text_is_judged_by_its_beginning(shared):
    assert shared.route("çok güzel " * 80 + "plain english " * 100_000) == "turkish_sentence"


def test_without_detection_everything_goes_to_the_preferred_model(make_manager):
    manager = make_manager(language_detection=False)
    assert manager.route("an english text") == "turkish_sentence"
    manager = make_manager(language_detection=False, prefer_turkish=False)
    assert manager.route("bu çok güzel") == "english_sentence"
