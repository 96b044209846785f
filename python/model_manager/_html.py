"""Small HTML tables for notebooks, without scripts and external assets.

All colors derive from the notebook's text color, so that light and dark themes both work.
"""

from __future__ import annotations

from html import escape

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any

FRAME = "display:inline-block;font:13px/1.5 system-ui,sans-serif;color:inherit;padding:2px 0"
_LINE = "1px solid color-mix(in srgb,currentColor 22%,transparent)"
_CELL = f"padding:3px 12px 3px 0;text-align:left;border-bottom:{_LINE};background:transparent;font-weight:inherit"
QUIET = "opacity:.65"

_LONGEST = 160
"""Characters of a text in a table."""
_MOST = 50
"""Rows of a table of results."""


def results_html(results: Sequence[Any], row: Callable[[Any], Mapping[str, str | float | None]]) -> str | None:
    """A table of results, the best one first. A column without any value is left out. None, which notebooks answer
    with the plain text, if the list has other items: it belongs to the caller, who may have changed it.
    """
    try:
        rows = [row(one) for one in results[:_MOST]]
        cells = [{title: _cell(value) for title, value in one.items() if value is not None} for one in rows]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return None
    if not cells:
        return f'<div style="{FRAME};{QUIET}">no results</div>'
    head = [title for title in rows[0] if any(title in one for one in cells)]
    body = table(head, ([one.get(title, "") for title in head] for one in cells))
    return f'<div style="{FRAME}">{body}{_more(len(results) - len(rows), "result")}</div>'


def matches_html(queries: Sequence[Sequence[tuple[int, float]]], count: int, size: int) -> str:
    """A table of the first of the `size` matches of each of the first queries, of `count`."""
    rows = [
        (str(number) if place == 0 else "", str(index), _cell(score))
        for number, pairs in enumerate(queries)
        for place, (index, score) in enumerate(pairs)
    ]
    more = _more(size - max(map(len, queries), default=size), "match", "matches of each query")
    more += _more(count - len(queries), "query", "queries")
    return f'<div style="{FRAME}">{table(("query", "row", "score"), rows)}{more}</div>'


def metadata_text(metadata: Mapping[str, object]) -> str | None:
    """Metadata in one line; None if there is none."""
    return ", ".join(f"{key}={value}" for key, value in metadata.items()) or None


def _more(count: int, one: str, several: str = "") -> str:
    if count <= 0:
        return ""
    return f'<div style="{QUIET}">and {count:,} more {one if count == 1 else several or one + "s"}</div>'


def _cell(value: str | float) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return _short(str(value))


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
    short = text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
    # A notebook sends UTF-8, which cannot hold a lone surrogate.
    return escape(short.encode("utf-8", "replace").decode())


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    header = "".join(f'<th style="{_CELL};{QUIET}">{escape(title)}</th>' for title in head)
    body = "".join("<tr>" + "".join(f'<td style="{_CELL}">{cell}</td>' for cell in row) + "</tr>" for row in rows)
    head_row = f"<tr>{header}</tr>" if header else ""
    return f'<table style="border-collapse:collapse;margin:4px 0;color:inherit">{head_row}{body}</table>'
