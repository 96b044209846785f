"""The file of a `SemanticCache`: one SQLite table."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import math
import os
import sqlite3
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._arguments import type_error
from ..errors import InvalidFileError, ModelIOError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from .rows import Vectors

logger = logging.getLogger(__name__)

_APPLICATION = 0x6D6D_7363
"""SQLite's application_id of these files: "mmsc"."""
_VERSION = 1
_ROUNDING = 1e-3
"""How far the length of a sound vector may be from 1."""

_TABLE = """
CREATE TABLE IF NOT EXISTS answers (
    scope TEXT NOT NULL,
    question TEXT NOT NULL,
    answer TEXT NOT NULL,
    created REAL NOT NULL,
    used REAL NOT NULL,
    fingerprint TEXT NOT NULL,
    vector BLOB NOT NULL,
    PRIMARY KEY (scope, question)
) WITHOUT ROWID
"""


@dataclass
class Stored:
    """An answer in memory."""

    answer: Any
    """Of a cache with a file: its JSON text."""
    created: float
    used: float


def check_answer(answer: Any) -> None:
    """Refuse what is read once: whoever got it from the cache later would get nothing."""
    if hasattr(answer, "__await__"):
        if hasattr(answer, "close"):
            answer.close()  # a coroutine that is not awaited is warned of
        raise type_error("answer", "a value", answer, ", which is read once; await it first: aget_or_compute awaits it")
    if hasattr(answer, "__next__") or hasattr(answer, "__anext__"):
        raise type_error("answer", "a value", answer, ", which is read once; join its pieces first")


def own_copy(answer: Any) -> Any:
    """A copy that its owner may change; the object itself where it has none, such as one with a lock."""
    try:
        return copy.deepcopy(answer)
    except Exception:  # noqa: BLE001  objects of other packages refuse it in ways of their own
        return answer


@dataclass
class Row:
    """A row of the file."""

    key: tuple[str, str]
    answer: str
    """Its JSON text."""
    created: float
    used: float
    fingerprint: str
    vector: Vectors | None
    """Of length 1; None for a damaged one, which is to be computed again."""


