"""What the models of a server are for, in the error for a request that they cannot answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._scoring import RERANKER
from .errors import bad_request

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .._types import SlotStatistics
    from .errors import ApiError

_KINDS = {
    "embedding": "an embedding model",
    "generator": "a text generator",
    "reranker": "a reranker",
    "classifier": "a classifier",
    "sparse": "a model of sparse vectors",
}


def is_source(name: str, state: SlotStatistics) -> bool:
    """Whether `name` is the source of a slot. One with an adapter gives other results than its source."""
    return name == state["source"] and state["adapter"] is None


def other_use(name: str, slots: Mapping[str, SlotStatistics], kind: str, wanted: str) -> ApiError | None:
    """400 for a slot, or a source of one, that is for another use than the request; None if there is none.

    Args:
        name: The model of the request.
        slots: The manager's slots, with their state.
        kind: The kind of slots that the request needs.
        wanted: What it asks for.
    """
    plain = name.removesuffix(":latest")
    named = (state for slot, state in slots.items() if plain == slot or name in (slot, state["source"]))
    found = {state["kind"] for state in named if state["kind_known"]}
    if not found and plain == RERANKER:
        found = {RERANKER}  # the built-in slot appears with its first use
    known = [_KINDS[one] for one in found if one in _KINDS]
    if kind in found or not known:
        return None
    return bad_request(f"{name!r} is {known[0]}: it does not support {wanted}", "model")
