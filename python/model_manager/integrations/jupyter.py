"""Managers and models in notebooks: small HTML tables without scripts and external assets.

All colors derive from the notebook's text color, so that light and dark themes both work.
"""

from __future__ import annotations

from html import escape

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from .._core import Manager
    from .._types import SlotStatistics

_FRAME = "display:inline-block;font:13px/1.5 system-ui,sans-serif;color:inherit;padding:2px 0"
_LINE = "1px solid color-mix(in srgb,currentColor 22%,transparent)"
_CELL = f"padding:3px 12px 3px 0;text-align:left;border-bottom:{_LINE};background:transparent;font-weight:inherit"
_QUIET = "opacity:.65"
_DOT = {"ready": "#2e9e5b", "loading": "#d99a1c", "absent": "color-mix(in srgb,currentColor 30%,transparent)"}


def manager_html(manager: Manager) -> str:
    """A table of slots with state, memory and idle time, and a line on cache, memory and threads. Loads nothing."""
    if manager.closed:
        return f'<div style="{_FRAME}"><b>ModelManager</b> <span style="{_QUIET}">closed</span></div>'
    stats = manager.stats()
    cache, memory = stats["cache"], stats["memory"]
    rows = [
        (_state(slot), f"<b>{escape(name)}</b>", escape(slot["source"] or "own object"), *_slot_figures(slot))
        for name, slot in stats["slots"].items()
    ]
    lookups = cache["hits"] + cache["misses"]
    ratio = f"{cache['hits'] / lookups:.0%} of {lookups} look-ups" if lookups else "no look-ups yet"
    budget = "" if memory["budget"] is None else f" of {_size(memory['budget'])}"
    footer = (
        f"cache {cache['entries']}/{cache['max_entries']} vectors, {ratio}"
        f" · models {_size(memory['models'])}{budget}, process {_size(memory['resident'])}"
        f" · {stats['threads']} threads, {escape(stats['isa'])}, {escape(stats['device'])}"
    )
    return (
        f'<div style="{_FRAME}"><b>ModelManager</b>'
        f"{_table(('', 'slot', 'model', 'memory', 'idle'), rows)}"
        f'<div style="{_QUIET}">{footer}</div></div>'
    )


def model_html(manager: Manager, name: str) -> str:
    """The card of a model: its state and, if it is loaded, its dimensions, limits and prompts. Loads nothing."""
    description = None if manager.closed else manager.describe(name, load=False)
    kind = "CrossEncoder" if description and description["labels"] else "SentenceModel"
    title = f"<b>{kind}</b> {escape(name)}"
    if description is None:
        return f'<div style="{_FRAME}">{title} <span style="{_QUIET}">not loaded</span></div>'
    rows = [
        ("model", escape(description["source"])),
        ("architecture", f"{escape(description['architecture'])}, {escape(description['dtype'])}"),
        ("labels", escape(", ".join(description["labels"])))
        if description["labels"]
        else ("vectors", f"{description['dimension']} dimensions, {escape(description['similarity'])} similarity"),
        ("longest text", f"{description['max_length']} tokens" if description["max_length"] else "set by its server"),
        (
            "pooling",
            escape(description["pooling"] or "set by its server")
            + (", normalized" if description["normalizes"] else ""),
        ),
        ("memory", _size(description["bytes"])),
    ]
    rows += [(f"prompt {escape(key)}", f"<code>{escape(text)}</code>") for key, text in description["prompts"].items()]
    return f'<div style="{_FRAME}">{title}{_table((), rows)}</div>'


def generator_html(manager: Manager, name: str) -> str:
    """The card of a generator: its state, model, memory, and figures since it was loaded. Loads nothing."""
    title = f"<b>TextGenerator</b> {escape(name)}"
    slot = None if manager.closed else manager.stats()["slots"].get(name)
    if slot is None or slot["state"] != "ready":
        return f'<div style="{_FRAME}">{title} <span style="{_QUIET}">not loaded</span></div>'
    rows = [("model", escape(slot["source"] or "own object")), ("memory", _size(slot["bytes"]))]
    done = slot["generation"]
    if done is not None:
        rows += [
            ("answers", f"{done['completed']:,}, {done['active']} running, {done['waiting']} waiting"),
            ("read", f"{done['prompt_tokens']:,} tokens, {done['reused_tokens']:,} of them reused"),
            ("written", f"{done['generated_tokens']:,} tokens in {done['busy_seconds']:.1f} s of computing"),
        ]
    return f'<div style="{_FRAME}">{title}{_table((), rows)}</div>'


_LONGEST = 160
"""Characters of a text in a table."""


def ranking_html(results: Iterable[tuple[int, float, str | None]]) -> str:
    """A table of documents, the best one first."""
    rows = [(str(index), f"{score:.4f}", _short(document or "")) for index, score, document in results]
    return f'<div style="{_FRAME}">{_table(("document", "score", "text"), rows)}</div>'


def matches_html(queries: Sequence[Sequence[tuple[int, float]]], count: int) -> str:
    """A table of the nearest rows of each of the first queries."""
    rows = [
        (str(number) if place == 0 else "", str(index), f"{score:.4f}")
        for number, pairs in enumerate(queries)
        for place, (index, score) in enumerate(pairs)
    ]
    more = f'<div style="{_QUIET}">and {count - len(queries)} more queries</div>' if count > len(queries) else ""
    return f'<div style="{_FRAME}">{_table(("query", "row", "score"), rows)}{more}</div>'


def explanation_html(explanation: Mapping[str, object]) -> str:
    """The sentence of `Manager.explain`, and its figures."""
    rows: list[tuple[str, str]] = []
    for key, value in explanation.items():
        if key in ("slot", "sentence", "adaptive"):
            continue
        parts = value.items() if isinstance(value, dict) else [("", value)]
        rows += [(escape(" ".join(filter(None, (key, str(part))))), _figure(figure)) for part, figure in parts]
    title = f"<b>{escape(str(explanation['slot']))}</b> {escape(str(explanation['sentence']))}"
    return f'<div style="{_FRAME}"><div>{title}</div>{_table((), rows)}</div>'


def _figure(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{escape(str(key))} {_figure(part)}" for key, part in value.items())
    return f"{value:,.1f}" if isinstance(value, float) else escape(str(value))


def _short(text: str) -> str:
    return escape(text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…")


def _state(slot: SlotStatistics) -> str:
    color = _DOT.get(slot["state"], _DOT["absent"])
    return f'<span style="color:{color}" title="{escape(slot["state"])}">●</span> {escape(slot["state"])}'


def _slot_figures(slot: SlotStatistics) -> tuple[str, str]:
    if slot["state"] != "ready":
        return "", ""
    idle = slot["idle_seconds"]
    return _size(slot["bytes"]), "" if idle is None else f"{idle:.0f} s"


def _size(count: int) -> str:
    return f"{count / 2**20:,.1f} MB"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    header = "".join(f'<th style="{_CELL};{_QUIET}">{escape(title)}</th>' for title in head)
    body = "".join("<tr>" + "".join(f'<td style="{_CELL}">{cell}</td>' for cell in row) + "</tr>" for row in rows)
    head_row = f"<tr>{header}</tr>" if header else ""
    return f'<table style="border-collapse:collapse;margin:4px 0;color:inherit">{head_row}{body}</table>'
