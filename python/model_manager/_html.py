"""Small HTML tables for notebooks, without scripts and external assets.

All colors derive from the notebook's text color, so that light and dark themes both work.
"""

from __future__ import annotations

from html import escape

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

FRAME = "display:inline-block;font:13px/1.5 system-ui,sans-serif;color:inherit;padding:2px 0"
_LINE = "1px solid color-mix(in srgb,currentColor 22%,transparent)"
_CELL = f"padding:3px 12px 3px 0;text-align:left;border-bottom:{_LINE};background:transparent;font-weight:inherit"
QUIET = "opacity:.65"

_LONGEST = 160
"""Characters of a text in a table."""


def ranking_html(results: Iterable[tuple[int, float, str | None]]) -> str:
    """A table of documents, the best one first."""
    rows = [(str(index), f"{score:.4f}", _short(document or "")) for index, score, document in results]
    return f'<div style="{FRAME}">{table(("document", "score", "text"), rows)}</div>'


def matches_html(queries: Sequence[Sequence[tuple[int, float]]], count: int) -> str:
    """A table of the nearest rows of each of the first queries."""
    rows = [
        (str(number) if place == 0 else "", str(index), f"{score:.4f}")
        for number, pairs in enumerate(queries)
        for place, (index, score) in enumerate(pairs)
    ]
    more = f'<div style="{QUIET}">and {count - len(queries)} more queries</div>' if count > len(queries) else ""
    return f'<div style="{FRAME}">{table(("query", "row", "score"), rows)}{more}</div>'


def explanation_html(explanation: Mapping[str, object]) -> str:
    """The sentence of `Manager.explain`, and its figures."""
    rows: list[tuple[str, str]] = []
    for key, value in explanation.items():
        if key in ("slot", "sentence", "adaptive"):
            continue
        parts = value.items() if isinstance(value, dict) else [("", value)]
        rows += [(escape(" ".join(filter(None, (key, str(part))))), _figure(figure)) for part, figure in parts]
    title = f"<b>{escape(str(explanation['slot']))}</b> {escape(str(explanation['sentence']))}"
    return f'<div style="{FRAME}"><div>{title}</div>{table((), rows)}</div>'


def _figure(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{escape(str(key))} {_figure(part)}" for key, part in value.items())
    return f"{value:,.1f}" if isinstance(value, float) else escape(str(value))


def _short(text: str) -> str:
    return escape(text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    header = "".join(f'<th style="{_CELL};{QUIET}">{escape(title)}</th>' for title in head)
    body = "".join("<tr>" + "".join(f'<td style="{_CELL}">{cell}</td>' for cell in row) + "</tr>" for row in rows)
    head_row = f"<tr>{header}</tr>" if header else ""
    return f'<table style="border-collapse:collapse;margin:4px 0;color:inherit">{head_row}{body}</table>'
