"""A reranker or classifier as an object, for code written for sentence-transformers' `CrossEncoder`.

The object is a handle: it names a slot and holds no weights. An idle model leaves memory while the handle exists, and
the next call loads it again.
"""

from __future__ import annotations

import sys

from .._arguments import (
    a_flag,
    a_manager,
    a_pair,
    a_text,
    an_int,
    an_iterable,
    argument_error,
    one_of,
    rename,
    type_error,
    unexpected,
)
from .._scoring import check_activation, check_softmax, document_texts
from ..errors import InputError
from ._results import returned
from .sentence_model import _Progress, check_progress, either, state_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from .._scoring import ScoringManager
    from .._types import Description
    from ..results import RerankResult


_ACTIVATIONS = ("identity", "sigmoid", "softmax", "probabilities")
_RANK_OPTIONS = {
    **dict.fromkeys(("activation_fn", "device", "prompt", "prompt_name", "show_progress_bar")),
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
        sentences: Sequence[Sequence[str]] | Sequence[str] | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: Any = None,
        apply_softmax: bool = False,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        device: str | None = None,
        inputs: Sequence[Sequence[str]] | Sequence[str] | None = None,
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
            device: Accepted and ignored: `Config(device=...)` decides.
            inputs: `sentences`, by the name that it has from sentence-transformers 6 on.

        Returns:
            float32, shape (n,) for a model of one label, else (n, labels); for one pair without the first dimension.

        Raises:
            InputTypeError: An item is not a pair of texts.
            ArgumentError: ``"softmax"`` for a model of one label: it is always 1.
            ValueError: The errors of `Manager.rerank`.
        """
        check_progress(batch_size, show_progress_bar)
        a_flag("apply_softmax", apply_softmax)
        a_flag("convert_to_numpy", convert_to_numpy)
        a_flag("convert_to_tensor", convert_to_tensor)
        if inputs is not None:
            sentences = either("sentences", sentences, "inputs", inputs)
        activation_fn = _activation(activation_fn)
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
        check_softmax(scores, "activation_fn", activation_fn)
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

        `options` are those of `predict`: ``activation_fn``, ``prompt``, ``prompt_name``. The others of `predict` are
        checked and change nothing: scores are floats, and the softmax of the one label that a ranking needs has no
        effect. Raises `TaskError` for a model of several labels.
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
        activation = _activation(options["activation_fn"])
        check_activation("activation_fn", activation)
        named = activation is None or isinstance(activation, str)
        found = self._manager.rerank(
            query,
            texts,
            self.name,
            top_n=top_k if named else None,  # a function may change the order
            return_documents=return_documents,
            activation=activation if named else "identity",
            prompt=options["prompt"],
            prompt_name=options["prompt_name"],
        )
        if not named and found:
            found = _scored(found, activation)[:top_k]
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

    max_seq_length = max_length

    @property
    def device(self) -> str:
        """Where the model computes: ``cpu``, or a card, ``cuda:0`` or ``mps:0``. Before its load: the manager's."""
        known = self._manager.describe(self.name, load=False)
        return self._manager.device if known is None else known["device"]

    def __repr__(self) -> str:
        return f"<CrossEncoder {self.name!r}, {state_of(self._manager, self.name)}>"

    def _repr_html_(self) -> str:
        from ..integrations.jupyter import model_html

        return model_html(self._manager, self.name, "CrossEncoder")


def _activation(given: Any) -> Any:
    """An activation: None, a name, also of PyTorch's module with that name, or a function."""
    kind = type(given)
    if kind.__module__.startswith("torch.nn.modules.") and kind.__name__ in ("Identity", "Sigmoid"):
        return kind.__name__.lower()
    if isinstance(given, str):
        return one_of("activation_fn", given, _ACTIVATIONS)
    if given is not None and not callable(given):
        raise type_error("activation_fn", "a function or a str", given)
    return given


def _applied(function: Any, logits: Any) -> Any:
    """`function` of the logits, shape (n, labels), as float32. A module of PyTorch gets a tensor."""
    import numpy as np

    torch = sys.modules.get("torch")
    if torch is not None and isinstance(function, torch.nn.Module):
        with torch.no_grad():
            found = function(torch.as_tensor(logits)).float().numpy()
    else:
        found = np.asarray(function(logits), np.float32)
    if found.shape[:1] != logits.shape[:1]:
        raise argument_error(
            "activation_fn", f"activation_fn must return a row for each of {len(logits)}, not shape {found.shape}"
        )
    return found


def _scored(results: Sequence[RerankResult], function: Any) -> list[RerankResult]:
    """Results with logits as scores, by the scores that `function` makes of them."""
    import numpy as np

    from ..results import RerankResult

    in_order = sorted(results, key=lambda one: one.index)  # equal scores stay in it
    logits = np.array([[one.score] for one in in_order], np.float32).reshape(-1, 1)
    scores = _applied(function, logits)
    if scores.size != len(in_order):
        raise argument_error(
            "activation_fn",
            f"activation_fn must return one score for each of {len(in_order)}, not shape {scores.shape}",
        )
    made = (
        RerankResult(one.index, score, one.document)
        for one, score in zip(in_order, scores.ravel().tolist(), strict=True)
    )
    return sorted(made, key=lambda one: one.score, reverse=True)


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
