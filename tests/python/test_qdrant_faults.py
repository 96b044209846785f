"""The indexer with failures: every document is indexed, skipped or in the report, whatever fails."""

from __future__ import annotations

import http.server
import json
import logging
import threading
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import DIMENSION, FIXTURES
from embedding_server import EmbeddingServer
from model_manager.errors import InputError, NotFiniteError, OverloadedError
from model_manager.integrations.qdrant import Backoff, CollectionError, IndexingError, QdrantIndexer, StoreError
from qdrant_client import models
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrants import SLOT, FakeClient, documents

pytestmark = pytest.mark.chaos


def failed_ids(report):
    return [failure.id for failure in report.failures]


def test_a_client_that_fails_for_a_while(make_indexer, fake, caplog):
    fake.faults = [ConnectionError("reset"), TimeoutError("late"), None, ResourceExhaustedResponse("slow down", 0)]
    report = make_indexer(fake).add_documents(documents(30), batch_size=10)
    assert report.ok
    assert report.indexed == 30
    assert fake.writes == [[f"d{n}" for n in range(start, start + 10)] for start in (0, 10, 20)]
    assert [record.message.partition(";")[0] for record in caplog.records if record.levelno == logging.WARNING] == [
        "Qdrant could not write points: reset",
        "Qdrant could not write points: late",
        "Qdrant could not write points: slow down",
    ]


def test_pauses_grow_and_respect_the_server(make_indexer, fake):
    pauses = []
    indexer = make_indexer(fake, backoff=Backoff(attempts=6, first=1, longest=5))
    indexer._store.sleep = pauses.append
    fake.faults = [OSError("a"), OSError("b"), OSError("c"), OSError("d"), ResourceExhaustedResponse("e", 60)]
    assert indexer.add_documents(documents(1)).indexed == 1
    assert pauses == [1, 2, 4, 5, 60]


@pytest.mark.parametrize("asked", [7, 10**9])
def test_a_server_that_asks_for_a_pause_without_end(make_indexer, fake, asked):
    pauses = []
    indexer = make_indexer(fake, backoff=Backoff(first=1, longest=5, patience=40))
    indexer._store.sleep = pauses.append
    fake.faults = [ResourceExhaustedResponse("e", asked)]
    assert indexer.add_documents(documents(1)).indexed == 1
    assert pauses == [min(asked, 40)]


def test_a_client_that_fails_for_ever(make_indexer, fake):
    fake.faults = [ConnectionError("gone")] * 1000
    report = make_indexer(fake).add_documents(documents(25), batch_size=10)
    assert report.finished
    assert not report.ok
    assert (report.indexed, report.failed, report.documents) == (0, 25, 25)
    assert failed_ids(report) == [f"d{n}" for n in range(25)]
    assert report.failures[0].reason == "Qdrant could not write points, collection 'notes' (4 attempts): gone"
    assert "first failure: document 0 (id 'd0'): Qdrant could not" in str(report)
    fake.faults.clear()
    assert make_indexer(fake).add_documents(documents(25)).indexed == 25


def test_too_many_failures_end_the_run(make_indexer, fake):
    fake.faults = [ConnectionError("gone")] * 1000
    indexer = make_indexer(fake)
    read = iter(documents(1000))
    with pytest.raises(
        IndexingError, match=r"more than 20 documents failed, the latest: document 20 .*: gone"
    ) as error:
        indexer.add_documents(read, batch_size=10, max_failures=20)
    assert error.value.report is indexer.report
    assert indexer.report.failed == 21
    assert not indexer.report.finished
    assert len(list(read)) > 900, "the rest of the input was not read"


def test_a_qdrant_that_cannot_be_reached_at_all(make_indexer, fake):
    def gone(_name):
        raise ConnectionError("refused")

    fake.collection_exists = gone
    with pytest.raises(StoreError, match=r"could not look up the collection, collection 'notes' \(4 attempts\)"):
        make_indexer(fake).add_documents(iter(documents(1)))


@pytest.mark.parametrize("late", [True, False])
def test_a_collection_that_exists_when_it_is_created(make_indexer, fake, monkeypatch, late):
    """The answer to its creation came too late, or another process was faster."""
    create, calls = fake.create_collection, []

    def creating(name, **settings):
        calls.append(name)
        if fake.settings is not None:
            raise ValueError(f"Collection `{name}` already exists!")
        create(name, **settings)
        raise TimeoutError("late") if late else ValueError(f"Collection `{name}` already exists!")

    monkeypatch.setattr(fake, "create_collection", creating)
    indexer = make_indexer(fake)
    assert indexer.create_collection() is late
    assert len(calls) == 1 + late
    assert indexer.add_documents(documents(3)).indexed == 3
    fake.settings = None
    fake.get_collection = lambda _name: SimpleNamespace(config=SimpleNamespace(params=other))
    other = SimpleNamespace(vectors=models.VectorParams(size=DIMENSION + 1, distance=models.Distance.COSINE))
    with pytest.raises(CollectionError, match=f"has vectors of {DIMENSION + 1} dimensions"):
        make_indexer(fake).create_collection()


