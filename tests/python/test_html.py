"""How managers and models look in a notebook and at the prompt."""

from __future__ import annotations

import json
import pickle
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from conftest import ENGLISH_MODEL, ENGLISH_TEXT, FIXTURES
from model_manager import CrossEncoder, SentenceModel
from model_manager._sizes import size_text
from model_manager.results import Ranking, RerankResult
from model_manager.semantic import BM25Index, semantic_search

HOSTILE = "<script>alert(1)</script>\"'&amp;<img src=x onerror=alert(1)>"


class Checker(HTMLParser):
    """Every element closed in order; no scripts, no assets from elsewhere."""

    def __init__(self, html):
        super().__init__()
        self.open, self.text = [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert tag in {"div", "b", "span", "table", "tr", "th", "td", "code"}
        assert {name for name, _ in attrs} <= {"style", "title"}
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def shown(thing):
    html = thing._repr_html_()
    assert "url(" not in html
    assert "#fff" not in html
    assert "black" not in html
    return " ".join(Checker(html).text)


def test_a_manager(manager):
    text = shown(manager)
    for word in ("turkish_sentence", "english_sentence", "text_generator", "absent", "cache 0/50", "no look-ups yet"):
        assert word in text
    assert not any(map(manager.is_loaded, manager.slots())), "looking loads nothing"
    manager.embed(ENGLISH_TEXT)
    text = shown(manager)
    assert "ready" in text
    assert re.search(r"models \d+\.\d KiB, process \d+(\.\d)? MiB", text), text
    manager.close()
    assert "closed" in shown(manager)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (16 << 20, "16 MiB"),
        (94_580_000, "90.2 MiB"),
        (1 << 30, "1 GiB"),
        (1_342_177_280, "1.25 GiB"),
    ],
)
def test_sizes_are_written_with_powers_of_1024(count, text):
    assert size_text(count) == text
    assert size_text(float(count)) == text


def test_a_model(manager):
    model = manager.get("english_sentence")
    text = shown(model)
    for word in ("english_sentence", "32 dimensions", "24 tokens", "mean", "bert"):
        assert word in text
    manager.unload("english_sentence")
    assert "not loaded" in shown(model)


def test_a_model_that_gives_something_else(manager):
    for name in ("rerank_bert", "splade_bert", "colbert", "bge_m3"):
        manager.register(name, str(FIXTURES / name))
    scores = CrossEncoder(manager, "rerank_bert")
    assert "CrossEncoder" in shown(scores)
    assert not manager.is_loaded("rerank_bert")
    manager.load("rerank_bert")
    text = shown(scores)
    assert ("CrossEncoder" in text, "labels" in text, "pooling" in text) == (True, True, False)
    expected = {
        "splade_bert": ["sparse vectors"],
        "colbert": ["one for each token"],
        "bge_m3": ["24 dimensions", "pooling", "sparse vectors"],
    }
    words = {word for some in expected.values() for word in some}
    for name, own in expected.items():
        manager.load(name)
        text = shown(SentenceModel(manager, name))
        assert {word for word in words if word in text} == set(own), name


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "\"&amp;'<b>"])
def test_names_are_escaped(manager, name):
    manager.register(name, ENGLISH_MODEL, prompts={name: name})
    assert name in shown(manager)
    assert name in shown(manager.get(name))


def test_repr(manager):
    assert "english_sentence" in repr(manager)
    assert "ModelManager" in repr(manager)
    manager.load("english_sentence")
    assert "loaded" in repr(manager) or "ready" in repr(manager)


def test_a_ranking(manager):
    manager.register("rank", str(FIXTURES / "rerank_bert"))
    results = manager.rerank("query", ["<b>one</b>", "two " * 100], "rank")
    assert isinstance(results, list)
    text = shown(results)
    assert "<b>one</b>" in text
    assert "…" in text
    assert f"{results[0].score:.4f}" in text
    assert "score" in shown(manager.rerank("query", ["one"], "rank", return_documents=False))


