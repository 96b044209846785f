"""Filters and hits of a search."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

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
    def of(cls, point: models.ScoredPoint, divided: bool) -> SearchHit:
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

    Raises:
        ArgumentError: A value that is not a str, int, float or bool.
    """
    if filters is not None and not isinstance(filters, Mapping):
        raise type_error("filters", "a mapping of fields to values", filters)
    if not filters:
        return None
    return models.Filter(must=[_condition(field, value) for field, value in filters.items()])


def _condition(field: str, value: Any) -> models.Condition:
    if isinstance(value, bool | int | str):
        return models.FieldCondition(key=field, match=models.MatchValue(value=value))
    if isinstance(value, float):
        # Qdrant has no exact match for floats.
        return models.FieldCondition(key=field, range=models.Range(gte=value, lte=value))
    if isinstance(value, Collection) and not isinstance(value, bytes | Mapping):
        if not value:
            # Any of no values matches nothing. An empty `should` would match everything.
            return models.FieldCondition(key=field, match=models.MatchAny(any=[]))
        return models.Filter(should=[_condition(field, one) for one in value])
    raise argument_error(
        "filters", f"filter {field!r}: a value must be str, int, float or bool, or several, not {value!r}"
    )
