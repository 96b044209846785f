"""A result belongs to one model: its files, its source, its length and its labels. Callbacks may call the manager."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest
from conftest import ENGLISH_TEXT, FIXTURES, tiny
from model_manager import ModelManager
from model_manager.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

ENGLISH = "english_sentence"
SECONDS = 20
"""A call that takes longer hangs."""


def pooled(folder: Path, mode: str) -> str:
    """The tiny model with another pooling. Its weights are the same file."""
    source = FIXTURES / "bert_cls"
    if not folder.exists():
        shutil.copytree(source, folder)
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors").symlink_to(source / "model.safetensors")
    path = folder / "1_Pooling" / "config.json"
    config = json.loads(path.read_text())
    flags = {key: key == f"pooling_mode_{mode}" for key in config if key.startswith("pooling_mode_")}
    path.write_text(json.dumps({**config, **flags}))
    return str(folder)


def vectors(source: str, text: str) -> np.ndarray:
    with tiny() as manager:
        manager.register("m", source)
        return manager.embed(text, "m")


def test_models_with_the_same_weights_and_other_files_are_two(make_manager, tmp_path):
    sources = {mode: pooled(tmp_path / mode, mode) for mode in ("cls_token", "mean_tokens")}
    alone = {mode: vectors(source, ENGLISH_TEXT) for mode, source in sources.items()}
    assert np.abs(alone["cls_token"] - alone["mean_tokens"]).max() > 0.01
    manager = make_manager()
    for mode, source in sources.items():
        manager.register(mode, source)
    for mode in sources:
        np.testing.assert_array_equal(manager.embed(ENGLISH_TEXT, mode), alone[mode])
        assert manager.describe(mode)["pooling"] == mode.split("_")[0]


def test_a_file_that_was_changed_is_another_model(make_manager, tmp_path):
    manager = make_manager()
    manager.register("m", pooled(tmp_path / "m", "cls_token"))
    former = manager.embed(ENGLISH_TEXT, "m")
    manager.unload("m")
    source = pooled(tmp_path / "m", "mean_tokens")
    manager.load("m")
    np.testing.assert_array_equal(manager.embed(ENGLISH_TEXT, "m"), vectors(source, ENGLISH_TEXT))
    assert np.abs(manager.embed(ENGLISH_TEXT, "m") - former).max() > 0.01


@pytest.mark.parametrize("tier", [False, True], ids=["memory", "disk"])
def test_the_cache_of_a_slot_is_that_of_the_model_that_its_variable_names(monkeypatch, tmp_path, tier):
    disk = {"cache_disk": str(tmp_path / "cache")} if tier else {}
    first, second = str(FIXTURES / "bert_cls"), str(FIXTURES / "bert_max")
    expected = {source: vectors(source, ENGLISH_TEXT) for source in (first, second)}
    monkeypatch.setenv("ENGLISH_FALLBACK_MODEL", first)
    with ModelManager(auto_cleanup=False, adaptive_state=False, dtype="float32", offline=True, **disk) as manager:
        np.testing.assert_array_equal(manager.embed(ENGLISH_TEXT, ENGLISH), expected[first])
        monkeypatch.setenv("ENGLISH_FALLBACK_MODEL", second)
        # A model in memory stays that of its slot.
        np.testing.assert_array_equal(manager.embed(ENGLISH_TEXT, ENGLISH), expected[first])
        manager.unload(ENGLISH)
        np.testing.assert_array_equal(manager.embed(ENGLISH_TEXT, ENGLISH), expected[second])
        monkeypatch.setenv("ENGLISH_FALLBACK_MODEL", first)
        manager.unload_all_models()
        np.testing.assert_array_equal(asyncio.run(manager.aembed(ENGLISH_TEXT, ENGLISH)), expected[first])
        # Without a change, an absent model's results come from the cache.
        manager.unload(ENGLISH)
        np.testing.assert_array_equal(manager.embed(ENGLISH_TEXT, ENGLISH), expected[first])
        assert not manager.is_loaded(ENGLISH)


def test_a_text_that_was_cut_by_its_characters_is_not_taken_for_whole(make_manager):
    manager = make_manager()
    manager.register("m", str(FIXTURES / "model2vec_words"), max_length=8)
    vocabulary = json.loads((FIXTURES / "model2vec_words" / "tokenizer.json").read_text())["model"]["vocab"]
    words = sorted((word for word in vocabulary if word.isalpha()), key=lambda word: (len(word), word))
    text = " ".join(words[-6:])
    cut = manager.embed(text, "m")
    assert manager.stats()["slots"]["m"]["truncated"] == 1
    whole = manager.embed(text, "m", truncate=False)
    assert np.abs(whole - cut).max() > 1e-3
    with make_manager(cache_size=0) as fresh:
        fresh.register("m", str(FIXTURES / "model2vec_words"), max_length=8)
        np.testing.assert_array_equal(whole, fresh.embed(text, "m", truncate=False))
    with pytest.raises(InputError, match="at most 8"):
        manager.embed(" ".join(words[-20:]), "m", truncate=False)


def test_labels_have_their_names_after_the_model_has_left(make_manager):
    manager = make_manager()
    manager.register("nli", str(FIXTURES / "nli_bert"))
    names = set(manager.classify("a b", "nli").scores)
    assert not any(name.startswith("LABEL_") for name in names)
    manager.unload("nli")
    for call in (
        lambda: manager.classify("a b", "nli"),
        lambda: asyncio.run(manager.aclassify("a b", "nli")),
    ):
        assert set(call().scores) == names
        assert not manager.is_loaded("nli"), "answered from the cache"
    found = asyncio.run(manager.aclassify("another text", "nli", keep_alive=0))
    assert set(found.scores) == names


@pytest.mark.parametrize("call", ["sync", "async"])
def test_keep_alive_counts_for_results_of_the_cache(make_manager, call):
    manager = make_manager()
    manager.embed(ENGLISH_TEXT, ENGLISH)
    assert manager.is_loaded(ENGLISH)
    if call == "sync":
        manager.embed(ENGLISH_TEXT, ENGLISH, keep_alive=0)
    else:
        asyncio.run(manager.aembed(ENGLISH_TEXT, ENGLISH, keep_alive=0))
    assert not manager.is_loaded(ENGLISH)


def test_a_callback_may_cancel_its_own_call(make_manager):
    manager = make_manager()
    ready, ended, second = threading.Event(), threading.Event(), threading.Event()
    found = []

    def on_done(result, error):
        ready.wait(SECONDS)
        found.append((result is not None, error, ticket.cancel()))
        ended.set()

    ticket = manager.submit([ENGLISH_TEXT], on_done, ENGLISH)
    ready.set()
    assert ended.wait(SECONDS)
    assert found == [(True, None, False)]
    manager.submit(["another text"], lambda *_: second.set(), ENGLISH)
    assert second.wait(SECONDS), "the dispatcher serves others"


def test_a_call_may_be_cancelled_while_its_callback_waits(make_manager):
    manager = make_manager()
    own, entered, ended = threading.Lock(), threading.Event(), threading.Event()

    def on_done(_result, _error):
        entered.set()
        with own:
            ended.set()

    with own:
        ticket = manager.submit([ENGLISH_TEXT], on_done, ENGLISH)
        assert entered.wait(SECONDS)
        cancelled = []
        thread = threading.Thread(target=lambda: cancelled.append(ticket.cancel()), daemon=True)
        thread.start()
        thread.join(SECONDS)
        assert cancelled == [False]
    assert ended.wait(SECONDS)
