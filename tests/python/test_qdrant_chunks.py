"""Documents in chunks, and collections that know their model."""

from __future__ import annotations

import contextlib
import json
import logging

import numpy as np
import pytest
from conftest import ENGLISH_MODEL, TURKISH_MODEL, tiny
from model_manager.errors import ArgumentError, InputError
from model_manager.integrations.qdrant import CollectionError, QdrantIndexer, StoreError, point_id
from qdrant_client import QdrantClient, models
from qdrant_server import QdrantServer
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
        options = {"client": embedded, "model": SLOT, "manager": shared, "chunk": 20, "overlap": 3, **options}
        return QdrantIndexer("notes", **options)

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


def test_metadata_with_the_names_of_chunks_is_refused(chunked, embedded):
    given = [{"id": "a", "text": LONG, "metadata": {"chunks": 3, "parent_id": "x"}}, DOCUMENTS[1]]
    report = chunked().add_documents(given)
    assert (report.indexed, report.failed) == (1, 1)
    assert "its metadata has the name 'chunks', 'parent_id', which the indexer uses" in report.failures[0].reason


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


class Interrupted:
    """A client whose request of this number is interrupted, before or after it took effect."""

    def __init__(self, client, number, when):
        self._client = client
        self._number = number
        self._when = when
        self.init_options = client.init_options
        self.requests = []

    def __getattr__(self, name):
        def call(*arguments, **options):
            self.requests.append(name)
            wanted = len(self.requests) == self._number
            if wanted and self._when == "before":
                raise KeyboardInterrupt
            result = getattr(self._client, name)(*arguments, **options)
            if wanted:
                raise KeyboardInterrupt
            return result

        return call


class Between:
    """A client before whose request of this number something else happens, once."""

    def __init__(self, client, number, event):
        self._client = client
        self._left = number
        self._event = event
        self.init_options = client.init_options

    def __getattr__(self, name):
        def call(*arguments, **options):
            self._left -= 1
            if self._left == 0:
                self._event()
            return getattr(self._client, name)(*arguments, **options)

        return call


def chunks_of(client):
    fields = ("chunk", "chunks", "text", "content_hash")
    return sorted(tuple(point.payload[field] for field in fields) for point in points_of(client).values())


def alone(chunked, document):
    """What a collection holds that has never had another version."""
    client = QdrantClient(":memory:")
    chunked(client=client).add_documents([document])
    return chunks_of(client)


def version(name, parts):
    paragraphs = (f"{name} paragraph number {part} says something" for part in range(parts))
    return {"id": "uzun", "text": "\n\n".join(paragraphs)}


@pytest.mark.parametrize("sizes", [(3, 6, 2), (6, 2, 6), (None, 5, 2), (4, 1, 4)])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("again", ["first", "second", "third"])
def test_no_rest_of_a_version_whose_run_was_interrupted(chunked, sizes, when, again):
    """Whatever request is interrupted, and whichever version comes next, what is stored is that version alone."""
    stored, interrupted, other = sizes
    first = None if stored is None else version("first", stored)
    second = version("second", interrupted)
    last = {"first": first or second, "second": second, "third": version("third", other)}[again]
    for number in range(1, 50):
        client = QdrantClient(":memory:")
        if first is not None:
            chunked(client=client).add_documents([first])
        faulty = Interrupted(client, number, when)
        with contextlib.suppress(KeyboardInterrupt):
            chunked(client=faulty).add_documents([second])
        chunked(client=client).add_documents([last])
        assert chunks_of(client) == alone(chunked, last), faulty.requests
        if len(faulty.requests) < number:
            break
    else:
        pytest.fail("there are more requests than were interrupted")


def test_no_rest_when_one_id_comes_twice(chunked, embedded):
    chunked().add_documents([version("first", 9)])
    chunked().add_documents([version("second", 5), version("third", 2)])
    assert chunks_of(embedded) == alone(chunked, version("third", 2))


def test_no_rest_of_a_version_that_could_not_be_written(chunked):
    """The first version's later chunks are there when its first one is refused; a shorter version follows."""
    client = QdrantClient(":memory:")
    faulty = Interrupted(client, 0, "before")
    indexer = chunked(client=faulty)
    real = indexer._store.write
    writes = []

    def refusing(ids, vectors, payloads):
        writes.append(ids)
        if len(writes) == 2:
            raise StoreError("refused")
        real(ids, vectors, payloads)

    indexer._store.write = refusing
    report = indexer.add_documents([version("first", 6), version("second", 2)], batch_size=1)
    assert (report.failed, report.indexed) == (1, 1)
    assert chunks_of(client) == alone(chunked, version("second", 2))
    assert faulty.requests.count("delete") == 1


