"""GPT-J: alone and together, in every number format, with a known beginning, from folders old and new."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING

import pytest
from conftest import changed, reference
from generators import GREEDY, SLOT, assert_answers_of_transformers
from model_manager import _core
from model_manager.errors import InvalidFileError, UnsupportedModelError

if TYPE_CHECKING:
    from pathlib import Path


def test_its_engine_and_its_files():
    family = next(family for family in _core._families() if family["model_type"] == "gptj")
    assert family["kinds"] == ["generator"]
    assert family["gguf"] == {}
    assert family["example"] == "asafaya/kanarya-750m"


def test_answers_are_those_of_transformers_alone_and_together(make_writer):
    manager = make_writer("gptj")
    assert_answers_of_transformers(manager, "gptj")
    described = manager.describe_generator(SLOT)
    assert (described["engine"], described["dtype"]) == ("model_manager", "float32")


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_its_weights_may_be_narrower(make_writer, dtype):
    manager = make_writer("gptj", generator_dtype=dtype)
    case = reference("gptj")["cases"][0]
    assert manager.complete(case["ids"], max_new_tokens=4, **GREEDY)["tokens"]
    assert manager.describe_generator(SLOT)["dtype"] == dtype


def test_a_known_beginning_is_computed_once(make_writer):
    manager = make_writer("gptj")
    case = max(reference("gptj")["cases"], key=lambda case: len(case["ids"]))
    ids, rest = case["ids"], case["greedy"]
    first = manager.complete(ids, max_new_tokens=6, **GREEDY)
    again = manager.complete([*ids, *rest[:6]], max_new_tokens=len(rest) - 6, **GREEDY)
    assert [*first["tokens"], *again["tokens"]] == rest
    assert again["reused_tokens"] > 0


def with_head(path: Path, *, tied: bool) -> None:
    """Writes the file of tensors without a matrix of logits, or with the table of words as one."""
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    del header["lm_head.weight"]
    if not tied:
        header["lm_head.weight"] = dict(header["transformer.wte.weight"])
    parts = []
    for tensor in header.values():
        if "data_offsets" in tensor:
            start, end = tensor["data_offsets"]
            first = sum(map(len, parts))
            parts.append(data[start:end])
            tensor["data_offsets"] = [first, first + end - start]
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts))


def test_logits_that_share_the_table_of_words_keep_their_bias(make_writer, tmp_path: Path):
    answers = []
    for tied in (True, False):
        folder = changed("gptj", tmp_path / str(tied), tie_word_embeddings=tied)
        with_head(folder / "model.safetensors", tied=tied)
        manager = make_writer("gpt2", generator_model=str(folder))
        answers.append(manager.complete("Merhaba", SLOT, max_new_tokens=8, min_new_tokens=8, **GREEDY)["tokens"])
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"rotary_dim": 7}, "rotary_dim is 7"),
        ({"rotary_dim": 18}, "rotary_dim is 18"),
        ({"rotary_dim": None}, "rotary_dim is null"),
        ({"rotary": False}, "rotary is false"),
        ({"scale_attn_weights": False}, "scale_attn_weights"),
        ({"activation_function": "mish"}, "activation_function"),
        ({"hidden_size": 32}, "hidden_size"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
        ({"n_layer": 1}, "transformer.h.1"),
        ({"n_layer": 3}, "transformer.h.2"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(make_writer, tmp_path: Path, config, said):
    manager = make_writer("gpt2", generator_model=str(changed("gptj", tmp_path / "model", **config)))
    with pytest.raises((UnsupportedModelError, InvalidFileError), match=said):
        manager.load(SLOT)
    assert not manager.is_loaded(SLOT)


def test_the_default_of_values_that_are_rotated_must_fit(make_writer, tmp_path: Path):
    """It is 64; null, which is no default, is refused above as in transformers."""
    path = changed("gptj", tmp_path / "model") / "config.json"
    config = json.loads(path.read_text("utf-8"))
    del config["rotary_dim"]
    path.write_text(json.dumps(config), "utf-8")
    with pytest.raises(UnsupportedModelError, match="has no rotary_dim"):
        make_writer("gpt2", generator_model=str(path.parent)).load(SLOT)
