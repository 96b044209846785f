"""Models as objects: `SentenceModel` and `CrossEncoder` have sentence-transformers' calls, `TextGenerator` those of a
pipeline.

A handle names a slot and holds no weights, so an idle model leaves memory while handles on it exist.
"""

from __future__ import annotations

from .cross_encoder import CrossEncoder
from .sentence_model import SentenceModel
from .text_generator import TextGenerator

__all__ = ["CrossEncoder", "SentenceModel", "TextGenerator"]
