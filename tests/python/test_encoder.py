"""`SentenceModel`: sentence-transformers' `encode`, parameter by parameter."""

from __future__ import annotations

import copy
import json
import pickle
import sys

import numpy as np
import pytest
from conftest import DIMENSION, ENGLISH_TEXT, FIXTURES, reference
from model_manager import CrossEncoder, ModelManager, SentenceModel
from model_manager.errors import ArgumentError
from model_manager.handles import TextGenerator
from model_manager.handles.sentence_model import quantize, similarity, similarity_pairwise

TEXTS = [f"text number {n} about {['rain', 'snow', 'sun', 'wind'][n % 4]}" for n in range(120)]


@pytest.fixture(scope="module")
def model(shared):
    return shared.english_sentence_model


@pytest.fixture(scope="module")
def plain(shared):
    """A model without a normalization."""
    shared.register("plain", str(FIXTURES / "bert_plain"), dtype="float32")
    return shared.get("plain")


def test_the_name_of_version_6(model):
    expected = model.encode(TEXTS[:3])
    np.testing.assert_array_equal(model.encode(inputs=TEXTS[:3]), expected)
    np.testing.assert_array_equal(model.encode(inputs=TEXTS[0]), expected[0])
    np.testing.assert_array_equal(model.encode_query(inputs=TEXTS[:3]), model.encode_query(TEXTS[:3]))
    np.testing.assert_array_equal(model.encode_document(inputs=TEXTS[:3]), model.encode_document(TEXTS[:3]))
    for call in (model.encode, model.encode_query, model.encode_document):
        with pytest.raises(TypeError, match="inputs is another name of sentences; give one of both"):
            call("a", inputs="b")
        with pytest.raises(TypeError, match="sentences must be a str or an iterable of str, not NoneType"):
            call()
        with pytest.raises(TypeError, match="pool"):
            call("a", pool={})


def test_shapes(model):
    assert model.encode(ENGLISH_TEXT).shape == (DIMENSION,)
    assert model.encode([ENGLISH_TEXT]).shape == (1, DIMENSION)
    assert model.encode([]).shape == (0, DIMENSION)
    assert model.encode(tuple(TEXTS)).shape == (120, DIMENSION)
    assert model.encode(np.array(TEXTS)).dtype == np.float32


def test_results_are_the_callers_own(model):
    vector = model.encode(ENGLISH_TEXT)
    vector[:] = 0
    assert np.linalg.norm(model.encode(ENGLISH_TEXT)) > 0.9


def test_batch_size_changes_nothing(model):
    np.testing.assert_array_equal(model.encode(TEXTS, batch_size=1), model.encode(TEXTS, batch_size=64))


def test_as_a_list_of_arrays(model):
    rows = model.encode(TEXTS[:3], convert_to_numpy=False)
    assert type(rows) is list
    assert [row.shape for row in rows] == [(DIMENSION,)] * 3


def test_normalization_is_the_models_unless_asked_for(plain):
    raw = plain.encode(TEXTS[:5])
    assert np.all(np.abs(np.linalg.norm(raw, axis=1) - 1) > 1e-3)
    np.testing.assert_allclose(np.linalg.norm(plain.encode(TEXTS[:5], normalize_embeddings=True), axis=1), 1, atol=1e-6)


def test_truncation(plain):
    whole = plain.encode(TEXTS[:5])
    np.testing.assert_allclose(plain.encode(TEXTS[:5], truncate_dim=8), whole[:, :8], atol=1e-6)
    short = plain.encode(TEXTS[:5], truncate_dim=8, normalize_embeddings=True)
    np.testing.assert_allclose(np.linalg.norm(short, axis=1), 1, atol=1e-6)


