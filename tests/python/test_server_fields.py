"""Every field of every request: a value of a wrong type or out of range is refused by the name that the client sent."""

from __future__ import annotations

import json
import re

import pytest
from conftest import DIMENSION, FIXTURES
from generation_servers import TEXT, TURN
from generators import SLOT, writer
from model_manager.server import ServerConfig, create_app
from model_manager.server.fields import _known
from model_manager.server.routes.generation.request import LONGEST_STOP, MOST_STOPS
from model_manager.server.routes.generation.schemas import ChatRequest, CompletionRequest
from model_manager.server.routes.ollama.schemas import (
    OllamaChatRequest,
    OllamaEmbeddingsRequest,
    OllamaEmbedRequest,
    OllamaGenerateRequest,
    OllamaShowRequest,
)
from model_manager.server.routes.responses.schemas import ResponseRequest
from model_manager.server.schemas import (
    ClassifyRequest,
    EmbeddingsRequest,
    HintRequest,
    LoadRequest,
    PlainEmbeddingsRequest,
    Refused,
    RerankRequest,
    SparseRequest,
    WarmUpRequest,
)
from servers import MODELS, running

INTERNAL = re.compile(
    r"Traceback|\.py\b|\.rs\b|truncate_dim|max_new_tokens|min_new_tokens|texts\[|\bparam\b|<class|object at 0x"
)
"""What belongs to this package, and not to its protocol."""
TEXT_ONLY = (5, True, [], {}, ["a"])
FLAG = (0, "yes", [], {})
COUNT = (0, -1, 1.5, "5", True, [1], {})
KEEP = ("soon", "", [5], {}, True)
MODEL = TEXT_ONLY
EMBEDDED = ("", " \n", [], {}, 5, True, ["a", ""], ["a", 1], ["a", None], [["a"]], [[]], [{}])
IDS = ([-1], [1, -1], [1, 2.5], [1, True], [1, "a"], [[1], [-1]], [[1], "a"], [10**9], [[1], [10**9]], [2**63])
SHARED = {
    "model": MODEL,
    "stream": (0, "yes", [], {}),
    "stream_options": ("usage", [], 5, {"include_usage": True}),
    "max_tokens": COUNT,
    "max_completion_tokens": COUNT,
    "min_tokens": (-1, 1.5, "5", True, [1]),
    "temperature": (-1, "hot", True, [1], {}),
    "top_p": (-0.1, 1.5, "high", True, [1]),
    "top_k": (-2, 1.5, "5", True, [1], 10**30),
    "min_p": (-0.1, 2, "x", True),
    "repetition_penalty": (0, -1, "x", True, {}),
    "no_repeat_ngram_size": (-1, 1.5, "x", True, 10**30),
    "seed": (-(2**64), 1.5, "7", True, [7], 2**64, 10**30),
    "stop": (5, [5], [None], {}, ["x"] * (MOST_STOPS + 1), "x" * (LONGEST_STOP + 1)),
    "n": (*COUNT, 65),
    "best_of": (*COUNT, 2),
    "keep_alive": KEEP,
    "user": TEXT_ONLY,
    "logprobs": (True, 0, 5),
    "top_logprobs": (3,),
}
UNUSED = {
    *("metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
    *(
        "prompt_cache_options",
        "prediction",
        "parallel_tool_calls",
        "request_id",
        "priority",
        "cache_salt",
        "cache_prompt",
    ),
}
"""Accepted whatever they hold."""
OPTIONS = {
    "temperature": SHARED["temperature"],
    "top_p": SHARED["top_p"],
    "top_k": SHARED["top_k"],
    "min_p": SHARED["min_p"],
    "repeat_penalty": SHARED["repetition_penalty"],
    "seed": (-(2**64), 1.5, "7", True, 2**64),
    "num_predict": (0, -3, 1.5, "5", True),
    "stop": SHARED["stop"],
    "repeat_last_n": ("all", 1.5, True),
}
OLLAMA = {
    "model": (None, "", *MODEL),
    "keep_alive": KEEP,
    "stream": FLAG,
    "truncate": FLAG,
    "shift": FLAG,
    "think": (True, 0, "low"),
    "options": (5, [], "fast", *({name: value} for name, values in OPTIONS.items() for value in values)),
}
THINKING = {
    "chat_template_kwargs": (5, "a", ["enable_thinking"], {"no_such": 1}, {"messages": []}),
    "enable_thinking": (5, "no", True),
    "thinking": (5, "no", {"type": 5}, {"type": "enabled"}),
}
RESPONSES = {name: wrong for name, wrong in SHARED.items() if name in ResponseRequest.model_fields}
WRONG_MESSAGES = (
    *("Merhaba", 5, {}, ["Merhaba"], [{"content": "a"}], [{"role": "user"}], [{"role": "user", "content": 5}]),
    *([{"role": role, "content": "a"}] for role in ("tool", 5, ["user"], None)),
    *([*TURN, {"role": "user", "content": "a", name: "b"}] for name in ("images", "thinking", "tool_calls")),
    [{"role": "user", "content": "a", "name": 5}],
)
ROUTES = {
    "/v1/embeddings": (
        EmbeddingsRequest,
        {"input": "a", "model": "tiny"},
        {
            "input": (None, *EMBEDDED, *IDS, ["a"] * 2049),
            "model": MODEL,
            "encoding_format": ("float32", 5, ["float"], {}, True),
            "dimensions": (*COUNT, DIMENSION + 1, 10**30),
            "instruction": TEXT_ONLY,
            "task": TEXT_ONLY,
            "prompt_name": ("no such prompt", *TEXT_ONLY),
            "truncate": FLAG,
            "keep_alive": KEEP,
            "user": TEXT_ONLY,
        },
    ),
    "/embed": (
        PlainEmbeddingsRequest,
        {"inputs": "a", "model": "tiny"},
        {
            "inputs": (None, *EMBEDDED, *IDS, ["a"] * 2049),
            "model": MODEL,
            "dimensions": (*COUNT, DIMENSION + 1, 10**30),
            "prompt_name": ("no such prompt", *TEXT_ONLY),
            "truncate": FLAG,
            "keep_alive": KEEP,
        },
    ),
    "/v1/embeddings/sparse": (
        SparseRequest,
        {"inputs": "a", "model": "sparse"},
        {
            "inputs": (None, *EMBEDDED, *IDS),
            "input": ("b",),
            "model": MODEL,
            "prompt_name": ("no such prompt", *TEXT_ONLY),
            "truncate": FLAG,
            "keep_alive": KEEP,
        },
    ),
    "/v1/rerank": (
        RerankRequest,
        {"query": "a", "documents": ["a", "b"], "model": "rerank"},
        {
            "query": (None, "", " ", 5, True, [], {}, ["a"]),
            "documents": (None, "a", [], [5], [None], ["a", 5], [{}], [{"text": 5}], ["a"] * 2049),
            "texts": (["a"],),
            "model": MODEL,
            "top_n": COUNT,
            "return_documents": FLAG,
            "return_text": (True,),
            "raw_scores": (True,),
            "instruction": TEXT_ONLY,
            "prompt_name": ("no such prompt", *TEXT_ONLY),
            "truncate": FLAG,
            "max_tokens_per_doc": COUNT,
            "keep_alive": KEEP,
        },
    ),
    "/v1/classify": (
        ClassifyRequest,
        {"input": "a", "model": "nli"},
        {
            "input": (None, [], {}, 5, True, [5], [["a"]], ["a", ["b", "c"]], [["a", "b"], "c"], [["a", 5]]),
            "model": MODEL,
            "truncate": FLAG,
            "keep_alive": KEEP,
        },
    ),
    "/v1/chat/completions": (
        ChatRequest,
        {"messages": TURN, "max_tokens": 1},
        {
            "messages": (None, [], *WRONG_MESSAGES),
            **THINKING,
            "reasoning_effort": (5, ["none"], "low"),
            "separate_reasoning": FLAG,
            "continue_final_message": FLAG,
            "add_generation_prompt": FLAG,
            **SHARED,
        },
    ),
    "/v1/completions": (
        CompletionRequest,
        {"prompt": TEXT, "max_tokens": 1},
        {"prompt": (None, [], 5, {}, [[]], ["a", 1], [1, "a"], [-1], [2**32], [True], ["a"] * 65), **SHARED},
    ),
    "/v1/responses": (
        ResponseRequest,
        {"input": TEXT, "max_output_tokens": 1},
        {
            **RESPONSES,
            **THINKING,
            "input": (
                None,
                "",
                5,
                {},
                True,
                *WRONG_MESSAGES[2:],
                [{"type": "function_call", "name": "f"}],
                [{"type": 5}],
            ),
            "instructions": TEXT_ONLY,
            "max_output_tokens": COUNT,
            "max_tool_calls": (-1, 1.5, "5", True, [1]),
            "text": ("text", 5, [], {"format": "text"}, {"format": {"type": "json_object"}}, {"verbosity": "high"}),
            "reasoning": ("low", 5, [], {"effort": "low"}, {"effort": ["none"]}, {"summary": "auto"}),
            "include": ("all", 5, {}, [5], ["all"], ["message.output_text.logprobs"]),
            "metadata": ("a", 5, [], {"a": 5}, {"a": None}, {"a": {}}),
            "store": (True, *FLAG),
            "parallel_tool_calls": FLAG,
            "safety_identifier": TEXT_ONLY,
            "prompt_cache_key": TEXT_ONLY,
        },
    ),
    "/api/embed": (
        OllamaEmbedRequest,
        {"model": "tiny", "input": "a"},
        {
            **{name: OLLAMA[name] for name in ("model", "keep_alive", "truncate")},
            "input": (5, {}, True, [1], [[1]], " ", ["a", ""], ["a", 1], ["a", None], ["a"] * 2049),
            "dimensions": (*COUNT, DIMENSION + 1),
            "options": (5, [], "fast", {"temprature": 1}),
        },
    ),
    "/api/embeddings": (
        OllamaEmbeddingsRequest,
        {"model": "tiny", "prompt": "a"},
        {
            **{name: OLLAMA[name] for name in ("model", "keep_alive")},
            "prompt": (5, {}, True, ["a"], " "),
            "options": (5, [], "fast", {"temprature": 1}),
        },
    ),
    "/api/generate": (
        OllamaGenerateRequest,
        {"model": SLOT, "prompt": TEXT, "options": {"num_predict": 1}},
        {**OLLAMA, "prompt": (5, {}, True, ["a"]), "system": TEXT_ONLY, "raw": FLAG},
    ),
    "/api/chat": (
        OllamaChatRequest,
        {"model": SLOT, "messages": TURN, "options": {"num_predict": 1}},
        {**OLLAMA, "messages": WRONG_MESSAGES},
    ),
    "/api/show": (
        OllamaShowRequest,
        {"model": "tiny"},
        {"model": (None, "", *MODEL), "name": ()},
    ),
    "/api/load": (LoadRequest, {"model": "tiny"}, {"model": TEXT_ONLY}),
    "/api/unload": (LoadRequest, {"model": "tiny"}, {"model": TEXT_ONLY}),
    "/api/hint": (HintRequest, {"model": "tiny"}, {"model": TEXT_ONLY, "user": TEXT_ONLY}),
    "/api/warmup": (WarmUpRequest, {"models": ["tiny"]}, {"models": ("tiny", 5, {}, [5], [None], [["tiny"]])}),
}
"""By path: the schema, a request that is answered, and wrong values by field."""
WITHOUT_WRONG = {"/api/show": {"name", "verbose"}, "/v1/rerank": {"user"}, "/v1/classify": {"user"}}
ALIASES = {"/embeddings": "/v1/embeddings", "/embed_sparse": "/v1/embeddings/sparse", "/rerank": "/v1/rerank"}


@pytest.fixture(scope="module")
def full_server():
    """A server with a model of every kind."""
    with writer() as manager:
        manager.register("rerank", str(FIXTURES / "rerank_bert"), kind="reranker")
        manager.register("nli", str(FIXTURES / "nli_bert"))
        manager.register("sparse", str(FIXTURES / "splade_bert"))
        with running(create_app(ServerConfig(models=MODELS), manager)) as found:
            yield found


def post(server, path, body):
    headers = {"content-type": "application/json"}
    return server.client.post(path, content=json.dumps(body), headers=headers)


def message(answer, path):
    error = answer.json()["error"]
    if path.startswith("/api/") and path.split("/")[2] in {"embed", "embeddings", "generate", "chat", "show"}:
        assert isinstance(error, str)
        return error
    return error["message"]


@pytest.mark.parametrize("path", ROUTES)
def test_the_table_has_every_field(path):
    schema, _, wrong = ROUTES[path]
    assert set(wrong) | UNUSED & _known(schema) | WITHOUT_WRONG.get(path, set()) == _known(schema)


def test_the_table_has_every_route(full_server):
    document = full_server.client.get("/openapi.json").json()
    paths = {path for path, methods in document["paths"].items() if "requestBody" in methods.get("post", {})}
    assert paths == {*ROUTES, *ALIASES, "/v2/rerank"}


@pytest.mark.parametrize("path", ROUTES)
def test_wrong_values_are_refused_by_name(full_server, path):
    _, right, wrong = ROUTES[path]
    assert post(full_server, path, right).status_code == 200
    for field, values in wrong.items():
        for value in values:
            answer = post(full_server, path, {**right, field: value})
            context = (field, value if len(str(value)) < 80 else "...", answer.text)
            assert answer.status_code == 400, context
            said = message(answer, path)
            assert field in said, context
            assert not INTERNAL.search(said), context
            error = answer.json()["error"]
            if not isinstance(error, str):
                assert error["param"] == field, context
                assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("path", ROUTES)
def test_null_is_as_if_a_field_were_left_out(full_server, path):
    schema, right, _ = ROUTES[path]
    for field in _known(schema) - set(right):
        answer = post(full_server, path, {**right, field: None})
        assert answer.status_code == 200, (field, answer.text)


@pytest.mark.parametrize("path", [*ROUTES, *ALIASES, "/v2/rerank"])
def test_unknown_fields_are_refused_by_name(full_server, path):
    schema, right, _ = ROUTES[ALIASES.get(path, "/v1/rerank" if path == "/v2/rerank" else path)]
    if schema is EmbeddingsRequest:  # callers of the server that this one replaces send fields of their own
        assert post(full_server, path, {**right, "no_such_field": 1}).status_code == 200
        return
    answer = post(full_server, path, {**right, "no_such_field": 1})
    assert answer.status_code == 400, answer.text
    said = message(answer, path)
    assert "no_such_field" in said
    assert all(name in said for name in _known(schema))
    assert post(full_server, path, {**right, "no_such_field": None}).status_code == 200
    long = message(post(full_server, path, {**right, "x" * 10_000: 1}), path)
    assert len(long) < 1100
    misspelled = next(iter(right)) + "z"
    assert f"did you mean {next(iter(right))!r}?" in message(post(full_server, path, {**right, misspelled: 1}), path)


@pytest.mark.parametrize("path", ROUTES)
def test_fields_of_other_servers_are_refused_with_a_remedy(full_server, path):
    schema, right, _ = ROUTES[path]
    for name, refused in schema.refused.items():
        answer = post(full_server, path, {**right, name: "something"})
        assert answer.status_code == 400, (name, answer.text)
        assert message(answer, path) == f"{name} is not supported here: {refused.remedy}"
        for off in (None, *refused.off):
            answer = post(full_server, path, {**right, name: off})
            assert answer.status_code == 200, (name, off, answer.text)


@pytest.mark.parametrize(
    ("path", "result"),
    [("/v1/chat/completions", "choices"), ("/v1/completions", "choices"), ("/v1/embeddings", "data")],
)
def test_fields_without_effect_are_accepted(full_server, path, result):
    schema, right, _ = ROUTES[path]
    if result == "choices":
        right = {**right, "temperature": 0}
    plain = post(full_server, path, right).json()[result]
    for field in UNUSED & _known(schema):
        for value in ("a", 5, True, {"a": "b"}):
            answer = post(full_server, path, {**right, field: value})
            assert answer.json()[result] == plain, (field, answer.text)


def test_values_that_equal_the_off_value_only_in_python():
    assert Refused(off=(True,)).refuses(1)
    assert not Refused(off=(True,)).refuses(True)
    assert Refused(off=(1,)).refuses(True)
    assert not any(map(Refused().refuses, (None, False, 0, 0.0, "", [], {})))


def test_false_and_nought_where_a_field_is_off_with_another_value():
    for off, asked in ((True, False), (1, 0), (1.0, 0), (True, 0), (-1, 0), (False, True)):
        assert Refused(off=(off,)).refuses(asked), (off, asked)
        assert not Refused(off=(off,)).refuses(off)
    assert not any(map(Refused(off=("auto",)).refuses, (None, False, "", {})))
    assert Refused(asks=({},)).refuses({})
    assert not any(map(Refused(asks=({},)).refuses, (None, "", [], False)))


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        ("/v1/embeddings", "normalize", False),
        ("/v1/embeddings", "normalized", False),
        ("/v1/embeddings", "add_special_tokens", False),
        ("/v1/embeddings", "truncation", False),
        *(("/v1/completions", name, False) for name in ("do_sample", "skip_special_tokens", "add_special_tokens")),
        ("/v1/completions", "add_generation_prompt", False),
        ("/v1/chat/completions", "do_sample", False),
        ("/v1/completions", "continue_final_message", True),
        *(("/v1/chat/completions", name, {}) for name in ("guided_json", "json_schema", "web_search_options")),
        ("/v1/chat/completions", "add_special_tokens", True),
        ("/v1/chat/completions", "enable_thinking", True),
        ("/v1/completions", "length_penalty", 0),
        ("/v1/completions", "repeat_penalty", 1.1),
        ("/api/chat", "format", {}),
        ("/v1/rerank", "truncate_prompt_tokens", 5),
    ],
)
def test_values_that_ask_for_something_though_they_look_like_none(full_server, path, field, value):
    _, right, _ = ROUTES[path]
    answer = post(full_server, path, {**right, field: value})
    assert answer.status_code == 400, answer.text
    assert message(answer, path).startswith(f"{field} is not supported here: ")


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/v1/embeddings", {"input": [-1]}, "input[0] is -1, which is no token id of any vocabulary"),
        ("/v1/embeddings", {"input": [5, 10**9]}, "input holds the token id 1000000000, which is not"),
        ("/v1/embeddings", {"input": [[5], [6, -1]]}, "input[1][1] is -1"),
        ("/v1/embeddings", {"input": [[5], [6, 10**9]]}, "input[1]"),
        ("/v1/embeddings", {"input": ["a", "word " * 200], "truncate": False}, "input[1] has "),
        ("/v1/embeddings", {"input": "word " * 200, "truncate": False}, "input has "),
        ("/v1/embeddings", {"input": [5] * 200, "truncate": False}, "input has 200 tokens"),
        ("/v1/embeddings/sparse", {"input": ["a", "word " * 200], "truncate": False}, "input[1] has "),
        ("/v1/embeddings/sparse", {"inputs": "word " * 200, "truncate": False}, "inputs has "),
        (
            "/v1/rerank",
            {"query": "a", "documents": ["a", "word " * 200], "model": "rerank", "truncate": False},
            "documents[1] has ",
        ),
        (
            "/rerank",
            {"query": "a", "texts": ["a", "word " * 200], "model": "rerank", "truncate": False},
            "texts[1] has ",
        ),
        ("/v1/classify", {"input": "word " * 200, "model": "nli", "truncate": False}, "input has "),
        ("/v1/classify", {"input": [["a", "word " * 200]], "model": "nli", "truncate": False}, "input[0] has "),
        ("/embed", {"inputs": ["a", "word " * 200], "truncate": False}, "inputs[1] has "),
        ("/embed", {"inputs": [[5], [6, -1]]}, "inputs[1][1] is -1"),
        ("/api/embed", {"model": "tiny", "input": ["a", "word " * 200], "truncate": False}, "input[1] has "),
        ("/api/embed", {"model": "tiny", "input": "word " * 200, "truncate": False}, "input has "),
        ("/api/generate", {"model": SLOT, "prompt": "a", "options": {"seed": 2**64}}, "options.seed=1844"),
        ("/api/generate", {"model": SLOT, "prompt": "a", "options": {"top_p": 2}}, "options.top_p=2: must be in"),
        ("/v1/completions", {"prompt": ""}, "prompt is empty"),
        ("/v1/completions", {"prompt": ["a", ""]}, "prompt[1] is empty"),
        ("/v1/completions", {"prompt": "a", "seed": -(2**64)}, "seed=-1844"),
        ("/v1/completions", {"prompt": "a", "min_tokens": 5, "max_tokens": 4}, "min_tokens=5: must be at most 4"),
        ("/v1/completions", {"prompt": "a", "min_tokens": 10_000}, "min_tokens=10000: must be at most "),
        ("/v1/completions", {"prompt": "a", "stream": True, "stream_options": {"extra": 1}}, "stream_options.extra"),
    ],
)
def test_the_item_at_fault_is_named_as_it_was_sent(full_server, path, body, said):
    answer = post(full_server, path, body)
    assert answer.status_code == 400, answer.text
    assert message(answer, path).startswith(said)


