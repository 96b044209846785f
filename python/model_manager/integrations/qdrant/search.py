"""Filters and hits of a search."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from qdrant_client import models

from ..._arguments import argument_error, type_error
from .documents import CHUNK_FIELDS, OWN_FIELDS, PARENT, is_chunk


@dataclass(frozen=True, slots=True)
class SearchHit:
    """A document in a search result."""

    id: str
    """The document's id as given, else the id of its point."""
    score: float
    """Of a dense search the cosine similarity to the query, -1 to 1; of a sparse one the sum of the weights of common
    terms; of a hybrid one the fusion of both ranks; after a reranker its score. Higher is better.
    """
    text: str
    metadata: dict[str, Any]
    payload: dict[str, Any]
    """All stored fields: metadata, text, text_length, word_count, indexed_at, original_doc_id, content_hash; of a chunk
    also parent_id, chunk, chunks, chunk_start, chunk_end.
    """
    span: tuple[int, int] | None = None
    """Where the text is in the document, in characters; None for a whole document."""

    @classmethod
    def of(cls, point: models.ScoredPoint, divided: bool = True) -> SearchHit:
        """The hit for a point of the Qdrant client; `divided`: it may be a chunk."""
        payload = point.payload or {}
        given = payload.get("original_doc_id")
        whole = not (divided and is_chunk(payload))
        own = OWN_FIELDS if whole else OWN_FIELDS | CHUNK_FIELDS
        return cls(
            id=str((point.id if whole else payload[PARENT]) if given is None else given),
            score=float(point.score),
            text=str(payload.get("text", "")),
            metadata={key: value for key, value in payload.items() if key not in own},
            payload=payload,
            span=None if whole else (payload["chunk_start"], payload["chunk_end"]),
        )

    def to_dict(self) -> dict[str, Any]:
        """Id, score, text and metadata, and the span of a chunk; JSON-serializable."""
        found = {"id": self.id, "score": round(self.score, 6), "text": self.text, "metadata": self.metadata}
        return found if self.span is None else {**found, "span": list(self.span)}


class SearchHits(list[SearchHit]):
    """What a search returns: a list that notebooks show as a table."""

    def _repr_html_(self) -> str | None:
        from ..._html import metadata_text, results_html

        return results_html(
            self,
            lambda one: {
                "id": one.id,
                "score": one.score,
                "text": one.text,
                "characters": None if one.span is None else f"{one.span[0]:,} to {one.span[1]:,}",
                "metadata": metadata_text(one.metadata),
            },
        )


def make_filter(filters: Mapping[str, Any] | None) -> models.Filter | None:
    """``{field: value}`` or ``{field: [values]}``: all fields must match, a list means any of its values.

    A number means the same one stored as an int or as a float.

    Raises:
        TypeError: `filters` is no mapping.
        ArgumentError: A name that is no str; a value that is not a str, int, float or bool, or not finite.
    """
    if filters is not None and not isinstance(filters, Mapping):
        raise type_error("filters", "a mapping of fields to values", filters)
    if not filters:
        return None
    for field in filters:
        if not isinstance(field, str):
            raise argument_error("filters", f"filters: the name of a field must be a str, not {field!r}")
    return models.Filter(must=[_condition(field, value) for field, value in filters.items()])


def _condition(field: str, value: Any) -> models.Condition:
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, bool | str):
        return models.FieldCondition(key=field, match=models.MatchValue(value=value))
    if isinstance(value, int):
        exact = models.FieldCondition(key=field, match=models.MatchValue(value=value))
        # A stored float does not match an int. Beyond these bounds a float may be another int's.
        return models.Filter(should=[exact, _equal(field, value)]) if abs(value) < 2**53 else exact
    if isinstance(value, float):
        if not math.isfinite(value):  # JSON has no such number: the server would see no bounds at all
            raise argument_error("filters", f"filter {field!r}: {value!r} is not finite")
        return _equal(field, value)
    if isinstance(value, Collection) and not isinstance(value, bytes | Mapping):
        if not len(value):
            # Any of no values matches nothing. An empty `should` would match everything.
            return models.FieldCondition(key=field, match=models.MatchAny(any=[]))
        return models.Filter(should=[_condition(field, one) for one in value])
    raise argument_error(
        "filters", f"filter {field!r}: a value must be str, int, float or bool, or several, not {value!r}"
    )


def _equal(field: str, number: float) -> models.FieldCondition:
    """Qdrant has no exact match for floats."""
    return models.FieldCondition(key=field, range=models.Range(gte=number, lte=number))
