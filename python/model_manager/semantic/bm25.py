"""BM25: search by words, without a model.

Needs ``pip install 'model-manager-rs[bm25]'`` (PyStemmer, and bm25s for the index in memory).
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from .._arguments import a_flag, a_number, a_text, an_int, an_iterable, argument_error
from .._extras import extra
from ..results import SparseVector
from .terms import check_language, query_terms, terms

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from .terms import Language

K1 = 1.2
B = 0.75
AVERAGE_LENGTH = 256
"""Terms of an average document, where nothing else is known; Qdrant's own default."""


class BM25:
    """Sparse vectors of BM25, for a database that weighs terms by their rarity (Qdrant's modifier ``idf``).

    A term's entry is a hash of it, so that no vocabulary has to be kept: the same text has the same vector everywhere.

    >>> bm25 = BM25("turkish")
    >>> bm25.query("ARIZALAR").dot(bm25.document("E-104 arızası: makine arızalı")) > 0
    True
    """

    def __init__(
        self,
        language: Language = "turkish",
        *,
        k1: float = K1,
        b: float = B,
        average_length: float = AVERAGE_LENGTH,
        stop_words: bool = True,
    ) -> None:
        """Loads nothing.

        Args:
            language: ``turkish``, ``english``, or ``auto``: a document's language is the detector's, and a question is
                read in both.
            k1: How much a repeated term counts.
            b: How much a longer document is discounted, 0 to 1.
            average_length: Terms of an average document.
            stop_words: Leave out words such as "ve" and "the", of documents and of questions.

        Raises:
            ArgumentError: An unknown language, or a number out of range.
        """
        self.language = check_language(language)
        self.k1, self.b, self.average_length = _parameters(k1, b, average_length)
        self.stop_words = a_flag("stop_words", stop_words)

    @property
    def name(self) -> str:
        """What a collection calls it."""
        return f"bm25 ({self.language})"

    @property
    def fingerprint(self) -> str:
        """A hash of everything that vectors of documents depend on besides the text."""
        parts = ["bm25", "3", self.language, repr(self.k1), repr(self.b), repr(self.average_length)]
        return hashlib.sha256("\0".join([*parts, str(self.stop_words)]).encode()).hexdigest()[:16]

    def document(self, text: str) -> SparseVector:
        """The vector of a document: what each of its terms adds to a score, before its rarity."""
        found = terms(a_text("text", text), self.language, stop_words=self.stop_words)
        counts = Counter(map(term_id, found))
        norm = self.k1 * (1 - self.b + self.b * len(found) / self.average_length)
        return _vector({entry: count * (self.k1 + 1) / (count + norm) for entry, count in counts.items()})

    def query(self, text: str) -> SparseVector:
        """The vector of a question: 1 for each of its terms. It is empty if all of them are stop words."""
        found = query_terms(a_text("text", text), self.language, stop_words=self.stop_words)
        return _vector({term_id(term): 1.0 for term in found})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BM25) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return f"BM25({self.language!r}, k1={self.k1:g}, b={self.b:g}, average_length={self.average_length:g})"


class TextMatch(NamedTuple):
    """A text that has a term of the question."""

    index: int  # type: ignore[assignment]  # tuples have a method of this name
    """Its place in the corpus."""
    score: float
    text: str


class _TextMatches(list[TextMatch]):
    """What a search returns: a list that notebooks show as a table."""

    def _repr_html_(self) -> str | None:
        from .._html import results_html

        return results_html(self, lambda one: {"row": str(one.index), "score": one.score, "text": one.text})


class BM25Index:
    """Texts in memory, searched by their words (bm25s, with the variant of Lucene).

    >>> index = BM25Index(["Fatura gecikti.", "Kargo yola çıktı."])
    >>> index.search("kargolar nerede")[0].text
    'Kargo yola çıktı.'
    """

    def __init__(
        self,
        texts: Iterable[str],
        language: Language = "turkish",
        *,
        k1: float = K1,
        b: float = B,
        stop_words: bool = True,
    ) -> None:
        """Reads all texts.

        Args:
            texts: The corpus. It may be empty.
            language: As for `BM25`.
            k1: As for `BM25`.
            b: As for `BM25`. The average length is that of the texts.
            stop_words: As for `BM25`.

        Raises:
            ArgumentError: An unknown language, a number out of range.
            TypeError: A text that is not a str.
        """
        self.language = check_language(language)
        k1, b, _ = _parameters(k1, b, AVERAGE_LENGTH)
        self.stop_words = a_flag("stop_words", stop_words)
        given = an_iterable("texts", texts, "an iterable of str")
        self.texts = [a_text(f"texts[{index}]", text) for index, text in enumerate(given)]
        corpus = [terms(text, self.language, stop_words=stop_words) for text in self.texts]
        self._index: Any = None
        if any(corpus):
            with extra("bm25"):
                import bm25s  # type: ignore[import-untyped]
            self._index = bm25s.BM25(k1=k1, b=b, method="lucene")
            self._index.index(corpus, show_progress=False)

    def search(self, query: str, k: int = 10) -> list[TextMatch]:
        """The texts that have a term of `query`, best first, at most `k`. Equal scores are in the order of the corpus.

        Raises:
            ArgumentError: A blank query, `k` below 1.
        """
        if not a_text("query", query).strip():
            raise argument_error("query", "query is blank: there is nothing to search for")
        k = an_int("k", k, 1)
        if self._index is None:
            return _TextMatches()
        known = self._index.vocab_dict
        asked = [term for term in query_terms(query, self.language, stop_words=self.stop_words) if term in known]
        if not asked:
            return _TextMatches()
        scores = self._index.get_scores(asked)
        order = np.argsort(-scores, kind="stable")[:k]
        return _TextMatches(
            TextMatch(int(one), float(scores[one]), self.texts[one]) for one in order if scores[one] > 0
        )

    def __len__(self) -> int:
        return len(self.texts)

    def __repr__(self) -> str:
        return f"<BM25Index {len(self.texts):,} texts, {self.language}>"


@lru_cache(maxsize=65_536)
def term_id(term: str) -> int:
    """The entry of a term in sparse vectors: the first 32 bits of its BLAKE2 hash."""
    return int.from_bytes(hashlib.blake2b(term.encode("utf-8", "replace"), digest_size=4).digest(), "little")


def _vector(weights: dict[int, float]) -> SparseVector:
    entries = sorted(weights)
    return SparseVector(np.array(entries, np.uint32), np.array([weights[entry] for entry in entries], np.float32))


def _parameters(k1: float, b: float, average_length: float) -> tuple[float, float, float]:
    k1, b, average_length = a_number("k1", k1), a_number("b", b), a_number("average_length", average_length)
    if not (math.isfinite(k1) and k1 >= 0):
        raise argument_error("k1", f"k1={k1} must be a number of at least 0")
    if not 0 <= b <= 1:
        raise argument_error("b", f"b={b} must be between 0 and 1")
    if not (math.isfinite(average_length) and average_length > 0):
        raise argument_error("average_length", f"average_length={average_length} must be a number above 0")
    return k1, b, average_length
