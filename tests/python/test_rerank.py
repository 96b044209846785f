"""Reranking and classification: the scores of sentence-transformers, orders, labels, and what is refused."""

from __future__ import annotations

import asyncio
import json
import math
import re
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import FIXTURES, reference
from model_manager import CrossEncoder, RerankResult
from model_manager._scoring import classified
from model_manager.errors import ArgumentError, InputError, InputTypeError, TaskError, UnsupportedModelError

RERANKERS = ("rerank_bert", "rerank_xlmr", "rerank_qwen3")
FAMILIES = tuple(
    f"rerank_{name}" for name in ("distilbert", "electra", "modernbert", "gte", "albert", "mpnet", "convbert")
)
NAMES = (*RERANKERS, "nli_bert", *FAMILIES, "nli_modernbert")
TOLERANCE = {"rtol": 0, "atol": 2e-5}
DOCUMENTS = ["Ankara başkenttir.", "The fox jumps.", "İade yedi gün içinde yapılır.", "Ankara başkenttir."]


@pytest.fixture
def rerankers(make_manager):
    manager = make_manager(reranker_model=str(FIXTURES / "rerank_bert"))
    for name in NAMES:
        manager.register(name, str(FIXTURES / name), dtype="float32")
    return manager


@pytest.mark.parametrize("name", NAMES)
def test_pairs_have_the_scores_of_sentence_transformers(rerankers, name):
    expected = reference(name)["pairs"]
    model = rerankers.get(name)
    assert isinstance(model, CrossEncoder)
    pairs = [case["pair"] for case in expected]
    one = model.num_labels == 1
    for key, activation in (("logits", "identity"), ("scores", None)):
        want = np.array([case[key] for case in expected], np.float32)
        found = model.predict(pairs, activation_fn=activation)
        assert found.dtype == np.float32
        assert found.shape == ((len(pairs),) if one else (len(pairs), 3))
        np.testing.assert_allclose(found.reshape(len(pairs), -1), want, **TOLERANCE)
        for pair, row in zip(pairs, want, strict=True):
            np.testing.assert_allclose(np.atleast_1d(model.predict(pair, activation_fn=activation)), row, **TOLERANCE)


PAIRS = [("q", "a doc"), ("q", "another doc text")]


def test_the_softmax_follows_the_activation(rerankers):
    one, several = rerankers.get("rerank_bert"), rerankers.get("nli_bert")
    np.testing.assert_array_equal(one.predict(PAIRS, apply_softmax=True), one.predict(PAIRS))

    def softmax(rows):
        return np.exp(rows) / np.exp(rows).sum(axis=1, keepdims=True)

    logits = several.predict(PAIRS, activation_fn="identity")
    for activation, want in (
        (None, logits),
        ("sigmoid", 1 / (1 + np.exp(-logits))),
        (lambda rows: 2 * rows, 2 * logits),
    ):
        found = several.predict(PAIRS, activation_fn=activation, apply_softmax=True)
        np.testing.assert_allclose(found, softmax(want), **TOLERANCE)
        np.testing.assert_array_equal(several.predict(PAIRS[0], activation_fn=activation, apply_softmax=True), found[0])


def test_the_softmax_of_one_label_is_refused(rerankers):
    model = rerankers.get("rerank_bert")
    for param, call in (
        ("activation", lambda: asyncio.run(rerankers.arerank("q", ["a"], activation="softmax"))),
        ("activation", lambda: rerankers.classify(["a"], "rerank_bert", activation="softmax")),
        ("activation", lambda: asyncio.run(rerankers.aclassify("a", "rerank_bert", activation="softmax"))),
        ("activation_fn", lambda: model.predict(PAIRS, activation_fn="softmax")),
        ("activation_fn", lambda: model.rank("q", ["a"], activation_fn="softmax")),
    ):
        with pytest.raises(ArgumentError, match=f"^{param}='softmax': expected identity or sigmoid") as error:
            call()
        assert error.value.param == param
    (found,) = rerankers.classify([PAIRS[0]], "nli_bert", activation="softmax")
    assert sum(found.scores.values()) == pytest.approx(1)
    np.testing.assert_allclose(
        rerankers.get("nli_bert").predict(PAIRS, activation_fn="softmax").sum(axis=1), [1, 1], **TOLERANCE
    )


