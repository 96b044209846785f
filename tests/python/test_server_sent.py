"""Requests as clients send them by default, written by hand: their packages are no part of the tests."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from conftest import FIXTURES
from generation_servers import TEXT, TURN
from generators import GPT2, SLOT, writer
from model_manager.server import ServerConfig, create_app
from servers import MODELS, running

TEMPLATES = FIXTURES / "chat_templates"
RERANKER = str(FIXTURES / "rerank_bert")
GREEDY = {"temperature": 0, "max_tokens": 6}


@pytest.fixture(scope="module")
def sent_server():
    """A server with a generator and a reranker."""
    with writer(reranker_model=RERANKER) as manager:
        manager.register("nli", str(FIXTURES / "nli_bert"))
        with running(create_app(ServerConfig(models=MODELS), manager)) as found:
            yield found


def with_template(folder, name):
    """A tiny GPT-2 with a chat template of another model."""
    shutil.copytree(GPT2, folder)
    settings = folder / "tokenizer_config.json"
    known = json.loads(settings.read_text()) if settings.exists() else {}
    template = (TEMPLATES / f"{name}.jinja").read_text()
    settings.write_text(json.dumps({**known, "chat_template": template}))
    return str(folder)


def chat(server, **fields):
    return server.client.post("/v1/chat/completions", json={"messages": TURN, **GREEDY, **fields})


# --- Chats -----------------------------------------------------------------------------------------------------------

CHATS = {
    "vllm": {
        "best_of": 1,
        "use_beam_search": False,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "length_penalty": 1.0,
        "stop_token_ids": [],
        "include_stop_str_in_output": False,
        "ignore_eos": False,
        "min_tokens": 0,
        "skip_special_tokens": True,
        "spaces_between_special_tokens": True,
        "echo": False,
        "add_generation_prompt": True,
        "continue_final_message": False,
        "add_special_tokens": False,
        "truncate_prompt_tokens": None,
        "return_tokens_as_token_ids": False,
        "include_reasoning": True,
        "logits_processors": None,
        "mm_processor_kwargs": None,
        "vllm_xargs": None,
        "return_token_ids": False,
    },
    "zed": {"stop": [], "parallel_tool_calls": False, "tools": [], "tool_choice": "auto", "prompt_cache_key": None},
    "openai": {
        "n": 1,
        "logit_bias": {},
        "modalities": ["text"],
        "prompt_cache_options": {"ttl": "30m"},
        "store": False,
    },
    "qwen": {"enable_thinking": False},
    "sglang": {"chat_template_kwargs": {"enable_thinking": False}},
    "glm": {"thinking": {"type": "disabled"}},
    "litellm": {"reasoning_effort": "none"},
    "llama.cpp": {"cache_prompt": True, "repeat_penalty": 1.0, "typical_p": 1.0, "mirostat": 0},
}


@pytest.mark.parametrize("client", CHATS)
def test_what_changes_nothing_is_accepted(sent_server, client):
    plain = chat(sent_server).json()["choices"]
    answer = chat(sent_server, **CHATS[client])
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"] == plain


def test_notes_of_clients_in_messages(sent_server):
    """LangChain numbers parts, CodeCompanion messages, and LiteLLM and Cline mark what to cache."""
    plain = chat(sent_server).json()["choices"]
    cached = {"cache_control": {"type": "ephemeral"}, "prompt_cache_breakpoint": {}}
    part = {"type": "text", "text": TEXT, "id": "lc_1", "index": 0, "annotations": [], **cached}
    answer = chat(sent_server, messages=[{"role": "user", "content": [part], "id": 7, **cached}])
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"] == plain
    for wrong in ({"tool_calls": [{}]}, {"reasoning_content": "hm"}, {"images": ["aGk="]}):
        answer = chat(sent_server, messages=[{**TURN[0], **wrong}])
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages")


def test_a_choice_of_tools_says_that_there_are_none(sent_server):
    answer = chat(sent_server, tool_choice="required", tools=[{"type": "function", "function": {"name": "f"}}])
    assert (
        answer.json()["error"]["message"] == "tool_choice is not supported here: tools are not supported; leave it out"
    )


def test_clients_of_hugging_face_that_know_only_the_address(sent_server):
    """InferenceClient(base_url=...) and the client of text-generation-inference name a model that is none."""
    plain = chat(sent_server).json()["choices"]
    for name in ("dummy", "tgi"):
        answer = chat(sent_server, model=name).json()
        assert (answer["model"], answer["choices"]) == (SLOT, plain)
        assert sent_server.client.post("/api/chat", json={"model": name, "messages": TURN}).status_code == 404
    assert chat(sent_server, model="gpt-5").status_code == 404


# --- Thinking --------------------------------------------------------------------------------------------------------

THINKING = {"deepseek_r1", "qwen3", "smollm3"}


def test_templates_that_know_of_thinking(tmp_path):
    names = {file.stem for file in TEMPLATES.glob("*.jinja")}
    found = set()
    for name in sorted(names):
        with writer(generator_model=with_template(tmp_path / name, name)) as manager:
            if manager.describe_generator()["thinks"]:
                found.add(name)
    assert found == THINKING


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
def test_a_client_of_ollama_that_turns_thinking_off(sent_server, path):
    """Haystack, the Vercel AI SDK's provider and Home Assistant send `"think": false` to every model."""
    body = {"model": SLOT, "stream": False, "options": {"temperature": 0, "num_predict": 6}}
    body |= {"messages": TURN, "tools": []} if path == "/api/chat" else {"prompt": TEXT}
    plain, quiet = (sent_server.client.post(path, json=one) for one in (body, {**body, "think": False}))
    assert quiet.status_code == 200, quiet.text
    assert [quiet.json().get(name) for name in ("message", "response")] == [
        plain.json().get(name) for name in ("message", "response")
    ]


