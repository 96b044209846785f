"""Sparse vectors, vectors of tokens and rerankers in a collection; the embedded Qdrant and the client's server mode."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from conftest import ENGLISH_MODEL, FIXTURES, TURKISH_MODEL, tiny
from model_manager import maxsim
from model_manager.errors import ArgumentError, InputError, NotFiniteError, TaskError
from model_manager.integrations.qdrant import Backoff, CollectionError, QdrantIndexer, point_id
from model_manager.semantic import BM25
from qdrant_client import QdrantClient, models
from qdrant_server import QdrantServer
from qdrants import SLOT

SPLADE = str(FIXTURES / "splade_bert")
RERANKER = str(FIXTURES / "rerank_bert")
FAQ = [
    ("e104", "E-104 hatası yağ basıncı düşükken görünür.", "arıza"),
    ("e105", "E-105 hatası motor ısınınca görünür.", "arıza"),
    ("izin", "Yıllık izin formunu insan kaynaklarına verin.", "ik"),
    ("servis", "Servisler sabah yedide kapıdan kalkar.", "ulaşım"),
    ("yemek", "Yemekhane öğlen on ikide açılır.", "ik"),
    ("rulman", "Yedek rulman 6204-2RS depodan istenir.", "depo"),
]
DOCUMENTS = [{"id": name, "text": text, "metadata": {"konu": topic}} for name, text, topic in FAQ]


@pytest.fixture(scope="module")
def server():
    with QdrantServer() as made:
        yield made


@pytest.fixture(params=["embedded", "server"])
def client(request, tmp_path):
    """Both modes of qdrant-client."""
    if request.param == "embedded":
        made = QdrantClient(path=str(tmp_path / "qdrant"))
    else:
        server = request.getfixturevalue("server")
        server.requests.clear()
        made = QdrantClient(url=server.url, check_compatibility=False)
        for one in made.get_aliases().aliases:
            made.update_collection_aliases(
                [models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=one.alias_name))]
            )
        for name in ("notes", "other"):
            made.delete_collection(name)
    yield made
    made.close()


@pytest.fixture
def make(shared, client):
    def build(collection="notes", **settings):
        no_pause = Backoff(attempts=2, first=0, longest=0)
        defaults = {"model": SLOT, "manager": shared, "backoff": no_pause}
        return QdrantIndexer(collection, client, **{**defaults, **settings})

    return build


def ids(hits):
    return [hit.id for hit in hits]


def fused(*rankings):
    """The reference of reciprocal rank fusion with Qdrant's constant of 2."""
    scores = {}
    for ranking in rankings:
        for rank, one in enumerate(ranking):
            scores[one] = scores.get(one, 0) + 1 / (2 + rank)
    return scores


def test_a_search_fuses_the_ranks_of_both_vectors(make, client):
    indexer = make(sparse="bm25")
    assert indexer.add_documents(DOCUMENTS).indexed == 6
    point = client.retrieve("notes", [point_id("e104")], with_vectors=True)[0]
    assert point.vector.keys() == {"dense", "sparse"}
    own = BM25("turkish").document(FAQ[0][1])
    assert point.vector["sparse"].indices == own.indices.tolist()
    np.testing.assert_allclose(point.vector["sparse"].values, own.values, rtol=1e-6)

    question = "E104 hatası nedir?"
    dense = indexer.search(question, mode="dense", score_threshold=None)
    sparse = indexer.search(question, mode="sparse")
    hybrid = indexer.search(question)
    assert ids(sparse) == ["e104", "e105"]
    assert sparse[0].score > 2 * sparse[1].score
    wanted = fused(ids(dense), ids(sparse))
    assert {hit.id: pytest.approx(hit.score, abs=1e-6) for hit in hybrid} == wanted
    assert hybrid == indexer.search(question, mode="hybrid")
    assert [hit.score for hit in hybrid] == sorted((hit.score for hit in hybrid), reverse=True)
    assert hybrid[0].metadata == {"konu": "arıza"}
    assert ids(indexer.search(question, limit=2)) == ids(hybrid)[:2]
    # All kinds of search respect filters, also of the candidates.
    for mode in ("dense", "sparse", "hybrid"):
        found = indexer.search("hatası izin", mode=mode, filters={"konu": "ik"}, score_threshold=None)
        assert found
        assert {hit.metadata["konu"] for hit in found} == {"ik"}
    assert indexer.add_documents(DOCUMENTS).skipped == 6