@pytest.mark.parametrize("path", ["/v1/rerank", "/v1/classify", "/v1/embeddings/sparse"])
def test_a_model_of_another_kind_is_the_models_fault(full_server, path):
    _, right, _ = ROUTES[path]
    answer = post(full_server, path, {**right, "model": "tiny"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model")


SAMPLING = {
    "temperature": (0, 0.5, 2, -1, True, "hot"),
    "top_p": (0, 1, 1.5, -0.1, True, "x"),
    "top_k": (0, -1, 50, -2, True, "x", 1.5),
    "min_p": (0, 1, 2, -0.1, True),
    "repetition_penalty": (1, 0, -1, True, "x"),
    "no_repeat_ngram_size": (0, 3, -1, True, 1.5),
    "seed": (0, 7, 2**63, 2**64 - 1, 2**64, -1, -(2**63), -(2**64), True, 1.5, "7"),
    "stop": ("a", [], ["a"], 5, [5], ["x"] * (MOST_STOPS + 1), "x" * (LONGEST_STOP + 1)),
}


@pytest.mark.parametrize("name", SAMPLING)
def test_the_verdict_is_that_of_a_call_in_python(full_server, name):
    for value in SAMPLING[name]:
        try:
            full_server.manager.complete(TEXT, max_new_tokens=1, **{name: value})
            python = None
        except (ValueError, TypeError) as error:
            python = error
        answer = post(full_server, "/v1/completions", {"prompt": TEXT, "max_tokens": 1, name: value})
        assert (answer.status_code == 200) == (python is None), (value, python, answer.text)
        if python is not None:
            assert answer.json()["error"]["param"] == python.param == name


def test_a_query_that_is_wrong(full_server):
    answer = full_server.client.get("/api/status", params={"since": "yesterday"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "since")
