"""Which of a few intents a text has, learned from a handful of examples of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from .._arguments import a_number, a_text, an_int, an_iterable, argument_error, type_error
from .._embedder import Embedder
from .rows import ROUNDING, prepare

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from .._core import Manager
    from .rows import Vectors


class Intent(NamedTuple):
    """The intent of a text."""

    label: str | None
    """The intent; None when no intent reaches the threshold."""
    score: float
    """Mean cosine to the nearest examples of the best intent, between -1 and 1."""
    example: str
    """The example that is nearest, of the best intent: the reason for the answer."""
    scores: dict[str, float]
    """The score of every intent."""


class IntentClassifier:
    """A classifier that compares a text with the examples of every intent. Nothing is trained, and the answer names
    the example that decided.

    The score of an intent is the mean cosine to the `neighbors` of its examples that are nearest to the text.

    >>> intents = IntentClassifier({"hours": ["When are you open?", "Çalışma saatleriniz nedir?"],
    ...                             "contact": ["How can I reach you?", "Telefon numaranız nedir?"]})
    >>> intents.predict("Saat kaçta açılıyorsunuz?").label
    'hours'
    """

    def __init__(
        self,
        examples: Mapping[str, Iterable[str]],
        manager: Manager | None = None,
        model: str | None = None,
        *,
        threshold: float = 0.0,
        neighbors: int = 3,
    ) -> None:
        """A classifier of these intents. The examples are embedded with the first prediction, and again when the
        slot has another model, or another checkpoint of the same name.

        Args:
            examples: The texts of each intent.
            manager: The manager that embeds; None for the process-wide one.
            model: A slot of it or a source; None for its preferred sentence model.
            threshold: The least score; below it the label is None. It depends on the model: see the scores of texts
                that have no intent.
            neighbors: How many examples count.

        Raises:
            ArgumentError: No intent, an intent without examples, a blank example, an example of two intents,
                `neighbors` below 1, a `threshold` out of range.
        """
        if not isinstance(examples, Mapping):
            raise type_error("examples", "a mapping of intents to lists of texts", examples)
        self.neighbors = an_int("neighbors", neighbors, 1)
        threshold = a_number("threshold", threshold)
        if not -1 <= threshold <= 1:
            raise argument_error("threshold", f"threshold={threshold} must be between -1 and 1")
        if not examples:
            raise argument_error("examples", "examples is empty; give at least one intent with its examples")
        self.threshold = threshold
        self.labels = list(examples)
        self._texts: list[str] = []
        self._owner: list[int] = []
        for number, (label, texts) in enumerate(examples.items()):
            self._add(number, label, texts)
        self._embedder = Embedder(manager, model)
        self._known: tuple[tuple[str, str], Vectors] | None = None
        """The vectors of the examples, and the `query_model` that made them."""

    def _add(self, number: int, label: str, texts: Iterable[str]) -> None:
        given = list(an_iterable(f"examples[{label!r}]", texts, "a list of texts"))
        if not given:
            raise argument_error("examples", f"the intent {label!r} has no examples; give it at least one")
        for index, text in enumerate(given):
            if not a_text(f"examples[{label!r}][{index}]", text).strip():
                raise argument_error("examples", f"an example of {label!r} is blank; remove it")
            if text in self._texts:
                other = self.labels[self._owner[self._texts.index(text)]]
                if other != label:
                    raise argument_error(
                        "examples", f"{text!r} is an example of {other!r} and of {label!r}; it can have one intent"
                    )
                continue
            self._texts.append(text)
            self._owner.append(number)

    def predict(self, text: str) -> Intent:
        """The intent of one text. Raises `ArgumentError` for a blank one."""
        a_text("text", text)
        return self.predict_many([text])[0]

    def predict_many(self, texts: Iterable[str]) -> list[Intent]:
        """The intent of each text, in their order."""
        asked = list(an_iterable("texts", texts, "an iterable of str"))
        for index, text in enumerate(asked):
            if not a_text(f"texts[{index}]", text).strip():
                raise argument_error("texts", f"texts[{index}] is blank; it has no intent")
        if not asked:
            return []
        while True:
            found, model = self._embedder.queries_of_one_model(asked)
            known = self._known
            if known is None or known[0] != model:  # the slot may have another model since
                examples, own = self._embedder.queries_of_one_model(self._texts)
                known = self._known = own, prepare(examples, "examples", "cosine")
            if known[0] == model:
                break
        cosines = np.clip(prepare(found, "texts", "cosine") @ known[1].T, -1, 1)
        return [self._decide(row) for row in cosines]

    def _decide(self, cosines: Vectors) -> Intent:
        owner = np.array(self._owner)
        scores = {}
        for number, label in enumerate(self.labels):
            own = np.sort(cosines[owner == number])[::-1]
            scores[label] = float(own[: self.neighbors].mean())
        best = max(scores, key=scores.__getitem__)
        own = np.flatnonzero(owner == self.labels.index(best))
        example = self._texts[own[int(np.argmax(cosines[own]))]]
        return Intent(best if scores[best] >= self.threshold - ROUNDING else None, scores[best], example, scores)

    def __repr__(self) -> str:
        return f"<IntentClassifier {self._embedder.slot!r}, {len(self.labels)} intents, {len(self._texts)} examples>"