def test_asyncio_finds_the_same(make):
    indexer = make(sparse=SPLADE, rerank=RERANKER, multi=True)
    indexer.add_documents(DOCUMENTS)

    async def both(**options):
        return await indexer.asearch("E104 hatası", limit=3, **options)

    for options in ({}, {"mode": "dense", "score_threshold": None}, {"mode": "sparse"}, {"rerank": False}):
        assert asyncio.run(both(**options)) == indexer.search("E104 hatası", limit=3, **options)


def test_sparse_vectors_of_a_model(make, shared, client):
    indexer = make(sparse=SPLADE)
    indexer.add_documents(DOCUMENTS)
    assert client.get_collection("notes").config.params.sparse_vectors["sparse"].modifier in (None, "none")
    question = "where is the bearing 6204"
    query, *texts = shared.embed_sparse([question, *(text for _, text, _ in FAQ)], SPLADE)
    scores = {name: query.dot(text) for (name, _, _), text in zip(FAQ, texts, strict=True)}
    found = {hit.id: hit.score for hit in indexer.search(question, mode="sparse")}
    assert found == {name: pytest.approx(score, rel=1e-5) for name, score in scores.items() if score > 0}
    best = max(found.values())
    assert len(indexer.search(question, mode="sparse", score_threshold=best - 1e-4)) < len(found)


def test_a_reranker_orders_the_candidates(make, shared):
    plain, indexer = make(sparse="bm25"), make(sparse="bm25", rerank=RERANKER)
    indexer.add_documents(DOCUMENTS)
    question = "E104 hatası"
    hits = indexer.search(question, limit=3)
    wanted = shared.rerank(question, [text for _, text, _ in FAQ], RERANKER, top_n=3)
    assert ids(hits) == [FAQ[one.index][0] for one in wanted]
    assert [hit.score for hit in hits] == pytest.approx([one.score for one in wanted], abs=1e-6)
    assert indexer.search(question, limit=3, rerank=False) == plain.search(question, limit=3)
    # Only candidates are read by the reranker: with as many candidates as hits it may only order them.
    few = indexer.search(question, limit=2, candidates=2)
    assert set(ids(few)) == set(ids(plain.search(question, limit=2, candidates=2)))
    assert indexer.search(question, mode="sparse", filters={"konu": "yok"}) == []
    # A reranker changes nothing that is stored: an indexer without one, or with another one, may use the collection.
    assert make(sparse="bm25", rerank=str(FIXTURES / "rerank_xlmr")).search(question)


def test_vectors_of_tokens_order_the_candidates(make, shared, client):
    indexer = make(sparse="bm25", multi=True, rerank="multi")
    indexer.add_documents(DOCUMENTS)
    params = client.get_collection("notes").config.params.vectors
    assert params["multi"].multivector_config.comparator == models.MultiVectorComparator.MAX_SIM
    question = "E104 hatası"
    query, *texts = shared.embed_multi([question, *(text for _, text, _ in FAQ)], SLOT)
    unit = [matrix / np.linalg.norm(matrix, axis=1, keepdims=True) for matrix in (query, *texts)]
    scores = dict(zip((name for name, _, _ in FAQ), maxsim(unit[0], unit[1:]).tolist(), strict=True))
    hits = indexer.search(question, limit=6)
    assert {hit.id: hit.score for hit in hits} == {name: pytest.approx(s, rel=1e-4) for name, s in scores.items()}
    assert ids(hits) == sorted(scores, key=scores.__getitem__, reverse=True)
    assert {hit.id for hit in indexer.search(question, mode="sparse")} == {"e104", "e105"}
    assert len(indexer.search(question, mode="dense", limit=2, score_threshold=None)) == 2
    # Without rerank="multi" they are stored only.
    assert make(sparse="bm25", multi=True).search(question)[0].score < 1.1