def test_a_file_cannot_ask_for_the_softmax_of_one_label(make_manager, tmp_path):
    manager = make_manager()
    softmax = {"activation_fn": "torch.nn.modules.activation.Softmax"}
    for name in ("rerank_bert", "nli_bert"):
        shutil.copytree(FIXTURES / name, tmp_path / name)
        config = tmp_path / name / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "sentence_transformers": softmax}))
        manager.register(name, str(tmp_path / name), kind="reranker")
    with pytest.raises(UnsupportedModelError, match="softmax of one label is always 1"):
        manager.load("rerank_bert")
    found = manager.get("nli_bert").predict(PAIRS)
    np.testing.assert_allclose(found.sum(axis=1), [1, 1], **TOLERANCE)


@pytest.mark.parametrize("name", ["rerank_bert", "nli_bert"])
def test_one_pair_has_no_first_dimension_in_any_form(rerankers, name, monkeypatch):
    model = rerankers.get(name)
    expected = model.predict(PAIRS)
    rows = model.predict(PAIRS, convert_to_numpy=False)
    assert isinstance(rows, list)
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_array_equal(model.predict(PAIRS[0], convert_to_numpy=False), expected[0])
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(from_numpy=np.negative))
    np.testing.assert_array_equal(model.predict(PAIRS, convert_to_tensor=True), -expected)
    np.testing.assert_array_equal(model.predict(PAIRS[0], convert_to_tensor=True), -expected[0])


def test_a_function_gets_a_column_of_labels(rerankers):
    shapes = []

    def function(logits):
        shapes.append(logits.shape)
        return logits * 2

    model = rerankers.get("rerank_bert")
    found = model.predict(PAIRS, activation_fn=function)
    np.testing.assert_array_equal(found, 2 * model.predict(PAIRS, activation_fn="identity"))
    np.testing.assert_array_equal(
        model.predict(inputs=PAIRS, device="cpu", activation_fn="identity"),
        model.predict(PAIRS, activation_fn="identity"),
    )
    ranks = model.rank("q", [text for _, text in PAIRS])
    assert model.rank("q", [text for _, text in PAIRS], device="cpu") == ranks
    wide = model.predict(PAIRS, activation_fn=lambda logits: np.asarray(logits, np.float64) / 3)
    assert wide.dtype == np.float32
    assert shapes == [(2, 1)]
    rerankers.get("nli_bert").predict(PAIRS[0], activation_fn=function)
    assert shapes[1:] == [(1, 3)]


def test_a_ranking_by_a_function(rerankers):
    model = rerankers.get("rerank_bert")
    documents = [text for _, text in PAIRS] * 2
    logits = model.predict([("q", text) for text in documents], activation_fn="identity")
    for function in (np.tanh, lambda logits: (-2.0 * logits).astype(np.float64)):
        scores = np.asarray(function(logits), np.float32)
        order = sorted(range(len(documents)), key=lambda index: -scores[index])
        expected = [{"corpus_id": index, "score": float(scores[index]), "text": documents[index]} for index in order]
        assert model.rank("q", documents, activation_fn=function, return_documents=True) == expected
        assert model.rank("q", documents, activation_fn=function, return_documents=True, top_k=1) == expected[:1]
    assert model.rank("q", [], activation_fn=np.tanh) == []
    for wrong in (np.sum, lambda logits: np.hstack([logits, logits])):
        with pytest.raises(ArgumentError, match="activation_fn must return"):
            model.rank("q", documents, activation_fn=wrong)
    with pytest.raises(ArgumentError, match="activation_fn must return a row for each of 2"):
        model.predict(PAIRS, activation_fn=np.sum)
    with pytest.raises(ArgumentError, match="activation_fn='tanh': must be one of"):
        model.rank("q", documents, activation_fn="tanh")
    with pytest.raises(TaskError, match="3 labels"):
        rerankers.get("nli_bert").rank("q", documents, activation_fn=np.tanh)


