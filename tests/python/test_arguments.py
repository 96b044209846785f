"""Every argument of every public call: what cannot be used is refused by the argument's name."""

from __future__ import annotations

import asyncio
import inspect
import re
import typing

import numpy as np
import pytest
from conftest import FIXTURES
from model_manager import (
    Config,
    CrossEncoder,
    LazyLoadTracker,
    ModelManager,
    SentenceModel,
    TextGenerator,
    TurkishLanguageDetector,
    aio,
    errors,
    memory_efficient_cache,
    semantic,
)
from model_manager._types import GenerationParams
from model_manager.batch import BatchEmbedder

GENERATION = tuple(GenerationParams.__annotations__)
EMBEDDING = tuple(inspect.signature(ModelManager.submit).parameters)[4:]
INFERENCE = ("prompt", "prompt_name", "truncate", "timeout", "keep_alive")
PIPELINE = (*GENERATION, "num_return_sequences", "return_full_text", "stop_strings")
MESSAGES = [{"role": "user", "content": "a"}]
NOTHING = object()
"""Of a type that no argument takes."""


class Call(typing.NamedTuple):
    """A call that works, to which one wrong argument is given at a time."""

    arguments: dict[str, object]
    options: tuple[str, ...] = ()
    """Names among its `**options`."""
    free: tuple[str, ...] = ()
    """Arguments that may be anything."""


def one(**arguments):
    return Call(arguments)


TEXT, NAME = one(text="a"), one(name="english_sentence")
GENERATE = Call({"prompt": "a", "max_new_tokens": 1}, GENERATION)
CHAT = Call({"messages": MESSAGES, "max_new_tokens": 1}, GENERATION)
MANAGER = {
    "embed": one(texts="a"),
    "aembed": Call({"texts": "a"}, EMBEDDING),
    "embed_arrow": one(texts=NOTHING),
    "submit": one(texts="a", on_done=print),
    "submit_response": one(inputs="a", on_done=print, served_model="m"),
    "embed_sparse": one(texts="a", model="sparse"),
    "aembed_sparse": Call({"texts": "a", "model": "sparse"}, INFERENCE),
    "embed_multi": one(texts="a", model="english_sentence"),
    "aembed_multi": Call({"texts": "a", "model": "english_sentence"}, INFERENCE[2:]),
    "rerank": one(query="a", documents=["b"]),
    "arerank": Call({"query": "a", "documents": ["b"]}, ("activation", *INFERENCE)),
    "rerank_async": Call({"query": "a", "documents": ["b"]}, ("activation", *INFERENCE)),
    "classify": one(texts="a"),
    "aclassify": Call({"texts": "a"}, ("activation", *INFERENCE[2:])),
    "count_tokens": one(texts="a"),
    "chunk": one(text="a"),
    "embed_chunks": one(text="a"),
    "complete": GENERATE,
    "generate": GENERATE,
    "agenerate": GENERATE,
    "stream": GENERATE,
    "astream": GENERATE,
    "submit_generation": Call({**GENERATE.arguments, "on_event": print}, GENERATION),
    "chat": CHAT,
    "achat": CHAT,
    "apply_chat_template": one(messages=MESSAGES),
    "describe_generator": one(),
    "register": one(name="made", source=str(FIXTURES / "bert_plain"), replace=True),
    "unregister": NAME,
    "route": TEXT,
    "load": NAME,
    "unload": NAME,
    "is_loaded": NAME,
    "get": NAME,
    "peek": NAME,
    "describe": NAME,
    "warmup": one(names=["english_sentence"]),
    "cache_clear": one(),
    "set_auto_cleanup": one(enabled=False),
    "hint": NAME,
    "explain": NAME,
    "preload": one(texts=["a"]),
    "cache_flush": one(),
    "cache_export": one(path="/no/such"),
    "cache_import": one(path="/no/such"),
    "detect_language": TEXT,
    "get_embedding_model_for_text": TEXT,
    "generate_embedding": Call({"text": "a"}, free=("force_turkish",)),  # the chatbot's: it is a truth value
    "generate_text_response": Call({"prompt": "a"}, free=("turkish_context",)),
    "warmup_models": one(),
}
NEVER_RAISE = {"get_sentence_embedding", "generate_huggingface_response"}
"""The chatbot's: they log."""

