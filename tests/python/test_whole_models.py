"""Language models inside of models that read images: which keys of the whole configuration count."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from conftest import FIXTURES
from model_manager.errors import ModelManagerError

if TYPE_CHECKING:
    from pathlib import Path

GREEDY: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": 8}
IDS = [5, 17, 9, 33, 21, 8]
TIED = "tie_word_embeddings"


def with_keys(folder: Path, base: str, outer: bool | None, inner: bool | None) -> str:
    """The fixture with these values of the key, outside of the text model's configuration and inside."""
    shutil.copytree(FIXTURES / base, folder)
    path = folder / "config.json"
    config = json.loads(path.read_text("utf-8"))
    for place, value in ((config, outer), (config["text_config"], inner)):
        place.pop(TIED, None)
        if value is not None:
            place[TIED] = value
    path.write_text(json.dumps(config), "utf-8")
    return str(folder)


@pytest.mark.parametrize(
    ("base", "outer", "inner"),
    [
        ("gemma3", None, False),
        ("gemma3", True, False),
        ("gemma3", None, None),
        ("qwen3_5", None, True),
        ("qwen3_5", False, True),
        ("qwen3_5", True, False),
    ],
)
def test_logits_of_the_table_of_words(make_writer, tmp_path, base, outer, inner):
    """The files have no matrix of logits; transformers ties it so, with at least one of its classes."""
    expected = make_writer(base).complete(IDS, **GREEDY)["tokens"]
    manager = make_writer("gpt2", generator_model=with_keys(tmp_path / "m", base, outer, inner))
    assert manager.complete(IDS, **GREEDY)["tokens"] == expected


@pytest.mark.parametrize(
    ("base", "outer", "inner"), [("gemma3", False, True), ("qwen3_5", None, None), ("qwen3_5", False, None)]
)
def test_a_matrix_that_is_to_be_there_is_named(make_writer, tmp_path, base, outer, inner):
    """transformers takes random numbers in its place."""
    manager = make_writer("gpt2", generator_model=with_keys(tmp_path / "m", base, outer, inner))
    with pytest.raises(ModelManagerError, match=r"lm_head\.weight"):
        manager.complete(IDS, **GREEDY)
