"""References for language routing: the chatbot's detector and normalization in plain Python."""

import re
import unicodedata
from pathlib import Path
from typing import Any

from . import files
from .texts import REFERENCE

LETTERS = frozenset("çğıöşüÇĞIİÖŞÜ")
WORD_LIST = """
ve ile bir bu şu ne nasıl nedir niye niçin için den dan dır dir dur dür mı mi mu mü da de ta te la le ya ye
sa se ka ke ben sen o biz siz onlar benim senin bizim sizin onların var yok varsa yoksa gibi kadar çok az
büyük küçük iyi kötü güzel çirkin
"""
WORDS = frozenset(WORD_LIST.split())
THRESHOLD = 0.1
LONGEST = 800  # code points of a text that are embedded

TEXTS = [
    *REFERENCE,
    # Case: İ lower-cases to i and a combining dot, which \w does not take in; I is Turkish, i is not.
    "İde", "İDE", "i̇de", "İ", "I", "i", "ı", "IBM", "ibm", "İzmir", "IŞIK", "BU", "Bu", "NE VAR",
    "DÜNYA", "Merhaba dünya", "test", "TEST", "ΟΔΟΣ", "ὈΔΥΣΣΕΎΣ ΚΑΙ ΑΣ", "Σ", "ΑΣ.",
    "Straße STRASSE ẞ", "ŉ ǰ", "K Å Ω",
    # Combining marks: category M is no word character in Python.
    "de\u0301", "d\u0307e de", "s\u0327u", "o\u0308", "bir\u0307", "क्या ne", "ไทยนี้ bu", "e\u20dd da",
    # Numbers of every kind: digits, superscripts, fractions, Roman, circled, other scripts.
    "12", "²", "½", "Ⅻ ve", "ⅻ", "① bir", "x² de", "de²", "½ ne", "٣ bu", "५ da", "〇 le",
    "1 2 3 4 5 6 7 8 9 var", "㊀ya",
    # Underscore and other joiners; white space of every kind, \x1c to \x1f among it.
    "_", "de_da", "_de_", "de-da", "de'da", "de’da", "de‿da", "bu.şu", "ne?ne!ne", "…", "-",
    "\u200d", "bu\u200dne", "bu\u200cne", "\ufeffbu", "\x1cbu\x1d", "\x1c\x1d\x1e\x1f", "\x85ne\x85",
    "\xa0ne\u3000", "\u2028bu\u2029", "\u180ebu", "\u200bbu\u200b", "\t\n\x0b\x0c\r", "bu\x1cne",
    "bu\0ne", "\0", "ª de º", "ʰ ya", "ー la", "漢字 ve かな カナ", "한국어 ne", "👍 bu", "👨‍👩‍👧",
    "🇹🇷 ve", "de" * 400, "ç" + "a" * 6, "ç" + "a" * 5, "çaaaaaaaaa", "a b ve", "a b c ve",
    "a b c d ve",
    # The cut at 800 code points: in the middle of words, after lower-casing has made the text longer.
    "a" * 900, "İ" * 500, "İ" * 400 + "de", "ve " * 400, "x " * 399 + "ç" * 50,
    " " * 900 + "ne " + "q" * 900, "\u0307" * 3, "q" * 799 + "İ", "q" * 799 + "ΑΣ", "😀" * 801,
    "Bugün toplantı saat kaçta?", "Lütfen bana yardım eder misin", "Where is my order?",
    "Ben de geliyorum", "la la land", "O da ne", "Le chat est sur la table",
    "Ich möchte ein Bier für meinen Freund", "El niño come", "C'est ça", "de facto",
]  # fmt: skip


def score(text: str) -> float:
    """0.7 of the share of Turkish letters and 0.3 of the share of listed words."""
    stripped = text.lower().strip()
    if not stripped:
        return 0.0
    words = re.findall(r"\b\w+\b", stripped)
    letters = sum(character in LETTERS for character in text) / len(text)
    listed = sum(word in WORDS for word in words) / len(words) if words else 0.0
    return 0.7 * letters + 0.3 * listed


def is_turkish(text: str) -> bool:
    return score(text) > THRESHOLD


def normalize(text: str) -> str:
    return text.strip().lower()[:LONGEST]


def make(root: Path) -> None:
    cases: list[dict[str, Any]] = []
    for text in dict.fromkeys(TEXTS):
        normalized = normalize(text)
        cases.append(
            {
                "text": text,
                "turkish": is_turkish(text),
                "score": score(text),
                "normalized": normalized,
                "routes_turkish": is_turkish(normalized),
                "embeddable": len(normalized) >= 2,
            }
        )
    made = {"unicode": unicodedata.unidata_version, "cases": cases}
    files.write_json(root / "text" / "detector.json", made)
    print(f"text: {len(cases)} texts, {sum(case['turkish'] for case in cases)} Turkish", flush=True)