SENTENCE = {
    "encode": Call({"sentences": "a"}, free=("device",)),
    "encode_query": Call({"sentences": "a"}, ("prompt", "prompt_name", "normalize_embeddings")),
    "encode_document": Call({"sentences": "a"}, ("prompt", "prompt_name", "normalize_embeddings")),
    "similarity": one(first=[1.0], second=[1.0]),
    "similarity_pairwise": one(first=[1.0], second=[1.0]),
    "count_tokens": one(texts="a"),
}
ENCODER = {
    "predict": Call({"sentences": [("a", "b")]}, free=("device",)),
    "rank": Call({"query": "a", "documents": ["b"]}, ("activation_fn", "prompt", "prompt_name")),
    "classify": Call({"texts": "a"}, ("activation", "truncate", "timeout", "keep_alive")),
}
WRITER = {
    "__call__": Call({"text_inputs": "a", "max_new_tokens": 1}, PIPELINE),
    "acall": Call({"text_inputs": "a", "max_new_tokens": 1}, PIPELINE),
}
TRACKER = {"record_load": one(model_type="a", load_time=1.0, memory_mb=1.0), "record_access": one(model_type="a")}
CACHE = {
    "get": one(question="a"),
    "put": Call({"question": "a", "answer": "b"}, free=("answer",)),
    "aget": one(question="a"),
    "aput": Call({"question": "a", "answer": "b"}, free=("answer",)),
    "get_or_compute": one(question="a", compute=str),
    "aget_or_compute": one(question="a", compute=str),
    "remove": one(question="a"),
    "clear": one(scope="none"),
}
INTENTS = {"predict": one(text="a"), "predict_many": one(texts=["a"])}
WORDS = {"document": TEXT, "query": TEXT}
INDEX = {"search": one(query="a")}
FUNCTIONS = {
    (SentenceModel, "SentenceModel"): one(name="english_sentence"),
    (CrossEncoder, "CrossEncoder"): one(),
    (TextGenerator, "TextGenerator"): one(),
    (semantic.near_duplicates, "vectors"): one(vectors=[[1.0]]),
    (semantic.semantic_search, "queries"): one(queries=[[1.0]], corpus=[[1.0]]),
    (semantic.pairwise_similarity, "first"): one(first=[[1.0]], second=[[1.0]]),
    (semantic.BM25, "BM25"): one(),
    (semantic.BM25Index, "BM25Index"): one(texts=["a"]),
    (semantic.IntentClassifier, "IntentClassifier"): one(examples={"a": ["b"]}),
    (semantic.SemanticCache, "SemanticCache"): one(),
    (BatchEmbedder, "BatchEmbedder"): one(),
    (TurkishLanguageDetector.is_turkish, "is_turkish"): TEXT,
    (memory_efficient_cache, "memory_efficient_cache"): one(),
    (aio.aembed, "aembed"): Call({"texts": "a"}, EMBEDDING),
    (aio.aresponse, "aresponse"): Call(
        {"inputs": "a", "served_model": "m"}, ("served_model", "encoding_format", "truncate", "timeout")
    ),
}
CLASSES = {
    ModelManager: MANAGER,
    SentenceModel: SENTENCE,
    CrossEncoder: ENCODER,
    TextGenerator: WRITER,
    LazyLoadTracker: TRACKER,
    semantic.SemanticCache: CACHE,
    semantic.IntentClassifier: INTENTS,
    semantic.BM25: WORDS,
    semantic.BM25Index: INDEX,
}


def parameters(function):
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    # The chatbot's cached method is an object of its own.
    found = inspect.signature(getattr(function, "__wrapped__", function)).parameters.values()
    return [one.name for one in found if one.kind in kinds and one.name != "self"]


def methods():
    for owner, calls in CLASSES.items():
        for method, call in calls.items():
            for name in dict.fromkeys([*parameters(getattr(owner, method)), *call.options]):
                if name not in call.free:
                    yield pytest.param(owner, method, call, name, id=f"{owner.__name__}.{method}-{name}")


