"""A source that names another model after unloading: one call gives vectors of one model."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from conftest import FIXTURES
from model_manager import ModelManager

KNOWN, NEW = ["hello", "merhaba"], ["a new text", "yeni bir metin", "and a third one, which is longer"]
MIXED = [NEW[0], KNOWN[0], NEW[1], KNOWN[1], NEW[2]]


@pytest.fixture
def source(tmp_path):
    """A folder that is a link, so that it can name another model at once."""
    link = tmp_path / "model"
    link.symlink_to(FIXTURES / "bert_plain")
    return link


def point(link, fixture):
    link.unlink()
    link.symlink_to(FIXTURES / fixture)


def vectors(fixture, texts):
    with ModelManager(cache_size=0, auto_cleanup=False) as manager:
        manager.register("m", str(FIXTURES / fixture))
        return manager.embed(texts, "m")


@pytest.mark.parametrize("fixture", ["bert_max", "bert_cls"], ids=["same width", "another width"])
@pytest.mark.parametrize("tier", [False, True], ids=["memory", "disk"])
def test_hits_of_the_former_model_are_computed_anew(source, tmp_path, fixture, tier):
    disk = {"cache_disk": str(tmp_path / "cache")} if tier else {}
    with ModelManager(auto_cleanup=False, adaptive_state=False, **disk) as manager:
        manager.register("m", str(source))
        former = manager.embed(KNOWN, "m")
        np.testing.assert_array_equal(former, vectors("bert_plain", KNOWN))
        manager.unload("m")
        point(source, fixture)
        np.testing.assert_array_equal(manager.embed(MIXED, "m"), vectors(fixture, MIXED))
        # And from the cache.
        np.testing.assert_array_equal(manager.embed(MIXED, "m"), vectors(fixture, MIXED))
        slot = manager.stats()["slots"]["m"]
        assert slot["queued"] == 0


def test_the_same_for_calls_of_asyncio(source):
    async def call():
        with ModelManager(auto_cleanup=False) as manager:
            manager.register("m", str(source))
            await manager.aembed(KNOWN, "m")
            manager.unload("m")
            point(source, "bert_max")
            return await manager.aembed(MIXED, "m")

    np.testing.assert_array_equal(asyncio.run(call()), vectors("bert_max", MIXED))


def test_another_slot_still_fixes_the_width(source):
    """Routing sends texts to two slots, whose models have one width before and two after."""
    with ModelManager(
        auto_cleanup=False, turkish_model=str(FIXTURES / "bert_plain"), english_model=str(source)
    ) as manager:
        turkish = "Şu an yağmur yağıyor, şemsiyeni unutma"
        manager.embed([turkish, "where is my order?"])
        manager.unload("english_sentence")
        point(source, "bert_cls")
        with pytest.raises(ValueError, match="models of different dimensions"):
            manager.embed([turkish, "where is my order?", "the weather is lovely"])
        np.testing.assert_array_equal(manager.embed(turkish), vectors("bert_plain", [turkish])[0])
