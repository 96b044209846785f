"""The improved detector is right about short texts, and never worse than the compatible one."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path

import pytest
from model_manager import ModelManager

_PATH = Path(__file__).resolve().parents[2] / "benchmarks" / "language_detectors.py"
_SPEC = importlib.util.spec_from_file_location("language_detectors", _PATH)
detectors = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(detectors)

ROWS = detectors.labelled()
# Measured, less a margin of about one text in fifty.
LEAST = {
    "turkish": 0.98,
    "turkish_ascii": 0.98,
    "turkish_casing": 0.90,
    "english": 0.97,
    "mixed": 0.85,
    "neutral": 0.97,
    "other_languages": 0.93,
}


def accuracy(detector):
    found, _ = detectors.decisions(detector, [text for _, _, text in ROWS])
    number = Counter(kind for kind, _, _ in ROWS)
    right = Counter(kind for (kind, turkish, _), is_turkish in zip(ROWS, found, strict=True) if turkish == is_turkish)
    return {kind: right[kind] / number[kind] for kind in number}


def test_the_texts():
    assert len(ROWS) >= 300
    assert {kind for kind, _, _ in ROWS} == set(LEAST)
    assert len({text for _, _, text in ROWS}) == len(ROWS), "each text counts once"
    assert all(text.isascii() for kind, _, text in ROWS if kind == "turkish_ascii")


def test_accuracy_by_kind():
    improved, compatible = accuracy("improved"), accuracy("compatible")
    for kind, least in LEAST.items():
        assert improved[kind] >= least, kind
        assert improved[kind] >= compatible[kind], kind
    assert compatible["turkish_ascii"] < 0.5 < improved["turkish_ascii"], "this is what it is for"


@pytest.mark.parametrize("text", ["Merhaba", "calisma saatleri", "NASIL CALISIR", "İŞ EMRİ", "iş emri"])
def test_turkish(text):
    with ModelManager(language_detector="improved") as manager:
        assert manager.route(text) == "turkish_sentence"


@pytest.mark.parametrize(
    "text", ["", " ", "123", "%85", "hello", "opening hours", "\0", "İ", "\u0307", "a" * 10_000, "日本語"]
)
def test_not_turkish(text):
    with ModelManager(language_detector="improved") as manager:
        assert manager.route(text) == "english_sentence"


def test_detect_language_follows_the_setting(make_manager):
    compatible, improved = make_manager(), make_manager(language_detector="improved")
    text = "bugun hava cok guzel, disari cikalim"
    assert compatible.detect_language(text) == "other"
    assert improved.detect_language(text) == "turkish"
    assert improved.detect_language("the weather is lovely today") == "other"
    assert improved.detect_language("half \ud800") == "other"
    compatible.close()
    assert compatible.detect_language(text) == "other", "it needs no model"
