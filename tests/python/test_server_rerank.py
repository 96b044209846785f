"""`POST /v1/rerank`, `/v2/rerank`, `/rerank` and `/v1/classify`: the manager's scores in the forms of other servers."""

from __future__ import annotations

import pytest
from conftest import FIXTURES
from model_manager.server.routes import sparse

QUERY = "Where is my parcel?"
DOCUMENTS = ["It left our depot.", "The fox jumps.", "Kargonuz yolda."]
RERANKER = str(FIXTURES / "rerank_bert")


@pytest.fixture
def scorers(serve):
    server = serve()
    server.manager.register("rerank", RERANKER, kind="reranker")
    server.manager.register("nli", str(FIXTURES / "nli_bert"))
    return server


def wanted(server, slot="rerank", **options):
    return server.manager.rerank(QUERY, DOCUMENTS, slot, **options)


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank", "/v1/rerank/"])
def test_the_form_of_jina_and_cohere(scorers, path):
    request = {"model": "rerank", "query": QUERY, "documents": [DOCUMENTS[0], {"text": DOCUMENTS[1]}, DOCUMENTS[2]]}
    response = scorers.client.post(path, json=request)
    assert response.status_code == 200, response.text
    body = response.json()
    assert [(one["index"], one["relevance_score"]) for one in body["results"]] == [
        (one.index, one.score) for one in wanted(scorers)
    ]
    assert all(one["document"] == {"text": DOCUMENTS[one["index"]]} for one in body["results"])
    assert body["model"] == "rerank"
    assert body["usage"]["total_tokens"] > 3
    short = scorers.client.post(path, json={**request, "top_n": 1, "return_documents": False}).json()["results"]
    assert short == [{"index": wanted(scorers)[0].index, "relevance_score": wanted(scorers)[0].score}]


@pytest.mark.parametrize("slot", ["rerank_bert", "rerank_xlmr"])
def test_scores_are_from_0_to_1_unless_raw_ones_are_wanted(serve, slot):
    """The files of `rerank_xlmr` ask for its logits, as those of cross-encoder/ms-marco-MiniLM-L6-v2 do."""
    server = serve()
    server.manager.register(slot, str(FIXTURES / slot), kind="reranker")
    logits = [one.score for one in wanted(server, slot, activation="identity")]
    probabilities = [one.score for one in wanted(server, slot, activation="sigmoid")]
    assert probabilities != pytest.approx(logits)
    request = {"model": slot, "query": QUERY}
    for path in ("/v1/rerank", "/v2/rerank"):
        results = server.client.post(path, json={**request, "documents": DOCUMENTS}).json()["results"]
        assert [one["relevance_score"] for one in results] == probabilities
    for raw, scores in ((None, probabilities), (False, probabilities), (True, logits)):
        results = server.client.post("/rerank", json={**request, "texts": DOCUMENTS, "raw_scores": raw}).json()
        assert [one["score"] for one in results] == scores


def test_the_form_of_coheres_second_version(scorers):
    body = scorers.client.post(
        "/v2/rerank", json={"model": RERANKER, "query": QUERY, "documents": DOCUMENTS, "max_tokens_per_doc": None}
    ).json()
    assert body["results"] == [{"index": one.index, "relevance_score": one.score} for one in wanted(scorers)]
    assert body["meta"]["api_version"] == {"version": "2"}


def test_the_form_of_text_embeddings_inference(scorers):
    request = {"model": "rerank", "query": QUERY, "texts": DOCUMENTS}
    assert scorers.client.post("/rerank", json=request).json() == [
        {"index": one.index, "score": one.score} for one in wanted(scorers)
    ]
    raw = scorers.client.post("/rerank", json={**request, "raw_scores": True, "return_text": True}).json()
    assert raw == [
        {"index": one.index, "score": one.score, "text": one.document} for one in wanted(scorers, activation="identity")
    ]


def test_the_reranker_of_the_settings_needs_no_name(serve, make_manager):
    server = serve(make_manager(reranker_model=RERANKER))
    for model in ({}, {"model": None}, {"model": "reranker"}, {"model": RERANKER}):
        response = server.client.post("/v1/rerank", json={"query": QUERY, "documents": DOCUMENTS, **model})
        assert response.status_code == 200, response.text
    assert response.json()["model"] == RERANKER


