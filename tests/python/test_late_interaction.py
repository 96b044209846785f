"""ColBERT models: the vectors of sentence-transformers' `MultiVectorEncoder` in each form of files, and refusals."""

from __future__ import annotations

import asyncio
import json
import shutil
import struct

import numpy as np
import pytest
from conftest import FIXTURES, reference
from model_manager import maxsim
from model_manager.errors import ArgumentError, InputError, TaskError, UnsupportedModelError

FOLDER = FIXTURES / "colbert"
FORMS = ("native", "min", "pylate", "stanford")
TOLERANCE = {"rtol": 0, "atol": 2e-5}


def read_tensors(path):
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    return {name: (entry, data[8 + length :][slice(*entry["data_offsets"])]) for name, entry in header.items()}


def write_tensors(path, tensors):
    header, parts, at = {}, [], 0
    for name, (entry, data) in tensors.items():
        header[name] = {**entry, "data_offsets": [at, at + len(data)]}
        parts.append(data)
        at += len(data)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts))


def written(folder, form, **changes):
    """The model in another form."""
    shutil.copytree(FOLDER, folder)
    for name, value in {**reference("colbert")[f"{form}_files"], **changes}.items():
        (folder / name).unlink(missing_ok=True)
        if value is not None:
            (folder / name).write_text(json.dumps(value), "utf-8")
    if form == "stanford":
        tensors = {f"bert.{name}": value for name, value in read_tensors(folder / "model.safetensors").items()}
        write_tensors(folder / "model.safetensors", tensors | read_tensors(folder / "1_Dense" / "model.safetensors"))
        shutil.rmtree(folder / "1_Dense")
    return folder


@pytest.mark.parametrize("form", FORMS)
def test_vectors_are_those_of_sentence_transformers(make_manager, tmp_path, form):
    manager = make_manager()
    manager.register("colbert", str(written(tmp_path / "model", form)), dtype="float32")
    for kind, side in (("query", "queries"), ("document", "documents")):
        cases = reference("colbert")[f"{form}_{side}"]
        together = manager.embed_multi([case["text"] for case in cases], "colbert", kind=kind)
        for case, vectors in zip(cases, together, strict=True):
            want = np.array(case["vectors"], np.float32).reshape(-1, 8)
            assert vectors.shape == want.shape, (form, side, case["text"])
            np.testing.assert_allclose(vectors, want, **TOLERANCE)
            alone = manager.embed_multi(case["text"], "colbert", kind=kind)
            np.testing.assert_array_equal(alone, vectors)
    assert manager.describe("colbert")["tasks"] == ["embed_multi"]


@pytest.mark.parametrize("name", ["colbert_modernbert", "colbert_lfm2"])
def test_tokens_that_fill_a_query_are_seen_by_no_other(make_manager, name):
    """Most of them are outside of every local window, and of what convolutions see."""
    manager = make_manager()
    manager.register("colbert", str(FIXTURES / name), dtype="float32")
    for kind, side in (("query", "queries"), ("document", "documents")):
        cases = reference(name)[f"native_{side}"]
        together = manager.embed_multi([case["text"] for case in cases], "colbert", kind=kind)
        for case, vectors in zip(cases, together, strict=True):
            want = np.array(case["vectors"], np.float32).reshape(-1, 8)
            np.testing.assert_allclose(vectors, want, err_msg=case["text"], **TOLERANCE)
            alone = manager.embed_multi(case["text"], "colbert", kind=kind)
            np.testing.assert_array_equal(alone, vectors)


@pytest.mark.parametrize("family", ["deberta_v3", "rerank_convbert"])
def test_a_family_that_does_not_compute_such_tokens_as_transformers_is_refused(make_manager, tmp_path, family):
    folder = shutil.copytree(FOLDER, tmp_path / "m")
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(FIXTURES / family / name, folder / name)
    manager = make_manager()
    manager.register("colbert", str(folder))
    with pytest.raises(UnsupportedModelError, match=r"tokens to which none attends.*attend_to_expansion_tokens"):
        manager.embed_multi("a", "colbert", kind="query")


def test_queries_and_documents_do_not_share_the_cache(make_manager):
    manager = make_manager(cache_size=10)
    manager.register("colbert", str(FOLDER), dtype="float32")
    query = manager.embed_multi("a fox", "colbert", kind="query", prompt="")
    document = manager.embed_multi("a fox", "colbert", kind="document", prompt="")
    assert query.shape == (12, 8)
    assert len(document) < 12
    np.testing.assert_array_equal(
        manager.embed_multi("a fox", "colbert"), manager.embed_multi("a fox", "colbert", kind="document")
    )
    np.testing.assert_array_equal(asyncio.run(manager.aembed_multi("a fox", "colbert", kind="query", prompt="")), query)
    scores = maxsim(query, [document, query])
    np.testing.assert_allclose(scores[1], 12, rtol=1e-5)


def test_long_texts_and_wrong_kinds(make_manager):
    manager = make_manager()
    manager.register("colbert", str(FOLDER), dtype="float32")
    assert len(manager.embed_multi("word " * 500, "colbert", kind="query")) == 12
    for kind in ("query", "document"):
        with pytest.raises(InputError, match=rf"a {kind} has .* tokens.*at most"):
            manager.embed_multi("word " * 500, "colbert", kind=kind, truncate=False)
    with pytest.raises(ArgumentError, match="kind='passage'"):
        manager.embed_multi("a", "colbert", kind="passage")
    with pytest.raises(TaskError, match=r"\"colbert\" gives no vectors of texts .*it gives vectors of tokens"):
        manager.embed("a", "colbert")
    with pytest.raises(TaskError, match="gives no scores"):
        manager.rerank("a", ["b"], "colbert")


MASK = "2_MultiVectorMask/config.json"
NORMALIZE = "3_Normalize/config.json"
MODEL = "config_sentence_transformers.json"
TRANSFORMER = "sentence_bert_config.json"
METADATA = "artifact.metadata"
MODULES = [
    {"idx": number, "path": "", "type": f"sentence_transformers.models.{kind}"}
    for number, kind in enumerate(("Transformer", "LSTM"))
]


def expanded(**settings):
    return {"query_expansion": {"strategy": "fixed", "length": 9, **settings}}


@pytest.mark.parametrize(
    ("form", "file", "value", "message"),
    [
        ("native", MASK, {"keep_only_token_ids": [7]}, "keep_only_token_ids"),
        ("native", NORMALIZE, {"module_input_name": "token_embeddings", "scale": 2}, "scale"),
        ("pylate", MODEL, {"query_prefix": "[Q] ", "pool_factor": 2}, "pool_factor"),
        ("stanford", METADATA, {"similarity": "l2"}, r"similarity.*cosine"),
        ("stanford", METADATA, {"relu": True}, "relu"),
        ("stanford", METADATA, {"unheard_of": 1}, "unheard_of"),
        ("native", TRANSFORMER, expanded(strategy="any"), "strategies"),
        ("native", TRANSFORMER, expanded(length=99), "99 tokens"),
        ("native", TRANSFORMER, expanded(token="[X]"), r"\[X\]"),
        ("native", TRANSFORMER, {**expanded(), "query_length": 5}, r"query_length.*5.*9 tokens"),
        ("native", "modules.json", MODULES, "LSTM"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(make_manager, tmp_path, form, file, value, message):
    manager = make_manager()
    manager.register("colbert", str(written(tmp_path / "model", form, **{file: value})))
    with pytest.raises(UnsupportedModelError, match=message):
        manager.embed_multi("a", "colbert")
