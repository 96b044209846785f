"""Falcon in its three forms: alone and together, in every number format, with a known beginning, from a folder."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
from conftest import FIXTURES, reference
from generators import GREEDY, SLOT, assert_answers_of_transformers
from model_manager import _core
from model_manager.errors import InvalidFileError, UnsupportedModelError

if TYPE_CHECKING:
    from pathlib import Path

FORMS = ("falcon", "falcon_new", "falcon_serial")


def test_its_engine_and_its_files():
    family = next(family for family in _core._families() if family["model_type"] == "falcon")
    assert family["kinds"] == ["generator"]
    assert family["gguf"] == {"falcon": ["generator"]}


@pytest.mark.parametrize("name", FORMS)
def test_answers_are_those_of_transformers_alone_and_together(make_writer, name):
    manager = make_writer(name)
    assert_answers_of_transformers(manager, name)
    described = manager.describe_generator(SLOT)
    assert (described["engine"], described["dtype"]) == ("model_manager", "float32")


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_its_weights_may_be_narrower(make_writer, name, dtype):
    manager = make_writer(name, generator_dtype=dtype)
    case = reference(name)["cases"][0]
    assert manager.complete(case["ids"], max_new_tokens=4, **GREEDY)["tokens"]
    assert manager.describe_generator(SLOT)["dtype"] == dtype


@pytest.mark.parametrize("name", FORMS)
def test_a_known_beginning_is_computed_once(make_writer, name):
    manager = make_writer(name)
    case = max(reference(name)["cases"], key=lambda case: len(case["ids"]))
    ids, rest = case["ids"], case["greedy"]
    first = manager.complete(ids, max_new_tokens=6, **GREEDY)
    again = manager.complete([*ids, *rest[:6]], max_new_tokens=len(rest) - 6, **GREEDY)
    assert [*first["tokens"], *again["tokens"]] == rest
    assert again["reused_tokens"] > 0


@pytest.mark.parametrize(
    ("name", "config", "said"),
    [
        ("falcon", {"alibi": True}, "alibi"),
        ("falcon", {"num_ln_in_parallel_attn": 2}, "num_ln_in_parallel_attn"),
        ("falcon", {"activation": "mish"}, "activation"),
        ("falcon", {"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm"),
        ("falcon_new", {"num_kv_heads": 3}, "num_kv_heads"),
        ("falcon_new", {"parallel_attn": False}, "parallel_attn"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(make_writer, tmp_path: Path, name, config, said):
    folder = tmp_path / "model"
    shutil.copytree(FIXTURES / name, folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | config), "utf-8")
    manager = make_writer("gpt2", generator_model=str(folder))
    with pytest.raises((UnsupportedModelError, InvalidFileError), match=said):
        manager.load(SLOT)
    assert not manager.is_loaded(SLOT)
