"""How an answer looks: the response, its message, its usage."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Any

from ..generation.forms import usage

if TYPE_CHECKING:
    from ...._types import Completion
    from ...errors import ApiError

_CODES = {400: "invalid_prompt", 429: "rate_limit_exceeded"}
"""OpenAI's codes of failed responses by the status that the error would have; all others are `server_error`."""


class Answer:
    """The response to one request, in each of its states.

    Args:
        slot: The generator.
        repeated: What it repeats of the request.
    """

    def __init__(self, slot: str, repeated: dict[str, Any]) -> None:
        self.message_id = f"msg_{secrets.token_hex(24)}"
        self._id, self._created = f"resp_{secrets.token_hex(24)}", int(time.time())
        self._slot, self._repeated = slot, repeated

    def begun(self) -> dict[str, Any]:
        """Before its end."""
        return self._state("in_progress", [])

    def finished(self, done: Completion) -> dict[str, Any]:
        """At its end."""
        cut = done["finish_reason"] == "length"
        status = "incomplete" if cut else "completed"
        return self._state(
            status,
            [self.message([text_part(done["text"])], status)],
            completed_at=None if cut else int(time.time()),
            incomplete_details={"reason": "max_output_tokens"} if cut else None,
            usage=response_usage(done),
        )

    def failed(self, error: ApiError, text: str) -> dict[str, Any]:
        """After an error in the middle of a stream. `text`: what was sent before."""
        output = [self.message([text_part(text)], "incomplete")]
        code = _CODES.get(error.status_code, "server_error")
        return self._state("failed", output, error={"code": code, "message": error.detail})

    def message(self, content: list[dict[str, Any]], status: str) -> dict[str, Any]:
        """Its one message."""
        return {
            "id": self.message_id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": content,
        }

    def _state(self, status: str, output: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        state = {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "completed_at": None,
            "error": None,
            "incomplete_details": None,
            "model": self._slot,
            "output": output,
            "usage": None,
        }
        return {**state, **more, **self._repeated}


def text_part(text: str) -> dict[str, Any]:
    """A message's text."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def response_usage(done: Completion) -> dict[str, Any]:
    """The usage, as that of a chat under the names of this API."""
    chat = usage([done], 1)
    return {
        "input_tokens": chat["prompt_tokens"],
        "input_tokens_details": {**chat["prompt_tokens_details"], "cache_write_tokens": 0},
        "output_tokens": chat["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": chat["total_tokens"],
    }
