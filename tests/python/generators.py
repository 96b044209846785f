"""Tiny language models for the tests of text generation, and one that writes for as long as it is let."""

from __future__ import annotations

import json
import shutil
import time
from typing import TYPE_CHECKING, Any

import pytest
from conftest import FIXTURES, ROOT, tiny

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from model_manager import ModelManager

NAMES = ["gpt2", "gpt2_bin", "llama", "qwen2", "qwen3"]
GPT2 = str(FIXTURES / "gpt2")
CONTEXT = 64
"""Tokens, of all of them."""
SLOT = "text_generator"
GREEDY = {"do_sample": False}
WITHOUT_END = {"max_new_tokens": 50_000, "min_new_tokens": 50_000}
"""Of `endless`: minutes of work."""


def writer(name: str = "gpt2", **overrides: Any) -> ModelManager:
    """A manager whose generator is a tiny model, computing as its reference was computed."""
    return tiny(**{"generator_model": str(FIXTURES / name), "generator_dtype": "float32", **overrides})


@pytest.fixture
def make_writer() -> Iterator[Callable[..., ModelManager]]:
    """`writer`, closed after the test."""
    made: list[ModelManager] = []

    def make(name: str = "gpt2", **overrides: Any) -> ModelManager:
        made.append(writer(name, **overrides))
        return made[-1]

    yield make
    for manager in made:
        manager.close()


def stretched(name: str, folder: Path, context: int) -> Path:
    """A copy of a tiny model with another context: rotary positions are computed, so that any number will do."""
    shutil.copytree(FIXTURES / name, folder)
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "max_position_embeddings": context}))
    return folder


@pytest.fixture(scope="session")
def endless_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama, which writes 100,000 tokens if it is let."""
    return stretched("llama", tmp_path_factory.mktemp("endless") / "llama", 100_000)


@pytest.fixture
def endless(make_writer: Callable[..., ModelManager], endless_model: Path) -> ModelManager:
    """A manager on `endless_model`, loaded."""
    manager = make_writer(generator_model=str(endless_model))
    manager.load(SLOT)
    return manager


@pytest.fixture(scope="session")
def smollm2() -> str:
    """The real SmolLM2; without `make models` the test is skipped."""
    path = ROOT / ".models" / "SmolLM2-135M-Instruct" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not path.is_file():
        pytest.skip(f"{path} is missing: run `make models`")
    return str(path)


def figures(manager: ModelManager) -> dict[str, Any]:
    """What the generator has done since it was loaded."""
    found = manager.stats()["slots"][SLOT]["generation"]
    assert found is not None
    return found


def eventually(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Wait until `condition` holds: what another thread does after an answer has been given."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)
