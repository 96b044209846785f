"""Ollama's API: vectors, text and lists of models in its form."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import embed, generate, models

if TYPE_CHECKING:
    from ...routing import Routes
    from ...service import Service

__all__ = ["add_routes"]


def add_routes(routes: Routes, service: Service) -> None:
    """Register all endpoints. `/api/ps` belongs to `routes.admin`."""
    for part in (embed, generate, models):
        part.add_routes(routes, service)
