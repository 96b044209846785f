"""What reranking and classification return."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Classification", "RerankResult"]


class RerankResult(NamedTuple):
    """One document of a reranking, best first in its list."""

    index: int  # type: ignore[assignment]  # tuples have a method of this name
    """The document's position in the request."""
    score: float
    """Higher is better; between 0 and 1 for most models."""
    document: str | None = None
    """The text, unless the call left it out."""


class Classification(NamedTuple):
    """The labels of one text or pair."""

    label: str
    """The likeliest label."""
    score: float
    """Its probability."""
    scores: dict[str, float]
    """The probability of each label, in the model's order."""
