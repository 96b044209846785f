"""From a caller's document to a point of the collection: identity, content hash, payload."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from ...chunks import TextChunk

Input: TypeAlias = Mapping[str, Any] | str | ValueError
"""A document in the input."""
CONTENT_HASH = "content_hash"
"""The payload field that shows a later run that a document has not changed."""
OWN_FIELDS = frozenset({"text", "text_length", "word_count", "indexed_at", "original_doc_id", CONTENT_HASH})
"""Payload fields that the indexer sets. Metadata has none of these names."""
PARENT = "parent_id"
"""The payload field that the chunks of one document have in common."""
CHUNK_FIELDS = frozenset({PARENT, "chunk", "chunks", "chunk_start", "chunk_end"})
"""Further payload fields of a chunk: the point of the document's first chunk, number and count, first and last
character in the document's text. Metadata of chunks has none of these names.
"""
_KEYS = {"text", "id", "metadata"}


class Stored(NamedTuple):
    """The payload fields that identify the document of a point."""

    content_hash: str | None
    """None for a point that another program wrote."""
    original_doc_id: str | int | None
    """As given, with its type."""
    chunks: int | None = None
    """Points of the document; None for a document that is one point."""

    def has_other_type(self, other: Stored) -> bool:
        """Whether one id is an int and the other its digits as a str; both have the same point. A point that another
        program wrote has no such id.
        """
        ids = (self.original_doc_id, other.original_doc_id)
        return None not in ids and isinstance(ids[0], str) != isinstance(ids[1], str)


@dataclass(slots=True)
class Point:
    """What the collection holds of a document, or of one chunk of it."""

    id: str
    text: str
    payload: dict[str, Any]


@dataclass(slots=True)
class Document:
    """A document on its way into the collection."""

    position: int
    """Its place in the input, from 0."""
    id: str | None
    """As given."""
    point_id: str
    text: str
    payload: dict[str, Any]
    replaces: bool = False
    """Whether the collection holds an older version."""
    points: list[Point] = field(default_factory=list)
    """Its points: one, or one for each chunk. The first one has the document's own id."""
    divided: bool = False
    """Whether it is in chunks, or an older version may be: what is left of other versions is deleted."""
    same: list[Document] = field(default_factory=list)
    """Later documents of the input with the same id and content: they are stored if this one is."""
    whole: bool = True
    """False for a stored point, which may be a chunk: it replaces no other points."""

    @property
    def content_hash(self) -> str:
        """A hash of the text, the metadata, and the model with its prompt."""
        return str(self.payload[CONTENT_HASH])

    @property
    def stored(self) -> Stored:
        """The fields that a later document with the same id is compared with."""
        return Stored(self.content_hash, self.payload.get("original_doc_id"), self.points[0].payload.get("chunks"))

    def split(self, chunks: Sequence[TextChunk]) -> None:
        """Make a point of each chunk. Raises ValueError when there are none."""
        if not chunks:
            raise ValueError("its text is empty")
        _refuse_names(self.payload, CHUNK_FIELDS)
        self.points = [
            Point(
                self.chunk_id(number),
                chunk.text,
                {
                    **self.payload,
                    "text": chunk.text,
                    "text_length": len(chunk.text),
                    "word_count": len(chunk.text.split()),
                    PARENT: self.point_id,
                    "chunk": number,
                    "chunks": len(chunks),
                    "chunk_start": chunk.start,
                    "chunk_end": chunk.end,
                },
            )
            for number, chunk in enumerate(chunks)
        ]

    def chunk_id(self, number: int) -> str:
        """The point of one of its chunks."""
        return self.point_id if number == 0 else point_id(f"{self.point_id}#{number}")


def id_text(document_id: Any) -> str:
    """An id as a text. That of a member of an enumeration is its value, whatever the class shows."""
    if isinstance(document_id, str):
        return str.__str__(document_id)
    return int.__repr__(document_id) if isinstance(document_id, int) else str(document_id)


def is_chunk(payload: Mapping[str, Any]) -> bool:
    """Whether a point of a collection of chunks is one. In another collection these are names of metadata."""
    return PARENT in payload and all(type(payload.get(field)) is int for field in ("chunk_start", "chunk_end"))


def point_id(document_id: str | int) -> str:
    """The point of a document's id: the UUID whose bytes are the MD5 of the id. An id always has the same point.

    An int has the point of its digits: ``1`` and ``"1"`` name one document. Indexing one of them fails when the
    collection has the other.
    """
    return str(uuid.UUID(bytes=hashlib.md5(id_text(document_id).encode(), usedforsecurity=False).digest()))


