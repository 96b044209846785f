"""Metadata of a GGUF file is of the kind that its reader wants, or it is refused by its key."""

from __future__ import annotations

import re

import gguf_files
import pytest
from model_manager.errors import ModelManagerError


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qwen3__rope__freq_base": "10000"}, '"qwen3.rope.freq_base", where a number is expected'),
        ({"qwen3__rope__freq_base": True}, '"qwen3.rope.freq_base", where a number is expected'),
        ({"qwen3__rope__freq_base": 0.5}, "its qwen3.rope.freq_base is 0.5"),
        ({"qwen3__rope__freq_base": float("inf")}, "its qwen3.rope.freq_base is inf"),
        ({"qwen3__attention__layer_norm_rms_epsilon": "1e-6"}, '"qwen3.attention.layer_norm_rms_epsilon"'),
        ({"qwen3__attention__layer_norm_rms_epsilon": -1.0}, "layer_norm_rms_epsilon is -1"),
        ({"qwen3__rope__scaling__type": 1}, '"qwen3.rope.scaling.type", where a text is expected'),
        ({"qwen3__rope__scaling__type": "linear", "qwen3__rope__scaling__factor": "4"}, '"qwen3.rope.scaling.factor"'),
        ({"qwen3__rope__scaling__type": "linear", "qwen3__rope__scaling__factor": -4.0}, "rope.scaling.factor is -4"),
        ({"qwen3__rope__dimension_count": 4.0}, '"qwen3.rope.dimension_count", where a whole number'),
        ({"qwen3__rope__dimension_count": 0}, "its qwen3.rope.dimension_count is 0"),
        ({"qwen3__pooling_type": "last"}, '"qwen3.pooling_type"'),
        ({"tokenizer__ggml__add_eos_token": 1}, '"tokenizer.ggml.add_eos_token", where true or false is expected'),
    ],
)
def test_metadata_of_another_kind_is_refused(make_manager, tmp_path, changes, message):
    manager = make_manager()
    manager.register("m", gguf_files.write(tmp_path / "m.gguf", **changes), kind="embedding")
    with pytest.raises(ModelManagerError, match=re.escape(message)):
        manager.embed("a", "m")


def test_a_factor_of_zero_is_none(make_manager, tmp_path):
    manager = make_manager()
    plain = gguf_files.write(tmp_path / "plain.gguf")
    zero = {"qwen3__rope__scaling__type": "linear", "qwen3__rope__scaling__factor": 0.0}
    manager.register("plain", plain)
    manager.register("m", gguf_files.write(tmp_path / "m.gguf", **zero))
    assert (manager.embed("a", "m") == manager.embed("a", "plain")).all()