def test_matches():
    matches = semantic_search(np.eye(8, dtype=np.float32), np.eye(8, dtype=np.float32), k=2)
    text = shown(matches)
    assert "1.0000" in text
    assert "and 3 more queries" in text
    assert "more match" not in text
    many = semantic_search(np.eye(32, dtype=np.float32)[:1], np.eye(32, dtype=np.float32), k=32)
    assert "and 22 more matches of each query" in shown(many)
    assert many.indices.shape == (1, 32)
    assert "query" in shown(semantic_search(np.empty((0, 4)), np.empty((0, 4))))


def test_hits_of_qdrant():
    pytest.importorskip("qdrant_client")
    from model_manager.integrations.qdrant.search import SearchHit, SearchHits

    hit = SearchHit(HOSTILE, 0.25, HOSTILE, {HOSTILE: HOSTILE}, {"text": HOSTILE})
    chunk = SearchHit("d", 0.125, "a part", {}, {}, span=(1000, 2000))
    hits = SearchHits([hit, chunk])
    text = shown(hits)
    assert text.count("<script>alert(1)</script>") == 4
    for word in ("0.2500", "1,000 to 2,000", "characters", "metadata"):
        assert word in text
    plain = shown(SearchHits([SearchHit("d", 0.5, "whole", {}, {})]))
    assert "metadata" not in plain
    assert "characters" not in plain
    assert hits == [hit, chunk]
    assert pickle.loads(pickle.dumps(hits)) == hits
    assert "no results" in shown(SearchHits())


def test_a_search_returns_hits_that_are_shown(manager):
    pytest.importorskip("qdrant_client")
    from model_manager.integrations.qdrant import QdrantIndexer

    manager.register("rank", str(FIXTURES / "rerank_bert"))
    with QdrantIndexer("notes", model="english_sentence", manager=manager, path=":memory:", rerank="rank") as indexer:
        indexer.add_documents([{"id": "a", "text": HOSTILE, "metadata": {"lang": "en"}}, {"id": "b", "text": "two"}])
        for rerank in (False, True):
            hits = indexer.search("question", score_threshold=None, rerank=rerank)
            assert isinstance(hits, list)
            assert {hit.id for hit in hits} == {"a", "b"}
            text = shown(hits)
            assert HOSTILE in text
            assert "lang=en" in text


def test_other_lists_of_results(manager):
    manager.register("rank", str(FIXTURES / "rerank_bert"))
    encoder = CrossEncoder(manager, "rank")
    ranks = encoder.rank("query", [HOSTILE, "two"], return_documents=True)
    assert isinstance(ranks, list)
    assert all(type(one) is dict for one in ranks)
    assert json.loads(json.dumps(ranks)) == ranks
    assert HOSTILE in shown(ranks)
    assert "text" not in shown(encoder.rank("query", [HOSTILE, "two"]))
    labels = manager.classify(["one", "two"], "rank")
    assert isinstance(labels, list)
    assert labels[0].label in shown(labels)


def test_texts_with_the_words():
    pytest.importorskip("bm25s")
    index = BM25Index([HOSTILE, "the parcel is late"], "english")
    assert "the parcel is late" in shown(index.search("parcels"))
    assert HOSTILE in shown(index.search("script"))
    assert index.search("nothing") == []
    assert "no results" in shown(index.search("nothing"))


def test_long_and_changed_lists():
    many = Ranking(RerankResult(number, 1.0, f"text {number}") for number in range(51))
    text = shown(many)
    assert "text 49" in text
    assert "text 50" not in text
    assert "and 1 more result" in text
    many.insert(0, "an item of the caller")
    assert many._repr_html_() is None, "notebooks show the plain list then"
    shown(Ranking([RerankResult(0, 1.0, "a lone \ud800 surrogate")])).encode()


def test_an_explanation(make_manager):
    manager = make_manager(keep_alive="auto", adaptive_state=False)
    manager.embed(ENGLISH_TEXT)
    explanation = manager.explain("english_sentence")
    assert isinstance(explanation, dict)
    text = shown(explanation)
    assert explanation["sentence"] in text
    assert "cold_start_price" in text
    assert manager.explain("turkish_sentence")["slot"] in shown(manager.explain("turkish_sentence"))
