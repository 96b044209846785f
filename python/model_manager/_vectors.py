"""Sparse vectors and vectors of tokens: the methods of managers over the core's lists."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence, Set as AbstractSet

from ._arguments import argument_error, one_of, type_error
from ._async import aembed as aembed_dense, ainfer
from ._bridge import in_thread, seconds_of
from ._scoring import ScoringManager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, Literal

    from ._types import Description
    from .results import EmbedOutputs

_OUTPUTS = ("dense", "sparse", "multi")
_REPEATABLE = (Sequence, AbstractSet, Mapping)
_COLUMNS = ("__array__", "__arrow_c_array__", "__arrow_c_stream__")
"""What columns and arrays have, which may be read again and again. A length is no sign: progress bars have one."""


class VectorsManager(ScoringManager):
    """`Manager` and the methods for results beyond one vector a text."""

    def embed_sparse(
        self,
        texts: str | Iterable[str],
        model: str,
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        form: Literal["numpy", "scipy"] = "numpy",
        truncate: bool = True,
        timeout: float | None = None,
        keep_alive: float | str | None = None,
    ) -> Any:
        """Weights of entries of the model's vocabulary (SPLADE), for an inverted index.

        Args:
            texts: A str or any iterable of str.
            model: Slot of a model of sparse vectors.
            prompt: As for `embed`.
            prompt_name: As for `embed`.
            form: ``"scipy"`` returns a `scipy.sparse.csr_array` of shape (n, vocabulary); needs scipy.
            truncate: False: a text that is longer than the model's maximum is an `InputError`.
            timeout: As for `embed`.
            keep_alive: As for `embed`.

        Returns:
            A `SparseVector` (`indices`, `values`) for one text, a list of them for several.

        Raises:
            TaskError: The slot's model gives no sparse vectors.
            ModelManagerError: As for `embed`.
        """
        _check_form(form)
        items, single = _several(texts)
        found, _ = self._infer(
            "sparse",
            items,
            None,
            model,
            prompt=prompt,
            prompt_name=prompt_name,
            truncate=truncate,
            timeout=timeout,
            keep_alive=keep_alive,
        )
        known = self.describe(model) if form == "scipy" else None
        return _sparse(found, known, single)

    async def aembed_sparse(
        self, texts: str | Iterable[str], model: str, *, form: Literal["numpy", "scipy"] = "numpy", **options: Any
    ) -> Any:
        """`embed_sparse` for asyncio: same arguments, result and errors."""
        _check_form(form)
        left = _Left(options)
        items, single = _several(texts)
        found, _ = await ainfer(self, "sparse", items, None, model, **options)
        known = await _description(self, model, left) if form == "scipy" else None
        return _sparse(found, known, single)

    def embed_multi(
        self,
        texts: str | Iterable[str],
        model: str,
        *,
        kind: Literal["query", "document"] | None = None,
        prompt: str | None = None,
        prompt_name: str | None = None,
        truncate: bool = True,
        timeout: float | None = None,
        keep_alive: float | str | None = None,
    ) -> Any:
        """A vector for each token of each text.

        Models of late interaction (ColBERT, bge-m3) give the vectors that `maxsim` compares. Other embedding models
        give the states of all tokens, special ones included, before pooling and normalization.

        Args:
            texts: A str or any iterable of str.
            model: Slot of an embedding model.
            kind: ``"query"`` or ``"document"`` (also None): ColBERT models put another marker before each, fill queries
                with masks, and leave punctuation out of documents. Other models put their prompt of the name ``query``
                before queries, if they have one.
            prompt: As for `embed`.
            prompt_name: As for `embed`.
            truncate: As for `embed_sparse`.
            timeout: As for `embed`.
            keep_alive: As for `embed`.

        Returns:
            float32 of shape (tokens, dim) for one text, a list of such arrays for several.

        Raises:
            TaskError: The slot's model gives no vectors of tokens.
            ModelManagerError: As for `embed`.
        """
        items, single = _several(texts)
        found, _ = self._infer(
            _multi_name(kind),
            items,
            None,
            model,
            prompt=prompt,
            prompt_name=prompt_name,
            truncate=truncate,
            timeout=timeout,
            keep_alive=keep_alive,
        )
        return found[0] if single else found

    async def aembed_multi(
        self,
        texts: str | Iterable[str],
        model: str,
        *,
        kind: Literal["query", "document"] | None = None,
        prompt: str | None = None,
        prompt_name: str | None = None,
        **options: Any,
    ) -> Any:
        """`embed_multi` for asyncio: same arguments, result and errors."""
        items, single = _several(texts)
        found, _ = await ainfer(
            self, _multi_name(kind), items, None, model, prompt=prompt, prompt_name=prompt_name, **options
        )
        return found[0] if single else found


def _multi_name(kind: str | None) -> Literal["multi", "queries"]:
    """What the core calls vectors of tokens of this kind."""
    if kind is not None:
        one_of("kind", kind, ("query", "document"))
    return "queries" if kind == "query" else "multi"


def embed_outputs(
    manager: Any,
    texts: Any,
    model: str | None,
    outputs: Any,
    *,
    truncate_dim: int | None = None,
    normalize: bool = True,
    copy: bool = False,
    progress: Any = None,
    **options: Any,
) -> EmbedOutputs:
    """`Manager.embed` with `outputs`."""
    wanted = _wanted(model, outputs, truncate_dim)
    items, single = _several(texts)
    found = {}
    left = _Left(options)
    known = None
    if len(wanted) > 1:
        known = manager.describe(model, load=False)
        if known is None:
            manager.load(model, left.timeout)
            known = manager.describe(model)
    for kind in _kinds(known, wanted):
        extra = {"normalize": normalize} if kind == "all" else {}
        options = left.options()
        if kind == "dense":
            found[kind] = manager.embed(items, model, normalize=normalize, copy=copy, progress=progress, **options)
        else:
            found[kind], _ = manager._infer(kind, items, None, model, progress, **extra, **options)
    return _outputs(found, wanted, known, single)


async def aembed(manager: Any, texts: Any, model: str | None = None, **options: Any) -> Any:
    """`Manager.embed` for asyncio: same arguments (except `progress`), same result, same errors.

    Cancelling the task withdraws the texts that have not been computed yet.
    """
    if (outputs := options.pop("outputs", None)) is None:
        return await aembed_dense(manager, texts, model, **options)
    return await aembed_outputs(manager, texts, model, outputs, **options)


async def aembed_outputs(
    manager: Any,
    texts: Any,
    model: str | None,
    outputs: Any,
    *,
    truncate_dim: int | None = None,
    normalize: bool = True,
    copy: bool = False,
    **options: Any,
) -> Any:
    """`aembed` with `outputs`."""
    wanted = _wanted(model, outputs, truncate_dim)
    items, single = _several(texts)
    found = {}
    left = _Left(options)
    known = await _description(manager, model, left) if len(wanted) > 1 else None
    for kind in _kinds(known, wanted):
        extra = {"normalize": normalize} if kind == "all" else {}
        options = left.options()
        if kind == "dense":
            found[kind] = await aembed_dense(manager, items, model, normalize=normalize, copy=copy, **options)
        else:
            found[kind], _ = await ainfer(manager, kind, items, None, model, **extra, **options)
    return _outputs(found, wanted, known, single)


def _wanted(model: str | None, outputs: Any, truncate_dim: int | None) -> list[str]:
    if not hasattr(outputs, "__iter__"):
        raise type_error("outputs", f"some of {', '.join(_OUTPUTS)}", outputs)
    wanted = [outputs] if isinstance(outputs, str) else list(outputs)
    wrong = [kind for kind in wanted if kind not in _OUTPUTS]
    if wrong or not wanted:
        raise argument_error("outputs", f"outputs={outputs!r}: must be some of {', '.join(_OUTPUTS)}")
    if model is None:
        raise argument_error("model", "outputs are of one model: name it, embed(texts, model, outputs=...)")
    if truncate_dim is not None:
        raise argument_error("truncate_dim", "truncate_dim is for dense vectors alone; leave outputs out")
    return list(dict.fromkeys(wanted))


async def _description(manager: Any, model: str | None, left: _Left) -> Description:
    """The model's description. A model that is not in memory is loaded by a thread, not by the event loop."""
    known: Description | None = manager.describe(model, load=False)
    if known is not None:
        return known
    await in_thread(manager.load, model, left.timeout)
    loaded: Description = await in_thread(manager.describe, model)
    return loaded


