"""Tiny language models for the tests of text generation, and one whose answers do not end."""

from __future__ import annotations

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from conftest import FIXTURES, ROOT, reference, tiny

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from model_manager import ModelManager

NAMES = ["gpt2", "gpt2_bin", "llama", "qwen2", "qwen3"]
GPT2 = str(FIXTURES / "gpt2")
CONTEXT = 64
"""Tokens of every tiny model's context."""
SLOT = "text_generator"
GREEDY = {"do_sample": False}
TEXT = "Merhaba dünya"
"""A prompt."""
WITHOUT_END = {"max_new_tokens": 50_000, "min_new_tokens": 50_000}
"""Parameters that keep `endless` busy for minutes."""


def writer(name: str = "gpt2", **overrides: Any) -> ModelManager:
    """A manager whose generator is a tiny model, in the dtype of its reference."""
    return tiny(**{"generator_model": str(FIXTURES / name), "generator_dtype": "float32", **overrides})


@pytest.fixture(scope="module")
def gpt2() -> Iterator[ModelManager]:
    """One `writer` for a whole file, for tests that do not look at its state."""
    with writer() as manager:
        yield manager


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


def assert_answers_of_transformers(manager: ModelManager, name: str) -> None:
    """Greedy answers of a tiny model are those of its reference, one by one and from eight threads."""
    cases = reference(name)["cases"]

    def answer(case: dict[str, Any]) -> list[int]:
        return manager.complete(case["ids"], max_new_tokens=len(case["greedy"]), **GREEDY)["tokens"]

    expected = [case["greedy"] for case in cases]
    assert [answer(case) for case in cases] == expected
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(answer, cases * 3)) == expected * 3


def assert_pieces_make_answers(manager: ModelManager, name: str) -> None:
    """The pieces of streams of a tiny model are the texts of its answers."""
    for case in reference(name)["cases"]:
        options = {"max_new_tokens": len(case["greedy"]), **GREEDY}
        pieces = list(manager.stream(case["prompt"], **options))
        assert "".join(pieces) == manager.complete(case["ids"], **options)["text"]


def assert_narrower(manager: ModelManager, name: str, dtype: str) -> None:
    """A tiny model in this dtype says so, and answers twice alike."""
    case = reference(name)["cases"][0]
    first = manager.complete(case["ids"], max_new_tokens=6, **GREEDY)["tokens"]
    assert manager.complete(case["ids"], max_new_tokens=6, **GREEDY)["tokens"] == first
    assert manager.describe_generator(SLOT)["dtype"] == dtype


def assert_second_question_reuses(manager: ModelManager, system: list[int], tokens: int) -> None:
    """Of two questions after one beginning, the second reuses so many tokens; both answers are those alone."""
    questions = [[*system, *range(start, start + 12)] for start in (10, 200)]
    expected = []
    for question in questions:
        expected.append(manager.complete(question, max_new_tokens=5, **GREEDY)["tokens"])
        manager.unload(SLOT)
    answers = [manager.complete(question, max_new_tokens=5, **GREEDY) for question in questions]
    assert [answer["reused_tokens"] for answer in answers] == [0, tokens]
    assert [answer["tokens"] for answer in answers] == expected


def assert_vectors_do_not_depend_on_others(manager: ModelManager, name: str) -> None:
    """The vector of a text of a tiny model is the same, to the bit, with other texts and alone, without a cache."""
    manager.register("model", str(FIXTURES / name), kind="embedding", dtype="float32")
    texts = [case["prompt"] for case in reference(name)["cases"]]
    together = manager.embed(texts, "model")
    assert np.isfinite(together).all()
    for text, vector in zip(texts, together, strict=True):
        assert (manager.embed([text], "model")[0] == vector).all()


def stretched(name: str, folder: Path, context: int) -> Path:
    """A copy of a tiny model with another context; rotary positions allow any length."""
    shutil.copytree(FIXTURES / name, folder)
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "max_position_embeddings": context}))
    return folder


@pytest.fixture(scope="session")
def endless_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama with a context of 100,000 tokens."""
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
    """The figures of the generator since it was loaded."""
    found = manager.stats()["slots"][SLOT]["generation"]
    assert found is not None
    return found


def eventually(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Wait until `condition` holds, for work of another thread that follows an answer."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)