def test_a_creation_that_is_refused(make_indexer, fake, monkeypatch):
    def refusing(*_arguments, **_settings):
        raise ValueError("no more collections")

    monkeypatch.setattr(fake, "create_collection", refusing)
    with pytest.raises(StoreError, match="no more collections"):
        make_indexer(fake).create_collection()


@pytest.mark.parametrize(("batch_size", "failed"), [(1, "aa"), (2, "aa"), (3, "aab")])
def test_a_document_that_comes_again_shares_the_fate_of_the_first(make_indexer, fake, batch_size, failed):
    """Nothing is skipped as stored that is not stored."""
    source = [{"id": "a", "text": "the same"}] * 2 + [{"id": "b", "text": "another"}]
    fake.faults = [TimeoutError("late")] * 4
    report = make_indexer(fake).add_documents(source, batch_size=batch_size)
    assert sorted(failed_ids(report)) == [*failed]
    assert (report.indexed, report.skipped) == (3 - len(failed), 0)
    assert len(fake.points) == report.indexed
    fake.points.clear()
    report = make_indexer(fake).add_documents(source, batch_size=batch_size)
    assert (report.indexed, report.skipped, report.failed, len(fake.points)) == (2, 1, 0, 2)


def test_bad_documents_in_the_middle(make_indexer, fake):
    source = documents(12)
    source[3]["text"] = ""
    source[5] = {"id": "d5", "title": "no text"}
    source[7]["metadata"] = {"f": object()}
    source[8] = None
    report = make_indexer(fake).add_documents(source, batch_size=5)
    assert (report.indexed, report.failed, report.documents) == (8, 4, 12)
    assert [(one.position, one.id) for one in report.failures] == [(3, "d3"), (5, "d5"), (7, "d7"), (8, None)]
    assert {point["original_doc_id"] for point in fake.points.values()} == {f"d{n}" for n in (0, 1, 2, 4, 6, 9, 10, 11)}


def test_the_first_failure_raises_when_asked(make_indexer, fake):
    source = documents(30)
    source[15]["text"] = ""
    indexer = make_indexer(fake)
    with pytest.raises(IndexingError, match=r"given up: document 15 \(id 'd15'\): its text is empty") as error:
        indexer.add_documents(source, batch_size=5, on_error="raise")
    assert isinstance(error.value.__cause__, ValueError)
    assert error.value.report.failed == 1
    source[15]["text"] = "now it has one"
    report = indexer.add_documents(source, batch_size=5, on_error="raise")
    assert report.ok
    assert report.skipped == len(fake.points) - report.indexed


def test_a_point_that_qdrant_refuses_does_not_take_others_along(make_indexer, fake):
    fake.refuses = lambda payload: payload["n"] in (2, 13)
    report = make_indexer(fake).add_documents(documents(20), batch_size=10)
    assert report.indexed == 18
    assert failed_ids(report) == ["d2", "d13"]
    assert report.failures[0].reason.endswith("a point of this request is refused")


def test_a_text_that_the_model_refuses_does_not_take_others_along(make_manager, make_indexer, fake, monkeypatch):
    manager = make_manager()
    submit, embed = manager.submit, manager.embed

    def refuse(texts):
        if any("number 7" in text for text in texts):
            raise NotFiniteError("a vector holds NaN")

    def failing_submit(texts, on_done, *arguments, **options):
        try:
            refuse(texts)
        except NotFiniteError as error:
            on_done(None, error)
            return None
        return submit(texts, on_done, *arguments, **options)

    def failing_embed(texts, *arguments, **options):
        refuse(texts)
        return embed(texts, *arguments, **options)

    monkeypatch.setattr(manager, "submit", failing_submit)
    monkeypatch.setattr(manager, "embed", failing_embed)
    report = make_indexer(fake, manager=manager).add_documents(documents(12), batch_size=5)
    assert report.indexed == 11
    assert [str(one) for one in report.failures] == ["document 7 (id 'd7'): a vector holds NaN"]


