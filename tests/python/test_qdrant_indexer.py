"""The indexer with an embedded Qdrant: stored points, a second run, search results."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import shutil
import threading
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import DIMENSION, FIXTURES, give_other_weights, run_python
from model_manager.errors import InputError
from model_manager.integrations.qdrant import Backoff, CollectionError, IndexReport, QdrantIndexer, StoreError, point_id
from model_manager.integrations.qdrant.collection import check_identity
from model_manager.integrations.qdrant.probe import differs, probe_of
from model_manager.results import SparseVector
from qdrant_client import AsyncQdrantClient, QdrantClient, models
from qdrants import SLOT, FakeClient, documents


def stored(client, collection="notes"):
    """Every point by the id of its document."""
    points, _ = client.scroll(collection, limit=10_000, with_vectors=True)
    return {point.payload["original_doc_id"]: point for point in points}


def test_what_is_stored(make_indexer, embedded, shared):
    report = make_indexer(embedded).add_documents(documents(25), batch_size=10)
    assert (report.indexed, report.updated, report.skipped, report.failed) == (25, 0, 0, 0)
    assert report.ok
    points = stored(embedded)
    assert points.keys() == {f"d{n}" for n in range(25)}
    vectors = shared.embed([f"document number {n}" for n in range(25)], SLOT)
    for n, vector in enumerate(vectors):
        point = points[f"d{n}"]
        assert point.id == point_id(f"d{n}")
        np.testing.assert_allclose(point.vector, vector, atol=1e-6)
        assert point.payload.pop("indexed_at")
        assert len(point.payload.pop("content_hash")) == 64
        assert point.payload == {
            "n": n,
            "even": n % 2 == 0,
            "text": f"document number {n}",
            "text_length": len(f"document number {n}"),
            "word_count": 3,
            "original_doc_id": f"d{n}",
        }


def test_a_second_run_writes_only_what_changed(make_indexer, embedded):
    source = documents(30)
    make_indexer(embedded).add_documents(source)
    source[3]["text"] = "rewritten"
    source[4]["metadata"] = {"n": -4}
    report = make_indexer(embedded).add_documents([*source, {"id": "new", "text": "one more"}], batch_size=7)
    assert (report.indexed, report.updated, report.skipped) == (3, 2, 28)
    points = stored(embedded)
    assert len(points) == 31
    assert points["d3"].payload["text"] == "rewritten"
    assert points["d4"].payload["n"] == -4
    assert "even" not in points["d4"].payload


def test_everything_is_written_again_when_asked(make_indexer, embedded):
    make_indexer(embedded).add_documents(documents(5))
    report = make_indexer(embedded).add_documents(documents(5), skip_unchanged=False)
    assert (report.indexed, report.updated, report.skipped) == (5, 0, 0)


def test_another_length_of_vectors_is_another_content(make_indexer, embedded):
    make_indexer(embedded, "short", dimensions=16).add_documents(documents(2))
    (vector,) = {len(point.vector) for point in stored(embedded, "short").values()}
    assert vector == 16
    assert make_indexer(embedded, "short", dimensions=16).add_documents(documents(2)).skipped == 2
    with pytest.raises(CollectionError, match=r"'short' has vectors of 16 dimensions, the model's have 32: use the"):
        make_indexer(embedded, "short").add_documents(documents(2))
    with pytest.raises(CollectionError, match="16 dimensions"):
        make_indexer(embedded, "short").search("a question")
    assert make_indexer(embedded, "short").create_collection(recreate=True)
    assert make_indexer(embedded, "short").add_documents(documents(2)).indexed == 2


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_of_several_documents_with_one_id_the_last_counts(make_indexer, embedded, batch_size):
    twice = [{"id": 1, "text": "first"}, {"id": 2, "text": "other"}, {"id": 1, "text": "second"}]
    report = make_indexer(embedded).add_documents([*twice, twice[-1]], batch_size=batch_size)
    assert (report.indexed, report.updated, report.skipped) == (3, 1, 1)
    assert report.points == (2 if batch_size == 100 else 3)
    points, _ = embedded.scroll("notes")
    assert sorted(point.payload["text"] for point in points) == ["other", "second"]


def test_documents_without_an_id_are_added_by_every_run(make_indexer, embedded):
    for _ in range(2):
        assert make_indexer(embedded).add_documents(["a text", {"text": "another"}]).indexed == 2
    assert embedded.count("notes").count == 4


def test_points_that_something_else_wrote_are_replaced(make_indexer, embedded):
    indexer = make_indexer(embedded)
    assert indexer.create_collection()
    assert not indexer.create_collection()
    embedded.upsert("notes", [models.PointStruct(id=point_id("d0"), vector=[1.0] * 32, payload={"old": True})])
    report = indexer.add_documents(documents(1))
    assert (report.indexed, report.updated) == (1, 1)
    assert "old" not in stored(embedded)["d0"].payload


def test_other_weights_of_the_same_name_are_refused(make_manager, make_indexer, embedded, tmp_path):
    """Two folders of one name, in which everything but the weights is equal; and one that is a copy."""
    folders = [tmp_path / name / "model" for name in ("old", "copy", "new")]
    for folder in folders:
        shutil.copytree(FIXTURES / "bert_plain", folder)
    give_other_weights(folders[2])
    manager = make_manager()
    old, copy, new = (
        functools.partial(make_indexer, embedded, manager=manager, model=str(folder)) for folder in folders
    )
    old().add_documents(documents(3))
    assert copy().add_documents(documents(3)).skipped == 3
    message = (
        r"holds dense vectors of other weights of .*model' \(for one text the cosine is 0\.\d+\): use those weights"
    )
    for use in (lambda: new().add_documents(documents(3)), lambda: new().search("a question")):
        with pytest.raises(CollectionError, match=message):
            use()
    # A collection of an earlier version says nothing of that.
    metadata = embedded._client.collections["notes"].config.metadata["model_manager"]
    assert metadata.pop("probe")
    assert new().search("a question")
    done = new().reembed("notes-live", target="notes-2")
    assert not done.done, "without a probe nothing tells them apart"


def test_the_same_model_with_other_terms_is_named_once():
    """As after a version of BM25 whose words have other terms."""
    mine = {"model": "bm25 (turkish)", "fingerprint": "bm25:turkish:2"}
    with pytest.raises(
        CollectionError, match=r"holds vectors of 'bm25 \(turkish\)' with other weights, settings or terms"
    ):
        check_identity("notes", {**mine, "fingerprint": "bm25:turkish:1"}, mine)
    check_identity("notes", mine, mine)


def test_a_model_that_is_replaced_while_the_indexer_is_used(make_manager, make_indexer, embedded):
    manager = make_manager()
    manager.register("m", str(FIXTURES / "bert_plain"))
    indexer = make_indexer(embedded, manager=manager, model="m")
    indexer.add_documents(documents(2))
    assert indexer.search("document number 1")
    manager.register("m", str(FIXTURES / "bert_prompts"), replace=True)
    was_replaced = r"the model of 'm' was replaced since the collection was compared with it"
    with pytest.raises(CollectionError, match=was_replaced):
        indexer.search("document number 1")
    with pytest.raises(CollectionError, match=was_replaced):
        asyncio.run(indexer.asearch("document number 1"))
    with pytest.raises(CollectionError, match=was_replaced):
        indexer.add_documents(documents(4))
    with pytest.raises(CollectionError, match=r"holds vectors of .*bert_plain', not of .*bert_prompts'"):
        make_indexer(embedded, manager=manager, model="m").add_documents(documents(4))
    assert embedded.count("notes").count == 2


def test_a_replaced_model_and_a_collection_that_does_not_say_whose_it_is(make_manager, make_indexer, fake):
    manager = make_manager()
    manager.register("m", str(FIXTURES / "bert_plain"))
    indexer = make_indexer(fake, manager=manager, model="m")
    indexer.add_documents(documents(2))
    manager.register("m", str(FIXTURES / "bert_prompts"), replace=True)
    with pytest.raises(CollectionError, match="was replaced"):
        indexer.add_documents(documents(4))
    assert len(fake.points) == 2


def test_a_model_that_is_replaced_during_a_run(make_manager, make_indexer, embedded):
    manager = make_manager()
    manager.register("m", str(FIXTURES / "bert_plain"))

    def source():
        yield from documents(4)
        manager.register("m", str(FIXTURES / "bert_prompts"), replace=True)
        yield from documents(4, start=4)

    with pytest.raises(CollectionError, match="was replaced"):
        make_indexer(embedded, manager=manager, model="m").add_documents(source(), batch_size=2)
    former = make_manager()
    former.register("m", str(FIXTURES / "bert_plain"))
    for point in stored(embedded).values():
        np.testing.assert_allclose(point.vector, former.embed(point.payload["text"], "m"), atol=1e-5)


@pytest.mark.parametrize(("stored", "used", "fits"), [("float32", "int8", True), ("int4", "float32", True)])
def test_other_numbers_of_the_same_weights_fit(make_manager, make_indexer, embedded, stored, used, fits):
    manager = make_manager()
    for dtype in (stored, used):
        manager.register(dtype, str(FIXTURES / "bert_plain"), dtype=dtype)
    make_indexer(embedded, manager=manager, model=stored).add_documents(documents(3))
    assert bool(make_indexer(embedded, manager=manager, model=used).search("document number 1")) is fits


def test_probes_of_every_kind():
    known = {"engine": "model_manager", "dtype": "float32"}
    sparse = [SparseVector(np.array([3, 9], np.uint32), np.array([1.0, 2.0], np.float32))]
    other = [SparseVector(np.array([3, 8], np.uint32), np.array([1.0, 2.0], np.float32))]
    assert probe_of(known, sparse)["vectors"] == [{"3": 1.0, "9": 2.0}]
    assert differs(probe_of(known, sparse), probe_of(known, sparse)) is None
    assert differs(probe_of(known, sparse), probe_of(known, other)) == pytest.approx(0.2)
    tokens = np.arange(6.0, dtype=np.float32).reshape(3, 2)
    assert probe_of(known, [tokens])["vectors"] == [{"0": 0.0, "1": 1.0}]
    near = [{"0": 1.0, "1": 0.2}], [{"0": 1.0, "1": 0.0}]
    fine, coarse = ({"coarse": value, "vectors": near[0]} for value in (False, True))
    assert differs(fine, {"coarse": False, "vectors": near[1]}) == pytest.approx(1 / 1.04**0.5)
    assert differs(coarse, {"coarse": False, "vectors": near[1]}) is None
    assert differs({}, fine) is None


@pytest.mark.parametrize(
    ("call", "given", "param", "message"),
    [
        ("make", {"collection": 5}, "collection", "must be a str, not int"),
        ("make", {"client": "qdrant.db"}, "client", "a folder is path="),
        ("make", {"chunk": 64.5}, "chunk", "must be an int, not float"),
        ("make", {"chunk": "256"}, "chunk", "must be an int, not str"),
        ("make", {"chunk": 64, "overlap": 1.5}, "overlap", "must be an int"),
        ("make", {"rerank": True}, "rerank", "must be a str"),
        ("search", {"limit": 2.7}, "limit", "must be an int"),
        ("search", {"limit": True}, "limit", "must be an int"),
        ("search", {"limit": 0}, "limit", "must be at least 1"),
        ("search", {"hnsw_ef": "9"}, "hnsw_ef", "must be an int"),
        ("search", {"candidates": 9.5}, "candidates", "must be an int"),
        ("search", {"filters": "lang=tr"}, "filters", "a mapping of fields to values"),
        ("search", {"query": " "}, "query", "is empty"),
        ("search", {"rerank": "no"}, "rerank", "must be True or False"),
        ("search", {"score_threshold": [1]}, "score_threshold", "must be a number"),
        ("add", {"skip_unchanged": "no"}, "skip_unchanged", "must be True or False"),
        ("reembed", {"drop_old": "no"}, "drop_old", "must be True or False"),
        ("add", {"batch_size": 1.5}, "batch_size", "must be an int"),
        ("add", {"max_failures": "x"}, "max_failures", "must be an int"),
        ("add", {"on_error": "stop"}, "on_error", "must be one of report, raise"),
    ],
)
def test_arguments_are_checked_by_name(make_indexer, embedded, call, given, param, message):
    make = {"client": embedded, **given} if call == "make" else {"client": embedded}

    def use():
        indexer = make_indexer(**make)
        if call == "search":
            indexer.search(**{"query": "a question", **given})
        elif call == "add":
            indexer.add_documents(documents(2), **given)
        elif call == "reembed":
            indexer.reembed("live", **given)

    with pytest.raises((InputError, TypeError), match=message) as error:
        use()
    assert error.value.param == param
    assert not embedded.get_collections().collections


def test_settings_of_a_new_collection(make_indexer, fake):
    make_indexer(fake).create_collection()
    metadata = fake.settings.pop("metadata")["model_manager"]
    assert metadata.keys() == {"model", "fingerprint", "probe"}
    assert metadata["model"].endswith("/xlmr")
    made = {name: value.model_dump(exclude_none=True, mode="json") for name, value in fake.settings.items()}
    assert made == {
        "vectors_config": {"size": 32, "distance": "Cosine", "on_disk": False},
        "hnsw_config": {"m": 32, "ef_construct": 256, "full_scan_threshold": 20000, "on_disk": False},
        "optimizers_config": {
            "default_segment_number": 2,
            "max_segment_size": 200000,
            "memmap_threshold": 100000,
            "indexing_threshold": 50000,
            "flush_interval_sec": 30,
        },
        "quantization_config": {"scalar": {"type": "int8", "quantile": 0.99, "always_ram": True}},
    }


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (models.VectorParams(size=32, distance=models.Distance.EUCLID), "compares by Euclid"),
        ({"a": models.VectorParams(size=16, distance=models.Distance.COSINE)}, "has vectors of 16 dimensions"),
        ({}, "has no dense vectors"),
        (
            models.VectorParams(size=DIMENSION, distance=models.Distance.COSINE, datatype=models.Datatype.UINT8),
            "stores whole numbers from 0 to 255",
        ),
    ],
)
def test_a_collection_of_another_kind_is_refused(make_indexer, embedded, vectors, message):
    embedded.create_collection("notes", vectors_config=vectors)
    with pytest.raises(CollectionError, match=message):
        make_indexer(embedded).add_documents(documents(1))


def test_search(make_indexer, embedded):
    indexer = make_indexer(embedded)
    indexer.add_documents(documents(40))
    hits = indexer.search("document number 7", limit=3)
    assert len(hits) == 3
    assert (hits[0].id, hits[0].text, hits[0].metadata) == ("d7", "document number 7", {"n": 7, "even": False})
    assert hits[0].score == pytest.approx(1, abs=1e-5)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert hits[0].payload["original_doc_id"] == "d7"
    assert hits[0].to_dict() == {"id": "d7", "score": 1.0, "text": hits[0].text, "metadata": hits[0].metadata}
    assert asyncio.run(indexer.asearch("document number 7", limit=3)) == hits
    assert indexer.search("document number 7", score_threshold=1.01) == []
    assert len(indexer.search("a", limit=100, score_threshold=None)) == 40


@pytest.mark.parametrize(
    ("filters", "wanted"),
    [
        ({"n": 3}, {3}),
        ({"n": [3, 5]}, {3, 5}),
        ({"n": [3, 5], "even": True}, set()),
        ({"n": [3, 4, 6], "even": True}, {4, 6}),
        ({"tag": "a"}, {1, 2}),
        ({"tag": ["b", "c"]}, {2, 3}),
        ({"mixed": ["x", 1, True, 0.5]}, {1, 2, 3, 4}),
        ({"mixed": 0.5}, {4}),
        ({"n": []}, set()),
        ({"n": 3.0}, {3}),
        ({"n": np.int64(3)}, {3}),
        ({"n": np.array([3, 5])}, {3, 5}),
        ({"n": np.array([])}, set()),
        ({"even": np.bool_(True)}, {2, 4, 6}),
        ({"price": 20}, {2}),
        ({"price": [10, 20.0]}, {1, 2}),
        ({"price": 3}, set()),
        ({}, {1, 2, 3, 4, 5, 6}),
    ],
)
def test_filters(make_indexer, embedded, filters, wanted):
    extra = {1: ["a"], 2: ["a", "b"], 3: "c"}
    mixed = {1: "x", 2: 1, 3: True, 4: 0.5}
    source = documents(7)[1:]
    for document in source:
        n = document["metadata"]["n"]
        document["metadata"] |= {"price": 10.0 * n, "tag": extra.get(n, "none"), "mixed": mixed.get(n, "y")}
    indexer = make_indexer(embedded)
    indexer.add_documents(source)
    hits = indexer.search("document", score_threshold=None, filters=filters)
    assert {hit.metadata["n"] for hit in hits} == wanted


def test_search_arguments(make_indexer, embedded):
    indexer = make_indexer(embedded)
    with pytest.raises(InputError, match="the query is empty"):
        indexer.search("  ")
    with pytest.raises(InputError, match="limit=0"):
        indexer.search("a", limit=0)
    with pytest.raises(InputError, match="filter 'when': a value must be str, int, float, bool, a date or a UUID"):
        indexer.search("a", filters={"when": object()})
    with pytest.raises(CollectionError, match="'notes' does not exist: add_documents makes it"):
        indexer.search("a")


def test_a_server_is_told_how_to_search(make_indexer, shared):
    class Server(FakeClient):
        def query_points(self, name, **request):
            self.request = {"name": name, **request}
            return SimpleNamespace(points=[])

    server = Server()
    assert make_indexer(server).search("question", filters={"n": [1]}) == []
    np.testing.assert_array_equal(server.request.pop("query"), shared.embed("question", SLOT).tolist())
    match = models.FieldCondition(key="n", match=models.MatchValue(value=1))
    number = models.FieldCondition(key="n", range=models.Range(gte=1, lte=1))
    same = models.Filter(should=[match, number])
    assert server.request == {
        "name": "notes",
        "limit": 10,
        "score_threshold": 0.7,
        "search_params": models.SearchParams(hnsw_ef=128),
        "query_filter": models.Filter(must=[models.Filter(should=[same])]),
        "with_payload": True,
    }


def test_prompts_of_the_model(make_manager, embedded):
    manager = make_manager()
    indexer = QdrantIndexer("notes", embedded, str(FIXTURES / "bert_prompts"), manager=manager)
    indexer.add_documents(documents(1))
    slot = indexer.model
    passage, query = (manager.embed("document number 0", slot, prompt_name=name) for name in ("passage", "query"))
    np.testing.assert_allclose(stored(embedded)["d0"].vector, passage, atol=1e-6)
    (hit,) = indexer.search("document number 0", score_threshold=None)
    assert hit.score == pytest.approx(float(query @ passage), abs=1e-5)
    assert hit.score < 0.9999


def test_the_default_model_is_the_preferred_one(make_manager, embedded):
    assert QdrantIndexer("a", embedded, manager=make_manager()).model == "turkish_sentence"
    assert QdrantIndexer("a", embedded, manager=make_manager(prefer_turkish=False)).model == "english_sentence"
    assert repr(QdrantIndexer("a", embedded, SLOT, manager=make_manager())) == (
        "<QdrantIndexer 'a', model 'turkish_sentence'>"
    )


def test_nothing_is_loaded_before_it_is_needed(manager, fake):
    indexer = QdrantIndexer("a", fake, SLOT, manager=manager)
    assert not manager.is_loaded(SLOT)
    indexer.add_documents([])
    assert manager.is_loaded(SLOT)


def test_dimensions_that_the_model_does_not_have(make_indexer, fake):
    with pytest.raises(InputError, match="dimensions=33: turkish_sentence has vectors of 32 dimensions"):
        make_indexer(fake, dimensions=33).add_documents([])


@pytest.mark.parametrize("arguments", [{"batch_size": 0}, {"on_error": "ignore"}])
def test_arguments_of_add_documents(make_indexer, fake, arguments):
    with pytest.raises(InputError, match=next(iter(arguments))):
        make_indexer(fake).add_documents([], **arguments)


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        ("hello", "into a list"),
        (b"hello", "into a list"),
        ({"id": "a", "text": "the text", "metadata": {"x": 1}}, "into a list"),
        (pd.DataFrame({"id": ["a"], "text": ["b"]}), "one of its columns, or its rows"),
        (None, ""),
    ],
)
def test_what_is_no_series_of_documents_is_refused(make_indexer, fake, given, remedy):
    """Characters, keys and names of columns are texts too, and would be indexed."""
    message = f"^documents must be an iterable of documents, not {type(given).__name__}.*{remedy}"
    with pytest.raises(TypeError, match=message):
        make_indexer(fake).add_documents(given)
    assert fake.settings is None
    assert make_indexer(fake).add_documents(pd.Series(["one", "two"])).indexed == 2


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_which_qdrant(tmp_path, monkeypatch, shared):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("QDRANT_URL", raising=False)
    settings = {"model": SLOT, "manager": shared}
    with QdrantIndexer("notes", **settings) as indexer:
        indexer.add_documents(documents(1))
        assert (tmp_path / "qdrant_data" / "collection" / "notes").is_dir()
        # The client leaves the lock file that it could not lock to the garbage collector.
        with pytest.raises(StoreError, match=r"'qdrant_data' cannot be opened: .*already accessed"):
            QdrantIndexer("notes", **settings)
    with QdrantIndexer("notes", path="qdrant_data", **settings) as indexer:  # closed, so the folder is free again
        assert indexer.add_documents(documents(1)).skipped == 1
    monkeypatch.setenv("QDRANT_URL", "http://127.0.0.1:1/base")
    with QdrantIndexer("notes", **settings) as indexer:
        assert indexer.client.init_options["url"] == "http://127.0.0.1:1/base"
    with QdrantIndexer("notes", path=":memory:", **settings) as indexer:
        assert indexer.add_documents(documents(1)).indexed == 1
    for wrong in ({"url": "http://"}, {"path": "a", "url": "http://b"}, {"client": FakeClient(), "path": "a"}):
        with pytest.raises(InputError):
            QdrantIndexer("notes", **settings, **wrong)
    with pytest.raises(InputError, match="needs a name"):
        QdrantIndexer("", FakeClient())
    with pytest.raises(InputError, match="attempts"):
        Backoff(attempts=0)


def test_an_indexer_that_nobody_closes(tmp_path):
    code = f"""