def test_the_reranker_of_the_settings_is_not_answered_by_another(serve, make_manager):
    server = serve(make_manager(reranker_model=RERANKER))
    request = {"query": QUERY, "documents": DOCUMENTS, "model": RERANKER}
    assert server.client.post("/v1/rerank", json=request).status_code == 200
    server.manager.register("reranker", str(FIXTURES / "rerank_xlmr"), kind="reranker")
    assert server.client.post("/v1/rerank", json=request).status_code == 404
    assert server.client.post("/v1/rerank", json={**request, "model": "reranker"}).status_code == 200
    server.manager.register("own", RERANKER, kind="reranker")
    results = server.client.post("/v1/rerank", json=request).json()["results"]
    assert [one["relevance_score"] for one in results] == [one.score for one in wanted(server, "own")]


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_an_instruction_for_models_that_take_one(scorers, path):
    scorers.manager.register("judge", str(FIXTURES / "qwen3_reranker"), kind="reranker")
    instruction = "Find the page that answers the question"
    want = [(one.index, one.score) for one in wanted(scorers, "judge", prompt=instruction)]
    request = {"model": "judge", "query": QUERY, "documents": DOCUMENTS}
    for given in ({"instruction": instruction}, {"prompt_name": "pages"}):
        results = scorers.client.post(path, json={**request, **given}).json()["results"]
        assert [(one["index"], one["relevance_score"]) for one in results] == want
    assert want != [(one.index, one.score) for one in wanted(scorers, "judge")]
    for wrong in ({"instruction": 7}, {"prompt_name": "other"}):
        response = scorers.client.post(path, json={**request, **wrong})
        assert response.status_code == 400, response.text
        assert next(iter(wrong)) in response.text


def test_classes(scorers):
    found = scorers.manager.classify(DOCUMENTS, "nli")
    body = scorers.client.post("/v1/classify", json={"model": "nli", "input": DOCUMENTS}).json()
    assert [(one["index"], one["label"], one["scores"]) for one in body["data"]] == [
        (index, one.label, one.scores) for index, one in enumerate(found)
    ]
    assert body["data"][0]["probs"] == list(found[0].scores.values())
    assert body["data"][0]["num_classes"] == 3
    pairs = scorers.client.post("/v1/classify", json={"model": "nli", "input": [DOCUMENTS[:2]]}).json()
    assert pairs["data"][0]["scores"] == scorers.manager.classify([DOCUMENTS[:2]], "nli")[0].scores
    single = scorers.client.post("/v1/classify", json={"model": "nli", "input": DOCUMENTS[0]}).json()
    assert single["data"] == body["data"][:1]


@pytest.mark.parametrize(
    ("path", "change", "status", "param"),
    [
        ("/v1/rerank", {"query": " "}, 400, "query"),
        ("/v1/rerank", {"query": 7}, 400, "query"),
        ("/v1/rerank", {"documents": []}, 400, "documents"),
        ("/v1/rerank", {"documents": "a"}, 400, "documents"),
        ("/v1/rerank", {"documents": [7]}, 400, "documents"),
        ("/v1/rerank", {"documents": None}, 400, "documents"),
        ("/v1/rerank", {"documents": ["a"] * 3000}, 400, "documents"),
        ("/v1/rerank", {"documents": ["\\ud800"], "truncate": "yes"}, 400, "truncate"),
        ("/v1/rerank", {"top_n": 0}, 400, "top_n"),
        ("/v1/rerank", {"return_documents": "yes"}, 400, "return_documents"),
        ("/v1/rerank", {"model": "unknown"}, 404, "model"),
        ("/v1/rerank", {"model": "tiny"}, 400, "model"),
        ("/v1/rerank", {"model": "nli"}, 400, "model"),
        ("/v1/rerank", {"documents": ["a b c " * 100], "truncate": False}, 400, "documents"),
        ("/rerank", {"documents": None, "texts": [{}]}, 400, "texts"),
        ("/v1/classify", {"query": None, "documents": None, "input": []}, 400, "input"),
        ("/v1/classify", {"query": None, "documents": None, "input": [["a"]]}, 400, "input"),
        ("/v1/classify", {"query": None, "documents": None, "input": ["a", ["b", "c"]]}, 400, "input"),
        ("/v1/classify", {"input": "a"}, 400, "query"),
        ("/v1/rerank", {"texts": ["a"]}, 400, "texts"),
        ("/rerank", {"documents": None, "texts": ["a"], "top_n": 0}, 400, "top_n"),
        ("/rerank", {"documents": None, "texts": ["a"], "return_documents": True}, 400, "return_documents"),
        ("/v1/classify", {"query": None, "documents": None, "model": "tiny", "input": "a"}, 400, "model"),
    ],
)
def test_what_is_refused(scorers, path, change, status, param):
    request = {"model": "rerank", "query": QUERY, "documents": DOCUMENTS, **change}
    response = scorers.client.post(path, json=request)
    assert response.status_code == status, response.text
    assert response.json()["error"]["param"] == param, response.text


