"""The terms of a text for search by words: case, stop words, stems and codes, in Turkish and in English.

Needs PyStemmer (``pip install 'model-manager-rs[bm25]'``), the Snowball project's stemmers.
"""

from __future__ import annotations

import functools
import re
import threading
import unicodedata

from .._arguments import one_of
from .._core import is_turkish
from .._extras import extra

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Literal, TypeAlias

    Language: TypeAlias = Literal["turkish", "english", "auto"]

LANGUAGES = ("turkish", "english", "auto")

_TURKISH = """
acaba ama ancak bana bazı ben beni benim bir biz bizi bizim bu buna bunu bunun bunlar çok çünkü da daha de defa değil
diye en fakat gibi hangi hem hep her için ile ise ki kim mi mı mu mü nasıl ne neden nerede nereye nereden o ona onu onun
onlar oysa sen seni senin siz sizi sizin şey şu şuna şunu tüm ve veya ya yani
"""
_ENGLISH = """
a about am an and are as at be been but by can could did do does for from had has have he her him his how i if in into
is it its me my no not of on or our she should so than that the their them then there these they this to us was we were
what when where which who why will with would you your
"""
STOP_WORDS = {"turkish": frozenset(_TURKISH.split()), "english": frozenset(_ENGLISH.split())}

_INVISIBLE = dict.fromkeys(
    [
        *(0x00AD, 0x034F, 0x061C, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x3164, 0xFEFF, 0xFFA0),
        *range(0x180B, 0x1810),
        *range(0x200D, 0x2010),
        *range(0x202A, 0x202F),
        *range(0x2060, 0x2070),
        *range(0xFE00, 0xFE10),
        *range(0xFFF0, 0xFFF9),
        *range(0x1BCA0, 0x1BCA4),
        *range(0x1D173, 0x1D17B),
        *range(0xE0000, 0xE1000),
        *range(0x20DD, 0x20E5),
    ]
)
"""Unicode's Default_Ignorable_Code_Point (DerivedCoreProperties.txt) but the two of `_BETWEEN`, and marks that enclose
the character before them, as in emoji. They are removed: soft hyphens and others stand inside of words.
"""
_LATIN = r"\0-\u058f\u1e00-\u1fff\u2010-\u2027\uff01-\uff5e"
"""Latin, Greek, Cyrillic and Armenian letters, digits and punctuation."""
_BETWEEN = re.compile(rf"(?<![^{_LATIN}])[\u200b\u200c]+(?![^{_LATIN}])")
"""ZERO WIDTH SPACE and ZERO WIDTH NON-JOINER next to these alone: they are removed. In other scripts they part words
(Thai, Khmer) or parts of words (Persian).
"""
_APOSTROPHE = re.compile("['’ʼ]")
_ENGLISH_ENDINGS = frozenset({"s", "t", "re", "ve", "ll", "d", "m"})
"""What follows an apostrophe in English without being a part of the word: pump's, don't, we've."""
_JOINTS = re.compile(r"[-./:_]+")
_TWO_RUNS = re.compile(r"(\d+)(\D+)|(\D+)(\d+)")
_ONE_I = str.maketrans("Iİı", "iii")
_TURKISH_CASE = str.maketrans({"I": "ı", "İ": "i"})
_STEM_ROUNDS = 4
_TURKISH_STEM = 5
"""Letters of a Turkish stem that count. The stemmer leaves some suffixes of possessives (faturası, makinesi); the
first letters alone find Turkish words about as well as a full analysis (Can et al., 2008).
"""

_local = threading.local()


def check_language(language: str) -> Language:
    """`language`, if it is a known one. Raises `ArgumentError`."""
    return one_of("language", language, LANGUAGES)  # type: ignore[return-value]


def terms(text: str, language: Language, *, stop_words: bool = True) -> list[str]:
    """The terms of `text` in their order, with repetitions. ``auto`` takes the detector's language, and both
    where a capital I is the only sign of Turkish.

    A word with a digit is a code: it is no stop word and has no stem. E-104 and E104 have the terms ``e104``, ``e`` and
    ``104``. The letters I, İ, ı and i are the same in a code, because a code has no language.

    An apostrophe ends a word before its suffixes (İstanbul'da, pump's). Elsewhere it is a joint: O'Brien has the terms
    ``obrien`` and ``brien``.
    """
    if not text.isascii():
        # Before letters and marks are composed, which may stand on both sides.
        text = unicodedata.normalize("NFKC", _BETWEEN.sub("", text.translate(_INVISIBLE)))
        # Python's lower() makes these two characters of İ.
        text = text.replace("i\u0307", "İ").replace("ı\u0307", "İ")
    languages = _languages(text) if language == "auto" else (language,)
    stems = [(one, _stemmer(one), STOP_WORDS[one] if stop_words else frozenset()) for one in languages]
    found: list[str] = []
    for match in _words_of(text).finditer(text):
        pieces = _without_suffixes(_APOSTROPHE.split(match[0]), languages[0])
        parts = [part for piece in pieces for part in _JOINTS.split(piece) if part]
        if any(map(str.isdigit, "".join(parts))):
            found += _of_code([part.translate(_ONE_I).lower() for part in parts])
            continue
        if len(pieces) > 1:
            parts = _of_name(parts, len(pieces), languages[0])
        for part in parts:
            smalls = [(_lower(part, one), stem, ignored) for one, stem, ignored in stems]
            if len(stems) > 1 and "I" in part and _lower(part, "english") in STOP_WORDS["english"]:
                smalls = smalls[:1]  # IS, IT, WITH: the Turkish readings (ıs, ıt, wıth) are no words
            found += dict.fromkeys(stem(small) for small, stem, ignored in smalls if small not in ignored)
    return found


