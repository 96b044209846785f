"""Checks that encoders with attention of their own share: references of fixtures, in every form of weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from conftest import FIXTURES, changed, reference
from model_manager.errors import InvalidFileError, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from model_manager import ModelManager

TOLERANCE = {"rtol": 0, "atol": 2e-5}


def unit(vectors: Any) -> np.ndarray:
    vectors = np.array(vectors)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def assert_the_same_alone_and_together(make_manager: Callable[..., ModelManager], name: str) -> None:
    """Vectors are those of the reference, and of a text alone to the bit."""
    manager = make_manager(cache_size=0)
    manager.register("model", str(FIXTURES / name), dtype="float32")
    cases = reference(name)["cases"]
    texts = [case["text"] for case in cases]
    together = manager.embed(texts, model="model")
    np.testing.assert_allclose(together, unit([case["embedding"] for case in cases]), **TOLERANCE)
    for text, vector in zip(texts, together, strict=True):
        assert np.array_equal(manager.embed(text, model="model"), vector), text
    states = manager.embed_multi(texts[:2], model="model")
    assert [state.shape[1] for state in states] == [together.shape[1]] * 2


def assert_close_in(dtype: Any, least: float, make_manager: Callable[..., ModelManager], name: str) -> None:
    """The cosine of each vector of such weights with that of the reference is larger than `least`."""
    manager = make_manager(cache_size=0)
    manager.register("model", str(FIXTURES / name), dtype=dtype)
    cases = reference(name)["cases"]
    vectors = manager.embed([case["text"] for case in cases], model="model")
    assert manager.describe("model")["dtype"] == dtype
    cosines = (vectors * unit([case["embedding"] for case in cases])).sum(axis=1)
    assert cosines.min() > least


def assert_candle_agrees(make_manager: Callable[..., ModelManager], name: str) -> None:
    """What computes it on cards, for which there are no kernels of it, on the CPU."""
    expected = reference(name)
    manager = make_manager(device="candle-cpu", cache_size=0)
    manager.register("model", str(FIXTURES / name), dtype="float32")
    if "cases" in expected:
        found = manager.embed([case["text"] for case in expected["cases"]], model="model")
        np.testing.assert_allclose(found, unit([case["embedding"] for case in expected["cases"]]), **TOLERANCE)
    else:
        pairs = expected["pairs"]
        found = manager.get("model").predict([case["pair"] for case in pairs], activation_fn="identity")
        want = [case["logits"] for case in pairs]
        np.testing.assert_allclose(found.reshape(len(want), -1), want, **TOLERANCE)


def assert_refused(
    make_manager: Callable[..., ModelManager], folder: Path, name: str, config: dict[str, Any], said: str
) -> None:
    """With such a configuration the fixture is refused, and `said` names why."""
    manager = make_manager()
    manager.register("model", str(changed(name, folder, **config)))
    with pytest.raises((UnsupportedModelError, InvalidFileError), match=said):
        manager.load("model")
    assert not manager.is_loaded("model")
