"""Documents in chunks, and collections that know their model."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from conftest import ENGLISH_MODEL, TURKISH_MODEL, tiny
from model_manager.errors import InputError
from model_manager.integrations.qdrant import CollectionError, QdrantIndexer, point_id
from qdrants import SLOT

LONG = (
    "Fabrikamız 1986'da kuruldu. Çalışma saatleri 08.00 ile 17.00 arasındadır. Yemek molası öğlen başlar.\n\n"
    "İzin için insan kaynaklarına yazın! Cevap iki gün içinde gelir. Servisler kapıdan kalkar."
)
DOCUMENTS = [
    {"id": "uzun", "text": LONG, "metadata": {"dil": "tr"}},
    {"id": "kısa", "text": "Servis saatleri", "metadata": {"dil": "tr"}},
    "Kimliksiz bir belge, o da uzunca: fabrika, izin, yemek, servis ve başka şeyler.",
]


@pytest.fixture
def chunked(embedded, shared):
    def make(**options):
        options = {"model": SLOT, "manager": shared, "chunk": 20, "overlap": 3, **options}
        return QdrantIndexer("notes", embedded, **options)

    return make


def points_of(client):
    points, _ = client.scroll("notes", limit=10_000, with_vectors=True)
    return {str(point.id): point for point in points}


def test_a_document_is_one_point_for_each_chunk(chunked, embedded, shared):
    indexer = chunked()
    report = indexer.add_documents(DOCUMENTS)
    chunks = shared.chunk(LONG, SLOT, max_tokens=20, overlap=3)
    assert len(chunks) > 4
    points = points_of(embedded)
    own = [point for point in points.values() if point.payload["original_doc_id"] == "uzun"]
    own.sort(key=lambda point: point.payload["chunk"])
    assert [point.payload["text"] for point in own] == [chunk.text for chunk in chunks]
    vectors = shared.embed([chunk.text for chunk in chunks], SLOT, truncate=False)
    for number, (point, chunk) in enumerate(zip(own, chunks, strict=True)):
        assert point.payload["parent_id"] == point_id("uzun") == str(own[0].id)
        assert LONG[point.payload["chunk_start"] : point.payload["chunk_end"]] == chunk.text
        assert (point.payload["chunk"], point.payload["chunks"], point.payload["dil"]) == (number, len(chunks), "tr")
        np.testing.assert_allclose(point.vector, vectors[number], atol=1e-6)
    assert (report.indexed, report.points, report.truncated) == (3, len(points), 0)
    assert len({point.payload["content_hash"] for point in own}) == 1


def test_a_second_run_skips_and_a_shorter_text_leaves_nothing_behind(chunked, embedded):
    chunked().add_documents(DOCUMENTS[:2])
    before = points_of(embedded)
    again = chunked().add_documents(DOCUMENTS[:2])
    assert (again.indexed, again.skipped, again.points) == (0, 2, 0)
    shorter = chunked().add_documents([{**DOCUMENTS[0], "text": LONG[:60]}])
    assert (shorter.indexed, shorter.updated) == (1, 1)
    after = points_of(embedded)
    assert len(after) < len(before)
    assert {p.payload["chunks"] for p in after.values() if p.payload["original_doc_id"] == "uzun"} == {shorter.points}
    longer = chunked().add_documents([DOCUMENTS[0]])
    assert longer.updated == 1
    assert points_of(embedded).keys() == before.keys()
    # Other sizes of chunks are other points.
    other = chunked(chunk=24, overlap=0).add_documents(DOCUMENTS[:2])
    assert other.updated == 2


def test_an_ended_run_is_resumed_without_a_rest(chunked, embedded, monkeypatch):
    chunked().add_documents(DOCUMENTS[:1])
    indexer = chunked()
    real = indexer._store.write
    writes = []

    def failing(ids, vectors, payloads):
        writes.append(ids)
        if len(writes) == 2:
            raise KeyboardInterrupt
        real(ids, vectors, payloads)

    monkeypatch.setattr(indexer._store, "write", failing)
    with pytest.raises(KeyboardInterrupt):
        indexer.add_documents([{**DOCUMENTS[0], "text": LONG[:100]}])
    # The first point, with the hash, was not replaced: the next run does the whole document again.
    report = chunked().add_documents([{**DOCUMENTS[0], "text": LONG[:100]}])
    assert report.indexed == 1
    assert {p.payload["chunks"] for p in points_of(embedded).values()} == {report.points}


def test_a_search_finds_the_best_chunk_of_each_document(chunked):
    indexer = chunked()
    indexer.add_documents(DOCUMENTS)
    hits = indexer.search("servis", limit=10, score_threshold=None)
    assert len(hits) == 3
    assert len({hit.id for hit in hits}) == 3
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    best = next(hit for hit in hits if hit.id == "uzun")
    assert LONG[slice(*best.span)] == best.text
    assert best.metadata == {"dil": "tr"}
    assert best.to_dict()["span"] == list(best.span)
    assert indexer.search("servis", filters={"dil": "tr"}, limit=1, score_threshold=None)[0].id in ("uzun", "kısa")


def test_a_collection_says_that_it_holds_chunks(chunked, embedded, shared):
    chunked().add_documents(DOCUMENTS)
    plain = QdrantIndexer("notes", embedded, SLOT, manager=shared)
    assert len(plain.search("servis", limit=10, score_threshold=None)) == 3


def test_chunks_fill_what_the_model_reads(chunked, embedded, shared):
    chunked(chunk=True, overlap=0).add_documents(DOCUMENTS)
    for point in points_of(embedded).values():
        assert shared.count_tokens(point.payload["text"], SLOT) <= 24


def test_cut_texts_are_in_the_report(embedded, shared, caplog):
    caplog.set_level(logging.WARNING, "model_manager")
    report = QdrantIndexer("notes", embedded, SLOT, manager=shared).add_documents([LONG, "kısa", LONG + "!"])
    assert report.truncated == 2
    assert "2 texts were cut" in caplog.text


def test_settings_without_sense_are_refused(embedded):
    with pytest.raises(InputError, match="set chunk too"):
        QdrantIndexer("notes", embedded, overlap=3)
    with pytest.raises(InputError, match="must not be negative"):
        QdrantIndexer("notes", embedded, chunk=-1)


def test_another_model_is_refused_with_both_names(embedded):
    with tiny() as manager:
        QdrantIndexer("notes", embedded, TURKISH_MODEL, manager=manager).add_documents(["bir belge"])
        other = QdrantIndexer("notes", embedded, ENGLISH_MODEL, manager=manager)
        for use in (lambda: other.add_documents(["bir"]), lambda: other.search("bir"), other.create_collection):
            with pytest.raises(CollectionError, match="cannot be compared") as caught:
                use()
            assert TURKISH_MODEL in str(caught.value)
            assert ENGLISH_MODEL in str(caught.value)
        assert other.create_collection(recreate=True)
        assert other.add_documents(["bir"]).indexed == 1
        assert other.search("bir", score_threshold=None)[0].text == "bir"


def test_a_collection_without_a_name_is_used_as_before(embedded, shared):
    from qdrant_client import models

    embedded.create_collection("notes", vectors_config=models.VectorParams(size=32, distance=models.Distance.COSINE))
    indexer = QdrantIndexer("notes", embedded, SLOT, manager=shared)
    assert indexer.add_documents(["bir"]).indexed == 1
    assert indexer.search("bir", score_threshold=None)