def test_scores_of_a_function_are_float32(rerankers):
    model = rerankers.get("rerank_bert")
    found = model.predict(PAIRS, activation_fn=lambda logits: logits.astype(np.float64) * 2)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, 2 * model.predict(PAIRS, activation_fn="identity"))


def test_names_of_version_6(rerankers):
    model = rerankers.get("rerank_bert")
    np.testing.assert_array_equal(model.predict(inputs=PAIRS), model.predict(PAIRS))
    with pytest.raises(TypeError, match="inputs is another name of sentences"):
        model.predict(PAIRS, inputs=PAIRS)
    with pytest.raises(TypeError, match="sentences must be pairs"):
        model.predict()
    assert model.max_seq_length == model.max_length


@pytest.mark.parametrize("name", ["Sigmoid", "Identity"])
def test_modules_of_pytorch_are_known_by_name(rerankers, name):
    module = type(name, (), {"__module__": "torch.nn.modules.activation", "__call__": None})()
    model = rerankers.get("rerank_bert")
    expected = model.predict(PAIRS, activation_fn=name.lower())
    np.testing.assert_array_equal(model.predict(PAIRS, activation_fn=module), expected)
    ranks = model.rank("q", [text for _, text in PAIRS], activation_fn=module)
    assert sorted(one["score"] for one in ranks) == sorted(expected.tolist())


def test_a_ranking_checks_what_it_does_not_use(rerankers):
    model = rerankers.get("rerank_bert")
    expected = model.rank("q", ["a", "b"])
    unused = {"batch_size": 2, "apply_softmax": True, "convert_to_numpy": False, "convert_to_tensor": True}
    assert model.rank("q", ["a", "b"], show_progress_bar=False, **unused) == expected
    for name in unused:
        with pytest.raises(TypeError, match=name):
            model.rank("q", ["a", "b"], **{name: "many"})
    assert all("text" not in one for one in model.rank("q", ["a", "b"]))
    with pytest.raises(TypeError, match="return_documents"):
        model.rank("q", ["a", "b"], return_documents="yes")
    with pytest.raises(TypeError, match="did you mean prompt"):
        model.rank("q", ["a", "b"], promt="a")


def test_pairs_in_an_array(rerankers):
    model = rerankers.get("rerank_bert")
    expected = model.predict(PAIRS)
    for kind in (str, object):
        np.testing.assert_array_equal(model.predict(np.array(PAIRS, kind)), expected)
        assert model.predict(np.array(PAIRS[0], kind)) == expected[0]
    with pytest.raises(TypeError, match=r"sentences\[0\] must be a pair"):
        model.predict(np.array([["a", "b", "c"]]))


@pytest.mark.parametrize("name", NAMES)
def test_single_texts_have_their_logits_too(rerankers, name):
    expected = [case for case in reference(name)["texts"] if name != "rerank_qwen3" or case["text"]]
    found, _ = rerankers._infer("scores", [case["text"] for case in expected], model=name, activation="identity")
    np.testing.assert_allclose(found, [case["logits"] for case in expected], **TOLERANCE)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8"])
def test_other_formats_stay_near(make_manager, dtype):
    manager = make_manager()
    manager.register("model", str(FIXTURES / "rerank_bert"), dtype=dtype)
    expected = reference("rerank_bert")["pairs"]
    found = manager.get("model").predict([case["pair"] for case in expected], activation_fn="identity")
    # The logits of this model of random weights lie between -4 and 4.
    np.testing.assert_allclose(found, [case["logits"][0] for case in expected], rtol=0, atol=0.35)


