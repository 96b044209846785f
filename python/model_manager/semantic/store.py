"""The file of a `SemanticCache`: one SQLite table."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InvalidFileError, ModelIOError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from .rows import Vectors

_APPLICATION = 0x6D6D_7363
"""SQLite's application_id of these files: "mmsc"."""
_VERSION = 1

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
    created: float
    used: float


@dataclass
class Row:
    """A row of the file."""

    key: tuple[str, str]
    answer: Any
    created: float
    used: float
    fingerprint: str
    vector: Vectors | None


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
        connection = sqlite3.connect(self.path, timeout=30, check_same_thread=False)
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

    def read(self, limit: int, oldest: float | None) -> list[Row]:
        """The `limit` entries that were used last, the oldest of them first. A damaged row is left out. Others are
        removed, and so are entries that were made at `oldest` or before.
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
        found = []
        for scope, question, answer, created, used, fingerprint, vector in reversed(rows):
            with contextlib.suppress(ValueError):
                values = np.frombuffer(vector, np.float32)
                found.append(Row((scope, question), json.loads(answer), created, used, fingerprint, values))
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
