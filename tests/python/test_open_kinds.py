"""A model that is registered before it is on this machine, without a kind: its files say what it is when they come."""

from __future__ import annotations

import logging
import pickle
import shutil
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest
from conftest import ENGLISH_TEXT, FIXTURES
from model_manager._embedder import slot_for
from model_manager.errors import ModelManagerError, ModelNotFoundError, NoGeneratorError, TaskError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from model_manager import ModelManager

SOURCE = "x/model"


def arrive(cache: Path, fixture: str) -> None:
    """The files of the fixture as the hub's cache holds them."""
    folder = cache / "models--x--model"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("a" * 40)
    (folder / ".no_exist" / ("a" * 40)).mkdir(parents=True)
    (folder / ".no_exist" / ("a" * 40) / "modules.json").touch()
    shutil.copytree(FIXTURES / fixture, folder / "snapshots" / ("a" * 40))


@pytest.fixture
def manager(make_manager, tmp_path) -> ModelManager:
    """Its slot ``m`` is open."""
    made = make_manager(cache_dir=str(tmp_path), offline=True)
    made.register("m", SOURCE)
    return made


def state(manager: ModelManager, slot: str = "m") -> tuple[str, bool]:
    found = manager.stats()["slots"][slot]
    return found["kind"], found["kind_known"]


@pytest.mark.parametrize("first", ["load", "warmup", "get", "embed", "generate", "stream"])
def test_a_language_model_writes_whatever_is_called_first(manager, tmp_path, first):
    assert state(manager) == ("embedding", False)
    with pytest.raises(ModelNotFoundError):
        manager.load("m")
    assert state(manager) == ("embedding", False), "a failure decides nothing"
    arrive(tmp_path, "llama")
    calls: dict[str, Callable[[], object]] = {
        "load": lambda: manager.load("m"),
        "warmup": lambda: manager.warmup(["m"]),
        "get": lambda: manager.get("m"),
        "generate": lambda: manager.generate(ENGLISH_TEXT, "m", max_new_tokens=1),
        "stream": lambda: list(manager.stream(ENGLISH_TEXT, "m", max_new_tokens=1)),
    }
    if first == "embed":
        with pytest.raises(TaskError, match="text"):
            manager.embed(ENGLISH_TEXT, "m")
    else:
        calls[first]()
    assert state(manager) == ("generator", True)
    assert manager.generate(ENGLISH_TEXT, "m", max_new_tokens=2) is not None
    assert manager.stats()["tracker"]["load_counts"]["m"] == 1
    manager.unload("m")
    assert state(manager) == ("generator", True)


@pytest.mark.parametrize(
    ("fixture", "kind"),
    [("bert_plain", "embedding"), ("rerank_bert", "reranker"), ("nli_bert", "classifier"), ("splade_bert", "sparse")],
)
def test_a_model_of_vectors_or_scores_is_one_whatever_is_called_first(make_manager, tmp_path, fixture, kind):
    arrive(tmp_path, fixture)
    there = make_manager(cache_dir=str(tmp_path), offline=True)
    there.register("m", SOURCE)
    there.load("m")
    for write_first in (False, True):
        shutil.rmtree(tmp_path / "models--x--model")
        manager = make_manager(cache_dir=str(tmp_path), offline=True)
        manager.register("m", SOURCE)
        arrive(tmp_path, fixture)
        if write_first:
            with pytest.raises(NoGeneratorError):
                manager.generate(ENGLISH_TEXT, "m")
        manager.load("m")
        assert state(manager) == (kind, True)
        if kind == "embedding":
            np.testing.assert_array_equal(manager.embed(ENGLISH_TEXT, "m"), there.embed(ENGLISH_TEXT, "m"))
        if kind == "reranker":
            documents = [ENGLISH_TEXT, "another one"]
            assert manager.rerank("query", documents, "m") == there.rerank("query", documents, "m")


def test_two_first_uses_at_once_share_one_load(manager, tmp_path):
    arrive(tmp_path, "llama")
    barrier, failed = threading.Barrier(4), []

    def use(write: bool) -> None:
        barrier.wait(20)
        try:
            manager.generate(ENGLISH_TEXT, "m", max_new_tokens=1) if write else manager.load("m")
        except Exception as error:  # noqa: BLE001  shown below
            failed.append(error)

    threads = [threading.Thread(target=use, args=(index % 2 == 0,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failed == []
    assert manager.stats()["tracker"]["load_counts"]["m"] == 1


@pytest.mark.parametrize("early", [True, False], ids=["registered first", "downloaded first"])
def test_a_language_model_of_a_sentence_model_embeds_with_a_warning(make_manager, tmp_path, caplog, early):
    if not early:
        arrive(tmp_path, "llama")
    manager = make_manager(cache_dir=str(tmp_path), offline=True)
    slot = slot_for(manager, SOURCE)
    if early:
        arrive(tmp_path, "llama")
    with caplog.at_level(logging.WARNING):
        vector = manager.embed(ENGLISH_TEXT, slot)
    assert "only models that were trained for it embed well" in caplog.text
    manager.register("plain", SOURCE, kind="embedding")
    np.testing.assert_array_equal(vector, manager.embed(ENGLISH_TEXT, "plain"))
    assert state(manager, SOURCE) == ("embedding", True)


def test_an_encoder_is_what_its_files_say(make_manager):
    manager = make_manager()
    for fixture, kind in [("rerank_bert", "reranker"), ("splade_bert", "sparse"), ("qwen3", "embedding")]:
        manager.register(fixture, str(FIXTURES / fixture), kind="encoder")
        assert state(manager, fixture) == ("embedding", False)
        manager.load(fixture)
        assert state(manager, fixture) == (kind, True)


def test_a_copy_decides_for_itself(manager, tmp_path):
    arrive(tmp_path, "llama")
    with pickle.loads(pickle.dumps(manager)) as copy:
        assert copy.stats()["slots"]["m"]["kind"] == "generator", "its files are here now"


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json"])
def test_files_that_cannot_be_read_decide_nothing(make_manager, tmp_path, file):
    folder = tmp_path / "model"
    shutil.copytree(FIXTURES / "llama", folder)
    whole = (folder / file).read_bytes()
    (folder / file).write_bytes(whole[: len(whole) // 2])
    manager = make_manager()
    manager.register("m", str(folder))
    with pytest.raises(ModelManagerError):
        manager.load("m")
    if file == "config.json":
        assert state(manager) == ("embedding", False)
    (folder / file).write_bytes(whole)
    assert manager.generate(ENGLISH_TEXT, "m", max_new_tokens=1) is not None
    assert state(manager) == ("generator", True)
