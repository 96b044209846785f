"""A model as Ollama's lists describe it."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
        "quantization_level": known["dtype"] if known else "",
    }