@pytest.mark.parametrize(("refusals", "indexed"), [(3, 4), (4, 0)])
def test_a_queue_that_is_full_for_a_while(make_manager, make_indexer, fake, monkeypatch, refusals, indexed):
    manager = make_manager()
    embed = manager.embed
    left = [refusals]

    def full_submit(_texts, _on_done, *_arguments, **_options):
        left[0] -= 1
        raise OverloadedError("the queue is full")

    def full_embed(texts, *arguments, **options):
        if left[0]:
            left[0] -= 1
            raise OverloadedError("the queue is full")
        return embed(texts, *arguments, **options)

    indexer = make_indexer(fake, manager=manager)
    indexer.create_collection()
    monkeypatch.setattr(manager, "submit", full_submit)
    monkeypatch.setattr(manager, "embed", full_embed)
    report = indexer.add_documents(documents(4))
    assert (report.indexed, report.failed) == (indexed, 4 - indexed)


def test_a_queue_that_is_full_when_the_collection_is_made(make_manager, make_indexer, fake, monkeypatch):
    manager = make_manager()
    embed, left = manager.embed, [3]

    def full_embed(texts, *arguments, **options):
        if left[0]:
            left[0] -= 1
            raise OverloadedError("the queue is full")
        return embed(texts, *arguments, **options)

    monkeypatch.setattr(manager, "embed", full_embed)
    assert make_indexer(fake, manager=manager).create_collection()
    assert fake.settings["metadata"]["model_manager"]["probe"]["vectors"]


def test_a_server_that_refuses_is_not_asked_again(make_manager, make_indexer, fake):
    """It is not retried for each document either, because no document is at fault."""
    manager, pauses = make_manager(), []
    with EmbeddingServer(lambda texts: np.ones((len(texts), DIMENSION), np.float32)) as server:
        manager.register("remote", server.ollama)
        manager.load("remote")
        indexer = make_indexer(fake, manager=manager, model="remote")
        indexer.create_collection()
        indexer._store.sleep = pauses.append
        asked = len(server.asked)
        server.faults[:] = [401] * 100
        report = indexer.add_documents(documents(6), batch_size=2)
        # Concurrent batches may share a request.
        assert asked < len(server.asked) <= asked + 3
    assert (report.indexed, report.failed, pauses) == (0, 6, [])
    assert all("access was refused" in failure.reason for failure in report.failures)


def test_a_model_that_cannot_be_loaded(make_manager, make_indexer, fake, tmp_path):
    manager = make_manager(turkish_model=str(tmp_path / "nothing"), english_model=str(tmp_path / "nothing"))
    with pytest.raises(FileNotFoundError, match="nothing"):
        make_indexer(fake, manager=manager, model="english_sentence").add_documents(documents(1))
    assert fake.settings is None, "no collection was made"


def test_a_model_that_is_replaced_meanwhile(make_manager, make_indexer, fake, monkeypatch):
    manager = make_manager()

    def other(texts, on_done, *_arguments, **_options):
        on_done(np.ones((len(texts), 8), np.float32), None)

    monkeypatch.setattr(manager, "submit", other)
    with pytest.raises(CollectionError, match=r"vectors of shape \(3, 8\), expected \(3, 32\): its model was replaced"):
        make_indexer(fake, manager=manager).add_documents(documents(3))
    assert fake.points == {}


def test_an_unreadable_input_leaves_what_was_read(make_indexer, fake):
    def broken():
        yield from documents(30)
        raise ValueError("line 31 is damaged")

    indexer = make_indexer(fake)
    with pytest.raises(ValueError, match="line 31"):
        indexer.add_documents(broken(), batch_size=5)
    assert not indexer.report.finished
    assert indexer.report.indexed == len(fake.points) > 0
    report = indexer.add_documents(documents(30))
    assert (report.indexed + report.skipped, report.finished) == (30, True)


def test_an_interruption(make_indexer, fake, caplog):
    fake.faults = [None, None, KeyboardInterrupt()]
    indexer = make_indexer(fake)
    with pytest.raises(KeyboardInterrupt):
        indexer.add_documents(documents(50), batch_size=10)
    assert (indexer.report.indexed, indexer.report.failed, indexer.report.finished) == (20, 0, False)
    assert "ended early: 20 indexed" in caplog.text
    report = indexer.add_documents(documents(50), batch_size=10)
    assert (report.indexed, report.skipped, report.ok) == (30, 20, True)


