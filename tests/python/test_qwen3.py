"""Qwen3-Embedding: last-token vectors, instructions, Matryoshka dimensions, and the same model as a GGUF file."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import gguf_files
import numpy as np
import pytest
from conftest import FIXTURES, reference
from model_manager import ModelManagerError, SentenceModel
from model_manager.errors import ArgumentError
from model_manager.handles.sentence_model import instruction

if TYPE_CHECKING:
    from pathlib import Path

FOLDER = FIXTURES / "qwen3_embedding"
TEXTS = ["Merhaba dünya, bugün hava çok güzel.", "a", "where is my order?"]


@pytest.fixture
def model(make_manager: Any) -> SentenceModel:
    manager = make_manager(cache_size=0)
    manager.register("qwen", str(FOLDER), dtype="float32")
    found: SentenceModel = manager.get("qwen")
    return found


def test_bfloat16_is_close(make_manager):
    manager, expected = make_manager(cache_size=0), reference("qwen3_embedding")
    manager.register("qwen", str(FOLDER), dtype="bfloat16")
    rows = manager.embed([case["text"] for case in expected["cases"]], "qwen")
    want = np.array([case["embedding"] for case in expected["cases"]])
    assert (rows * want).sum(axis=1).min() >= 0.9998


def test_texts_end_with_the_end_token_and_are_cut_before_it(model):
    assert model.count_tokens("a") == 2
    assert model.max_seq_length == 24
    long = model.encode("a b c d " * 50)
    np.testing.assert_array_equal(long, model.encode("a b c d " * 60))


def test_queries_and_documents_have_their_prompts(model):
    np.testing.assert_array_equal(model.encode_query("x"), model.encode("Instruct: find the answer\nQuery:x"))
    np.testing.assert_array_equal(model.encode_document("x"), model.encode("x"))


def test_a_task_makes_the_prompt_of_the_model_card(model):
    assert instruction("find code") == "Instruct: find code\nQuery:"
    own = model.encode_query(["x", "y"], task="find code")
    np.testing.assert_array_equal(own, model.encode(["x", "y"], prompt="Instruct: find code\nQuery:"))
    assert np.abs(own[0] - model.encode_query("x")).max() > 1e-3


@pytest.mark.parametrize("options", [{"prompt": "p"}, {"prompt_name": "query"}])
def test_a_task_stands_alone(model, options):
    with pytest.raises(ArgumentError, match="task makes the prompt") as raised:
        model.encode_query("x", task="t", **options)
    assert raised.value.param == "task"


def test_a_blank_task_is_refused(model):
    with pytest.raises(ArgumentError, match="task is empty") as raised:
        model.encode_query("x", task=" ")
    assert raised.value.param == "task"


@pytest.mark.parametrize("dimension", [1, 8, 31, 32])
def test_any_number_of_dimensions(model, dimension):
    whole = model.encode(TEXTS)
    short = model.encode(TEXTS, truncate_dim=dimension, normalize_embeddings=True)
    want = whole[:, :dimension] / np.linalg.norm(whole[:, :dimension], axis=1, keepdims=True)
    np.testing.assert_allclose(short, want, atol=1e-6)


def damaged(tmp_path: Path, file: str, change: Any) -> str:
    folder = tmp_path / "model"
    shutil.copytree(FOLDER, folder)
    content = json.loads((folder / file).read_text(encoding="utf-8"))
    change(content)
    (folder / file).write_text(json.dumps(content), encoding="utf-8")
    return str(folder)


def test_a_pooling_that_nobody_knows(make_manager, tmp_path):
    manager = make_manager()
    source = damaged(tmp_path, "1_Pooling/config.json", lambda config: config.update(pooling_mode="median"))
    manager.register("qwen", source)
    with pytest.raises(ModelManagerError, match="median"):
        manager.embed("x", "qwen")


def test_without_an_end_token_there_is_a_warning(make_manager, tmp_path, caplog):
    manager = make_manager()
    source = damaged(tmp_path, "tokenizer.json", lambda config: config.update(post_processor=None))
    manager.register("qwen", source)
    assert manager.embed("x", "qwen").shape == (32,)
    assert "adds no end token" in caplog.text


def test_weights_cut_short(make_manager, tmp_path):
    manager = make_manager()
    source = damaged(tmp_path, "config.json", lambda config: None)
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    manager.register("qwen", source)
    with pytest.raises(ModelManagerError, match="download it again"):
        manager.embed("x", "qwen")


def test_a_gguf_file_is_a_whole_model(make_manager, model, tmp_path):
    manager = make_manager(cache_size=0)
    manager.register("coded", gguf_files.write(tmp_path / "model.gguf"))
    coded = manager.get("coded")
    assert coded.count_tokens(TEXTS) == model.count_tokens(TEXTS)
    assert (coded.max_seq_length, coded.get_sentence_embedding_dimension()) == (64, 32)
    rows = coded.encode(TEXTS[1:])
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    # Texts that neither model cuts: the folder allows 24 tokens, the file 64.
    assert (rows * model.encode(TEXTS[1:])).sum(axis=1).min() > 0.999
    manager.register("alone", str(tmp_path))
    np.testing.assert_array_equal(manager.get("alone").encode(TEXTS[1:]), rows)


def test_a_gguf_file_learns_its_prompts_here(make_manager, tmp_path):
    manager = make_manager(cache_size=0)
    prompt = instruction("find the answer")
    manager.register("coded", gguf_files.write(tmp_path / "model.gguf"), prompts={"query": prompt})
    coded = manager.get("coded")
    np.testing.assert_array_equal(coded.encode_query("x"), coded.encode(prompt + "x"))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"qwen3__pooling_type": None}, "names no pooling"),
        ({"qwen3__pooling_type": 4}, "pooling_type is 4"),
        ({"tokenizer__ggml__eos_token_id": None}, "end token"),
        ({"tokenizer__ggml__eos_token_id": 5000}, "eos_token_id is 5000, but it has"),
        ({"general__architecture": "bert"}, "bert"),
        ({"qwen3__block_count": 3}, "blk.2"),
    ],
)
def test_gguf_files_that_do_not_embed(make_manager, tmp_path, changes, reason):
    manager = make_manager()
    manager.register("coded", gguf_files.write(tmp_path / "model.gguf", **changes), kind="embedding")
    with pytest.raises(ModelManagerError, match=reason):
        manager.embed("x", "coded")


def test_a_pooling_given_here_makes_up_for_a_missing_one(make_manager, tmp_path):
    manager = make_manager(cache_size=0)
    whole = gguf_files.write(tmp_path / "whole.gguf")
    manager.register("whole", whole)
    manager.register("given", gguf_files.write(tmp_path / "a.gguf", qwen3__pooling_type=None), pooling="lasttoken")
    np.testing.assert_array_equal(manager.embed("x", "given"), manager.embed("x", "whole"))


def test_a_gguf_file_cut_short_or_absent(make_manager, tmp_path):
    manager = make_manager()
    path = tmp_path / "model.gguf"
    gguf_files.write(path)
    path.write_bytes(path.read_bytes()[:-2000])
    manager.register("coded", str(path))
    with pytest.raises(ModelManagerError, match="download it again"):
        manager.embed("x", "coded")
    manager.register("absent", str(tmp_path / "absent.gguf"))
    with pytest.raises(FileNotFoundError, match="absent"):
        manager.embed("x", "absent")