def test_documents_are_returned_best_first(rerankers):
    found = rerankers.rerank("başkent neresi?", DOCUMENTS)
    assert [one.index for one in found] != list(range(4))
    assert sorted(one.index for one in found) == list(range(4))
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    assert all(one.document == DOCUMENTS[one.index] and 0 < one.score < 1 for one in found)
    # Equal documents have equal scores, and stay in their order.
    first, second = ([one.index for one in found].index(index) for index in (0, 3))
    assert second == first + 1
    assert found[first].score == found[second].score
    assert repr(found[0]).startswith(f"RerankResult(index={found[0].index}, score=0.")
    best = rerankers.rerank("başkent neresi?", DOCUMENTS, top_n=2, return_documents=False)
    assert best == [RerankResult(one.index, one.score) for one in found[:2]]
    assert rerankers.rerank("başkent neresi?", [{"text": text, "id": 7} for text in DOCUMENTS]) == found
    ranked = CrossEncoder(rerankers, "reranker").rank("başkent neresi?", DOCUMENTS, top_k=1, return_documents=True)
    assert ranked == [{"corpus_id": found[0].index, "score": found[0].score, "text": found[0].document}]


def test_scores_do_not_depend_on_company_and_come_from_the_cache(make_manager):
    manager = make_manager(reranker_model=str(FIXTURES / "rerank_bert"), cache_size=100)
    alone = {text: manager.rerank("soru", [text])[0].score for text in DOCUMENTS}
    assert manager.cache_info()["entries"] == 3
    before = manager.stats()["queue"]["texts"]
    assert {one.document: one.score for one in manager.rerank("soru", DOCUMENTS)} == alone
    assert manager.stats()["queue"]["texts"] == before
    # The activation is applied after the cache.
    logits = manager.rerank("soru", DOCUMENTS, activation="identity")
    assert manager.stats()["queue"]["texts"] == before
    for one in logits:
        assert math.isclose(1 / (1 + math.exp(-one.score)), alone[one.document], abs_tol=1e-6)
    # A pair is another input than its texts, and in the other order.
    assert manager.rerank(DOCUMENTS[0], ["soru"])[0].score != alone[DOCUMENTS[0]]


def test_asyncio(rerankers):
    async def both():
        return await asyncio.gather(
            rerankers.arerank("soru", DOCUMENTS, top_n=3), rerankers.rerank_async("soru", [], top_n=3)
        )

    found, nothing = asyncio.run(both())
    assert found == rerankers.rerank("soru", DOCUMENTS, top_n=3)
    assert nothing == []


def test_classes_of_texts_and_pairs(rerankers):
    expected = reference("nli_bert")["pairs"]
    found = rerankers.classify([tuple(case["pair"]) for case in expected], "nli_bert")
    for one, case in zip(found, expected, strict=True):
        weights = np.exp(np.array(case["logits"]) - max(case["logits"]))
        np.testing.assert_allclose(list(one.scores.values()), weights / weights.sum(), **TOLERANCE)
        assert list(one.scores) == ["contradiction", "entailment", "neutral"]
        assert one.scores[one.label] == one.score == max(one.scores.values())
    single = rerankers.classify("İade yedi gün içinde yapılır.", "nli_bert")
    assert single == rerankers.classify(["İade yedi gün içinde yapılır."], "nli_bert")[0]
    each = rerankers.classify("a", "nli_bert", activation="sigmoid")
    assert sum(each.scores.values()) != pytest.approx(1)
    assert asyncio.run(rerankers.aclassify("a", "nli_bert")) == rerankers.classify("a", "nli_bert")
    assert rerankers.classify([], "nli_bert") == []


