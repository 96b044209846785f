"""A reranker or classifier as an object, for code written for sentence-transformers' `CrossEncoder`.

The object is a handle: it names a slot and holds no weights. An idle model leaves memory while the handle exists, and
the next call loads it again.
"""

from __future__ import annotations

import sys

from .._arguments import a_flag, a_manager, a_pair, a_text, an_int, an_iterable, one_of, rename, type_error, unexpected
from .._scoring import document_texts
from ..errors import InputError
from ._results import returned
from .sentence_model import _Progress, check_progress, state_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from .._scoring import ScoringManager
    from .._types import Description


_ACTIVATIONS = ("identity", "sigmoid", "softmax", "probabilities")
_RANK_OPTIONS = {
    **dict.fromkeys(("activation_fn", "prompt", "prompt_name", "show_progress_bar")),
    "batch_size": 32,
    "apply_softmax": False,
    "convert_to_numpy": True,
    "convert_to_tensor": False,
}
"""The options of `predict` that `rank` takes, and their defaults."""


class CrossEncoder:
    """The model of one slot of a manager, with the calls of `sentence_transformers.CrossEncoder`."""

    __slots__ = ("_manager", "name")

    name: str
    """The slot."""

    def __init__(self, manager: ScoringManager, name: str = "reranker") -> None:
        self._manager: ScoringManager = a_manager(manager)
        self.name = a_text("name", name)

    def predict(
        self,
        sentences: Sequence[Sequence[str]] | Sequence[str],
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: Any = None,
        apply_softmax: bool = False,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
    ) -> Any:
        """The scores of one pair of texts or of several: one number a pair, or one for each label.

        Args:
            sentences: Pairs of str (an array of shape (n, 2) too), or one pair.
            batch_size: Accepted and ignored: batches are formed by tokens and do not change scores.
            show_progress_bar: Show a progress bar if tqdm is installed.
            activation_fn: ``"identity"``, ``"sigmoid"``, ``"softmax"``, a module of PyTorch, or a function of the array
                of logits, shape (n, labels). None: what the model's files say; without a word there, the sigmoid of one
                label, and the logits of several.
            apply_softmax: The softmax over several labels, after the activation. No effect on one label.
            convert_to_numpy: False returns a list, one entry per pair.
            convert_to_tensor: Return a PyTorch tensor; needs PyTorch.
            prompt: As for `Manager.rerank`.
            prompt_name: As for `Manager.rerank`.

        Returns:
            float32, shape (n,) for a model of one label, else (n, labels); for one pair without the first dimension.

        Raises:
            InputTypeError: An item is not a pair of texts.
            ValueError: The errors of `Manager.rerank`.
        """
        check_progress(batch_size, show_progress_bar)
        a_flag("apply_softmax", apply_softmax)
        a_flag("convert_to_numpy", convert_to_numpy)
        a_flag("convert_to_tensor", convert_to_tensor)
        activation_fn = _by_name(activation_fn)
        if isinstance(activation_fn, str):
            one_of("activation_fn", activation_fn, _ACTIVATIONS)
        elif activation_fn is not None and not callable(activation_fn):
            raise type_error("activation_fn", "a function or a str", activation_fn)
        given = [_listed(pair) for pair in an_iterable("sentences", sentences, "pairs [(query, text), ...]")]
        single = len(given) == 2 and all(isinstance(text, str) for text in given)
        pairs = [given] if single else [a_pair("sentences", number, pair) for number, pair in enumerate(given)]
        named = activation_fn is None or isinstance(activation_fn, str)
        with _Progress(bool(show_progress_bar), len(pairs)) as progress:
            scores: Any
            try:
                scores, _ = self._manager._infer(
                    "scores",
                    [first for first, _ in pairs],
                    [second for _, second in pairs],
                    self.name,
                    progress,
                    activation=activation_fn if named else "identity",
                    prompt=prompt,
                    prompt_name=prompt_name,
                )
            except InputError as error:
                rename(error, "texts", "sentences", lambda place: place[1:] if single else place)
                raise
        if not named:
            scores = _applied(activation_fn, scores)
        if apply_softmax and scores.ndim > 1 and scores.shape[1] > 1:
            scores = _softmax(scores)
        if scores.ndim > 1 and scores.shape[1] == 1:
            scores = scores[:, 0]
        return returned(scores, single, convert_to_numpy, convert_to_tensor)

    def rank(
        self,
        query: str,
        documents: Iterable[str],
        top_k: int | None = None,
        return_documents: bool = False,
        **options: Any,
    ) -> list[dict[str, Any]]:
        """Documents by their relevance to `query`, best first: ``corpus_id``, ``score`` and, if asked for, ``text``.

        `options` are those of `predict`: ``activation_fn`` (a name, or PyTorch's Sigmoid or Identity), ``prompt``,
        ``prompt_name``. The others of `predict` are checked and change nothing: scores are floats, and the softmax of
        the one label that a ranking needs has no effect. Raises `TaskError` for a model of several labels.
        """
        for name in options.keys() - _RANK_OPTIONS.keys():
            raise unexpected("rank()", name, _RANK_OPTIONS)
        options = {**_RANK_OPTIONS, **options}
        check_progress(options["batch_size"], options["show_progress_bar"])
        a_flag("return_documents", return_documents)
        for name in ("apply_softmax", "convert_to_numpy", "convert_to_tensor"):
            a_flag(name, options[name])
        if top_k is not None:
            an_int("top_k", top_k, 1)
        texts = document_texts(documents)
        activation = _by_name(options["activation_fn"])
        if activation is not None and not isinstance(activation, str):
            raise type_error("activation_fn", "the name of an activation", activation, "; predict takes functions")
        found = self._manager.rerank(
            query,
            texts,
            self.name,
            top_n=top_k,
            return_documents=return_documents,
            activation=activation,
            prompt=options["prompt"],
            prompt_name=options["prompt_name"],
        )
        return _Ranks(
            {"corpus_id": one.index, "score": one.score, **({"text": one.document} if return_documents else {})}
            for one in found
        )

    def classify(self, texts: Any, **options: Any) -> Any:
        """`Manager.classify` with this model."""
        return self._manager.classify(texts, self.name, **options)

    def describe(self) -> Description:
        """The model's description; loads the model."""
        return self._manager.describe(self.name)

    @property
    def num_labels(self) -> int:
        """The number of labels; loads the model."""
        return len(self.describe()["labels"])

    @property
    def max_length(self) -> int | None:
        """Tokens per pair, special ones included; longer pairs are cut. Loads the model."""
        return self.describe()["max_length"]

    @property
    def device(self) -> str:
        """``cpu``, or a card: ``cuda:0``, ``mps:0``."""
        return self._manager.device

    def __repr__(self) -> str:
        return f"<CrossEncoder {self.name!r}, {state_of(self._manager, self.name)}>"

    def _repr_html_(self) -> str:
        from ..integrations.jupyter import model_html

        return model_html(self._manager, self.name)


def _by_name(activation: Any) -> Any:
    """The name of an activation that is given as PyTorch's module; anything else as it is."""
    kind = type(activation)
    if kind.__module__.startswith("torch.nn.modules.") and kind.__name__ in ("Identity", "Sigmoid"):
        return kind.__name__.lower()
    return activation


def _applied(function: Any, logits: Any) -> Any:
    """`function` of the logits as an array. A module of PyTorch gets a tensor."""
    import numpy as np

    torch = sys.modules.get("torch")
    if torch is not None and isinstance(function, torch.nn.Module):
        with torch.no_grad():
            return function(torch.as_tensor(logits)).float().numpy()
    return np.asarray(function(logits))


def _softmax(scores: Any) -> Any:
    import numpy as np

    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _listed(pair: Any) -> Any:
    """A row of an array as a list."""
    return pair.tolist() if hasattr(pair, "tolist") else pair


class _Ranks(list["dict[str, Any]"]):
    """What `rank` returns: a list that notebooks show as a table."""

    def _repr_html_(self) -> str | None:
        from .._html import results_html

        return results_html(
            self,
            lambda one: {"corpus_id": str(one["corpus_id"]), "score": one["score"], "text": one.get("text")},
        )
