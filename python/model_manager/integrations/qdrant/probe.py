"""Vectors of two fixed texts, which a collection keeps: they tell a model from another one of the same name.

A folder in which other weights replaced the former ones, a new revision of a hub id, and a server's model that was
replaced have the name and the configuration of the model that filled the collection. Their vectors differ.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ...results import SparseVector

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ..._types import Description

PROBE = "probe"
"""Its key in a collection's metadata."""
TEXTS = (
    "Makine çalışıyor.",
    "The machine is running.",
)
_VALUES = 64
"""Values that are kept of a vector."""
_SAME = 0.99
"""The least cosine of the vectors of one model: other hardware, bfloat16 and int8 keep 0.999."""
_SAME_INT4 = 0.9
"""The same where one side is int4, which keeps 0.96 of MiniLM's vectors, or a server, which may quantize so."""


def probe_of(known: Description, vectors: Iterable[Any]) -> dict[str, Any]:
    """What a collection keeps of the vectors of `TEXTS`: the first values of each dense vector, of the first token's
    vector, or the largest weights of a sparse one, by their places.
    """
    coarse = known["engine"] != "model_manager" or known["dtype"] == "int4"
    return {"coarse": coarse, "vectors": [_values(vector) for vector in vectors]}


def differs(there: Mapping[str, Any], here: Mapping[str, Any]) -> float | None:
    """The lowest cosine of two probes if they are those of different models. None: they may be of one model, or the
    collection says nothing.
    """
    stored, own = there.get("vectors"), here.get("vectors")
    if not isinstance(stored, list) or not isinstance(own, list) or len(stored) != len(own):
        return None
    lowest = min(_cosine(a, b) for a, b in zip(stored, own, strict=True))
    least = _SAME_INT4 if there.get("coarse") or here.get("coarse") else _SAME
    return None if lowest >= least else lowest


def _values(vector: Any) -> dict[str, float]:
    pairs: Iterable[tuple[int, float]]
    if isinstance(vector, SparseVector):
        heaviest = np.sort(np.argsort(-vector.values, kind="stable")[:_VALUES])
        pairs = zip(vector.indices[heaviest].tolist(), vector.values[heaviest].tolist(), strict=True)
    else:
        pairs = enumerate(np.asarray(vector).reshape(-1, np.shape(vector)[-1])[0, :_VALUES].tolist())
    return {str(place): round(value, 5) for place, value in pairs}


def _cosine(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    product = sum(value * other.get(place, 0.0) for place, value in one.items())
    lengths = math.hypot(*one.values()) * math.hypot(*other.values())
    # Two vectors without weights are equal.
    return product / lengths if lengths else float(one == other)
