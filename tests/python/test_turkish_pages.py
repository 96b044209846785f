"""The pages of docs/tr have the sections and the code of the English pages of the same name."""

from __future__ import annotations

import re

import pytest
from conftest import ROOT

DOCS = ROOT / "docs"
PAGES = sorted(path.name for path in (DOCS / "tr").glob("*.md"))
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def parts(path):
    """Levels of the headings, and blocks of code."""
    text = path.read_text(encoding="utf-8")
    headings = re.findall(r"^(#+) ", FENCE.sub("", text), re.MULTILINE)
    return headings, FENCE.findall(text)


def test_the_core_pages_are_there():
    assert {"compatibility.md", "generation.md", "integrations.md", "tracing.md"} <= set(PAGES)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_in_step(name):
    headings, code = parts(DOCS / "tr" / name)
    english_headings, english_code = parts(DOCS / name)
    assert headings == english_headings, f"docs/{name} has other sections: translate them in docs/tr/{name}"
    assert code == english_code, f"docs/{name} has other code: copy it to docs/tr/{name}"


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_turkish(name):
    """Prose without words that only English has: a paragraph that was forgotten has some."""
    prose = re.sub(r"`[^`]*`|\(.*?\)", "", FENCE.sub("", (DOCS / "tr" / name).read_text(encoding="utf-8")))
    found = re.findall(r"\b(?:the|and|with|which|are|from|without|of)\b", prose, re.IGNORECASE)
    assert found == []
