"""How the answers of the two endpoints look: a conversation's and a continuation's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...._types import Completion


class Chat:
    """Answers to a conversation."""

    kind = "chat.completion"
    chunk = "chat.completion.chunk"
    mark = "chatcmpl-"
    prompt = "messages"

    @staticmethod
    def whole(text: str) -> dict[str, Any]:
        """The answer."""
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    @staticmethod
    def divided(thoughts: str, text: str) -> dict[str, Any]:
        """The answer and its thoughts."""
        message = {"role": "assistant", "content": text, "reasoning_content": thoughts or None, "refusal": None}
        return {"message": message}

    @staticmethod
    def piece(text: str | None) -> dict[str, Any]:
        """A piece of the answer; None: its end."""
        return {"delta": {} if text is None else {"content": text}}

    @staticmethod
    def thought(text: str) -> dict[str, Any]:
        """A piece of the thoughts."""
        return {"delta": {"reasoning_content": text}}


class Continuation:
    """Continuations of a text."""

    kind = "text_completion"
    chunk = "text_completion"
    mark = "cmpl-"
    prompt = "prompt"

    @staticmethod
    def whole(text: str) -> dict[str, Any]:
        """The answer."""
        return {"text": text}

    @staticmethod
    def piece(text: str | None) -> dict[str, Any]:
        """A piece of the answer; None: its end."""
        return {"text": text or ""}


Form: TypeAlias = type[Chat] | type[Continuation]


def usage(done: Sequence[Completion], per_prompt: int) -> dict[str, Any]:
    """The usage of all answers. A prompt with several answers counts once."""
    prompts = done[::per_prompt]
    prompt, answer = sum(one["prompt_tokens"] for one in prompts), sum(one["completion_tokens"] for one in done)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
        "prompt_tokens_details": {"cached_tokens": sum(one["reused_tokens"] for one in prompts)},
    }
