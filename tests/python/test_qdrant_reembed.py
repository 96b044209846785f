"""A new collection for another model, and the alias that is switched to it."""

from __future__ import annotations

import pytest
from conftest import ENGLISH_MODEL, FIXTURES, TURKISH_MODEL, tiny
from model_manager.errors import InputError
from model_manager.integrations.qdrant import (
    Backoff,
    CollectionError,
    IndexingError,
    QdrantIndexer,
    StoreError,
    encoders,
)
from model_manager.integrations.qdrant.pipeline import Run
from qdrant_client import QdrantClient, models
from qdrant_server import QdrantServer
from qdrants import documents


@pytest.fixture(scope="module")
def manager():
    with tiny() as made:
        yield made


@pytest.fixture
def make(manager, embedded):
    def build(model=ENGLISH_MODEL, collection="notes", client=embedded, **settings):
        backoff = Backoff(attempts=2, first=0, longest=0)
        return QdrantIndexer(collection, client, model, manager=manager, backoff=backoff, **settings)

    return build


def alias(client, name, collection):
    made = models.CreateAlias(collection_name=collection, alias_name=name)
    client.update_collection_aliases([models.CreateAliasOperation(create_alias=made)])


def aliases(client):
    return {one.alias_name: one.collection_name for one in client.get_aliases().aliases}


def points_of(client, collection):
    points, _ = client.scroll(collection, limit=10_000, with_vectors=True)
    return {point.id: point for point in points}


def test_an_alias_means_the_new_collection(make, embedded, manager):
    make(TURKISH_MODEL, "notes-1").add_documents(documents(25))
    alias(embedded, "notes", "notes-1")
    before = points_of(embedded, "notes-1")
    indexer = make(sparse="bm25")
    done = indexer.reembed(batch_size=10)
    assert (done.source, done.alias, done.points, done.done, done.dropped) == ("notes-1", "notes", 25, True, False)
    assert (done.report.indexed, done.report.skipped) == (25, 0)
    assert aliases(embedded) == {"notes": done.target}
    assert "alias 'notes' is now collection" in str(done)
    assert done.to_dict()["report"]["indexed"] == 25
    # The old collection is as it was.
    assert points_of(embedded, "notes-1") == before
    after = points_of(embedded, done.target)
    assert after.keys() == before.keys()
    for name, point in after.items():
        kept = {key: value for key, value in point.payload.items() if key != "content_hash"}
        assert kept == {key: value for key, value in before[name].payload.items() if key != "content_hash"}
        vector = manager.embed(point.payload["text"], ENGLISH_MODEL, prompt_name="passage")
        assert point.vector["dense"] == pytest.approx(vector.tolist(), abs=1e-6)
    # Searches and writers of the alias go on with the new model; unchanged documents are known.
    assert "d7" in [hit.id for hit in indexer.search("document number 7")]
    assert indexer.add_documents(documents(25)).skipped == 25
    with pytest.raises(CollectionError, match="holds vectors of"):
        make(TURKISH_MODEL).search("a")


def test_the_same_models_again_are_nothing_to_do(make, embedded):
    make(TURKISH_MODEL, "notes-1").add_documents(documents(3))
    alias(embedded, "notes", "notes-1")
    first = make().reembed()
    again = make().reembed()
    assert (again.done, again.points, again.source) == (False, 3, first.target)
    assert str(again) == f"nothing to do: collection {first.target!r} has vectors of these models"
    assert len(embedded.get_collections().collections) == 2


def test_a_collection_gets_an_alias_and_the_old_one_may_go(make, embedded):
    make(TURKISH_MODEL).add_documents(documents(5))
    with pytest.raises(CollectionError, match=r"'notes' is a collection.*name the alias.*'notes-live'"):
        make().reembed()
    done = make().reembed("live", target="notes-2", drop_old=True)
    assert (done.target, done.dropped) == ("notes-2", True)
    assert not embedded.collection_exists("notes")
    assert make(collection="live").search("document number 3", limit=1)[0].id == "d3"


def test_a_model_that_is_replaced_meanwhile_is_refused(make_manager, embedded, monkeypatch):
    manager = make_manager()
    manager.register("m", str(FIXTURES / "bert_plain"))
    QdrantIndexer("notes", embedded, TURKISH_MODEL, manager=manager).add_documents(documents(4))
    indexer = QdrantIndexer("notes", embedded, "m", manager=manager)
    write, written = Run._write, []

    def replacing(run, batch, vectors):
        write(run, batch, vectors)
        written.extend(batch)
        if len(written) == 2:
            manager.register("m", str(FIXTURES / "bert_plain"), pooling="max", replace=True)

    monkeypatch.setattr(Run, "_write", replacing)
    with pytest.raises(CollectionError, match="the model of 'm' was replaced"):
        indexer.reembed("live", batch_size=1)
    assert len(written) == 2
    assert not aliases(embedded)


