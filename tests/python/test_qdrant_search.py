"""What a search compares with: the collection as it is now, and filters as they were meant."""

from __future__ import annotations

import asyncio
import datetime as dt
import math
import uuid

import numpy as np
import pytest
from model_manager.errors import ArgumentError
from model_manager.integrations.qdrant import CollectionError
from qdrant_client import models
from qdrants import documents

OTHER = "english_sentence"
"""A slot whose model has vectors of the same length."""


def searched(indexer, **settings):
    return [hit.id for hit in indexer.search("document number 1", limit=3, score_threshold=None, **settings)]


def test_a_search_after_another_model_filled_the_collection(make_indexer, embedded):
    searcher = make_indexer(embedded)
    searcher.add_documents(documents(5))
    assert searched(searcher)[0] == "d1"
    other = make_indexer(embedded, model=OTHER)
    other.create_collection(recreate=True)
    other.add_documents(documents(5))
    for _ in range(2):
        with pytest.raises(CollectionError, match=r"holds vectors of .*vectors of different models cannot be compared"):
            searched(searcher)
        with pytest.raises(CollectionError, match="vectors of different models cannot be compared"):
            asyncio.run(searcher.asearch("document number 1"))


def test_a_search_after_an_alias_means_another_models_collection(make_indexer, embedded):
    make_indexer(embedded).add_documents(documents(5))
    alias = models.CreateAlias(collection_name="notes", alias_name="live")
    embedded.update_collection_aliases([models.CreateAliasOperation(create_alias=alias)])
    searcher = make_indexer(embedded, "live")
    assert searched(searcher)[0] == "d1"
    assert make_indexer(embedded, "live", model=OTHER).reembed().done
    with pytest.raises(CollectionError, match="vectors of different models cannot be compared"):
        searched(searcher)


def test_a_switch_during_a_search_is_seen(make_indexer, embedded, monkeypatch):
    searcher = make_indexer(embedded)
    searcher.add_documents(documents(5))
    searched(searcher)
    query = type(searcher._store).query

    def switch_first(store, request, **settings):
        other = make_indexer(embedded, model=OTHER)
        other.create_collection(recreate=True)
        other.add_documents(documents(5))
        return query(store, request, **settings)

    monkeypatch.setattr(type(searcher._store), "query", switch_first)
    with pytest.raises(CollectionError, match="vectors of different models cannot be compared"):
        searched(searcher)


def test_a_search_after_the_collection_got_another_form(make_indexer, embedded):
    """Chunks, then vectors with names."""
    long = [{"id": name, "text": f"document number {name} " * 8} for name in "123"]
    searcher = make_indexer(embedded)
    searcher.add_documents(long)
    assert sorted(searched(searcher)) == ["1", "2", "3"]
    chunked = make_indexer(embedded, chunk=4)
    chunked.create_collection(recreate=True)
    chunked.add_documents(long)
    assert embedded.count("notes").count > 3
    assert sorted(searched(searcher)) == ["1", "2", "3"]
    hybrid = make_indexer(embedded, sparse="bm25")
    hybrid.create_collection(recreate=True)
    hybrid.add_documents(long)
    assert sorted(searched(searcher)) == ["1", "2", "3"]


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("several", [False, True])
def test_numbers_that_json_lacks_are_refused(make_indexer, embedded, number, several):
    """The client would send null, which a server takes for no bound."""
    indexer = make_indexer(embedded)
    indexer.add_documents(documents(2))
    with pytest.raises(ArgumentError, match=f"filter 'n': {number} is not finite") as error:
        searched(indexer, filters={"n": [1, number] if several else number})
    assert error.value.param == "filters"
    with pytest.raises(ArgumentError, match=f"score_threshold={number}: must be a finite number") as error:
        indexer.search("document", score_threshold=number)
    assert error.value.param == "score_threshold"


def test_the_name_of_a_field_is_a_text(make_indexer, embedded):
    with pytest.raises(ArgumentError, match="filters: the name of a field must be a str, not 1"):
        searched(make_indexer(embedded), filters={1: 1})


NAMES = ["a.b", "k[]", "k[0]", "two words", "", "e\u0301", "ü-_1", "..", "a]", "it's", "[", "\U0001f98a"]
"""Names of metadata, most of which Qdrant would read as a path or refuse."""


@pytest.mark.parametrize("name", NAMES)
def test_a_filter_finds_the_field_of_its_name(make_indexer, embedded, name):
    indexer = make_indexer(embedded)
    given = [{"id": str(n), "text": f"document number {n}", "metadata": {name: n}} for n in range(3)]
    assert indexer.add_documents(given).indexed == 3
    assert searched(indexer, filters={name: 1}) == ["1"]
    assert sorted(searched(indexer, filters={name: [0, 2]})) == ["0", "2"]
    assert searched(indexer, filters={name: 7}) == []


def test_a_filter_finds_a_path(make_indexer, embedded):
    indexer = make_indexer(embedded)
    inner = {"a": {"b": 1, "two words": 2}, "list": [{"n": 3}, {"n": 4}]}
    indexer.add_documents([{"id": "inner", "text": "document number 1", "metadata": inner}])
    for name, value in {"a.b": 1, 'a."two words"': 2, "list[].n": 4, "list[0].n": 3}.items():
        assert searched(indexer, filters={name: value}) == ["inner"]
        assert searched(indexer, filters={name: 9}) == []


@pytest.mark.parametrize("name", ['say "hi"', '"', 'a"b', "a\\b"])
def test_a_name_with_a_quotation_mark_is_refused(make_indexer, embedded, name):
    with pytest.raises(ArgumentError, match="no field with a quotation mark or a backslash in its name") as error:
        searched(make_indexer(embedded), filters={name: 1})
    assert error.value.param == "filters"


DAY = dt.date(2024, 5, 17)
VALUES = [DAY, dt.datetime(2024, 5, 17, 8, 30, tzinfo=dt.timezone.utc), uuid.UUID(int=5), np.datetime64("2024-05-17")]


@pytest.mark.parametrize("value", VALUES, ids=str)
def test_a_filter_takes_what_metadata_takes(make_indexer, embedded, value):
    indexer = make_indexer(embedded)
    given = [
        {"id": name, "text": f"document {name}", "metadata": {"of": of}} for name, of in (("it", value), ("no", 3))
    ]
    assert indexer.add_documents(given).indexed == 2
    assert searched(indexer, filters={"of": value}) == ["it"]
    assert sorted(searched(indexer, filters={"of": [value, 3]})) == ["it", "no"]


def test_times_of_an_array(make_indexer, embedded):
    indexer = make_indexer(embedded)
    indexer.add_documents([{"id": "it", "text": "a document", "metadata": {"of": DAY}}])
    assert searched(indexer, filters={"of": np.array(["2024-05-16", "2024-05-17"], "datetime64[D]")}) == ["it"]
    for wrong in (np.datetime64("NaT", "D"), np.timedelta64(5, "s")):
        with pytest.raises(ArgumentError, match="filter 'of': "):
            searched(indexer, filters={"of": wrong})