class _Left:
    """The options of a call that needs several of the core: each gets what is left of the `timeout`."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        self._seconds = seconds_of(options.get("timeout"))
        self._began = time.monotonic()

    @property
    def timeout(self) -> Any:
        """The seconds that are left; the value as it was given if it is none or no limit."""
        if self._seconds is None:
            return self._options.get("timeout")
        return max(0.0, self._seconds - (time.monotonic() - self._began))

    def options(self) -> dict[str, Any]:
        """The options for the next call."""
        return self._options if self._seconds is None else {**self._options, "timeout": self.timeout}


def _kinds(known: Description | None, wanted: list[str]) -> list[str]:
    """What the core is asked for: all three at once, if the model gives them and more than one is wanted."""
    if known is not None and {"embed", "embed_sparse", "embed_multi"} <= set(known["tasks"]):
        return ["all"]
    return [kind for kind in _OUTPUTS if kind in wanted]


def _sparse(found: Any, known: Description | None, single: bool) -> Any:
    """The vectors as objects, or with the model's description as the rows of a matrix."""
    from .results import SparseVector, to_scipy

    vectors = [SparseVector(indices, values) for indices, values in found]
    if known is not None:
        return to_scipy(vectors, known["sparse_dimension"])
    return vectors[0] if single else vectors