def test_other_weights_of_one_name_fill_a_collection_of_their_own(make, embedded, monkeypatch):
    make(TURKISH_MODEL).add_documents(documents(2))
    first = make().reembed("live")
    monkeypatch.setattr(encoders, "probe_of", lambda *_: {"coarse": False, "vectors": [{"0": 1.0}, {"0": 1.0}]})
    with pytest.raises(CollectionError, match="other weights"):
        make(collection="live").search("a question")
    again = make(collection="live").reembed()
    assert (again.done, again.source, again.target) == (True, first.target, f"{first.target}-2")
    assert make(collection="live").search("document number 1")


def test_chunks_and_other_ids_stay(make, embedded):
    make(TURKISH_MODEL, chunk=20).add_documents([{"id": "uzun", "text": "Bir cümle daha var. " * 12}, "kimliksiz"])
    before = points_of(embedded, "notes")
    done = make().reembed("live")
    after = points_of(embedded, done.target)
    assert after.keys() == before.keys()
    assert len(after) > 3
    hits = make(collection="live").search("cümle", score_threshold=None)
    assert len({hit.id for hit in hits}) == len(hits) == 2
    assert make().reembed("live").points == len(before)


def test_points_of_another_program(make, embedded):
    embedded.create_collection("notes", vectors_config=models.VectorParams(size=4, distance=models.Distance.COSINE))
    rows = [
        models.PointStruct(id=n, vector=[1.0, 0, 0, 0], payload={"page_content": f"text {n}", "x": n}) for n in range(3)
    ]
    embedded.upsert("notes", rows)
    with pytest.raises(CollectionError, match=r"3 points of collection 'notes' have no text in the field 'text': name"):
        make().reembed("live")
    assert [one.name for one in embedded.get_collections().collections] == ["notes"]
    done = make().reembed("live", text_field="page_content", batch_size=2)
    assert points_of(embedded, done.target).keys() == {0, 1, 2}
    hit = make(collection="live").search("text 1", limit=1)[0]
    assert (hit.id, hit.text, hit.metadata["x"]) == ("1", "text 1", 1)


@pytest.mark.parametrize("name", ["page.content", "the text", "text[]"])
def test_a_text_field_of_any_name(make, embedded, name):
    """Qdrant reads some of them as a path, and refuses others."""
    embedded.create_collection("notes", vectors_config=models.VectorParams(size=4, distance=models.Distance.COSINE))
    embedded.upsert("notes", [models.PointStruct(id=1, vector=[1.0, 0, 0, 0], payload={name: "its text"})])
    assert make().reembed("live", text_field=name).points == 1
    (hit,) = make(collection="live").search("its text")
    assert hit.text == "its text"


@pytest.mark.parametrize("name", ["alias", "target", "text_field"])
def test_names_are_texts(make, name):
    with pytest.raises(InputError, match=f"{name} is empty"):
        make().reembed(**{"alias": "live", name: ""})
    with pytest.raises(TypeError, match=f"{name} must be a str, not int"):
        make().reembed(**{"alias": "live", name: 7})
    with pytest.raises(InputError, match="text_field='a\"b': Qdrant finds no field with such a name"):
        make().reembed("live", text_field='a"b')


def test_a_field_in_the_place_of_the_text_is_not_lost(make, embedded):
    embedded.create_collection("notes", vectors_config=models.VectorParams(size=4, distance=models.Distance.COSINE))
    payload = {"body": "a long text", "text": "its title"}
    embedded.upsert("notes", [models.PointStruct(id=1, vector=[1.0, 0, 0, 0], payload=payload)])
    with pytest.raises(IndexingError, match=r"point 1 has a field 'text' of other content than 'body'.*rename it"):
        make().reembed("live", text_field="body")
    assert "live" not in aliases(embedded)


def test_whole_documents_with_the_names_of_chunks_stay_whole(make, embedded):
    thread = {"parent_id": "thread-7", "chunks": 3, "chunk_start": 5, "chunk_end": 9, "lang": "en"}
    given = [{"id": "b", "text": "a message", "metadata": thread}]
    make(TURKISH_MODEL).add_documents(given)
    make().reembed("live")
    indexer = make(collection="live")
    assert indexer.add_documents(given).skipped == 1
    (hit,) = indexer.search("a message")
    assert (hit.id, hit.metadata, hit.span) == ("b", thread, None)
    given[0]["text"] = "another message"
    assert indexer.add_documents(given).updated == 1
    assert len(points_of(embedded, "live")) == 1


def test_a_text_that_is_blank_switches_nothing(make, embedded):
    make(TURKISH_MODEL).add_documents(documents(3))
    embedded.set_payload("notes", {"text": " "}, points=[next(iter(points_of(embedded, "notes")))])
    with pytest.raises(IndexingError, match=r"the field 'text' of point .* holds no text"):
        make().reembed("live")
    assert aliases(embedded) == {}