@pytest.mark.parametrize(
    ("name", "width"), [("colbert", 8), ("colbert_modernbert", 8), ("colbert_lfm2", 8), ("bge_m3", 12)]
)
def test_token_vectors_of_another_width(make, shared, client, name, width):
    """ColBERT has no dense vectors and reads a question in another form; those of bge-m3 have another length."""
    folder = str(FIXTURES / name)
    indexer = make(multi=folder, rerank="multi")
    report = indexer.add_documents(DOCUMENTS)
    assert (report.indexed, report.failed) == (len(FAQ), 0)
    assert client.get_collection("notes").config.params.vectors["multi"].size == width
    question = "E104 hatası"
    query = shared.embed_multi(question, folder, kind="query")
    texts = shared.embed_multi([text for _, text, _ in FAQ], folder, kind="document")
    scores = dict(zip((one for one, _, _ in FAQ), maxsim(query, texts).tolist(), strict=True))
    expected = {one: pytest.approx(score, rel=1e-4) for one, score in scores.items()}
    hits = indexer.search(question, limit=6, score_threshold=None)
    assert {hit.id: hit.score for hit in hits} == expected
    hits = asyncio.run(indexer.asearch(question, limit=6, score_threshold=None))
    assert {hit.id: hit.score for hit in hits} == expected


def test_words_alone_find_documents_without_a_model(make, client, monkeypatch, shared):
    monkeypatch.setattr(type(shared), "embed", None)
    indexer = make(model=None, dense=False, sparse="bm25")
    assert indexer.model == "bm25"
    assert indexer.add_documents(DOCUMENTS).indexed == 6
    assert ids(indexer.search("HATASI")) == ["e104", "e105"] or ids(indexer.search("HATASI")) == ["e105", "e104"]
    assert client.get_collection("notes").config.params.sparse_vectors["sparse"].modifier == models.Modifier.IDF
    with pytest.raises(InputError, match="mode='hybrid': it was made without dense vectors"):
        indexer.search("a", mode="hybrid")


def test_a_question_or_a_document_without_terms(make):
    indexer = make(sparse="bm25")
    assert indexer.add_documents([*DOCUMENTS, {"id": "none", "text": "ve veya ?!"}]).indexed == 7
    assert indexer.search("ve", mode="sparse") == []
    hybrid, dense = indexer.search("ve"), indexer.search("ve", mode="dense", score_threshold=None)
    assert ids(hybrid) == ids(dense)
    assert "none" in ids(dense)


def test_chunks_are_grouped_in_every_mode(make):
    long = " ".join(f"{number}. adımda E-{number} kodu görünür ve hat durur." for number in range(100, 130))
    indexer = make(sparse="bm25", multi=True, rerank="multi", chunk=20)
    indexer.add_documents([{"id": "uzun", "text": long}, *DOCUMENTS])
    for options in ({}, {"rerank": False}, {"mode": "sparse", "rerank": False}, {"mode": "dense"}):
        hits = indexer.search("E-117 kodu", limit=10, **{"score_threshold": None, **options})
        assert len(set(ids(hits))) == len(hits)
        best = next(hit for hit in hits if hit.id == "uzun")
        assert long[slice(*best.span)] == best.text
        if options.get("mode") == "sparse":
            assert "E-117" in best.text


@pytest.fixture
def foreign(client):
    """A collection of another program."""

    def create(sparse=None, **vectors):
        client.create_collection(
            "notes",
            vectors_config={
                name: models.VectorParams(size=size, distance=models.Distance.COSINE) for name, size in vectors.items()
            },
            sparse_vectors_config={
                name: models.SparseVectorParams(modifier=modifier) for name, modifier in (sparse or {}).items()
            },
        )

    return create


IDF = models.Modifier.IDF


def test_named_vectors_of_an_existing_collection_are_found(make, foreign, client):
    foreign({"words": IDF}, text=32, image=512)
    indexer = make(sparse="bm25")
    assert indexer.add_documents(DOCUMENTS).indexed == 6
    assert client.retrieve("notes", [point_id("izin")], with_vectors=True)[0].vector.keys() == {"text", "words"}
    assert ids(make(sparse="bm25").search("izin formu"))[0] == "izin"
    assert ids(make().search("Yıllık izin formunu insan kaynaklarına verin.", limit=1)) == ["izin"]


def test_a_name_decides_between_several(make, foreign):
    foreign({"a": IDF, "b": IDF}, first=32, second=32)
    with pytest.raises(
        CollectionError, match=r"dense vectors 'first', 'second', of which several fit.*vectors={'dense'"
    ):
        make().add_documents(DOCUMENTS)
    with pytest.raises(CollectionError, match=r"sparse vectors 'a', 'b', of which several fit this model"):
        make(sparse="bm25", vectors={"dense": "second"}).search("a")
    indexer = make(sparse="bm25", vectors={"dense": "second", "sparse": "b"})
    assert indexer.add_documents(DOCUMENTS).indexed == 6
    assert ids(indexer.search("servisler"))[0] == "servis"
    with pytest.raises(CollectionError, match=r"has no dense vector 'third'; its dense vectors: 'first', 'second'"):
        make(vectors={"dense": "third"}).search("a")


