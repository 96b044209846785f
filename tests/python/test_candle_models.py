"""The family that candle computes: LFM2, under the calls, lifecycle and queue of the others."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from conftest import FIXTURES, reference, run_python
from generators import GREEDY, SLOT
from model_manager import _core
from model_manager.errors import InvalidFileError, UnsupportedModelError
from test_process import FORK, MANAGER

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(
    not any(family["engine"] == "candle" and family["built"] for family in _core._families()),
    reason="a build without the feature candle-models",
)

GENERATORS = ("lfm2", "lfm2_biased")


def changed(name: str, folder: Path, **config: Any) -> str:
    """A copy of a fixture whose configuration says something else."""
    shutil.copytree(FIXTURES / name, folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | config), "utf-8")
    return str(folder)


def test_what_it_is_and_what_it_lacks(make_manager, command):
    manager = make_manager()
    manager.embed("Merhaba", model="english_sentence")
    assert (manager.describe("english_sentence")["engine"], manager.describe("english_sentence")["lacks"]) == (
        "model_manager",
        [],
    )
    doctor = command("doctor", str(FIXTURES / "lfm2"), "--json")
    assert doctor.code == 0, doctor.err
    report = json.loads(doctor.out)
    assert (report["engine"], report["kind"], report["dtype"]) == ("candle", "generator", "float32")
    assert "int8" in report["lacks"]
    assert "candle" in command("doctor", str(FIXTURES / "lfm2")).out
    families = {family["model_type"]: family for family in json.loads(command("models", "--known", "--json").out)}
    assert families["lfm2"]["engine"] == "candle"
    assert families["deberta-v2"]["kinds"] == ["embedding", "reranker"]
    assert {families[name]["engine"] for name in ("bert", "deberta-v2", "falcon")} == {"model_manager"}


def test_memory_comes_back(make_writer):
    manager = make_writer("lfm2", memory_budget="1GB")
    assert manager.stats()["memory"]["models"] == 0
    case = reference("lfm2")["cases"][0]
    first = manager.complete(case["ids"], max_new_tokens=3, **GREEDY)
    assert manager.stats()["memory"]["models"] > 0
    assert manager.unload(SLOT)
    assert manager.stats()["memory"]["models"] == 0
    assert manager.complete(case["ids"], max_new_tokens=3, **GREEDY)["tokens"] == first["tokens"]


@pytest.mark.parametrize("name", GENERATORS)
def test_answers_are_those_of_transformers(make_writer, name):
    manager = make_writer(name)
    manager.load(SLOT)
    cases = reference(name)["cases"]
    for case in cases:
        found = manager.complete(case["ids"], max_new_tokens=len(case["greedy"]), **GREEDY)
        assert found["tokens"] == case["greedy"], case["prompt"]
        pieces = list(manager.stream(case["prompt"], max_new_tokens=len(case["greedy"]), **GREEDY))
        assert "".join(pieces) == found["text"]
    described = manager.describe_generator(SLOT)
    assert (described["engine"], described["dtype"]) == ("candle", "float32")
    assert described["kv_bytes_per_token"] > 0


def test_a_conversation_goes_on_and_stops(make_writer):
    """A known beginning is computed anew: some of the layers are recurrent."""
    manager = make_writer("lfm2")
    prompt = reference("lfm2")["cases"][0]
    ids, rest = prompt["ids"], prompt["greedy"]
    longer = [*ids, *rest[:6]]
    first = manager.complete(ids, max_new_tokens=6, **GREEDY)
    again = manager.complete(longer, max_new_tokens=len(rest) - 6, **GREEDY)
    assert [*first["tokens"], *again["tokens"]] == rest
    other = manager.complete([*longer[:-2], *rest[:2]], max_new_tokens=3, **GREEDY)
    manager.unload(SLOT)
    assert manager.complete([*longer[:-2], *rest[:2]], max_new_tokens=3, **GREEDY)["tokens"] == (other["tokens"])
    text = first["text"]
    stopped = manager.complete(ids, max_new_tokens=6, stop=[text[2:4]], **GREEDY)
    assert stopped["text"] == text[: text.index(text[2:4])]
    sampled = {"do_sample": True, "temperature": 0.8, "top_k": 20, "seed": 7, "max_new_tokens": 8}
    assert manager.generate(ids, **sampled) == manager.generate(ids, **sampled)


@pytest.mark.parametrize(
    ("name", "config", "said"),
    [
        ("lfm2", {"conv_L_cache": 1}, "conv_L_cache"),
        ("lfm2", {"layer_types": ["conv"]}, "layer_types"),
        ("lfm2", {"layer_types": ["conv", "linear_attention", "conv", "conv"]}, "layer_types"),
        ("lfm2", {"num_experts": 4}, "num_experts"),
        ("lfm2", {"block_ff_dim": 200}, "feed_forward.w1"),
    ],
)
def test_generators_refuse_by_name(make_writer, tmp_path, name, config, said):
    manager = make_writer("gpt2", generator_model=changed(name, tmp_path / "model", **config))
    with pytest.raises((UnsupportedModelError, InvalidFileError), match=said):
        manager.load(SLOT)
    assert not manager.is_loaded(SLOT)


def test_other_formats_are_float32_with_a_warning(make_writer, caplog):
    manager = make_writer("lfm2", generator_dtype="int8")
    case = reference("lfm2")["cases"][0]
    with caplog.at_level("WARNING"):
        found = manager.complete(case["ids"], max_new_tokens=len(case["greedy"]), **GREEDY)
    assert found["tokens"] == case["greedy"]
    assert manager.describe_generator(SLOT)["dtype"] == "float32"
    assert any("int8" in record.message and "candle" in record.message for record in caplog.records)


@pytest.mark.chaos
def test_a_fork_works_on():
    """The parent's pool has threads that the child lacks. The prompt is long enough to use several."""
    ids = reference("lfm2")["cases"][0]["ids"] * 8
    run_python(
        MANAGER
        + FORK
        + f"""
m = tiny(threads=2, generator_model={str(FIXTURES / "lfm2")!r})
def write():
    return m.complete({ids[:56]}, max_new_tokens=4, do_sample=False)["tokens"]
want = write()
def work():
    assert write() == want
    m.close()
check_child(work)
check_child(work)
assert write() == want
"""
    )