def test_a_model_that_always_thinks_cannot_be_told_not_to(serve, tmp_path):
    with writer(generator_model=with_template(tmp_path / "model", "deepseek_r1")) as manager:
        server = serve(manager)
        for fields in (CHATS[name] for name in ("qwen", "sglang", "glm", "litellm")):
            error = chat(server, **fields).json()["error"]
            assert error["param"] in fields
            assert "thinks" in error["message"] or "does not read" in error["message"]
        answer = server.client.post("/api/chat", json={"model": SLOT, "messages": TURN, "think": False})
        assert answer.status_code == 400
        assert answer.json()["error"].startswith("think is not supported here: this model's chat template decides")
        assert server.client.post("/api/chat", json={"model": SLOT, "messages": [], "think": False}).status_code == 200


# --- Scores ----------------------------------------------------------------------------------------------------------

DOCUMENTS = ["It left our depot.", "The fox jumps.", "Kargonuz yolda."]
ASKED = {"model": "reranker", "query": "Where is my parcel?"}
RERANKS = {
    "haystack": ("/v2/rerank", {"top_n": 10, "max_tokens_per_doc": 4096}),
    "cohere": ("/v2/rerank", {"priority": 0, "relevant_spans": None}),
    "cohere, version 1": ("/v1/rerank", {"rank_fields": ["text"], "return_documents": False}),
    "vllm": ("/v1/rerank", {"user": "u", "truncate_prompt_tokens": -1, "return_documents": False, "request_id": "r"}),
    "voyage": ("/v1/rerank", {"truncation": True, "return_documents": False}),
    "infinity": ("/rerank", {"raw_scores": False, "return_documents": False}),
}


@pytest.mark.parametrize("client", RERANKS)
def test_what_changes_no_score_is_accepted(sent_server, client):
    path, fields = RERANKS[client]
    answer = sent_server.client.post(path, json={**ASKED, "documents": DOCUMENTS, **fields})
    assert answer.status_code == 200, answer.text
    assert [(one["index"], one["relevance_score"]) for one in answer.json()["results"]] == [
        (one.index, one.score) for one in sent_server.manager.rerank(ASKED["query"], DOCUMENTS)
    ]


