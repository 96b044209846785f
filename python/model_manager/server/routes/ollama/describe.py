"""A model as Ollama's lists describe it."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ...._types import Description, GeneratorDescription
    from ...service import Service


def digest(source: str, adapter: str | None = None) -> str:
    """64 hexadecimal digits that identify a model by its source and its adapter, not by its content. Clients show the
    first twelve.
    """
    named = source if adapter is None else f"{source}\0{adapter}"
    return hashlib.sha256(named.encode(errors="replace")).hexdigest()


def details(service: Service, slot: str, source: str | None) -> dict[str, Any]:
    """What is known of a slot's model; empty texts for the rest. Of a generator that is what
    `Service.generator_description` knows. Loads nothing.
    """
    known = service.description(slot) or service.generator_description(slot)
    family = known["architecture"] if known else ""
    return {
        "parent_model": "",
        "format": "gguf" if (source or "").lower().endswith(".gguf") else "",
        "family": family,
        "families": [family] if family else None,
        "parameter_size": "",
        "quantization_level": _level(known) if known else "",
    }


_LEVELS = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "int8": "Q8_0", "int4": "Q4_1"}
"""Ollama's names of the formats in memory. Those of fewer bits have the blocks of these types: 32 weights with a scale,
and with a minimum too.
"""


def _level(known: Description | GeneratorDescription) -> str:
    """The type of a model's weights, as Ollama names it: that of its GGUF file, else that of the memory."""
    if known["engine"] == "server":
        return ""
    return known["file_type"] or _LEVELS.get(known["dtype"], known["dtype"])