class AnswerStore:
    """Reads and writes the file. Safe for threads, and usable in a forked child, which opens its own connection."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._inherited: list[sqlite3.Connection] = []
        """Connections of parent processes. They must not even be closed here: that may roll back a transaction that the
        parent has open, or delete its log."""
        with self._open():
            pass

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """The connection inside of a transaction."""
        with self._lock, self._errors():
            if self._connection is None:
                self._connection = self._connect()
            with self._connection:
                yield self._connection

    @property
    def lock(self) -> threading.Lock:
        """Held while the file is read or written."""
        return self._lock

    def after_fork_child(self) -> None:
        """Leave the lock and the connection to the parent process."""
        self._lock = threading.Lock()
        if self._connection is not None:
            self._inherited.append(self._connection)
            self._connection = None

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            if str(error).startswith("no such "):  # a table or a column: the file is another one
                raise self._unusable(error) from error
            # The file is sound, and may hold answers that nothing else has.
            failure = ModelIOError(
                f"{self.path} cannot be read or written: {error}. It may be in use by another process, be a folder, or"
                " lie on a full or read-only disk"
            )
            failure.transient = any(word in str(error) for word in ("locked", "busy"))
            raise failure from error
        except sqlite3.DatabaseError as error:
            raise self._unusable(error) from error
        except OSError as error:
            raise ModelIOError(
                f"{self.path.parent} cannot be made: {error.strerror}. Name a folder that can be written"
            ) from error

    def _unusable(self, error: sqlite3.DatabaseError) -> InvalidFileError:
        return InvalidFileError(
            f"{self.path} cannot be used as a cache of answers: {error}. Remove the file to begin with an empty"
            " cache, or name another one"
        )

    def _connect(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._make_private()
        connection = sqlite3.connect(self.path, timeout=30, check_same_thread=False)
        connection.text_factory = _text
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if tables and (application, version) != (_APPLICATION, _VERSION):
            connection.close()
            raise sqlite3.DatabaseError("it is another program's database, or of another version of this package")
        # A reader does not wait for a writer. A crash of the process loses nothing; one of the machine may lose the
        # last entries.
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        if not tables:
            connection.execute(f"PRAGMA application_id = {_APPLICATION}")
            connection.execute(f"PRAGMA user_version = {_VERSION}")
        connection.execute(_TABLE)
        return connection

    def _make_private(self) -> None:
        """Make a new file that only its owner can read; SQLite gives its log the same mode. The mode of a file that is
        there stays.
        """
        # SQLite reports what fails here. A file that is there must not be opened and closed: this would release the
        # locks that other connections of this process hold.
        with contextlib.suppress(OSError):
            os.close(os.open(os.path.realpath(self.path), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))

    def read(self, limit: int, oldest: float | None) -> list[Row]:
        """The `limit` entries that were used last, the oldest of them first. Others are removed, and so are entries
        that were made at `oldest` or before. A damaged row is left out, and stays in the file. Where its vector alone
        is damaged, it has none.
        """
        with self._open() as connection:
            if oldest is not None:
                connection.execute("DELETE FROM answers WHERE created <= ?", (oldest,))
            connection.execute(
                "DELETE FROM answers WHERE (scope, question) NOT IN"
                " (SELECT scope, question FROM answers ORDER BY used DESC LIMIT ?)",
                (limit,),
            )
            rows = connection.execute(
                "SELECT scope, question, answer, created, used, fingerprint, vector FROM answers ORDER BY used DESC"
            ).fetchall()
        found = [row for row in map(_row, reversed(rows)) if row is not None]
        if left_out := len(rows) - len(found):
            logger.warning("%s: left out %s", self.path, _counted(left_out, "damaged row"))
        if damaged := sum(row.vector is None for row in found):
            logger.warning("%s: %s will be computed again", self.path, _counted(damaged, "damaged vector"))
        return found

    def count(self, limit: int, oldest: float | None) -> int:
        """How many entries `read` would leave; it removes none."""
        with self._open() as connection:
            query = "SELECT count(*) FROM answers WHERE ?1 IS NULL OR created > ?1"
            found: int = connection.execute(query, (oldest,)).fetchone()[0]
        return min(found, limit)

    def write(
        self,
        key: tuple[str, str],
        answer: str,
        now: float,
        vector: Vectors,
        fingerprint: str,
        gone: Mapping[tuple[str, str], float],
    ) -> None:
        """Store one entry and remove those that made way: keys, and when they were made. An answer that another
        process has stored since stays.
        """
        with self._open() as connection:
            connection.executemany(
                "DELETE FROM answers WHERE scope = ? AND question = ? AND created <= ?",
                [(*old, created) for old, created in gone.items()],
            )
            connection.execute(
                "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?)",
                (*key, answer, now, now, fingerprint, vector.tobytes()),
            )

    def rename_fingerprints(self, former: Iterable[str], fingerprint: str) -> None:
        """Say of the vectors of these fingerprints that they are of the model of `fingerprint`."""
        with self._open() as connection:
            connection.executemany(
                "UPDATE answers SET fingerprint = ? WHERE fingerprint = ?", [(fingerprint, one) for one in former]
            )

    def replace_vectors(self, rows: Sequence[Row], fingerprint: str) -> None:
        """Store the vectors that another model made."""
        with self._open() as connection:
            connection.executemany(
                "UPDATE answers SET vector = ?, fingerprint = ? WHERE scope = ? AND question = ?",
                [(row.vector.tobytes(), fingerprint, *row.key) for row in rows if row.vector is not None],
            )

    def remove(self, keys: Iterable[tuple[str, str]]) -> None:
        """Remove entries."""
        with self._open() as connection:
            connection.executemany("DELETE FROM answers WHERE scope = ? AND question = ?", list(keys))

    def clear(self, scope: str | None) -> None:
        """Remove all entries, or those of one scope."""
        with self._open() as connection:
            connection.execute("DELETE FROM answers WHERE ?1 IS NULL OR scope = ?1", (scope,))

    def close(self, used: Mapping[tuple[str, str], float]) -> None:
        """Store when entries were used last, unless another process used them later, and close the connection."""
        with self._open() as connection:
            connection.executemany(
                "UPDATE answers SET used = max(used, ?) WHERE scope = ? AND question = ?",
                [(when, *key) for key, when in used.items()],
            )
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None


def _text(raw: bytes) -> str | bytes:
    """A text of the file; bytes that are no text as they are, so that one of them does not fail a whole query."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _row(columns: tuple[Any, ...]) -> Row | None:
    """A row of the file; None if it is damaged."""
    scope, question, answer, created, used, fingerprint, vector = columns
    texts = all(isinstance(one, str) for one in (scope, question, answer, fingerprint))
    times = all(isinstance(one, float) and math.isfinite(one) for one in (created, used))
    if not texts or not times or not question.strip():
        return None
    try:
        json.loads(answer, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return None
    return Row((scope, question), answer, created, used, fingerprint, _vector(vector))


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not written to files")


def _vector(raw: object) -> Vectors | None:
    """A vector of the file, if it is one of length 1."""
    if not isinstance(raw, bytes) or len(raw) % 4 != 0:
        return None
    vector = np.frombuffer(raw, np.float32)
    # NaN fails the comparison too. Damaged numbers may be too large for the type.
    length = np.sqrt(np.sum(np.square(vector, dtype=np.float64)))
    return vector if abs(length - 1) < _ROUNDING else None


def _counted(count: int, thing: str) -> str:
    return f"{count:,} {thing}{'' if count == 1 else 's'}"
