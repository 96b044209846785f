"""`POST /v1/chat/completions` and `/v1/completions`."""

from __future__ import annotations

from .endpoints import add_routes

__all__ = ["add_routes"]
