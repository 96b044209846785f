"""A long text in chunks that a model reads whole: what `ModelManager.chunk` returns."""

from __future__ import annotations

from typing import NamedTuple


class TextChunk(NamedTuple):
    """A part of a text."""

    text: str
    """The part itself: ``whole[start:end]``."""
    start: int
    """Its first character in the whole text."""
    end: int
    """One past its last character."""
    tokens: int
    """The tokens that the model reads for it, with the prompt and the special tokens."""
