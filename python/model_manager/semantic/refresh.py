"""Vectors of stored questions by the slot's present model: those that are in the file, or computed again."""

from __future__ import annotations

import logging
from typing import NamedTuple

import numpy as np

from .._embedder import SAME, is_exact
from ..errors import InputError, NotFiniteError
from .rows import prepare

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from .._embedder import Embedder
    from .rows import Vectors
    from .store import Row

logger = logging.getLogger(__name__)


class Present(NamedTuple):
    """Rows of a file, and which of them have vectors of the present model."""

    model: tuple[str, str]
    """The `query_model` of `fresh`."""
    own: set[str]
    """Other fingerprints of the same checkpoint: those of earlier versions, or of a server's model."""
    stale: list[Row]
    """Rows whose vectors are damaged, or another model's."""
    fresh: dict[str, Vectors]
    """The vectors of their questions, but of those that the model refuses."""


def embed(embedder: Embedder, questions: Sequence[str]) -> tuple[dict[str, Vectors], tuple[str, str]]:
    """Vectors of length 1 by question, and the `query_model` that made them. A question that the model refuses has
    none: it may have been stored for a model that reads longer texts.
    """
    while True:
        parts = _parts(embedder, questions)
        models = {model for _, model in parts}
        if len(models) > 1:  # it changed meanwhile
            continue
        # Without a vector, this raises what ails the slot.
        model = models.pop() if models else embedder.query_model
        found = {question: vector for part, _ in parts for question, vector in part.items()}
        if refused := len(set(questions)) - len(found):
            logger.warning("%s: its model refuses %d of the stored questions; left out", embedder.slot, refused)
        return found, model


def _parts(embedder: Embedder, questions: Sequence[str]) -> list[tuple[dict[str, Vectors], tuple[str, str]]]:
    try:
        found, model = embedder.queries_of_one_model(questions)
    except (InputError, NotFiniteError):
        if len(questions) < 2:
            return []
        half = len(questions) // 2
        return _parts(embedder, questions[:half]) + _parts(embedder, questions[half:])
    return [(dict(zip(questions, prepare(found, "vectors", "cosine"), strict=True)), model)]


def present(embedder: Embedder, rows: Sequence[Row]) -> Present:
    """Which rows have vectors of the slot's present model; the questions of the others are embedded."""
    while True:
        model = embedder.query_model
        form = model[1].partition("-")[0]
        # The vectors of one fingerprint are of one checkpoint. Where not both fingerprints are exact, one question
        # shows whether it is the present one.
        candidates = [
            row
            for row in rows
            if row.vector is not None
            and row.fingerprint.startswith(f"{form}-")
            and not (is_exact(row.fingerprint) and is_exact(model[1]))
        ]
        tested = {row.fingerprint: row for row in candidates}
        found, tester = embed(embedder, [row.key[1] for row in tested.values()])
        own = {tag for tag, row in tested.items() if _is_same(row.vector, found.get(row.key[1]))}
        own |= {model[1]} if is_exact(model[1]) else set()
        width = embedder.dimension
        stale = [row for row in rows if row.fingerprint not in own or row.vector is None or len(row.vector) != width]
        fresh, last = embed(embedder, [row.key[1] for row in stale])
        if model == tester == last:
            return Present(model, own - {model[1]}, stale, fresh)


def _is_same(stored: Vectors | None, vector: Vectors | None) -> bool:
    if stored is None or vector is None or stored.shape != vector.shape:
        return False
    return float(np.dot(stored, vector)) >= SAME
