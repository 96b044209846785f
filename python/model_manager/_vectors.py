"""Sparse vectors and vectors of tokens: the methods of managers over the core's lists."""

from __future__ import annotations

from ._async import ainfer
from ._scoring import ScoringManager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, Literal


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
        found, _ = self._infer(
            "sparse",
            _several(texts),
            None,
            model,
            prompt=prompt,
            prompt_name=prompt_name,
            truncate=truncate,
            timeout=timeout,
            keep_alive=keep_alive,
        )
        return self._sparse(found, model, form, isinstance(texts, str))

    async def aembed_sparse(
        self, texts: str | Iterable[str], model: str, *, form: Literal["numpy", "scipy"] = "numpy", **options: Any
    ) -> Any:
        """`embed_sparse` for asyncio: same arguments, result and errors."""
        _check_form(form)
        found, _ = await ainfer(self, "sparse", _several(texts), None, model, **options)
        return self._sparse(found, model, form, isinstance(texts, str))

    def _sparse(self, found: Any, model: str, form: str, single: bool) -> Any:
        from .results import SparseVector, to_scipy

        vectors = [SparseVector(indices, values) for indices, values in found]
        if form == "scipy":
            return to_scipy(vectors, self.describe(model)["sparse_dimension"])
        return vectors[0] if single else vectors

    def embed_multi(
        self,
        texts: str | Iterable[str],
        model: str,
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        truncate: bool = True,
        timeout: float | None = None,
        keep_alive: float | str | None = None,
    ) -> Any:
        """The states of all tokens of each text, special tokens included, before pooling and normalization.

        Args:
            texts: A str or any iterable of str.
            model: Slot of an embedding model.
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
        found, _ = self._infer(
            "multi",
            _several(texts),
            None,
            model,
            prompt=prompt,
            prompt_name=prompt_name,
            truncate=truncate,
            timeout=timeout,
            keep_alive=keep_alive,
        )
        return found[0] if isinstance(texts, str) else found

    async def aembed_multi(self, texts: str | Iterable[str], model: str, **options: Any) -> Any:
        """`embed_multi` for asyncio: same arguments, result and errors."""
        found, _ = await ainfer(self, "multi", _several(texts), None, model, **options)
        return found[0] if isinstance(texts, str) else found


def _check_form(form: str) -> None:
    if form not in ("numpy", "scipy"):
        raise ValueError(f"form={form!r} must be 'numpy' or 'scipy'")


def _several(texts: Any) -> Any:
    return [texts] if isinstance(texts, str) else texts
