"""A new collection with the vectors of other models, and the alias that is switched to it."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..._arguments import argument_error
from .collection import CHUNKS, KINDS, CollectionError, Wanted, identity_of
from .documents import CONTENT_HASH, OWN_FIELDS, Document, Point, content_hash, is_chunk
from .pipeline import Run
from .probe import PROBE, differs
from .report import IndexReport
from .search import path_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from qdrant_client import models

    from .encoders import Encoders
    from .store import Store

logger = logging.getLogger(__name__)

SOURCE = "source"
"""The key of a collection's metadata for the collection that it was filled from."""


@dataclass(frozen=True)
class Reembedding:
    """What `QdrantIndexer.reembed` did."""

    source: str
    """The old collection."""
    target: str
    """The new one."""
    alias: str
    """The name that now means the new one."""
    points: int
    """Points of the new collection."""
    report: IndexReport
    """The figures of this run. Points of an interrupted one count as skipped."""
    done: bool
    """False: the collection has vectors of these models already, and nothing was done."""
    dropped: bool = False
    """Whether the old collection was deleted."""

    def to_dict(self) -> dict[str, Any]:
        """Everything, JSON-serializable."""
        return {
            "source": self.source,
            "target": self.target,
            "alias": self.alias,
            "points": self.points,
            "done": self.done,
            "dropped": self.dropped,
            "report": self.report.to_dict(),
        }

    def __str__(self) -> str:
        if not self.done:
            return f"nothing to do: collection {self.source!r} has vectors of these models"
        old = "deleted" if self.dropped else "kept"
        return (
            f"alias {self.alias!r} is now collection {self.target!r} with {self.points:,} points;"
            f" {self.source!r} was {old}. {self.report}"
        )


def reembed(
    store: Store,
    encoders: Encoders,
    wanted: Wanted,
    identity: dict[str, Any],
    *,
    alias: str | None,
    target: str | None,
    text_field: str,
    batch_size: int,
    drop_old: bool,
    progress: Callable[[int], AbstractContextManager[Callable[[int], object]]],
) -> Reembedding:
    """See `QdrantIndexer.reembed`."""
    if (path := path_of(text_field)) is None:
        raise argument_error("text_field", f"text_field={text_field!r}: Qdrant finds no field with such a name")
    aliases = store.aliases()
    source = store.other(aliases.get(store.collection, store.collection))
    alias = _alias(store, aliases, alias)
    if not source.exists():
        raise CollectionError(f"collection {source.collection!r} does not exist: there is nothing to embed again")
    known = source.metadata()
    identity = {key: value for key, value in identity.items() if key != CHUNKS}
    if known.get(CHUNKS):
        identity[CHUNKS] = True
    new = store.other(target or f"{alias}-{_hash(identity)}")
    if target is None and new.collection == source.collection:  # other weights of the same name
        new = store.other(f"{new.collection}-2")
    current = aliases.get(alias)
    if current not in (None, source.collection, new.collection):
        raise CollectionError(
            f"alias {alias!r} belongs to collection {current!r}, not to {source.collection!r}: choose another alias"
        )
    if known and all(_same(known, identity, kind) for kind in KINDS):
        return Reembedding(source.collection, source.collection, alias, source.count(), IndexReport(), done=False)
    if new.collection == source.collection or new.collection in aliases:
        raise CollectionError(f"target {new.collection!r} is in use: choose a new name")
    if missing := source.count(without=path):
        raise CollectionError(
            f"{missing:,} points of collection {source.collection!r} have no text in the field {text_field!r}:"
            " name the field that has it (text_field), or index the documents again"
        )
    _create(source, new, wanted, identity)
    report = IndexReport()
    total = source.count()
    with progress(total) as advance:
        run = Run(
            new,
            encoders,
            report,
            on_error="raise",
            skip_unchanged=True,
            max_failures=0,
            advance=advance,
            fingerprint=encoders.fingerprint,
            prepare=functools.partial(
                _document, text_field=text_field, divided=bool(known.get(CHUNKS)) if known else True
            ),
        )
        before = encoders.truncated
        try:
            with encoders.unchanged():
                run.index((record for page in source.scroll(batch_size) for record in page), batch_size)
        finally:
            report.truncated = encoders.truncated - before
    points = _verified(source, new, batch_size)
    new.switch(alias, current, new.collection)
    if drop_old:
        source.drop()
    return Reembedding(source.collection, new.collection, alias, points, report, done=True, dropped=drop_old)


