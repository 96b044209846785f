"""Metrics for Prometheus and for the status page. They are cheap enough to update on every request."""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
    multiprocess,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._types import Statistics

    _Together = Literal["livesum", "livemax", "livemin"]

_PREFIX = "model_manager_"
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_SHARED = "PROMETHEUS_MULTIPROC_DIR"
_METHODS = frozenset({"GET", "HEAD", "POST"})


class Metrics:
    """Metrics of the server, and of the manager, copied from `Manager.stats` at every sample.

    With `PROMETHEUS_MULTIPROC_DIR` set, the metrics of all worker processes are added up, except figures of the whole
    machine and whether something is so.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.shared = bool(os.environ.get(_SHARED))
        counter, gauge = self._counter, self._gauge
        self._requests = counter("http_requests", "Requests answered.", "path", "method", "status")
        self._seconds = Histogram(
            f"{_PREFIX}http_request_seconds",
            "Seconds from the request's headers to the end of its answer.",
            ["path"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._inputs = counter("embedding_inputs", "Texts whose vectors were sent.", "model")
        self._tokens = counter("embedding_tokens", "Tokens of those texts.", "model")
        self._in_flight = gauge("http_requests_in_flight", "Running requests.")
        self._waiting = gauge("waiting_inputs", "Texts of requests that wait for vectors.")
        # Of a card, and of whether a model is loaded, a sum would count each process once more.
        largest = functools.partial(gauge, mode="livemax")
        self._resident = gauge("resident_bytes", "Memory of the process.")
        self._model_bytes = gauge("model_bytes", "Memory of a slot's model.", "slot")
        self._model_device_bytes = gauge("model_device_bytes", "Of it, memory of a card.", "slot")
        self._card_models = gauge("device_models_bytes", "Memory of the models on a card.", "device")
        self._card_free = largest("device_free_bytes", "Memory of a card that no process holds.", "device")
        self._card_total = largest("device_total_bytes", "Memory of a card.", "device")
        self._loaded = largest("model_loaded", "Whether a slot's model is in memory.", "slot")
        self._queued = gauge("queued_inputs", "Texts in the batching queues.")
        self._cached = gauge("cache_entries", "Vectors in the cache.")
        self._cache_bytes = gauge("cache_bytes", "Bytes of the cache.")
        self._copied = {
            (section, key): counter(name, doc)
            for name, section, key, doc in (
                ("cache_hits", "cache", "hits", "Texts answered from the cache."),
                ("cache_misses", "cache", "misses", "Texts that were not in the cache."),
                ("cache_evictions", "cache", "evictions", "Vectors evicted from the full cache."),
                ("computed_inputs", "queue", "texts", "Texts computed."),
                ("computed_tokens", "queue", "tokens", "Tokens computed."),
                ("computed_batches", "queue", "batches", "Batches computed."),
                ("cancelled_inputs", "queue", "cancelled", "Texts dropped because their client disconnected."),
            )
        }
        # The manager counts those of its queue for embeddings alone.
        self._rejected = counter("rejected_requests", "Requests refused because a queue was full.")
        self._written = {
            key: counter(name, doc, "slot")
            for name, key, doc in (
                ("generation_requests", "requests", "Requests to a text generator."),
                ("generation_prompt_tokens", "prompt_tokens", "Tokens of prompts."),
                ("generation_reused_tokens", "reused_tokens", "Prompt tokens whose computation was reused."),
                ("generated_tokens", "generated_tokens", "Tokens written."),
                ("generation_drafted_tokens", "drafted_tokens", "Tokens guessed from the text so far."),
                ("generation_accepted_tokens", "accepted_tokens", "Guessed tokens that were written."),
                ("generation_seconds", "busy_seconds", "Seconds that a generator computed."),
            )
        }
        self._truncated = counter("truncated_inputs", "Texts that were cut because the model reads no more.", "slot")
        self._tiers = {
            key: counter(f"cache_tier_{key}", doc, "tier")
            for key, doc in (
                ("hits", "Texts answered from a tier below the memory."),
                ("misses", "Texts that a tier did not have."),
                ("writes", "Vectors stored in a tier."),
                ("errors", "Failures of a tier; each is a miss."),
            )
        }
        self._working = gauge("cache_tier_working", "Whether a tier takes part now.", "tier", mode="livemin")
        self._adaptive = {
            (of, key): counter(name, doc, "slot")
            for name, of, key, doc in (
                ("cold_starts", "adaptive", "cold_starts", "Uses that waited for a load, with keep_alive auto."),
                ("resident_seconds", "adaptive", "resident_seconds", "Seconds in memory, with keep_alive auto."),
                ("fixed_cold_starts", "fixed", "cold_starts", "Uses that would have waited with a fixed timer."),
                ("fixed_resident_seconds", "fixed", "resident_seconds", "Seconds in memory with a fixed timer."),
            )
        }
        self._writing = gauge("generation_active", "Answers being written.", "slot")
        self._to_write = gauge("generation_waiting", "Requests in the queue of a generator.", "slot")
        self._of_slots = (self._model_bytes, self._model_device_bytes, self._loaded, self._writing, self._to_write)
        self._slots: frozenset[str] = frozenset()
        self._before: dict[tuple[str, str], float] = {}
        if not self.shared:
            ProcessCollector(namespace=_PREFIX.rstrip("_"), registry=self.registry)
        self._children: dict[tuple[str, str, int], tuple[Callable[[], None], Callable[[float], None]]] = {}
        self._models: dict[str, tuple[Callable[[float], None], Callable[[float], None]]] = {}
        self.inputs = 0
        """Texts whose vectors were sent."""
        self.requests = 0
        """Requests to endpoints that compute. Requests that only read are not counted."""
        self.failures = 0
        """Those of them with a status of 500 and above."""
        self.rejected = 0
        """Requests refused because a queue was full, or because of `max_waiting`."""
        self.latest: deque[tuple[float, float]] = deque(maxlen=2048)
        """The latest of them: (end on `time.monotonic`, seconds)."""

    def _counter(self, name: str, doc: str, *labels: str) -> Counter:
        return Counter(f"{_PREFIX}{name}", doc, labels, registry=self.registry)

    def _gauge(self, name: str, doc: str, *labels: str, mode: _Together = "livesum") -> Gauge:
        """A gauge, and what its values in several worker processes become."""
        return Gauge(f"{_PREFIX}{name}", doc, labels, registry=self.registry, multiprocess_mode=mode)

    def request(self, path: str, method: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        # A client must not be able to create labels.
        key = (path, method if method in _METHODS else "other", status)
        try:
            count, observe = self._children[key]
        except KeyError:
            count = self._requests.labels(path, key[1], str(status)).inc
            observe = self._seconds.labels(path).observe
            self._children[key] = count, observe
        count()
        observe(seconds)
        if method == "POST":
            self.requests += 1
            self.failures += status >= 500
            self.latest.append((time.monotonic(), seconds))

    def reject(self) -> None:
        """Count a request that is refused because a queue was full."""
        self._rejected.inc()
        self.rejected += 1

    def embedded(self, model: str, inputs: int, tokens: int) -> None:
        """Count the texts of an answer."""
        try:
            count, add = self._models[model]
        except KeyError:
            count = self._inputs.labels(model).inc
            add = self._tokens.labels(model).inc
            self._models[model] = count, add
        count(inputs)
        add(tokens)
        self.inputs += inputs

    def sample(self, stats: Statistics, in_flight: int, waiting: int) -> None:
        """Copy the manager's statistics and the server's own gauges."""
        self._in_flight.set(in_flight)
        self._waiting.set(waiting)
        self._resident.set(stats["memory"]["resident"])
        if card := stats["memory"]["device"]:
            self._card_models.labels(card["name"]).set(card["models"])
            if card["free"] is not None and card["total"] is not None:
                self._card_free.labels(card["name"]).set(card["free"])
                self._card_total.labels(card["name"]).set(card["total"])
        self._queued.set(stats["queue"]["queued"])
        self._cached.set(stats["cache"]["entries"])
        self._cache_bytes.set(stats["cache"]["bytes"])
        for gone in self._slots - stats["slots"].keys():
            for gauge in self._of_slots:
                self._remove(gauge, gone)
        self._slots = frozenset(stats["slots"])
        for slot, state in stats["slots"].items():
            self._model_bytes.labels(slot).set(state["bytes"])
            if stats["memory"]["device"]:
                self._model_device_bytes.labels(slot).set(state["device_bytes"])
            self._loaded.labels(slot).set(state["state"] == "ready")
            self._copy((slot, "truncated"), state["truncated"], self._truncated.labels(slot))
            if done := state["generation"]:
                self._writing.labels(slot).set(done["active"])
                self._to_write.labels(slot).set(done["waiting"])
                for key, counter in self._written.items():
                    self._copy((slot, key), done[key], counter.labels(slot))  # type: ignore[literal-required]
        for name, tier in stats["cache"]["tiers"].items():
            self._working.labels(name).set(tier["working"])
            for key, counter in self._tiers.items():
                self._copy((f"tier {name}", key), tier[key], counter.labels(name))  # type: ignore[literal-required]
        for slot, figures in stats["adaptive"].items():
            for (of, key), counter in self._adaptive.items():
                now = figures[of][key]  # type: ignore[literal-required]
                self._copy((f"{of} {slot}", key), now, counter.labels(slot))
        for (section, key), counter in self._copied.items():
            totals = stats["cache"]["totals"] if section == "cache" else stats["queue"]
            self._copy((section, key), totals[key], counter)  # type: ignore[literal-required]

    def _remove(self, gauge: Gauge, slot: str) -> None:
        """Forget the figure of a slot that was unregistered."""
        if self.shared:
            # The folder keeps the figures of a process until it ends.
            gauge.labels(slot).set(0)
        else:
            gauge.remove(slot)

    def _copy(self, what: tuple[str, str], now: float, counter: Counter) -> None:
        """Raise `counter` to the total `now`."""
        before = self._before.get(what, 0.0)
        # A slot that was removed and registered again begins at zero.
        counter.inc(now - before if now >= before else now)
        self._before[what] = now

    def traffic(self, window: float = 10.0) -> dict[str, float | int | None]:
        """Requests per second over the latest `window` seconds, and the latency of the latest requests, seconds."""
        now = time.monotonic()
        recent = [seconds for ended, seconds in self.latest if now - ended <= window]
        ordered = sorted(recent)
        if len(recent) == self.latest.maxlen:
            # Older requests were dropped, so the kept ones span a shorter time.
            window = max(now - self.latest[0][0], 1e-3)
        return {
            "requests": self.requests,
            "failures": self.failures,
            "inputs": self.inputs,
            "requests_per_second": len(recent) / window,
            "latency_p50": ordered[len(ordered) // 2] if ordered else None,
            "latency_p95": ordered[int(len(ordered) * 0.95)] if ordered else None,
        }

    def expose(self) -> bytes:
        """All metrics in Prometheus' text format."""
        if not self.shared:
            return generate_latest(self.registry)
        together = CollectorRegistry()
        multiprocess.MultiProcessCollector(together)  # type: ignore[no-untyped-call]
        return generate_latest(together)

    def leave(self) -> None:
        """Remove the gauges of this process, which ends."""
        remove_gauges(os.getpid())


def remove_gauges(pid: int) -> None:
    """Remove the gauges of a process that has ended from the folder that processes share. Its counters stay."""
    if os.environ.get(_SHARED):
        with contextlib.suppress(OSError):
            multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]


def check_shared_folder() -> None:
    """Raise unless the folder in which worker processes share metrics exists."""
    folder: Any = os.environ.get(_SHARED)
    if folder and not os.path.isdir(folder):  # noqa: PTH112  the variable is empty far more often than a path
        from ..errors import ConfigError

        raise ConfigError(f"{_SHARED}={folder!r}: must be a folder that exists, emptied before the server starts")
