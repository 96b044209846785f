"""Models that the chatbot's libraries downloaded are found in their folders, without a network."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
from conftest import ENGLISH_MODEL, FIXTURES, run_python
from model_manager.errors import ModelNotFoundError, TaskError

if TYPE_CHECKING:
    from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
BARE = "all-tiny-v1"
"""The short name of sentence-transformers/all-tiny-v1."""


def hub_layout(folder: Path, repo: str, source: str | Path) -> None:
    """The layout of huggingface_hub, transformers, and sentence-transformers since 2.3."""
    cached = folder / f"models--{repo.replace('/', '--')}"
    shutil.copytree(source, cached / "snapshots" / COMMIT)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(COMMIT)


def plain_layout(folder: Path, repo: str, source: str | Path) -> None:
    """The earlier layout of sentence-transformers."""
    shutil.copytree(source, folder / repo.replace("/", "_"))


LAYOUTS = pytest.mark.parametrize("layout", [hub_layout, plain_layout])
LOOK = """
import json, os
os.chdir({folder!r})
from model_manager import ModelManager, model_manager
found = [len(model_manager.generate_embedding("a text in English", force_turkish=False)), None]
try:
    found[1] = model_manager.generate("a", max_new_tokens=2) is not None
except Exception as error:
    found[1] = str(error)
with ModelManager(english_model={bare!r}) as other:
    found.append(len(other.generate_embedding("a text in English", force_turkish=False)))
print(json.dumps(found))
"""


@LAYOUTS
def test_the_process_wide_manager_looks_into_models_cache(tmp_path, layout) -> None:
    layout(tmp_path / "models_cache", f"sentence-transformers/{BARE}", ENGLISH_MODEL)
    hub_layout(tmp_path / "models_cache", "org/writer", FIXTURES / "gpt2")
    environment = {"ENGLISH_FALLBACK_MODEL": BARE, "HUGGINGFACE_MODEL": "org/writer"}
    found = run_python(LOOK.format(folder=str(tmp_path), bare=BARE), **environment).stdout
    # An independent manager does not look there.
    assert json.loads(found) == [32, True, 0]


@LAYOUTS
@pytest.mark.parametrize("variable", ["SENTENCE_TRANSFORMERS_HOME", "TRANSFORMERS_CACHE"])
def test_folders_named_by_the_environment(tmp_path, monkeypatch, make_manager, layout, variable) -> None:
    layout(tmp_path, f"sentence-transformers/{BARE}", ENGLISH_MODEL)
    layout(tmp_path, "org/other", ENGLISH_MODEL)
    monkeypatch.setenv(variable, str(tmp_path))
    manager = make_manager()
    for slot, source in (("bare", BARE), ("named", "org/other")):
        manager.register(slot, source, kind="embedding")
        assert manager.embed("a text", slot).shape == (32,)
        assert str(tmp_path) in manager.describe(slot)["path"]


@LAYOUTS
def test_a_model_that_is_not_whole_is_not_used(tmp_path, monkeypatch, make_manager, layout) -> None:
    layout(tmp_path, "org/other", ENGLISH_MODEL)
    for weights in tmp_path.rglob("model.safetensors"):
        weights.unlink()
    monkeypatch.setenv("SENTENCE_TRANSFORMERS_HOME", str(tmp_path))
    manager = make_manager()
    manager.register("m", "org/other", kind="embedding")
    with pytest.raises(ModelNotFoundError, match=r"nor in .*HF_HUB_OFFLINE"):
        manager.embed("a text", "m")


def test_the_cache_goes_first(tmp_path, monkeypatch, make_manager) -> None:
    hub_layout(tmp_path / "cache", "org/other", ENGLISH_MODEL)
    plain_layout(tmp_path / "home", "org/other", FIXTURES / "bert_cls")
    monkeypatch.setenv("SENTENCE_TRANSFORMERS_HOME", str(tmp_path / "home"))
    manager = make_manager(cache_dir=str(tmp_path / "cache"))
    manager.register("m", "org/other", kind="embedding")
    assert manager.embed("a text", "m").shape == (32,)


def test_the_kind_of_a_downloaded_model_is_that_of_its_files(tmp_path, make_manager) -> None:
    for name, folder in {"org/writer": FIXTURES / "llama", "org/vectors": ENGLISH_MODEL}.items():
        hub_layout(tmp_path / "cache", name, folder)
    manager = make_manager(cache_dir=str(tmp_path / "cache"), dtype="float32")
    for name in ("writer", "vectors", "absent"):
        manager.register(name, f"org/{name}")
    slots = manager.stats()["slots"]
    assert [slots[name]["kind"] for name in ("writer", "vectors", "absent")] == ["generator", "embedding", "embedding"]
    assert manager.generate("a", model="writer", max_new_tokens=2, do_sample=False)
    with pytest.raises(TaskError, match='registered with kind="embedding"'):
        manager.embed("a", "writer")
    assert manager.embed("a", "vectors").shape == (32,)


def test_the_cache_may_be_in_the_home_folder(tmp_path, monkeypatch, make_manager) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    hub_layout(tmp_path / "models", "org/other", ENGLISH_MODEL)
    manager = make_manager(cache_dir="~/models")
    assert manager.config.cache_dir == str(tmp_path / "models")
    manager.register("m", "org/other")
    assert manager.embed("a text", "m").shape == (32,)