def test_a_batch_is_computed_while_the_one_before_is_written(make_manager, make_indexer, fake, monkeypatch):
    manager = make_manager()
    events = []
    submit, upsert = manager.submit, fake.upsert

    def watched_submit(texts, *arguments, **options):
        events.append(f"embed {texts[0]}")
        return submit(texts, *arguments, **options)

    def watched_upsert(name, points, wait):
        events.append(f"write {points.payloads[0]['text']}")
        upsert(name, points, wait)

    monkeypatch.setattr(manager, "submit", watched_submit)
    monkeypatch.setattr(fake, "upsert", watched_upsert)
    make_indexer(fake, manager=manager).add_documents(documents(4), batch_size=1)
    begun = ["embed 0", "embed 1", "write 0", "embed 2", "write 1", "embed 3", "write 2", "write 3"]
    assert events == [f"{what} document number {n}" for what, n in map(str.split, begun)]


def test_the_input_is_read_as_it_is_needed(make_indexer, fake):
    read = []

    def source():
        for document in documents(100):
            read.append(document["id"])
            yield document

    before = []
    upsert = fake.upsert

    def watched(name, points, wait):
        before.append(len(read))
        upsert(name, points, wait)

    fake.upsert = watched
    make_indexer(fake).add_documents(source(), batch_size=10)
    assert before == [20, 30, 40, 50, 60, 70, 80, 90, 100, 100]


def test_memory_does_not_grow_with_the_input(make_indexer):
    """100 times as many documents need no more memory, except for small caches."""
    indexer = make_indexer(FakeClient(keep=False))
    peaks = []
    for count in (100, 5000):
        tracemalloc.start()
        client_before = len(indexer.client.writes)
        indexer.add_documents(
            ({"id": n, "text": f"text {n % 50}", "metadata": {"filler": "x" * 1000}} for n in range(count)),
            batch_size=20,
        )
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(indexer.client.writes) - client_before == count // 20
        indexer.client.writes.clear()
    assert peaks[1] < peaks[0] + 1_000_000, peaks  # 5000 documents are more than 10 MB


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers each request with the next of the server's (status, body)."""

    def do_GET(self):
        status, body = self.server.answers.pop(0)
        self.server.seen.append((self.path, self.headers.get("api-key")))
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_arguments):
        pass


@pytest.fixture
def server():
    """A web server with prepared answers; its address is `url`."""
    with http.server.HTTPServer(("127.0.0.1", 0), _Handler) as made:
        made.answers, made.seen = [], []
        made.url = f"http://127.0.0.1:{made.server_port}"
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def test_a_real_client_tries_again(server, shared):
    server.answers = [(503, {}), (429, {}), (200, {"result": {"exists": True}, "status": "ok", "time": 0})]
    backoff = Backoff(attempts=4, first=0, longest=0)
    with QdrantIndexer("notes", url=server.url, model=SLOT, manager=shared, backoff=backoff) as indexer:
        assert indexer._store.exists()
    assert server.seen == [("/collections/notes/exists", None)] * 3


@pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")
def test_a_key_that_is_refused(server, shared, monkeypatch):
    monkeypatch.setenv("QDRANT_URL", server.url)
    monkeypatch.setenv("QDRANT_API_KEY", "secret-7")
    server.answers = [(401, {"status": {"error": "who are you?"}})]
    with (
        QdrantIndexer("notes", model=SLOT, manager=shared) as indexer,
        pytest.raises(StoreError, match=r"who are you.*is QDRANT_API_KEY the key of this server") as error,
    ):
        indexer.create_collection()
    assert not error.value.transient
    assert "secret-7" not in str(error.value)
    assert server.seen == [("/collections/notes/exists", "secret-7")]


def test_a_server_that_is_not_there(shared, caplog):
    caplog.set_level(logging.INFO)
    backoff = Backoff(attempts=3, first=0, longest=0)
    with (
        QdrantIndexer("notes", url="http://127.0.0.1:9", model=SLOT, manager=shared, backoff=backoff) as indexer,
        pytest.raises(
            ConnectionError, match=r"at http://127\.0\.0\.1:9 .*\(3 attempts\).*is it running there"
        ) as error,
    ):
        indexer.search("question")
    assert error.value.transient
    assert [record.levelno for record in caplog.records if "trying again" in record.message] == [
        logging.WARNING,
        logging.INFO,
    ], "the same reason is a warning once"


def test_wrong_filters_reach_no_server(shared, fake):
    indexer = QdrantIndexer("notes", fake, str(FIXTURES / "bert_cls"), manager=shared)
    with pytest.raises(InputError, match="filter 'a'"):
        indexer.search("question", filters={"a": b"bytes"})
