"""The fields of the rerankers for LangChain and LlamaIndex, whose components are models of pydantic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, PrivateAttr

from .._arguments import an_int, check_names
from .._embedder import reranker_for

if TYPE_CHECKING:
    from .._scoring import ScoringManager


class RerankerFields(BaseModel):
    """What both rerankers have. It is the first base of each, so that its constructor is used."""

    top_n: int | None = 3
    """Documents that stay; None: all."""
    model: str
    """The slot."""
    _manager: Any = PrivateAttr()

    def __init__(
        self, model: str | None = None, *, manager: ScoringManager | None = None, top_n: int | None = 3, **fields: Any
    ) -> None:
        """Loads nothing yet.

        Args:
            model: A slot of the manager, or a source (hub id, folder, …). None: ``reranker``.
            manager: None: the process-wide one.
            top_n: Documents that stay; None: all.
            fields: Further fields of the class, such as LlamaIndex's `callback_manager`.

        Raises:
            TypeError: An unknown field.
            ArgumentError: A `top_n` below 1.
        """
        check_names(type(self).__name__, fields, type(self).model_fields)
        if top_n is not None:
            an_int("top_n", top_n, 1)
        found, slot = reranker_for(manager, model)
        super().__init__(**{"model": slot, "top_n": top_n, **fields})
        self._manager = found
