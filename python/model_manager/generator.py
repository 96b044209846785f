"""The text generator as a callable, for code written for a transformers text-generation pipeline.

The object is a handle: it names a slot and holds no weights, so an idle generator leaves memory even while somebody
keeps the handle, and comes back at the next call.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ._core import Manager

_IGNORED = frozenset(
    {"num_return_sequences", "pad_token_id", "eos_token_id", "truncation", "clean_up_tokenization_spaces"}
)
"""What pipelines take beyond sampling, and what means nothing here: one answer is given, and nothing is padded."""


class TextGenerator:
    """The generator of one slot of a manager, called as a transformers pipeline is."""

    __slots__ = ("_manager", "name")

    name: str
    """The slot."""

    def __init__(self, manager: Manager, name: str) -> None:
        self._manager = manager
        self.name = name

    def __call__(self, prompt: str, *, return_full_text: bool = True, **options: Any) -> list[dict[str, str]]:
        """One answer to `prompt`, as ``[{"generated_text": prompt and answer}]``.

        Args:
            return_full_text: False: the answer without the prompt.
            options: `max_length` (prompt included) or `max_new_tokens`, `temperature`, `top_p`, `top_k`, `min_p`,
                `repetition_penalty`, `no_repeat_ngram_size`, `do_sample`, `seed`, `stop`; see `Manager.complete`.
        """
        known = {name: value for name, value in options.items() if name not in _IGNORED}
        text: str = self._manager.complete(prompt, self.name, **known)["text"]
        return [{"generated_text": prompt + text if return_full_text else text}]

    @property
    def tokenizer(self) -> TextGenerator:
        """Where pipelines keep `eos_token_id`."""
        return self

    @property
    def eos_token_id(self) -> int:
        """The token that ends a text; loads the model."""
        token: int = self._manager.describe_generator(self.name)["eos_token_id"]
        return token

    def __repr__(self) -> str:
        state = "loaded" if self._manager.is_loaded(self.name) else "not loaded"
        return f"<TextGenerator {self.name!r}, {state}>"
