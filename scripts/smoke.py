#!/usr/bin/env python3
"""The installed package on a tiny model of this checkout: vectors, cache, unloading. Needs numpy only."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from model_manager import ModelManager, __version__, isa

FIXTURE = Path(__file__).resolve().parents[1] / "tests" / "fixtures" / "bert_wordpiece"


def main() -> None:
    reference = json.loads((FIXTURE / "reference.json").read_text(encoding="utf-8"))
    with ModelManager(dtype="float32") as manager:
        manager.register("tiny", str(FIXTURE))
        texts = ["The weather is lovely today.", "Bugün hava çok güzel"]
        vectors = manager.embed(texts, "tiny")
        assert vectors.shape == (2, 32), vectors.shape
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        assert np.array_equal(manager.embed(texts[1], "tiny"), vectors[1])
        assert manager.cache_info()["hits"] >= 1
        assert manager.unload("tiny")
    versions = ", ".join(f"{name} {version}" for name, version in reference["made_with"].items())
    print(f"model_manager {__version__} works with numpy {np.__version__} on {isa()} (references: {versions})")


if __name__ == "__main__":
    main()