def functions():
    for (function, _), call in FUNCTIONS.items():
        for name in dict.fromkeys([*parameters(function), *call.options]):
            yield pytest.param(function, call, name, id=f"{function.__name__}-{name}")


@pytest.fixture(scope="module")
def objects():
    from conftest import tiny

    with tiny(
        reranker_model=str(FIXTURES / "rerank_bert"),
        generator_model=str(FIXTURES / "llama"),
        generator_dtype="float32",
    ) as manager:
        manager.register("sparse", str(FIXTURES / "splade_bert"), kind="sparse")
        yield {
            ModelManager: manager,
            SentenceModel: SentenceModel(manager, "english_sentence"),
            CrossEncoder: CrossEncoder(manager),
            TextGenerator: TextGenerator(manager),
            LazyLoadTracker: LazyLoadTracker(),
            semantic.SemanticCache: semantic.SemanticCache(manager, "english_sentence"),
            semantic.IntentClassifier: semantic.IntentClassifier({"a": ["b"]}, manager, "english_sentence"),
            semantic.BM25: semantic.BM25("english"),
            semantic.BM25Index: semantic.BM25Index(["a text"], "english"),
        }


def run(function, arguments):
    if inspect.iscoroutinefunction(function):
        return asyncio.run(function(**arguments))
    if getattr(function, "__name__", "") == "astream":

        async def stream():
            return function(**arguments)

        return asyncio.run(stream())
    return function(**arguments)


def refused(function, arguments, name):
    with pytest.raises((TypeError, errors.InputError, errors.ConfigError)) as caught:
        run(function, arguments)
    message = str(caught.value)
    assert name in message.replace("(", " ").replace("[", " ").split() or message.startswith(f"{name}="), message
    assert "unexpected keyword" not in message, message
    assert "\n" not in message
    assert len(message) < 500
    return caught.value


@pytest.mark.parametrize(("owner", "method", "call", "name"), [*methods()])
def test_a_method_names_an_argument_of_a_wrong_type(objects, owner, method, call, name):
    error = refused(getattr(objects[owner], method), {**call.arguments, name: NOTHING}, name)
    assert isinstance(error, (TypeError, errors.ArgumentError))


@pytest.mark.parametrize(("function", "call", "name"), [*functions()])
def test_a_function_names_an_argument_of_a_wrong_type(objects, function, call, name):
    arguments = dict(call.arguments)
    if "manager" in parameters(function):
        arguments["manager"] = objects[ModelManager]
    refused(function, {**arguments, name: NOTHING}, name)


@pytest.mark.parametrize("owner", [*CLASSES], ids=lambda owner: owner.__name__)
def test_the_table_has_every_method(owner):
    names = [name for name in dir(owner) if not name.startswith("_")]
    known = [name for name in names if callable(getattr(owner, name)) and parameters(getattr(owner, name))]
    assert sorted({*known} - {*CLASSES[owner]} - NEVER_RAISE) == []


@pytest.mark.parametrize("name", [field["name"] for field in Config.fields()])
def test_a_setting_of_a_wrong_type(name):
    for make in (Config, ModelManager):
        error = refused(make, {name: NOTHING}, name)
        assert isinstance(error, errors.ConfigError)
    refused(ModelManager, {"config": NOTHING}, "config")


@pytest.mark.parametrize(
    ("method", "arguments", "name"),
    [
        ("embed", {"texts": "a", "keep_alive": "soon"}, "keep_alive"),
        ("cache_flush", {"timeout": 0}, "timeout"),
        ("set_auto_cleanup", {"enabled": True, "cleanup_interval": 0}, "cleanup_interval"),
        ("set_auto_cleanup", {"enabled": True, "max_idle_time": -1}, "max_idle_time"),
        ("register", {"keep_alive": "soon"}, "keep_alive"),
        ("register", {"keep_alive": "5m", "pinned": True}, "keep_alive"),
        ("register", {"keep_alive": "auto", "cold_start_price": 0}, "cold_start_price"),
        ("register", {"dtype": "int3"}, "dtype"),
        ("register", {"pooling": "middle"}, "pooling"),
        ("register", {"kind": "poet"}, "kind"),
        ("register", {"max_length": 0}, "max_length"),
        ("register", {"cache": {"policy": "ttl"}}, "cache"),
        ("register", {"cache": {"ttl": "soon"}}, "cache"),
    ],
)
def test_a_wrong_value_of_an_argument_is_no_error_of_a_setting(objects, method, arguments, name):
    if method == "register":
        arguments = {"name": "made", "source": str(FIXTURES / "bert_plain"), **arguments}
    error = refused(getattr(objects[ModelManager], method), arguments, name)
    assert isinstance(error, errors.ArgumentError)
    assert error.param == name


