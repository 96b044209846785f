"""GPT-OSS: its experts in four bits and in plain numbers, vectors, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import FIXTURES, changed
from generators import GREEDY, assert_answers_of_transformers, assert_narrower, assert_vectors_do_not_depend_on_others
from model_manager import _core
from model_manager.errors import ModelManagerError
from safetensors import safe_open
from safetensors.numpy import save_file

NAME, PACKED = "gpt_oss", "gpt_oss_mxfp4"


def test_the_family_and_its_files(command):
    families = {family["model_type"]: family for family in _core._families()}
    assert families[NAME]["kinds"] == ["embedding", "generator"]
    assert families[NAME]["gguf"] == {"gpt-oss": ["generator"]}
    for name in (NAME, PACKED):
        doctor = command("doctor", str(FIXTURES / name), "--kind", "generator", "--json")
        assert doctor.code == 0, doctor.err
        assert json.loads(doctor.out)["family"] == NAME


def test_answers_are_those_of_transformers_alone_and_together(make_writer):
    assert_answers_of_transformers(make_writer(NAME), NAME)


@pytest.mark.parametrize("name", [NAME, PACKED])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8", "int4"])
def test_weights_may_be_narrower(make_writer, name, dtype):
    assert_narrower(make_writer(name, generator_dtype=dtype), name, dtype)


@pytest.mark.parametrize("name", [NAME, PACKED])
def test_vectors_do_not_depend_on_the_texts_with_them(make_manager, name):
    assert_vectors_do_not_depend_on_others(make_manager(cache_size=0), name)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"swiglu_limit": 0.0}, "swiglu_limit"),
        ({"swiglu_alpha": -1.0}, "swiglu_alpha"),
        ({"experts_per_token": 3}, "experts_per_token is 3"),
        ({"rope_scaling": None}, "rope_parameters"),
        ({"num_local_experts": 3}, "mlp.router"),
        ({"intermediate_size": 32}, "gate_up_proj"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quant_method"),
        ({"a_new_key": 1}, "a_new_key"),
    ],
)
@pytest.mark.parametrize("name", [NAME, PACKED])
def test_what_is_not_computed_is_refused_by_name(make_writer, tmp_path, name, change, word):
    manager = make_writer(name, generator_model=str(changed(name, tmp_path / "model", **change)))
    with pytest.raises(ModelManagerError, match=word):
        manager.complete([1, 2], max_new_tokens=1, **GREEDY)


@pytest.mark.parametrize("part", ["sinks", "gate_up_proj_scales", "down_proj_blocks", "down_proj_bias", "router.bias"])
@pytest.mark.parametrize("fault", ["missing", "short", "extra"])
def test_tensors_that_are_not_there_are_named(make_writer, tmp_path, part, fault):
    folder = changed(PACKED, tmp_path / "model")
    tensors = load_tensors(folder)
    name = next(name for name in tensors if name.endswith(part))
    if fault == "missing":
        del tensors[name]
    elif fault == "short":
        tensors[name] = np.ascontiguousarray(tensors[name][..., :-1])
    else:
        tensors[f"{name}_more"] = tensors[name].copy()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    manager = make_writer(PACKED, generator_model=str(folder))
    with pytest.raises(ModelManagerError, match=part.removesuffix(".bias")):
        manager.complete([1, 2], max_new_tokens=1, **GREEDY)


def test_a_scale_that_is_no_number_is_refused(make_writer, tmp_path):
    folder = changed(PACKED, tmp_path / "model")
    tensors = load_tensors(folder)
    name = next(name for name in tensors if name.endswith("down_proj_scales"))
    tensors[name][1, 2, 0] = 255
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    manager = make_writer(PACKED, generator_model=str(folder))
    with pytest.raises(ModelManagerError, match="exponent 255"):
        manager.complete([1, 2], max_new_tokens=1, **GREEDY)


def load_tensors(folder) -> dict[str, np.ndarray]:
    """numpy has no bfloat16: those numbers become float32."""
    found = {}
    with safe_open(folder / "model.safetensors", "np") as file:
        raw = json.loads(_header(folder / "model.safetensors"))
        for name in raw.keys() - {"__metadata__"}:
            if raw[name]["dtype"] == "BF16":
                found[name] = _widened(folder / "model.safetensors", raw[name])
            else:
                found[name] = file.get_tensor(name)
    return found


def _header(path) -> bytes:
    content = path.read_bytes()
    return content[8 : 8 + int.from_bytes(content[:8], "little")]


def _widened(path, entry) -> np.ndarray:
    content = path.read_bytes()
    first = 8 + int.from_bytes(content[:8], "little")
    start, end = entry["data_offsets"]
    halves = np.frombuffer(content[first + start : first + end], "<u2").astype(np.uint32) << 16
    return halves.view(np.float32).reshape(entry["shape"]).copy()
