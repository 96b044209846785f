"""The thoughts that a model writes in front of its answer, between `<think>` and `</think>`."""

from __future__ import annotations

from enum import Enum, auto

__all__ = ["ThinkingParser", "opens_thinking", "split_thinking"]

OPENING, CLOSING = "<think>", "</think>"


class _Part(Enum):
    """What is read now."""

    BEGINNING = auto()
    """The text up to `<think>`, if the answer begins with it."""
    OPENED = auto()
    """White space behind `<think>`."""
    THOUGHTS = auto()
    CLOSED = auto()
    """White space behind `</think>`."""
    ANSWER = auto()


class ThinkingParser:
    """Separates one answer into thoughts and the rest, piece by piece, however it is cut into pieces.

    Thoughts stand in front of an answer; later markers are text. White space next to a marker belongs to the marker. An
    answer that ends within its thoughts has no more than thoughts.
    """

    __slots__ = ("_held", "_opened", "_part")

    def __init__(self, opened: bool = False) -> None:
        """`opened`: the prompt ends with `<think>`, so that the answer begins within its thoughts."""
        self._opened = opened
        self._part = _Part.BEGINNING
        self._held = ""

    def feed(self, piece: str) -> tuple[str, str]:
        """The thoughts and the answer that this piece adds. What may be a part of a marker comes with a later one."""
        self._held += piece
        if self._part is _Part.BEGINNING:
            self._begin()
        self._skip(_Part.OPENED, _Part.THOUGHTS)
        thoughts = self._thoughts() if self._part is _Part.THOUGHTS else ""
        self._skip(_Part.CLOSED, _Part.ANSWER)
        return thoughts, self._take(len(self._held)) if self._part is _Part.ANSWER else ""

    def end(self) -> tuple[str, str]:
        """What is left at the end: the beginning of a marker that did not come, and white space in front of it."""
        left = self._take(len(self._held))
        if self._part in {_Part.OPENED, _Part.CLOSED}:
            return "", ""
        inside = self._part is _Part.THOUGHTS or (self._part is _Part.BEGINNING and self._opened)
        return (left, "") if inside else ("", left)

    def split(self, text: str) -> tuple[str, str]:
        """The thoughts and the answer of a whole text; the parser is used up."""
        thoughts, answer = self.feed(text)
        more_thoughts, more_answer = self.end()
        return thoughts + more_thoughts, answer + more_answer

    def _begin(self) -> None:
        text = self._held.lstrip()
        if text.startswith(OPENING):
            self._part, self._held = _Part.OPENED, text[len(OPENING) :]
        elif not OPENING.startswith(text):
            self._part = _Part.OPENED if self._opened else _Part.ANSWER

    def _skip(self, space: _Part, then: _Part) -> None:
        """Go on to `then` where the white space ends."""
        if self._part is space:
            self._held = self._held.lstrip()
            self._part = then if self._held else space

    def _thoughts(self) -> str:
        at = self._held.find(CLOSING)
        if at >= 0:
            thoughts = self._held[:at].rstrip()
            self._part, self._held = _Part.CLOSED, self._held[at + len(CLOSING) :]
            return thoughts
        partial = next(size for size in range(len(CLOSING) - 1, -1, -1) if self._held.endswith(CLOSING[:size]))
        return self._take(len(self._held[: len(self._held) - partial].rstrip()))

    def _take(self, length: int) -> str:
        taken, self._held = self._held[:length], self._held[length:]
        return taken


def split_thinking(text: str, *, opened: bool | None = None) -> tuple[str, str]:
    """The thoughts in front of a whole answer, and the answer itself.

    ``thoughts, answer = split_thinking(manager.chat(messages))``. Thoughts are the text between `<think>` and
    `</think>`, without white space around them. An answer without thoughts comes back as it is.

    Args:
        text: What `generate`, `chat` or `complete` returned.
        opened: Whether the prompt ends with `<think>`, as those of DeepSeek-R1 do: `opens_thinking` says so. None: if
            the text has a `</think>` that no `<think>` opens. A text that ends within such thoughts has no marker: pass
            True.
    """
    if opened is None:
        before, closing, _ = text.partition(CLOSING)
        opened = bool(closing) and OPENING not in before
    return ThinkingParser(opened).split(text)


def opens_thinking(prompt: str, continued: str = "") -> bool:
    """Whether the answer to a prompt, as `apply_chat_template` returns it, begins within thoughts.

    Args:
        prompt: The prompt.
        continued: The last message, if the answer continues it: its own thoughts may be open.
    """
    if thoughts := continued.lstrip():
        # The prompt ends with it, and it may write about the marker.
        return thoughts.startswith(OPENING) and CLOSING not in thoughts
    return prompt.rstrip().endswith(OPENING)