def test_a_length_of_documents_that_would_cut_one(sent_server):
    # Of a document itself, without the model's special tokens.
    *counts, special = sent_server.manager.count_tokens([*DOCUMENTS, ""], "reranker")
    tokens = max(counts) - special
    for most, status in ((tokens, 200), (tokens - 1, 400)):
        answer = sent_server.client.post(
            "/v2/rerank", json={**ASKED, "documents": DOCUMENTS, "max_tokens_per_doc": most}
        )
        assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["param"] == "max_tokens_per_doc"
    assert f"has {tokens} tokens" in error["message"]
    answer = sent_server.client.post("/rerank", json={**ASKED, "texts": DOCUMENTS, "max_tokens_per_doc": 1})
    assert "texts[0] has" in answer.json()["error"]["message"]


def test_documents_come_back_as_they_were_sent(sent_server):
    documents = [{"text": DOCUMENTS[0], "id": 7, "of": {"lists": [1, None]}}, DOCUMENTS[1], {"text": DOCUMENTS[2]}]
    answer = sent_server.client.post("/v1/rerank", json={**ASKED, "documents": documents})
    found = {one["index"]: one["document"] for one in answer.json()["results"]}
    assert found == {0: documents[0], 1: {"text": DOCUMENTS[1]}, 2: documents[2]}


def test_a_document_that_nests_too_deep_to_be_written(sent_server):
    body = {**ASKED, "documents": [{"text": "a", "of": "DEEP"}]}
    content = json.dumps(body).replace('"DEEP"', "[" * 600 + "]" * 600)
    answer = sent_server.client.post("/v1/rerank", content=content, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "documents")
    content = json.dumps({**body, "return_documents": False}).replace('"DEEP"', "[" * 600 + "]" * 600)
    answer = sent_server.client.post("/v1/rerank", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 200, answer.text


def test_a_query_is_a_text(sent_server):
    plain = sent_server.client.post("/v2/rerank", json={**ASKED, "documents": DOCUMENTS}).json()["results"]
    query = {"text": ASKED["query"], "image": None}
    same = sent_server.client.post("/v2/rerank", json={**ASKED, "query": query, "documents": DOCUMENTS})
    assert same.json()["results"] == plain
    query["image"] = "https://example.com/parcel.png"  # Jina's rerankers of pictures
    answer = sent_server.client.post("/v2/rerank", json={**ASKED, "query": query, "documents": DOCUMENTS})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, "query", "unsupported_parameter")
    assert error["message"].startswith("query.image ")


def test_metrics_of_a_reranker_have_one_name(sent_server):
    for name in ("reranker", "reranker:latest", sent_server.manager.config.reranker_model, None):
        answer = sent_server.client.post("/v2/rerank", json={**ASKED, "model": name, "documents": DOCUMENTS})
        assert answer.json()["model"] == name or name is None
    metrics = sent_server.client.get("/metrics").text
    assert 'embedding_inputs_total{model="reranker"}' in metrics
    assert 'model="reranker:latest"' not in metrics
    assert f'model="{RERANKER}"' not in metrics


def test_litellm_asks_text_embeddings_inference_for_the_best(sent_server):
    fields = {"raw_scores": False, "truncation_direction": "Right", "return_text": True, "top_n": 1}
    best = sent_server.manager.rerank(ASKED["query"], DOCUMENTS)[0]
    answer = sent_server.client.post("/rerank", json={"query": ASKED["query"], "texts": DOCUMENTS, **fields})
    assert answer.json() == [{"index": best.index, "score": best.score, "text": best.document}]


def test_classes_for_a_user(sent_server):
    plain = sent_server.client.post("/v1/classify", json={"model": "nli", "input": "a"}).json()["data"]
    fields = {"raw_scores": False, "user": "u", "priority": 0}
    answer = sent_server.client.post("/v1/classify", json={"model": "nli", "input": "a", **fields})
    assert answer.json()["data"] == plain


