"""The items of an answer's output, as they are written: its thoughts, if the model thinks, and its message."""

from __future__ import annotations

import secrets
from typing import Any, ClassVar


class Item:
    """One item. Its only part is a text."""

    prefix: ClassVar[str]
    """Of its id."""
    event: ClassVar[str]
    """The first part of the types of its text's events."""
    noted: ClassVar[dict[str, Any]] = {}
    """What these events have besides the text."""

    def __init__(self, index: int) -> None:
        self.id = self.prefix + secrets.token_hex(24)
        self.index = index
        self.pieces: list[str] = []

    @staticmethod
    def part(text: str) -> dict[str, Any]:
        """The part with the text."""
        raise NotImplementedError

    def begun(self) -> dict[str, Any]:
        """Before its part."""
        return self._form([], "in_progress")

    def ended(self, status: str) -> dict[str, Any]:
        """With the text so far."""
        return self._form([self.part("".join(self.pieces))], status)

    def _form(self, content: list[dict[str, Any]], status: str) -> dict[str, Any]:
        raise NotImplementedError


class Message(Item):
    """The answer to the user."""

    prefix = "msg_"
    event = "response.output_text"
    noted: ClassVar[dict[str, Any]] = {"logprobs": []}

    @staticmethod
    def part(text: str) -> dict[str, Any]:
        """The part with the text."""
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def _form(self, content: list[dict[str, Any]], status: str) -> dict[str, Any]:
        return {"id": self.id, "type": "message", "role": "assistant", "status": status, "content": content}


class Thoughts(Item):
    """What the model thinks before it answers."""

    prefix = "rs_"
    event = "response.reasoning_text"

    @staticmethod
    def part(text: str) -> dict[str, Any]:
        """The part with the text."""
        return {"type": "reasoning_text", "text": text}

    def _form(self, content: list[dict[str, Any]], status: str) -> dict[str, Any]:
        return {"id": self.id, "type": "reasoning", "status": status, "summary": [], "content": content}


class Output:
    """The items of one answer."""

    def __init__(self) -> None:
        self.items: list[Item] = []

    def writes(self, kind: type[Item]) -> bool:
        """Whether the last item is one of this kind."""
        return bool(self.items) and type(self.items[-1]) is kind

    def add(self, kind: type[Item]) -> Item:
        """The next item."""
        self.items.append(kind(len(self.items)))
        return self.items[-1]

    def text(self, kind: type[Item]) -> str:
        """The text of the items of this kind."""
        return "".join(piece for item in self.items if type(item) is kind for piece in item.pieces)

    def ended(self, status: str) -> list[dict[str, Any]]:
        """The items; the last one has this status."""
        return [item.ended(status if item is self.items[-1] else "completed") for item in self.items]
