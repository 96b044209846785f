"""Filters and hits of a search."""

from __future__ import annotations

import math
import re
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from qdrant_client import models

from ..._arguments import argument_error, type_error
from .documents import CHUNK_FIELDS, OWN_FIELDS, PARENT, is_chunk, plain


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

    A number means the same one stored as an int or as a float, and a date or a UUID the text that metadata has of it.
    A name with dots or brackets means the field of this name, and what Qdrant finds at this path.

    Raises:
        TypeError: `filters` is no mapping.
        ArgumentError: A name that is no str, or has a quotation mark or a backslash; a value that is not a str, int,
            float, bool, date or UUID, or not finite.
    """
    if filters is not None and not isinstance(filters, Mapping):
        raise type_error("filters", "a mapping of fields to values", filters)
    if not filters:
        return None
    for field in filters:
        if not isinstance(field, str):
            raise argument_error("filters", f"filters: the name of a field must be a str, not {field!r}")
    return models.Filter(must=[_at(_paths(field), value) for field, value in filters.items()])


_KEY = r"(?:[^\W_]|[_-])+"
_PATH = re.compile(rf'(?:{_KEY}|"[^"]*")(?:\.(?:{_KEY}|"[^"]*")|\[\d*\])*')


def path_of(field: str) -> str | None:
    """Qdrant's path of the field of this name; None where it has none."""
    if re.fullmatch(_KEY, field):
        return field
    return None if '"' in field or "\\" in field else f'"{field}"'


def _paths(field: str) -> list[str]:
    """The paths of Qdrant that `field` may mean."""
    own = path_of(field)
    found = [path for path in (own, field if _PATH.fullmatch(field) else None) if path is not None]
    if not found:
        raise argument_error(
            "filters", f"filters: Qdrant finds no field with a quotation mark or a backslash in its name: {field!r}"
        )
    return list(dict.fromkeys(found))


def _at(paths: list[str], value: Any) -> models.Condition:
    conditions = [_condition(path, value) for path in paths]
    return conditions[0] if len(conditions) == 1 else models.Filter(should=conditions)


def _condition(field: str, value: Any) -> models.Condition:
    if _is_kept_as_text(value):
        try:
            value = plain(value)
        except (TypeError, ValueError) as error:
            raise argument_error("filters", f"filter {field!r}: {error}") from error
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
        "filters",
        f"filter {field!r}: a value must be str, int, float, bool, a date or a UUID, or several, not {value!r}",
    )


def _is_kept_as_text(value: Any) -> bool:
    """Whether metadata has a text in place of `value`."""
    if isinstance(value, np.generic | np.ndarray):
        return value.dtype.kind in "mM"
    return hasattr(value, "isoformat") or isinstance(value, uuid.UUID)


def _equal(field: str, number: float) -> models.FieldCondition:
    """Qdrant has no exact match for floats."""
    return models.FieldCondition(key=field, range=models.Range(gte=number, lte=number))