def test_a_reranker_that_is_not_served_is_answered_with_each_name_once(sent_server):
    answer = sent_server.client.post("/v2/rerank", json={**ASKED, "documents": DOCUMENTS, "model": "rerank-v3.5"})
    assert answer.json()["error"]["message"].endswith("served are: reranker, nli")


# --- Vectors and paths -----------------------------------------------------------------------------------------------


def test_what_changes_no_vector_is_accepted(sent_server):
    plain = sent_server.embed(input="a").json()["data"]
    for fields in (
        {"truncate_prompt_tokens": -1},
        {"truncation": True, "output_dtype": "float"},
        {"normalize": True, "embd_normalize": 2},
        {"embed_dtype": "float32", "endianness": "native", "modality": "text", "embedding_types": ["float"]},
        {"endianness": "little", "prompt": "", "own_field": {"of": "a client"}},
    ):
        answer = sent_server.embed(input="a", **fields)
        assert answer.status_code == 200, answer.text
        assert answer.json()["data"] == plain


@pytest.mark.parametrize(
    "asked",
    [
        {"embed_dtype": "float16"},  # vLLM
        {"endianness": "big"},
        {"modality": "image"},  # infinity
        {"embd_normalize": -1},  # llama.cpp
        {"embd_normalize": 0},
        {"embedding_types": ["int8"]},  # Cohere
        {"embedding_types": ["float", "int8"]},
        {"prompt": "query: "},
        {"truncate_dim": 2},
        {"dimension": 2},
        {"pooling": "cls"},
    ],
    ids=str,
)
def test_what_asks_other_servers_for_other_vectors_is_refused(sent_server, asked):
    answer = sent_server.embed(input="a", **asked)
    assert answer.status_code == 400
    assert (answer.json()["error"]["param"], answer.json()["error"]["code"]) == (*asked, "unsupported_parameter")


def test_vectors_for_clients_of_text_embeddings_inference(sent_server):
    """LlamaIndex, LangChain and `InferenceClient.feature_extraction` send these."""
    manager = sent_server.manager
    for fields in ({"inputs": ["a", "b"], "truncate": True}, {"inputs": ["a", "b"], "truncation_direction": "right"}):
        answer = sent_server.client.post("/embed", json=fields)
        assert answer.status_code == 200, answer.text
        np.testing.assert_array_equal(np.array(answer.json(), np.float32), manager.embed(["a", "b"], "tiny"))
    one = sent_server.client.post("/embed", json={"inputs": "a", "normalize": True, "dimensions": 8}).json()
    np.testing.assert_array_equal(np.array(one, np.float32), manager.embed(["a"], "tiny", truncate_dim=8))
    ids = sent_server.client.post("/embed", json={"inputs": [[5, 6], [7]]}).json()
    openai = sent_server.embed(input=[[5, 6], [7]]).json()["data"]
    assert ids == [one["embedding"] for one in openai]


def test_text_embeddings_inference_puts_nothing_in_front_of_texts(sent_server):
    manager = sent_server.manager
    for model, options in (("instructed", {}), ("prompted", {}), ("prompted", {"prompt_name": "query"})):
        slot = sent_server.service.served(model).key
        answer = sent_server.client.post("/embed", json={"inputs": "a", "model": model, **options})
        expected = manager.embed(["a"], slot, **(options or {"prompt": ""}))
        np.testing.assert_array_equal(np.array(answer.json(), np.float32), expected)


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/chat/completions", "/v1/chat/completions"),
        ("/v1/v1/embeddings", "/v1/embeddings"),
        ("/v1/api/chat", "/api/chat"),
        ("/models", "/v1/models"),
        ("/v1/health/", "/health"),
        ("/responses", "/v1/responses"),
        ("/v1/assistants", None),
        ("/ons", None),
    ],
)
def test_a_base_url_with_too_little_or_too_much(sent_server, path, meant):
    answer = sent_server.client.post(path, json={})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_path")
    said = answer.json()["error"]["message"]
    assert f"did you mean {meant}?" in said if meant else "did you mean" not in said
