"""Managers and models in notebooks: small HTML tables without scripts and external assets, and a live plot of memory.

All colors derive from the notebook's text color, so that light and dark themes both work.
"""

from __future__ import annotations

from html import escape

from .._html import FRAME, QUIET, table
from .._sizes import size_text
from ..errors import ModelManagerError
from ._memory_plot import MemoryPlot, MemorySample, memory_plot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .._core import Manager
    from .._types import Description, SlotStatistics

__all__ = ["MemoryPlot", "MemorySample", "generator_html", "manager_html", "memory_plot", "model_html"]

_DOT = {"ready": "#2e9e5b", "loading": "#d99a1c", "absent": "color-mix(in srgb,currentColor 30%,transparent)"}


def manager_html(manager: Manager) -> str:
    """A table of slots with state, memory and idle time, and a line on cache, memory and threads. Loads nothing."""
    if manager.closed:
        return f'<div style="{FRAME}"><b>ModelManager</b> <span style="{QUIET}">closed</span></div>'
    stats = manager.stats()
    cache, memory = stats["cache"], stats["memory"]
    rows = [
        (_state(slot), f"<b>{escape(name)}</b>", escape(slot["source"] or "own object"), *_slot_figures(slot))
        for name, slot in stats["slots"].items()
    ]
    lookups = cache["hits"] + cache["misses"]
    ratio = f"{cache['hits'] / lookups:.0%} of {lookups} look-ups" if lookups else "no look-ups yet"
    budget = "" if memory["budget"] is None else f" of {size_text(memory['budget'])}"
    footer = (
        f"cache {cache['entries']}/{cache['max_entries']} vectors, {ratio}"
        f" · models {size_text(memory['models'])}{budget}, process {size_text(memory['resident'])}"
        f" · {stats['threads']} threads, {escape(stats['isa'])}, {escape(stats['device'])}"
    )
    return (
        f'<div style="{FRAME}"><b>ModelManager</b>'
        f"{table(('', 'slot', 'model', 'memory', 'idle'), rows)}"
        f'<div style="{QUIET}">{footer}</div></div>'
    )


def model_html(manager: Manager, name: str, title: str | None = None) -> str:
    """The card of a model: its state and, if it is loaded, what it gives, its limits and prompts. Loads nothing. The
    `title` is the class of the handle that shows it; None: by what the model scores.
    """
    try:
        description = manager.describe(name, load=False)
    except ModelManagerError:  # the manager is closed, or the slot is gone
        description = None
    title = title or ("CrossEncoder" if description and description["labels"] else "SentenceModel")
    title = f"<b>{escape(title)}</b> {escape(name)}"
    if description is None:
        return f'<div style="{FRAME}">{title} <span style="{QUIET}">not loaded</span></div>'
    rows = [
        ("model", escape(description["source"])),
        ("architecture", f"{escape(description['architecture'])}, {escape(description['dtype'])}"),
        *_given(description),
        ("longest text", f"{description['max_length']} tokens" if description["max_length"] else "set by its server"),
        ("memory", size_text(description["bytes"])),
    ]
    rows += [(f"prompt {escape(key)}", f"<code>{escape(text)}</code>") for key, text in description["prompts"].items()]
    return f'<div style="{FRAME}">{title}{table((), rows)}</div>'


def _given(model: Description) -> list[tuple[str, str]]:
    """The rows of what a model gives."""
    tasks, rows = model["tasks"], []
    if model["labels"]:
        rows.append(("labels", escape(", ".join(model["labels"]))))
    if "embed" in tasks:
        ends = ", normalized" if model["normalizes"] else ""
        rows += [
            ("vectors", f"{model['dimension']} dimensions, {escape(model['similarity'])} similarity"),
            ("pooling", escape(model["pooling"] or "set by its server") + ends),
        ]
    elif "embed_multi" in tasks:
        rows.append(("vectors", "one for each token"))
    if "embed_sparse" in tasks:
        rows.append(("sparse vectors", f"{model['sparse_dimension']:,} entries"))
    return rows


def generator_html(manager: Manager, name: str) -> str:
    """The card of a generator: its state, model, memory, and figures of all its loads. Loads nothing."""
    title = f"<b>TextGenerator</b> {escape(name)}"
    slot = None if manager.closed else manager.stats()["slots"].get(name)
    if slot is None or slot["state"] != "ready":
        return f'<div style="{FRAME}">{title} <span style="{QUIET}">not loaded</span></div>'
    rows = [("model", escape(slot["source"] or "own object")), ("memory", size_text(slot["bytes"]))]
    done = slot["generation"]
    if done is not None:
        rows += [
            ("answers", f"{done['completed']:,}, {done['active']} running, {done['waiting']} waiting"),
            ("read", f"{done['prompt_tokens']:,} tokens, {done['reused_tokens']:,} of them reused"),
            ("written", f"{done['generated_tokens']:,} tokens in {done['busy_seconds']:.1f} s of computing"),
            ("guessed", f"{done['drafted_tokens']:,} tokens, {done['accepted_tokens']:,} of them right"),
        ]
    return f'<div style="{FRAME}">{title}{table((), rows)}</div>'


def _state(slot: SlotStatistics) -> str:
    color = _DOT.get(slot["state"], _DOT["absent"])
    return f'<span style="color:{color}" title="{escape(slot["state"])}">●</span> {escape(slot["state"])}'


def _slot_figures(slot: SlotStatistics) -> tuple[str, str]:
    if slot["state"] != "ready":
        return "", ""
    idle = slot["idle_seconds"]
    return size_text(slot["bytes"]), "" if idle is None else f"{idle:.0f} s"
