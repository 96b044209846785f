"""The memory of all models together: who leaves, who waits, and what a shortage means."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import ENGLISH_MODEL, ENGLISH_TEXT, FIXTURES, TURKISH_MODEL, TURKISH_TEXT, in_threads
from model_manager import ModelManager
from model_manager.errors import DeviceMemoryError, MemoryBudgetError, ModelIOError, OutOfMemoryError


def test_memory_budget_evicts_the_least_recently_used(make_manager, tmp_path):
    small = str(FIXTURES / "bert_plain")
    free = make_manager()
    free.register("pinned", small, dtype="float32")
    size = free.describe("english_sentence")["bytes"]
    # The estimate before a load: the weights, and twelve times the tokenizer's file.
    weights, tokenizer = (Path(ENGLISH_MODEL) / name for name in ("model.safetensors", "tokenizer.json"))
    expected = weights.stat().st_size + 12 * tokenizer.stat().st_size
    budget = free.describe("pinned")["bytes"] + size + size // 2 + expected
    manager = make_manager(memory_budget=budget)
    for number, name in enumerate("abc"):
        folder = shutil.copytree(ENGLISH_MODEL, tmp_path / name)
        with (folder / "tokenizer.json").open("a") as file:
            file.write("\n" * number)  # equal files would share one model
        manager.register(name, str(folder), dtype="float32")
    manager.register("pinned", small, dtype="float32", pinned=True)
    loaded = []
    for name in ["pinned", "a", "b", "a", "c"]:
        manager.embed(f"a text for {name} {len(loaded)}", name)
        loaded.append([slot for slot in manager.slots() if manager.is_loaded(slot)])
        assert manager.stats()["memory"]["models"] <= budget
    assert loaded[-1] == ["a", "c", "pinned"], "b was the least recently used, and what is pinned stays"
    assert manager.stats()["memory"]["budget"] == budget


def test_memory_budget_that_nothing_fits_in(make_manager):
    manager = make_manager(memory_budget="1kB")
    with pytest.raises(MemoryError, match="memory_budget"):
        manager.load("english_sentence")
    assert manager.generate_embedding(ENGLISH_TEXT) == []


def budget_for_one():
    """A budget in which either sentence model can be loaded, and not both."""
    folders = (Path(ENGLISH_MODEL), Path(TURKISH_MODEL))
    return max(
        (folder / "model.safetensors").stat().st_size + 12 * (folder / "tokenizer.json").stat().st_size
        for folder in folders
    )


def test_a_call_for_two_models_needs_memory_for_one(make_manager):
    manager = make_manager(memory_budget=budget_for_one(), cache_size=0)
    expected = [manager.embed(text) for text in (TURKISH_TEXT, ENGLISH_TEXT)]
    for _ in range(3):
        rows = manager.embed([TURKISH_TEXT, ENGLISH_TEXT])
        np.testing.assert_array_equal(rows, expected)
        assert [manager.is_loaded(slot) for slot in manager.slots()].count(True) == 1


def test_a_load_waits_for_the_memory_of_calls_under_way(make_manager):
    manager = make_manager(memory_budget=budget_for_one(), cache_size=0)
    texts = {"turkish_sentence": TURKISH_TEXT, "english_sentence": ENGLISH_TEXT}
    expected = {slot: manager.embed(text, slot) for slot, text in texts.items()}

    def work(n):
        for turn in range(10):
            slot = list(texts)[(n + turn) % 2]
            np.testing.assert_array_equal(manager.embed(texts[slot], slot), expected[slot])
        return True

    assert in_threads(6, work) == [True] * 6


def test_memory_that_a_pinned_model_holds_is_not_waited_for(make_manager):
    manager = make_manager(memory_budget=budget_for_one())
    manager.register("pinned", TURKISH_MODEL, dtype="float32", pinned=True)
    manager.load("pinned")
    # That it does not wait is a test of `fits_later` in memory.rs, which needs no clock.
    with pytest.raises(MemoryBudgetError) as raised:
        manager.embed(ENGLISH_TEXT, "english_sentence")
    assert raised.value.transient, "it fits once the other is not pinned"
    with pytest.raises(MemoryBudgetError) as raised:
        make_manager(memory_budget="1kB").load("english_sentence")
    assert not raised.value.transient


@pytest.mark.parametrize("error", [DeviceMemoryError, MemoryBudgetError, ModelIOError, OutOfMemoryError])
def test_a_shortage_is_no_reason_for_the_other_models_vectors(manager, monkeypatch, error):
    def fail(self, text, slot=None, **options):
        raised = error("not now")
        raised.transient = error is MemoryBudgetError
        assert slot == "turkish_sentence"
        raise raised

    monkeypatch.setattr(ModelManager, "embed", fail)
    assert manager.generate_embedding(TURKISH_TEXT) == []
