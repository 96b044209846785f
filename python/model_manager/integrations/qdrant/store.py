"""One Qdrant collection: requests with retries and growing pauses, and errors that name the remedy."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from ... import tracing
from ...errors import InputError, ModelManagerError
from .documents import Stored

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)
T = TypeVar("T")

METADATA = "model_manager"
"""The key of a collection's metadata that says whose vectors it holds. Qdrant keeps metadata from version 1.16 on."""

_GRPC_TRANSIENT = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED"}


class CollectionError(ModelManagerError, ValueError):
    """The collection does not fit (another dimension or measure, named vectors) or does not exist."""


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
        self._embedded = options.get("path") is not None or options.get("location") == ":memory:"
        # The embedded Qdrant is Python code without locks of its own.
        if not self._embedded:
            _carry_traces(client)
        lock = threading.Lock() if self._embedded else contextlib.nullcontext()
        self._lock: contextlib.AbstractContextManager[Any] = lock

    def prepare(self, dimension: int, *, recreate: bool = False, model: Mapping[str, Any] | None = None) -> bool:
        """Create the collection unless one exists and fits; return whether it was created. Raises `CollectionError`.

        `model` says whose vectors it will hold; a collection keeps it.
        """
        name = self.collection
        if recreate:
            self._send("delete the collection", lambda: self.client.delete_collection(name))
        elif self.exists():
            self.check(dimension, model)
            self._use_write_ahead_log()
            return False
        self._send("create the collection", lambda: self.client.create_collection(name, **_settings(dimension, model)))
        self._use_write_ahead_log()
        return True

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

    def check(self, dimension: int, model: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        """What the collection says of its points. Raise `CollectionError` unless it takes vectors of this length and
        compares angles, and, if it says whose vectors it holds, holds those of `model`.
        """
        found = self._send("read the collection's settings", lambda: self.client.get_collection(self.collection))
        vectors = found.config.params.vectors
        remedy = "choose another collection, or recreate this one (all its points are lost)"
        if not isinstance(vectors, models.VectorParams):
            raise CollectionError(f"collection {self.collection!r} has named vectors: {remedy}")
        if vectors.size != dimension:
            raise CollectionError(
                f"collection {self.collection!r} has vectors of {vectors.size} dimensions, the model's have"
                f" {dimension}: use the model it was made with, {remedy}"
            )
        if vectors.distance not in (models.Distance.COSINE, models.Distance.DOT):
            raise CollectionError(f"collection {self.collection!r} compares by {vectors.distance.value}: {remedy}")

        known: Mapping[str, Any] = (getattr(found.config, "metadata", None) or {}).get(METADATA) or {}
        if model is not None and known and known.get("fingerprint") != model["fingerprint"]:
            raise CollectionError(
                f"collection {self.collection!r} holds vectors of {known.get('model')!r}, not of {model['model']!r}"
                f" (vectors of different models cannot be compared): use that model, {remedy}"
            )
        return known

    def remove(self, point_ids: Sequence[str]) -> None:
        """Delete points; those that do not exist are skipped."""
        if point_ids:
            chosen = models.PointIdsList(points=list(point_ids))
            self._send("delete points", lambda: self.client.delete(self.collection, chosen, wait=True))

    def stored(self, point_ids: Sequence[str]) -> dict[str, Stored]:
        """The stored documents under these ids."""
        if not point_ids:
            return {}
        records = self._send(
            "look up points",
            lambda: self.client.retrieve(
                self.collection, ids=list(point_ids), with_payload=list(Stored._fields), with_vectors=False
            ),
        )
        payloads = {str(record.id): record.payload or {} for record in records}
        return {
            point_id: Stored(*(payload.get(field) for field in Stored._fields))
            for point_id, payload in payloads.items()
        }

    def write(self, ids: Sequence[str], vectors: NDArray[np.float32], payloads: Sequence[dict[str, Any]]) -> None:
        """Write points and wait until they are applied. Points with the same ids are replaced."""
        batch = models.Batch(ids=list(ids), vectors=vectors.tolist(), payloads=list(payloads))
        self._send("write points", lambda: self.client.upsert(self.collection, points=batch, wait=True))

    def query(
        self,
        vector: NDArray[np.float32],
        *,
        limit: int,
        score_threshold: float | None,
        query_filter: models.Filter | None,
        hnsw_ef: int,
        grouped: bool = False,
    ) -> list[models.ScoredPoint]:
        """The nearest points, or with `grouped` the nearest one of each document, best first, with payloads."""
        options: dict[str, Any] = {
            "query": vector.tolist(),
            "limit": limit,
            "score_threshold": score_threshold,
            "query_filter": query_filter,
            # The embedded Qdrant compares with every point and warns about search parameters.
            "search_params": None if self._embedded else models.SearchParams(hnsw_ef=hnsw_ef),
            "with_payload": True,
        }

        def nearest() -> list[models.ScoredPoint]:
            if not grouped:
                return list(self.client.query_points(self.collection, **options).points)
            found = self.client.query_points_groups(self.collection, group_by="parent_id", group_size=1, **options)
            return sorted((point for group in found.groups for point in group.hits), key=lambda point: -point.score)

        return self._send("search", nearest)

    def _send(self, action: str, request: Callable[[], T]) -> T:
        """The result of `request`, retried while its errors are transient. Raises `StoreError`."""

        def attempt() -> T:
            with self._lock:
                return request()

        def pause_after(error: Exception, planned: float) -> float | None:
            transient, reason, minimum = _judge(error)
            if not transient:
                return None
            pause = max(planned, min(minimum, self.backoff.patience))
            logger.warning("Qdrant could not %s: %s; trying again in %.2g s", action, reason, pause)
            return pause

        try:
            return self.backoff.run(attempt, pause_after, self.sleep)
        except Exception as error:
            transient, reason, _ = _judge(error)
            attempts = f" ({self.backoff.attempts} attempts)" if transient else ""
            failure = StoreError(f"Qdrant could not {action}, collection {self.collection!r}{attempts}: {reason}")
            failure.transient = transient
            raise failure from error


def _judge(error: Exception) -> tuple[bool, str, float]:
    """Whether an error of the client is transient, its reason, and the minimum seconds to wait."""
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ResourceExhaustedResponse):
        return True, reason, float(error.retry_after_s)
    if isinstance(error, UnexpectedResponse):
        status = error.status_code or 0
        if status in (401, 403):
            reason += "; is QDRANT_API_KEY the key of this server?"
        return status in (408, 429) or status >= 500, reason, 0.0
    if isinstance(error, ResponseHandlingException):
        # A ValueError means that pydantic cannot read the answer; a second one would look the same.
        source = " ".join(str(error.source).split()) or type(error.source).__name__
        return not isinstance(error.source, ValueError), f"{source}; is the server of QDRANT_URL running?", 0.0
    if callable(code := getattr(error, "code", None)):
        return getattr(code(), "name", "") in _GRPC_TRANSIENT, reason, 0.0
    return isinstance(error, OSError), reason, 0.0


def _settings(dimension: int, model: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The settings of a new collection: tuned for recall, with the index and the INT8 vectors in memory."""
    return {
        "metadata": None if model is None else {METADATA: dict(model)},
        "vectors_config": models.VectorParams(size=dimension, distance=models.Distance.COSINE, on_disk=False),
        "hnsw_config": models.HnswConfigDiff(m=32, ef_construct=256, full_scan_threshold=20_000, on_disk=False),
        "optimizers_config": models.OptimizersConfigDiff(
            default_segment_number=2,
            max_segment_size=200_000,
            memmap_threshold=100_000,
            indexing_threshold=50_000,
            flush_interval_sec=30,
        ),
        "quantization_config": models.ScalarQuantization(
            scalar=models.ScalarQuantizationConfig(type=models.ScalarType.INT8, quantile=0.99, always_ram=True)
        ),
    }
