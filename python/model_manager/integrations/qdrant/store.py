"""One Qdrant collection: requests with retries and growing pauses, and errors that name the remedy."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeVar

from httpx import LocalProtocolError
from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from ... import tracing
from ..._embedder import without_key
from ...errors import InputError, ModelManagerError
from .collection import (
    CHUNKS,
    METADATA,
    CollectionError,
    Layout,
    Wanted,
    check_division,
    check_identity,
    settings,
    whole_documents,
)
from .documents import CONTENT_HASH, PARENT, Stored

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from .encoders import Columns

__all__ = ["Backoff", "CollectionError", "Store", "StoreError", "T"]

logger = logging.getLogger(__name__)
T = TypeVar("T")

_CHUNKS_PER_PAGE = 1000
_GRPC_TRANSIENT = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED"}


class StoreError(ModelManagerError, ConnectionError):
    """Qdrant refused a request, or did not answer any attempt; `transient` says whether a retry may succeed."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """The attempts of a request and the pauses between them: `first` seconds, doubled each time up to `longest`. A
    Retry-After of Qdrant is a lower bound for a pause, up to `patience` seconds.
    """

    attempts: int = 6
    first: float = 0.25
    longest: float = 30.0
    patience: float = 60.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.first < 0 or self.longest < self.first or not self.patience >= 0:
            raise InputError(f"{self}: attempts must be at least 1, 0 ≤ first ≤ longest, and 0 ≤ patience")

    def pauses(self) -> Iterator[float]:
        """Seconds before each retry."""
        for retry in range(self.attempts - 1):
            yield min(self.longest, self.first * 2**retry)

    def run(
        self,
        request: Callable[[], T],
        pause_after: Callable[[Exception, float], float | None],
        sleep: Callable[[float], object],
    ) -> T:
        """The result of `request`, which is repeated after transient errors.

        Args:
            request: Called for each attempt.
            pause_after: Gets an error and the planned pause, and returns the seconds to wait, or None to raise the
                error.
            sleep: Waits.
        """
        for planned in self.pauses():
            try:
                return request()
            except Exception as error:
                pause = pause_after(error, planned)
                if pause is None:
                    raise
                sleep(pause)
        return request()


def _carry_traces(client: QdrantClient) -> None:
    """Have the REST requests of `client` carry the current trace on, once they are traced."""
    api = getattr(getattr(client, "http", None), "client", None)
    if api is None or getattr(api, "_model_manager_traces", False):
        return  # a fake client, or one of an earlier store

    def carry(request: Any, send: Callable[[Any], Any]) -> Any:
        tracing.inject(request.headers)
        return send(request)

    api.add_middleware(carry)
    api._model_manager_traces = True


class Store:
    """One collection of one Qdrant. Its methods raise `StoreError`, and may be called from any thread."""

    def __init__(
        self,
        client: QdrantClient,
        collection: str,
        backoff: Backoff,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self.client = client
        self.collection = collection
        self.backoff = backoff
        self.sleep = sleep
        options: Mapping[str, Any] = getattr(client, "init_options", {})
        self._where = "" if options.get("url") is None else f" at {without_key(str(options['url']))}"
        self.embedded = options.get("path") is not None or options.get("location") == ":memory:"
        if not self.embedded:
            _carry_traces(client)
        # The embedded Qdrant is Python code without locks of its own.
        lock = threading.Lock() if self.embedded else contextlib.nullcontext()
        self.layout = Layout("")
        """The names of the vectors in use, once `prepare` or `check` has seen the collection."""
        self.divided: bool | None = None
        """Whether the collection says that its points are chunks; None: it says nothing, or was not seen yet."""
        self._lock: contextlib.AbstractContextManager[Any] = lock

    def prepare(self, wanted: Wanted, *, recreate: bool = False, identity: Mapping[str, Any] | None = None) -> bool:
        """Create the collection unless one exists and fits; return whether it was created. Raises `CollectionError`.

        `identity` says whose vectors it will hold; a collection keeps it.
        """
        if recreate:
            self._refuse_alias()
            self.drop()
        elif self.exists():
            self._use(wanted, identity)
            return False
        return self._create(wanted, identity)

    def _create(self, wanted: Wanted, identity: Mapping[str, Any] | None) -> bool:
        """Create the collection, unless another process does so meanwhile; return whether it was this one."""
        made = settings(wanted, identity)
        attempts = 0

        def create() -> object:
            nonlocal attempts
            attempts += 1
            return self.client.create_collection(self.collection, **made)

        try:
            self._send("create the collection", create)
        except StoreError as error:
            # It exists. After a second attempt the first one has made it, and only its answer came too late.
            if error.transient or not self.exists():
                raise
            self._use(wanted, identity)
            return attempts > 1
        self.layout = wanted.layout()
        self.divided = None if identity is None else bool(identity.get(CHUNKS))
        self._use_write_ahead_log()
        return True

    def _use(self, wanted: Wanted, identity: Mapping[str, Any] | None) -> None:
        """Prepare for writing to the existing collection. Raises `CollectionError` if it does not fit."""
        known = self.check(wanted, identity)
        if identity is not None:
            self._check_division(known, identity)
        self._use_write_ahead_log()

    def _check_division(self, known: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
        if known:
            check_division(self.collection, known, identity)
        elif identity.get(CHUNKS):
            self.check_chunks()

    def check_chunks(self) -> None:
        """Raise `CollectionError` if a point is no chunk. For a collection that does not say what it holds."""
        if self.count(without=PARENT):
            raise whole_documents(self.collection)

    def _refuse_alias(self) -> None:
        if (real := self.aliases().get(self.collection)) is not None:
            raise CollectionError(
                f"{self.collection!r} is an alias of collection {real!r} and cannot be recreated: recreate {real!r}, or"
                " let reembed fill a new collection and switch the alias"
            )

    def other(self, collection: str) -> Store:
        """Another collection of the same Qdrant."""
        made = Store(self.client, collection, self.backoff, self.sleep)
        made._lock = self._lock
        return made

    def copy_payload_indexes(self, source: Store) -> None:
        """Create the indexes of payload fields that `source` has."""
        found = self._send("read the indexes", lambda: self.client.get_collection(source.collection))
        for name, index in (found.payload_schema or {}).items():
            schema: Any = index.params or index.data_type
            self._send(
                "create an index",
                lambda: self.client.create_payload_index(self.collection, name, schema, wait=True),  # noqa: B023
            )

    def aliases(self) -> dict[str, str]:
        """The collection of each alias."""
        found = self._send("list the aliases", lambda: self.client.get_aliases())
        return {one.alias_name: one.collection_name for one in found.aliases}

    def switch(self, alias: str, old: str | None, new: str) -> None:
        """Make `alias`, which names `old` (None: it does not exist), a name of `new`, in one step."""
        steps: list[Any] = []
        if old is not None:
            steps.append(models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias)))
        made = models.CreateAlias(collection_name=new, alias_name=alias)
        steps.append(models.CreateAliasOperation(create_alias=made))
        self._send("switch the alias", lambda: self.client.update_collection_aliases(steps))

    def drop(self) -> None:
        """Delete the collection."""
        self._send("delete the collection", lambda: self.client.delete_collection(self.collection))

    def count(self, without: str | None = None) -> int:
        """How many points there are; with `without` only those whose payload lacks this field."""
        empty = models.IsEmptyCondition(is_empty=models.PayloadField(key=without)) if without else None
        chosen = None if empty is None else models.Filter(must=[empty])
        return int(
            self._send(
                "count points", lambda: self.client.count(self.collection, count_filter=chosen, exact=True)
            ).count
        )

    def scroll(self, size: int, *, payload: bool = True) -> Iterator[list[models.Record]]:
        """All points in pages, without vectors."""
        offset: Any = None
        while True:
            records, offset = self._send(
                "read points",
                lambda: self.client.scroll(  # the lambda runs before the next round
                    self.collection,
                    limit=size,
                    offset=offset,  # noqa: B023
                    with_payload=payload,
                    with_vectors=False,
                ),
            )
            if records:
                yield records
            if offset is None:
                return

    def _use_write_ahead_log(self) -> None:
        """Speed up the embedded Qdrant, which commits every point with a wait for the disk. A write-ahead log avoids
        the wait. A crash of the process loses nothing; a crash of the machine may lose the latest points, and the next
        run adds them again.
        """
        try:
            sqlite: Any = self.client._client.collections[self.collection].storage.storage  # type: ignore[attr-defined]
        except (AttributeError, KeyError):
            return  # a server, a fake client, or a version with other internals
        with self._lock:
            if sqlite.execute("PRAGMA journal_mode=WAL").fetchone()[0] == "wal":
                sqlite.execute("PRAGMA synchronous=NORMAL")

    def exists(self) -> bool:
        """Whether the collection exists."""
        return bool(self._send("look up the collection", lambda: self.client.collection_exists(self.collection)))

    def check(self, wanted: Wanted, identity: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        """What the collection says of its points; `layout` has the names of its vectors from then on. Raise
        `CollectionError` unless it takes the wanted vectors and, if it says whose it holds, holds those of `identity`.
        """
        found = self._send("read the collection's settings", lambda: self.client.get_collection(self.collection))
        self.layout = wanted.find(self.collection, found.config.params)
        known: Mapping[str, Any] = (getattr(found.config, "metadata", None) or {}).get(METADATA) or {}
        self.divided = bool(known.get(CHUNKS)) if known else None
        if identity is not None:
            check_identity(self.collection, known, identity)
        return known

    def metadata(self) -> Mapping[str, Any]:
        """What the collection says of its points; empty where it says nothing."""
        found = self._send("read the collection's settings", lambda: self.client.get_collection(self.collection))
        known: Mapping[str, Any] = (getattr(found.config, "metadata", None) or {}).get(METADATA) or {}
        return known

    def unmark(self, point_ids: Sequence[str]) -> None:
        """Take the hash from points, so that a later run takes no document of theirs for stored. Points that do not
        exist are skipped.
        """
        if point_ids:
            # By a filter: the server refuses ids that do not exist.
            chosen = models.Filter(must=[models.HasIdCondition(has_id=list(point_ids))])
            self._send(
                "mark points",
                lambda: self.client.set_payload(self.collection, {CONTENT_HASH: None}, chosen, wait=True),
            )

    def remove_rest(self, parents: Sequence[str], keep: Sequence[str]) -> None:
        """Delete all chunks of these documents but the points `keep`."""
        if parents:
            own = models.FieldCondition(key=PARENT, match=models.MatchAny(any=list(parents)))
            kept = models.HasIdCondition(has_id=list(keep))
            chosen = models.FilterSelector(filter=models.Filter(must=[own], must_not=[kept]))
            self._send("delete chunks", lambda: self.client.delete(self.collection, chosen, wait=True))

    def chunk_hashes(self, parents: Sequence[str]) -> dict[str, list[str | None]]:
        """The hash of each chunk of these documents."""
        found: dict[str, list[str | None]] = {}
        offset: Any = None
        chosen = models.Filter(must=[models.FieldCondition(key=PARENT, match=models.MatchAny(any=list(parents)))])
        while parents:
            records, offset = self._send(
                "look up chunks",
                lambda: self.client.scroll(
                    self.collection,
                    scroll_filter=chosen,
                    limit=_CHUNKS_PER_PAGE,
                    offset=offset,  # noqa: B023
                    with_payload=[PARENT, CONTENT_HASH],
                ),
            )
            for record in records:
                payload = record.payload or {}
                found.setdefault(payload[PARENT], []).append(payload.get(CONTENT_HASH))
            if offset is None:
                break
        return found

    def index_parents(self) -> None:
        """Have the server find the chunks of a document without reading all points. An embedded Qdrant has no such
        indexes.
        """
        if self.embedded:
            return
        found = self._send("read the indexes", lambda: self.client.get_collection(self.collection))
        if PARENT not in (found.payload_schema or {}):
            kind = models.PayloadSchemaType.KEYWORD
            self._send(
                "create an index",
                lambda: self.client.create_payload_index(self.collection, PARENT, kind, wait=True),
            )

    def remove(self, point_ids: Sequence[Any]) -> None:
        """Delete points; those that do not exist are skipped."""
        if point_ids:
            chosen = models.PointIdsList(points=list(point_ids))
            self._send("delete points", lambda: self.client.delete(self.collection, chosen, wait=True))

    def stored(self, point_ids: Sequence[Any]) -> dict[Any, Stored]:
        """The stored documents under these ids."""
        if not point_ids:
            return {}
        records = self._send(
            "look up points",
            lambda: self.client.retrieve(
                self.collection, ids=list(point_ids), with_payload=list(Stored._fields), with_vectors=False
            ),
        )
        payloads = {
            record.id if isinstance(record.id, int) else str(record.id): record.payload or {} for record in records
        }
        return {
            point_id: Stored(*(payload.get(field) for field in Stored._fields))
            for point_id, payload in payloads.items()
        }

    def write(self, ids: Sequence[str], vectors: Columns, payloads: Sequence[dict[str, Any]]) -> None:
        """Write points and wait until they are applied. Points with the same ids are replaced."""
        batch: Any
        if self.layout.plain and vectors.dense is not None:
            batch = models.Batch(ids=list(ids), vectors=vectors.dense.tolist(), payloads=list(payloads))
        else:
            batch = [
                models.PointStruct(id=one, vector=vectors.named(row, self.layout), payload=payloads[row])
                for row, one in enumerate(ids)
            ]
        self._send("write points", lambda: self.client.upsert(self.collection, points=batch, wait=True))

    def query(self, request: Mapping[str, Any], *, grouped: bool = False) -> list[models.ScoredPoint]:
        """The best points, or with `grouped` the best one of each document, best first, with payloads."""

        def best() -> list[models.ScoredPoint]:
            if not grouped:
                return list(self.client.query_points(self.collection, **request).points)
            found = self.client.query_points_groups(self.collection, group_by=PARENT, group_size=1, **request)
            return sorted((point for group in found.groups for point in group.hits), key=lambda point: -point.score)

        return self._send("search", best)

    def _send(self, action: str, request: Callable[[], T]) -> T:
        """The result of `request`, retried while its errors are transient. Raises `StoreError`."""

        def attempt() -> T:
            with self._lock:
                return request()

        warned: str | None = None

        def pause_after(error: Exception, planned: float) -> float | None:
            nonlocal warned
            transient, reason, minimum = _judge(error)
            if not transient:
                return None
            pause = max(planned, min(minimum, self.backoff.patience))
            # The same again is no news; the error at the end has the number of attempts.
            level = logging.INFO if reason == warned else logging.WARNING
            logger.log(level, "Qdrant%s could not %s: %s; trying again in %.2g s", self._where, action, reason, pause)
            warned = reason
            return pause

        try:
            return self.backoff.run(attempt, pause_after, self.sleep)
        except Exception as error:
            transient, reason, _ = _judge(error)
            attempts = f" ({self.backoff.attempts} attempts)" if transient else ""
            failure = StoreError(
                f"Qdrant{self._where} could not {action}, collection {self.collection!r}{attempts}: {reason}"
                f"{_remedy(error)}"
            )
            failure.transient = transient
            if _is_unsendable(error):
                raise failure from None  # httpx shows the header, which may be a key
            raise failure from error


def _judge(error: Exception) -> tuple[bool, str, float]:
    """Whether an error of the client is transient, its reason, and the minimum seconds to wait."""
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ResourceExhaustedResponse):
        return True, reason, float(error.retry_after_s)
    if isinstance(error, QdrantException) and "Retry-After" in reason:
        return True, reason, _retry_after(reason.partition(": ")[2])
    if isinstance(error, UnexpectedResponse):
        status = error.status_code or 0
        return status in (408, 429) or status >= 500, reason, 0.0
    if isinstance(error, ResponseHandlingException):
        if _is_unsendable(error):
            return False, "a header of the request cannot be sent", 0.0
        # A ValueError means that pydantic cannot read the answer; a second one would look the same.
        source = " ".join(str(error.source).split()) or type(error.source).__name__
        return not isinstance(error.source, ValueError), source, 0.0
    if callable(code := getattr(error, "code", None)):
        return getattr(code(), "name", "") in _GRPC_TRANSIENT, reason, 0.0
    return isinstance(error, OSError), reason, 0.0


def _retry_after(given: str) -> float:
    """The seconds of a Retry-After that is no whole number: a date, as HTTP allows, or a fraction; else 0."""
    with contextlib.suppress(ValueError):
        return max(0.0, float(given))
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        return max(0.0, parsedate_to_datetime(given).timestamp() - time.time())
    return 0.0


def _is_unsendable(error: Exception) -> bool:
    """Whether httpx refused to send a header of the request, such as a key with a line end."""
    return isinstance(error, ResponseHandlingException) and isinstance(error.source, LocalProtocolError)


def _remedy(error: Exception) -> str:
    """What to do about an error, where that can be said."""
    if isinstance(error, UnexpectedResponse) and error.status_code in (401, 403):
        return "; is QDRANT_API_KEY the key of this server?"
    if not isinstance(error, ResponseHandlingException):
        return ""
    if _is_unsendable(error):
        return "; has the client's api_key a line end or spaces around it?"
    if isinstance(error.source, ValueError):
        return "; is this the address of a Qdrant?"
    return "; is it running there? QDRANT_URL or url is the address of a server, path a folder that needs none"
