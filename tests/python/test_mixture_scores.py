"""Rerankers and classifiers over mixtures of experts: the scores of sentence-transformers."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest
from conftest import FIXTURES
from model_manager.errors import ModelManagerError
from safetensors.numpy import save_file

if TYPE_CHECKING:
    from pathlib import Path

    from model_manager import ModelManager

FOUND = json.loads((FIXTURES / "mixture_scores.json").read_text("utf-8"))["families"]
CLASSES = {"mixtral": "Mixtral", "qwen3_moe": "Qwen3Moe", "qwen2_moe": "Qwen2Moe"}
TOLERANCE = {"rtol": 0, "atol": 2e-5}


def widened(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file in bfloat16, which numpy does not know, as float32."""
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    found = {}
    for name, entry in json.loads(raw[8 : 8 + size]).items():
        if name != "__metadata__":
            assert entry["dtype"] == "BF16"
            start, end = (8 + size + offset for offset in entry["data_offsets"])
            bits = np.frombuffer(raw[start:end], np.uint16).astype(np.uint32) << 16
            found[name] = bits.view(np.float32).reshape(entry["shape"])
    return found


def scorer(family: str, kind: str, folder: Path) -> Path:
    """The generator of `family` with a layer over its last token."""
    case = FOUND[family][kind]
    shutil.copytree(FIXTURES / family, folder)
    for name, change in (
        ("config.json", {"architectures": [f"{CLASSES[family]}ForSequenceClassification"]}),
        ("config.json", {"id2label": {str(number): label for number, label in enumerate(case["labels"])}}),
        ("config.json", {"label2id": {label: number for number, label in enumerate(case["labels"])}}),
        ("tokenizer_config.json", {"chat_template": None}),
    ):
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **change}), "utf-8")
    path = folder / "model.safetensors"
    tensors = widened(path)
    tensors.pop("lm_head.weight", None)
    path.unlink()
    save_file({**tensors, "score.weight": np.array(case["score"], np.float32)}, path)
    return folder


def model_of(manager: ModelManager, family: str, kind: str, tmp_path: Path, dtype: str = "float32"):
    manager.register("model", str(scorer(family, kind, tmp_path / "model")), dtype=dtype)
    return manager.get("model")


@pytest.mark.parametrize("kind", ["one", "three"])
@pytest.mark.parametrize("family", list(CLASSES))
def test_pairs_have_the_scores_of_sentence_transformers(make_manager, tmp_path, family, kind):
    expected = FOUND[family][kind]["pairs"]
    model = model_of(make_manager(), family, kind, tmp_path)
    assert model.num_labels == len(FOUND[family][kind]["labels"])
    pairs = [case["pair"] for case in expected]
    for key, activation in (("logits", "identity"), ("scores", None)):
        want = np.array([case[key] for case in expected], np.float32)
        found = model.predict(pairs, activation_fn=activation)
        np.testing.assert_allclose(found.reshape(len(pairs), -1), want, **TOLERANCE)
        for pair, row in zip(pairs, want, strict=True):
            np.testing.assert_allclose(np.atleast_1d(model.predict(pair, activation_fn=activation)), row, **TOLERANCE)


@pytest.mark.parametrize("family", list(CLASSES))
def test_other_formats_stay_near(make_manager, tmp_path, family):
    expected = FOUND[family]["one"]["pairs"]
    model = model_of(make_manager(), family, "one", tmp_path, "bfloat16")
    found = model.predict([case["pair"] for case in expected], activation_fn="identity")
    want = np.array([case["logits"][0] for case in expected], np.float32)
    # Where rounding lets a token choose other experts, its score is another.
    assert np.median(np.abs(found - want)) < 0.05 * np.abs(want).max()


def test_documents_are_ranked_and_texts_classified(make_manager, tmp_path):
    manager = make_manager()
    manager.register("ranks", str(scorer("mixtral", "one", tmp_path / "one")), dtype="float32")
    manager.register("classifies", str(scorer("qwen3_moe", "three", tmp_path / "three")), dtype="float32")
    found = manager.rerank("q", ["a doc", "another", "İade yedi gün"], model="ranks")
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    case = FOUND["qwen3_moe"]["three"]["pairs"][0]
    (result,) = manager.classify([tuple(case["pair"])], "classifies")
    assert set(result.scores) == {"contradiction", "entailment", "neutral"}


def test_other_mixtures_have_no_such_layer(make_manager, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(FIXTURES / "olmoe", folder)
    config = folder / "config.json"
    classes = {"architectures": ["OlmoeForSequenceClassification"]}
    config.write_text(json.dumps({**json.loads(config.read_text("utf-8")), **classes}), "utf-8")
    manager = make_manager()
    manager.register("model", str(folder))
    with pytest.raises(ModelManagerError, match="olmoe"):
        manager.load("model")