from conftest import tiny
from model_manager.integrations.qdrant import QdrantIndexer
manager = tiny()
indexer = QdrantIndexer("notes", path={str(tmp_path)!r}, manager=manager)
print(indexer.add_documents(["a text"]).indexed)
"""
    done = run_python(code)
    assert (done.stdout, done.stderr) == ("1\n", "")


@pytest.mark.parametrize("remedy", ["not AsyncQdrantClient; asearch uses that too", "not int"])
def test_a_client_of_another_type_is_refused(shared, remedy):
    client = AsyncQdrantClient(":memory:") if "Async" in remedy else 5
    with pytest.raises(TypeError, match=f"client must be a QdrantClient, {remedy}") as error:
        QdrantIndexer("notes", client, SLOT, manager=shared)
    assert error.value.param == "client"


def test_the_callers_client_stays_open(make_indexer, embedded):
    with make_indexer(embedded) as indexer:
        indexer.add_documents(documents(1))
    assert embedded.count("notes").count == 1


def test_the_embedded_qdrant_does_not_wait_for_the_disk_at_every_point(make_indexer, embedded):
    make_indexer(embedded).create_collection()
    sqlite = embedded._client.collections["notes"].storage.storage
    assert sqlite.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert sqlite.execute("PRAGMA synchronous").fetchone() == (1,)


def test_threads_share_an_indexer(make_indexer, tmp_path):
    client = QdrantClient(path=str(tmp_path / "q"), force_disable_check_same_thread=True)
    with contextlib.closing(client):
        indexer = make_indexer(client)
        indexer.create_collection()
        errors = []

        def work(start):
            try:
                indexer.add_documents(documents(60, start), batch_size=7)
                indexer.search(f"document number {start}")
            except Exception as error:  # noqa: BLE001  the test reports every failure
                errors.append(error)

        threads = [threading.Thread(target=work, args=(100 * n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        assert client.count("notes").count == 240


def test_progress(make_indexer, fake, capsys):
    make_indexer(fake).add_documents(documents(30), batch_size=10, progress=True)
    assert "30/30" in capsys.readouterr().err
    make_indexer(fake).add_documents(iter(documents(30)), batch_size=10)
    assert capsys.readouterr().err == ""


def test_report_reads_well():
    report = IndexReport(indexed=1200, updated=3, skipped=50, seconds=2.0, finished=True)
    assert str(report) == "1,200 indexed (3 of them changed), 50 skipped, 0 failed in 2.0 s (625 documents/s)"
    assert repr(report) == f"<IndexReport: {report}>"
    assert str(IndexReport()) == "0 indexed, 0 skipped, 0 failed in 0.0 s (0 documents/s); not finished"
    assert not IndexReport().ok


def test_a_model_that_is_a_source_gets_one_slot(manager, fake):
    source = str(FIXTURES / "bert_cls")
    first, second = (QdrantIndexer("a", fake, source, manager=manager) for _ in range(2))
    assert first.model == second.model == source
    assert manager.slots().count(source) == 1


@pytest.mark.parametrize(("first", "second"), [("1", 1), (1, "1")])
def test_a_number_does_not_replace_its_digits(make_indexer, embedded, first, second):
    """Both have one point: the later document fails, in the same call and in another one, and nothing is lost."""
    make_indexer(embedded).add_documents([{"id": first, "text": "the first"}])
    both = [{"id": second, "text": "the second"}, {"id": first, "text": "the first, rewritten"}]
    report = make_indexer(embedded).add_documents(both)
    assert (report.indexed, report.failed) == (1, 1)
    assert repr(first) in report.failures[0].reason
    assert repr(second) in report.failures[0].reason
    points = stored(embedded)
    assert {identity: point.payload["text"] for identity, point in points.items()} == {first: "the first, rewritten"}
    mixed = [{"id": f"{n}" if n % 2 else n, "text": f"text {n}"} for n in range(20, 26)]
    report = make_indexer(embedded).add_documents([*mixed, {"id": 21, "text": "other"}], batch_size=3)
    assert (report.indexed, report.failed) == (6, 1)
