"""Invisible characters in and between the words of BM25: Unicode calls them default ignorable."""

from __future__ import annotations

import pytest
from model_manager.semantic import BM25, BM25Index
from model_manager.semantic.terms import query_terms, terms

INVISIBLE = [
    "\u00ad",  # soft hyphen: HTML and PDF
    "\u034f",  # combining grapheme joiner
    "\u061c",  # marks of direction
    "\u200e",
    "\u202b",
    "\u2066",
    "\u180e",  # Mongolian vowel separator
    "\u200b",  # zero width space
    "\u200c",  # joiners
    "\u200d",
    "\u2060",
    "\ufeff",  # byte order mark
    "\u2063",
    "\u3164",  # Hangul filler
    "\uffa0",
    "\ufe0f",  # variation selectors
    "\U000e0101",
    "\U000e0041",  # a tag
    "\U0001d173",
    "\u00ad\u200b\ufeff",
]


@pytest.mark.parametrize("language", ["turkish", "english", "auto"])
@pytest.mark.parametrize("invisible", INVISIBLE, ids=lambda text: "-".join(f"{ord(one):04X}" for one in text))
def test_invisible_characters_change_no_word(invisible, language):
    for text in (
        "fatura gecikti",
        "İstanbul'da Iğdır ışık",
        "6204-2RS/C3 E-104",
        "pump's O'Brien",
        "İzmir’de 5‑10",
        "ΑΘΗΝΑ Москва",
    ):
        plain = terms(text, language)
        between = invisible.join(text)
        assert terms(between, language) == plain
        assert terms(f"{invisible}{text}{invisible}", language) == plain
        assert query_terms(between, language) == query_terms(text, language)
    if language != "auto":
        one, other = (BM25(language).document(text) for text in ("fatura", invisible.join("fatura")))
        assert (one.indices.tolist(), one.values.tolist()) == (other.indices.tolist(), other.values.tolist())


def test_a_word_with_a_soft_hyphen_is_found():
    index = BM25Index(["Fa\u00adtu\u00adra ge\u00adcik\u00adti.", "Kargo yola çıktı."], "turkish")
    assert [match.index for match in index.search("faturalar")] == [0]
    assert [match.index for match in index.search("kar\u200bgo")] == [1]


def test_it_does_not_part_a_letter_from_its_mark():
    assert terms("s\u034f\u0327is\u00ad\u0327e", "turkish") == terms("şişe", "turkish")
    assert terms("I\u00ad\u0307stanbul", "turkish") == terms("İstanbul", "turkish")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", 2),  # Persian: mi-khaham, two parts of a word
        ("\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u200b\u0e04\u0e23\u0e31\u0e1a", 2),  # Thai: two words
        ("\u1781\u17d2\u1798\u17c2\u179a\u200b\u1797\u17b6\u179f\u17b6", 2),  # Khmer: two words
        ("\u0915\u094d\u200d\u0937", 1),  # Hindi: one letter, drawn in another form
    ],
)
def test_what_separates_words_of_other_scripts_still_does(text, words):
    assert len(terms(text, "english")) == words