def test_an_embedding_model_says_what_it_does(scorers):
    response = scorers.client.post("/v1/rerank", json={"model": "tiny", "query": QUERY, "documents": DOCUMENTS})
    assert "gives no scores" in response.json()["error"]["message"]
    refused = scorers.embed(input="a", model="rerank")
    assert refused.status_code == 400
    assert refused.json()["error"]["message"] == "'rerank' is a reranker: it does not support embeddings"


@pytest.mark.parametrize("path", ["/v1/embeddings/sparse", "/embed_sparse"])
def test_sparse_vectors(serve, path):
    server = serve()
    server.manager.register("sparse", str(FIXTURES / "splade_bert"))
    wanted = [
        [{"index": index, "value": value} for index, value in zip(one.indices, one.values, strict=True)]
        for one in server.manager.embed_sparse(DOCUMENTS, "sparse")
    ]
    for request in ({"inputs": DOCUMENTS}, {"input": DOCUMENTS, "model": "sparse"}, {"inputs": DOCUMENTS, "model": ""}):
        response = server.client.post(path, json=request)
        assert response.status_code == 200, response.text
        assert response.json() == wanted
    assert server.client.post(path, json={"inputs": DOCUMENTS[0]}).json() == wanted[:1]


def test_a_large_answer_of_sparse_vectors_is_written_off_the_loop(serve, monkeypatch):
    server = serve()
    server.manager.register("sparse", str(FIXTURES / "splade_bert"))
    apart, original = [], server.service.apart

    async def noted(function, *args):
        apart.append(function)
        return await original(function, *args)

    monkeypatch.setattr(server.service, "apart", noted)
    small = server.client.post("/embed_sparse", json={"inputs": DOCUMENTS})
    assert apart == []
    monkeypatch.setattr(sparse, "_LARGE", sum(map(len, small.json())) - 1)
    large = server.client.post("/embed_sparse", json={"inputs": DOCUMENTS})
    assert apart == [sparse._body]
    assert large.content == small.content
    assert large.headers["content-type"] == small.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("request_", "status", "param"),
    [
        ({"inputs": []}, 400, "inputs"),
        ({}, 400, "inputs"),
        ({"inputs": "a", "input": "b"}, 400, "input"),
        ({"inputs": [7]}, 400, "inputs"),
        ({"inputs": "a", "model": "unknown"}, 404, "model"),
        ({"inputs": "a", "model": "tiny"}, 400, "model"),
        ({"inputs": "a", "model": "english_sentence"}, 400, "model"),
        ({"inputs": "a", "prompt_name": "unknown"}, 400, "prompt_name"),
        ({"inputs": "a", "truncate": "yes"}, 400, "truncate"),
        ({"inputs": "a b c " * 100, "truncate": False}, 400, "inputs"),
    ],
)
def test_what_is_refused_of_sparse_vectors(serve, request_, status, param):
    server = serve()
    server.manager.register("sparse", str(FIXTURES / "splade_bert"))
    response = server.client.post("/v1/embeddings/sparse", json=request_)
    assert response.status_code == status, response.text
    assert response.json()["error"]["param"] == param, response.text


def test_sparse_vectors_need_a_model(serve):
    refused = serve().client.post("/embed_sparse", json={"inputs": "a"})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "model"