def _without_suffixes(pieces: list[str], language: str) -> list[str]:
    """The pieces of a word between its apostrophes, without those that are suffixes."""
    if language == "english":
        while len(pieces) > 1 and pieces[-1].lower() in _ENGLISH_ENDINGS:
            pieces.pop()
    elif len(pieces) > 1:
        # After one letter stands a name more often than a suffix (O'Brien, L'Oréal), and no suffix has digits (5'10).
        before = _JOINTS.split(pieces[-2])[-1]
        if not (len(before) == 1 and before.isalpha()) and not pieces[-1][0].isdigit():
            pieces.pop()
    return pieces


def _of_code(parts: list[str]) -> list[str]:
    """The terms of a code: the whole, and what stands between its joints. Without a joint it may stand where digits
    begin or end, so that E104 and "E 104" meet. More than one such place is no part number, but a hash or a key.
    """
    if len(parts) == 1 and (runs := _TWO_RUNS.fullmatch(parts[0])) is not None:
        parts = [run for run in runs.groups() if run is not None]
    return ["".join(parts), *parts] if len(parts) > 1 else parts


def _of_name(parts: list[str], joined: int, language: str) -> list[str]:
    """The parts of a word of which apostrophes join the last ones, and these as one. One letter is a word of its own in
    Turkish only: C'de.
    """
    front, name = parts[:-joined], parts[-joined:]
    return [*front, "".join(name), *(part for part in name if language == "turkish" or len(part) > 1)]


def _languages(text: str) -> tuple[Language, ...]:
    """The language of a text, or both if a capital I is its only sign of Turkish: INVOICE, ISI."""
    # The detector refuses lone surrogates, which are no letters of any language.
    text = text.encode("utf-8", "replace").decode()
    if not is_turkish(text):
        return ("english",)
    if "I" not in text or is_turkish(text.replace("I", "i")):
        return ("turkish",)
    return ("english", "turkish")


def _words_of(text: str) -> re.Pattern[str]:
    r"""The pattern of the words of `text`. ``\w`` lacks the marks that do not compose with their letter."""
    marks = "" if text.isascii() else "".join(sorted(one for one in set(text) if unicodedata.category(one)[0] == "M"))
    return _words(marks)


@functools.lru_cache(maxsize=64)
def _words(marks: str) -> re.Pattern[str]:
    # Words, and words joined as in E-104, 6204-2RS/C3 or O'Brien.
    word = rf"\w[\w{marks}]*"
    return re.compile(rf"{word}(?:[-./:_]{word})*(?:['’ʼ]{word})*")


def query_terms(text: str, language: Language, *, stop_words: bool = True) -> list[str]:
    """The distinct terms of a question in their order. ``auto`` gives those of both languages, because the detector
    knows the language of a short question too seldom.
    """
    both: tuple[Language, ...] = ("turkish", "english") if language == "auto" else (language,)
    return list(dict.fromkeys(term for one in both for term in terms(text, one, stop_words=stop_words)))


def _lower(word: str, language: str) -> str:
    # The rules of Unicode turn İ into two characters and I into i, for every language.
    return word.translate(_TURKISH_CASE).lower() if language == "turkish" else word.replace("İ", "i").lower()


def _stemmer(language: str) -> Callable[[str], str]:
    """The stemmer of this thread; PyStemmer's objects must not be shared by threads."""
    try:
        made: dict[str, Callable[[str], str]] = _local.stemmers
    except AttributeError:
        made = _local.stemmers = {}
    if language not in made:
        with extra("bm25"):
            import Stemmer  # type: ignore[import-not-found]  # it has no types
        once: Callable[[str], str] = Stemmer.Stemmer(language).stemWord
        made[language] = (lambda word: _root(word, once)) if language == "turkish" else once
    return made[language]


def _root(word: str, once: Callable[[str], str]) -> str:
    """The beginning of the stem that no further stemming changes. The Turkish stemmer removes one suffix of
    ``makineler`` and one of ``makine``, so that a word and its forms meet only at the end.
    """
    for _ in range(_STEM_ROUNDS):
        shorter = once(word)
        if shorter == word:
            break
        word = shorter
    return word[:_TURKISH_STEM]