WHOLE = [
    (ModelManager, "chunk", "overlap", -1),
    (ModelManager, "chunk", "max_tokens", 0),
    (ModelManager, "embed_chunks", "overlap", -1),
    (ModelManager, "embed", "truncate_dim", 0),
    (ModelManager, "submit", "truncate_dim", 0),
    (ModelManager, "register", "max_length", 0),
    (ModelManager, "rerank", "top_n", 0),
    (ModelManager, "complete", "max_new_tokens", 0),
    (ModelManager, "complete", "min_new_tokens", -1),
    (ModelManager, "complete", "no_repeat_ngram_size", -1),
    (ModelManager, "complete", "top_k", -2),
    (ModelManager, "complete", "seed", -(2**63) - 1),
    (SentenceModel, "encode", "truncate_dim", 0),
    (CrossEncoder, "rank", "top_k", 0),
    (TextGenerator, "__call__", "num_return_sequences", 0),
    (semantic.BM25Index, "search", "k", 0),
]
"""Whole numbers, and the greatest value that is too small."""


@pytest.mark.parametrize(("owner", "method", "name", "small"), WHOLE)
def test_whole_numbers(objects, owner, method, name, small):
    call, function = CLASSES[owner][method], getattr(objects[owner], method)
    for value in (small, np.int64(small) if small > -(2**63) else small, -(2**70)):
        refused(function, {**call.arguments, name: value}, name)
    for value in (1.5, 1.0, float("nan"), float("inf"), True, "1", np.float32(1)):
        assert isinstance(refused(function, {**call.arguments, name: value}, name), TypeError)
    if name not in ("top_n", "top_k", "k", "num_return_sequences"):
        refused(function, {**call.arguments, name: 2**70}, name)


NUMBERS = [
    (ModelManager, "embed", "timeout"),
    (ModelManager, "rerank", "timeout"),
    (ModelManager, "complete", "timeout"),
    (ModelManager, "load", "timeout"),
    (ModelManager, "register", "cold_start_price"),
    (ModelManager, "set_auto_cleanup", "cleanup_interval"),
    (ModelManager, "set_auto_cleanup", "max_idle_time"),
    (ModelManager, "complete", "temperature"),
    (ModelManager, "complete", "top_p"),
    (ModelManager, "complete", "min_p"),
    (ModelManager, "complete", "repetition_penalty"),
]


@pytest.mark.parametrize(("owner", "method", "name"), NUMBERS)
def test_numbers(objects, owner, method, name):
    call, function = CLASSES[owner][method], getattr(objects[owner], method)
    for value in (-1, -1.0, float("nan"), np.float64("nan"), -float("inf"), -(10**400)):
        refused(function, {**call.arguments, name: value}, name)
    for value in (True, "1", [1]):
        assert isinstance(refused(function, {**call.arguments, name: value}, name), TypeError)


@pytest.mark.parametrize(
    ("method", "given", "meant"),
    [
        ("embed", "timout", "timeout"),
        ("embed", "prompt-name", "prompt_name"),
        ("embed_arrow", "normalise", "normalize"),
        ("submit", "keepalive", "keep_alive"),
        ("submit_response", "encoding_fromat", "encoding_format"),
        ("aembed", "truncat", "truncate"),
        ("register", "max_lenght", "max_length"),
        ("complete", "max_tokens", "max_new_tokens"),
        ("agenerate", "temprature", "temperature"),
        ("arerank", "promt", "prompt"),
        ("aembed_sparse", "time_out", "timeout"),
    ],
)
def test_a_misspelt_keyword(objects, method, given, meant):
    function = getattr(objects[ModelManager], method)
    with pytest.raises(TypeError, match=rf"unexpected keyword argument ['\"]{given}['\"]; did you mean {meant}\?"):
        run(function, {**MANAGER[method].arguments, given: 1})