def test_vectors_that_a_collection_lacks(make, foreign, client):
    foreign({"plain": None}, text=32)
    with pytest.raises(CollectionError, match="does not weigh terms by their rarity"):
        make(sparse="bm25").search("a")
    assert make(sparse=SPLADE).add_documents(DOCUMENTS).indexed == 6
    with pytest.raises(CollectionError, match="has no multi vectors; reembed fills a new collection"):
        make(multi=True).search("a")
    client.delete_collection("notes")
    make().add_documents(DOCUMENTS)
    with pytest.raises(CollectionError, match="has no sparse vectors; reembed fills a new collection"):
        make(sparse="bm25").add_documents(DOCUMENTS)
    with pytest.raises(CollectionError, match="has no dense vector 'x'; its dense vectors: ''"):
        make(vectors={"dense": "x"}).search("a")
    client.delete_collection("notes")
    foreign({"idf": IDF}, text=16)
    with pytest.raises(CollectionError, match="has done already"):
        make(sparse=SPLADE, dimensions=16).search("a")
    with pytest.raises(CollectionError, match="'text' of collection 'notes' has vectors of 16 dimensions, the model's"):
        make().search("a")


def test_an_unnamed_vector_may_have_a_sparse_one_beside_it(make, client):
    client.create_collection(
        "notes",
        vectors_config=models.VectorParams(size=32, distance=models.Distance.COSINE),
        sparse_vectors_config={"words": models.SparseVectorParams(modifier=IDF)},
    )
    indexer = make(sparse="bm25")
    assert indexer.add_documents(DOCUMENTS).indexed == 6
    assert ids(indexer.search("servisler"))[0] == "servis"


def test_another_sparse_or_token_model_is_refused_with_both_names(client):
    with tiny() as manager:

        def make(**settings):
            return QdrantIndexer("notes", client, **{"model": TURKISH_MODEL, "manager": manager, **settings})

        make(sparse="bm25", multi=True).add_documents(DOCUMENTS)
        with pytest.raises(CollectionError, match=r"sparse vectors of 'bm25 \(turkish\)', not of 'bm25 \(english\)'"):
            make(sparse="bm25", language="english").search("a")
        with pytest.raises(CollectionError, match=r"of 'bm25 \(turkish\)' with other weights, settings or terms"):
            make(sparse=BM25("turkish", k1=2)).add_documents(DOCUMENTS)
        with pytest.raises(CollectionError, match=r"holds multi vectors of .*xlmr', not of .*bert_wordpiece'"):
            make(multi=ENGLISH_MODEL).search("a")
        with pytest.raises(CollectionError, match=r"holds vectors of .*xlmr', not of .*bert_wordpiece'"):
            make(model=ENGLISH_MODEL, sparse="bm25").search("a")
        assert make(sparse=BM25("turkish")).search("izin")
        assert make().search("izin", score_threshold=None)


def test_models_of_another_task_are_refused(make, client):
    for call in (lambda one: one.add_documents(DOCUMENTS), lambda one: one.search("a")):
        with pytest.raises(TaskError, match=r"'turkish_sentence' cannot embed_sparse; it can embed, embed_multi"):
            call(make(sparse=SLOT))
        with pytest.raises(TaskError, match=r"rerank_bert' cannot embed_multi; it can rerank, classify"):
            call(make(multi=RERANKER))
    assert not client.collection_exists("notes")
    make().add_documents(DOCUMENTS)
    with pytest.raises(TaskError, match="rerank='turkish_sentence' is no reranker: its model can embed, embed_multi"):
        make(rerank=SLOT).search("a")
    with pytest.raises(TaskError, match="rerank='turkish_sentence' is no reranker"):
        asyncio.run(make(rerank=SLOT).asearch("a"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rerank": "multi"}, "set multi too"),
        ({"rerank": ""}, "rerank is empty"),
        ({"sparse": ""}, "sparse is empty"),
        ({"language": "english"}, 'language is for sparse="bm25"'),
        ({"sparse": "bm25", "language": "german"}, "language='german': must be one of turkish, english, auto"),
        ({"dense": False, "model": None}, "needs sparse ones"),
        ({"dense": False, "sparse": "bm25", "chunk": 20, "model": None}, "belong to dense vectors"),
        ({"dense": False, "sparse": "bm25"}, "belong to dense vectors"),
        ({"dense": False, "sparse": "bm25", "model": None, "multi": True}, "there is none: name a model"),
        ({"vectors": {"image": "a"}}, "the kinds of vectors are dense, sparse, multi, not 'image'"),
        ({"vectors": {"dense": ""}}, "must be a text"),
        ({"vectors": {"dense": "a", "sparse": "a"}}, "each kind of vectors needs a name of its own"),
        ({"multi": ""}, "multi is empty"),
    ],
)
def test_settings_without_sense(make_indexer, fake, settings, message):
    with pytest.raises(InputError, match=message):
        make_indexer(fake, **settings)