@pytest.mark.parametrize("sizes", [(6, 2), (2, 6), (4, 4)])
@pytest.mark.parametrize("number", range(1, 12))
def test_two_runs_at_once_leave_one_version(chunked, sizes, number):
    """The second run comes between two requests of the first one."""
    first, second = version("first", sizes[0]), version("second", sizes[1])
    client = QdrantClient(":memory:")
    chunked(client=client).add_documents([version("old", 3)])
    between = Between(client, number, lambda: chunked(client=client).add_documents([second]))
    report = chunked(client=between).add_documents([first])
    assert (report.indexed, report.failed) == (1, 0)
    assert chunks_of(client) in (alone(chunked, first), alone(chunked, second))


def test_a_document_that_other_runs_write_all_the_time_fails(chunked, monkeypatch):
    client = QdrantClient(":memory:")
    indexer = chunked(client=client)
    monkeypatch.setattr(type(indexer._store), "chunk_hashes", lambda _store, parents: {one: ["x"] for one in parents})
    report = indexer.add_documents([version("first", 3)])
    assert (report.indexed, report.failed) == (0, 1)
    assert "another run writes other chunks of this document at the same time" in report.failures[0].reason
    monkeypatch.undo()
    assert chunked(client=client).add_documents([version("first", 3)]).indexed == 1


def test_a_new_collection_is_filled_without_looking_for_a_rest(chunked):
    faulty = Interrupted(QdrantClient(":memory:"), 0, "before")
    chunked(client=faulty).add_documents(DOCUMENTS, batch_size=1)
    assert "delete" not in faulty.requests


def test_a_server_finds_chunks_by_an_index(shared):
    with QdrantServer() as server:
        options = {"model": SLOT, "manager": shared, "chunk": 20, "url": server.url}
        for parts in (6, 3):
            with QdrantIndexer("notes", **options) as indexer:
                indexer.add_documents([version("any", parts), DOCUMENTS[1]])
        assert server.indexes["notes"]["parent_id"]["data_type"] == "keyword"
        assert len(server.bodies("/index")) == 1
        assert "parent_id" in json.dumps(server.bodies("/points/delete")[-1])


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


@pytest.mark.parametrize("named", [True, False])
def test_whole_documents_and_chunks_are_not_mixed(chunked, embedded, named):
    """A search for the best chunk of each document would never find a whole one."""
    if not named:  # a server before 1.16 keeps no names of models
        size = models.VectorParams(size=32, distance=models.Distance.COSINE)
        embedded.create_collection("notes", vectors_config=size)
    plain = chunked(chunk=False, overlap=0)
    plain.add_documents(DOCUMENTS[1:2])
    for use in (lambda: chunked().add_documents(DOCUMENTS), chunked().create_collection):
        with pytest.raises(CollectionError, match=r"'notes' holds whole documents, .* without chunk, choose another"):
            use()
    if named:
        assert [hit.id for hit in chunked().search("servis", score_threshold=None)] == ["kısa"]
    else:
        with pytest.raises(CollectionError, match="'notes' holds whole documents"):
            chunked().search("servis", score_threshold=None)
    assert embedded.count("notes").count == 1
    assert chunked().create_collection(recreate=True)
    chunked().add_documents(DOCUMENTS)
    with pytest.raises(CollectionError, match=r"'notes' holds chunks of documents, .*: give it chunk=, choose another"):
        plain.add_documents(DOCUMENTS)
    assert len(plain.search("servis", score_threshold=None)) == 3


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
    with pytest.raises(InputError, match="must be at least 0"):
        QdrantIndexer("notes", embedded, chunk=-1)
    for overlap in (8, 9):
        with pytest.raises(InputError, match=f"overlap={overlap} must be smaller than chunk=8"):
            QdrantIndexer("notes", embedded, chunk=8, overlap=overlap)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"chunk": 1, "overlap": 0}, "chunk=1 leaves no place for text"),
        ({"chunk": 1000, "overlap": 0}, "chunk=1000 is more than .* reads: 24"),
        ({"chunk": 8, "overlap": 7}, "overlap=7 must be smaller than the 6 tokens"),
    ],
)
def test_a_size_that_does_not_fit_is_no_fault_of_the_documents(chunked, embedded, settings, words):
    with pytest.raises(ArgumentError, match=words) as raised:
        chunked(**settings).add_documents(DOCUMENTS)
    assert raised.value.param in settings
    assert not embedded.collection_exists("notes")


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
    embedded.create_collection("notes", vectors_config=models.VectorParams(size=32, distance=models.Distance.COSINE))
    indexer = QdrantIndexer("notes", embedded, SLOT, manager=shared)
    assert indexer.add_documents(["bir"]).indexed == 1
    assert indexer.search("bir", score_threshold=None)