def test_an_unknown_keyword_lists_those_there_are(objects):
    with pytest.raises(TypeError, match=r"embed\(\) got .*\"flavour\"; there are texts, model, prompt, .*outputs$"):
        objects[ModelManager].embed("a", flavour=1)
    with pytest.raises(TypeError, match=r"'num_return_sequence'; did you mean num_return_sequences\?"):
        objects[TextGenerator]("a", num_return_sequence=1)
    with pytest.raises(TypeError, match=r"'promt'; did you mean prompt\?"):
        objects[CrossEncoder].rank("a", ["b"], promt="c")


def test_what_is_no_mistake(objects):
    """numpy's numbers and truth values, and whatever else Python takes as one."""
    manager = objects[ModelManager]
    expected = manager.embed("a", truncate_dim=4, timeout=60)
    found = manager.embed("a", truncate_dim=np.int32(4), timeout=np.float32(60), normalize=np.True_, copy=np.False_)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(manager.embed("a", truncate_dim=4, timeout=10**300), expected)
    assert manager.complete("a", max_new_tokens=np.int64(2), temperature=0)["finish_reason"] is not None


@pytest.mark.parametrize(
    ("call", "param", "place", "rest"),
    [
        (lambda m: m.embed("a", timeout=-1), "timeout", (), "=-1 must be a number of seconds, not negative"),
        (lambda m: m.embed("a", prompt_name="no"), "prompt_name", (), ': model ".*" has no prompt "no"; it has'),
        (lambda m: m.complete([]), "prompt", (), " must not be an empty list"),
        (lambda m: m.chat([{"role": "user"}]), "messages", (0,), " has no content: it must be"),
        (lambda m: m.chat([{"role": "poet"}]), "messages", (0,), r'\["role"\] must be one of'),
        (lambda m: m.register("new", "m", cache={"size": -1}), "cache", (), " size=-1 must be a number of results"),
        (lambda m: m.register("new", "m", cold_start_price=1), "cold_start_price", (), " is for a slot with"),
        (lambda m: m.chunk("a", max_tokens=1), "max_tokens", (), "=1 leaves no place for text"),
    ],
)
def test_an_error_can_be_written_with_another_name_of_the_argument(objects, call, param, place, rest):
    with pytest.raises(errors.ArgumentError) as caught:
        call(objects[ModelManager])
    error = caught.value
    assert (error.param, error._place) == (param, place)
    assert re.match(rest, error._rest), error._rest
    assert str(error) == param + "".join(f"[{number}]" for number in place) + error._rest


def test_a_prompt_is_given_once(objects):
    manager = objects[ModelManager]
    for call in (
        lambda: manager.embed("a", prompt="b", prompt_name="query"),
        lambda: manager.embed(["a"], prompt="b", prompt_name="query"),
        lambda: manager.rerank("a", ["b"], prompt="c", prompt_name="query"),
        lambda: manager.chunk("a", prompt="b", prompt_name="query"),
    ):
        with pytest.raises(errors.ArgumentError, match=r'prompt_name="query": prompt is given too; give one of both'):
            call()


def test_bytes_in_any_form_are_no_texts(objects):
    for given in (memoryview(b"ab"), b"ab", bytearray(b"ab")):
        with pytest.raises(TypeError, match=rf"texts must be a str, .* not {type(given).__name__}"):
            objects[ModelManager].embed(given, "english_sentence")


def test_similarity_of_what_does_not_fit(objects):
    model = objects[SentenceModel]
    with pytest.raises(errors.ArgumentError, match="second has vectors of 3 dimensions and first of 2"):
        model.similarity([[1, 2]], [[1, 2, 3]])
    with pytest.raises(errors.ArgumentError, match="first must be rows of the same length"):
        model.similarity([[1, 2], [1]], [[1, 2]])
    with pytest.raises(errors.ArgumentError, match=r"second must have shape \(n, dim\)"):
        model.similarity([[1, 2]], np.zeros((1, 1, 2)))
    assert model.similarity(np.zeros((0, 2)), [[1, 2]]).shape == (0, 1)
