"""`POST /v1/responses`: OpenAI's Responses API, without stored responses."""

from __future__ import annotations

from .endpoints import add_routes

__all__ = ["add_routes"]
