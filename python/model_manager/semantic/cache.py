"""Stored answers, found by meaning: a question that was answered before, in other words, gets the same answer."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .._arguments import a_function, a_number, a_text, an_int, argument_error, type_error
from .._embedder import Embedder
from . import _fork
from .flights import AbandonedError, Flights, in_event_loop
from .refresh import embed, present
from .rows import ROUNDING, prepare
from .store import AnswerStore, Row, Stored, check_answer, own_copy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from typing_extensions import Self

    from .._core import Manager
    from .rows import Vectors

    Gone = dict[tuple[str, str], tuple[Stored, Vectors]]
    """Entries that were removed from memory, with their vectors."""

_FIRST_ROWS = 64
_NOTHING = object()


class CachedAnswer(NamedTuple):
    """An answer of an earlier question."""

    answer: Any
    """A copy of what was stored."""
    question: str
    """The question that it was stored for."""
    score: float
    """The cosine of the two questions; 1.0 for the same text."""
    created: float
    """When it was stored, in seconds since the epoch."""


class SemanticCache:
    """Answers by the meaning of their questions: `get` returns the answer of the stored question whose cosine is
    highest, if it reaches the threshold.

    Safe for threads. The same text is found without computing a vector. The least recently used entry makes way for a
    new one when the cache is full. When the slot has another model, another checkpoint of the same name, or another
    prompt for queries, the stored questions are embedded again. With a `path` the entries are in an SQLite file, which
    its owner alone can read, and survive the process. Several processes may use one file; a process sees what others
    added when it opens the cache, which removes what has expired, and what is more than its `max_entries`, from the
    file.
    """

    def __init__(
        self,
        manager: Manager | None = None,
        model: str | None = None,
        *,
        threshold: float = 0.92,
        max_entries: int = 10_000,
        ttl: float | None = None,
        path: str | os.PathLike[str] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """An empty cache, or the one of the file at `path`. No model is loaded before the first call.

        Args:
            manager: The manager that embeds; None for the process-wide one.
            model: A slot of it or a source; None for its preferred sentence model.
            threshold: The least cosine at which two questions count as the same. It depends on the model: measure it
                on pairs of your own (`pairwise_similarity`).
            max_entries: The most entries, of all scopes.
            ttl: Seconds after which an answer is no longer given; None for no limit.
            path: A file for the entries.
            clock: Seconds since the epoch.

        Raises:
            ArgumentError: A `threshold`, `max_entries` or `ttl` out of range.
            InvalidFileError: `path` is a file, but not one of this cache.
            ModelIOError: The file cannot be opened; transient while another process locks it. Every call that uses the
                file may raise this.
        """
        threshold = a_number("threshold", threshold)
        if not 0 < threshold <= 1:
            raise argument_error("threshold", f"threshold={threshold} must be above 0 and at most 1")
        max_entries = an_int("max_entries", max_entries, 1)
        if path is not None and not isinstance(path, str | os.PathLike):
            raise type_error("path", "a str or a path", path)
        a_function("clock", clock)
        if ttl is not None and not (ttl := a_number("ttl", ttl)) > 0:
            raise argument_error("ttl", f"ttl={ttl} must be a positive number of seconds, or None")
        self.threshold = threshold
        self.max_entries = max_entries
        self.ttl = ttl
        self._embedder = Embedder(manager, model)
        self._clock = clock
        self._store = None if path is None else AnswerStore(Path(path))
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        self._writing = threading.Lock()
        """Held while entries and the file change, so that both change in one order. Taken before `_lock`."""
        self._loaded = self._store is None
        self._entries: dict[tuple[str, str], Stored] = {}
        """By scope and question, the least recently used first."""
        self._rows: dict[int, tuple[str, str]] = {}
        """The keys of the rows in use."""
        self._row_of: dict[tuple[str, str], int] = {}
        self._free: list[int] = []
        self._vectors: Vectors | None = None
        self._model: tuple[str, str] | None = None
        """The `query_model` that made the vectors."""
        self._hits = self._misses = self._evicted = 0
        self._flights = Flights()
        _fork.follow(self)

    # --- Look up and store -------------------------------------------------------------------------------------------

    def get(self, question: str, *, scope: str = "") -> CachedAnswer | None:
        """The answer of the most similar question of `scope`; None when none reaches the threshold.

        Args:
            question: Text.
            scope: Only entries of the same scope are found: a language, a tenant, a version of the documents.
        """
        found = self._find(question, scope)
        if found is None or self._store is not None:
            return found  # what comes from a file is a copy already
        # Outside of the lock, because a class may have its own way to copy.
        return found._replace(answer=own_copy(found.answer))

    def _find(self, question: str, scope: str) -> CachedAnswer | None:
        """`get`, with the stored answer itself."""
        key = _key(scope, question)
        self._load()
        with self._lock:
            found = self._live(key)
            if found is not None:
                return self._hit(key, found, 1.0)
            if not self._entries:
                self._misses += 1
                return None
        while True:
            vector, model = self._embed_known(question)
            with self._lock:
                if self._model == model:
                    return self._nearest(scope, vector)
            self._embed_again()

    def put(self, question: str, answer: Any, *, scope: str = "") -> None:
        """Store a copy of `answer` for `question`, in place of an earlier one for the same text. With a `path` it is
        kept as JSON gives it back: a tuple as a list, keys as texts. An object that `copy.deepcopy` cannot copy is
        kept, and given out, itself.

        Raises:
            TypeError: An answer that is read once: a coroutine, a generator.
            ArgumentError: A blank question; with a `path`, an answer that JSON cannot represent. Nothing is stored, as
                after every error.
        """
        self._put(question, answer, scope)

    def _put(self, question: str, answer: Any, scope: str) -> Any:
        """`put`. Returns what `get` gives from then on."""
        key = _key(scope, question)
        check_answer(answer)
        if not question.strip():
            raise argument_error("question", "question is blank; a cache of answers needs a text to find them by")
        text = None
        if self._store is not None:
            try:
                text = json.dumps(answer, ensure_ascii=False, allow_nan=False)
                text.encode()  # SQLite takes no lone surrogates
                # What a later process reads: a tuple is a list from the start.
                answer = json.loads(text)
            except (TypeError, ValueError, RecursionError) as error:
                raise argument_error("answer", f"answer cannot be stored in a file as JSON: {error}") from error
        else:
            answer = own_copy(answer)
        self._load()
        while True:
            vector, model = self._embed_known(question)
            with self._writing:
                now = self._clock()
                with self._lock:
                    if known := self._model in (None, model):
                        self._model = model
                        gone = self._insert(key, Stored(answer if text is None else text, now, now), vector)
                if known:
                    if self._store is not None and text is not None:
                        self._write(key, text, now, vector, model[1], gone)
                    return answer if self._store is not None else own_copy(answer)
            self._embed_again()

    def _write(
        self, key: tuple[str, str], text: str, now: float, vector: Vectors, fingerprint: str, gone: Gone
    ) -> None:
        """Write an entry to the file. Where the file does not take it, the memory is as before too."""
        assert self._store is not None
        try:
            others = {old: stored.created for old, (stored, _) in gone.items() if old != key}
            self._store.write(key, text, now, vector, fingerprint, others)
        except BaseException:
            with self._lock:
                self._drop(key)
                for old, (stored, former) in gone.items():
                    self._place(old, stored, former)
                    self._evicted -= old != key and not self._expired(stored)
                # They had been used least recently, and what was to be replaced was in use.
                first = {old: stored for old, (stored, _) in gone.items() if old != key}
                self._entries = first | {old: stored for old, stored in self._entries.items() if old not in first}
            raise

    def get_or_compute(self, question: str, compute: Callable[[str], Any], *, scope: str = "") -> Any:
        """The stored answer, else `compute(question)`, which is stored as by `put`. An exception of `compute` is raised
        and nothing is stored.

        Of several threads and tasks that ask for the same text at once, one computes; the others wait, and get a copy
        of its answer, or its exception. No lock is held meanwhile. On the thread of an event loop the method does not
        wait, and computes itself. So does a `compute` that asks for its own question; it must not wait for a thread of
        its own that does.
        """
        a_function("compute", compute)
        key = _key(scope, question)
        while True:
            found = self.get(question, scope=scope)
            if found is not None:
                return found.answer
            with self._flights.computing(key) as result:
                if result is not None:
                    answer = self._stored(key)
                    answer = self._put(question, compute(question), scope) if answer is _NOTHING else answer
                    result.append(own_copy(answer))
                    return answer
            if not in_event_loop():
                with self._flights.waiting(key) as outcome:
                    if outcome is not None:
                        try:
                            return own_copy(outcome.result())
                        except AbandonedError:
                            continue
            if self._flights.is_under_way(key):
                return self._put(question, compute(question), scope)

    def _stored(self, key: tuple[str, str]) -> Any:
        """A copy of the answer for exactly this text, which another thread may have stored since `get`."""
        with self._lock:
            entry = self._live(key)
            if entry is None:
                return _NOTHING
            answer = self._hit(key, entry, 1.0).answer
        return answer if self._store is not None else own_copy(answer)

    async def aget(self, question: str, *, scope: str = "") -> CachedAnswer | None:
        """`get` on a thread, for asyncio."""
        import asyncio

        return await asyncio.to_thread(self.get, question, scope=scope)

    async def aput(self, question: str, answer: Any, *, scope: str = "") -> None:
        """`put` on a thread, for asyncio."""
        import asyncio

        await asyncio.to_thread(self.put, question, answer, scope=scope)

    async def aget_or_compute(self, question: str, compute: Callable[[str], Any], *, scope: str = "") -> Any:
        """`get_or_compute` for asyncio. `compute` is called on the event loop and may be a coroutine function. If the
        task that computes is cancelled, one of those that wait computes.
        """
        import asyncio
        import inspect

        async def computed() -> Any:
            answer = compute(question)
            if inspect.isawaitable(answer):
                answer = await answer
            return await asyncio.to_thread(self._put, question, answer, scope)

        a_function("compute", compute)
        key = _key(scope, question)
        while True:
            found = await self.aget(question, scope=scope)
            if found is not None:
                return found.answer
            with self._flights.computing(key) as result:
                if result is not None:
                    answer = self._stored(key)
                    answer = await computed() if answer is _NOTHING else answer
                    result.append(own_copy(answer))
                    return answer
            with self._flights.waiting(key) as outcome:
                if outcome is not None:
                    try:
                        return own_copy(await asyncio.wrap_future(outcome))
                    except AbandonedError:
                        continue
            if self._flights.is_under_way(key):
                return await computed()

    def remove(self, question: str, *, scope: str = "") -> bool:
        """Remove the entry of exactly this text. Returns whether there was one."""
        key = _key(scope, question)
        self._load()
        with self._writing:
            with self._lock:
                there = key in self._entries
                self._drop(key)
            if self._store is not None:
                self._store.remove([key])
        return there

    def clear(self, *, scope: str | None = None) -> None:
        """Remove all entries, or those of one scope; from the file those of other processes too."""
        if scope is not None:
            _scope(scope)
        # What is being read of the file must not arrive afterwards.
        with self._loading, self._writing:
            with self._lock:
                for key in [key for key in self._entries if scope is None or key[0] == scope]:
                    self._drop(key)
            if self._store is not None:
                self._store.clear(scope)

    # --- The object --------------------------------------------------------------------------------------------------

    def stats(self) -> dict[str, int]:
        """Counts since the start: ``hits``, ``misses``, ``evicted``; and ``entries`` now. Loads no model: before the
        first use the entries of the file are counted.
        """
        unread = 0
        if self._store is not None and not self._loaded:
            unread = self._store.count(self.max_entries, self._oldest())
        with self._lock:
            return {
                "entries": len(self._entries) if self._loaded else unread,
                "hits": self._hits,
                "misses": self._misses,
                "evicted": self._evicted,
            }

    def close(self) -> None:
        """Save when entries were used last and close the file. The object opens it again when it is used again."""
        if self._store is None:
            return
        with self._lock:
            used = {key: entry.used for key, entry in self._entries.items()}
        self._store.close(used)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def __len__(self) -> int:
        self._load()
        with self._lock:
            return len(self._entries)

    def __repr__(self) -> str:
        # What prints the object need not read its file, which may fail.
        with self._lock:
            entries = f"{len(self._entries)} of {self.max_entries} entries" if self._loaded else "file not read yet"
            return (
                f"<SemanticCache {self._embedder.slot!r}, {entries}, threshold {self.threshold},"
                f" {self._hits} hits, {self._misses} misses>"
            )

    def _short_locks(self) -> tuple[threading.Lock, ...]:
        own = (self._lock, self._flights.lock)
        return own if self._store is None else (*own, self._store.lock)

    def _after_fork_child(self) -> None:
        self._lock, self._loading, self._writing = threading.Lock(), threading.Lock(), threading.Lock()
        self._flights = Flights()  # those of the parent end there
        if self._store is not None:
            self._store.after_fork_child()

    # --- Inside ------------------------------------------------------------------------------------------------------

    def _embed(self, question: str) -> Vectors:
        return self._embed_known(question)[0]

    def _embed_known(self, question: str) -> tuple[Vectors, tuple[str, str]]:
        """The vector of a question, and the `query_model` that made it."""
        found, model = self._embedder.queries_of_one_model([question])
        return np.asarray(prepare(found, "vector", "cosine")[0]), model

    def _embed_again(self) -> None:
        """Embed all stored questions with the slot's present model, outside of the lock."""
        with self._loading:
            while True:
                fresh: dict[tuple[str, str], Vectors] = {}
                model = self._embedder.query_model
                with self._lock:
                    if model == self._model:
                        return
                    keys = list(self._entries)
                if keys:
                    found, model = embed(self._embedder, [question for _, question in keys])
                    fresh = {key: found[key[1]] for key in keys if key[1] in found}
                with self._lock:
                    # Another thread may have added a vector of the former model.
                    if set(keys) >= self._entries.keys():
                        entries, self._entries = self._entries, {}
                        self._rows, self._row_of, self._free, self._vectors = {}, {}, [], None
                        kept = [key for key in entries if key in fresh]
                        for key in kept:
                            self._place(key, entries[key], fresh[key])
                        self._model = model
                        rows = [Row(key, "", 0.0, 0.0, model[1], fresh[key]) for key in kept]
                        break
        if self._store is not None:
            self._store.replace_vectors(rows, model[1])

    def _load(self) -> None:
        """Read the file once, and remove what has expired or is too much from it. Questions that another model, or the
        same one with another prompt, embedded are embedded again, outside of the lock.
        """
        if self._loaded:
            return
        with self._loading:
            if self._loaded or self._store is None:
                return
            rows = self._store.read(self.max_entries, self._oldest())
            model, own, stale, fresh = present(self._embedder, rows)
            for row in stale:
                row.vector = fresh.get(row.key[1])
            if stale:
                self._store.replace_vectors(stale, model[1])
            if own:
                self._store.rename_fingerprints(own, model[1])
            with self._lock:
                self._model = model
                for row in rows:
                    if row.vector is not None:
                        self._insert(row.key, Stored(row.answer, row.created, row.used), row.vector)
                self._evicted = 0
            self._loaded = True

    def _oldest(self) -> float | None:
        """Entries that were made then or before have expired."""
        return None if self.ttl is None else self._clock() - self.ttl

    def _live(self, key: tuple[str, str]) -> Stored | None:
        entry = self._entries.get(key)
        return None if entry is None or self._expired(entry) else entry

    def _expired(self, entry: Stored) -> bool:
        return self.ttl is not None and self._clock() - entry.created >= self.ttl

    def _hit(self, key: tuple[str, str], entry: Stored, score: float) -> CachedAnswer:
        self._hits += 1
        entry.used = self._clock()
        self._entries[key] = self._entries.pop(key)  # most recently used: last
        # Each reader has its own: a change of it is no change of the cache.
        answer = entry.answer if self._store is None else json.loads(entry.answer)
        return CachedAnswer(answer, key[1], score, entry.created)

    def _nearest(self, scope: str, vector: Vectors) -> CachedAnswer | None:
        if self._vectors is not None and self._rows:
            scores = self._vectors @ vector
            similar = np.flatnonzero(scores >= self.threshold - ROUNDING)
            for row in similar[np.argsort(-scores[similar], kind="stable")]:
                score = float(scores[row])
                key = self._rows.get(int(row))
                entry = self._live(key) if key is not None and key[0] == scope else None
                if key is not None and entry is not None:
                    return self._hit(key, entry, min(score, 1.0))
        self._misses += 1
        return None

    def _insert(self, key: tuple[str, str], entry: Stored, vector: Vectors) -> Gone:
        """Returns what it replaces and what made way."""
        gone: Gone = {}
        if key in self._entries:
            gone[key] = self._take(key)
        for old in [old for old, stored in self._entries.items() if self._expired(stored)] if self.ttl else ():
            gone[old] = self._take(old)
        while len(self._entries) >= self.max_entries:
            oldest = next(iter(self._entries))
            gone[oldest] = self._take(oldest)
            self._evicted += 1
        self._place(key, entry, vector)
        return gone

    def _take(self, key: tuple[str, str]) -> tuple[Stored, Vectors]:
        """Remove an entry, and return it with its vector."""
        assert self._vectors is not None
        taken = self._entries[key], self._vectors[self._row_of[key]].copy()
        self._drop(key)
        return taken

    def _place(self, key: tuple[str, str], entry: Stored, vector: Vectors) -> None:
        row = self._free_row(len(vector))
        assert self._vectors is not None
        self._vectors[row] = vector
        self._rows[row] = key
        self._row_of[key] = row
        self._entries[key] = entry

    def _free_row(self, dimension: int) -> int:
        """A row that no entry has; the matrix grows by doubling."""
        if not self._free:
            old = self._vectors
            size = 0 if old is None else len(old)
            larger = np.zeros((min(max(2 * size, _FIRST_ROWS), self.max_entries), dimension), np.float32)
            if old is not None:
                larger[:size] = old
            self._vectors = larger
            self._free.extend(reversed(range(size, len(larger))))
        return self._free.pop()

    def _drop(self, key: tuple[str, str]) -> None:
        if self._entries.pop(key, None) is not None and self._vectors is not None:
            row = self._row_of.pop(key)
            del self._rows[row]
            self._free.append(row)
            self._vectors[row] = 0


def _key(scope: str, question: str) -> tuple[str, str]:
    return _scope(scope), a_text("question", question)


def _scope(scope: str) -> str:
    """`scope`, if a file can hold it."""
    try:
        a_text("scope", scope).encode()
    except UnicodeEncodeError:
        raise argument_error("scope", f"scope={scope!r} holds a lone surrogate, which no UTF-8 text can") from None
    return scope