def test_descriptions_say_what_a_model_does(rerankers):
    described = rerankers.describe("nli_bert")
    assert described["tasks"] == ["classify"]
    assert described["labels"] == ["contradiction", "entailment", "neutral"]
    assert rerankers.describe("rerank_bert")["tasks"] == ["rerank", "classify"]
    assert rerankers.describe("english_sentence")["tasks"] == ["embed", "embed_multi"]
    assert rerankers.describe("english_sentence")["labels"] == []
    assert "reranker" not in rerankers.slots()
    rerankers.load("reranker")
    kinds = {name: slot["kind"] for name, slot in rerankers.stats()["slots"].items()}
    assert kinds["reranker"] == "reranker"
    assert kinds["nli_bert"] == "classifier"


def test_another_task_is_refused_by_name(rerankers):
    with pytest.raises(TaskError, match=r"\"rerank_bert\" gives no vectors .*it gives scores .*rerank"):
        rerankers.embed("a", "rerank_bert")
    with pytest.raises(TaskError, match=r"\"english_sentence\" gives no scores .*it gives vectors"):
        rerankers.rerank("a", ["b"], "english_sentence")
    with pytest.raises(TaskError, match=r"'nli_bert' gives a score for each of 3 labels.*classify"):
        rerankers.rerank("a", ["b"], "nli_bert")
    with pytest.raises(TaskError, match="no scores"):
        rerankers.classify("a", "turkish_sentence")
    for call in (rerankers.aembed("a", "rerank_bert"), rerankers.arerank("a", ["b"], "english_sentence")):
        with pytest.raises(TaskError):
            asyncio.run(call)


@pytest.mark.parametrize(
    ("query", "documents", "options", "error", "message"),
    [
        (" ", ["a"], {}, ArgumentError, "query is blank"),
        ("", [], {}, ArgumentError, "query is blank"),
        (7, ["a"], {}, TypeError, "query must be a str"),
        ("a", "b", {}, TypeError, "documents must be several"),
        ("a", ["b", 7], {}, InputTypeError, r"documents\[1\] must be a str or a mapping .*'text', not int$"),
        ("a", [{"body": "b"}], {}, InputTypeError, r"documents\[0\] must be .*'text', not dict$"),
        ("a", ["b"], {"top_n": 0}, ArgumentError, "top_n=0"),
        ("a", ["b"], {"activation": "tanh"}, ArgumentError, "expected identity or sigmoid$"),
        ("a", ["b"], {"activation": "softmax"}, ArgumentError, "expected identity or sigmoid .*softmax is always 1"),
        ("a", [], {"activation": "softmax"}, ArgumentError, "softmax is always 1"),
        ("a", ["b", {"text": "\ud800"}], {}, ArgumentError, r"^documents\[1\] holds a lone surrogate"),
        ("\ud800", ["a"], {}, ArgumentError, "^query holds a lone surrogate"),
    ],
)
def test_wrong_arguments(rerankers, query, documents, options, error, message):
    with pytest.raises(error, match=message) as raised:
        rerankers.rerank(query, documents, **options)
    assert raised.value.param


def test_a_lone_surrogate_of_a_pair_is_named_as_it_was_given(rerankers):
    model = CrossEncoder(rerankers, "rerank_bert")
    for pairs, place in [([("a", "b"), ("a", "\ud800")], "[1][1]"), (["\ud800", "b"], "[0]")]:
        with pytest.raises(ArgumentError, match=f"^sentences{re.escape(place)} holds a lone surrogate") as raised:
            model.predict(pairs)
        assert raised.value.param == "sentences"
    for texts, place in [([("\ud800", "b")], "[0][0]"), (["a", "\ud800"], "[1]")]:
        with pytest.raises(ArgumentError, match=f"^texts{re.escape(place)} holds a lone surrogate"):
            rerankers.classify(texts)


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        (["a", 7], InputTypeError, r"texts\[1\] must be a str or a pair of str, not int$"),
        ([("a", "b"), ("a",)], InputTypeError, r"texts\[1\] must be a str or a pair of str, not tuple of \(str\)$"),
        ([["a", 7]], InputTypeError, r"texts\[0\] must be a str or a pair of str, not list of \(str, int\)$"),
        ([["a"] * 9], InputTypeError, r"texts\[0\] must be .*, not list of \(str, str, str, …\)$"),
        (["a", ("a", "b")], ArgumentError, "^texts holds texts and pairs; give one of both"),
    ],
)
def test_wrong_texts_and_pairs(rerankers, texts, error, message):
    with pytest.raises(error, match=message) as raised:
        rerankers.classify(texts)
    assert raised.value.param == "texts"
    with pytest.raises(error, match=message):
        asyncio.run(rerankers.aclassify(texts))


