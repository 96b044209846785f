"""How an answer looks: the response, its states, its usage."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Any

from ..generation.forms import usage
from .output import Message, Output, Thoughts

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
        self.output = Output()
        self._id, self._created = f"resp_{secrets.token_hex(24)}", int(time.time())
        self._slot, self._repeated = slot, repeated

    def begun(self) -> dict[str, Any]:
        """Before its first item."""
        return self._state("in_progress")

    def finished(self, done: Completion) -> dict[str, Any]:
        """At its end."""
        status = end_status(done)
        cut = status == "incomplete"
        return self._state(
            status,
            completed_at=None if cut else int(time.time()),
            incomplete_details={"reason": "max_output_tokens"} if cut else None,
            usage=response_usage(done, self._reasoning_tokens(done)),
        )

    def failed(self, error: ApiError) -> dict[str, Any]:
        """After an error in the middle of a stream."""
        code = _CODES.get(error.status_code, "server_error")
        return self._state("failed", error={"code": code, "message": error.detail})

    def _reasoning_tokens(self, done: Completion) -> int:
        """The tokens of the thoughts, by their share of the text: the core does not count them apart."""
        if not self.output.text(Thoughts):
            return 0
        thoughts = len(done["text"]) - len(self.output.text(Message))
        return round(done["completion_tokens"] * thoughts / len(done["text"]))

    def _state(self, status: str, **more: Any) -> dict[str, Any]:
        state = {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "completed_at": None,
            "error": None,
            "incomplete_details": None,
            "model": self._slot,
            "output": self.output.ended("completed" if status == "completed" else "incomplete"),
            "usage": None,
        }
        return {**state, **more, **self._repeated}


def end_status(done: Completion) -> str:
    """The status of an answer that has ended."""
    return "incomplete" if done["finish_reason"] == "length" else "completed"


def response_usage(done: Completion, reasoning: int) -> dict[str, Any]:
    """The usage, as that of a chat under the names of this API. `reasoning`: tokens of the thoughts."""
    chat = usage([done], 1)
    return {
        "input_tokens": chat["prompt_tokens"],
        "input_tokens_details": {**chat["prompt_tokens_details"], "cache_write_tokens": 0},
        "output_tokens": chat["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": chat["total_tokens"],
    }
