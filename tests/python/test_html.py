"""How managers and models look in a notebook and at the prompt."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from conftest import ENGLISH_MODEL, ENGLISH_TEXT


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