def test_an_item_of_a_wrong_type_is_a_type_error_and_an_input_error(rerankers):
    for call in (
        lambda: rerankers.rerank("a", ["b", 7]),
        lambda: rerankers.get("rerank_bert").rank("a", ["b", 7]),
        lambda: rerankers.classify(["a", 7]),
        lambda: rerankers.get("rerank_bert").predict([("a", "b"), 7]),
    ):
        with pytest.raises(TypeError) as raised:
            call()
        assert isinstance(raised.value, InputError)
        assert str(raised.value) == f"{raised.value.param}[1]{raised.value._rest}"
        assert raised.value._place == (1,)


def test_empty_long_and_many_documents(rerankers):
    assert rerankers.rerank("a", []) == []
    found = rerankers.rerank("a", ["", " ", "b" * 1_000_000, "c d " * 250_000])
    assert len(found) == 4
    many = rerankers.rerank("soru", [f"belge {number}" for number in range(5000)], top_n=3)
    assert len(many) == 3
    for query, document in (("a", "c d " * 100), ("c d " * 100, "a")):
        with pytest.raises(InputError, match=r"documents\[0\] has \d+ tokens together with the other text of its pair"):
            rerankers.rerank(query, [document], truncate=False)


def test_families_without_a_head_are_refused(make_manager, tmp_path):
    (tmp_path / "config.json").write_text(
        '{"model_type": "xlnet", "architectures": ["XLNetForSequenceClassification"]}'
    )
    for name in ("tokenizer.json", "model.safetensors"):
        (tmp_path / name).write_bytes((FIXTURES / "rerank_bert" / name).read_bytes())
    manager = make_manager(reranker_model=str(tmp_path))
    with pytest.raises(UnsupportedModelError, match=r"xlnet.*no family whose models give scores here.*models --known"):
        manager.rerank("a", ["b"])


def test_an_unknown_activation_of_a_model_is_refused(make_manager, tmp_path):
    for file in (FIXTURES / "rerank_bert").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = (tmp_path / "config.json").read_text()
    activation = '"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Tanh"}'
    (tmp_path / "config.json").write_text(config.replace("{", "{" + activation + ",", 1))
    with pytest.raises(UnsupportedModelError, match=r"activation_fn.*Tanh"):
        make_manager(reranker_model=str(tmp_path)).rerank("a", ["b"])


def test_weights_that_are_not_finite(make_manager, tmp_path):
    for file in (FIXTURES / "rerank_bert").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = bytearray((tmp_path / "model.safetensors").read_bytes())
    weights[-4:] = b"\x00\x00\xc0\x7f"
    weights[-400:-396] = b"\x00\x00\xc0\x7f"
    (tmp_path / "model.safetensors").write_bytes(weights)
    from model_manager.errors import NotFiniteError

    manager = make_manager(reranker_model=str(tmp_path))
    with pytest.raises(NotFiniteError):
        manager.rerank("a", ["b"])


def test_labels_that_repeat_keep_their_probabilities():
    (one,) = classified(np.array([[0.2, 0.5, 0.3]], np.float32), ["A", "B", "A"])
    assert one.label == "B"
    assert one.scores == {"A (0)": pytest.approx(0.2), "B": 0.5, "A (2)": pytest.approx(0.3)}
