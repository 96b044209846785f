"""The pages of docs/tr have the sections, the code and the tables of the English pages of the same name."""

from __future__ import annotations

import re

import pytest
from conftest import ROOT

DOCS = ROOT / "docs"
PAGES = sorted(path.name for path in (DOCS / "tr").glob("*.md"))
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`[^`]+`")


def parts(path):
    """Levels of the headings, and blocks of code."""
    text = path.read_text(encoding="utf-8")
    headings = re.findall(r"^(#+) ", FENCE.sub("", text), re.MULTILINE)
    return headings, FENCE.findall(text)


def rows(path):
    """What each row of the tables has in backticks: names of settings, fields and paths, which are not translated."""
    prose = FENCE.sub("", path.read_text(encoding="utf-8"))
    return [sorted(SPAN.findall(line)) for line in prose.splitlines() if line.startswith("|")]


def test_the_core_pages_are_there():
    core = {"cli.md", "compatibility.md", "configuration.md", "embedding.md", "generation.md", "integrations.md"}
    core |= {"qdrant.md", "reranking.md", "semantic.md", "server.md", "tracing.md"}
    assert core <= set(PAGES)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_in_step(name):
    headings, code = parts(DOCS / "tr" / name)
    english_headings, english_code = parts(DOCS / name)
    assert headings == english_headings, f"docs/{name} has other sections: translate them in docs/tr/{name}"
    assert code == english_code, f"docs/{name} has other code: copy it to docs/tr/{name}"


@pytest.mark.parametrize("name", PAGES)
def test_tables_are_in_step(name):
    turkish, english = rows(DOCS / "tr" / name), rows(DOCS / name)
    assert len(turkish) == len(english), f"docs/{name} has other rows in its tables: translate them in docs/tr/{name}"
    for ours, theirs in zip(turkish, english, strict=True):
        assert ours == theirs


def spans(path):
    """What the prose of each section has in backticks. A word in capitals at the end is a placeholder."""
    prose = FENCE.sub("", path.read_text(encoding="utf-8"))
    prose = "\n".join(line for line in prose.splitlines() if not line.startswith("|"))
    sections = re.split(r"^#+ .*$", prose, flags=re.MULTILINE)
    return [
        {re.sub(r" [A-ZÇĞİÖŞÜ]+`$", " X`", " ".join(span.split())) for span in SPAN.findall(one)} for one in sections
    ]


@pytest.mark.parametrize("name", PAGES)
def test_the_prose_is_in_step(name):
    """A sentence that names something has its translation."""
    pairs = zip(spans(DOCS / name), spans(DOCS / "tr" / name), strict=True)
    assert [sorted(english - turkish) for english, turkish in pairs if english - turkish] == []


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_turkish_pages(name):
    links = re.findall(r"\]\(\.\./([\w-]+\.md)", (DOCS / "tr" / name).read_text(encoding="utf-8"))
    assert [page for page in links if page in PAGES] == []


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_turkish(name):
    """Prose without words that only English has: a paragraph that was forgotten has some."""
    prose = re.sub(r"`[^`]*`|\(.*?\)", "", FENCE.sub("", (DOCS / "tr" / name).read_text(encoding="utf-8")))
    found = re.findall(r"\b(?:the|and|with|which|are|from|without|of)\b", prose, re.IGNORECASE)
    assert found == []