def test_names_that_belong_to_something_else(make, embedded):
    make(TURKISH_MODEL).add_documents(documents(2))
    make(TURKISH_MODEL, "other").add_documents(documents(1))
    alias(embedded, "live", "other")
    with pytest.raises(CollectionError, match="alias 'live' belongs to collection 'other', not to 'notes'"):
        make().reembed("live")
    with pytest.raises(CollectionError, match="alias 'other' is the name of a collection"):
        make().reembed("other")
    make(collection="taken").create_collection()
    with pytest.raises(CollectionError, match="'taken' exists and was not filled from 'notes'"):
        make().reembed("fresh", target="taken")
    for wrong in ("notes", "live"):
        with pytest.raises(CollectionError, match=f"target '{wrong}' is in use"):
            make().reembed("fresh", target=wrong)
    with pytest.raises(CollectionError, match="'missing' does not exist"):
        make(collection="missing").reembed("fresh")
    with pytest.raises(InputError, match="batch_size=0"):
        make().reembed("fresh", batch_size=0)
    with pytest.raises(CollectionError, match="'live' is an alias of collection 'other' and cannot be recreated"):
        make(collection="live").create_collection(recreate=True)
    assert aliases(embedded) == {"live": "other"}


def test_an_interrupted_run_goes_on(make, embedded, monkeypatch):
    make(TURKISH_MODEL).add_documents(documents(30))
    real, writes = embedded.upsert, []

    def failing(*arguments, **options):
        writes.append(1)
        if len(writes) == 3:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(embedded, "upsert", failing)
    with pytest.raises(KeyboardInterrupt):
        make().reembed("live", batch_size=10)
    assert aliases(embedded) == {}
    # Meanwhile a document goes away and another one changes.
    first, second = sorted(points_of(embedded, "notes"))[:2]
    embedded.delete("notes", [first])
    embedded.set_payload("notes", {"text": "changed"}, points=[second])
    done = make().reembed("live", batch_size=10)
    assert done.report.skipped + done.report.indexed == done.points == 29
    assert done.report.skipped >= 18
    after = points_of(embedded, done.target)
    assert after.keys() == points_of(embedded, "notes").keys()
    assert after[second].payload["text"] == "changed"


def test_something_written_meanwhile_is_no_silent_loss(make, embedded, monkeypatch):
    make(TURKISH_MODEL).add_documents(documents(5))
    real = embedded.upsert

    def also(name, *arguments, **options):
        if name != "notes":
            real("notes", [models.PointStruct(id=99, vector=[0.1] * 32, payload={"text": "late"})])
        return real(name, *arguments, **options)

    monkeypatch.setattr(embedded, "upsert", also)
    with pytest.raises(CollectionError, match=r"has 6 points, and 'live-.*' has 5: something was written meanwhile"):
        make().reembed("live")
    assert aliases(embedded) == {}
    monkeypatch.undo()
    assert make().reembed("live").points == 6


@pytest.mark.chaos
def test_a_server_that_dies_in_the_middle(make, manager):
    with QdrantServer() as server:
        client = QdrantClient(url=server.url, check_compatibility=False)
        make(TURKISH_MODEL, client=client).add_documents(documents(40))
        client.create_payload_index("notes", "n", models.PayloadSchemaType.INTEGER)
        server.die_after = 2
        with pytest.raises((StoreError, IndexingError), match=r"the server is dead|read points"):
            make(client=client).reembed("live", batch_size=10)
        server.die_after = None
        assert aliases(client) == {}
        done = make(client=client, sparse=str(FIXTURES / "splade_bert")).reembed("other-live", batch_size=10)
        assert done.report.indexed == 40
        resumed = make(client=client).reembed("live", batch_size=10)
        assert (resumed.report.skipped, resumed.report.indexed, resumed.points) == (20, 20, 40)
        # Both steps of the switch are one request, and the new collection has the indexes of the old one.
        (first, second) = server.bodies("/collections/aliases")
        assert first["actions"][0].keys() == second["actions"][0].keys() == {"create_alias"}
        assert client.get_collection(resumed.target).payload_schema.keys() == {"n"}
        make(TURKISH_MODEL, collection="live", client=client).reembed()
        actions = server.bodies("/collections/aliases")[-1]["actions"]
        assert [next(iter(action)) for action in actions] == ["delete_alias", "create_alias"]
        client.close()


@pytest.mark.chaos
def test_a_run_that_ended_before_the_indexes_were_copied(make):
    with QdrantServer() as server:
        client = QdrantClient(url=server.url, check_compatibility=False)
        make(TURKISH_MODEL, client=client).add_documents(documents(3))
        client.create_payload_index("notes", "n", models.PayloadSchemaType.INTEGER)

        def interrupted(*_arguments, **_options):
            raise KeyboardInterrupt

        client.create_payload_index = interrupted
        with pytest.raises(KeyboardInterrupt):
            make(client=client).reembed("live")
        del client.create_payload_index
        done = make(client=client).reembed("live")
        assert client.get_collection(done.target).payload_schema.keys() == {"n"}
        client.close()