def _alias(store: Store, aliases: Mapping[str, str], alias: str | None) -> str:
    if alias is None:
        if store.collection not in aliases:
            raise CollectionError(
                f"{store.collection!r} is a collection, and Qdrant allows no alias of the same name: name the alias"
                f" that searches use from now on, such as {store.collection + '-live'!r}"
            )
        return store.collection
    if alias not in aliases and store.other(alias).exists():
        raise CollectionError(f"alias {alias!r} is the name of a collection: choose another alias")
    return alias


def _create(source: Store, new: Store, wanted: Wanted, identity: Mapping[str, Any]) -> None:
    """Create the new collection, or check that the existing one is that of an interrupted run."""
    if new.exists():
        known = new.check(wanted, identity)
        if known and known.get(SOURCE) != source.collection:
            raise CollectionError(
                f"collection {new.collection!r} exists and was not filled from {source.collection!r}: choose another"
                " target"
            )
    else:
        new.prepare(wanted, identity={**identity, SOURCE: source.collection})
    new.copy_payload_indexes(source)


def _verified(source: Store, new: Store, page: int) -> int:
    """The number of points, if both collections have the same one. Points that the source has lost since an interrupted
    run are removed.
    """
    if new.count() > source.count():
        for records in new.scroll(page, payload=False):
            ids = [record.id for record in records]
            stored = source.stored(ids)
            new.remove([one for one in ids if one not in stored])
    there, here = source.count(), new.count()
    if there != here:
        raise CollectionError(
            f"collection {source.collection!r} has {there:,} points, and {new.collection!r} has {here:,}: something was"
            " written meanwhile, so the alias was not switched. The same call adds what is missing"
        )
    return here


def _document(record: models.Record, position: int, fingerprint: str, *, text_field: str, divided: bool) -> Document:
    """A stored point, or with `divided` perhaps a chunk, as a document on its way into the new collection. Raises
    ValueError if it has no text, or if a field of other content is in the place of the text.
    """
    payload = dict(record.payload or {})
    text = payload.get(text_field)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"the field {text_field!r} of point {record.id} holds no text")
    if payload.get("text", text) != text:
        raise ValueError(
            f"point {record.id} has a field 'text' of other content than {text_field!r}, which the new collection would"
            " lose: rename it first"
        )
    payload["text"] = text
    if divided and is_chunk(payload):
        # The hash of a chunk is that of the whole document, which is not stored: this one only shows that the point is
        # done. A later `add_documents` embeds the document again.
        parts = [fingerprint, str(payload.get(CONTENT_HASH)), text]
        payload[CONTENT_HASH] = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    else:
        fields = {key: value for key, value in payload.items() if key not in OWN_FIELDS}
        payload[CONTENT_HASH] = content_hash(fingerprint, text, fields)[0]
    identity: Any = record.id
    name = str(payload.get("original_doc_id") or record.id)
    return Document(position, name, identity, text, payload, points=[Point(identity, text, payload)], whole=False)


def _same(known: Mapping[str, Any], own: Mapping[str, Any], kind: str) -> bool:
    there, here = identity_of(known, kind), identity_of(own, kind)
    if there.get("fingerprint") != here.get("fingerprint"):
        return False
    return differs(there.get(PROBE) or {}, here.get(PROBE) or {}) is None


def _hash(identity: Mapping[str, Any]) -> str:
    parts = [str(identity_of(identity, kind).get("fingerprint")) for kind in KINDS]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:8]
