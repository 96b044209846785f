"""How managers and models look in a notebook and at the prompt."""

from __future__ import annotations

from html.parser import HTMLParser

import numpy as np
import pytest
from conftest import ENGLISH_MODEL, ENGLISH_TEXT, FIXTURES
from model_manager.semantic import semantic_search


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
    assert "MB" in text
    manager.close()
    assert "closed" in shown(manager)


def test_a_model(manager):
    model = manager.get("english_sentence")
    text = shown(model)
    for word in ("english_sentence", "32 dimensions", "24 tokens", "mean", "bert"):
        assert word in text
    manager.unload("english_sentence")
    assert "not loaded" in shown(model)


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


def test_an_explanation(make_manager):
    manager = make_manager(keep_alive="auto", adaptive_state=False)
    manager.embed(ENGLISH_TEXT)
    explanation = manager.explain("english_sentence")
    assert isinstance(explanation, dict)
    text = shown(explanation)
    assert explanation["sentence"] in text
    assert "cold_start_price" in text
    assert manager.explain("turkish_sentence")["slot"] in shown(manager.explain("turkish_sentence"))