@pytest.mark.parametrize("settings", [{"sparse": 3}, {"vectors": ["a"]}])
def test_settings_of_another_type(make_indexer, fake, settings):
    with pytest.raises(TypeError, match=next(iter(settings))) as raised:
        make_indexer(fake, **settings)
    assert raised.value.param == next(iter(settings))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "fuzzy"}, "mode='fuzzy': must be one of dense, sparse, hybrid"),
        ({"mode": "sparse"}, r"mode='sparse': it has no sparse vectors \(give the indexer sparse="),
        ({"mode": "hybrid"}, "mode='hybrid': it has no sparse vectors"),
        ({"rerank": True}, "rerank=True: the indexer has no reranker"),
        ({"limit": 0}, "limit=0"),
        ({"limit": 60, "candidates": 50}, "candidates=50: must be at least limit=60"),
        ({"query": " \n"}, "the query is empty"),
        ({"score_threshold": float("nan")}, "score_threshold=nan: must be a finite number"),
        ({"score_threshold": "high"}, "score_threshold='high': must be a finite number"),
        ({"filters": {"when": None}}, "filter 'when': a value must be"),
    ],
)
def test_arguments_of_a_search(make_indexer, fake, arguments, message):
    with pytest.raises(ArgumentError, match=message) as raised:
        make_indexer(fake).search(**{"query": "a", **arguments})
    assert raised.value.param == list(arguments)[-1]


def test_scores_that_are_not_finite(make, monkeypatch, shared):
    indexer = make(sparse="bm25", rerank=RERANKER)
    indexer.add_documents(DOCUMENTS)

    def rerank(*_arguments, **_options):
        raise NotFiniteError("a score is NaN")

    monkeypatch.setattr(shared, "rerank", rerank)
    with pytest.raises(NotFiniteError):
        indexer.search("a")


def test_points_without_a_text_cannot_be_reranked(make, client):
    indexer = make(rerank=RERANKER)
    indexer.create_collection()
    client.upsert("notes", [models.PointStruct(id=7, vector=[0.5] * 32, payload={"title": "a"})])
    with pytest.raises(
        CollectionError, match="the point of '7' in collection 'notes' has no text that could be rerank"
    ):
        indexer.search("a", score_threshold=None)
    assert ids(indexer.search("a", score_threshold=None, rerank=False)) == ["7"]


def test_what_a_server_is_asked(server, shared):
    """One request with two prefetches that have the filter and the limits; the fusion is Qdrant's."""
    client = QdrantClient(url=server.url, check_compatibility=False)
    client.delete_collection("notes")
    indexer = QdrantIndexer("notes", client, SLOT, manager=shared, sparse="bm25")
    indexer.add_documents(DOCUMENTS)
    indexer.search("izin")
    server.requests.clear()
    indexer.search("izin formu", limit=20, filters={"konu": "ik"}, score_threshold=0.25, hnsw_ef=77)
    (path, body), after = server.requests
    assert after == ("GET /collections/notes", None)
    assert path == "POST /collections/notes/points/query"
    dense, sparse = body.pop("prefetch")
    condition = {"must": [{"key": "konu", "match": {"value": "ik"}}]}
    query = BM25("turkish").query("izin formu")
    assert dense.pop("query") == pytest.approx(shared.embed("izin formu", SLOT).tolist())
    assert dense == {
        "using": "dense", "filter": condition, "params": {"hnsw_ef": 77}, "score_threshold": 0.25, "limit": 80
    }  # fmt: skip
    assert sparse == {
        "query": {"indices": query.indices.tolist(), "values": query.values.tolist()},
        "using": "sparse",
        "filter": condition,
        "limit": 80,
    }
    assert body == {"query": {"fusion": "rrf"}, "limit": 20, "with_payload": True, "with_vector": False}
    client.close()