def test_prompts(shared):
    shared.register("prompted", str(FIXTURES / "bert_prompts"), dtype="float32", replace=True)
    model = shared.get("prompted")
    prompts = reference("bert_prompts")
    assert model.default_prompt_name == prompts["default_prompt_name"]
    assert model.prompts["query"]
    for case in prompts["prompted"]:
        options = {key: case[key] for key in ("prompt", "prompt_name") if key in case}
        np.testing.assert_allclose(model.encode(case["text"], **options), case["embedding"], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(model.encode_query("a text"), model.encode("a text", prompt_name="query"))
    name = next(name for name in ("document", "passage", "corpus") if name in model.prompts)
    np.testing.assert_array_equal(model.encode_document("a text"), model.encode("a text", prompt_name=name))
    np.testing.assert_array_equal(model.encode_document("a text", prompt="x: "), model.encode("a text", prompt="x: "))


def test_queries_and_documents_without_prompts(plain):
    np.testing.assert_array_equal(plain.encode_query("a text"), plain.encode("a text"))
    np.testing.assert_array_equal(plain.encode_document(["a text"]), plain.encode(["a text"]))


def test_progress_bar(make_manager, capsys):
    pytest.importorskip("tqdm")
    model = make_manager(cache_size=0).english_sentence_model
    model.encode(TEXTS, show_progress_bar=True)
    assert "120/120" in capsys.readouterr().err
    model.encode(TEXTS)
    model.encode(TEXTS, show_progress_bar=False)
    assert capsys.readouterr().err == ""


def test_no_progress_bar_without_tqdm(model, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    assert model.encode(TEXTS, show_progress_bar=True).shape == (120, DIMENSION)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("precision", "dtype", "width"),
    [
        ("float32", np.float32, DIMENSION),
        ("int8", np.int8, DIMENSION),
        ("uint8", np.uint8, DIMENSION),
        ("binary", np.int8, DIMENSION // 8),
        ("ubinary", np.uint8, DIMENSION // 8),
    ],
)
def test_precision(model, precision, dtype, width):
    rows = model.encode(TEXTS, precision=precision)
    assert rows.dtype == dtype
    assert rows.shape == (120, width)


def test_bytes_span_each_dimensions_range():
    vectors = np.array([[0.0, -255.0], [100.5, 0.0], [255.0, 255.0]], dtype=np.float32)
    np.testing.assert_array_equal(quantize(vectors, "uint8"), [[0, 0], [100, 127], [255, 255]])
    np.testing.assert_array_equal(quantize(vectors, "int8"), [[-128, -128], [-28, -1], [127, 127]])
    vectors[:, 1] = 3
    np.testing.assert_array_equal(quantize(vectors, "uint8"), [[0, 0], [100, 0], [255, 0]])
    assert quantize(vectors[:0], "int8").shape == (0, 2)


@pytest.mark.parametrize("texts", ["a text", ["a text"]])
@pytest.mark.parametrize("precision", ["int8", "uint8"])
def test_one_text_has_no_range(model, texts, precision):
    with pytest.raises(ArgumentError, match="at least two") as raised:
        model.encode(texts, precision=precision)
    assert raised.value.param == "precision"
    assert model.encode(texts, precision="ubinary").dtype == np.uint8


def test_states_of_tokens_are_not_quantized(model):
    with pytest.raises(ArgumentError, match="states of tokens are float32"):
        model.encode(["a text", "b"], output_value="token_embeddings", precision="int8")


@pytest.mark.parametrize("given", [[5, 7], (5, 7), np.array([5, 7]), ["a", 7], [[5, 7], [9]], np.array([[5, 7]])])
@pytest.mark.parametrize("output", ["sentence_embedding", "token_embeddings"])
def test_numbers_are_no_texts(plain, given, output):
    """Of one text they would be the token ids."""
    with pytest.raises(TypeError, match="must be a str"):
        plain.encode(given, output_value=output)


def test_pairs_are_no_texts(plain):
    """sentence-transformers joins them by a separator."""
    with pytest.raises(TypeError, match=r"sentences\[0\] must be a str, not list"):
        plain.encode([["a text", "another"]])


def test_arguments_that_change_nothing(model):
    """sentence-transformers' evaluators give no precision, and callers pass on pools that they do not have."""
    expected = model.encode(TEXTS[:2])
    np.testing.assert_array_equal(model.encode(TEXTS[:2], precision=None, pool=None, chunk_size=None), expected)


def test_bits_are_signs():
    vectors = np.array([[1, -1, 1, 1, -1, -1, -1, 0, 1], [-1] * 9], dtype=np.float32)
    np.testing.assert_array_equal(quantize(vectors, "ubinary"), [[0b10110000, 0b10000000], [0, 0]])
    np.testing.assert_array_equal(quantize(vectors, "binary"), [[0b10110000 - 128, 0], [-128, -128]])


def test_little_to_calibrate_with_is_told(model, caplog):
    model.encode(TEXTS[:3], precision="int8")
    assert "range of only 3 texts" in caplog.text
    caplog.clear()
    model.encode(TEXTS, precision="int8")
    assert caplog.text == ""


@pytest.mark.parametrize(
    "options", [{"precision": "int4"}, {"output_value": "word_embeddings"}, {"output_value": None}]
)
def test_what_is_not_supported_says_so(model, options):
    [(name, value)] = options.items()
    with pytest.raises(ArgumentError, match=str(value)) as raised:
        model.encode("a text", **options)
    assert raised.value.param == name


def test_tensors_need_torch(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match="needs torch: pip install torch"):
        model.encode("a text", convert_to_tensor=True)


def test_similarity_measures():
    a = np.array([[1, 0], [0, 2], [3, 4]], dtype=np.float32)
    b = np.array([[2, 0], [0, 0]], dtype=np.float32)
    np.testing.assert_allclose(similarity(a, b, "cosine"), [[1, 0], [0, 0], [0.6, 0]], atol=1e-7)
    np.testing.assert_allclose(similarity(a, b, "dot"), [[2, 0], [0, 0], [6, 0]])
    np.testing.assert_allclose(similarity(a, b, "euclidean"), [[-1, -1], [-(8**0.5), -2], [-(17**0.5), -5]], rtol=1e-6)
    np.testing.assert_allclose(similarity(a, b, "manhattan"), [[-1, -1], [-4, -2], [-5, -7]])
    assert similarity(a[0], b[0]).shape == (1, 1)


class Tensor:
    """What PyTorch's tensors have of numpy: those in bfloat16 have no array, nor have those that keep gradients."""

    def __init__(self, values, state=""):
        self.values, self.state = np.asarray(values, np.float32), state

    def detach(self):
        return Tensor(self.values, self.state.replace("gradients", ""))

    def float(self):
        return Tensor(self.values, self.state.replace("bfloat16", ""))

    def cpu(self):
        return Tensor(self.values, self.state.replace("cuda", ""))

    def numpy(self):
        if self.state.strip():
            raise TypeError(f"a tensor with {self.state} has no array")
        return self.values

    def __array__(self, dtype=None, copy=None):
        return self.numpy()


@pytest.mark.parametrize("state", ["", "bfloat16", "gradients", "cuda", "cuda bfloat16 gradients"])
def test_similarity_of_tensors(model, state):
    rows = model.encode(TEXTS[:3])
    tensor = Tensor(rows, state)
    for given in (tensor, [Tensor(row, state) for row in rows]):
        np.testing.assert_array_equal(model.similarity(given, rows), model.similarity(rows, rows))
        np.testing.assert_array_equal(model.similarity_pairwise(rows, given), model.similarity_pairwise(rows, rows))


@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
def test_quantized_rows_have_no_similarity(model, precision):
    rows = model.encode(TEXTS, precision=precision)
    for call in (model.similarity, model.similarity_pairwise):
        with pytest.raises(ArgumentError, match=r"first holds u?int8, as encode gives it with precision="):
            call(rows, rows)


def test_similarity_of_long_vectors():
    """The square of such a length is beyond float32."""
    rows = np.array([[3e30, 4e30], [4e30, 3e30]], np.float32)
    np.testing.assert_allclose(similarity(rows, rows), [[1, 0.96], [0.96, 1]], rtol=1e-6)
    np.testing.assert_allclose(similarity_pairwise(rows, rows[::-1]), [0.96, 0.96], rtol=1e-6)


def test_similarity_of_pairs(model, monkeypatch):
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=(2, 4, 6)).astype(np.float32)
    b[3] = 0
    for measure in ("cosine", "dot", "euclidean", "manhattan"):
        monkeypatch.setattr(SentenceModel, "describe", lambda _self, measure=measure: {"similarity": measure})
        found = model.similarity_pairwise(a, b)
        assert (found.dtype, found.shape) == (np.float32, (4,))
        np.testing.assert_allclose(found, np.diag(similarity(a, b, measure)), rtol=1e-5, atol=1e-6)
        assert model.similarity_pairwise(a[0], b[0]).shape == (1,)
    assert model.similarity_pairwise([], []).shape == (0,)
    for wrong in (b[:3], b[:, :5]):
        with pytest.raises(ArgumentError, match=r"first has shape \(4, 6\) and second"):
            model.similarity_pairwise(a, wrong)


def test_names_of_sentence_transformers_6(model):
    texts = ["bir", "iki"]
    vectors = model.encode(texts)
    np.testing.assert_array_equal(model.encode(inputs=texts), vectors)
    np.testing.assert_array_equal(model.encode(inputs="bir"), model.encode("bir"))
    np.testing.assert_array_equal(model.encode_query(inputs=texts), model.encode_query(texts))
    np.testing.assert_array_equal(model.encode_document(inputs=texts), model.encode_document(texts))
    named = {"embeddings1": vectors, "embeddings2": vectors[:1]}
    np.testing.assert_array_equal(model.similarity(**named), model.similarity(vectors, vectors[:1]))
    named = {"embeddings1": vectors, "embeddings2": vectors[::-1]}
    np.testing.assert_array_equal(model.similarity_pairwise(**named), model.similarity_pairwise(vectors, vectors[::-1]))
    with pytest.raises(TypeError, match="inputs is another name of sentences") as raised:
        model.encode("bir", inputs="iki")
    assert raised.value.param == "inputs"
    with pytest.raises(TypeError, match="sentences must be"):
        model.encode()
    with pytest.raises(TypeError, match="embeddings1 is another name of first"):
        model.similarity(vectors, vectors, embeddings1=vectors)
    with pytest.raises((TypeError, ValueError), match="second"):
        model.similarity(vectors)


def test_prompts_are_those_of_the_slot(model):
    """In sentence-transformers a change of `prompts` changes what encode reads."""
    prompts = model.prompts
    for change in (
        lambda: prompts.__setitem__("query", "mine: "),
        lambda: prompts.update(query="mine: "),
        lambda: prompts.pop("query"),
        lambda: prompts.clear(),
    ):
        with pytest.raises(TypeError, match=r"register\(\.\.\., prompts=\.\.\.\)"):
            change()
    assert json.loads(json.dumps(prompts)) == pickle.loads(pickle.dumps(prompts)) == copy.deepcopy(prompts) == prompts
    assert model.prompts == model.describe()["prompts"]


def test_similarity_of_a_model(model):
    rows = model.encode(TEXTS[:4])
    np.testing.assert_allclose(np.diag(model.similarity(rows, rows)), 1, atol=1e-6)
    assert model.similarity(rows[0], rows).shape == (1, 4)
    assert model.similarity_fn_name == "cosine"


def test_facts(model):
    assert model.get_sentence_embedding_dimension() == DIMENSION
    assert model.get_embedding_dimension() == DIMENSION
    assert model.max_seq_length == model.get_max_seq_length() == 24
    assert model.device == "cpu"
    assert model.count_tokens("a text") > 2
    assert len(model.count_tokens(["a text", "b"])) == 2


def test_the_device_is_that_of_the_model(model, monkeypatch):
    """A model may compute elsewhere than the manager's default says."""
    assert model.device == "cpu"
    monkeypatch.setattr(ModelManager, "device", "cuda:0")
    assert model.device == "cpu"
    model._manager.unload(model.name)
    assert model.device == "cuda:0"


def test_the_handle_keeps_no_weights(make_manager):
    manager = make_manager()
    model = SentenceModel(manager, "english_sentence")
    assert repr(model) == "<SentenceModel 'english_sentence', not loaded>"
    model.encode("a text")
    assert repr(model) == "<SentenceModel 'english_sentence', loaded>"
    assert manager.unload("english_sentence")
    assert not manager.is_loaded("english_sentence")
    assert model.encode("another text").shape == (DIMENSION,)


@pytest.mark.parametrize(
    ("sentences", "remedy"),
    [({"a": "x"}, r"list\(sentences.values\(\)\)"), (b"text", "decode"), (bytearray(b"a"), "decode")],
)
def test_what_only_looks_like_texts_is_refused(shared, sentences, remedy):
    model = shared.english_sentence_model
    for call in (model.encode, model.encode_query, model.encode_document):
        with pytest.raises(TypeError, match=remedy):
            call(sentences)
    with pytest.raises(TypeError, match="dict"):
        model.encode([{"a": "x"}])


def test_lengths_may_be_numpys(shared):
    model = shared.english_sentence_model
    whole = model.encode("a text", truncate_dim=8)
    for eight in (np.int64(8), np.uint8(8)):
        np.testing.assert_array_equal(model.encode("a text", truncate_dim=eight), whole)
    for wrong in (8.0, np.float32(8), True, "8"):
        with pytest.raises(TypeError, match="truncate_dim"):
            model.encode("a text", truncate_dim=wrong)
    assert ModelManager(cache_size=np.int32(7)).config.cache_size == 7


def test_a_handle_without_a_slot_is_shown(make_manager):
    """Loggers and debuggers show it; that must not raise."""
    manager = make_manager()
    handles = [kind(manager, "gone") for kind in (SentenceModel, CrossEncoder, TextGenerator)]
    for _ in range(2):
        for handle in handles:
            assert repr(handle) == f"<{type(handle).__name__} 'gone', not loaded>"
            assert "not loaded" in handle._repr_html_()
        manager.close()
