"""The content manager of the host program, where it has one: it answers before anything is generated."""

from __future__ import annotations

import logging
import sys

from .rules import is_host_fallback

logger = logging.getLogger("model_manager")

NAME = "improved_turkish_content_manager"
"""The host's module; its `improved_turkish_content` has `get_response(message)`."""


def has_host() -> bool:
    """Whether the host has a content manager. The check does not import it."""
    if NAME in sys.modules:
        return sys.modules[NAME] is not None
    from importlib.util import find_spec

    return find_spec(NAME) is not None


def ask_host(message: str) -> str | None:
    """The answer of the host's content manager; None when there is no manager or only a fallback answer."""
    try:
        from improved_turkish_content_manager import improved_turkish_content as content

        answer = content.get_response(message)
        is_answer = isinstance(answer, str) and answer.strip() and not is_host_fallback(content, answer)
    except Exception as error:  # noqa: BLE001  the host's code may raise anything; a generated answer is still possible
        logger.warning("improved_turkish_content failed: %s: %s", type(error).__name__, error)
        return None
    return answer if is_answer else None
