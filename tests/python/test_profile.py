"""`profile="multilingual"`: one model serves both sentence slots."""

from __future__ import annotations

import numpy as np
from conftest import TURKISH_MODEL
from model_manager import Config, ModelManager

TEXTS = ["Merhaba dünya", "Bugün üretim nasıl?", "Hello world"]


def test_one_model_in_memory_and_one_cache(monkeypatch):
    monkeypatch.delenv("TURKISH_SENTENCE_MODEL", raising=False)
    monkeypatch.delenv("ENGLISH_FALLBACK_MODEL", raising=False)
    with ModelManager(profile="multilingual", turkish_model=TURKISH_MODEL) as manager:
        vectors = manager.embed(TEXTS)
        stats = manager.stats()
        slots = stats["slots"]
        assert {slots[name]["state"] for name in ("turkish_sentence", "english_sentence")} == {"ready"}
        assert slots["english_sentence"]["source"] == TURKISH_MODEL
        assert stats["memory"]["models"] == slots["turkish_sentence"]["bytes"], "counted once"
        for slot in ("turkish_sentence", "english_sentence"):
            np.testing.assert_array_equal(manager.embed(TEXTS, model=slot), vectors)
        assert manager.stats()["cache"]["entries"] == len(TEXTS), "whichever slot asked"
        assert manager.describe("english_sentence")["profile"] == "multilingual"
        assert manager.explain("english_sentence")["profile"] == "multilingual"


def test_the_model_of_the_profile(monkeypatch):
    monkeypatch.delenv("TURKISH_SENTENCE_MODEL", raising=False)
    monkeypatch.delenv("ENGLISH_FALLBACK_MODEL", raising=False)
    config = Config(profile="multilingual")
    assert config.turkish_model == config.english_model == "Alibaba-NLP/gte-multilingual-base"
    assert Config().turkish_model != Config().english_model, "the defaults stay"
    with ModelManager(profile="multilingual") as manager:
        sources = {slot["source"] for name, slot in manager.stats()["slots"].items() if name.endswith("_sentence")}
        assert sources == {"Alibaba-NLP/gte-multilingual-base"}
        monkeypatch.setenv("ENGLISH_FALLBACK_MODEL", "someone/other")
        slots = manager.stats()["slots"]
        assert slots["turkish_sentence"]["source"] == slots["english_sentence"]["source"] == "someone/other"
        monkeypatch.setenv("TURKISH_SENTENCE_MODEL", "someone/turkish")
        slots = manager.stats()["slots"]
        assert slots["turkish_sentence"]["source"] == "someone/turkish"
        assert slots["english_sentence"]["source"] == "someone/other", "both may be set"
