"""The result of one run, for every document."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ...errors import ModelManagerError


@dataclass(frozen=True, slots=True)
class Failure:
    """A document that could not be indexed."""

    position: int
    """Its place in the input, from 0."""
    id: str | None
    """Its id as given; None without one."""
    reason: str

    def __str__(self) -> str:
        name = f"document {self.position}" if self.id is None else f"document {self.position} (id {self.id!r})"
        return f"{name}: {self.reason}"


@dataclass(slots=True)
class IndexReport:
    """The figures of one run. Every document that was read is indexed, skipped or failed. Of a run that ended early
    those under way are not counted: the next run reads them again.
    """

    indexed: int = 0
    """Documents written by this run."""
    updated: int = 0
    """Documents of `indexed` that replaced other content with the same id."""
    points: int = 0
    """Points written: as many as documents, or as chunks of them. Of several documents with one id in a batch only the
    last one is written.
    """
    truncated: int = 0
    """Texts of which the model read only the beginning; `chunk` avoids that. Other calls of the same slot count too."""
    skipped: int = 0
    """Documents that the collection already had, unchanged."""
    failures: list[Failure] = field(default_factory=list)
    seconds: float = 0.0
    finished: bool = False
    """Whether the whole input was read; False after an interruption or too many failures."""

    @property
    def failed(self) -> int:
        """Documents that could not be indexed; `failures` has the reasons."""
        return len(self.failures)

    @property
    def documents(self) -> int:
        """Documents processed."""
        return self.indexed + self.skipped + self.failed

    @property
    def documents_per_second(self) -> float:
        """Documents processed per second; 0 for a run without documents."""
        return self.documents / self.seconds if self.seconds > 0 else 0.0

    @property
    def ok(self) -> bool:
        """Whether the whole input was read and nothing failed."""
        return self.finished and not self.failures

    def to_dict(self) -> dict[str, Any]:
        """Everything, JSON-serializable."""
        return {
            "indexed": self.indexed,
            "updated": self.updated,
            "points": self.points,
            "truncated": self.truncated,
            "skipped": self.skipped,
            "failed": self.failed,
            "failures": [{"position": one.position, "id": one.id, "reason": one.reason} for one in self.failures],
            "seconds": round(self.seconds, 3),
            "documents_per_second": round(self.documents_per_second, 1),
            "finished": self.finished,
        }

    def __str__(self) -> str:
        updated = f" ({self.updated:,} of them changed)" if self.updated else ""
        text = (
            f"{self.indexed:,} indexed{updated}, {self.skipped:,} skipped, {self.failed:,} failed"
            f" in {self.seconds:.1f} s ({self.documents_per_second:,.0f} documents/s)"
        )
        if not self.finished:
            text += "; not finished"
        if self.failures:
            text += f"; first failure: {self.failures[0]}"
        return text

    def __repr__(self) -> str:
        return f"<IndexReport: {self}>"


class IndexingError(ModelManagerError, RuntimeError):
    """Indexing stopped: a document failed with ``on_error="raise"``, or more than `max_failures` did."""

    report: IndexReport
    """The figures until then."""
