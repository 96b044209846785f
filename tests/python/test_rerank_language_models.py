"""Language models that judge a pair, as Qwen3-Reranker does: the scores of sentence-transformers, refusals."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from conftest import FIXTURES, reference
from model_manager.errors import InputError, NotFiniteError, TaskError, UnsupportedModelError

FOLDER = FIXTURES / "qwen3_reranker"
TOLERANCE = {"rtol": 0, "atol": 2e-5}
GENERIC = (
    "{% for message in messages %}{% if message.role in ('system', 'user', 'assistant') %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
)


def expected(key):
    cases = reference("qwen3_reranker")[key]
    logits = np.array([case["logits"] for case in cases], np.float32)[:, 0]
    scores = np.array([case["scores"] for case in cases], np.float32)[:, 0]
    return [case["pair"] for case in cases], logits, scores


def published(folder):
    """A folder as the one on the hub is: nothing in it says that the model reranks."""
    folder.mkdir(exist_ok=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        shutil.copy(FOLDER / name, folder)
    settings = json.loads((FOLDER / "tokenizer_config.json").read_text("utf-8"))
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": GENERIC}), "utf-8")
    return folder


@pytest.fixture
def judge(make_manager):
    manager = make_manager(cache_size=0, reranker_model=str(FOLDER), dtype="float32")
    manager.register("judge", str(FOLDER), dtype="float32")
    return manager


@pytest.mark.parametrize("as_published", [False, True])
def test_scores_are_those_of_sentence_transformers(make_manager, tmp_path, as_published):
    source = published(tmp_path / "model") if as_published else FOLDER
    manager = make_manager(cache_size=0)
    manager.register("judge", str(source), dtype="float32", kind="reranker" if as_published else None)
    model = manager.get("judge")
    pairs, logits, scores = expected("pairs")
    np.testing.assert_allclose(model.predict(pairs, activation_fn="identity"), logits, **TOLERANCE)
    np.testing.assert_allclose(model.predict(pairs), scores, **TOLERANCE)
    for pair, logit in zip(pairs, model.predict(pairs, activation_fn="identity"), strict=True):
        # What pairs have in common is computed once, and changes nothing, to the last bit.
        assert model.predict(pair, activation_fn="identity") == logit
    assert manager.describe("judge")["tasks"] == ["rerank", "classify"]


def test_an_instruction_is_a_prompt(judge):
    pairs, logits, _ = expected("prompted")
    model, instruction = judge.get("judge"), "Find the page that answers the question"
    named = model.predict(pairs, activation_fn="identity", prompt_name="pages")
    np.testing.assert_allclose(named, logits, **TOLERANCE)
    np.testing.assert_array_equal(model.predict(pairs, activation_fn="identity", prompt=instruction), named)
    assert (model.predict(pairs, activation_fn="identity") != named).all()
    query, documents = pairs[0][0], [document for _, document in pairs]
    found = judge.rerank(query, documents, activation="identity", prompt_name="pages")
    assert sorted(one.score for one in found) == sorted(named.tolist())
    assert model.rank(query, documents, prompt=instruction)[0]["corpus_id"] == found[0].index
    with pytest.raises(ValueError, match="pages"):
        judge.rerank(query, documents, prompt_name="other")


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_other_formats_stay_near(make_manager, dtype):
    manager = make_manager()
    manager.register("judge", str(FOLDER), dtype=dtype)
    pairs, logits, _ = expected("pairs")
    np.testing.assert_allclose(manager.get("judge").predict(pairs, activation_fn="identity"), logits, rtol=0, atol=0.8)


def test_long_documents_and_many(judge):
    found = judge.rerank("soru", ["", "b" * 1_000_000, *(f"belge {number}" for number in range(300))], top_n=3)
    assert len(found) == 3
    with pytest.raises(InputError, match=r"documents\[1\] has .* tokens"):
        judge.rerank("a", ["b", "c d " * 300], truncate=False)


def test_what_is_refused(make_manager, tmp_path):
    manager = make_manager()
    manager.register("judge", str(FOLDER))
    with pytest.raises(TaskError, match=r"\"judge\" gives no vectors .*it gives scores"):
        manager.embed("a", "judge")
    with pytest.raises(InputError, match="pairs"):
        manager.classify("a text alone", "judge")

    def changed(name, file, change):
        folder = tmp_path / name
        shutil.copytree(FOLDER, folder)
        path = folder / file
        path.write_text(json.dumps(change(json.loads(path.read_text("utf-8")))), "utf-8")
        return make_manager(reranker_model=str(folder))

    wrong = changed("ids", "1_LogitScore/config.json", lambda json: {**json, "true_token_id": 100_000})
    with pytest.raises(UnsupportedModelError, match="token 100000"):
        wrong.rerank("a", ["b"])
    text = changed("text", "1_LogitScore/config.json", lambda json: {**json, "false_token_id": "no"})
    with pytest.raises(UnsupportedModelError, match='"false_token_id" to "no", and the id of a token is expected'):
        text.rerank("a", ["b"])
    key = changed("key", "1_LogitScore/config.json", lambda json: {**json, "scale": 2})
    with pytest.raises(UnsupportedModelError, match="scale"):
        key.rerank("a", ["b"])
    kwargs = {"chat_template": {"add_generation_prompt": [1]}}
    argument = changed("argument", "sentence_bert_config.json", lambda json: {**json, "processing_kwargs": kwargs})
    with pytest.raises(UnsupportedModelError, match="add_generation_prompt"):
        argument.rerank("a", ["b"])
    folder = tmp_path / "template"
    shutil.copytree(FOLDER, folder)
    (folder / "chat_template.jinja").write_text(GENERIC, "utf-8")
    with pytest.raises(UnsupportedModelError, match=r"chat template.*query does not reach"):
        make_manager(reranker_model=str(folder)).rerank("a", ["b"])
    folder = published(tmp_path / "words")
    words = (folder / "tokenizer.json").read_text("utf-8").replace('"yes"', '"yas"')
    (folder / "tokenizer.json").write_text(words, "utf-8")
    with pytest.raises(UnsupportedModelError, match='no token "yes"'):
        make_manager(reranker_model=str(folder)).rerank("a", ["b"])


def test_weights_that_are_not_finite(make_manager, tmp_path):
    shutil.copytree(FOLDER, tmp_path / "model")
    weights = bytearray((tmp_path / "model" / "model.safetensors").read_bytes())
    weights[-4:] = b"\x00\x00\xc0\x7f"
    (tmp_path / "model" / "model.safetensors").write_bytes(weights)
    with pytest.raises(NotFiniteError):
        make_manager(reranker_model=str(tmp_path / "model")).rerank("a", ["b"])