def _outputs(found: dict[str, Any], wanted: list[str], known: Description | None, single: bool) -> EmbedOutputs:
    import numpy as np

    from .results import EmbedOutputs, SparseVector

    if "all" in found:
        parts = list(zip(*found.pop("all"), strict=True)) or [(), (), ()]
        found = dict(zip(_OUTPUTS, parts, strict=True))
        width = 0 if known is None else known["dimension"]
        found["dense"] = np.stack(found["dense"]) if found["dense"] else np.empty((0, width), np.float32)
    if "sparse" in found:
        found["sparse"] = [SparseVector(indices, values) for indices, values in found["sparse"]]
    if "multi" in found:
        found["multi"] = list(found["multi"])
    # The core gives one vector for token ids that are one text.
    chosen = {
        kind: value[0] if single and not (kind == "dense" and value.ndim == 1) else value
        for kind, value in found.items()
        if kind in wanted
    }
    return EmbedOutputs(**chosen)


def _check_form(form: str) -> None:
    one_of("form", form, ("numpy", "scipy"))


def _several(texts: Any) -> tuple[Any, bool]:
    """Texts as the core takes several, and whether they are one: a str, or the token ids of one text."""
    if isinstance(texts, str):
        return [texts], True
    items = _repeatable(texts)
    return items, _are_ids(items)


def _are_ids(items: Any) -> bool:
    if isinstance(items, Mapping | bytes | bytearray) or not hasattr(items, "__iter__") or hasattr(items, "columns"):
        return False
    first = next(iter(items), None)
    return hasattr(first, "__index__") and not isinstance(first, bool) and getattr(first, "ndim", 0) == 0


def _repeatable(texts: Any) -> Any:
    """`texts` in a form that every kind of output may read: an iterable that can be read only once becomes a list.

    Columns and arrays stay what they are, and so does everything that the core refuses by its type.
    """
    if isinstance(texts, _REPEATABLE) or not hasattr(texts, "__iter__"):
        return texts
    return texts if any(hasattr(texts, name) for name in _COLUMNS) else list(texts)
