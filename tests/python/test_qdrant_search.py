"""What a search compares with: the collection as it is now, and filters as they were meant."""

from __future__ import annotations

import asyncio
import math

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
