"""Reranking and classification: the methods of managers over the core's arrays of scores."""

from __future__ import annotations

import contextlib

from ._arguments import a_flag, a_pair, a_text, an_int, an_iterable, argument_error, item_error
from ._async import ainfer
from ._core import Manager
from .errors import TaskError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any, TypeAlias

    import numpy as np
    from numpy.typing import NDArray

    from .results import Classification, RerankResult

    Document: TypeAlias = str | Mapping[str, Any]
    """A text, or a mapping with the key ``text``."""
    Scored: TypeAlias = str | Sequence[str]
    """A text, or a pair of texts."""

RERANKER = "reranker"
"""The slot of calls that name none."""

_OF_ONE_LABEL = ("identity", "sigmoid", "probabilities")
_CONSTANT = " for a model of one label, whose softmax is always 1"


class ScoringManager(Manager):
    """`Manager` and the methods that score texts and pairs of texts."""

    def rerank(
        self,
        query: str,
        documents: Iterable[Document],
        model: str | None = None,
        *,
        top_n: int | None = None,
        return_documents: bool = True,
        activation: str | None = None,
        prompt: str | None = None,
        prompt_name: str | None = None,
        batch_size: int | None = None,
        truncate: bool = True,
        timeout: float | None = None,
        keep_alive: float | str | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> list[RerankResult]:
        """Documents by their relevance to `query`, best first.

        Args:
            query: The question.
            documents: Texts, or mappings with the key ``text``.
            model: Slot; None: ``reranker``.
            top_n: Return only so many. None: all.
            return_documents: Put the texts into the results.
            activation: ``identity`` (the model's logits), ``sigmoid``; None: what the model's files say.
            prompt: The instruction of models that take one, such as Qwen3-Reranker; other models read it before the
                query.
            prompt_name: The same by name, from the model's prompts.
            batch_size: Accepted and ignored: batches are formed by tokens and do not change scores.
            truncate: Cut pairs that are longer than the model's maximum, the longer text first. False: such a pair is
                an `InputError`.
            timeout: Seconds for everything, loading included; None: `load_timeout` for the load.
            keep_alive: Overrides the slot's value for this use.
            progress: Called as ``progress(done, total)``.

        Raises:
            TypeError: A query that is not text.
            InputTypeError: A document that is not text.
            ArgumentError: A blank query, a `top_n` below 1, another `activation`: the softmax of one label is always 1.
            InputError: A text that cannot be read: too long with ``truncate=False``, a lone surrogate.
            TaskError: The slot's model gives no scores, or one for each of several labels.
            UnknownModelError, WaitTimeoutError, OverloadedError, NotFiniteError, ClosedError: See `errors.py`.
            ModelManagerError: The errors of loading the model.
        """
        texts = _checked(query, documents, top_n, return_documents, batch_size, activation)
        if not texts:
            return []
        scores, _ = self._infer(
            "scores",
            query,
            texts,
            model or RERANKER,
            progress,
            activation=activation,
            prompt=prompt,
            prompt_name=prompt_name,
            truncate=truncate,
            timeout=timeout,
            keep_alive=keep_alive,
        )
        return ranked(scores, texts, model or RERANKER, top_n, return_documents)

    async def arerank(
        self,
        query: str,
        documents: Iterable[Document],
        model: str | None = None,
        *,
        top_n: int | None = None,
        return_documents: bool = True,
        batch_size: int | None = None,
        **options: Any,
    ) -> list[RerankResult]:
        """`rerank` for asyncio: same arguments (except `progress`), result and errors. Cancelling the task cancels the
        work.
        """
        texts = _checked(query, documents, top_n, return_documents, batch_size, options.get("activation"))
        if not texts:
            return []
        scores, _ = await ainfer(self, "scores", query, texts, model or RERANKER, **options)
        return ranked(scores, texts, model or RERANKER, top_n, return_documents)

    rerank_async = arerank
    """The same."""

    def classify(
        self,
        texts: str | Iterable[Scored],
        model: str | None = None,
        *,
        activation: str | None = None,
        truncate: bool = True,
        timeout: float | None = None,
        keep_alive: float | str | None = None,
    ) -> Any:
        """The labels of one text, of several, or of pairs of texts, with their probabilities.

        Args:
            texts: A str, several, or pairs of str (for models of inference: premise and hypothesis).
            model: Slot; None: ``reranker``.
            activation: ``softmax``, ``sigmoid`` or ``identity``; None: as ``problem_type`` of the model's files says.
            truncate: As for `rerank`.
            timeout: As for `rerank`.
            keep_alive: As for `rerank`.

        Returns:
            A `Classification` for one text, a list of them for several.

        Raises:
            InputTypeError: An item that is neither a text nor a pair.
            ArgumentError: Texts and pairs in one call, the softmax of a model of one label.
            TaskError: The slot's model gives no scores.
            ModelManagerError: As for `rerank`.
        """
        first, second, single = scored(texts)
        slot = model or RERANKER
        scores, _ = self._infer(
            "scores",
            first,
            second,
            slot,
            activation=activation or "probabilities",
            truncate=truncate,
            timeout=timeout,
            keep_alive=keep_alive,
        )
        check_softmax(scores, "activation", activation)
        found = classified(scores, self._labels(slot))
        return found[0] if single else found

    async def aclassify(self, texts: str | Iterable[Scored], model: str | None = None, **options: Any) -> Any:
        """`classify` for asyncio: same arguments, result and errors."""
        first, second, single = scored(texts)
        slot = model or RERANKER
        options["activation"] = options.get("activation") or "probabilities"
        scores, _ = await ainfer(self, "scores", first, second, slot, **options)
        check_softmax(scores, "activation", options["activation"])
        found = classified(scores, self._labels(slot))
        return found[0] if single else found


def check_activation(name: str, given: Any) -> None:
    """Refuse what is no activation for a ranking. The core refuses what is no str."""
    if isinstance(given, str) and given not in _OF_ONE_LABEL:
        reason = _CONSTANT if given == "softmax" else ""
        raise argument_error(name, f"{name}={given!r}: expected identity or sigmoid{reason}")


def check_softmax(scores: NDArray[np.float32], name: str, given: Any) -> None:
    """Refuse the softmax where the scores have one label."""
    if isinstance(given, str) and given == "softmax" and scores.shape[1] == 1:
        raise argument_error(name, f"{name}='softmax': expected identity or sigmoid{_CONSTANT}")


def ranked(
    scores: NDArray[np.float32], texts: Sequence[str], model: str, top_n: int | None, return_documents: bool
) -> list[RerankResult]:
    """Results of the best documents, ties in the order of the request."""
    from .results import Ranking, RerankResult

    if scores.shape[1] != 1:
        raise TaskError(
            f"the model of {model!r} gives a score for each of {scores.shape[1]} labels, which orders no documents; "
            "classify() names the labels"
        )
    column = scores[:, 0]
    order = (-column).argsort(kind="stable")[:top_n]
    return Ranking(
        RerankResult(int(index), float(column[index]), texts[index] if return_documents else None) for index in order
    )


def classified(scores: NDArray[np.float32], labels: Sequence[str]) -> list[Classification]:
    """The likeliest label of each row, and all of them."""
    from .results import Classification, Classifications

    names = _distinct(labels or [f"LABEL_{number}" for number in range(scores.shape[1])])
    found = Classifications()
    for row in scores.tolist():
        best = max(range(len(row)), key=row.__getitem__)
        found.append(Classification(names[best], row[best], dict(zip(names, row, strict=True))))
    return found


def _distinct(labels: Sequence[str]) -> list[str]:
    """The labels; one that several have gets the number of each: every probability has a name."""
    return [label if labels.count(label) == 1 else f"{label} ({number})" for number, label in enumerate(labels)]


def document_texts(documents: Iterable[Document]) -> list[str]:
    """The texts of documents. Raises `InputTypeError` for anything without a text."""
    texts: list[str] = []
    for number, document in enumerate(an_iterable("documents", documents, "several texts")):
        text: Any = document
        if not isinstance(document, str):
            # Any mapping: the values of other types have no key "text".
            text = None
            with contextlib.suppress(TypeError, KeyError, IndexError):
                text = document["text"]
            if not isinstance(text, str):
                raise item_error("documents", number, "a str or a mapping with a str under 'text'", document)
        texts.append(text)
    return texts


def scored(texts: str | Iterable[Scored]) -> tuple[Any, list[str] | None, bool]:
    """The first texts, the second ones (None: there are no pairs), and whether a single text was given."""
    if isinstance(texts, str):
        return [texts], None, True
    items = list(an_iterable("texts", texts, "a str, or an iterable of str or of pairs"))
    pairs = [
        a_pair("texts", number, item, "a str or a pair of str")
        for number, item in enumerate(items)
        if not isinstance(item, str)
    ]
    if not pairs:
        return items, None, False
    if len(pairs) < len(items):
        raise argument_error("texts", "texts holds texts and pairs; give one of both")
    return [first for first, _ in pairs], [second for _, second in pairs], False


def _checked(
    query: str,
    documents: Iterable[Document],
    top_n: int | None,
    return_documents: bool,
    batch_size: int | None,
    activation: Any,
) -> list[str]:
    if not a_text("query", query).strip():
        raise argument_error("query", "query is blank: there is nothing to compare the documents with")
    if top_n is not None:
        an_int("top_n", top_n, 1)
    a_flag("return_documents", return_documents)
    if batch_size is not None:
        an_int("batch_size", batch_size, 1)
    check_activation("activation", activation)
    return document_texts(documents)