def prepare(document: Input, position: int, fingerprint: str) -> Document:
    """Check a document and derive its point.

    Args:
        document: ``{"text": str, "id"?: str | int, "metadata"?: {str: JSON}}``, or the text alone. A ValueError in its
            place is raised; a reader uses it to report a document that it could not read.
        position: The document's place in the input.
        fingerprint: A hash of model and prompt. A different one marks every document as changed.

    Raises:
        TypeError: The document, or a part of it, has the wrong type.
        ValueError: Empty text or id, an unknown key, a lone surrogate, metadata that is not JSON or has a name that the
            indexer uses.
    """
    if isinstance(document, str):
        document = {"text": document}
    elif isinstance(document, ValueError):
        raise document
    elif not isinstance(document, Mapping):
        raise TypeError(f"a document must be a mapping with the key 'text', or a str, not {type(document).__name__}")
    text, given, metadata = document.get("text"), document.get("id"), document.get("metadata")
    if not isinstance(text, str):
        raise TypeError(f"its 'text' must be a str, not {type(text).__name__}")
    if not text.strip():
        raise ValueError("its text is empty")
    if unknown := [str(key) for key in document if key not in _KEYS]:
        raise ValueError(f"unknown keys {', '.join(sorted(unknown))}: put them into 'metadata'")
    if isinstance(given, np.integer):
        given = int(given)
    if given is not None and (isinstance(given, bool) or not isinstance(given, str | int)):
        raise TypeError(f"its 'id' must be a str or an int, not {type(given).__name__}")
    if given == "":
        raise ValueError("its id is empty: leave the id out for a random one")
    if metadata is not None and not isinstance(metadata, Mapping):
        raise TypeError(f"its 'metadata' must be a mapping, not {type(metadata).__name__}")
    _refuse_names(metadata or {}, OWN_FIELDS)
    try:
        digest, fields = content_hash(fingerprint, text, dict(metadata or {}))
        identity = str(uuid.uuid4()) if given is None else point_id(given)
    except UnicodeEncodeError:
        raise ValueError("it holds a lone surrogate, which is not a character") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"its metadata is not JSON: {error}") from error
    name = None if given is None else id_text(given)
    payload = {
        **fields,
        "text": text,
        "text_length": len(text),
        "word_count": len(text.split()),
        "indexed_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "original_doc_id": int(given) if isinstance(given, int) else name,
        CONTENT_HASH: digest,
    }
    return Document(position, name, identity, text, payload, points=[Point(identity, text, payload)])


def _refuse_names(fields: Mapping[str, Any], taken: frozenset[str]) -> None:
    """Raise ValueError where metadata has names of the indexer's own fields, which would replace it."""
    if used := sorted(str(name) for name in fields if name in taken):
        names = ", ".join(map(repr, used))
        raise ValueError(f"its metadata has the name {names}, which the indexer uses itself: rename it")


def content_hash(fingerprint: str, text: str, fields: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The hash of a document's content, and its metadata as JSON values.

    Raises:
        TypeError, ValueError: Metadata that is not JSON.
    """
    canonical = json.dumps(
        [fingerprint, text, fields], ensure_ascii=False, sort_keys=True, allow_nan=False, default=plain
    ).encode()
    return hashlib.sha256(canonical).hexdigest(), json.loads(canonical)[2]


def plain(value: Any) -> Any:
    """JSON for common metadata of other types: dates, UUIDs, sets, numpy's numbers and arrays."""
    if hasattr(value, "isoformat"):
        text = value.isoformat()
        if text == "NaT":  # pandas' missing time
            raise ValueError("NaT is no time; leave the field out")
        return text
    if isinstance(value, np.generic | np.ndarray) and value.dtype.kind in "mM":  # tolist would count nanoseconds
        return _times(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _times(value: np.generic | NDArray[Any]) -> Any:
    """The dates and times of numpy in ISO 8601, as short as they can be."""
    times = np.asarray(value)
    if times.dtype.kind == "m":
        raise TypeError(f"{times.dtype.name.partition('[')[0]} has no JSON form")
    if np.isnat(times).any():
        raise ValueError("NaT is no time; leave the field out")
    return np.datetime_as_string(times, unit="auto").tolist()
